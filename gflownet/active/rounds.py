"""Active learning in rounds on the hypergrid (Bengio et al., NeurIPS 2021, section 4.3), with a budget of reward queries.

    D_0 = random cells with their rewards
    for i = 1 .. N
        fit the proxy to D_i-1;  A(x) = max(mean(x) + κ std(x), floor)^β at every cell
        train a generator from scratch with reward A
        draw cells from its distribution, without replacement and not in D_i-1;  query their rewards;  D_i = D_i-1 and these
    top-k return of round i = mean(top-k of D_i) - mean(top-k of D_i-1)     (k = 10; 512 random cells, 16 new in the paper)

All cells are enumerated, so that the distribution p of a policy is exact. Sampling without replacement takes the largest
log p(x) + Gumbel noise (Yellott 1977). For a method without a policy, p is the distribution of its visits in the second half of
its iterations.

Differs from the paper: β (1 there); the floor is above 0, because GFlowNets take its log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.dag.enumeration import Enumeration
from envs.dag.hypergrid import HyperGrid
from envs.random import Rng
from envs.ranges import Count, NonNegative, Positive, Range, Rows, Seed, Seeds, Steps
from gflownet.evaluation import exact_distribution
from gflownet.metrics import empirical, l1_sum
from gflownet.problem import DagProblem, Method, Metrics, objects_per_iteration

START, GENERATE, DRAW = range(3)  # random streams of a seed
UNLIKELY = 1e-9


class Proxy(Protocol):
    """A model of the reward: posterior(x [m, d], y [m], at [K, d]) -> mean [K] and standard deviation [K] at `at`, float64."""

    def posterior(self, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class TrueReward:
    """The true rewards [K] in place of a proxy, to separate errors of the proxy from those of the generator."""

    reward: Tensor

    def posterior(self, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        return self.reward, torch.zeros_like(self.reward)


@dataclass(frozen=True)
class Settings:
    """Settings of active learning, beside those of the environment and the generator."""

    seeds: Seeds = 3
    """how many seeds, run one after the other"""
    seed: Seed = 0
    """the first seed; for one seed all methods begin with the same cells"""
    rounds: Rows = 10
    """number of rounds: fit the proxy, train a generator on it, query new rewards"""
    initial: Count = 512
    """number of random cells whose reward is known at the start"""
    queries: Count = 16
    """number of new cells whose reward is queried in a round"""
    states: Steps = 16_000
    """finished objects that the generator visits in a round; the proxy gives their reward"""
    batch_size: Count = 16
    """objects that the generator constructs in an iteration"""
    proxy: Literal["gp", "oracle"] = "gp"
    """gp: a Gaussian process (needs scikit-learn); oracle: the true reward, for comparison"""
    kappa: NonNegative = 0.0
    """weight of the proxy's standard deviation in the acquisition function (UCB)"""
    beta: Positive = 1.0
    """inverse temperature: the generator's reward is the acquisition function to this power"""
    floor: Positive = 1e-3
    """the acquisition function is clipped to at least this"""
    top_k: Annotated[int, Range(2, 1_000_000_000)] = 10
    """k of the top-k mean reward and the top-k distances"""

    def rng(self, seed: int, stream: int, i: int = 0) -> Rng:
        rng = Rng.of_seeds((seed,))
        rng.dtype = torch.float64  # a Gumbel of a float32 is never above 16
        return rng.fold(stream).fold(i)


@dataclass(frozen=True)
class Pool:
    """A grid and its K objects, in the order of `dag.objects`."""

    env: HyperGrid
    dag: Enumeration

    @cached_property
    def cells(self) -> Tensor:
        """The objects, [K, n]."""
        return self.dag.obs[self.dag.objects]

    @cached_property
    def features(self) -> Tensor:
        """Coordinates from 0 to 1, [K, n] float64."""
        return self.cells.double() / (self.env.height - 1)

    @cached_property
    def reward(self) -> Tensor:
        """R of all objects, [K] float64; a round uses only those of its data."""
        return self.dag.log_reward.exp()

    def with_reward(self, reward: Tensor) -> HyperGrid:
        """The same grid with other rewards [K]."""
        env, table = self.env, torch.ones(self.env.n_states, dtype=torch.float64)
        table[env.index(self.cells)] = reward
        return HyperGrid(env.ndim, env.height, reward=lambda cells: table[env.index(cells)], convention=env.convention)


