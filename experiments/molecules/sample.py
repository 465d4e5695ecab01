"""Molecules of a trained run, batch after batch, without exploration.

    attempt j = 0, 1, 2, ...    one tree of blocks by the policy of training seed j mod S (each seed in turn)
                                random numbers from (that seed, the sampling seed, j) and nothing else
    keep it if RDKit takes it, and with `unique` if its canonical isomeric SMILES was not met before
    stop at n;  give up after 20 batches without anything new, or after max_attempts (100 for each one wanted)

So the same numbers make the same molecules on the same machine, fewer of them are the first of more, and the size of a batch
changes rounding only. Memory does not depend on n, but for 16 bytes a molecule with `unique`, and for the notes of a reward of
the user's, or of a run with --calls. Batches may be computed in other processes (sample_workers.py).

    for row in samples("runs/qed", 1000, unique=True):
        print(row["smiles"], row["reward"])
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.pytree import numbers_of, rebuilt, tensors_of
from envs.random import Rng
from envs.ranges import Batch, Count, Seed, Steps
from envs.rollout import rollout
from experiments.cli.errors import UserError
from experiments.cli.ranges import check_flags
from experiments.cli.stdout import stdout_to_stderr
from experiments.gfn.commands import made
from experiments.gfn.metrics import has_policy, policies
from experiments.gfn.rewards import SCORED
from experiments.molecules.config import tree_reward
from experiments.run.device import require_device
from experiments.run.faults import faults_as_sentences
from experiments.run.run import Run
from gflownet.evaluation import exact_log_p
from gflownet.problem import DagProblem, Method
from gflownet.rewards.oracle import STATUSES

if TYPE_CHECKING:
    from rdkit import Chem

    from envs.molecules.bridge import Builder
    from gflownet.rewards.trees import TreeReward

SAMPLES = 3  # a stream of the seeds that training and evaluation never use
HEADS, WALK = range(2)
IDLE = 20  # batches in a row that bring nothing new
PER_MOLECULE = 100  # attempts
STATUS = "status"  # the column of rewards that may fail
PENDING = 1 << 16  # hashes that wait to be sorted in

Row = dict[str, Any]
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Wanted:
    """n molecules. max_attempts: None for 100·n, or 40 batches where that is more.

    scores: reward and its parts, log R and blocks beside the SMILES; log_p: the exact log p of the tree, which costs most;
    mols: RDKit molecules as well.
    Raises UserError for numbers out of range.
    """

    n: Count
    unique: bool = False
    seed: Seed = 0
    batch: Batch = 512
    scores: bool = True
    log_p: bool = True
    max_attempts: Steps | None = None
    mols: bool = True

    def __post_init__(self) -> None:
        check_flags(self)

    @property
    def limit(self) -> int:
        return max(PER_MOLECULE * self.n, 2 * IDLE * self.batch) if self.max_attempts is None else self.max_attempts


class Shortfall(UserError):
    """Fewer molecules than wanted; those found have been returned."""

    exit_code = 1

    def __init__(self, wanted: Wanted, found: int, attempts: int, invalid: int, idle: int) -> None:
        self.found, self.attempts = found, attempts
        kind = "unique molecules" if wanted.unique else "valid molecules"
        bad = f", {invalid:,} of which RDKit refuses" if invalid else ""
        stale = idle >= IDLE * wanted.batch
        why = f"the last {idle:,} brought nothing new" if stale else "more are not made (--max-attempts)"
        hint = "leave out --unique, or train with a smaller --beta" if wanted.unique else "or correct the fragments"
        super().__init__(f"found {found:,} {kind} of {wanted.n:,} in {attempts:,} attempts{bad}; {why}: lower --n, {hint}")


class Sample(NamedTuple):
    row: Row
    mol: Chem.Mol | None
    """None where molecules are not wanted and other processes made it"""


class Draw(NamedTuple):
    """A batch: the attempts first·S .. (first + n)·S - 1."""

    first: int
    n: int


class Built(NamedTuple):
    """A tree as a molecule, None where RDKit refuses it."""

    smiles: str
    mol: Chem.Mol | None


class Kept(NamedTuple):
    """A molecule of a batch that is wanted."""

    at: int
    smiles: str


class Batches(Protocol):
    """Where batches are computed: in this process or in others.

    ahead  how many batches may be scored while the next ones are drawn
    """

    ahead: int

    def draw(self, coming: Iterator[Draw]) -> list[str | None]:
        """Canonical isomeric SMILES of the first of some batches, None where RDKit refuses it. The others may be begun."""
        ...

    def score(self, draw: Draw, kept: list[Kept]) -> Callable[[], list[Sample]]:
        """Samples of a batch that was drawn, when they are asked for."""
        ...

    def close(self) -> None:
        """Leave what was begun."""
        ...


def samples(
    run: Path | str,
    n: int,
    *,
    unique: bool = False,
    seed: int = 0,
    batch: int = 512,
    scores: bool = True,
    log_p: bool = True,
    max_attempts: int | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    trust: bool = False,
    workers: int = 0,
) -> Iterator[Row]:
    """n rows: smiles, reward (before tempering), its parts, log_reward, log_p, blocks, seed (whose policy made it).

    log_p is of the tree of blocks; a molecule that other trees make as well is likelier than that.
    workers: processes that compute batches; 0 or 1: this one. The rows are the same.
    Raises Shortfall after the last row where fewer are found, and UserError as `trained` and `Wanted`.
    """
    wanted = Wanted(n, unique, seed, batch, scores, log_p, max_attempts, mols=False)
    for some in batches(trained(Path(run), checkpoint, device, trust), wanted, workers):
        yield from (sample.row for sample in some)


def batches(source: Trained, wanted: Wanted, workers: int = 0) -> Generator[list[Sample]]:
    """The same, with molecules, as they are found; a list may be empty."""
    with closing(_batches_in(workers, source, wanted)) as where:
        chosen, scored = _chosen(len(source.problem.seeds), wanted, where), deque[Callable[[], list[Sample]]]()
        over: Exception | None = None
        while True:
            try:
                some = next(chosen, None)
            except Exception as error:  # what was found before comes first
                some, over = None, error
            if some is None:
                break
            scored.append(some)
            while len(scored) > where.ahead:
                yield scored.popleft()()
        while scored:
            yield scored.popleft()()
        if over is not None:
            raise over


def _chosen(S: int, wanted: Wanted, where: Batches) -> Iterator[Callable[[], list[Sample]]]:
    """Batch after batch, the samples of what is wanted of it. Raises Shortfall at the end."""
    limit, seen = wanted.limit, SeenSmiles()
    found = attempts = invalid = 0
    since = 0  # attempts up to the last that brought something
    while found < wanted.n:
        if attempts >= limit or attempts - since >= IDLE * wanted.batch:
            raise Shortfall(wanted, found, attempts, invalid, attempts - since)
        draw, faults = next(_draws(S, wanted, attempts, found)), f"attempt {attempts + 1:,} and those after it"
        with faults_as_sentences(faults):
            smiles = where.draw(_draws(S, wanted, attempts, found))
            valid = (Kept(i, one) for i, one in enumerate(smiles) if one is not None)
            fresh = [one for one in valid if not wanted.unique or seen.add(one.smiles)][: wanted.n - found]
            score = where.score(draw, fresh)
        attempts += len(smiles)
        invalid += smiles.count(None)
        found += len(fresh)
        since = attempts if fresh else since
        yield faults_as_sentences(faults)(score)


def _draws(S: int, wanted: Wanted, attempts: int, found: int) -> Iterator[Draw]:
    """The batches that come after some attempts, if RDKit takes all molecules."""
    while found < wanted.n and attempts < wanted.limit:
        size = min(wanted.batch, wanted.limit - attempts, wanted.limit if wanted.unique else wanted.n - found)
        draw = Draw(attempts // S, -(-size // S))
        yield draw
        attempts += draw.n * S
        found += 0 if wanted.unique else draw.n * S


def _batches_in(workers: int, source: Trained, wanted: Wanted) -> Batches:
    if workers < 2:
        return Here(source, wanted)
    from experiments.molecules.sample_workers import Workers

    return Workers(source, wanted, workers)


class Here:
    """Batches in this process, one after another."""

    ahead = 0

    def __init__(self, source: Trained, wanted: Wanted) -> None:
        self._source, self._wanted = source, wanted

    def draw(self, coming: Iterator[Draw]) -> list[str | None]:
        self._obs = self._source.draw(self._wanted.seed, *next(coming))
        self._mols = self._source.molecules(self._obs)
        return [smiles if mol else None for smiles, mol in self._mols]

    def score(self, draw: Draw, kept: list[Kept]) -> Callable[[], list[Sample]]:
        obs, mols = self._obs, molecules_of(kept, self._mols)
        return lambda: self._source.scored(obs, kept, mols, self._wanted)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Trained:
    """The policies of a run and the reward of their molecules."""

    method: Method
    state: Any
    problem: DagProblem
    reward: TreeReward
    builder: Builder
    origin: Origin

    @stdout_to_stderr()
    def draw(self, seed: int, first: int, n: int) -> Tensor:
        """Finished trees [n·S, K, 4] of attempts first·S .. (first + n)·S - 1, in this order."""
        problem, S = self.problem, len(self.problem.seeds)
        number = torch.arange(first, first + n, device=problem.device).repeat(S)  # the n of each seed in a row
        key = Rng.of_seeds(problem.seeds, problem.device).fold(SAMPLES).fold(seed).key.repeat_interleave(n)
        rng = Rng(key, dtype=problem.dtype).fold(number)
        act = policies(self.method, self.state, problem, rng.fold(HEADS).uniform(), n)
        last = rollout(problem.env, act, rng.fold(WALK)).last
        assert last is not None
        return last.view(S, n, *last.shape[1:]).transpose(0, 1).flatten(0, 1)

    def molecules(self, obs: Tensor) -> list[Built]:
        """Canonical isomeric SMILES and molecule of each tree; None where RDKit refuses it, or cannot read that SMILES."""
        from rdkit import Chem, rdBase

        made: list[Built] = []
        with rdBase.BlockLogs():
            for row in obs.tolist():
                try:
                    mol = self.builder.mol(row)
                    smiles = Chem.MolToSmiles(mol)
                    made.append(Built(smiles, mol if Chem.MolFromSmiles(smiles) is not None else None))
                except ValueError:
                    made.append(Built("", None))
        return made

    def scored(self, obs: Tensor, kept: list[Kept], mols: Sequence[Chem.Mol], wanted: Wanted) -> list[Sample]:
        """Samples of some of the trees, with their molecules."""
        if not kept:
            return []
        some = obs[[one.at for one in kept]]
        rewards = self.rewards(some, [one.smiles for one in kept], mols) if wanted.scores else {}
        return samples_of(kept, rewards, self.of_policies(some, kept, wanted), mols)

    @torch.no_grad()
    def rewards(self, obs: Tensor, smiles: Sequence[str], mols: Sequence[Chem.Mol] | None) -> Columns:
        """Reward, its parts and log R of trees, whose molecules are needed unless the reward is noted."""
        parts = self.reward.parts(obs, smiles, mols)
        columns = {name: x.tolist() for name, x in parts.items()}
        if STATUS in columns:
            status = [STATUSES[int(code)] for code in columns.pop(STATUS)]
            columns = {name: [None if math.isnan(v) else v for v in x] for name, x in columns.items()} | {STATUS: status}
        known = parts["reward"].nan_to_num(self.reward.reward.tempering.r_min)  # what a molecule that failed counts as
        return columns | {"log_reward": self.reward.tempered(known).tolist()}

    @torch.no_grad()
    def of_policies(self, obs: Tensor, kept: list[Kept], wanted: Wanted) -> Columns:
        """log p, blocks and the training seed of trees, named by their place in the batch."""
        seeds, columns = self.problem.seeds, Columns()
        at = torch.tensor([one.at % len(seeds) for one in kept], device=obs.device)
        if wanted.scores and wanted.log_p:
            log_p = exact_log_p(self.method, self.state, self.problem, obs)
            columns["log_p"] = log_p[at, torch.arange(len(at), device=at.device)].tolist()
        if wanted.scores:
            columns["blocks"] = self.problem.env.describe(obs)
        return columns | {"seed": [seeds[i] for i in at.tolist()]}


def molecules_of(kept: Sequence[Kept], built: Sequence[Built]) -> list[Chem.Mol]:
    """The molecules of a batch that are wanted."""
    return [mol for one in kept if (mol := built[one.at].mol) is not None]


def samples_of(kept: Sequence[Kept], rewards: Columns, of_policies: Columns, mols: Sequence[Chem.Mol | None]) -> list[Sample]:
    """Rows of columns, with molecules."""
    columns = {"smiles": [one.smiles for one in kept]} | rewards | of_policies
    rows = zip(*columns.values(), strict=True)
    return [Sample(dict(zip(columns, row, strict=True)), mol) for row, mol in zip(rows, mols, strict=True)]


@dataclass(frozen=True)
class Origin:
    """What the policies of a run are made of: its folder, its config, of its checkpoint what is needed, and `trust`."""

    run: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    trust: bool

    def made(self) -> Trained:
        """UserError for a run that has no policy of molecules, or does not fit its files."""
        from envs.molecules.bridge import Builder

        with Run.open(self.run).user_code(self.trust):
            begun = made(self.config, (self.tensors, self.meta))
        method, problem = begun.method, begun.problem
        reward = tree_reward(problem.env)
        if reward is None:
            what = self.config.get("title", self.config["env"])
            raise UserError(f"{self.run} was trained on {what}, and only molecules can be sampled to a file")
        state = _restored(begun.training.state, self.tensors, self.meta)
        if not has_policy(method, state, problem):
            by = self.config["method"]
            raise UserError(f"{self.run} was trained by {by}, which has no policy to sample from: give a run of an objective")
        return Trained(method, state, problem, reward, Builder(reward.fragments), self)


def trained(run: Path, checkpoint: Path | None = None, device: str = "auto", trust: bool = False) -> Trained:
    """The policies of a run on molecules, as its newest checkpoint has them, or another.

    device  auto: where it was trained, or the CPU where this machine has no such device
    trust   execute whatever files its config names
    Raises UserError for a run that is not on molecules, has no policy, or does not fit its files.
    """
    opened = Run.open(run)
    config, on = opened.config, str(opened.config.get("device", "cpu"))
    if "method" not in config or {"rounds", "queries"} <= set(config):
        raise UserError(f"{run} is not a run of `gflownet train molecules`: give one that is")
    if device == "auto":
        device = on if torch.cuda.is_available() else "cpu"
    else:
        require_device(device)
    # the target distribution is not needed here, and enumeration could take long
    matmul = config.get("matmul", "auto") if device == on else "auto"
    tensors, meta = opened.load(checkpoint)
    needed = {name: x for name, x in tensors.items() if name.startswith(("state/", SCORED))}
    config = {**config, "metrics": "sampled", "device": device, "matmul": matmul}
    return Origin(run, config, needed, meta, trust).made()


def _restored(blank: Any, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Any:
    """The method's state; whatever else a checkpoint holds is of no use here."""
    shapes = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    fits = all(shapes.get(name) == (x.shape, x.dtype) for name, x in tensors_of(blank, "state/").items())
    if not fits or not set(numbers_of(blank, "state/")) <= set(meta):
        raise UserError("the checkpoint does not fit this method and these fragments: was a file changed since?", exit_code=3)
    return rebuilt(blank, tensors, meta, "state/")


class SeenSmiles:
    """A set of texts, as 64-bit hashes: 8 bytes each, twice that while they are sorted in.

    Two texts share a hash with probability n²/2^65; the second is then taken for the first.
    """

    def __init__(self) -> None:
        self._sorted, self._new = np.empty(0, dtype=np.uint64), set[int]()

    def add(self, text: str) -> bool:
        """Was it new?"""
        code = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        at = int(np.searchsorted(self._sorted, np.uint64(code)))
        if code in self._new or (at < len(self._sorted) and int(self._sorted[at]) == code):
            return False
        self._new.add(code)
        if len(self._new) >= PENDING:
            more = np.fromiter(self._new, dtype=np.uint64, count=len(self._new))
            self._sorted, self._new = np.concatenate([self._sorted, more]), set()
            self._sorted.sort()
        return True
