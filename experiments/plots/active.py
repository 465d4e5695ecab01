"""Top-k return and modes against the round, a line for each method.

python -m experiments.plots.active RUN... --out figure.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from experiments.cli.errors import guarded
from experiments.plots.curves import CurvesError, gather, ready
from experiments.plots.figure import COLOURS, MARKERS
from experiments.plots.gflownet import STYLE

PANELS = (("eval/top_return", "top-k return since the start"), ("eval/modes", "modes known"))


def figure(runs: Positional[tuple[Path, ...]], out: Path) -> Path:
    """Draw runs of active learning on one grid side by side.

    Args:
        runs: run folders; runs of one method are pooled
        out: figure, .png or .svg
    """
    ready(out)
    found = [gather(runs, metric, "iteration") for metric, _ in PANELS]
    title, seeds = found[0][2][0].title, max(len(curve.y) for curve in found[0][1])
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(8.4, 4.2), dpi=160, layout="constrained")
        axes: Any = drawing.subplots(1, len(PANELS))
        for ax, (_, curves, _), (_, label) in zip(axes, found, PANELS, strict=True):
            for k, curve in enumerate(curves):
                mean, low, high = curve.interval()
                colour = COLOURS[k % len(COLOURS)]
                ax.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)
                ax.plot(curve.x, mean, color=colour, marker=MARKERS[k % len(MARKERS)], linewidth=1.8, label=curve.algo)
            ax.set_xlabel("round")
            ax.set_ylabel(label)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(True, color="#d9d9d9", linewidth=0.7)
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        note = f"{title}\ninterquartile mean over {seeds} seed{'s' * (seeds > 1)}, shaded: 95 % bootstrap interval"
        drawing.suptitle(note, x=0.01, ha="left", fontsize=10)
        try:
            drawing.savefig(out)
        except OSError as error:
            raise CurvesError(f"could not write {out}: {error.strerror}", exit_code=1) from error
    return out


if __name__ == "__main__":
    guarded(lambda: print(f"figure: {tyro.cli(figure)}"), program="gflownet")
