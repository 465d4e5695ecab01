"""The exact mean of an agent's direction in tiny MDPs, over every outcome of all that it samples.

An outcome is one choice of all episodes and all q of the iterations so far; each is a row, as a seed is in training.

    for t = 0, 1, 2, 3, while there are at most ROWS outcomes:
        a pilot run of the iteration notes what the agent draws: episodes at some points, numbers q
        each row of the state is repeated for each combination of drawn values, and the iteration runs on all rows
        a row's probability is multiplied by p(τ | θ) of each episode, at the θ asked for, and by the weight of each q
        bias of t = Σ probability · (d_t - ∇J_H(θ_t)) over rows

q takes the nodes of Gauss-Legendre quadrature, so that means of smooth functions of q are exact too. Nothing is estimated:
the bias of an unbiased agent is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp

from envs.core import LearnerFault, Trajectories
from envs.pytree import numbers_of, rebuilt, tensors_of
from envs.raised import raised
from pgrl.agent import Agent, Sizes, batch_sizes
from pgrl.gradients import Estimator
from pgrl.heads import Categorical
from pgrl.nets import TabularNet
from pgrl.policy import Policy

ROWS = 20_000  # the most outcomes
ITERATIONS = 4  # the most iterations
NODES = 8  # values of q
F64 = torch.float64


class NotEnumerable(Exception):
    """What an agent draws has too many outcomes, or depends on outcomes."""


class ReadsTrajectories(Exception):
    """An agent reads trajectories where only exact gradients exist."""


@dataclass(frozen=True)
class TinyMDP:
    """An MDP whose trajectories can be listed: the actions and the first state are random, the transitions are not.

    name        of the problem
    start       probability of each first state
    move        move[s][a] is the next state; the last state is terminal
    reward      reward[s][a]
    horizon     H
    discount    in (0, 1]
    batch_size  episodes of a sample
    """

    name: str
    start: tuple[float, ...]
    move: tuple[tuple[int, ...], ...]
    reward: tuple[tuple[float, ...], ...]
    horizon: int
    discount: float
    batch_size: int = 1

    @cached_property
    def policy(self) -> Policy:
        actions = len(self.move[0])
        return Policy(TabularNet(len(self.move), actions), Categorical(actions), F64)

    @cached_property
    def theta(self) -> Tensor:
        """θ_0, [1, D]."""
        return torch.randn(1, self.policy.size, generator=torch.Generator().manual_seed(1), dtype=F64) / 2

    @cached_property
    def _listed(self) -> tuple[Trajectories, Tensor, Tensor]:
        """All trajectories, the probability of each one's first state [M], and each one's return [M]."""
        end = len(self.move)
        episodes: list[tuple[list[tuple[int, int]], int]] = [([], s) for s in range(end) if self.start[s]]
        for _ in range(self.horizon):
            episodes = [
                ([*steps, (s, a)], self.move[s][a] if s < end else end)
                for steps, s in episodes
                for a in (range(len(self.move[0])) if s < end else (0,))
            ]
        obs, action = torch.tensor([steps for steps, _ in episodes]).permute(2, 1, 0)
        mask, last = obs < end, torch.tensor([s for _, s in episodes])
        obs = obs * mask  # an ended episode looks like state 0: its steps show where an agent forgets the mask
        reward = torch.tensor(self.reward, dtype=F64)[obs, action] * mask
        tau = Trajectories(obs, action, reward, mask, last == end, last < 0, last=last % end)
        return tau, torch.tensor(self.start, dtype=F64)[obs[0]], tau.returns(self.discount)

    @property
    def trajectories(self) -> Trajectories:
        """All trajectories, as a batch of M."""
        return self._listed[0]

    def probabilities(self, theta: Tensor) -> Tensor:
        """p(τ | θ) of all trajectories, [S, M]."""
        tau, start, _ = self._listed
        table = self.policy.log_probs_at(theta, torch.arange(len(self.move)))
        return start * (table[:, tau.obs, tau.action] * tau.mask).sum(1).exp()

    def gradient(self, theta: Tensor) -> Tensor:
        """∇J_H(θ) by summing over all trajectories, [S, D]."""
        return grad(lambda th: (self.probabilities(th) @ self._listed[2]).sum())(theta)

    def hessian_vector(self, theta: Tensor, u: Tensor) -> Tensor:
        """∇²J_H(θ)u, [S, D]."""
        return jvp(self.gradient, (theta,), (u,))[1]


def tiny_mdps() -> list[TinyMDP]:
    """Two states, with early ends; three arms, with batches of two and large rewards; three arms, with most iterations."""
    arms = ((1, 1, 1),)
    return [
        TinyMDP("chain", (1.0, 0.0), ((1, 0), (0, 2)), ((1.0, -0.5), (0.3, 2.0)), horizon=3, discount=0.8),
        TinyMDP("pairs", (1.0,), arms, ((120.0, -40.0, 30.0),), horizon=1, discount=0.8, batch_size=2),
        TinyMDP("arms", (1.0,), arms, ((1.2, -0.4, 0.3),), horizon=1, discount=0.8),
    ]


class Outcomes:
    """The `World` of one iteration in which every row sees an outcome of its own.

    weight  [rows], the probability of each row's outcome given its history, complete after the iteration
    sizes   number of values of each draw so far
    kinds   what each of them is: "sample" or "uniform"
    points  each θ at which episodes were asked for, [rows, m·D] for m points of a row
    """

    nodes: ClassVar[int] = NODES

    def __init__(self, mdp: TinyMDP, histories: int, sizes: tuple[int, ...] | None = None) -> None:
        self.mdp, self.policy, self.discount, self.batch_size = mdp, mdp.policy, mdp.discount, mdp.batch_size
        self._estimator = Estimator(mdp.policy, mdp.discount)
        self._planned = sizes
        inner = torch.arange(1 if sizes is None else math.prod(sizes))
        self._inner = inner.repeat(histories)
        self.weight = torch.ones(len(self._inner), dtype=F64)
        self.sizes: list[int] = []
        self.kinds: list[str] = []
        self.points: list[Tensor] = []

    def _draw(self, size: int, kind: str) -> Tensor:
        """Each row's value of the next draw, [rows]; 0 in a pilot run."""
        at = len(self.sizes)
        self.sizes.append(size)
        self.kinds.append(kind)
        if self._planned is None:
            return self._inner
        if self._planned[at : at + 1] != (size,):
            raise NotEnumerable("what it draws depends on what it drew before")
        return self._inner // math.prod(self._planned[at + 1 :]) % size

    def sample(self, *thetas: Tensor, n: Sizes = None) -> tuple[Any, ...]:
        rows = len(self.weight)
        for theta in thetas:
            fits = isinstance(theta, Tensor) and theta.dim() == 2 and theta.shape[1] == self.policy.size
            if not fits or not len(theta) or len(theta) % rows:
                raise LearnerFault(f"asked for episodes at {_kind(theta)}, expected θ [{rows}, {self.policy.size}]")
        sizes = batch_sizes(n, self.batch_size, len(thetas))
        return tuple(self._episodes(theta.detach(), k) for theta, k in zip(thetas, sizes, strict=True))

    def _episodes(self, theta: Tensor, n: int) -> Any:
        """n episodes at each of the m points that a row has in theta [rows·m, D]."""
        M, rows = len(self.mdp.trajectories.terminated), len(self.weight)
        drawn = n * (len(theta) // rows)
        if drawn * math.log(M) > math.log(ROWS):
            raise NotEnumerable(f"it samples {drawn} episodes at once")
        chosen = self._draw(M**drawn, "sample")[:, None] // M ** torch.arange(drawn) % M  # [rows, m·n]
        self.points.append(theta.reshape(rows, -1))
        of_point = self.mdp.probabilities(theta).gather(1, chosen.reshape(len(theta), n)).prod(1)
        self.weight = self.weight * of_point.reshape(rows, -1).prod(1)
        return self.mdp.trajectories.columns(chosen.flatten())

    def gradient(self, theta: Tensor, tau: Any) -> Tensor:
        return self._estimator.gradient(theta, tau)

    def hessian_vector(self, theta: Tensor, tau: Any, u: Tensor) -> Tensor:
        return self._estimator.hessian_vector(theta, tau, u)

    def uniform(self, m: int = 1) -> Tensor:
        at = self._draw(self.nodes**m, "uniform")[:, None] // self.nodes ** torch.arange(m) % self.nodes  # [rows, m]
        q, weight = _gauss(self.nodes)
        self.weight = self.weight * weight[at].prod(1)
        return q[at]


@cache
def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on (0, 1)."""
    x, w = (torch.from_numpy(v) / 2 for v in np.polynomial.legendre.leggauss(nodes))
    return 0.5 + x, w


class FewerNodes(Outcomes):
    """`Outcomes` with other values of q: a mean that changes is not one of a smooth function of q."""

    nodes = NODES - 2


class NoiseFree(Outcomes):
    """`Outcomes` with exact gradients and Hessian-vector products; only q has several values."""

    def _episodes(self, theta: Tensor, n: int) -> Any:
        return _Unread()

    def gradient(self, theta: Tensor, tau: Any) -> Tensor:
        return self.mdp.gradient(theta)

    def hessian_vector(self, theta: Tensor, tau: Any, u: Tensor) -> Tensor:
        return self.mdp.hessian_vector(theta, u)


class _Unread:
    def __getattr__(self, name: str) -> Any:
        raise ReadsTrajectories(name)


@dataclass(frozen=True)
class Enumerated:
    """Iteration t in all outcomes.

    before   the state of each history
    history  probability of each history, [M]
    after    the state of each outcome, [M·N, ...]
    weight   probability of each outcome given its history, [M, N]
    world    what was drawn
    """

    t: int
    before: Any
    history: Tensor
    after: Any
    weight: Tensor
    world: Outcomes

    @property
    def mean_d(self) -> Tensor:
        """E[d_t | history], [M, D]."""
        return (self.weight[..., None] * self.after.d.reshape(*self.weight.shape, -1)).sum(1)


def enumerated(
    agent: Agent, mdp: TinyMDP, world: type[Outcomes] = Outcomes, iterations: int = ITERATIONS
) -> Iterator[Enumerated]:
    """Run an agent in all outcomes, one iteration after the other, as long as there are at most ROWS of them.

    Args:
        agent: the agent.
        mdp: the problem.
        world: `Outcomes`, or `NoiseFree` for exact gradients.
        iterations: the most iterations.

    Raises:
        LearnerFault: the agent raises, or breaks its protocol.
        NotEnumerable: there are too many outcomes, or they cannot be listed in advance.
        ReadsTrajectories: in `NoiseFree`, the agent reads trajectories.
    """
    state, history = started(agent, mdp.theta), torch.ones(1, dtype=F64)
    for t in range(iterations):
        here = iteration(agent, mdp, world, state, history, t)
        yield here
        state, history = here.after, (history[:, None] * here.weight).flatten()


def iteration(agent: Agent, mdp: TinyMDP, world: type[Outcomes], state: Any, history: Tensor, t: int) -> Enumerated:
    """One iteration of `enumerated`, from the states of given histories; same errors."""
    M = len(history)
    pilot, again = world(mdp, M), world(mdp, M)
    first, second = stepped(agent, state, pilot, t), stepped(agent, state, again, t)
    if not torch.equal(first.d.nan_to_num(), second.d.nan_to_num()):
        raise LearnerFault(f"gave two directions in iteration {t} from one state and one set of draws: use world.uniform()")
    N = math.prod(pilot.sizes)
    if M * N > ROWS:
        raise NotEnumerable(f"it has {M * N:,} outcomes up to iteration {t}")
    here = world(mdp, M, tuple(pilot.sizes))
    after = stepped(agent, repeated(state, M, N), here, t)
    return Enumerated(t, state, history, after, here.weight.reshape(M, N), here)


def repeated(state: Any, rows: int, n: int) -> Any:
    """A state of `rows` rows with each repeated n times."""
    tensors = {name: x.repeat_interleave(n, 0) if x.dim() and len(x) == rows else x for name, x in tensors_of(state).items()}
    return rebuilt(state, tensors, numbers_of(state))


def started(agent: Agent, theta: Tensor) -> Any:
    """`agent.init(theta)`, checked."""
    return _checked(called(lambda: agent.init(theta.clone()), "init"), theta, "init")


def stepped(agent: Agent, state: Any, world: Any, t: int) -> Any:
    """The state after one iteration, checked."""
    out = called(lambda: agent.step(state, world), f"step {t}")
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
        raise LearnerFault(f"step returned {_kind(out)}, expected the pair (state, metrics)")
    return _checked(out[0], state.theta, "step")


def called(work: Callable[[], Any], what: str) -> Any:
    """The result of `work`; what it raises becomes a `LearnerFault`."""
    try:
        return work()
    except (LearnerFault, NotEnumerable, ReadsTrajectories):
        raise
    except (Exception, SystemExit) as error:
        raise LearnerFault(f"{raised(error)} in {what}") from error


def _checked(state: Any, theta: Tensor, method: str) -> Any:
    if not hasattr(state, "_asdict"):
        raise LearnerFault(f"{method} returned {_kind(state)} as its state, expected a NamedTuple with theta and d")
    for name in ("theta", "d"):
        x = getattr(state, name, None)
        if not isinstance(x, Tensor) or x.shape != theta.shape:
            raise LearnerFault(f"{method} returned {_kind(x)} as {name}, expected a tensor {tuple(theta.shape)}")
    return state


def _kind(x: Any) -> str:
    return f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else f"{type(x).__name__}"
