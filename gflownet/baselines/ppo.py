"""PPO: proximal policy optimisation (Schulman et al. 2017, 1707.06347), the RL baseline of Bengio et al. (NeurIPS 2021).

in each iteration:
    sample n episodes; the reward is R(x) at the end, 0 before
    δ_t = r_t + V(s_t+1) - V(s_t),  V = 0 at the end;  A_t = Σ_k λ^k δ_t+k           (GAE, Schulman et al. 2016, discount 1)
    U times:  draw m steps of the n episodes, with ρ = π_θ(a|s) / π(a|s), π the sampling policy
              descend  mean[ -min(ρ A, clip(ρ, 1 - c, 1 + c) A) + w (R(x) - V_θ(s))² - h H(π_θ(·|s)) ]

In the paper a round is 256 episodes (`batch_size`; 16 batches of 16), U = 32, m = 16, c = 0.2, w = 1/2, λ = 0, and h = 0.5 in
the figure (0.1 in the code). It does not converge to R/Z: the entropy is that of actions, not of objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.ranges import Count, Fraction, NonNegative, Positive, Widths, check_fields
from gflownet.baselines.learner import Learner, model_for
from gflownet.model import Model, log_softmax
from gflownet.problem import ITERATION, DagProblem, Outcome
from gflownet.sampling.sampler import sampler

PLAY, MINIBATCH = 0, 1  # random streams of an iteration


def advantages(value: Tensor, mask: Tensor, reward: Tensor, trace: float) -> Tensor:
    """Generalised advantage estimates.

    Args:
        value: [T, B], V(s_t).
        mask: [T, B] bool, steps really taken.
        reward: [B], at the end of each episode.
        trace: λ.

    Returns:
        A_t, [T, B]; 0 at steps not taken.
    """
    going = torch.cat([mask[1:], torch.zeros_like(mask[:1])])
    ahead = torch.cat([value[1:], torch.zeros_like(value[:1])])
    delta = torch.where(mask, torch.where(going, ahead, reward) - value, 0.0)
    total = torch.zeros_like(reward)
    backwards = []
    for step in reversed(delta):
        total = step + trace * total
        backwards.append(total)
    return torch.stack(backwards[::-1])


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 - c, 1 + c) A), elementwise."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def entropy(log_pf: Tensor, valid: Tensor) -> Tensor:
    """Entropy in nats of the distributions log_pf [..., A] over valid actions [..., A], [...]."""
    safe = torch.where(valid, log_pf, 0.0)  # before the product: the gradient of 0·(-inf) is NaN
    return -(torch.where(valid, safe.exp(), 0.0) * safe).sum(-1)


class Steps(NamedTuple):
    """R entries for steps of each seed; the steps really taken, `taken` [S] of them, are at the entries order[:, :taken].

    obs [S, R, *obs], valid [S, R, A]; action, log_prob, advantage, outcome (R(x) of the episode) and order [S, R]
    """

    obs: Tensor
    valid: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    outcome: Tensor
    order: Tensor
    taken: Tensor

    def draw(self, u: Tensor) -> Steps:
        """Draw m steps of each seed with replacement, by uniform numbers u [S, m]."""
        rank = torch.minimum((u * self.taken[:, None]).long(), self.taken[:, None] - 1)
        seed, pick = torch.arange(len(u), device=u.device)[:, None], self.order.gather(1, rank)
        obs, valid, action, log_prob, advantage, outcome = (x[seed, pick] for x in self[:6])
        everyone = torch.arange(u.shape[1], device=u.device).expand(u.shape)
        return Steps(obs, valid, action, log_prob, advantage, outcome, everyone, torch.full_like(self.taken, u.shape[1]))


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation of R(x) (Schulman et al. 2017, 1707.06347)."""

    learning_rate: Positive = 1e-4
    """learning rate of Adam"""
    updates: Count = 32
    """U, updates of Adam in an iteration"""
    minibatch: Count = 16
    """m, environment steps in an update"""
    clip: Positive = 0.2
    """c, clipping range of the probability ratio"""
    entropy: NonNegative = 0.5
    """h, coefficient of the entropy bonus"""
    value_weight: NonNegative = 0.5
    """w, coefficient of the value loss"""
    trace: Fraction = 0.0
    """λ of generalised advantage estimation: 0 is one-step (as the code of 2021), 1 is return minus value"""
    hidden: Widths = (256, 256)
    """widths of the network's hidden layers"""
    tabular: bool = False
    """a table of states instead of a network"""

    def __post_init__(self) -> None:
        check_fields(self)

    def model(self, problem: DagProblem) -> Model:
        return model_for(problem.env, self.hidden, self.tabular, state_value=True)

    def init(self, problem: DagProblem) -> Learner:
        return Learner.begin(self.model(problem), problem)

    def step(self, state: Learner, problem: DagProblem, t: int) -> tuple[Learner, Outcome]:
        model, rng = self.model(problem), problem.rng(ITERATION, t)
        tau = problem.play(sampler(problem.env, model, state.theta, problem.batch_size), rng.fold(PLAY))
        assert tau.last is not None
        log_reward = problem.log_reward(tau.last)
        steps = self.steps(model, state.theta, tau, log_reward)
        draws = rng.fold(MINIBATCH).drawn(self.updates, numpy=False)
        losses, fine = [], torch.ones(len(state.theta), dtype=torch.bool, device=log_reward.device)
        for k in range(self.updates):
            batch = steps.draw(draws.at(k).uniform(self.minibatch))
            loss, made = state.descend(lambda theta, batch=batch: self.loss(model, theta, batch), self.learning_rate)  # type: ignore[misc]
            losses.append(loss)
            fine = fine & made
        return state, state.outcome(problem, tau, log_reward, torch.stack(losses).mean(0), fine)

    @torch.no_grad()
    def steps(self, model: Model, theta: Tensor, tau: Trajectories, log_reward: Tensor) -> Steps:
        """The steps of tau [T, S·n] with log-probabilities and advantages under theta [S, D]."""
        assert tau.action_mask is not None
        S = len(theta)

        def by_seed(x: Tensor) -> Tensor:
            return x.view(len(x), S, -1, *x.shape[2:]).transpose(0, 1).flatten(1, 2)

        obs, valid, action, real = (by_seed(x) for x in (tau.obs, tau.action_mask, tau.action, tau.mask))
        out = model.outputs(theta, obs)
        log_prob = log_softmax(model.policy(out), valid).gather(2, action[..., None])[..., 0]
        value = model.log_flow(out).view(S, len(tau.mask), -1).transpose(0, 1).flatten(1)
        outcome = log_reward.exp().to(theta.dtype)
        advantage = by_seed(advantages(value, tau.mask, outcome, self.trace))
        order = torch.argsort((~real).byte(), dim=1, stable=True)
        return Steps(obs, valid, action, log_prob, advantage, by_seed(outcome.expand_as(tau.mask)), order, real.sum(1))

    def loss(self, model: Model, theta: Tensor, batch: Steps) -> Tensor:
        """The loss of each seed, [S], on a minibatch of steps."""
        out = model.outputs(theta, batch.obs)
        log_pf = log_softmax(model.policy(out), batch.valid)
        ratio = (log_pf.gather(2, batch.action[..., None])[..., 0] - batch.log_prob).exp()
        gain = clipped(ratio, batch.advantage, self.clip) + self.entropy * entropy(log_pf, batch.valid)
        return (self.value_weight * (batch.outcome - model.log_flow(out)) ** 2 - gain).mean(1)

    def log_pf(self, state: Learner, problem: DagProblem, obs: Tensor, valid: Tensor) -> Tensor:
        return state.log_pf(self.model(problem), obs, valid)

    def log_z(self, state: Learner) -> None:
        return None
