"""`Replay`: a buffer of trajectories. It stores only actions, because the environment is deterministic and can replay them.

fifo         uniform over the last `capacity` trajectories
prioritised  half from the 10 % with the highest rewards, half from the rest (Shen et al. 2023, 2305.07170)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.core import Array, Trajectories
from envs.random import Rng
from envs.rollout import Act
from gflownet.problem import DagProblem

REPLAY = ("none", "fifo", "prioritised")
TOP = 0.1


class Recorded(Act):
    """An Act that repeats recorded actions [T, B]."""

    def __init__(self, action: Tensor, numpy: bool) -> None:
        self._actions = iter(action.numpy() if numpy else action)

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        return next(self._actions)


def replayed(problem: DagProblem, action: Tensor) -> Trajectories:
    """Sample the trajectories with the given actions, [T, S·n], from the source."""
    act = Recorded(action, problem.env.backend == "numpy")
    return problem.play(act, problem.rng(0), action.shape[1] // len(problem.seeds))


class Replay(NamedTuple):
    """actions [S, capacity, T] int32, 0 after the end; log_reward [S, capacity]; position: trajectories ever added."""

    actions: Tensor
    log_reward: Tensor
    position: int

    @staticmethod
    def begin(problem: DagProblem, capacity: int) -> Replay:
        S, T = len(problem.seeds), problem.env.horizon
        actions = torch.zeros(S, capacity, T, dtype=torch.int32, device=problem.device)
        return Replay(actions, torch.full((S, capacity), -torch.inf, dtype=torch.float64, device=problem.device), 0)

    @property
    def size(self) -> int:
        """Number of trajectories in the buffer, for each seed."""
        return min(self.position, self.log_reward.shape[1])

    def add(self, tau: Trajectories, log_reward: Tensor) -> Replay:
        """Replace the oldest entries by trajectories tau [T, S·n] with log_reward [S·n], in place; return the new buffer."""
        S, capacity = self.log_reward.shape
        T, n = len(tau.mask), tau.mask.shape[1] // S
        place = (self.position + torch.arange(n, device=log_reward.device)) % capacity
        self.actions[:, place] = 0
        self.actions[:, place, :T] = torch.where(tau.mask, tau.action, 0).T.reshape(S, n, T).to(torch.int32)
        self.log_reward[:, place] = log_reward.reshape(S, n)
        return self._replace(position=self.position + n)

    def draw(self, problem: DagProblem, n: int, prioritised: bool, rng: Rng) -> tuple[Trajectories, Tensor]:
        """Draw n trajectories for each seed, with replacement: [T, S·n] and their log-rewards [S·n]."""
        u = rng.uniform(n)
        held = self.size
        if prioritised:
            top = max(1, int(TOP * held))
            rank = torch.argsort(self.log_reward[:, :held], stable=True, dim=1, descending=True)
            best = (u[:, : (n + 1) // 2] * top).long()
            rest = top + (u[:, (n + 1) // 2 :] * (held - top)).long()
            pick = rank.gather(1, torch.cat([best, rest.clamp_max(held - 1)], 1))
        else:
            pick = (u * held).long().clamp_max(held - 1)
        T = self.actions.shape[2]
        actions = self.actions.gather(1, pick[..., None].expand(*pick.shape, T)).flatten(0, 1).long()
        return replayed(problem, actions.T.contiguous()), self.log_reward.gather(1, pick).flatten()
