"""The verb `gflownet bench`: a benchmark of the field, run to its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from envs.ranges import Count, Range, Workers
from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.text import plain
from experiments.cli.verbs import call

BENCHMARKS = ("pmo",)
USAGE = "gflownet bench pmo --tasks all --seeds 5"


def bench(arguments: list[str]) -> None:
    """gflownet bench pmo: methods that optimise molecules, by what they find with 10,000 calls of a score."""
    if not arguments or (arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments)):
        raise UserError(f"got no benchmark: {USAGE}")
    if not arguments[0].startswith("-") and arguments[0] not in BENCHMARKS:
        raise UserError(f"there is no benchmark {arguments[0]!r}; there is {', '.join(BENCHMARKS)}: {USAGE}")
    call(pmo, "gflownet bench pmo", [a for i, a in enumerate(arguments) if i or a.startswith("-")])


def pmo(
    tasks: str = "all",
    methods: str = "ga,random,gfn,vargrad",
    seeds: Annotated[int, Range(1, 1000)] = 5,
    calls: Count = 10_000,
    out: Path = Path("runs/pmo"),
    workers: Workers = 1,
    molecules: Path | None = None,
    published: Path | None = None,
    quiet: bool = False,
) -> None:
    """PMO (Gao et al. 2022): every method on every task with every seed, by the area under the mean of its best ten molecules.

    Results, a table (pmo.md, pmo.csv) and a figure (pmo.png) are in --out. The same command goes on where it was stopped.

    Args:
        tasks: all, or names with commas, without the pmo: of `gflownet list`
        methods: names with commas: ga (graph genetic algorithm), random (random search), gfn (trajectory balance, our recipe),
            vargrad (log-variance objective, β = 32, at most 6 fragments)
        seeds: seeds of each method on each task, from 0
        calls: budget: different molecules scored in a run. One that is asked twice is not counted twice
        out: folder of results
        workers: processes, each with one thread; 0: this process
        molecules: file of molecules from which ga and random begin (.smi, .csv, .gz); default: uniform actions build them from
            our fragments
        published: CSV with the column method and AUC top-10 in a column for each task, for rows of the table
        quiet: print the table only
    """
    try:
        from experiments.pmo.bench import bench
        from gflownet.rewards.pmo import TASKS
    except ImportError as error:
        raise MissingPackage("RDKit", "molecules", "gflownet bench pmo") from error

    def tell(line: str) -> None:
        if not quiet:
            print(plain(line), file=sys.stderr, flush=True)

    names = tuple(TASKS) if tasks == "all" else _names(tasks, "--tasks", "all")
    print(bench(names, _names(methods, "--methods", "ga,random"), seeds, calls, out, workers, molecules, published, tell))


def _names(text: str, flag: str, example: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"got {flag} {text!r}, which names nothing: as in {flag} {example}")
    return names
