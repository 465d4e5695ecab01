"""The policies of a trained run on molecules, what is wanted of them, and what a batch of theirs is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from experiments.gfn.rewards import SCORED, begin_run
from experiments.molecules.config import tree_reward
from experiments.run.device import require_device
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

        run = Run.open(self.run)
        with run.user_code(self.trust):
            begun = made(self.config, (self.tensors, self.meta))
        method, problem = begun.method, begun.problem
        begin_run(problem, run.identity.id)
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
