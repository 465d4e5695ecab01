"""Runs on molecules side by side, against molecules visited, as a table in Markdown.

python -m experiments.molecules.table RUN... --at 10_000 100_000 --scale 8 --out table.md

Rewards, modes and scaffolds are those of the last evaluation with at most so many molecules visited (metrics.jsonl); the mean
pairwise similarity of the 1,000 best is computed from the newest checkpoint. Means over the seeds of a run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from experiments.cli.errors import UserError, guarded
from experiments.cli.text import plain
from experiments.gfn.commands import opened
from experiments.run.log import read_metrics
from experiments.run.out_file import whole_file
from gflownet.molecules.fingerprints import fingerprints, mean_similarity

TOPS = ("mol/top_10", "mol/top_100", "mol/top_1000")
COUNTS = ("mol/modes", "mol/scaffolds")
KINDS = ("rdk", "morgan2-2048")
BEST = 1000


def main(runs: Positional[tuple[Path, ...]], at: tuple[int, ...] = (), scale: float = 1.0, out: Path | None = None) -> None:
    """Print a table of molecule runs, or write it.

    Args:
        runs: run folders
        at: molecules visited, a row for each; a run's end is always a row
        scale: rewards are multiplied by it (8 for the sEH proxy)
        out: Markdown file; default: standard output
    """
    text = table(list(runs), at, scale)
    if out is None:
        print(text)
    else:
        with whole_file(out) as write:
            write(f"{text}\n".encode())


def table(runs: list[Path], at: tuple[int, ...], scale: float) -> str:
    """UserError for a run that is none, or without molecules."""
    head = ["run", "visited", "top-10", "top-100", "top-1000", "modes", "scaffolds", "similarity, RDKFingerprint", "Morgan 2"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for folder in runs:
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if TOPS[0] in row]
        if not rows:
            raise UserError(f"{folder} holds no evaluation of molecules: give runs of `gflownet train molecules`")
        chosen = [max((row for row in rows if row["states"] <= n), key=lambda row: row["states"], default=None) for n in at]
        last = rows[-1]
        for row in [row for row in chosen if row is not None and row is not last] + [last]:
            cells = [
                plain(folder.name).replace("|", "\\|"),
                f"{row['states']:,}",
                *(_number(row, tag, scale, 2) for tag in TOPS),
            ]
            cells += [_number(row, tag, 1, 0) for tag in COUNTS]
            cells += [f"{x:.3f}" for x in similarities(folder)] if row is last else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(row: dict[str, Any], tag: str, scale: float, digits: int) -> str:
    values = [x for x in (row[tag] if isinstance(row[tag], list) else [row[tag]]) if x is not None and math.isfinite(x)]
    return f"{scale * sum(values) / len(values):,.{digits}f}" if values else "–"


def similarities(folder: Path) -> list[float]:
    """Mean pairwise Tanimoto similarity of the best molecules of all seeds together, for each fingerprint."""
    _, begun = opened(folder)
    if begun.molecules is None or begun.training.top_k is None:
        raise UserError(f"{folder} remembers no molecules: give runs of `gflownet train molecules`")
    best = [smiles for smiles, _ in begun.molecules.best(begun.training.top_k, BEST)]
    return [mean_similarity(fingerprints(best, kind)) for kind in KINDS]


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main))
