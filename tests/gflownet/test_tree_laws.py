"""On molecule spaces with symmetric blocks every objective learns R/Z of each object; common shortcuts do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Parents
from envs.dag.enumeration import Enumeration, enumerate_dag
from envs.random import GOLDEN, Rng, mix
from gflownet.evaluation import exact_distribution, exact_log_p
from gflownet.gflownet import GFlowNet
from gflownet.metrics import l1_sum, noise_floor
from gflownet.problem import DagProblem
from tests.exact_flows import Numbered, small_trees
from tests.gflownet.test_gflownet import NAMES, OBJECTIVES, run

SPACES = {  # blocks, most of them, fewest
    "F-triazine-CH2": (3, ("F", "triazine", "CH2"), 2),
    "F-CN": (3, ("F", "CN"), 2),
    "F-benzene": (4, ("F", "benzene"), 4),
    "CO:1-CN:0-F": (3, ("CO:1", "CN:0", "F"), 2),
}
MAIN = SPACES["F-triazine-CH2"]
EXPLORE: dict[str, dict[str, Any]] = {"on-policy": {}, "replay": {"replay": "prioritised", "capacity": 1000}}


def floors(env: Any, name: str, dag: Enumeration | None = None, iterations: int = 200, **knobs: Any) -> Tensor:
    """[S] as in test_gflownet, against the law of `dag`."""
    problem, dag = DagProblem(env, (0, 1), 32, iterations), dag or enumerate_dag(env)
    shared: dict[str, Any] = {"learning_rate": 0.3, "final_rate": 0.05, "tabular": True, "log_z_rate": 0.3}
    method = GFlowNet(OBJECTIVES[name], **shared | knobs)
    state = run(method, problem)
    return l1_sum(law(method, state, problem, dag), dag.target) / noise_floor(dag.target, 20_000)


def law(method: Any, state: Any, problem: DagProblem, dag: Enumeration) -> Tensor:
    """[S, K] of the problem's environment, whose moves may be others than those of `dag`."""
    own = enumerate_dag(problem.env)
    return exact_distribution(method, state, problem, own)[:, own.object_of(dag.obs[dag.objects])]


@pytest.mark.slow
@pytest.mark.parametrize("explore", EXPLORE)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mdb", "fm-smoothing")])
def test_every_objective_arrives_at_the_law(name: str, explore: str) -> None:
    assert floors(small_trees(*MAIN), name, **EXPLORE[explore]).max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("space", list(SPACES)[1:])
@pytest.mark.parametrize("name", ["fm", "tb"])
def test_on_other_vocabularies(name: str, space: str) -> None:
    K, names, low = SPACES[space]
    assert floors(small_trees(K, names, low), name, iterations=400, learning_rate=0.1).max() < 2


def test_log_p_by_all_orders_is_that_of_the_whole_space() -> None:
    env = small_trees()
    problem, dag = DagProblem(env, (0, 1), 8, 3), enumerate_dag(env)
    method = GFlowNet(OBJECTIVES["tb"], hidden=(16,))
    state = run(method, problem)
    log_p = exact_log_p(method, state, problem, dag.obs[dag.objects])
    torch.testing.assert_close(log_p, exact_distribution(method, state, problem, dag).log(), rtol=1e-6, atol=1e-6)


# -- what others do


