"""The best molecules against molecules visited, a line for each method with a band over its seeds, and published points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.plots.curves import ready
from experiments.plots.figure import BASE, COLOURS, MARKERS


class Point(NamedTuple):
    """top: a mean reward of the best molecules, after so many visited."""

    name: str
    visited: float
    top: float


class Line(NamedTuple):
    """seeds: the points of each; dashed: a reference, not a run."""

    name: str
    seeds: list[list[Point]]
    dashed: bool = False


def best_molecules(lines: Sequence[Line], published: Sequence[Point], out: Path) -> Path:
    """Draw mean and range over seeds against molecules visited, on a logarithmic axis.

    Args:
        lines: solid ones first.
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
        for k, line in enumerate(line for line in lines if not line.dashed):
            x, y = _together(line)
            colour = COLOURS[k % len(COLOURS)]
            style = "-" if k < len(COLOURS) else "-."
            axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2, linewidth=0)
            label = f"{line.name} ({len(y)} seeds)"
            axes.plot(x, y.mean(0), style, color=colour, marker=MARKERS[k % len(MARKERS)], markersize=4, label=label)
        for line in [line for line in lines if line.dashed]:
            x, y = _together(line)
            axes.plot(x, y.mean(0), linestyle=(0, (4, 2)), color="#777777", linewidth=1.2, zorder=1)
            axes.annotate(
                line.name, (x[-1], y.mean(0)[-1]), (4, 0), textcoords="offset points", fontsize=8, color="#555555", va="center"
            )
        for point in published:
            axes.plot(point.visited, point.top, "*", color="black", markersize=11, zorder=9)
            axes.annotate(point.name, (point.visited, point.top), (6, 3), textcoords="offset points", fontsize=9)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("molecules visited by a seed")
        axes.set_ylabel("mean p of the 100 best molecules visited")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        if any(not line.dashed for line in lines):
            axes.legend(loc="lower right", frameon=False, fontsize=9)
        note = "mean and range over seeds; dashed: expected from independent draws of R^β; stars: Bengio et al. 2021, Table 1"
        axes.set_title(note, loc="left", fontsize=9, color="#555555")
        figure.savefig(out, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
    return out


def _together(line: Line) -> tuple[Any, Any]:
    """x [K] where all seeds have a point, y [S, K]."""
    common = sorted(set.intersection(*({point.visited for point in seed} for seed in line.seeds)))
    tops = [{point.visited: point.top for point in seed} for seed in line.seeds]
    return np.array(common), np.array([[top[x] for x in common] for top in tops])
