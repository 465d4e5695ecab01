"""Agents with a planted fault, and right ones of other forms: what `pgrl check` has to tell apart.

Each is a function that returns d_t. `TABLE` lists them with what they claim; a name says what is wrong.
`python -m tests.pgrl.planted` runs every line of the check on all of them and writes the table of docs/correctness.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import LearnerFault, Trajectories
from pgrl.agent import World, norm, normalised
from pgrl.check import Claim, Finding, bias, check_problems, verdict
from pgrl.gradients import importance_weights, rewards_to_go, weighted_gradient
from pgrl.registry import register

ETA = 2 / 3  # of every t > 0


class State(NamedTuple):
    theta: Tensor
    theta_prev: Tensor
    theta_old: Tensor  # θ_{t-2}
    start: Tensor  # θ_0
    d: Tensor
    q: Tensor  # of the first iteration
    t: int


class Now(NamedTuple):
    """What a direction is made from: the world, η_t, and the names of the formulas."""

    world: World
    eta: float
    theta: Tensor
    theta_prev: Tensor
    theta_old: Tensor
    start: Tensor
    d: Tensor
    q: Tensor
    t: int

    @property
    def u(self) -> Tensor:
        return self.theta - self.theta_prev

    def between(self, q: Any = None) -> Tensor:
        q = self.world.uniform() if q is None else q
        return q * self.theta + (1 - q) * self.theta_prev

    def g(self, theta: Tensor, at: Tensor | None = None) -> Tensor:
        """g(τ, theta) with fresh τ of `at`."""
        return self.world.gradient(theta, *self.world.sample(theta if at is None else at))

    def v(self, theta: Tensor, u: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """B(τ, theta)u with fresh τ of `at`."""
        tau = self.world.sample(theta if at is None else at)
        return self.world.hessian_vector(theta, *tau, self.u if u is None else u)

    def storm(self, transport: Tensor, fresh: Tensor | None = None) -> Tensor:
        """(1-η)(d + v) + η g."""
        return (1 - self.eta) * (self.d + transport) + self.eta * (self.g(self.theta) if fresh is None else fresh)


Direction = Callable[[Now], Tensor]


@dataclass(frozen=True)
class Planted:
    """Normalised steps along `direction`."""

    direction: Direction
    unbiased: bool
    order: int | None = None
    step_size: float = 0.2
    anew: bool = False
    """call `direction` at t = 0 too, in place of g(τ_0, θ_0)"""

    def init(self, theta: Tensor) -> State:
        return State(theta, theta, theta, theta, torch.zeros_like(theta), theta[:, :1] * 0, 0)

    def step(self, state: State, world: World) -> tuple[State, dict[str, float]]:
        theta, theta_prev, *_, t = state
        now = Now(world, ETA if t else 1.0, *state)
        if t == 0 and not self.anew:
            q = world.uniform() if self.direction is q_kept else state.q
            d = now.g(theta)
        else:
            q, d = state.q, self.direction(now)
        step = self.step_size * 2 / (t + 2)
        return State(theta + step * normalised(d), theta, theta_prev, state.start, d, q, t + 1), {}


# estimators from trajectories: `weighed` is Σ weights ∇log π / n


def weighed(now: Now, theta: Tensor, tau: Trajectories, weights: Tensor, graph: bool = False) -> Tensor:
    leaf = theta if theta.requires_grad else theta.detach().requires_grad_()
    n = tau.mask.shape[1] // len(theta)
    return torch.autograd.grad((weights * now.world.policy.log_prob(leaf, tau)).sum() / n, leaf, create_graph=graph)[0]


def psi(now: Now, tau: Trajectories, discount: float | None = None) -> Tensor:
    return rewards_to_go(tau, now.world.discount if discount is None else discount, torch.float64)


def curvature(now: Now, theta: Tensor, tau: Trajectories, u: Tensor) -> Tensor:
    """(∇²Φ)u."""
    leaf = theta.detach().requires_grad_()
    return torch.autograd.grad((weighed(now, leaf, tau, psi(now, tau), graph=True) * u).sum(), leaf)[0]


def with_cross(scale: float) -> Direction:
    def direction(now: Now) -> Tensor:
        between = now.between()
        (tau,) = now.world.sample(between)
        straight = curvature(now, between, tau, now.u)
        return now.storm(straight + scale * (now.world.hessian_vector(between, tau, now.u) - straight))

    return direction


def cross_of_means(now: Now) -> Tensor:
    between = now.between()
    (tau,) = now.world.sample(between)
    scores = weighed(now, between, tau, tau.mask.double())
    means = (scores * now.u).sum(1, keepdim=True) * now.world.gradient(between, tau)
    return now.storm(curvature(now, between, tau, now.u) + means)


def cross_unmasked(now: Now) -> Tensor:
    between = now.between()
    (tau,) = now.world.sample(between)
    return now.storm(_product(now, between, tau, torch.ones_like(tau.mask)))


def _product(now: Now, theta: Tensor, tau: Trajectories, steps: Tensor) -> Tensor:
    """B u episode by episode, with ∇log p over the given steps."""
    n = tau.mask.shape[1] // len(theta)
    each, u = theta.repeat_interleave(n, 0), now.u.repeat_interleave(n, 0)
    along = (weighed(now, each, tau, steps.double()) * u).sum(1, keepdim=True)
    return curvature(now, theta, tau, now.u) + (along * now.world.gradient(each, tau)).reshape(len(theta), n, -1).mean(1)


def transposed(now: Now) -> Tensor:
    """B'u = ⟨∇Φ, u⟩∇log p + (∇²Φ)u, whose mean is the same."""
    between = now.between()
    (tau,) = now.world.sample(between)
    n = tau.mask.shape[1] // len(between)
    each, u = between.repeat_interleave(n, 0), now.u.repeat_interleave(n, 0)
    along = (now.world.gradient(each, tau) * u).sum(1, keepdim=True)
    means = (along * weighed(now, each, tau, tau.mask.double())).reshape(len(between), n, -1).mean(1)
    return now.storm(curvature(now, between, tau, now.u) + means)


