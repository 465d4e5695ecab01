"""Uniform valid actions, a baseline without learning. Its distribution of objects is not uniform: short episodes prevail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Array
from envs.random import Rng
from gflownet.model import log_softmax
from gflownet.problem import ITERATION, DagProblem, Metrics, Outcome


class UniformActions:
    """An Act that samples valid actions uniformly, by inversion."""

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        assert action_mask is not None
        count: Any = action_mask.cumsum(1)
        return (count < rng.uniform(1) * count[:, -1:]).sum(1)

    def rows(self, lo: int, hi: int) -> UniformActions:
        return self


class UniformState(NamedTuple):
    """Nothing is learned; how many iterations were made."""

    iterations: int


@dataclass(frozen=True)
class Uniform:
    """Uniform valid actions: the policy before any learning."""

    def init(self, problem: DagProblem) -> UniformState:
        return UniformState(0)

    def step(self, state: UniformState, problem: DagProblem, t: int) -> tuple[UniformState, Outcome]:
        tau = problem.play(UniformActions(), problem.rng(ITERATION, t))
        assert tau.last is not None
        log_reward = problem.log_reward(tau.last)
        objects, rewards = problem.by_seed(tau.last), problem.by_seed(log_reward)
        metrics: Metrics = {
            "rollout/log_reward": rewards.mean(1),
            "rollout/length": problem.by_seed(tau.mask.sum(0)).double().mean(1),
        }
        return UniformState(state.iterations + 1), Outcome(objects, rewards, metrics)

    def log_pf(self, state: UniformState, problem: DagProblem, obs: Tensor, valid: Tensor) -> Tensor:
        logits = torch.zeros(valid.shape, dtype=torch.float64, device=valid.device)
        return log_softmax(logits, valid).expand(1, len(problem.seeds), *valid.shape)

    def log_z(self, state: UniformState) -> None:
        return None
