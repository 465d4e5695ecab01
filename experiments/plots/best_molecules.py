"""The best molecules against molecules visited, a line for each method with a band over its seeds, and published points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots.curves import ready
from experiments.plots.figure import BASE, COLOURS, MARKERS

STYLES = ("-", "-.", ":", (0, (8, 1)))


class Point(NamedTuple):
    """top: a mean reward of the best molecules, after so many visited."""

    name: str
    visited: float
    top: float


class Line(NamedTuple):
    """seeds: the points of each; method: lines of one method have one colour; None: a reference, which is dashed."""

    name: str
    seeds: list[list[Point]]
    method: str | None = None


def best_molecules(lines: Sequence[Line], published: Sequence[Point], out: Path) -> Path:
    """Draw mean and range over seeds against molecules visited, on a logarithmic axis.

    Args:
        lines: in the order of the legend.
        published: drawn as stars with their names.
        out: .png or .svg.

    Raises:
        MissingPackage: without matplotlib.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    ready(out)
    with matplotlib.rc_context({**BASE, "font.size": 10}):
        figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
        axes: Any = figure.subplots()
        runs = [line for line in lines if line.method is not None]
        methods = list(dict.fromkeys(line.method for line in runs))
        for k, line in enumerate(runs):
            x, y = _together(line)
            earlier = sum(other.method == line.method for other in runs[:k])
            colour, style = COLOURS[methods.index(line.method) % len(COLOURS)], STYLES[earlier % len(STYLES)]
            axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
            look = {"color": colour, "marker": MARKERS[earlier % len(MARKERS)], "markersize": 4}
            axes.plot(x, y.mean(0), linestyle=style, label=f"{line.name} ({len(y)} seed{'s' * (len(y) > 1)})", **look)
        for line in [line for line in lines if line.method is None]:
            x, y = _together(line)
            axes.plot(x, y.mean(0), linestyle=(0, (4, 2)), color="#777777", linewidth=1.2, zorder=1)
            place = {"textcoords": "offset points", "fontsize": 8, "color": "#555555", "va": "center", "ha": "right"}
            axes.annotate(line.name, (x[0], y.mean(0)[0]), (-4, 0), **place)
        for point in published:
            axes.plot(point.visited, point.top, "*", color="black", markersize=11, zorder=9)
            axes.annotate(point.name, (point.visited, point.top), (6, 3), textcoords="offset points", fontsize=9)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("molecules visited by a seed")
        axes.set_ylabel("mean p of the 100 best molecules visited")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        if runs:
            axes.legend(loc="lower right", frameon=False, fontsize=9, ncols=2)
        note = "mean and range over seeds; dashed: expected from independent exact draws of R^β; stars: Bengio et al. 2021"
        axes.set_title(note, loc="left", fontsize=9, color="#555555")
        figure.savefig(out, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
    return out


def _together(line: Line) -> tuple[Any, Any]:
    """x [K] where all seeds have a point, y [S, K]."""
    common = sorted(set.intersection(*({point.visited for point in seed} for seed in line.seeds)))
    tops = [{point.visited: point.top for point in seed} for seed in line.seeds]
    return np.array(common), np.array([[top[x] for x in common] for top in tops])
