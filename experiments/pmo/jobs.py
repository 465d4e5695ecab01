"""A job is one method on one task with one seed. Its result is one JSON file, whole or absent.

    OUT/METHOD/TASK-SEED.json   what was asked, in order, with scores; the settings; how long it took
    OUT/METHOD/TASK-SEED/       the run of a GFlowNet

A job whose file is there with the same settings is done. One that was cut is repeated from its beginning, or, if it is a run
of a GFlowNet, goes on from its last checkpoint (and then only the time of the last part is known).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.errors import UserError
from experiments.pmo import gfn
from experiments.pmo.genetic import POPULATION, genetic
from experiments.pmo.random_search import BATCH, random_search
from experiments.pmo.score import Score
from experiments.pmo.source import source
from experiments.run import safe
from gflownet.rewards.calls import BudgetSpent
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.ledger import REWARD

LIMIT = 1 << 30  # bytes of a result


@dataclass(frozen=True)
class BenchJob:
    """What to run.

    molecules: the file of the source, "" for our fragments; digest: its SHA-256; out: the folder of all results.
    """

    method: str
    task: str
    seed: int
    calls: int
    molecules: str
    digest: str
    out: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.task} seed {self.seed}"

    @property
    def path(self) -> Path:
        return Path(self.out) / self.method / f"{self.task}-{self.seed}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """What a result must have been made with."""
        fields = dataclasses.asdict(self)
        used = ("method", "task", "seed", "calls", *(["digest"] if METHODS[self.method].from_molecules else []))
        return {name: fields[name] for name in used}


@dataclass(frozen=True)
class Result:
    """What came of it.

    job      its settings
    smiles   the molecules asked, in order
    scores   [N]; NaN for one without a score
    seconds  CPU time of the job
    scoring  CPU time of the task itself within it
    """

    job: Mapping[str, Any]
    smiles: tuple[str, ...]
    scores: Floats
    seconds: float
    scoring: float


Search = Callable[[Score, Iterator[str], np.random.Generator], None]


Asked = tuple[Sequence[str], Floats, float]  # molecules in order, scores, CPU time of the task itself


@dataclass(frozen=True)
class Optimiser:
    """A method: how a job of it is run, what it is, the fewest calls it makes sense with, whether it begins with a source."""

    about: str
    run: Callable[[BenchJob], Asked]
    least: int
    from_molecules: bool = False


def searched(search: Search) -> Callable[[BenchJob], Asked]:
    """Run a search by scores of molecules in this process."""

    def run(job: BenchJob) -> Asked:
        score = Score(job.task, job.calls)
        molecules = source(job.molecules, job.seed, np.random.default_rng([job.seed, 0]))
        with contextlib.suppress(BudgetSpent):
            search(score, molecules, np.random.default_rng([job.seed, 1]))
        return score.ledger.smiles, score.ledger.column(REWARD), score.seconds

    return run


def trained(job: BenchJob) -> Asked:
    """Train a GFlowNet in the folder OUT/METHOD/TASK-SEED."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    return gfn.train(job.method, job.task, job.seed, job.calls, job.path.with_suffix(""))


METHODS: Mapping[str, Optimiser] = {
    "ga": Optimiser("genetic algorithm on molecular graphs", searched(genetic), POPULATION, True),
    "random": Optimiser("molecules of the source one after another", searched(random_search), BATCH, True),
    "gfn": Optimiser("trajectory balance with our recipe", trained, gfn.BATCH),
    "vargrad": Optimiser("log-variance objective, β = 32, at most 6 fragments", trained, gfn.BATCH),
}


def run(job: BenchJob) -> Result:
    """Run a job and write its file.

    Raises:
        UserError: its molecules cannot be read, or a run cannot go on.
        OSError: the disk fails.
    """
    begun = time.process_time()
    smiles, scores, scoring = METHODS[job.method].run(job)
    result = Result(job.settings, tuple(smiles), scores, time.process_time() - begun, scoring)
    write(job.path, result)
    return result


def write(path: Path, result: Result) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = [None if np.isnan(x) else x for x in result.scores.tolist()]
    fields = {
        "job": dict(result.job),
        "seconds": round(result.seconds, 3),
        "scoring": round(result.scoring, 3),
        "smiles": result.smiles,
        "scores": scores,
    }
    safe.write(path, json.dumps(fields).encode())


def read(job: BenchJob) -> Result | None:
    """The result of a job, None where it is yet to be made.

    Raises:
        UserError: the file is damaged, or was made with other settings.
    """
    if not job.path.exists():
        return None
    fields = safe.read_json(job.path, LIMIT)
    try:
        smiles, values = tuple(map(str, fields["smiles"])), fields["scores"]
        scores = np.array([np.nan if x is None else float(x) for x in values])
        result = Result(fields["job"], smiles, scores, float(fields["seconds"]), float(fields["scoring"]))
        if len(smiles) != len(scores) or not isinstance(result.job, dict):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{job.path} is no result of a job: remove it, and repeat the command", exit_code=3) from None
    for name, value in job.settings.items():
        if result.job.get(name) != value:
            raise UserError(
                f"{job.path} was made with {name} {result.job.get(name)!r}, now it is {value!r}: "
                "choose another --out, or remove it"
            )
    return result