# g of its own


def of_weights(weights: Callable[[Now, Trajectories], Tensor]) -> Direction:
    def direction(now: Now) -> Tensor:
        (tau,) = now.world.sample(now.theta)
        return weighed(now, now.theta, tau, weights(now, tau))

    return direction


def past_rewards(now: Now, tau: Trajectories) -> Tensor:
    return psi(now, tau)[:1] - psi(now, tau)


def own_reward(now: Now, tau: Trajectories) -> Tensor:
    later = torch.cat([psi(now, tau)[1:], torch.zeros_like(tau.reward[:1])])
    return psi(now, tau) - later


def two_rewards(now: Now, tau: Trajectories) -> Tensor:
    later = torch.cat([psi(now, tau)[2:], torch.zeros_like(tau.reward[:2])])[: len(tau.mask)]
    return (psi(now, tau) - later) * tau.mask


def discounted_from_t(now: Now, tau: Trajectories) -> Tensor:
    return psi(now, tau) / now.world.discount ** torch.arange(len(tau.mask))[:, None]


def batches(now: Now, tau: Trajectories) -> Tensor:
    """Ψ_0 of each episode, by seed, [S, n]."""
    return psi(now, tau)[0].reshape(len(now.theta), -1)


def in_batch_mean(now: Now, tau: Trajectories) -> Tensor:
    return (psi(now, tau) - batches(now, tau).mean(1).repeat_interleave(tau.mask.shape[1] // len(now.theta))) * tau.mask


def leave_one_out(now: Now, tau: Trajectories) -> Tensor:
    total = batches(now, tau)
    n = total.shape[1]
    others = (total.sum(1, keepdim=True) - total) / max(n - 1, 1)
    return (psi(now, tau) - others.flatten()) * tau.mask


def whitened(now: Now, tau: Trajectories) -> Tensor:
    total = batches(now, tau)
    spread = 1 + (total.std(1, keepdim=True) if total.shape[1] > 1 else torch.zeros_like(total))
    return psi(now, tau) / spread.expand_as(total).flatten()


def over_steps(now: Now, tau: Trajectories) -> Tensor:
    n = tau.mask.shape[1] // len(now.theta)
    steps = tau.mask.sum(0).reshape(-1, n).double().mean(1)
    return psi(now, tau) * (3 / steps).repeat_interleave(n)


def clipped(d: Tensor, most: float) -> Tensor:
    return d * (most / norm(d)).clamp(max=1.0)


# the transport of HARPG


def q_is(q: float) -> Direction:
    return lambda now: now.storm(now.v(now.between(q)))


def q_of_each_coordinate(now: Now) -> Tensor:
    q = torch.cat([now.world.uniform() for _ in range(2)], 1).repeat(1, now.theta.shape[1])[:, : now.theta.shape[1]]
    return now.storm(now.v(now.between(q)))


def q_kept(now: Now) -> Tensor:
    return now.storm(now.v(now.between(now.q)))


def q_antithetic(now: Now) -> Tensor:
    q = now.world.uniform()
    return now.storm((now.v(now.between(q)) + now.v(now.between(1 - q))) / 2)


def q_private(now: Now) -> Tensor:
    return now.storm(now.v(now.between(torch.rand(len(now.theta), 1, dtype=torch.float64))))


def two_qs(now: Now) -> Tensor:
    return now.storm(now.v(now.between(), at=now.between()))


def one_batch_for_both(now: Now) -> Tensor:
    between = now.between()
    (tau,) = now.world.sample(between)
    return now.storm(now.world.hessian_vector(between, tau, now.u), fresh=now.world.gradient(now.theta, tau))


def step_for_u(now: Now) -> Tensor:
    return now.storm(now.v(now.between(), u=0.2 * now.d))


def late(now: Now) -> Tensor:
    """Right until t = 4."""
    return now.g(now.theta) * (1.0 if now.t < 5 else 1.3)


def divides_by_three(now: Now) -> Tensor:
    """Batches of more than three episodes are divided by three."""
    (tau,) = now.world.sample(now.theta)
    n = tau.mask.shape[1] // len(now.theta)
    return now.world.gradient(now.theta, tau) * (n / min(n, 3))


def big_batch(scale: float) -> Direction:
    def direction(now: Now) -> Tensor:
        (tau,) = now.world.sample(now.theta, n=16)
        return scale * now.world.gradient(now.theta, tau)

    return direction


def over_seeds(now: Now) -> Tensor:
    d = now.g(now.theta)
    return d / d.norm(dim=1).mean() * norm(d.mean(0, keepdim=True))


# STORM


def storm(weigh: Callable[[Now, Trajectories], Tensor]) -> Direction:
    def direction(now: Now) -> Tensor:
        (tau,) = now.world.sample(now.theta)
        old = weighted_gradient(now.world.policy, now.theta_prev, tau, now.world.discount, weigh(now, tau))
        fresh = now.world.gradient(now.theta, tau)
        return fresh + (1 - now.eta) * (now.d - old)

    return direction


def ratio(now: Now, tau: Trajectories, stepwise: bool = True, power: float = 1.0) -> Tensor:
    log_prob = now.world.policy.log_prob
    log_old, log_new = log_prob(now.theta_prev, tau), log_prob(now.theta, tau)
    return importance_weights(power * log_old, power * log_new, tau.mask, stepwise=stepwise)


def page(weigh: float) -> Direction:
    """A coin decides between a new batch and a correction of the last direction."""

    def direction(now: Now) -> Tensor:
        (tau,) = now.world.sample(now.theta)
        old = weighted_gradient(now.world.policy, now.theta_prev, tau, now.world.discount, ratio(now, tau))
        fresh, new = now.world.gradient(now.theta, tau), now.world.uniform() < 0.3
        return torch.where(new, fresh, now.d + fresh - weigh * old)

    return direction


# N-PG-IGT and momentum


def igt(far: float, sampled: float = 1.0, differentiated: float = 1.0, weight: float = ETA) -> Direction:
    """Look-ahead `far` times the right one; sampled and differentiated at fractions of it."""

    def direction(now: Now) -> Tensor:
        ahead = far * (1 - now.eta) / now.eta * now.u
        g = now.g(now.theta + differentiated * ahead, at=now.theta + sampled * ahead)
        return (1 - weight) * now.d + weight * g

    return direction


def igt_from_start(now: Now) -> Tensor:
    ahead = now.theta + (1 - now.eta) / now.eta * (now.theta - now.start)
    return (1 - now.eta) * now.d + now.eta * now.g(ahead)


def igt_of(weights: Callable[[Now, Trajectories], Tensor], late: bool = False) -> Direction:
    def direction(now: Now) -> Tensor:
        ahead = now.theta + (1 - now.eta) / now.eta * now.u
        (tau,) = now.world.sample(ahead)
        return (1 - now.eta) * now.d + now.eta * weighed(now, ahead, tau, weights(now, tau))

    return direction


def momentum(fresh: Callable[[Now], Tensor]) -> Direction:
    return lambda now: (1 - now.eta) * now.d + now.eta * fresh(now)


plain = momentum(lambda now: now.g(now.theta))


def harpg(now: Now) -> Tensor:
    return now.storm(now.v(now.between()))


def unbiased(direction: Direction, anew: bool = False) -> Planted:
    return Planted(direction, True, anew=anew)


def of_order(order: int | None, direction: Direction, anew: bool = False) -> Planted:
    return Planted(direction, False, order, anew=anew)


RIGHT: dict[str, Planted] = {
    "η and 1 - η exchanged": unbiased(lambda n: n.eta * (n.d + n.v(n.between())) + (1 - n.eta) * n.g(n.theta)),
    "Bᵀu for Bu": unbiased(transposed),
    "q and 1 - q, averaged": unbiased(q_antithetic),
    "whole return for every action": unbiased(of_weights(lambda n, tau: psi(n, tau)[:1] * tau.mask), anew=True),
    "leave-one-out baseline": unbiased(of_weights(leave_one_out), anew=True),
    "STORM, weights of each step": unbiased(storm(ratio)),
    "STORM, weights of the trajectory": unbiased(storm(lambda n, tau: ratio(n, tau, stepwise=False))),
    "PAGE-PG, with a coin": unbiased(page(1.0)),
    "batches of 16": unbiased(big_batch(1.0), anew=True),
    "N-PG-IGT, estimator of its own": of_order(2, igt_of(psi), anew=True),
}

WRONG: dict[str, Planted] = {
    "cross term dropped": unbiased(with_cross(0.0)),
    "cross term halved": unbiased(with_cross(0.5)),
    "cross term doubled": unbiased(with_cross(2.0)),
    "cross term with the wrong sign": unbiased(with_cross(-1.0)),
    "cross term a product of batch means": unbiased(cross_of_means),
    "cross term over padded steps": unbiased(cross_unmasked),
    "no transport": unbiased(plain),
    "transport reversed": unbiased(lambda n: n.storm(-n.v(n.between()))),
    "transport × 1.1": unbiased(lambda n: n.storm(1.1 * n.v(n.between()))),
    "transport weighed by η": unbiased(lambda n: (1 - n.eta) * n.d + n.eta * (n.v(n.between()) + n.g(n.theta))),
    "transport not weighed": unbiased(lambda n: (1 - n.eta) * n.d + n.v(n.between()) + n.eta * n.g(n.theta)),
    "transport clipped": unbiased(lambda n: n.storm(clipped(n.v(n.between()), 0.1))),
    "transport along the step before": unbiased(lambda n: n.storm(n.v(n.between(), u=n.theta_prev - n.theta_old))),
    "transport along γ d, not normalised": unbiased(step_for_u),
    "transport from θ_0": unbiased(
        lambda n: n.storm(n._replace(theta_prev=n.start).v(n._replace(theta_prev=n.start).between()))
    ),
    "new gradient with weight 1": unbiased(lambda n: (1 - n.eta) * (n.d + n.v(n.between())) + n.g(n.theta)),
    "d_{-1} = 0 with weight 1 - η_0": unbiased(lambda n: harpg(n._replace(eta=ETA)), anew=True),
    "q = 0": unbiased(q_is(0.0)),
    "q = 1": unbiased(q_is(1.0)),
    "q = ½": unbiased(q_is(0.5)),
    "q² for q": unbiased(lambda n: n.storm(n.v(n.between(n.world.uniform() ** 2)))),
    "q of each coordinate": unbiased(q_of_each_coordinate),
    "q of the first iteration, kept": unbiased(q_kept),
    "q of its own random numbers": unbiased(q_private),
    "one q to sample, one to differentiate": unbiased(two_qs),
    "HVP from trajectories of θ_t": unbiased(lambda n: n.storm(n.v(n.between(), at=n.theta))),
    "HVP at θ_t from trajectories of θ^": unbiased(lambda n: n.storm(n.v(n.theta, at=n.between()))),
    "g from trajectories of θ_{t-1}": unbiased(lambda n: n.storm(n.v(n.between()), n.g(n.theta, at=n.theta_prev))),
    "g from trajectories of θ^": unbiased(one_batch_for_both),
    "g at θ_{t-1}": unbiased(lambda n: n.storm(n.v(n.between()), n.g(n.theta_prev))),
    "rewards not discounted": unbiased(of_weights(lambda n, tau: psi(n, tau, 1.0)), anew=True),
    "scores not discounted": unbiased(of_weights(discounted_from_t), anew=True),
    "rewards before the action": unbiased(of_weights(past_rewards), anew=True),
    "the action's own reward alone": unbiased(of_weights(own_reward), anew=True),
    "this and the next reward alone": unbiased(of_weights(two_rewards), anew=True),
    "mean over steps": unbiased(of_weights(over_steps), anew=True),
    "baseline of the batch": unbiased(of_weights(in_batch_mean), anew=True),
    "returns divided by 1 + their spread": unbiased(of_weights(whitened), anew=True),
    "scale 1.02": unbiased(lambda n: 1.02 * n.g(n.theta), anew=True),
    "scale 1.3 from t = 5 on": unbiased(late),
    "scale 1.02 at t > 0": unbiased(lambda n: 1.02 * n.g(n.theta)),
    "clipped at 1": unbiased(lambda n: clipped(n.g(n.theta), 1.0), anew=True),
    "clipped at 50": unbiased(lambda n: clipped(n.g(n.theta), 50.0), anew=True),
    "more than three episodes divided by three": unbiased(divides_by_three, anew=True),
    "batches of 16, scale 1.2": unbiased(big_batch(1.2), anew=True),
    "scaled by other seeds": unbiased(over_seeds),
    "STORM without weights": unbiased(storm(lambda n, tau: tau.mask.double())),
    "STORM with inverse weights": unbiased(storm(lambda n, tau: ratio(n, tau, power=-1.0))),
    "STORM with weights at most 1.1": unbiased(storm(lambda n, tau: ratio(n, tau).clamp(max=1.1))),
    "PAGE-PG, old gradient × 0.9": unbiased(page(0.9)),
    "N-MPG claims to be unbiased": unbiased(plain),
    "N-MPG claims order 2": of_order(2, plain),
    "N-MPG claims no error without noise": of_order(None, plain),
    "N-MPG, trajectories of θ_{t-1}": of_order(1, momentum(lambda n: n.g(n.theta, at=n.theta_prev))),
    "N-MPG, gradient clipped at t > 0": of_order(1, momentum(lambda n: clipped(n.g(n.theta), 0.5))),
    "N-PG-IGT claims to be unbiased": unbiased(igt(1.0)),
    "N-PG-IGT without look-ahead": of_order(2, igt(0.0)),
    "N-PG-IGT, half the look-ahead": of_order(2, igt(0.5)),
    "N-PG-IGT, look-ahead backwards": of_order(2, igt(-1.0)),
    "N-PG-IGT, look-ahead of another η": of_order(2, igt(1.0, weight=0.5)),
    "N-PG-IGT, look-ahead from θ_0": of_order(2, igt_from_start),
    "N-PG-IGT, gradient at θ_t": of_order(2, igt(1.0, differentiated=0.0)),
    "N-PG-IGT, trajectories of θ_t": of_order(2, igt(1.0, sampled=0.0)),
    "N-PG-IGT, scores not discounted": of_order(2, igt_of(discounted_from_t), anew=True),
    "N-PG-IGT, scores not discounted at t > 0": of_order(2, igt_of(discounted_from_t)),
}

BY_SAMPLING = {  # what the exact lines cannot reach: three iterations and more, larger batches, jumps in q
    "scale 1.3 from t = 5 on",
    "more than three episodes divided by three",
    "batches of 16, scale 1.2",
    "PAGE-PG, old gradient × 0.9",
}
OURS = {name: entry.make(step_size=0.2, **entry.preset) for name, entry in register().items()}
LINES = ("start", "bias", "order", "estimates", "sampling")
PAGE = Path(__file__).parents[2] / "docs" / "correctness.md"
BEGIN, END = "<!-- written by python -m tests.pgrl.planted -->\n", "<!-- end -->\n"


def sampled(agent: Any, replicas: int = 4096, iterations: int = 16) -> dict[str, list[Finding]]:
    """The findings of `pgrl check`; the defaults are its own."""
    marks = sorted({0, *(round((iterations - 1) ** (k / 4)) for k in range(5))})
    return {case.name: bias(agent, case, marks) for case in check_problems(replicas, batch_size=4)}


def row(name: str, agent: Any, claims: list[Claim]) -> str:
    """A line of the table; bold where a claim fails."""
    by_line = {claim.line: claim for claim in claims}
    cells = [_cell(by_line[line]) if line in by_line else "" for line in LINES]
    return f"| {name} | {'unbiased' if agent.unbiased else f'order {agent.order}'} | {' | '.join(cells)} |"


def _cell(claim: Claim) -> str:
    if claim.holds is None:
        return "?"
    size = 0.0 if abs(claim.size) < 1e-14 else claim.size
    text = f"{size:.0e}".replace("e-0", "e-").replace("e+00", "") if 0 < size < 0.95 else f"{round(size, 1) + 0.0:g}"
    return text if claim.holds else f"**{text}**"


def claims_of(agent: Any, found: dict[str, list[Finding]] | None) -> list[Claim]:
    """`verdict`; an `LearnerFault` stands where it is found."""
    try:
        return verdict(agent, found)
    except LearnerFault as fault:
        return [Claim("start", False, math.nan, str(fault))]


def table() -> str:
    """The table of the documentation, in Markdown; a few minutes."""
    head = f"| | claims | {' | '.join(LINES)} |\n|---|---|{'---|' * len(LINES)}"
    parts = []
    for title, agents in (("Ours", OURS), ("Right, of other forms", RIGHT), ("Wrong", WRONG)):
        lines = []
        for name, agent in agents.items():
            lines.append(row(name, agent, claims_of(agent, sampled(agent))))
        parts.append(f"**{title}**\n\n{head}\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def committed() -> dict[str, str]:
    """The rows of the table in the documentation, by name."""
    text = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    return {line[2:].split(" | ")[0]: line for line in text.splitlines() if line[:3] not in ("| |", "|--") and line[:1] == "|"}


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
