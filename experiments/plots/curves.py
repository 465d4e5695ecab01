"""The sample-complexity figure: what each method has reached after so many environment steps, with intervals over seeds.

One line per method (config.json's "algo", or "method" of a GFlowNet run) and combination of settings, see
`experiments.plots.groups`: interquartile mean over seeds and its 95 % bootstrap interval. On an exact gap the axes are
logarithmic, the legend gives the exponent fitted to the last decade with its interval over seeds, and a thin dashed line shows
the theory's slope. The same numbers stand in a CSV beside the figure.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.cli.errors import MissingPackage
from experiments.cli.text import cell, plain
from experiments.plots.figure import Curve, draw
from experiments.plots.groups import Group, group
from experiments.plots.series import X_KEYS, CurvesError, Series, series_of_csv, series_of_run
from experiments.plots.statistics import bootstrap_interval, iqm
from experiments.run.run import Run, read_metrics

__all__ = ["CurvesError", "curves", "gather", "ready", "table", "write_csv"]

Array = NDArray[np.float64]

FIGURES = (".png", ".svg")
DEFAULT_METRICS = ("eval/gap", "eval/return", "rollout/return", "eval/l1", "eval/correlation", "rollout/log_reward")
LOGARITHMIC = ("eval/gap", *(f"eval/{kind}{name}" for kind in ("", "exact_") for name in ("l1", "l1_mean", "tv", "jsd", "kl")))
GRID = 400  # points of a curve at most


def curves(
    runs: Sequence[Path],
    out: Path,
    metric: str | None = None,
    x: str = "env_steps",
    log: bool | None = None,
    by: Sequence[str] | None = None,
    others: Path | None = None,
) -> Path:
    """Draw a figure, and write its numbers as CSV beside it (algo, x, iqm, low, high, seeds).

    Values between log rows are interpolated, never extrapolated: a line ends where its shortest seed does. What is pooled
    although it differs in a setting is said on stderr.

    Args:
        runs: run folders, all on one environment.
        out: .png or .svg.
        metric: a per-seed tag; None: the first of DEFAULT_METRICS that every run logs.
        x: "env_steps", "states", "oracle/calls", "iteration" or "wall".
        log: logarithmic axes; None: for LOGARITHMIC metrics only.
        by: settings that tell lines of one method apart; None: all that differ; ("none",): no setting.
        others: CSV of another library's curves, see `experiments.plots.series.series_of_csv`.

    Returns:
        `out`.

    Raises:
        CurvesError: the runs cannot be drawn in one figure, or it cannot be written.
        MissingPackage: without matplotlib.
    """
    out = Path(out)
    ready(out)
    metric, found, series = gather(runs, metric, x, by=by, others=others)
    for curve in found:
        if curve.mixed:
            print(
                plain(f"{curve.algo}: runs that differ in {', '.join(curve.mixed)} are pooled into one line"), file=sys.stderr
            )
        if curve.repeated:
            print(plain(f"{curve.algo}: {curve.repeated} left out of the seeds that several runs have"), file=sys.stderr)
    logarithmic = metric in LOGARITHMIC if log is None else log
    try:
        write_csv(out.with_suffix(".csv"), found, x)
        draw(found, out, metric, x, series[0].title, logarithmic)
    except OSError as error:
        raise CurvesError(f"could not write {out}: {error.strerror}", exit_code=1) from error
    return out


def ready(out: Path) -> None:
    """Make the folder of a figure.

    Raises:
        CurvesError: `out` is no .png or .svg, or its folder cannot be made.
        MissingPackage: without matplotlib.
    """
    if out.suffix.lower() not in FIGURES:
        raise CurvesError(f"{out} should end in {' or '.join(FIGURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackage("matplotlib", "plots", "drawing figures")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurvesError(f"could not write {out}: {error.strerror}", exit_code=1) from error


def table(
    runs: Sequence[Path],
    metric: str | None = None,
    fractions: Sequence[float] = (0.25, 0.5, 1.0),
    by: Sequence[str] | None = None,
    others: Path | None = None,
    x: str = "env_steps",
) -> str:
    """A text table: for each method the metric's interquartile mean and 95 % interval at these fractions of the budget.

    The budget is the number of environment steps (or of x) per seed that every line has reached, so that a column compares like
    with like.
    """
    metric, found, _ = gather(runs, metric, x, None, by, others)
    budget = min(c.x[-1] for c in found)
    rows = [["method", "seeds", *(f"{f:.0%} ({f * budget:,.0f})" for f in fractions)]]
    for curve in found:
        cells = [curve.algo, str(len(curve.y))]
        for at in (f * budget for f in fractions):
            if at < curve.x[0]:
                cells.append("-")
                continue
            values = np.array([np.interp(at, curve.x, y) for y in curve.y])
            low, high = bootstrap_interval(values)
            cells.append(f"{iqm(values):.4g} [{low:.4g}, {high:.4g}]")
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join([f"{metric}: interquartile mean over seeds [95 % interval]", *lines])


def gather(
    runs: Sequence[Path],
    metric: str | None,
    x: str,
    limit: int | None = GRID,
    by: Sequence[str] | None = None,
    others: Path | None = None,
) -> tuple[str, list[Curve], list[Series]]:
    """(metric, the lines of a figure, what each run logged), all on one environment; arguments as for `curves`.

    limit: points of a line at most. Raises CurvesError where the runs cannot be compared.
    """
    if x not in X_KEYS:
        raise CurvesError(f"x is {x!r}; it is one of {', '.join(X_KEYS)}")
    folders = {Path(run).resolve(): Path(run) for run in runs}  # the same run twice is not twice the seeds
    if not folders and others is None:
        raise CurvesError(f"no run given: name one or more run folders{', before --by' if by else ''}")
    opened = [(Run.open(path), read_metrics(path)) for path in folders.values()]
    logged = [{tag for row in rows for tag in row} for _, rows in opened]
    if metric is None and opened:
        metric = next((m for m in DEFAULT_METRICS if all(m in tags for tags in logged)), None)
        if metric is None:
            raise CurvesError(f"the runs have none of {', '.join(DEFAULT_METRICS)} in common: name another with --metric")
    metric = metric or "value"
    for (run, _), tags in zip(opened, logged, strict=True):
        if metric not in tags:
            near = difflib.get_close_matches(metric, tags, 3, 0.4) or sorted(tags - {"step", "wall"})
            raise CurvesError(f"{run.folder} has no {metric!r}; it has {', '.join(near) or 'no rows yet'}")
    series = [series_of_run(run, rows, metric, x) for run, rows in opened]
    if len(envs := sorted({s.env for s in series})) > 1:
        raise CurvesError(f"the runs are of different environments, {' and '.join(envs)}: draw one figure for each")
    if others is not None:
        series += series_of_csv(others, x, envs[0] if envs else None)
    grid = _grid(np.unique(np.concatenate([s.x.flatten() for s in series])), limit)
    return metric, [_curve(line, grid) for line in group(series, by)], series


def _grid(steps: Array, limit: int | None) -> Array:
    """Every logged step, or so many of them spread evenly over both the line and its logarithm."""
    if limit is None or len(steps) <= limit:
        return steps
    positive = steps[steps > 0]
    wanted = np.concatenate([np.linspace(steps[0], steps[-1], limit // 2), np.geomspace(positive[0], steps[-1], limit // 2)])
    return np.unique(steps[np.searchsorted(steps, np.clip(wanted, steps[0], steps[-1]))])


def _curve(line: Group, grid: Array) -> Curve:
    seeds = []
    for x, y in ((x, y) for s in line.members for x, y in zip(s.x, s.y, strict=True) if np.isfinite(y).any()):
        at, first = np.unique(x[np.isfinite(y)], return_index=True)  # a seed that has ended repeats its last step
        seeds.append((at, y[np.isfinite(y)][first]))
    if not seeds:
        raise CurvesError(f"{line.label} has no finite value to draw")
    begin, end = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
    inside = grid[(grid >= begin) & (grid <= end)]
    if not len(inside):
        raise CurvesError(f"the seeds of {line.label} have no step in common")
    slopes = [s.config.get("theory_slope") for s in line.members]
    theory = float(slopes[0]) if isinstance(slopes[0], int | float) and len(set(slopes)) == 1 else None
    floor = next((np.interp(inside, s.x[0], s.floor) for s in line.members if s.floor is not None), None)
    values = np.array([np.interp(inside, x, y) for x, y in seeds])
    return Curve(line.label, inside, values, theory, line.mixed, floor, line.repeated)


def write_csv(path: Path, found: list[Curve], x: str) -> None:
    """Write one row a method and a point: algo, x, iqm, low, high, seeds."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["algo", x, "iqm", "low", "high", "seeds"])
        for c in found:
            for at, *numbers in zip(c.x, *c.interval(), strict=True):
                writer.writerow([cell(c.algo), int(at) if at == int(at) else at, *map(float, numbers), len(c.y)])
