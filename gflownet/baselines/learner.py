"""`Learner`: parameters and optimiser of baselines that train a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs.core import DagEnv, Trajectories
from gflownet.model import Model
from gflownet.optimiser import Adam
from gflownet.problem import INIT, DagProblem, Metrics, Outcome, skipped_batch


def model_for(env: DagEnv, hidden: tuple[int, ...], tabular: bool, state_value: bool = False) -> Model:
    """Make the same network as for a GFlowNet; `state_value` adds an output, which `Model.log_flow` returns."""
    return Model.of(env, 1, state_value, False, hidden, tabular)


class Learner(NamedTuple):
    """theta [S, D], and the state of Adam."""

    theta: Tensor
    adam: Adam

    @staticmethod
    def begin(model: Model, problem: DagProblem) -> Learner:
        theta = model.init(problem.rng(INIT))
        return Learner(theta, Adam.begin(theta))

    def descend(self, loss: Callable[[Tensor], Tensor], rate: float) -> tuple[Tensor, Tensor]:
        """Take one step of Adam, in place.

        Args:
            loss: theta [S, D] -> [S].
            rate: learning rate.

        Returns:
            The loss [S], and [S] bool, the seeds that were updated.
        """
        theta = self.theta.detach().requires_grad_()
        value = loss(theta)
        (gradient,) = torch.autograd.grad(value.sum(), theta)
        fine = gradient.sum(1).isfinite() & value.detach().isfinite()
        self.adam.step(self.theta, gradient, rate, rate, fine)
        return value.detach(), fine

    def log_pf(self, model: Model, obs: Tensor, valid: Tensor) -> Tensor:
        """log P_F at states obs [M, *obs], [1, S, M, A]."""
        with torch.no_grad():
            return model.log_pf(self.theta, obs.expand(len(self.theta), *obs.shape), valid)

    def outcome(self, problem: DagProblem, tau: Trajectories, log_reward: Tensor, loss: Tensor, fine: Tensor) -> Outcome:
        """The outcome of an iteration that sampled tau [T, S·n] and trained on it; loss [S] and fine [S] from `descend`."""
        assert tau.last is not None
        objects, rewards = problem.by_seed(tau.last), problem.by_seed(log_reward)
        metrics: Metrics = {
            "train/loss": loss,
            "train/skipped": self.adam.skipped,
            "rollout/log_reward": rewards.mean(1),
            "rollout/length": problem.by_seed(tau.mask.sum(0)).double().mean(1),
        }
        if problem.device != "cpu" or bool(fine.all()):
            return Outcome(objects, rewards, metrics)
        return Outcome(objects, rewards, metrics, skipped_batch(tau, log_reward, loss, fine))
