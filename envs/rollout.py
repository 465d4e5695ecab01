"""`rollout(env, act, rng)`: samples a batch of episodes and returns `Trajectories`. It is the only loop over time.

    state = env.reset()
    for t = 0 .. horizon-1:   action = act(state); state = env.step(state, action); record
    until every episode has ended

With `Workers`, other processes run part of the episodes from reset to end, without a barrier between steps. An episode depends
on its own key only, so the number of workers does not change the trajectories (up to rounding, if the episodes of one seed are
split over several processes and the policy's matrix products have another size).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Diverged, Env, EnvironmentFault, State, Trajectories, any_last, to_tensor
from envs.form import flaw
from envs.raised import raised
from envs.random import Rng

ENV, POLICY, RESET = 0, 1, 2  # random streams of an episode
AHEAD = 64  # time steps of noise drawn at once
SHOWN = 4  # the most actions in a message, where it is not known which of them led to a fault


class Act(Protocol):
    """A policy for `rollout`: maps observations [B, *obs] to actions [B, *act].

    `rows(lo, hi)` restricts it to the episodes lo..hi-1, for worker processes. A class that inherits from this one and does not
    define `rows` works in one process only.

    Optional: `watch(ended)` is called before each choice with a bool [B]: the episodes that have ended. Their actions are
    ignored.
    """

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array: ...

    def rows(self, lo: int, hi: int) -> Act:
        why = "episodes of tensor environments are sampled in one process"
        raise NotImplementedError(why)


Job = tuple[Act, Rng, int]  # the work of one process: policy, keys of its episodes, horizon


class EpisodeWorkers(Protocol):
    """Processes that sample episodes in parallel with this one, e.g. `envs.workers.Workers`."""

    @property
    def count(self) -> int: ...

    def play(self, jobs: Sequence[Job], ours: Callable[[], Trajectories]) -> list[Callable[[], Trajectories]]:
        """Start `jobs` in the workers, run `ours` here; return a function for each, `ours` first, that waits for its result."""
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
    """Sample one episode for each row of `rng`.

    Args:
        env: the environment.
        act: the policy.
        rng: B random keys; they determine all randomness.
        horizon: the most steps of an episode; None: `env.horizon`.
        workers: processes with copies of `env`; this process runs a part of the episodes too.
        start: initial states, for environments that keep no state of their own; None: `env.reset`.
        checks: False: check for no faults and read nothing back from the GPU, so that a CUDA graph can capture the rollout.

    Returns:
        Trajectories of B episodes, [T, B, ...], with T at most `horizon`.

    Raises:
        EnvironmentFault: the environment raises, a state has a wrong form or no valid action, or an observation or a reward is
            not finite.
        ValueError: `start` and `workers` are both given.
    """
    horizon = env.horizon if horizon is None else horizon
    n = len(rng)
    shares = min(n, 1 + (workers.count if workers else 0))
    if shares == 1 or workers is None:
        return run_episodes(env, act, rng, horizon, start, checks)
    if start is not None:
        raise ValueError("episodes that begin at given states are sampled in one process: leave `workers` out")
    group = getattr(act, "n", 1)  # rows that share parameters stay together where they can: one product for all of them
    unit = group if n // group >= shares else 1
    cuts = [n // unit * i // shares * unit for i in range(shares + 1)]
    ours, *theirs = [(act.rows(lo, hi), rng.rows(lo, hi), horizon) for lo, hi in itertools.pairwise(cuts)]
    parts: list[Trajectories] = []
    for play, lo in zip(workers.play(theirs, lambda: run_episodes(env, *ours)), cuts, strict=False):
        try:
            parts.append(play())
        except EnvironmentFault as fault:
            raise fault.at(row=None if fault.row is None else fault.row + lo) from fault.__cause__
    return Trajectories.cat(parts)


@torch.no_grad()
def run_episodes(env: Env, act: Act, rng: Rng, horizon: int, start: State | None = None, checks: bool = True) -> Trajectories:
    """`rollout` in one process, without workers; same arguments."""
    numpy, ahead = env.backend == "numpy", min(AHEAD, horizon)
    env_rng = rng.fold(ENV).drawn(ahead, numpy)
    policy_rng = rng.fold(POLICY).drawn(ahead, numpy)
    ends = getattr(env, "terminates", True)
    look = rng.key.device.type == "cpu"  # on a GPU this check would synchronise at every step
    watch = getattr(act, "watch", None) if ends else None
    states: list[State] = []
    actions: list[Array] = []
    ended: list[Array] = []
    try:
        state: Any = start or _called(env.reset, len(rng), rng.fold(RESET).drawn(1, numpy))
        states.append(state)
        ended.append(state.terminated | state.truncated)
        for t in range(horizon):
            if watch is not None:
                watch(ended[-1])
            action = act(state.obs, state.action_mask, policy_rng.at(t))
            actions.append(action)
            state = _called(env.step, state, action, env_rng.at(t))
            states.append(state)
            over = state.terminated | state.truncated if ends else ended[-1]
            ended.append(over)
            if ends and look and (np.count_nonzero(over) == len(over) if numpy else bool(over.all())):
                break
        tau = _stacked(env, states, actions, ended, rng)
    except EnvironmentFault as fault:
        raise _placed(fault, actions) from fault.__cause__
    except Exception as error:
        if wrong := _malformed(env, states, actions, len(rng)):
            raise wrong from error
        raise
    if checks and (wrong := _wrong_form(env, tau, states, actions)):
        raise wrong
    if checks:
        _refuse_non_finite(tau, to_tensor(state.obs))
    return tau


def _stacked(env: Env, states: list[State], actions: list[Array], ended: list[Array], rng: Rng) -> Trajectories:
    """The trajectories of the states before each step and after the last one."""
    numpy, ends, (*before, last) = env.backend == "numpy", getattr(env, "terminates", True), states
    stack: Callable[[list[Array]], Tensor] = (lambda xs: to_tensor(_stack(xs))) if numpy else torch.stack
    at_once = getattr(last, "rewards", None)
    reward = None if at_once is None else at_once(states[1:])
    return Trajectories(
        obs=stack([s.obs for s in before]),
        action=stack(actions),
        reward=stack([s.reward for s in states[1:]]) if reward is None else to_tensor(reward),
        mask=~stack(ended[:-1]).to(rng.key.device)
        if ends
        else torch.ones(len(before), len(rng), dtype=torch.bool, device=rng.key.device),
        terminated=to_tensor(last.terminated),
        truncated=to_tensor(last.truncated),
        action_mask=None if last.action_mask is None else stack([s.action_mask for s in before]),
        last=to_tensor(last.obs),
    )


def _stack(xs: list[Array]) -> Array:
    """np.stack along the first axis, which is slow for many small arrays."""
    if len({x.shape for x in xs}) > 1 or xs[0].ndim == 0:
        return np.stack(xs)
    return np.concatenate(xs).reshape(len(xs), *xs[0].shape)


def _called(method: Any, *args: Any) -> State:
    """The state that an environment's `reset` or `step` returns. Raises EnvironmentFault for whatever it raises."""
    try:
        state: State = method(*args)
    except (EnvironmentFault, Diverged, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise EnvironmentFault(method.__name__, how=raised(error)) from error
    return state


def _placed(fault: EnvironmentFault, actions: list[Array]) -> EnvironmentFault:
    """A fault of the call after these actions, with its step and its action where they are not known yet."""
    if fault.step is not None or not actions:
        return fault if fault.step is not None else fault.at(action="reset")
    action = fault.action
    if action is None and fault.row is not None:
        action = actions[-1][fault.row].tolist()
    elif action is None:  # of the whole batch
        more = ", ..." if len(actions[-1]) > SHOWN else ""
        action = f"actions {', '.join(map(str, actions[-1][:SHOWN].tolist()))}{more}"
    return fault.at(step=len(actions) - 1, action=action)


def _malformed(env: Env, states: list[State], actions: list[Array], n: int) -> EnvironmentFault | None:
    """The fault of the first state that does not have the form of its environment."""
    for t, state in enumerate(states):
        if found := flaw(env, state, n):
            return _placed(EnvironmentFault("state", how=f"returned {found}"), actions[:t])
    return None


def _wrong_form(env: Env, tau: Trajectories, states: list[State], actions: list[Array]) -> EnvironmentFault | None:
    """The fault of trajectories that could be stacked, but not from what an environment should return."""
    T, B = len(actions), len(actions[0])
    shape = env.observation_space.shape or ()
    good = all(isinstance(x, Tensor) for x in (tau.terminated, tau.truncated, tau.last))
    good = good and tau.last is not None and tau.last.shape == (B, *shape)
    good = good and tau.mask.shape == tau.reward.shape == (T, B) and tau.obs.shape == (T, B, *shape)
    good = good and tau.mask.dtype == tau.terminated.dtype == tau.truncated.dtype == torch.bool
    good = good and tau.reward.is_floating_point() and tau.terminated.shape == tau.truncated.shape == (B,)
    return None if good else _malformed(env, states, actions, B)


def _refuse_non_finite(tau: Trajectories, last_obs: Tensor) -> None:
    _refuse("reward", tau.reward, tau, since=0)
    if tau.action_mask is not None and not bool((possible := any_last(tau.action_mask)).all()):
        stuck = tau.mask & ~possible
        if bool(stuck.any()):
            step, row = stuck.nonzero()[0].tolist()
            raise EnvironmentFault("action mask", row, step, how="gave no valid action")
    if tau.obs.is_floating_point():
        _refuse("observation", tau.obs, tau, since=1)  # a faulty observation is due to the action before it
        _refuse("observation", last_obs[None], tau, since=1 - len(tau.mask))


def _refuse(what: str, value: Tensor, tau: Trajectories, since: int) -> None:
    if value.device.type == "cpu" and bool(np.isfinite(value.numpy()).all()):  # a third of the time of torch's
        return
    good = torch.isfinite(value)
    if bool(good.all()):
        return
    good = good.reshape(*value.shape[:2], -1).all(2)
    first, row = (~good).nonzero()[0].tolist()
    step = first - since
    raise EnvironmentFault(what, row, max(step, 0), "reset" if step < 0 else tau.action[step, row].tolist())
