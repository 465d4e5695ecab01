"""`check_env`: tests whether an environment satisfies the contract of `envs.core.Env`.

    run       n episodes with random valid actions; check every state
    repeat    the same keys again, each key alone, and old states stepped a second time
    compare   bit for bit where the same batch ran twice, up to rounding where the batch size differs

Checks that the episodes could not exercise (no episode ended, no mask) are not reported as passed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from envs.core import Array, Env, State, to_numpy
from envs.form import SEEN, form
from envs.raised import raised
from envs.random import Rng
from envs.rollout import AHEAD, ENV, POLICY, RESET

CONTRACT = {  # name: (the requirement, what to do when it is violated)
    "members": ("the members of envs.core.Env exist", "Add it to the class"),
    "backend": ("backend is 'torch' or 'numpy'", "Name the kind of arrays that the environment takes and returns"),
    "horizon": ("horizon is an integer of at least 1", "Set the number of steps after which an episode is truncated"),
    "obs space": ("the observation space is Box, Discrete, MultiDiscrete or MultiBinary", "Flatten it to a Box"),
    "action space": ("the action space is Box, Discrete or MultiDiscrete", "Encode the actions as one of these"),
    "start": ("spaces count from 0", "Leave `start` at 0 and add it inside the environment"),
    "calls": ("reset and step accept n rows and valid actions", "Call them by hand with the arguments of envs.core.Env"),
    "state": ("reset and step return a State", "Return envs.core.State(obs, reward, terminated, truncated, inner)"),
    "arrays": ("arrays are tensors for 'torch' and ndarrays for 'numpy'", "Convert them, or change `backend`"),
    "shapes": ("one row per episode, obs of the shape of its space, a mask with a column per action", "Return [B, ...]"),
    "flags": ("flags and masks are bool", "Convert with .bool() or astype(bool)"),
    "reward type": ("reward is of a floating-point type", "Convert it"),
    "obs type": ("obs has the type of its space", "Convert obs, or declare the space with the type of obs"),
    "finite obs": ("observations are finite", "Look for a division by zero or an overflow, or end the episode earlier"),
    "obs inside": ("observations lie in their space", "Widen the space, or correct the observation"),
    "finite reward": ("rewards are finite", "Look for a division by zero or an overflow"),
    "no reward": ("reward is 0 after reset", "Return zeros"),
    "mask": ("all states have an action mask, or none has", "Return a mask of True where all actions are valid"),
    "valid": ("every row has a valid action", "Keep the last mask of an episode that ended"),
    "terminates": ("no episode ends before the horizon if terminates = False", "Remove `terminates`, or set it to True"),
    "sticky": ("the flags of an ended episode stay set", "Copy them from the state that step is given"),
    "reward after end": ("the reward is 0 after the end of an episode", "Step only the rows that have not ended"),
    "unchanged": ("an ended episode keeps its last observation", "Step only the rows that have not ended, and reset none"),
    "stable": ("a returned state does not change later", "Return new arrays, not a buffer that is reused"),
    "repeats": ("the same keys and actions give the same states", "Draw from the given rng only; keep no state across resets"),
    "alone": ("an episode does not depend on the other rows of its batch", "Let row i depend on key i and action i only"),
    "input": ("step does not modify the state it is given", "Compute new tensors; change nothing in state.inner in place"),
    "functional": ("an old state can be stepped again, with the same result", "Keep everything that step needs in state.inner"),
    "stale": ("stepping an old state raises, or gives the same result", "Put a counter into inner, and raise when it is old"),
    "overshoot": ("actions beyond the bounds of a Box are accepted", "Clip inside step: a Gaussian policy is not clipped"),
}


class ContractError(ValueError):
    """An environment failed a check. The message says what was expected, what was found, and what to do.

    `name` is the key of the check in its contract.
    """

    def __init__(self, name: str, got: str, contract: dict[str, tuple[str, str]] = CONTRACT) -> None:
        requirement, advice = contract[name]
        super().__init__(f"failed check: {requirement}; got {got}. {advice}.")
        self.name = name


@dataclass(frozen=True)
class Checks:
    """The checks passed so far."""

    contract: dict[str, tuple[str, str]] = field(default_factory=lambda: CONTRACT)
    passed: dict[str, None] = field(default_factory=dict)

    def require(self, name: str, passed: Any, *got: Any) -> None:
        """Record the check `name` as passed, or raise ContractError with `got` in its message."""
        if not passed:
            raise ContractError(name, " ".join(str(x.tolist() if isinstance(x, np.ndarray) else x) for x in got), self.contract)
        self.passed[name] = None


@dataclass(frozen=True)
class RandomAct:
    """A random policy for `rollout`: uniform over valid actions or a bounded Box, standard normal where a Box has no bounds."""

    space: Any
    numpy: bool

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        if isinstance(self.space, Discrete):
            u = to_numpy(rng.uniform(int(self.space.n)))
            action = (u if action_mask is None else np.where(to_numpy(action_mask), u, -1.0)).argmax(1)
        elif isinstance(self.space, MultiDiscrete):
            action = np.floor(to_numpy(rng.uniform(*self.space.shape)) * self.space.nvec).astype(np.int64)
        else:
            low, high = self.space.low, self.space.high
            u, z = to_numpy(rng.uniform(*self.space.shape)), to_numpy(rng.normal(*self.space.shape))
            bounded = np.isfinite(low) & np.isfinite(high)
            action = np.where(bounded, low + u * np.where(bounded, high - low, 0.0), np.clip(z, low, high)).astype(low.dtype)
        return action if self.numpy else torch.from_numpy(action).to(obs.device)

    def rows(self, lo: int, hi: int) -> RandomAct:
        return self


def check_env(env: Env, n: int = 4, steps: int = 64, seed: int = 0, *, device: torch.device | str = "cpu") -> list[str]:
    """Test whether an environment satisfies the contract of `envs.core.Env`.

    Args:
        env: the environment.
        n: episodes, at least 2, so that the independence of rows is tested.
        steps: the most steps of an episode; the environment's horizon also applies.
        seed: of the episodes' keys.
        device: of the random keys, for torch environments that are not on the CPU.

    Returns:
        The checks that passed, one sentence each.

    Raises:
        ContractError: at the first check that fails.
        ValueError: `n` or `steps` is out of range.
    """
    if n < 2 or steps < 1:
        raise ValueError(f"n is {n} and steps is {steps}, expected n >= 2 and steps >= 1")
    checks = Checks()
    _declarations(env, checks)
    rng = Rng.of_seeds([seed * n + i for i in range(n)], device)
    steps = min(steps, env.horizon)
    states, seen = list[State](), list[State]()
    for t, (state, _) in enumerate(_play(env, rng, steps, checks)):
        _form(env, state, n, t, checks)
        states.append(state)
        seen.append(_snapshot(state))
        _content(env, seen, checks)
    now, again = [_snapshot(s) for s in states], [_snapshot(s) for s, _ in _play(env, rng, steps, checks)]
    checks.require("stable", _same(seen, now), _difference(seen, now))
    checks.require("repeats", _same(seen, again), _difference(seen, again))
    for i in range(n):
        alone = [_snapshot(s) for s, _ in _play(env, rng.rows(i, i + 1), steps, checks)]
        ours = [_snapshot(s, slice(i, i + 1)) for s in seen]
        checks.require("alone", _same(ours, alone, exact=False), _difference(ours, alone), "of row", i)
    _old_states(env, rng, min(steps, 8), checks)
    _overshoot(env, rng, checks)
    return [CONTRACT[name][0] for name in checks.passed]


def check_briefly(env: Env, seconds: float = 0.5, *, device: torch.device | str = "cpu") -> bool:
    """Test an environment before it is used: `check_env` with few episodes, or one step alone where a step is slow.

    Args:
        env: the environment.
        seconds: about how long the check may take; one reset and one step are always made.
        device: of the random keys, for torch environments that are not on the CPU.

    Returns:
        Whether there was time for `check_env`.

    Raises:
        ContractError: at the first check that fails.
    """
    checks, n = Checks(), 2
    _declarations(env, checks)
    started, seen = time.monotonic(), list[State]()
    for t, (state, _) in enumerate(_play(env, Rng.of_seeds(range(n), device), 1, checks)):
        _form(env, state, n, t, checks)
        seen.append(_snapshot(state))
        _content(env, seen, checks)
    passes = 6  # how often check_env plays its episodes
    steps = int(seconds / (passes * max(time.monotonic() - started, 1e-6)))
    if steps > 0:
        check_env(env, n, min(steps, 16), device=device)
    return steps > 0


def _streams(env: Env, rng: Rng) -> tuple[Rng, Rng, Rng]:
    """The random streams for step, policy and reset, the same as in `rollout`."""
    numpy = env.backend == "numpy"
    return rng.fold(ENV).drawn(AHEAD, numpy), rng.fold(POLICY).drawn(AHEAD, numpy), rng.fold(RESET).drawn(1, numpy)


def _play(env: Env, rng: Rng, steps: int, checks: Checks) -> Iterator[tuple[State, Array]]:
    """Yield each state with the action that led to it (None for the first)."""
    env_rng, policy_rng, reset_rng = _streams(env, rng)
    act = RandomAct(env.action_space, env.backend == "numpy")
    state = _call(checks, "calls", env.reset, len(rng), reset_rng)
    yield state, None
    for t in range(steps):
        action = act(state.obs, state.action_mask, policy_rng.at(t))
        state = _call(checks, "calls", env.step, state, action, env_rng.at(t))
        yield state, action


def _call(checks: Checks, name: str, method: Any, *args: Any) -> State:
    try:
        state: State = method(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as fault:
        raise ContractError(name, f"that {getattr(method, '__name__', 'a call')} {raised(fault)}") from fault
    checks.require(name, True)
    checks.require("state", all(hasattr(state, x) for x in (*SEEN, "inner")), type(state).__name__, "from", method.__name__)
    return state


def _declarations(env: Env, checks: Checks) -> None:
    for name in ("backend", "observation_space", "action_space", "horizon", "reset", "step"):
        checks.require("members", hasattr(env, name), "no", name)
    checks.require("backend", env.backend in ("torch", "numpy"), repr(env.backend))
    checks.require("horizon", isinstance(env.horizon, int) and env.horizon >= 1, repr(env.horizon))
    space, actions = env.observation_space, env.action_space
    checks.require("obs space", isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary), space)
    checks.require("action space", isinstance(actions, Box | Discrete | MultiDiscrete), actions)
    checks.require("start", not any(np.any(getattr(x, "start", 0)) for x in (space, actions)), space, actions)


def _form(env: Env, state: State, n: int, t: int, checks: Checks) -> None:
    """Check the kinds, shapes and dtypes of the arrays of a state after t steps."""
    for name, holds, found in form(env, state, n):
        checks.require(name, holds, found, f"after {t} steps")


def _content(env: Env, seen: list[State], checks: Checks) -> None:
    """Check the values of the newest state, alone and against the state before it."""
    new, t, at = seen[-1], len(seen) - 1, f"after {len(seen) - 1} steps"
    if np.issubdtype(new.obs.dtype, np.floating):
        checks.require("finite obs", np.isfinite(new.obs).all(), new.obs, at)
    outside = [i for i, row in enumerate(new.obs) if row not in env.observation_space]
    checks.require("obs inside", not outside, new.obs[outside], "outside", env.observation_space, at)
    checks.require("finite reward", np.isfinite(new.reward).all(), new.reward, at)
    checks.require("mask", (new.action_mask is None) == (seen[0].action_mask is None), "a change", at)
    if new.action_mask is not None:
        checks.require("valid", new.action_mask.any(1).all(), new.action_mask.astype(int), at)
    if not getattr(env, "terminates", True) and t < env.horizon:
        checks.require("terminates", not (new.terminated | new.truncated).any(), "an end", at)
    checks.require("no reward", t > 0 or not new.reward.any(), new.reward)
    before = seen[max(t - 1, 0)]
    over = before.terminated | before.truncated
    if t > 0 and over.any():
        for name in ("terminated", "truncated"):
            checks.require("sticky", _same(getattr(new, name)[over], getattr(before, name)[over]), name, "changed", at)
        checks.require("reward after end", not new.reward[over].any(), new.reward[over], at)
        checks.require("unchanged", _same(new.obs[over], before.obs[over]), new.obs[over], "and not", before.obs[over], at)


def _old_states(env: Env, rng: Rng, steps: int, checks: Checks) -> None:
    """Step old states again: functional environments must give the same result, the others may refuse."""
    functional = env.backend == "torch"
    stepped = [(state, action, deepcopy(state) if functional else state) for state, action in _play(env, rng, steps, checks)]
    checks.require("input", all(_same(copy, state) for state, _, copy in stepped), "another state than before the step")
    expected = [_snapshot(state) for state, _, _ in stepped]
    name, env_rng = "functional" if functional else "stale", _streams(env, rng)[0]

    def again(t: int) -> None:
        try:
            result = _snapshot(env.step(stepped[t][0], stepped[t + 1][1], env_rng.at(t)))
        except Exception as refusal:
            checks.require(name, not functional, f"{type(refusal).__name__}: {refusal}")
        else:
            checks.require(name, _same(expected[t + 1], result), f"another state from step {t}")

    for t in range(steps):
        again(t)
    env.reset(len(rng), _streams(env, rng.fold(len(CONTRACT)))[2])  # other episodes, whose tickets may have the same numbers
    again(0)


def _overshoot(env: Env, rng: Rng, checks: Checks) -> None:
    if not isinstance(env.action_space, Box):
        return
    env_rng, _, reset_rng = _streams(env, rng)
    state = env.reset(len(rng), reset_rng)
    high = np.where(np.isfinite(env.action_space.high), env.action_space.high + 1, 1e3).astype(env.action_space.dtype)
    action: Array = np.stack([high] * len(rng))
    action = action if env.backend == "numpy" else torch.from_numpy(action).to(state.obs.device)
    new = _snapshot(_call(checks, "overshoot", env.step, state, action, env_rng.at(0)))
    checks.require("overshoot", np.isfinite(new.obs).all() and np.isfinite(new.reward).all(), "NaN or infinity")


def _snapshot(state: State, rows: slice = slice(None)) -> State:
    """A copy of the fields of a state that an agent may see, as numpy arrays."""
    return State(**{name: None if (x := getattr(state, name)) is None else np.array(to_numpy(x)[rows]) for name in SEEN})


def _same(a: Any, b: Any, exact: bool = True) -> bool:
    """Whether two values are equal, recursively. `exact=False`: up to rounding. Objects of unknown type count as equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor | np.ndarray):
        a, b = to_numpy(a), to_numpy(b)
        if not exact and np.issubdtype(a.dtype, np.floating):
            return a.shape == b.shape and np.allclose(a, b, 1e-4, 1e-5, equal_nan=True)
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if is_dataclass(a) and hasattr(a, "__dict__"):
        a, b = vars(a), vars(b)
    if isinstance(a, list | tuple):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(x, b[key], exact) for key, x in a.items())
    return not isinstance(a, int | float | str) or a == b


def _difference(a: list[State], b: list[State]) -> str:
    for t, (x, y) in enumerate(zip(a, b, strict=True)):
        for name in SEEN:
            if not _same(getattr(x, name), getattr(y, name)):
                return f"another {name} after {t} steps"
    return "no difference"
