"""Soft policy gradient: REINFORCE in the entropy-regularised MDP whose optimal policy is the GFlowNet's
(Tiapkin et al., AISTATS 2024, 2310.12934; Deleu et al. 2024, 2402.10309).

    rewards log P_B(s|s') before the end and log R(x) at the end, entropy weight 1, discount 1: the return of a trajectory is
    ζ = log R(x) + Σ log P_B - Σ log P_F
    ∇ KL(P_F(τ) || P_B(τ|x) R(x)/Z) = -E[ζ ∇Σ log P_F]
    estimate = -mean over i of (ζ_i - mean over j ≠ i of ζ_j) ∇Σ log P_F(τ_i)

The baseline is independent of τ_i, so that the estimate is unbiased. At the optimum ζ is log Z for every trajectory and the
estimate is 0, which does not hold with rewards-to-go. It is n/(2(n - 1)) times the gradient of VarGrad on the policy's own
trajectories (Richter et al. 2020, 2010.10436).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from envs.ranges import Positive, Widths, check_fields
from gflownet.baselines.learner import Learner, model_for
from gflownet.flows.flows import Flows
from gflownet.model import Model
from gflownet.objectives.vargrad import log_partition
from gflownet.problem import ITERATION, DagProblem, Outcome
from gflownet.sampling.sampler import sampler


def leave_one_out(x: Tensor) -> Tensor:
    """x_i minus the mean of the others, [S, n]."""
    n = x.shape[1]
    return (x - x.mean(1, keepdim=True)) * (n / (n - 1))


def surrogate(log_pf: Tensor, zeta: Tensor) -> Tensor:
    """A function [S] whose gradient is the estimate, from log_pf = Σ_t log P_F and ζ of each trajectory, [S, n]."""
    return -(leave_one_out(zeta.detach()) * log_pf).mean(1)


class SoftState(NamedTuple):
    """elbo [S]: mean ζ of the last batch; its expectation is log Z - KL."""

    learner: Learner
    elbo: Tensor


@dataclass(frozen=True)
class SoftPolicyGradient:
    """Entropy-regularised policy gradient (Tiapkin et al. 2023, 2310.12934)."""

    learning_rate: Positive = 1e-3
    """learning rate of Adam"""
    backward: Literal["uniform", "maxent"] = "uniform"
    """backward policy: uniform over edges, or maxent (proportional to the number of paths)"""
    hidden: Widths = (256, 256)
    """widths of the network's hidden layers"""
    tabular: bool = False
    """a table of states instead of a network"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.backward not in ("uniform", "maxent"):
            raise ValueError(
                f"backward is {self.backward!r}, expected uniform or maxent: a learned P_B needs a loss of its own"
            )

    def model(self, problem: DagProblem) -> Model:
        return model_for(problem.env, self.hidden, self.tabular)

    def init(self, problem: DagProblem) -> SoftState:
        """Make the initial state.

        Raises:
            ValueError: the batch size is 1, which leaves no other trajectory for the baseline.
        """
        if problem.batch_size < 2:
            raise ValueError(
                f"batch_size is {problem.batch_size}, expected at least 2: each trajectory is compared with the others"
            )
        learner = Learner.begin(self.model(problem), problem)
        return SoftState(learner, torch.zeros_like(learner.theta[:, 0]))

    def step(self, state: SoftState, problem: DagProblem, t: int) -> tuple[SoftState, Outcome]:
        model, env, theta = self.model(problem), problem.env, state.learner.theta
        tau = problem.play(sampler(env, model, theta, problem.batch_size), problem.rng(ITERATION, t))
        assert tau.last is not None
        log_reward, zetas = problem.log_reward(tau.last), []

        def loss(theta: Tensor) -> Tensor:
            flows = Flows(env, model, theta, tau, log_reward, backward=self.backward)
            zeta = log_partition(flows.log_pf, flows.log_pb, flows.log_reward).detach()
            zetas.append(zeta.mean(1))
            return surrogate(flows.log_pf.sum(0), zeta)

        _, fine = state.learner.descend(loss, self.learning_rate)
        elbo = zetas[0]
        outcome = state.learner.outcome(problem, tau, log_reward, -elbo, fine)
        return SoftState(state.learner, torch.where(fine, elbo, state.elbo)), outcome

    def log_pf(self, state: SoftState, problem: DagProblem, obs: Tensor, valid: Tensor) -> Tensor:
        return state.learner.log_pf(self.model(problem), obs, valid)

    def log_z(self, state: SoftState) -> Tensor:
        return state.elbo
