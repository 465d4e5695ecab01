"""`DagProblem`: environment, seeds and batch size of a run; the protocols of methods, and the outcome of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from envs.core import DagEnv, EnvironmentFault, State, Trajectories
from envs.dag.protocols import StartsReward, offers
from envs.random import Rng
from envs.rollout import Act, rollout
from gflownet.rewards.calls import RewardCalls

INIT, ITERATION, EVALUATION = 0, 1, 2  # random streams of a seed
Metrics = dict[str, Tensor | float]


@dataclass(frozen=True)
class DagProblem:
    """All that does not change during a run. All randomness follows from `seeds` and the number of the iteration.

    env         the environment
    seeds       S independent runs that are trained side by side
    batch_size  objects of each seed that a method constructs in an iteration
    iterations  of the whole run, for schedules
    device      of parameters and random keys
    dtype       of parameters
    calls       counts what is asked of the reward
    last        iterations at most, where a run may go on after `iterations` (a budget of calls with objects met again)
    """

    env: DagEnv
    seeds: tuple[int, ...]
    batch_size: int = 16
    iterations: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    calls: RewardCalls = field(default_factory=RewardCalls, compare=False)
    last: int | None = None

    def rng(self, stream: int, t: int | Tensor = 0) -> Rng:
        """Random keys of a stream and an iteration, one for each of the S seeds."""
        return self._streams[stream].fold(t)

    @cached_property
    def _streams(self) -> list[Rng]:
        rng = Rng.of_seeds(self.seeds, self.device)
        rng.dtype = self.dtype
        return [rng.fold(stream) for stream in (INIT, ITERATION, EVALUATION)]

    def play(self, act: Act, rng: Rng, n: int | None = None, start: State | None = None, checks: bool = True) -> Trajectories:
        """Sample complete episodes.

        Args:
            act: the policy.
            rng: one key for each seed.
            n: episodes of each seed; None: `batch_size`.
            start: S·n initial states; None: the source.
            checks: of `rollout`.

        Returns:
            Trajectories [T, S·n], grouped by seed.

        Raises:
            EnvironmentFault: an episode does not end within the environment's horizon.
        """
        n = n or self.batch_size
        try:
            tau = rollout(self.env, act, rng.spawn(n), start=start, checks=checks)
        except EnvironmentFault as fault:
            raise fault.of_seed(self.seeds, n) from fault.__cause__
        if checks and self.device == "cpu" and not bool(tau.terminated.all()):
            row = int((~tau.terminated).nonzero()[0])
            raise EnvironmentFault("end", row, len(tau.mask), how=f"ended no episode within its horizon of {self.env.horizon}")
        return tau

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R of finished objects.

        Args:
            obs: the objects, [M, *obs].

        Returns:
            [M] float64.

        Raises:
            EnvironmentFault: the environment returns something else; on the CPU also for what is not finite, before anything is
                trained on it.
        """
        log_r: Any = self.env.log_reward(obs)
        if not isinstance(log_r, Tensor) or log_r.shape != (len(obs),) or not log_r.is_floating_point():
            got = f"shape {tuple(log_r.shape)} and type {log_r.dtype}" if isinstance(log_r, Tensor) else type(log_r).__name__
            raise EnvironmentFault("log_reward", how=f"returned log-rewards of {got}, expected ({len(obs)},) floats")
        if self.device == "cpu" and not bool((good := torch.isfinite(log_r)).all()):
            at = int((~good).nonzero()[0])
            what = self.env.describe(obs[at : at + 1])[0]
            how = f"says that log R is {float(log_r[at])} at the object {what}, expected a finite number"
            raise EnvironmentFault("log_reward", how=how)
        return log_r

    @property
    def scores_elsewhere(self) -> bool:
        """Whether log-rewards can be computed elsewhere while this process does something else."""
        return offers(self.env, StartsReward) and self.env.elsewhere

    def start_reward(self, obs: Tensor) -> None:
        """Start to compute log R of finished objects obs [M, *obs], where the environment can: `log_reward` then waits."""
        if offers(self.env, StartsReward):
            self.env.start_log_reward(obs)

    def by_seed(self, x: Tensor) -> Tensor:
        """Reshape a batch grouped by seed, [S·n, ...] -> [S, n, ...]."""
        return x.view(len(self.seeds), -1, *x.shape[1:])


class Outcome(NamedTuple):
    """The result of one iteration.

    objects     [S, m, *obs]  the finished objects constructed, in order: all whose reward was evaluated
    log_reward  [S, m] float64
    metrics     tag -> a number, or a tensor [S] with one for each seed
    fault       the batch of an update that was skipped because it was not finite, else empty
    """

    objects: Tensor
    log_reward: Tensor
    metrics: Metrics
    fault: dict[str, Tensor] = {}  # noqa: RUF012  never written to


def skipped_batch(tau: Trajectories, log_reward: Tensor, loss: Tensor, fine: Tensor) -> dict[str, Tensor]:
    """`Outcome.fault`: the batch of an update that was skipped, for diagnosis."""
    assert tau.last is not None
    batch = {"obs": tau.obs, "action": tau.action, "mask": tau.mask, "last": tau.last}
    return {**batch, "log_reward": log_reward, "loss": loss, "fine": fine}


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyperparameters: a GFlowNet, or a baseline.

    init(problem) -> state               a NamedTuple of tensors, numbers and such NamedTuples; checkpoints store it
    step(state, problem, t)              iteration t; it may change the given state in place
    log_pf(state, problem, obs, valid)   [heads, S, M, A] log P_F at M states [M, *obs], or None without a policy; with
                                         several heads, each episode is sampled from one of them
    log_z(state)                         [S] the estimate of log Z, or None

    Optional members are the protocols `EvaluatesActions`, `Acts` and `SearchesLocally`.
    """

    def init(self, problem: DagProblem) -> Any: ...

    def step(self, state: Any, problem: DagProblem, t: int) -> tuple[Any, Outcome]: ...

    def log_pf(self, state: Any, problem: DagProblem, obs: Tensor, valid: Tensor) -> Tensor | None: ...

    def log_z(self, state: Any) -> Tensor | None: ...


@runtime_checkable
class EvaluatesActions(Protocol):
    """A method that can evaluate single actions at a lower cost than all actions of their states."""

    def log_pf_of(self, state: Any, problem: DagProblem, obs: Tensor, valid: Tensor, row: Tensor, action: Tensor) -> Tensor:
        """[heads, S, E] log P_F of action [E] at state row [E] of obs [M, *obs], with valid actions valid [M, A]."""
        ...


@runtime_checkable
class Acts(Protocol):
    """A method that samples faster than by `log_pf`."""

    def actor(self, state: Any, problem: DagProblem, n: int) -> Act | None:
        """The policies without exploration as an Act for S·n episodes, or None."""
        ...


@runtime_checkable
class SearchesLocally(Protocol):
    """A method that constructs a batch of objects again in each of `search_rounds`."""

    @property
    def search_rounds(self) -> int: ...


def objects_per_iteration(method: Method, batch_size: int) -> int:
    """Objects of each seed that one iteration constructs."""
    return batch_size * (1 + method.search_rounds) if isinstance(method, SearchesLocally) else batch_size
