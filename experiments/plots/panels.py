"""Small multiples: one panel a method, with the curves of all other methods in grey behind it.

Fourteen lines in one pair of axes cannot be told apart; a panel shows one method and where it stands among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.plots.curves import CurvesError, gather, ready, write_csv
from experiments.plots.figure import FLOOR, Curve, label_decades
from experiments.plots.gflownet import STYLE

COLUMNS = 5
WITH_POLICY, WITHOUT = "eval/exact_l1", "eval/l1"


def panels(runs: Sequence[Path], out: Path) -> Path:
    """Draw L1 to the target distribution against objects visited, one panel a method.

    The distance is that of the policy's own distribution (no sampling noise). For a method without a policy, such as
    Metropolis–Hastings, it is that of the last objects visited, with the noise floor.

    Args:
        runs: run folders of `gflownet train`, all of one environment whose distribution is known; the panels keep their order.
        out: the figure, .png or .svg; the same numbers are written beside it as CSV.

    Returns:
        `out`.

    Raises:
        CurvesError: the runs are of different environments, or log no distance.
        MissingPackage: without matplotlib.
    """
    ready(out)
    found, titles = [], set()
    for run in runs:
        try:
            _, curves, series = gather([run], WITH_POLICY, "states")
        except CurvesError:
            _, curves, series = gather([run], WITHOUT, "states")
        found += curves
        titles.add(series[0].title)
    if len(titles) != 1:
        raise CurvesError(f"the runs are of {len(titles)} environments, {' and '.join(sorted(titles))}: give runs of one")
    write_csv(out.with_suffix(".csv"), found, "states")
    _draw(found, titles.pop(), out)
    return out


def _draw(found: list[Curve], title: str, out: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    rows = -(-len(found) // COLUMNS)
    with matplotlib.rc_context({**STYLE, "font.size": 9}):
        figure = Figure(figsize=(2.1 * COLUMNS, 1.9 * rows + 0.9), dpi=140, layout="constrained")
        axes: Any = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
        for ax, curve in zip(axes.flat, found, strict=False):
            for other in found:
                if other is not curve:
                    seen, mean, *_ = _positive(other)
                    ax.plot(other.x[seen], mean[seen], color="#cfcfcf", linewidth=0.8)
            seen, mean, low, high = _positive(curve)
            ax.fill_between(curve.x[seen], low[seen], high[seen], color="#0072B2", alpha=0.25, linewidth=0)
            ax.plot(curve.x[seen], mean[seen], color="#0072B2", linewidth=1.8)
            if curve.floor is not None:
                ax.plot(curve.x[1:], curve.floor[1:], ":", color="#555555", linewidth=1.2)
            ax.set_xscale("log")
            ax.set_yscale("log")
            label_decades(ax.xaxis)
            label_decades(ax.yaxis)
            ax.set_title(curve.algo, loc="left", fontweight="bold", fontsize=9)
            ax.grid(True, color="#e6e6e6", linewidth=0.6)
        for ax in axes.flat[len(found) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("objects visited per seed")
        figure.supylabel("L1 distance to the target distribution", fontsize=9)
        seeds = len(found[0].y)
        note = f"interquartile mean over {seeds} seeds, shaded: 95 % bootstrap interval; grey: the other methods"
        note += f"; dotted: {FLOOR}" if any(curve.floor is not None for curve in found) else ""
        figure.suptitle(f"{title}\n{note}", x=0.01, ha="left", fontsize=9)
        figure.savefig(out, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)


def _positive(curve: Curve) -> tuple[Any, Any, Any, Any]:
    """(where a logarithmic axis can show it, mean, low, high), each [K]."""
    mean, low, high = curve.interval()
    return (curve.x > 0) & (mean > 0) & (low > 0), mean, low, high
