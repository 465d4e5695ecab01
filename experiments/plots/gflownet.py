"""Figures of `gflownet`.

figure2       the paper's Fig. 2: L1 (top) and modes found (bottom) against objects visited, a column for each R0
distribution  the learned distribution of a two-dimensional grid beside the target distribution

python -m experiments.plots.gflownet RUN... --out figure.png      draws figure2; runs are sorted by environment and method
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from tyro.conf import Positional

from experiments.cli.errors import guarded
from experiments.cli.text import plain
from experiments.plots.curves import CurvesError, gather, ready
from experiments.plots.figure import BASE, COLOURS, FLOOR, Curve, label_decades
from experiments.run.run import Run

Array = NDArray[np.float64]
ROWS = (("eval/l1", "L1 distance  Σ|p^ − p|"), ("eval/modes", "modes found"))
STYLE: dict[Any, Any] = {**BASE, "font.size": 10}


def figure2(runs: Positional[tuple[Path, ...]], out: Path) -> Path:
    """L1 and modes found against objects visited: a column for each environment, a line for each method.

    Args:
        runs: run folders; runs of one method on one environment are pooled
        out: figure, .png or .svg
    """
    ready(out)
    environments: dict[str, list[Path]] = {}
    for run in runs:
        environments.setdefault(plain(str(Run.open(run).config.get("title", "?"))), []).append(run)
    if not environments:
        raise CurvesError("no run given: name one or more run folders")
    found = {title: [gather(folders, metric, "states")[1] for metric, _ in ROWS] for title, folders in environments.items()}
    methods = list(dict.fromkeys(curve.algo for rows in found.values() for curve in rows[0]))
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.6 * len(found) + 0.8, 7.0), 6.4), dpi=160, layout="constrained")
        axes: Any = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
        for column, (title, rows) in enumerate(sorted(found.items(), key=lambda item: _order(item[0], environments))):
            for row, curves in enumerate(rows):
                for curve in curves:
                    _line(axes[row, column], curve, COLOURS[methods.index(curve.algo) % len(COLOURS)], row == 0)
                _floor(axes[row, column], curves)
                axes[row, column].set_xscale("log")
                label_decades(axes[row, column].xaxis)
                axes[row, column].grid(True, color="#d9d9d9", linewidth=0.7)
            axes[0, column].set_title(title.replace(", ", "\n", 1), loc="left", fontsize=10, fontweight="bold")
            axes[1, column].set_xlabel("objects visited per seed")
        for row, (_, label) in enumerate(ROWS):
            axes[row, 0].set_ylabel(label)
        axes[0, 0].set_yscale("log")
        label_decades(axes[0, 0].yaxis)
        axes[1, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
        handles = {h.get_label(): h for ax in axes.flat for h in ax.get_lines() if not h.get_label().startswith("_")}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
        seeds = sorted({len(curve.y) for rows in found.values() for curve in rows[0]})
        count = f"{seeds[0]}–{seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
        note = f"interquartile mean over {count}, shaded: 95 % bootstrap interval; L1 of the last objects visited"
        figure.suptitle(note, x=0.01, ha="left", fontsize=9, color="#555555")
        figure.savefig(out)
    return out


def _order(title: str, environments: dict[str, list[Path]]) -> tuple[float, str]:
    """The largest R0 first, as in the paper."""
    return -float(Run.open(environments[title][0]).config.get("env_settings", {}).get("r0", 0.0)), title


def _line(axes: Any, curve: Curve, colour: str, positive: bool) -> None:
    mean, low, high = curve.interval()
    seen = (curve.x > 0) & ((mean > 0) & (low > 0) if positive else np.isfinite(mean))
    axes.fill_between(curve.x[seen], low[seen], high[seen], color=colour, alpha=0.18, linewidth=0)
    axes.plot(curve.x[seen], mean[seen], color=colour, linewidth=1.8, label=curve.algo)


def _floor(axes: Any, curves: Sequence[Curve]) -> None:
    longest = max(curves, key=lambda curve: curve.x[-1])
    if longest.floor is not None:
        seen = longest.x > 0
        axes.plot(longest.x[seen], longest.floor[seen], ":", color="#555555", linewidth=1.5, label=FLOOR)


def distribution(run: Path, out: Path, checkpoint: Path | None = None, trust: bool = False) -> Path:
    """The target distribution of a two-dimensional grid, and beside it the policy's, or the last objects' where there is none.

    Of several seeds the first is drawn. CurvesError for other environments.
    """
    from experiments.gfn.commands import opened
    from experiments.gfn.metrics import has_policy
    from gflownet.evaluation import exact_distribution
    from gflownet.metrics import l1_sum

    ready(out)
    opened_run, (_, method, problem, truth, training, _) = opened(run, checkpoint, trust)
    on = opened_run.config.get("title", opened_run.config["env"])
    if truth is None or training.window is None or truth.obs.shape[1:] != (2,):
        raise CurvesError(f"{run} is on {on}: only enumerated two-dimensional grids can be drawn")
    policy = has_policy(method, training.state, problem)
    learned = exact_distribution(method, training.state, problem, truth) if policy else training.window.distribution
    cells, distance = truth.obs[truth.objects].cpu().numpy(), float(l1_sum(learned[0], truth.target))
    title = plain(f"{on}, {opened_run.config['method']}, {training.states:,} objects visited")
    what = "learned: exact distribution of the policy" if policy else f"visited: the last {training.window.held:,} objects"
    _heat(
        cells,
        [truth.target.cpu().numpy(), learned[0].cpu().numpy()],
        ["target distribution  R / Z", what],
        f"Σ|p_θ − p| = {distance:.3g}",
        title,
        out,
    )
    return out


def _heat(cells: Any, distributions: list[Array], names: list[str], distance: str, title: str, out: Path) -> None:
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    size = cells.max(0) + 1
    high = max(p.max() for p in distributions)
    low = max(
        min(p.min() for p in distributions), distributions[0].min() / 10
    )  # what was never visited takes the darkest colour
    with matplotlib.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(9.6, 5.4), dpi=160, layout="constrained")
        axes: Any = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, p, name in zip(axes, distributions, names, strict=True):
            grid = np.full(tuple(size), np.nan)
            grid[cells[:, 0], cells[:, 1]] = np.clip(p, low, None)
            image = ax.imshow(grid.T, origin="lower", cmap="viridis", norm=LogNorm(low, high))
            ax.set_title(name, loc="left", fontsize=10)
            ax.set_xlabel("first coordinate")
        axes[0].set_ylabel("second coordinate")
        bar = figure.colorbar(image, ax=list(axes))
        bar.set_label("probability of a cell")
        figure.suptitle(f"{title}\n{distance}", x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.savefig(out)


if __name__ == "__main__":
    guarded(lambda: print(f"figure: {tyro.cli(figure2)}"), program="gflownet")
