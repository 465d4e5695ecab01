"""Batches in static shapes: every state of a small environment, or every step of every trajectory, whether met or not.

    distinct states  one row for each visited state: the host must read their number before the computation can continue
    a table          all N states with all E edges between them, computed once; a batch is row indices and counts of visits
    dense rows       T·n rows, one for each step of the trajectories, if states have no index or are too many

With static shapes the host never waits for the GPU, and an iteration can be captured as one CUDA graph. On the CPU, distinct
states are faster.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from envs.core import Array, DagEnv, Trajectories
from envs.dag.enumeration import enumerate_dag
from envs.dag.protocols import Indexed, offers
from envs.random import Rng
from envs.rollout import Act
from gflownet.model import Model
from gflownet.sampling.exploration import Exploration, first_reaching
from gflownet.sampling.sampler import cumulative

LIMIT = 1 << 17  # the most states of a table
FEW = 1 << 13  # up to this many states the network is evaluated at all of them, even for smaller batches


@dataclass(frozen=True)
class StateTable:
    """N unfinished states by index, then N finished ones. An index without a state has the observation of the source.

    obs     [N, *obs]       valid   [N, A] bool, all True where there is no unfinished state
    child   [E] below 2N    parent, action  [E]
    counts  [2N, A]         number of edges into a state by action
    log_reward  [N] float64, of finished states (0 where there is none)
    """

    obs: Tensor
    valid: Tensor
    child: Tensor
    parent: Tensor
    action: Tensor
    counts: Tensor
    log_reward: Tensor

    def __len__(self) -> int:
        return len(self.obs)

    def to(self, device: str) -> StateTable:
        return StateTable(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def table_of(env: DagEnv) -> StateTable | None:
    """Make the table of an environment; None if its states have no index, or there are more than LIMIT."""
    if not offers(env, Indexed) or env.n_states > LIMIT:
        return None
    N, A = env.n_states, int(env.action_space.n)
    dag = enumerate_dag(env, 2 * LIMIT)
    number, going = env.index(dag.obs), ~dag.terminated
    obs = dag.obs[:1].repeat(N, *(1,) * (dag.obs.dim() - 1))
    obs[number] = dag.obs
    valid = torch.ones(N, A, dtype=torch.bool, device=obs.device)
    valid[number[going]] = dag.action_mask[going]
    child = (number + N * dag.terminated)[dag.child]
    counts = torch.bincount(child * A + dag.action, minlength=2 * N * A).view(2 * N, A)
    log_r = torch.zeros(N, dtype=torch.float64, device=obs.device)
    log_r[number[dag.objects]] = dag.log_reward
    return StateTable(obs, valid, child, number[dag.parent], dag.action, counts, log_r)


@dataclass(frozen=True)
class Static:
    """Static shapes of a batch.

    env    the environment
    table  of its states; None: dense rows
    """

    env: Any
    table: StateTable | None = None

    def looks_up(self, places: int) -> bool:
        """Whether the network is evaluated at all states, rather than at `places` steps of the trajectories of a seed."""
        return self.table is not None and len(self.table) <= max(places, FEW)

    def states(self, tau: Trajectories, seeds: int, ends: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`Flows.states` in static shapes: (obs [S, M, *obs], valid [S, M, A], row [T + 1, B] of s_t among the S·M).

        `ends`: finished states are included.
        """
        assert tau.action_mask is not None
        assert tau.last is not None
        (T, B), n = tau.mask.shape, tau.mask.shape[1] // seeds
        seed = torch.arange(B, device=tau.mask.device) // n
        every = torch.cat([tau.obs, tau.last[None]])
        if self.looks_up(T * n):
            assert self.table is not None
            row = self.env.index(every.flatten(0, 1)).view(T + 1, B) + seed * len(self.table)
            return *(x.expand(seeds, *x.shape) for x in (self.table.obs, self.table.valid)), row
        valid = tau.action_mask | ~tau.mask[..., None]
        if ends:
            valid = torch.cat([valid, torch.ones_like(valid[:1])])
        obs, valid = (
            x.reshape(len(x), seeds, n, *x.shape[2:]).transpose(0, 1).flatten(1, 2) for x in (every[: len(valid)], valid)
        )  # [T, S·n, ...] -> [S, T·n, ...]
        times = torch.arange(T + 1, device=seed.device)[:, None] % (T + ends)  # without `ends`, last rows are not read
        return obs, valid, seed * obs.shape[1] + times * n + torch.arange(B, device=seed.device) % n

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R of finished objects, [M]; looked up in the table, so that any reward function can be captured."""
        log_r: Tensor = self.env.log_reward(obs) if self.table is None else self.table.log_reward[self.env.index(obs)]
        return log_r

    def number(self, obs: Tensor, ended: Tensor) -> Tensor:
        """Index of states obs [M, *obs], ended [M], among the 2N states of the table, [M]."""
        assert self.table is not None
        number: Tensor = self.env.index(obs) + len(self.table) * ended
        return number


class TableSampler(Act):
    """An Act that looks up the policy in a table of all states, at which the network is evaluated once."""

    tape = None

    def __init__(self, static: Static, model: Model, theta: Tensor, n: int, explore: Exploration, head: Tensor | None) -> None:
        assert static.table is not None
        table, A = static.table, model.actions
        with torch.no_grad():
            out = model.outputs(theta, table.obs.expand(len(theta), *table.obs.shape))[..., : model.heads * A]
            logits = out.reshape(*out.shape[:2], model.heads, A)
            self._cdf = cumulative(logits, table.valid[:, None], explore).flatten(0, 2)
        self._index, self._heads, self._head = static.env.index, model.heads, 0 if head is None else head
        self._numpy = static.env.backend == "numpy"
        self._offset = torch.arange(len(theta) * n, device=theta.device) // n * len(table)

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        cdf = self._cdf[(self._index(torch.as_tensor(obs)) + self._offset) * self._heads + self._head]
        threshold = torch.as_tensor(rng.uniform(1)) * cdf[:, -1:]
        if cdf.device.type != "cpu":
            assert isinstance(action_mask, Tensor)
            return first_reaching(cdf, threshold, action_mask)
        action = (cdf < threshold).sum(-1)
        return action.numpy() if self._numpy else action
