"""The sample-complexity figure: what each method has reached after so many environment steps, with intervals over seeds.

One line per method (config.json's "algo", or "method" of a GFlowNet run; several runs of one are pooled seeds): interquartile
mean over seeds and its 95 % bootstrap interval. On an exact gap the axes are logarithmic, the legend gives the exponent fitted
to the last decade with its interval over seeds, and a thin dashed line shows the theory's slope. The same numbers stand in a
CSV beside the figure.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.load import short_name
from experiments.cli.text import cell, plain
from experiments.plots.figure import Curve, draw
from experiments.plots.statistics import bootstrap_interval, iqm
from experiments.run.folder import flat
from experiments.run.run import Run, read_metrics

Array = NDArray[np.float64]

FIGURES = (".png", ".svg")
X_KEYS = {"env_steps": "step", "iteration": "iteration", "wall": "wall", "states": "step", "oracle/calls": "oracle/calls"}
DEFAULT_METRICS = ("eval/gap", "eval/return", "rollout/return", "eval/l1", "eval/correlation", "rollout/log_reward")
LOGARITHMIC = ("eval/gap", *(f"eval/{kind}{name}" for kind in ("", "exact_") for name in ("l1", "l1_mean", "tv", "jsd", "kl")))
FLOORS = {"eval/l1": "eval/l1_floor"}  # metric -> the tag of the least that sampling allows
GRID = 400  # points of a curve at most


class CurvesError(UserError):
    """The runs cannot be drawn in one figure."""


@dataclass(frozen=True)
class Series:
    """What one run logged: x [S, K] not decreasing (each seed counts its own steps), y [S, K], NaN where there is no value.

    floor  [K] the least that sampling allows, None where it is not logged
    """

    algo: str
    env: str
    config: dict[str, Any]
    x: Array
    y: Array
    floor: Array | None = None

    @property
    def title(self) -> str:
        """The environment, for people: a file without its folders."""
        return plain(str(self.config.get("title") or short_name(self.env)))


def curves(runs: Sequence[Path], out: Path, metric: str | None = None, x: str = "env_steps", log: bool | None = None) -> Path:
    """Draw the figure `out` (.png or .svg) and the CSV beside it (algo, x, iqm, low, high, seeds); returns `out`.

    metric: a per-seed tag; by default the first of DEFAULT_METRICS that every run logs.
    x: "env_steps", "states", "oracle/calls", "iteration" or "wall".
    log: logarithmic axes; by default for LOGARITHMIC metrics only.
    Values between log rows are interpolated, never extrapolated: a method ends where its shortest seed does.
    Raises CurvesError, or MissingPackage without matplotlib.
    """
    out = Path(out)
    ready(out)
    metric, found, series = gather(runs, metric, x)
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


def table(runs: Sequence[Path], metric: str | None = None, fractions: Sequence[float] = (0.25, 0.5, 1.0)) -> str:
    """A text table: for each method the metric's interquartile mean and 95 % interval at these fractions of the budget.

    The budget is the number of environment steps per seed that every method has reached, so that a row compares like with like.
    """
    metric, found, _ = gather(runs, metric, "env_steps", limit=None)
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


def gather(runs: Sequence[Path], metric: str | None, x: str, limit: int | None = GRID) -> tuple[str, list[Curve], list[Series]]:
    """(metric, one curve for each method, what each run logged), all runs on one environment; CurvesError otherwise."""
    if x not in X_KEYS:
        raise CurvesError(f"x is {x!r}; it is one of {', '.join(X_KEYS)}")
    folders = {Path(run).resolve(): Path(run) for run in runs}  # the same run twice is not twice the seeds
    if not folders:
        raise CurvesError("no run given: name one or more run folders")
    opened = [(Run.open(path), read_metrics(path)) for path in folders.values()]
    logged = [{tag for row in rows for tag in row} for _, rows in opened]
    if metric is None:
        metric = next((m for m in DEFAULT_METRICS if all(m in tags for tags in logged)), None)
        if metric is None:
            raise CurvesError(f"the runs have none of {', '.join(DEFAULT_METRICS)} in common: name another with --metric")
    for (run, _), tags in zip(opened, logged, strict=True):
        if metric not in tags:
            near = difflib.get_close_matches(metric, tags, 3, 0.4) or sorted(tags - {"step", "wall"})
            raise CurvesError(f"{run.folder} has no {metric!r}; it has {', '.join(near) or 'no rows yet'}")
    series = [_series(run, rows, metric, x) for run, rows in opened]
    if len(envs := sorted({s.env for s in series})) > 1:
        raise CurvesError(f"the runs are of different environments, {' and '.join(envs)}: draw one figure for each")
    methods: dict[str, list[Series]] = {}
    for s in series:
        methods.setdefault(s.algo, []).append(s)
    grid = _grid(np.unique(np.concatenate([s.x.flatten() for s in series])), limit)
    names = {algo: short_name(algo) for algo in methods}
    same = {name for name, count in Counter(names.values()).items() if count > 1}  # two files called alike
    found = [_curve(algo if names[algo] in same else names[algo], group, grid) for algo, group in methods.items()]
    return metric, found, series


def _series(run: Run, rows: list[dict[str, Any]], metric: str, x: str) -> Series:
    points: dict[float, tuple[list[float], list[float], float]] = {}
    for row in rows:
        at = row.get(X_KEYS[x])
        if metric in row and at is not None:
            value = row[metric] if isinstance(row[metric], list) else [row[metric]]
            own = row.get("env_steps") if x == "env_steps" else None
            at = at / len(value) if x == "oracle/calls" else at  # seeds share a cache: each has its part of the calls
            steps = own if isinstance(own, list) and len(own) == len(value) else [at] * len(value)
            floor = row.get(FLOORS.get(metric, ""))
            values = [np.nan if v is None else float(v) for v in value]
            points[float(at)] = [float(s) for s in steps], values, np.nan if floor is None else float(floor)
    if not points:
        raise CurvesError(f"{run.folder} logs no {X_KEYS[x]!r} beside {metric!r}")
    if len(sizes := {len(v) for _, v, _ in points.values()}) > 1:
        raise CurvesError(f"{run.folder} has rows of {metric!r} with different numbers of seeds: {sorted(sizes)}", exit_code=3)
    at, y = (np.array([points[p][k] for p in sorted(points)]).T for k in (0, 1))
    algo, env = run.config.get("algo", run.config.get("method", "?")), run.config.get("title", run.config.get("env", "?"))
    floor = np.array([points[p][2] for p in sorted(points)])
    return Series(plain(str(algo)), plain(str(env)), run.config, at, y, None if np.isnan(floor).all() else floor)


def _grid(steps: Array, limit: int | None) -> Array:
    """Every logged step, or so many of them spread evenly over both the line and its logarithm."""
    if limit is None or len(steps) <= limit:
        return steps
    positive = steps[steps > 0]
    wanted = np.concatenate([np.linspace(steps[0], steps[-1], limit // 2), np.geomspace(positive[0], steps[-1], limit // 2)])
    return np.unique(steps[np.searchsorted(steps, np.clip(wanted, steps[0], steps[-1]))])


def _curve(algo: str, group: list[Series], grid: Array) -> Curve:
    seeds = []
    for x, y in ((x, y) for s in group for x, y in zip(s.x, s.y, strict=True) if np.isfinite(y).any()):
        at, first = np.unique(x[np.isfinite(y)], return_index=True)  # a seed that has ended repeats its last step
        seeds.append((at, y[np.isfinite(y)][first]))
    if not seeds:
        raise CurvesError(f"{algo} has no finite value to draw")
    begin, end = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
    inside = grid[(grid >= begin) & (grid <= end)]
    if not len(inside):
        raise CurvesError(f"the seeds of {algo} have no step in common")
    tables = [flat(s.config) for s in group]
    ignored = {"seed", "seeds", "out", "device", "threads"}
    mixed = sorted(k for k in set().union(*tables) - ignored if len({str(f.get(k)) for f in tables}) > 1)
    slopes = [s.config.get("theory_slope") for s in group]
    theory = float(slopes[0]) if isinstance(slopes[0], int | float) and len(set(slopes)) == 1 else None
    floor = next((np.interp(inside, s.x[0], s.floor) for s in group if s.floor is not None), None)
    return Curve(algo, inside, np.array([np.interp(inside, x, y) for x, y in seeds]), theory, tuple(mixed), floor)


def write_csv(path: Path, found: list[Curve], x: str) -> None:
    """Write one row a method and a point: algo, x, iqm, low, high, seeds."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["algo", x, "iqm", "low", "high", "seeds"])
        for c in found:
            for at, *numbers in zip(c.x, *c.interval(), strict=True):
                writer.writerow([cell(c.algo), int(at) if at == int(at) else at, *map(float, numbers), len(c.y)])
