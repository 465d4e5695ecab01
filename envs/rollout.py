"""rollout(env, act, rng) -> Trajectories: the only loop over time in the repository.

    state = env.reset()
    for t = 0 .. horizon-1:   action = act(state); state = env.step(state, action); write down
    until every episode has ended

With `Workers`, shares of the episodes are played side by side in other processes, each from reset to end: no barrier between
steps. An episode depends on its own key only, so the number of workers does not change what happens (up to rounding, where a
policy's products are cut through the middle of a seed's episodes).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Env, EnvironmentFault, State, Trajectories, any_last, to_tensor
from envs.random import Rng

ENV, POLICY, RESET = 0, 1, 2  # streams of an episode
AHEAD = 64  # time steps of noise drawn at once


class Act(Protocol):
    """Chooses an action for each of B episodes from what is seen; `rows` restricts it to some of them, for worker processes.

    A class that inherits from this one and leaves `rows` out is for one process.

    Optional: `watch(ended)` is told before each choice which episodes have ended [B], whose actions nobody will look at.
    """

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array: ...

    def rows(self, lo: int, hi: int) -> Act:
        why = "episodes of tensor worlds are played in one process"
        raise NotImplementedError(why)


Job = tuple[Act, Rng, int]  # what one process samples: the policy, the keys of its episodes, the horizon


class EpisodeWorkers(Protocol):
    """Processes that sample episodes beside this one, e.g. `envs.workers.Workers`."""

    @property
    def count(self) -> int: ...

    def play(self, jobs: Sequence[Job], ours: Callable[[], Trajectories]) -> list[Callable[[], Trajectories]]:
        """Start `jobs`, run `ours` here; for each, ours first, a function that waits for its result."""
        ...


def rollout(
    env: Env,
    act: Act,
    rng: Rng,
    horizon: int | None = None,
    workers: EpisodeWorkers | None = None,
    start: State | None = None,
    checks: bool = True,
) -> Trajectories:
    """Plays one episode for each row of `rng` (its keys decide everything random) for at most `horizon` steps.

    workers  hold copies of `env`; this process plays a share as well
    start    where the episodes begin (environments that keep nothing outside their states); default: `env.reset`
    checks   False: no number is read back from a GPU, so that the rollout can be captured in a CUDA graph; faults pass unseen
    Raises EnvironmentFault when an observation or a reward is not finite, or no action is legal.
    """
    horizon = env.horizon if horizon is None else horizon
    n = len(rng)
    shares = min(n, 1 + (workers.count if workers else 0))
    if shares == 1 or workers is None:
        return run_episodes(env, act, rng, horizon, start, checks)
    if start is not None:
        raise ValueError("episodes that begin at given states are played in one process: leave `workers` out")
    group = getattr(act, "n", 1)  # rows that share parameters stay together where they can: one product for all of them
    unit = group if n // group >= shares else 1
    cuts = [n // unit * i // shares * unit for i in range(shares + 1)]
    ours, *theirs = [(act.rows(lo, hi), rng.rows(lo, hi), horizon) for lo, hi in itertools.pairwise(cuts)]
    parts: list[Trajectories] = []
    for play, lo in zip(workers.play(theirs, lambda: run_episodes(env, *ours)), cuts, strict=False):
        try:
            parts.append(play())
        except EnvironmentFault as fault:
            raise EnvironmentFault(fault.what, fault.row + lo, fault.step, fault.action) from None
    return Trajectories.cat(parts)


@torch.no_grad()
def run_episodes(env: Env, act: Act, rng: Rng, horizon: int, start: State | None = None, checks: bool = True) -> Trajectories:
    """One process's share of `rollout`."""
    numpy, ahead = env.backend == "numpy", min(AHEAD, horizon)
    env_rng = rng.fold(ENV).drawn(ahead, numpy)
    policy_rng = rng.fold(POLICY).drawn(ahead, numpy)
    ends = getattr(env, "terminates", True)
    look = rng.key.device.type == "cpu"  # elsewhere asking whether all have ended would stop the queue at every step
    state = start or env.reset(len(rng), rng.fold(RESET).drawn(1, numpy))
    watch = getattr(act, "watch", None) if ends else None
    before: list[State] = []
    actions: list[Array] = []
    rewards: list[Array] = []
    ended: list[Array] = [state.terminated | state.truncated]
    for t in range(horizon):
        if watch is not None:
            watch(ended[-1])
        action = act(state.obs, state.action_mask, policy_rng.at(t))
        before.append(state)
        actions.append(action)
        state = env.step(state, action, env_rng.at(t))
        rewards.append(state.reward)
        ended.append(state.terminated | state.truncated if ends else ended[-1])
        if ends and look and bool(ended[-1].all()):
            break
    stack: Callable[[list[Array]], Tensor] = (lambda xs: to_tensor(np.stack(xs))) if numpy else torch.stack
    tau = Trajectories(
        obs=stack([s.obs for s in before]),
        action=stack(actions),
        reward=stack(rewards),
        mask=~stack(ended[:-1]).to(rng.key.device)
        if ends
        else torch.ones(len(before), len(rng), dtype=torch.bool, device=rng.key.device),
        terminated=to_tensor(state.terminated),
        truncated=to_tensor(state.truncated),
        action_mask=None if state.action_mask is None else stack([s.action_mask for s in before]),
        last=to_tensor(state.obs),
    )
    if checks:
        _refuse_non_finite(tau, to_tensor(state.obs))
    return tau


def _refuse_non_finite(tau: Trajectories, last_obs: Tensor) -> None:
    _refuse("reward", tau.reward, tau, since=0)
    if tau.action_mask is not None and not bool((possible := any_last(tau.action_mask)).all()):
        stuck = tau.mask & ~possible
        if bool(stuck.any()):
            step, row = stuck.nonzero()[0].tolist()
            raise EnvironmentFault("action mask (nothing is legal)", row, step, "those before")
    if tau.obs.is_floating_point():
        _refuse("observation", tau.obs, tau, since=1)  # an observation shows what the action before it did
        _refuse("observation", last_obs[None], tau, since=1 - len(tau.mask))


def _refuse(what: str, value: Tensor, tau: Trajectories, since: int) -> None:
    good = torch.isfinite(value)
    if bool(good.all()):
        return
    good = good.reshape(*value.shape[:2], -1).all(2)
    first, row = (~good).nonzero()[0].tolist()
    step = first - since
    raise EnvironmentFault(what, row, max(step, 0), "reset" if step < 0 else tau.action[step, row].tolist())
