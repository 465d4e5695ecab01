"""What `gflownet sample` costs a molecule, step by step, and how many a second N processes make of a run.

    python -m experiments.bench.sample RUN [--n 2048] [--workers 2] [--out FILE.md]

CPU time is what other processes of the machine disturb least. That of N processes is the difference of two samplings, of two
molecules and of n more, so that their start does not count.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import tyro
from rdkit import Chem, rdBase
from tyro.conf import Positional

from experiments.molecules.sample import batches
from experiments.molecules.trained import Trained, Wanted, trained
from experiments.pg.config import cpus
from experiments.run.provenance import processor
from gflownet.evaluation import exact_log_p
from gflownet.rewards.chemistry import Measure

BATCH = 512


def spent(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU ms for a molecule of a batch, and what it gave."""
    begun = time.process_time()
    made = work()
    return (time.process_time() - begun) * 1e3 / BATCH, made


def steps(source: Trained) -> Iterator[tuple[str, float]]:
    """CPU ms of each step of a batch in this process."""
    n = BATCH // len(source.problem.seeds)
    source.draw(1, 0, 16)
    ms, obs = spent(lambda: source.draw(0, 0, n))
    yield "drawing", ms
    with rdBase.BlockLogs():
        ms, mols = spent(lambda: source.reward.molecules(obs))
        yield f"RDKit molecule, {sum(mol.GetNumAtoms() for mol in mols) / BATCH:.1f} atoms on average", ms
        ms, smiles = spent(lambda: [Chem.MolToSmiles(mol) for mol in mols])
        yield "canonical SMILES", ms
        yield "reading it again", spent(lambda: [Chem.MolFromSmiles(one) for one in smiles])[0]
    for name, measure in ((term.label, term.measure) for term in source.reward.reward.expression.terms):
        measure(mols[0])  # loads tables
        yield name, spent(partial(_each, measure, mols))[0]
    yield "log p", spent(lambda: exact_log_p(source.method, source.state, source.problem, obs))[0]


def _each(measure: Measure, mols: list[Chem.Mol]) -> None:
    for mol in mols:
        measure(mol)


def whole(source: Trained, log_p: bool, workers: int, n: int) -> tuple[float, float]:
    """(CPU ms for a molecule, molecules/s by the clock), of n molecules."""
    small, large = (_whole(source, Wanted(m, batch=b, log_p=log_p, mols=False), workers) for m, b in ((2, 1), (n, BATCH)))
    return (large[0] - small[0]) * 1e3 / (n - 2), (n - 2) / max(large[1] - small[1], 1e-9)


def _whole(source: Trained, wanted: Wanted, workers: int) -> tuple[float, float]:
    def cpu() -> float:
        who = (resource.getrusage(x) for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(x.ru_utime + x.ru_stime for x in who)

    before, begun = cpu(), time.perf_counter()
    for _ in batches(source, wanted, workers):
        pass
    return cpu() - before, time.perf_counter() - begun


def bench(run: Positional[Path], n: int = 2048, workers: int = 2, out: Path | None = None) -> None:
    """Measure and print tables.

    Args:
        run: run folder of molecules
        n: molecules that several processes make
        workers: how many processes; 0: only the steps
        out: Markdown file
    """
    torch.set_num_threads(1)
    source = trained(run)
    lines = [
        f"{processor()}, {cpus()} CPUs, Python {platform.python_version()}, torch {torch.__version__}, one thread a process."
    ]
    lines += ["", "| step, batch of 512 in one process | CPU ms a molecule |", "|---|---|"]
    for name, ms in steps(source):
        lines.append(f"| {name} | {ms:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    if workers:
        lines += [
            "",
            f"| {workers} processes | CPU ms a molecule | a CPU second, × {workers} | by the clock | load |",
            "|---|---|---|---|---|",
        ]
        for log_p in (False, True):
            ms, rate = whole(source, log_p, workers, n)
            name = "with log p" if log_p else "without log p"
            lines.append(f"| {name} | {ms:.2f} | {1e3 * workers / ms:,.0f} | {rate:,.0f} | {os.getloadavg()[0]:.0f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        out.write_text(text)


if __name__ == "__main__":
    tyro.cli(bench)
