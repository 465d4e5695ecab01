"""What is drawn, seed by seed: from the rows of a run, or from a CSV file of another library."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.cli.errors import UserError
from experiments.cli.load import read_file, short_name
from experiments.cli.text import plain
from experiments.run.run import Run

Array = NDArray[np.float64]

X_KEYS = {"env_steps": "step", "iteration": "iteration", "wall": "wall", "states": "step", "oracle/calls": "oracle/calls"}
FLOORS = {"eval/l1": "eval/l1_floor"}  # metric -> the tag of the least that sampling allows


class CurvesError(UserError):
    """The runs cannot be drawn in one figure."""


@dataclass(frozen=True)
class Series:
    """What one run logged: x [S, K] not decreasing (each seed counts its own steps), y [S, K], NaN where there is no value.

    floor   [K] the least that sampling allows, None where it is not logged
    source  the file of another library's curves, none for a run
    """

    algo: str
    env: str
    config: dict[str, Any]
    x: Array
    y: Array
    floor: Array | None = None
    source: str = ""

    @property
    def title(self) -> str:
        """The environment, for people: a file without its folders."""
        return plain(str(self.config.get("title") or short_name(self.env)))


def series_of_run(run: Run, rows: list[dict[str, Any]], metric: str, x: str) -> Series:
    """The values of a metric. CurvesError where the rows have none, or not always one for each seed."""
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


def series_of_csv(path: Path, x: str, env: str | None = None) -> list[Series]:
    """Curves of another library, one series for each algorithm and seed, in the order of the file.

    Args:
        path: CSV with the columns algo, seed, the name of `x` and value. A column env, where there is one, says on what each
            row is; other columns are not read.
        x: the horizontal axis, for example env_steps.
        env: the environment whose rows are taken; None: that of the file.

    Raises:
        CurvesError: a column is missing, a cell is no number, a point stands twice, or there is no row of `env`.
    """
    try:
        table = csv.DictReader(io.StringIO(read_file(str(path)).decode()), strict=True)
        names = table.fieldnames or []
        if missing := [name for name in ("algo", "seed", x, "value") if name not in names]:
            raise CurvesError(
                f"{path} has no column {' and no '.join(missing)}; expected algo, seed, {x} and value, got {', '.join(names)}"
            )
        rows = [(table.line_num, row) for row in table]
    except (csv.Error, UnicodeDecodeError) as error:
        raise CurvesError(f"{path} is not a CSV file: {error}") from error
    found = dict.fromkeys(row["env"] for _, row in rows) if "env" in names else {}
    if env is None and len(found) > 1:
        raise CurvesError(f"{path} has rows of {' and '.join(map(str, found))}, expected one environment: give a run of it too")
    rows = [(line, row) for line, row in rows if "env" not in names or env is None or row["env"] == env]
    if not rows:
        raise CurvesError(f"{path} has no rows" + (f" of {env}; it has {', '.join(map(str, found))}" if found else ""))
    seeds: dict[tuple[str, str], dict[float, float]] = {}
    for line, row in rows:
        at, value = (_number(row[name], f"{path}, line {line}: {name}", blank=name == "value") for name in (x, "value"))
        points = seeds.setdefault((str(row["algo"]), str(row["seed"])), {})
        if at in points:
            raise CurvesError(
                f"{path}, line {line}: {row['algo']}, seed {row['seed']} has a second row at {x} {at:g}: remove one"
            )
        points[at] = value
    where, series = plain(str(env or next(iter(found), "?"))), []
    for (algo, _), points in seeds.items():
        steps = sorted(points)
        y = np.array([[points[step] for step in steps]])
        series.append(Series(plain(algo), where, {}, np.array([steps]), y, source=path.name))
    return series


def _number(text: str | None, what: str, blank: bool) -> float:
    """A cell as a number, NaN for an empty or infinite one where `blank`."""
    try:
        value = float(text or "nan")
    except ValueError:
        raise CurvesError(f"{what} is {text!r}, expected a number") from None
    if math.isfinite(value):
        return value
    if not blank:
        raise CurvesError(f"{what} is {text!r}, expected a finite number")
    return math.nan
