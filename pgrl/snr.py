"""How many environment steps an unbiased estimate needs until its noise is as long as its signal.

    x_1 ... x_n          independent estimates of one vector: from an episode each, from a batch, or from a replica of an agent
    signal² = ‖E x‖²     estimated by (‖Σx‖² - Σ‖x‖²)/(n(n-1)), the mean of ⟨x_i, x_j⟩ over i ≠ j
    noise² = tr Cov(x)   estimated by (Σ‖x‖² - ‖Σx‖²/n)/(n-1)
    needed = steps of an estimate · noise²/signal²

The mean of k estimates has noise²/k, so that noise and signal are equal at k = noise²/signal². Both estimates are unbiased.
‖Σx/n‖² in place of signal² would not be: its mean is signal² + noise²/n, and it would name n even where there is no signal.

Intervals are those of signal²/(noise² · steps), whose inverse is `needed`: that ratio has no pole. They are the jackknife's
over groups of estimates with Student's t. Where there is no signal the jackknife's variance is too large (by up to 2), not too
small. Of the estimates only sums over groups are kept, so that memory does not grow with the number of episodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from envs.core import TIMELESS, Trajectories
from pgrl.agent import Agent
from pgrl.baselines import Baseline, Fitted, LeaveOneOut
from pgrl.gradients import Estimator
from pgrl.problem import Problem

NUMBERS = 4_000_000  # of a chunk of estimates and of the activations that it needs: 16 MB of float32
WIDTH = 256  # activations of a step
TINY = 1e-300
EPISODES, REPLICA = 1 << 60, 1 << 61  # seeds that no run has


@dataclass(frozen=True)
class NoiseToSignal:
    """What independent estimates of a vector tell about the batch they need.

    Attributes:
        needed: environment steps at which noise = signal; inf where the estimate of signal² is not positive.
        low: the lower end of the 95 % interval of `needed`, finite.
        high: its upper end; inf: the estimates do not tell the signal from 0, and `low` is a lower bound.
        steps: environment steps of an estimate, their mean.
        signal2: the estimate of ‖E x‖², which may be negative.
        noise2: the estimate of tr Cov(x), of one estimate.
        estimates: n.
    """

    needed: float
    low: float
    high: float
    steps: float
    signal2: float
    noise2: float
    estimates: int

    @property
    def bounded(self) -> bool:
        """Whether the interval has an upper end."""
        return self.high < math.inf


@dataclass
class Sums:
    """Sums of independent estimates x in R^D over groups: Σx, Σ‖x‖², their number, their environment steps."""

    _sums: list[Tensor] = field(default_factory=list)
    _squares: list[float] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    _steps: list[float] = field(default_factory=list)

    def add(self, chunks: Iterable[Tensor], steps: float) -> None:
        """Add a group of estimates.

        Args:
            chunks: of estimates, [n, D] each.
            steps: environment steps of all of them.
        """
        total, squares, count = torch.zeros(()), 0.0, 0
        for x in chunks:
            flat = x.flatten()
            total, squares, count = total + x.sum(0).double().cpu(), squares + float(flat @ flat), count + len(x)
        self._sums.append(total)
        self._squares.append(squares)
        self._counts.append(count)
        self._steps.append(float(steps))

    def noise_to_signal(self) -> NoiseToSignal:
        """The estimates and the interval.

        Raises:
            ValueError: there are fewer than three groups, fewer than two estimates without one of them, or one is not finite.
        """
        groups = len(self._sums)
        if groups < 3:
            raise ValueError(f"got {groups} groups of estimates, expected 3 or more")
        sums = torch.stack(self._sums)
        gram = sums @ sums.T
        parts = torch.tensor([self._squares, self._counts, self._steps], dtype=torch.float64)
        # leaving out group k: ‖Σx - s_k‖² = ‖Σx‖² - 2⟨Σx, s_k⟩ + ‖s_k‖²
        left = _moments(gram.sum() - 2 * gram.sum(1) + gram.diagonal(), *(parts.sum(1, keepdim=True) - parts))
        signal2, noise2, steps, ratio = (float(x) for x in _moments(gram.sum(), *parts.sum(1)))
        n = int(parts[1].sum())
        if not math.isfinite(signal2 + noise2):
            raise ValueError("an estimate is not finite, or too large")
        if noise2 <= 0:  # constant, and perhaps 0: then all that was sampled was too little
            low, high = (0.0, 0.0) if signal2 > 0 else (n * steps, math.inf)
            return NoiseToSignal(high, low, high, steps, signal2, noise2, n)
        error = float(((left[3] - left[3].mean()) ** 2).sum() * (groups - 1) / groups) ** 0.5
        reach = student(groups - 1) * error
        best, worst = max(ratio, 0.0) + reach, ratio - reach
        return NoiseToSignal(_inverse(ratio), _inverse(best), _inverse(worst), steps, signal2, noise2, n)


def _moments(square_of_sum: Tensor, squares: Tensor, n: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """signal², noise², steps of an estimate, signal²/(noise² · steps); elementwise."""
    if bool((n < 2).any()):
        raise ValueError("got fewer than two estimates, expected two or more without any one of the groups")
    signal2 = (square_of_sum - squares) / (n * (n - 1))
    noise2 = (squares - square_of_sum / n) / (n - 1)
    each = steps / n
    ratio = torch.where(noise2 > 0, signal2 / (noise2 * each).clamp_min(TINY), torch.where(signal2 > 0, torch.inf, 0.0))
    return signal2, noise2, each, ratio


def _inverse(x: float) -> float:
    return 1 / x if x > 0 else math.inf


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution, to 1 % from 3 degrees of freedom on.

    Source:
        Abramowitz and Stegun 1964, 26.7.5.
    """
    z, v = 1.959963984540054, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / v + second / v**2 + third / v**3 + fourth / v**4


