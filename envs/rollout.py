"""rollout(env, act, rng) -> Trajectories: the only loop over time in the repository.

    state = env.reset()
    for t = 0 .. horizon-1:   action = act(state); state = env.step(state, action); write down
    until every episode has ended

An environment with `lanes()` is run on several threads, each with its own share of the episodes from reset to end: no
barrier between steps. An episode depends on its own key only, so the number of lanes does not change what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Env, EnvironmentFault, State, Trajectories, to_tensor
from envs.random import Rng

ENV, POLICY, RESET = 0, 1, 2  # streams of an episode
AHEAD = 64  # time steps of noise drawn at once


class Act(Protocol):
    """Chooses an action for each of B episodes from what is seen; `rows` restricts it to some of them."""

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array: ...

    def rows(self, lo: int, hi: int) -> Act: ...


def rollout(env: Env, act: Act, rng: Rng, horizon: int | None = None) -> Trajectories:
    """Plays one episode for each row of `rng` (its keys decide everything random) for at most `horizon` steps.

    Raises EnvironmentFault when an observation or a reward is not finite.
    """
    horizon = env.horizon if horizon is None else horizon
    n = len(rng)
    lanes: list[Env] = env.lanes()[:n] if hasattr(env, "lanes") else [env]
    if len(lanes) == 1:
        return _journey(lanes[0], act, rng, horizon)
    cuts = [n * i // len(lanes) for i in range(len(lanes) + 1)]
    jobs = [(lane, act.rows(lo, hi), rng.rows(lo, hi)) for lane, lo, hi in zip(lanes, cuts, cuts[1:], strict=False)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        parts = [pool.submit(_journey, *job, horizon) for job in jobs]
        results: list[Trajectories] = []
        for part, lo in zip(parts, cuts, strict=False):
            try:
                results.append(part.result())
            except EnvironmentFault as fault:
                raise EnvironmentFault(fault.what, fault.row + lo, fault.step, fault.action) from None
    return Trajectories.cat(results)


@torch.no_grad()
def _journey(env: Env, act: Act, rng: Rng, horizon: int) -> Trajectories:
    numpy = env.backend == "numpy"
    env_rng = rng.fold(ENV).drawn(AHEAD, numpy)
    policy_rng = rng.fold(POLICY).drawn(AHEAD, numpy)
    ends = getattr(env, "terminates", True)
    state = env.reset(len(rng), rng.fold(RESET).drawn(1, numpy))
    before: list[State] = []
    actions: list[Array] = []
    after: list[State] = []
    for t in range(horizon):
        action = act(state.obs, state.action_mask, policy_rng.at(t))
        before.append(state)
        actions.append(action)
        state = env.step(state, action, env_rng.at(t))
        after.append(state)
        if ends and bool((state.terminated | state.truncated).all()):
            break
    stack: Callable[[list[Array]], Tensor] = (lambda xs: to_tensor(np.stack(xs))) if numpy else torch.stack
    ended = stack([s.terminated | s.truncated for s in before])
    tau = Trajectories(
        obs=stack([s.obs for s in before]),
        action=stack(actions),
        reward=stack([s.reward for s in after]),
        mask=~ended,
        terminated=to_tensor(state.terminated),
        truncated=to_tensor(state.truncated),
        action_mask=None if state.action_mask is None else stack([s.action_mask for s in before]),
    )
    _refuse_non_finite(tau, to_tensor(state.obs))
    return tau


def _refuse_non_finite(tau: Trajectories, last_obs: Tensor) -> None:
    _refuse("reward", tau.reward, tau, since=0)
    if tau.obs.is_floating_point():
        _refuse("observation", tau.obs, tau, since=1)  # an observation shows what the action before it did
        _refuse("observation", last_obs[None], tau, since=1 - len(tau.mask))


def _refuse(what: str, value: Tensor, tau: Trajectories, since: int) -> None:
    good = torch.isfinite(value).reshape(*value.shape[:2], -1).all(2)
    if bool(good.all()):
        return
    first, row = (~good).nonzero()[0].tolist()
    step = first - since
    raise EnvironmentFault(what, row, max(step, 0), "reset" if step < 0 else tau.action[step, row].tolist())