@dataclass
class Unmerged:
    """Every open site is a move of its own, although automorphisms carry some into each other; every leaf is one way back."""

    env: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def _all_sites(self, state: Any) -> Any:
        trees, tree = self.env.trees, self.env.canonical(state.obs)
        index, sites = torch.arange(trees.max_blocks), torch.arange(trees.blocks.S)
        alone = tree._replace(first=index.expand(tree.first.shape), least=sites.expand(tree.least.shape))
        return type(state)(state.obs, state.reward, state.terminated, state.truncated, None, trees.valid_actions(alone))

    def reset(self, n: int, rng: Rng) -> Any:
        return self._all_sites(self.env.reset(n, rng))

    def step(self, state: Any, action: Tensor, rng: Rng) -> Any:
        return self._all_sites(self.env.step(state, action, rng))

    def state_at(self, obs: Tensor, terminated: Tensor) -> Any:
        return self._all_sites(self.env.state_at(obs, terminated))

    def edge_count(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """Leaves, equivalent or not: no correction for symmetry."""
        leaves = (self.env.canonical(obs).partner.sum(2) == 1).sum(1)
        return torch.where(terminated | (self.env.size(obs) == 1), 1, leaves)

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents:
        """The code of 2021: one edge for each leaf, alike or not, and one action for it, however many lead here."""
        merged = self.env.parents(obs, terminated)
        tree = self.env.canonical(obs)
        leaf = (tree.partner.sum(2) == 1) & ~terminated[:, None]
        here = tree.first == torch.arange(tree.first.shape[1])
        alike = (leaf[:, :, None] & (tree.first[:, None] == tree.first[:, :, None]) & leaf[:, None]).sum(2)
        times = torch.ones_like(merged.child)
        several = ~terminated & (self.env.size(obs) > 1)
        inner = several[merged.child]
        times[inner] = alike[several][leaf[several] & here[several]]
        again = torch.arange(len(times)).repeat_interleave(times)
        return Parents(merged.child[again], merged.obs[again], merged.action[again])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tb", "db", "fm"])
def test_moves_counted_one_by_one_miss_the_law(name: str) -> None:
    """Without a correction for symmetry (TB, DB), or with the parents that the code of 2021 lists (FM)."""
    env = small_trees(*MAIN)
    assert floors(Unmerged(env), name, enumerate_dag(env)).min() > 4


@dataclass(frozen=True)
class Views:
    """A net that gives a node's moves the numbers of what the node sees, from a table; stop is the mean over nodes.

    view  trees [M, K, 4] -> [M, K] int64
    """

    view: Callable[[Tensor], Tensor]
    known: Tensor
    S: int
    R: int
    K: int

    @property
    def outputs(self) -> int:
        return (self.K - 1) * self.S * self.R + 1

    @property
    def size(self) -> int:
        return len(self.known) * (self.S * self.R + 1)

    def init(self, rng: Rng) -> Tensor:
        return torch.zeros(len(rng), self.size, dtype=rng.dtype)

    def forward(self, params: Tensor, obs: Tensor) -> Tensor:
        flat = obs.flatten(0, 1)
        row = torch.searchsorted(self.known, self.view(flat)).view(len(params), -1, self.K)
        table = params.view(len(params), len(self.known), -1)
        seed = torch.arange(len(params))[:, None, None]
        seen = table[seed, row]
        there = (obs[..., 0] > 0).to(seen.dtype)
        stop = (seen[..., -1] * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp_min(1)
        return torch.cat([seen[:, :, : self.K - 1, :-1].flatten(2), stop], 2)


def from_the_root(obs: Tensor) -> Tensor:
    """Messages from parents to children only: a node sees the way to it, and nothing that hangs anywhere else."""
    seen = torch.zeros(obs.shape[:2], dtype=torch.int64)
    rows = torch.arange(len(obs))
    for i in range(obs.shape[1]):
        code, parent, own, theirs = obs[:, i].unbind(1)
        behind = seen[rows, parent] if i else torch.zeros_like(code)
        seen[:, i] = mix(behind * 3 + mix(((code * 64 + own) * 64 + theirs) * GOLDEN))
    return seen


def from_everywhere(obs: Tensor) -> Tensor:
    whole = mix((obs.flatten(1) * mix(torch.arange(1, obs[0].numel() + 1) * GOLDEN)).sum(1))
    return mix(whole[:, None] + torch.arange(obs.shape[1]) * GOLDEN)


@pytest.mark.slow
@pytest.mark.parametrize(("view", "arrives"), [(from_everywhere, True), (from_the_root, False)])
def test_one_way_messages_miss_the_law(view: Any, arrives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    env: Numbered = small_trees(*MAIN)
    dag = enumerate_dag(env)
    net = Views(view, view(dag.obs).unique(), env.blocks.S, env.blocks.R, env.max_blocks)
    monkeypatch.setattr("gflownet.model.net_for", lambda *_: net)
    missed = floors(env, "tb", dag)
    assert (missed.max() < 2) if arrives else (missed.min() > 4)
