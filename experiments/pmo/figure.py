"""The mean of the best ten against calls: a panel a task, a line a method, its band from the lowest to the highest seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plots.curves import ready
from experiments.plots.figure import COLOURS
from experiments.plots.gflownet import STYLE
from experiments.pmo.jobs import Result
from gflownet.molecules.sample_efficiency import top_mean_curve
from gflownet.rewards.chemistry import Floats

COLUMNS = 5
EVERY = 100  # calls between two points
LEAST = 0.1  # of the vertical axis, where all scores are 0


def figure(out: Path, results: Sequence[Result]) -> Path:
    """Draw the results of jobs with one budget.

    Raises:
        CurvesError: `out` is no .png or .svg.
        MissingPackage: without matplotlib.
    """
    ready(out)
    import matplotlib
    from matplotlib.figure import Figure

    tasks, methods = (list(dict.fromkeys(str(r.job[name]) for r in results)) for name in ("task", "method"))
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    calls = int(results[0].job["calls"])
    x = np.append(0, np.minimum(np.arange(1, -(-calls // EVERY) + 1) * EVERY, calls))
    seeds = len({r.job["seed"] for r in results})
    with matplotlib.rc_context({**STYLE, "font.size": 9}):
        drawn = Figure(figsize=(2.2 * columns + 0.6, 1.8 * rows + 0.9), dpi=140, layout="constrained")
        axes: Any = drawn.subplots(rows, columns, sharex=True, squeeze=False)
        for ax, task in zip(axes.flat, tasks, strict=False):
            for method, colour in zip(methods, COLOURS * len(methods), strict=False):
                found = [r for r in results if (r.job["task"], r.job["method"]) == (task, method)]
                if found:
                    y = np.stack([_line(r, len(x)) for r in found])
                    ax.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.25, linewidth=0)
                    ax.plot(x, y.mean(0), color=colour, linewidth=1.5, label=method)
            ax.set_title(task, loc="left", fontsize=8.5, fontweight="bold")
            ax.set_ylim(0, max(LEAST, ax.get_ylim()[1]))
            ax.set_xlim(0, calls)
            ax.set_xticks([0, calls / 2, calls])
            ax.grid(True, color="#e6e6e6", linewidth=0.6)
            ax.xaxis.set_major_formatter(lambda at, _: f"{at / 1000:g}k" if at else "0")
        for ax in axes.flat[len(tasks) :]:
            ax.set_axis_off()
        handles = {h.get_label(): h for ax in axes.flat for h in ax.get_lines()}
        drawn.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles), frameon=False)
        drawn.supylabel("mean score of the best ten so far", fontsize=9)
        drawn.supxlabel("calls of the score", fontsize=9)
        note = f"mean over {seeds} seed{'s' * (seeds > 1)}" + (", shaded: from the lowest to the highest" if seeds > 1 else "")
        drawn.suptitle(note, x=0.01, ha="left", fontsize=9, color="#555555")
        drawn.savefig(out)
    return out


def _line(result: Result, points: int) -> Floats:
    """The curve from 0 calls on; a run that ended early keeps its last value."""
    mean = np.append(0.0, top_mean_curve(result.scores, every=EVERY).mean)
    return np.append(mean, np.full(max(0, points - len(mean)), mean[-1]))[:points]