class Round(NamedTuple):
    """The result of a round. known [m + queries]: indices of the data, in the order of the queries.

    queried      mean true reward of the new cells
    error      root mean square error of the proxy's mean at the cells that were not known
    l1         Σ|p - A/ΣA| of the generator's distribution p: 0 if it equals that of the proxy
    unlikely   number of new cells with p < 1e-9: p has too few other cells
    metrics    of the generator's last iteration
    """

    known: Tensor
    queried: float
    error: float
    l1: float
    unlikely: int
    metrics: Metrics


def begin(pool: Pool, settings: Settings, seed: int) -> Tensor:
    """D_0: indices of distinct random objects, [initial]."""
    return settings.rng(seed, START).uniform(len(pool.cells))[0].argsort(stable=True)[: settings.initial]


def one_round(
    pool: Pool,
    proxy: Proxy,
    method: Method,
    settings: Settings,
    seed: int,
    i: int,
    known: Tensor,
    tick: Callable[[int], None] = lambda visited: None,
) -> Round:
    """Run round i of one seed.

    Args:
        pool: the grid.
        proxy: the model of the reward.
        method: the generator.
        settings: of active learning.
        seed: the seed.
        i: number of the round.
        known: [m], indices of the data.
        tick: called with the number of visited objects after every iteration.
    """
    mean, std = proxy.posterior(pool.features[known], pool.reward[known], pool.features)
    acquisition = (mean + settings.kappa * std).clamp_min(settings.floor) ** settings.beta
    p, metrics = generator(pool, acquisition, method, settings, int(settings.rng(seed, GENERATE, i).key), tick)
    new = draw(p, known, settings.queries, settings.rng(seed, DRAW, i))
    hidden = torch.ones_like(p, dtype=torch.bool)
    hidden[known] = False
    error = (mean - pool.reward)[hidden].square().mean().sqrt()
    distance = l1_sum(p, acquisition / acquisition.sum())
    unlikely = int((p[new] < UNLIKELY).sum())
    return Round(torch.cat([known, new]), float(pool.reward[new].mean()), float(error), float(distance), unlikely, metrics)


def generator(
    pool: Pool, reward: Tensor, method: Method, settings: Settings, seed: int, tick: Callable[[int], None]
) -> tuple[Tensor, Metrics]:
    """Train a generator on rewards [K]; return its distribution [K] and the metrics of its last iteration."""
    built = objects_per_iteration(method, settings.batch_size)
    iterations = -(-settings.states // built)
    problem = DagProblem(pool.with_reward(reward), (seed,), settings.batch_size, iterations)
    state, visited = method.init(problem), []
    metrics: Metrics = {}
    for t in range(iterations):
        state, outcome = method.step(state, problem, t)
        metrics = outcome.metrics
        if t >= iterations // 2:
            visited.append(outcome.objects[0])
        tick((t + 1) * built)
    if method.log_pf(state, problem, pool.dag.obs[:1], pool.dag.action_mask[:1]) is not None:
        return exact_distribution(method, state, problem, pool.dag)[0], metrics
    return empirical(pool.dag.object_of(torch.cat(visited)).bincount(minlength=len(pool.cells))), metrics


def draw(p: Tensor, known: Tensor, n: int, rng: Rng) -> Tensor:
    """Draw n indices from the distribution p [K] without replacement, none in `known`; any others once p is exhausted."""
    gumbel = -(-rng.uniform(len(p))[0].log()).log()
    score = p.clamp_min(1e-300).log() + gumbel
    score[known] = -torch.inf
    return score.argsort(descending=True, stable=True)[:n]


class Measures(NamedTuple):
    """Metrics of the data. Ties in reward are in order of the queries.

    top       mean reward of the k best
    modes     number of modes found
    distance  mean Euclidean distance of the k best, with coordinates from 0 to 1
    """

    top: float
    modes: int
    distance: float


def measures(pool: Pool, known: Tensor, k: int) -> Measures:
    """The metrics of the data with indices known [m]."""
    best = known[pool.reward[known].argsort(descending=True, stable=True)[:k]]
    met = pool.env.modes(pool.cells[known])
    distance = torch.nn.functional.pdist(pool.features[best]).mean()
    return Measures(float(pool.reward[best].mean()), len(set(met[met >= 0].tolist())), float(distance))
