"""Tables of results: a row a job as CSV; means over seeds, by task and summed, beside published results, as Markdown.

AUC top-10 is the area under the mean of the best ten against calls, see `gflownet.molecules.sample_efficiency`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.cli.errors import UserError
from experiments.cli.text import plain
from experiments.pmo.jobs import Result
from experiments.run.out_file import whole_file
from gflownet.molecules.fingerprints import fingerprints, internal_diversity
from gflownet.molecules.sample_efficiency import auc_top
from gflownet.rewards.pmo import TASKS

TOP = (1, 10, 100)
COLUMNS = (
    *("method", "task", "seed", "calls"),
    *(f"auc_top{k}" for k in TOP),
    *(f"top{k}" for k in TOP),
    *("diversity", "cpu_s", "scoring_s"),
)
REVISED = ("isomers_c7h8n2o2", "isomers_c9h10n2o2pf2cl", "sitagliptin_mpo", "zaleplon_mpo")
"""Tasks with a molecular formula. PyTDC has revised that score, which read the number of atoms off the text of the SMILES, so
published results from before are much lower. They can be compared on the other tasks."""
NAME = "method"  # the column of a leaderboard that names its rows


@dataclass(frozen=True)
class Published:
    """Published AUC top-10: method -> task -> value, and the name of the file."""

    rows: Mapping[str, Mapping[str, float]]
    file: str = ""


def published(path: Path) -> Published:
    """Read a leaderboard: a CSV with the column `method` and a column for each task; others are left alone.

    Raises:
        UserError: the file cannot be read, or is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        found = {plain(row[NAME]): {task: float(row[task]) for task in TASKS if row.get(task)} for row in rows}
    except OSError as error:
        raise UserError(f"--published {path}: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, csv.Error):
        found = {}
    if not any(found.values()):
        raise UserError(f"--published {path}: expected a CSV with the column method and a column of numbers for each task")
    return Published(found, path.name)


def auc(result: Result, k: int = 10) -> float:
    """AUC top-k of a job."""
    return auc_top(result.scores, int(result.job["calls"]), k)


def measures(result: Result) -> dict[str, str | float]:
    """The row of a job, by COLUMNS: areas, means of the best at the end, diversity of the best 100, and times."""
    order = np.argsort(-result.scores, kind="stable")[: np.count_nonzero(~np.isnan(result.scores))]
    best = result.scores[order]
    molecules = fingerprints([result.smiles[i] for i in order[: max(TOP)]])
    values = [
        *(result.job[name] for name in ("method", "task", "seed")),
        len(result.smiles),
        *(auc(result, k) for k in TOP),
        *(float(best[:k].mean()) if len(best) else 0.0 for k in TOP),
        internal_diversity(molecules),
        result.seconds,
        result.scoring,
    ]
    return dict(zip(COLUMNS, values, strict=True))


def write_csv(path: Path, rows: Sequence[Mapping[str, str | float]]) -> None:
    """A row a job."""
    text = io.StringIO()
    out = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    out.writeheader()
    for row in rows:
        out.writerow({name: f"{x:.4f}" if isinstance(x, float) else x for name, x in row.items()})
    with whole_file(path) as write:
        write(text.getvalue().encode())


def markdown(rows: Sequence[Mapping[str, str | float]], others: Published) -> str:
    """Two tables: methods by their sum over tasks, and AUC top-10 by task.

    A sum is over the seeds that have all tasks; a published one is shown where it has them.
    """
    table = _Table(rows)
    tasks, methods = table.names("task"), table.names("method")
    rest = [task for task in tasks if task not in REVISED]
    head = (
        "method",
        f"sum of {len(tasks)}",
        f"of {len(rest)} without formulas",
        "seeds",
        *(f"AUC top-{k}" for k in TOP),
        "top-10",
        "diversity",
        "calls",
        "CPU s",
    )
    lines = []
    for method in methods:
        sums = table.sums(method, tasks)
        means = {name: table.mean(name, method=method) for name in COLUMNS[3:]}
        cells = [
            f"**{method}**",
            spread(sums),
            spread(table.sums(method, rest)),
            str(len(sums)),
            *(f"{means[f'auc_top{k}']:.3f}" for k in TOP),
        ]
        cells += [f"{means['top10']:.3f}", f"{means['diversity']:.2f}", f"{means['calls']:,.0f}"]
        cells += [f"{means['cpu_s'] - means['scoring_s']:.0f}"]
        lines.append((float(np.mean(sums)) if sums else 0.0, cells))
    for method, values in others.rows.items():
        if set(tasks) <= set(values):
            total = sum(values[task] for task in tasks)
            part = sum(values[task] for task in rest)
            cells = [f"{method} (published)", f"{total:.3f}", f"{part:.3f}", "", "", f"{total / len(tasks):.3f}", *[""] * 5]
            lines.append((total, cells))
    ranked = [cells for _, cells in sorted(lines, key=lambda line: -line[0])]
    by_task = [[task, *(spread(table.values("auc_top10", task=task, method=m)) for m in methods)] for task in tasks]
    known = {task: [(values[task], m) for m, values in others.rows.items() if task in values] for task in tasks}
    if all(known.values()):
        for row in by_task:
            row.append("{:.3f} ({})".format(*max(known[row[0]])))
    last = ["best published"] if all(known.values()) else []
    return f"{_lines(head, ranked)}\n{_lines(('task', *methods, *last), by_task)}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds; the mean alone for one seed, a dash for none."""
    if not values:
        return "–"
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


class _Table:
    """Rows of jobs, looked up by method and task."""

    def __init__(self, rows: Sequence[Mapping[str, str | float]]) -> None:
        self.rows = rows

    def names(self, column: str) -> list[str]:
        return list(dict.fromkeys(str(row[column]) for row in self.rows))

    def values(self, column: str, **of: str) -> list[float]:
        return [float(row[column]) for row in self.rows if all(row[name] == value for name, value in of.items())]

    def mean(self, column: str, **of: str) -> float:
        return float(np.mean(self.values(column, **of)))

    def sums(self, method: str, tasks: Sequence[str]) -> list[float]:
        """AUC top-10 summed over tasks, for each seed that has them all."""
        ours = [row for row in self.rows if row["method"] == method and row["task"] in tasks]
        found = [[float(row["auc_top10"]) for row in ours if str(row["seed"]) == seed] for seed in self.names("seed")]
        return [sum(values) for values in found if len(values) == len(tasks)]


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