@dataclass(frozen=True)
class Estimate:
    """One way to estimate ∇J_H(θ) or ∇²J_H(θ)u from episodes.

    estimator  g and B
    baseline   subtracted from the reward-to-go
    fitted     its parameters, from other episodes
    horizon    H; later steps are cut off and not counted
    u          [1, D], the vector of the Hessian-vector product; None: g
    """

    estimator: Estimator
    baseline: Baseline
    fitted: Fitted
    horizon: int
    u: Tensor | None = None

    def add(self, sums: Sums, theta: Tensor, taus: Sequence[Trajectories], batch_size: int) -> None:
        """Add the estimates from batches of episodes as one group.

        Episodes with a leave-one-out baseline depend on each other: there a batch is one estimate, the mean over its episodes.
        Elsewhere an episode is.

        Args:
            sums: where to.
            theta: [1, D].
            taus: episodes sampled at theta, a multiple of `batch_size` in each.
            batch_size: episodes of a batch with a leave-one-out baseline.
        """
        cut = [first_steps(tau, self.horizon) for tau in taus]
        chunks = itertools.chain.from_iterable(self._chunks(theta, tau, batch_size) for tau in cut)
        sums.add(chunks, sum(tau.steps for tau in cut))

    def _chunks(self, theta: Tensor, tau: Trajectories, batch_size: int) -> Iterator[Tensor]:
        """The estimates in chunks [n, D] of about `NUMBERS` numbers."""
        each = batch_size if isinstance(self.baseline, LeaveOneOut) else 1  # episodes of an estimate
        rows = tau.mask.shape[1] // each
        b = self.baseline.predict(self.fitted, tau, 1 if each == 1 else rows)
        order = tau.mask.sum(0).reshape(rows, each).amax(1).argsort()  # alike in length: less padding
        for some in torch.split(order, max(1, NUMBERS // (theta.numel() + each * len(tau.mask) * WIDTH))):
            columns = (some[:, None] * each + torch.arange(each, device=some.device)).flatten()
            part, points = tau.columns(columns).rows(0, len(columns)), theta.expand(len(some), -1)
            part_b = None if b is None else b[: len(part.mask), columns]
            if self.u is None:
                yield self.estimator.gradient(points, part, part_b)
            else:
                yield self.estimator.hessian_vector(points, part, self.u.expand(len(some), -1), part_b)


def episodes(problem: Problem, theta: Tensor, n: int, k: int) -> Trajectories:
    """n episodes at theta [1, D], cut at the problem's horizon, from random numbers that nothing else uses; other k, others."""
    (seed,) = problem.seeds
    (tau,) = replace(problem, seeds=(EPISODES + seed,)).iteration(k).sample(theta, n=n)
    return tau


def first_steps(tau: Trajectories, horizon: int) -> Trajectories:
    """The first `horizon` steps of each episode, for estimators: how an episode ends is not corrected."""
    if len(tau.mask) <= horizon:
        return tau
    names = ("obs", "action", "reward", "mask", "action_mask")
    cut = {name: x[:horizon] for name in names if (x := getattr(tau, name)) is not None and name not in TIMELESS}
    return replace(tau, last=None, **cut)


def fit(baseline: Baseline, batches: Sequence[Trajectories], horizon: int) -> Fitted:
    """The parameters of a baseline, for one seed, after batches of episodes, each cut at `horizon`."""
    fitted = baseline.init(1)
    for tau in batches:
        fitted = baseline.fit(fitted, first_steps(tau, horizon), 1)
    return fitted


def direction(
    agent: Agent,
    problem: Problem,
    theta: Tensor,
    fitted: Fitted,
    replicas: int,
    iterations: int,
    done: Callable[[Tensor], None] = lambda steps: None,
) -> tuple[Sums, Tensor]:
    """The directions of independent replicas of an agent, all begun anew at theta.

    Args:
        agent: the agent.
        problem: its seeds are replaced by those of the replicas.
        theta: [1, D].
        fitted: the baseline's parameters for one seed, from other episodes.
        replicas: how many; each is an estimate, whose cost are the environment steps of its last iteration.
        iterations: the direction of the last of so many is taken, as the agent has a memory.
        done: called after each iteration with the environment steps of each replica in it, [replicas].

    Returns:
        The sums of the last directions, each replica a group, and the first step of each replica, [replicas, D].
    """
    problem = replace(problem, seeds=tuple(range(REPLICA, REPLICA + replicas)))
    state = agent.init(theta.repeat(replicas, 1))
    fitted = {name: x.repeat(replicas, *(1,) * (x.dim() - 1)) for name, x in fitted.items()}
    first = torch.zeros_like(state.theta)
    steps = torch.zeros(replicas)
    for t in range(iterations):
        iteration = problem.iteration(t, fitted)
        state, _ = agent.step(state, iteration)
        fitted, steps = iteration.fit_baseline(), iteration.env_steps()
        first = state.theta - theta if t == 0 else first
        done(steps)
    sums = Sums()
    for d, cost in zip(state.d, steps, strict=True):
        sums.add([d[None]], float(cost))
    return sums, first
