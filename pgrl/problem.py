"""`Problem`: environment, policy, estimator and seeds of a run; `Iteration`: the `World` of one iteration."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from envs.core import Env, EnvironmentFault, Trajectories
from envs.random import Rng
from envs.rollout import rollout
from envs.workers import Workers
from pgrl.agent import Sizes, batch_sizes
from pgrl.baselines import Baseline, Fitted, NoBaseline
from pgrl.gradients import Estimator
from pgrl.policy import Policy

INIT, ITERATION, EVALUATION, FIRST = 0, 1, 2, 3  # random streams of a seed
SAMPLE, ALGORITHM = 0, 1  # random streams of an iteration
AT_ONCE = 64  # the most episodes of a rollout before training


@dataclass(frozen=True)
class Problem:
    """All that does not change during a run. All randomness follows from `seeds` and the number of the iteration.

    env         the environment
    policy      the policy
    discount    in (0, 1]
    seeds       S independent runs that are trained side by side
    horizon     H, steps after which training episodes are cut; evaluation episodes have the environment's own length
    batch_size  episodes of each seed at each theta that an agent samples at
    causal      use the causal form of the Hessian-vector product
    baseline    of the estimators
    device      of parameters and random keys
    workers     processes with copies of env that sample in parallel; None: this process only
    normalise_steps  environment steps of each seed whose observations the policy's normalisation is computed from
    undiscounted_states, gae_lambda  of the `Estimator`, biased
    """

    env: Env
    policy: Policy
    discount: float
    seeds: tuple[int, ...]
    horizon: int
    batch_size: int = 1
    causal: bool = False
    baseline: Baseline = field(default_factory=NoBaseline)
    device: str = "cpu"
    workers: Workers | None = None
    normalise_steps: int = 0
    undiscounted_states: bool = False
    gae_lambda: float = 1.0

    @property
    def estimator(self) -> Estimator:
        """The estimators g and B."""
        return Estimator(self.policy, self.discount, self.causal, self.undiscounted_states, self.gae_lambda)

    def _rng(self, stream: int) -> Rng:
        return self._streams[stream].rows(0, len(self.seeds))  # a new object: it counts its draws

    @cached_property
    def _streams(self) -> dict[int, Rng]:
        """A generator for each stream, cached to copy the seeds to the device only once."""
        rng = Rng.of_seeds(self.seeds, self.device)
        rng.dtype = self.policy.dtype
        return {stream: rng.fold(stream) for stream in (INIT, ITERATION, EVALUATION, FIRST)}

    def theta(self) -> Tensor:
        """The initial parameters, [S, D]."""
        return self.policy.init(self._rng(INIT))

    def start(self) -> tuple[Tensor, Tensor]:
        """The initial parameters, [S, D], and the environment steps of each seed that they took, [S].

        With `normalise_steps`, episodes of the initial policy are sampled until each seed has as many steps; the mean and the
        standard deviation of their observations become part of theta, for good.

        Raises:
            EnvironmentFault: an observation or a reward is not finite.
        """
        theta, steps = self.theta(), torch.zeros(len(self.seeds), dtype=torch.int64)
        if not self.normalise_steps:
            return theta, steps
        observations = []
        for i, seed in enumerate(self.seeds):  # one by one: how many episodes a seed needs depends on their lengths
            alone = replace(self, seeds=(seed,))
            seen: list[Tensor] = []
            episodes = 0
            while (missing := self.normalise_steps - int(steps[i])) > 0:
                length = self.horizon if not episodes else max(1, int(steps[i]) // episodes)
                rng, n = alone._rng(FIRST).fold(episodes), min(-(-missing // length), AT_ONCE)
                (tau,) = alone._play((theta[i : i + 1],), (n,), rng, self.horizon)
                seen.append(tau.obs[tau.mask])
                if not len(seen[-1]):
                    raise EnvironmentFault("state", seed=seed, how="ended every episode at reset")
                steps[i] += len(seen[-1])
                episodes += n
            observations.append(torch.cat(seen))
        return self.policy.normalised_by(theta, observations), steps

    def iteration(self, t: int, fitted: Fitted | None = None) -> Iteration:
        """The `World` of iteration t, with the baseline fitted on the iterations before."""
        return Iteration(self, self._rng(ITERATION).fold(t), {} if fitted is None else fitted)

    def evaluate(self, theta: Tensor, episodes: int, t: int, mean_action: bool = False) -> Trajectories:
        """Sample evaluation episodes from a random stream of their own, which does not affect training.

        Args:
            theta: [S, D].
            episodes: of each seed.
            t: number of the iteration; equal numbers give equal random numbers.
            mean_action: act without noise; of discrete actions take the most probable one.

        Returns:
            Trajectories [T, S·episodes], grouped by seed.

        Raises:
            EnvironmentFault: an observation or a reward is not finite.
        """
        return self._play((theta,), (episodes,), self._rng(EVALUATION).fold(t), self.env.horizon, mean_action)[0]

    def _play(
        self, thetas: Sequence[Tensor], n: Sequence[int], rng: Rng, horizon: int, mean_action: bool = False
    ) -> tuple[Trajectories, ...]:
        """One rollout of n[p] episodes of each row of thetas[p], for every p; the rows of thetas[p] are grouped by seed."""
        S, unit = len(self.seeds), math.gcd(*n)
        for theta in thetas:
            if len(theta) % S:
                raise ValueError(f"asked for episodes at {len(theta)} parameter vectors, expected a multiple of {S} seeds")
        each = [k * (len(theta) // S) for k, theta in zip(n, thetas, strict=True)]  # episodes of a seed
        keys = torch.cat([rng.fold(p).spawn(k).key for p, k in enumerate(each)])
        masked = getattr(self.env, "masked", False)
        rows = [theta if k == unit else theta.repeat_interleave(k // unit, 0) for k, theta in zip(n, thetas, strict=True)]
        act = self.policy.actor(torch.cat(rows), unit, self.env.backend, masked, mean_action)
        starts = list(itertools.accumulate((S * k for k in each), initial=0))
        try:
            tau = rollout(self.env, act, Rng(keys, dtype=rng.dtype), horizon, self.workers)
        except EnvironmentFault as fault:
            p = bisect_right(starts, fault.row or 0) - 1
            within = fault if fault.row is None else fault.at(row=fault.row - starts[p])
            raise within.of_seed(self.seeds, each[p]) from fault.__cause__
        return tuple(tau.rows(*ends) for ends in itertools.pairwise(starts)) if len(thetas) > 1 else (tau,)


class Iteration:
    """The `pgrl.agent.World` of one iteration. It keeps all sampled trajectories, so that every episode is counted."""

    def __init__(self, problem: Problem, rng: Rng, fitted: Fitted) -> None:
        self.problem, self._fitted, self._sample_rng = problem, fitted, rng.fold(SAMPLE)
        self._algorithm_rng = rng.fold(ALGORITHM)
        self._estimator = problem.estimator
        self.policy, self.discount, self.batch_size = problem.policy, problem.discount, problem.batch_size
        self._uniforms = 0
        self.sampled: list[Trajectories] = []

    def sample(self, *thetas: Tensor, n: Sizes = None) -> tuple[Trajectories, ...]:
        sizes = batch_sizes(n, self.batch_size, len(thetas))
        taus = self.problem._play(thetas, sizes, self._sample_rng.fold(len(self.sampled)), self.problem.horizon)
        self.sampled += taus
        return taus

    def gradient(self, theta: Tensor, tau: Trajectories) -> Tensor:
        return self._estimator.gradient(theta, tau, self._baseline(tau))

    def hessian_vector(self, theta: Tensor, tau: Trajectories, u: Tensor) -> Tensor:
        return self._estimator.hessian_vector(theta, tau, u, self._baseline(tau))

    def uniform(self, m: int = 1) -> Tensor:
        self._uniforms += 1
        return self._algorithm_rng.fold(self._uniforms).uniform(m)

    def _baseline(self, tau: Trajectories) -> Tensor | None:
        return self.problem.baseline.predict(self._fitted, tau, len(self.problem.seeds))

    def fit_baseline(self) -> Fitted:
        """Fit the baseline for the next iteration on all trajectories of this one."""
        fitted = self._fitted
        for tau in self.sampled:
            fitted = self.problem.baseline.fit(fitted, tau, len(self.problem.seeds))
        return fitted

    def env_steps(self) -> Tensor:
        """Environment steps of each seed in this iteration, over all sampled episodes, [S]."""
        S = len(self.problem.seeds)
        return torch.stack([tau.mask.sum(0).reshape(S, -1).sum(1) for tau in self.sampled]).sum(0)

    def episode_returns(self) -> tuple[Tensor, Tensor]:
        """Mean undiscounted return and mean length of each seed's episodes at the first sampled theta, [S] each."""
        S, tau = len(self.problem.seeds), self.sampled[0]
        by_seed = tau.returns().reshape(S, -1), tau.mask.sum(0).reshape(S, -1).double()
        return by_seed[0].mean(1), by_seed[1].mean(1)
