"""check_env(env): the contract every environment obeys, ours and an outsider's.

    play      n episodes with random legal actions; every state is looked at as it comes
    again     the same keys once more, each key alone, one key per lane, an old state stepped a second time
    compare   to the bit where the same thing ran twice, up to rounding where the batch had another size

A promise that the episodes did not touch (none ended, there is no mask) is not among those that come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from envs.core import Array, Env, State
from envs.random import Rng
from envs.rollout import AHEAD, ENV, POLICY, RESET

CONTRACT = {  # name: (the promise, what to do when it is broken)
    "members": ("the members of envs.core.Env are there", "Add it to the class"),
    "backend": ("backend is 'torch' or 'numpy'", "Say which arrays the environment takes and returns"),
    "horizon": ("horizon is an integer of at least 1", "Say after how many steps an episode is cut"),
    "obs space": ("the observation space is Box, Discrete, MultiDiscrete or MultiBinary", "Flatten it to a Box"),
    "action space": ("the action space is Box, Discrete or MultiDiscrete", "Encode the actions as one of these"),
    "start": ("spaces count from 0", "Leave `start` at 0 and add it inside the environment"),
    "calls": ("reset and step accept n rows and legal actions", "Call them by hand with the arguments of envs.core.Env"),
    "state": ("reset and step return a State", "Return envs.core.State(obs, reward, terminated, truncated, inner)"),
    "arrays": ("arrays are tensors for 'torch' and ndarrays for 'numpy'", "Convert them, or change `backend`"),
    "shapes": ("one row per episode, obs of the shape of its space, a mask with a column per action", "Return [B, ...]"),
    "flags": ("flags and masks are bool", "Compare instead of computing, or convert with .bool() or astype(bool)"),
    "reward type": ("reward is of a floating-point type", "Convert it"),
    "obs type": ("obs has the type of its space", "Convert obs, or declare the space with the type of obs"),
    "finite obs": ("observations are finite", "Find the division or overflow behind it, or end the episode before"),
    "obs inside": ("observations lie in their space", "Widen the space, or correct the observation"),
    "finite reward": ("rewards are finite", "Find the division or overflow behind it"),
    "no reward": ("reward is 0 after reset", "Return zeros"),
    "mask": ("an action mask is there always or never", "Return a mask of True where all actions are legal"),
    "legal": ("every row has a legal action", "Keep the last mask of an episode that ended"),
    "terminates": ("no episode ends before the horizon if terminates = False", "Leave out `terminates`, or set it to True"),
    "sticky": ("the flags of an ended episode stay", "Carry them over from the state that is handed in"),
    "unpaid": ("an ended episode brings reward 0", "Step the rows that have not ended, and no other"),
    "kept": ("an ended episode keeps its last observation", "Step the rows that have not ended, and reset none"),
    "stable": ("a state that was handed out does not change", "Return new arrays, not a buffer that is filled again"),
    "repeats": ("the same keys and actions give the same states", "Draw from the rng handed in; let reset forget the past"),
    "alone": ("an episode is the same alone and in company", "Let row i depend on key i and action i only"),
    "input": ("step does not modify the state it is given", "Compute new tensors; nothing in place on state.inner"),
    "functional": ("an old state can be stepped again, with the same result", "Keep all that step needs in state.inner"),
    "stale": ("an old state is refused, or steps to the same result", "Let inner be a ticket, and raise when it is stale"),
    "overshoot": ("actions beyond the bounds of a Box are accepted", "Clip inside step: a Gaussian policy is not clipped"),
}
SEEN = ("obs", "reward", "terminated", "truncated", "action_mask")


class ContractError(ValueError):
    """The promise that an environment broke, what it did instead, and what to do. `name` is its name in the contract."""

    def __init__(self, name: str, got: str, contract: dict[str, tuple[str, str]] = CONTRACT) -> None:
        promise, advice = contract[name]
        super().__init__(f"broken promise: {promise}; got {got}. {advice}.")
        self.name = name


@dataclass(frozen=True)
class Ledger:
    """The promises kept so far."""

    contract: dict[str, tuple[str, str]] = field(default_factory=lambda: CONTRACT)
    kept: dict[str, None] = field(default_factory=dict)

    def hold(self, name: str, kept: Any, *got: Any) -> None:
        if not kept:
            raise ContractError(name, " ".join(str(x.tolist() if isinstance(x, np.ndarray) else x) for x in got), self.contract)
        self.kept[name] = None


@dataclass(frozen=True)
class RandomAct:
    """An Act of `rollout`: every legal action with equal chance; a Box without bounds gets standard normals."""

    space: Any
    numpy: bool

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        if isinstance(self.space, Discrete):
            u = _numpy(rng.uniform(int(self.space.n)))
            action = (u if action_mask is None else np.where(_numpy(action_mask), u, -1.0)).argmax(1)
        elif isinstance(self.space, MultiDiscrete):
            action = np.floor(_numpy(rng.uniform(*self.space.shape)) * self.space.nvec).astype(np.int64)
        else:
            low, high = self.space.low, self.space.high
            u, z = _numpy(rng.uniform(*self.space.shape)), _numpy(rng.normal(*self.space.shape))
            bounded = np.isfinite(low) & np.isfinite(high)
            action = np.where(bounded, low + u * np.where(bounded, high - low, 0.0), np.clip(z, low, high)).astype(low.dtype)
        return action if self.numpy else torch.from_numpy(action).to(obs.device)

    def rows(self, lo: int, hi: int) -> RandomAct:
        return self


def check_env(env: Env, n: int = 4, steps: int = 64, seed: int = 0, *, device: torch.device | str = "cpu") -> list[str]:
    """The promises that `env` kept over n episodes of at most `steps` steps (and at most its horizon).

    n       at least 2: company matters
    device  of the random keys, where a torch environment wants them elsewhere than on the CPU

    Raises ContractError at the first broken promise.
    """
    if n < 2 or steps < 1:
        raise ValueError(f"n is {n} and steps is {steps}, expected n >= 2 and steps >= 1")
    ledger = Ledger()
    _declarations(env, ledger)
    rng = Rng.of_seeds([seed * n + i for i in range(n)], device)
    steps = min(steps, env.horizon)
    states, seen = list[State](), list[State]()
    for t, (state, _) in enumerate(_play(env, rng, steps, ledger)):
        _form(env, state, n, t, ledger)
        states.append(state)
        seen.append(_snapshot(state))
        _content(env, seen, ledger)
    now, again = [_snapshot(s) for s in states], [_snapshot(s) for s, _ in _play(env, rng, steps, ledger)]
    ledger.hold("stable", _same(seen, now), _difference(seen, now))
    ledger.hold("repeats", _same(seen, again), _difference(seen, again))
    for i in range(n):
        alone = [_snapshot(s) for s, _ in _play(env, rng.rows(i, i + 1), steps, ledger)]
        ours = [_snapshot(s, slice(i, i + 1)) for s in seen]
        ledger.hold("alone", _same(ours, alone, exact=False), _difference(ours, alone), "of row", i)
    _old_states(env, rng, min(steps, 8), ledger)
    _overshoot(env, rng, ledger)
    return [CONTRACT[name][0] for name in ledger.kept]


def _streams(env: Env, rng: Rng) -> tuple[Rng, Rng, Rng]:
    """The streams that `rollout` hands to step, to the policy and to reset."""
    numpy = env.backend == "numpy"
    return rng.fold(ENV).drawn(AHEAD, numpy), rng.fold(POLICY).drawn(AHEAD, numpy), rng.fold(RESET).drawn(1, numpy)


def _play(env: Env, rng: Rng, steps: int, ledger: Ledger) -> Iterator[tuple[State, Array]]:
    """Each state with the action that led to it."""
    env_rng, policy_rng, reset_rng = _streams(env, rng)
    act = RandomAct(env.action_space, env.backend == "numpy")
    state = _call(ledger, "calls", env.reset, len(rng), reset_rng)
    yield state, None
    for t in range(steps):
        action = act(state.obs, state.action_mask, policy_rng.at(t))
        state = _call(ledger, "calls", env.step, state, action, env_rng.at(t))
        yield state, action


def _call(ledger: Ledger, name: str, method: Any, *args: Any) -> State:
    try:
        state: State = method(*args)
    except Exception as fault:
        raise ContractError(name, f"{type(fault).__name__} from {method.__name__}: {fault}") from fault
    ledger.hold(name, True)
    ledger.hold("state", all(hasattr(state, x) for x in (*SEEN, "inner")), type(state).__name__, "from", method.__name__)
    return state


def _declarations(env: Env, ledger: Ledger) -> None:
    for name in ("backend", "observation_space", "action_space", "horizon", "reset", "step"):
        ledger.hold("members", hasattr(env, name), "no", name)
    ledger.hold("backend", env.backend in ("torch", "numpy"), repr(env.backend))
    ledger.hold("horizon", isinstance(env.horizon, int) and env.horizon >= 1, repr(env.horizon))
    space, actions = env.observation_space, env.action_space
    ledger.hold("obs space", isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary), space)
    ledger.hold("action space", isinstance(actions, Box | Discrete | MultiDiscrete), actions)
    ledger.hold("start", not any(np.any(getattr(x, "start", 0)) for x in (space, actions)), space, actions)


def _form(env: Env, state: State, n: int, t: int, ledger: Ledger) -> None:
    """Kinds, shapes and types of the arrays of a state after t steps."""
    at, kind = f"after {t} steps", Tensor if env.backend == "torch" else np.ndarray
    space, actions = env.observation_space, env.action_space
    arrays: dict[str, Any] = {name: getattr(state, name) for name in SEEN}
    shapes: dict[str, Any] = dict.fromkeys(SEEN, (n,)) | {"obs": (n, *(space.shape or ()))}
    shapes["action_mask"] = (n, int(actions.n)) if isinstance(actions, Discrete) else "no mask"
    if state.action_mask is None:
        del arrays["action_mask"]
    for name, x in arrays.items():
        ledger.hold("arrays", isinstance(x, kind), name, "of type", type(x).__name__, at)
        ledger.hold("shapes", tuple(x.shape) == shapes[name], name, tuple(x.shape), "and not", shapes[name], at)
    types = {name: str(x.dtype).removeprefix("torch.") for name, x in arrays.items()}
    for name in types.keys() - {"obs", "reward"}:
        ledger.hold("flags", types[name] == "bool", name, "of type", types[name], at)
    ledger.hold("reward type", types["reward"].startswith("float"), types["reward"], at)
    ledger.hold("obs type", types["obs"] == str(space.dtype), types["obs"], "in", space, at)


def _content(env: Env, seen: list[State], ledger: Ledger) -> None:
    """What the newest state says, by itself and after the one before it."""
    new, t, at = seen[-1], len(seen) - 1, f"after {len(seen) - 1} steps"
    if np.issubdtype(new.obs.dtype, np.floating):
        ledger.hold("finite obs", np.isfinite(new.obs).all(), new.obs, at)
    outside = [i for i, row in enumerate(new.obs) if row not in env.observation_space]
    ledger.hold("obs inside", not outside, new.obs[outside], "outside", env.observation_space, at)
    ledger.hold("finite reward", np.isfinite(new.reward).all(), new.reward, at)
    ledger.hold("mask", (new.action_mask is None) == (seen[0].action_mask is None), "a change", at)
    if new.action_mask is not None:
        ledger.hold("legal", new.action_mask.any(1).all(), new.action_mask.astype(int), at)
    if not getattr(env, "terminates", True) and t < env.horizon:
        ledger.hold("terminates", not (new.terminated | new.truncated).any(), "an end", at)
    ledger.hold("no reward", t > 0 or not new.reward.any(), new.reward)
    before = seen[max(t - 1, 0)]
    over = before.terminated | before.truncated
    if t > 0 and over.any():
        for name in ("terminated", "truncated"):
            ledger.hold("sticky", _same(getattr(new, name)[over], getattr(before, name)[over]), name, "changed", at)
        ledger.hold("unpaid", not new.reward[over].any(), new.reward[over], at)
        ledger.hold("kept", _same(new.obs[over], before.obs[over]), new.obs[over], "and not", before.obs[over], at)


def _old_states(env: Env, rng: Rng, steps: int, ledger: Ledger) -> None:
    """Old states, stepped once more: a functional environment repeats itself, a ticket is refused."""
    functional = env.backend == "torch"
    told = [(state, action, deepcopy(state) if functional else state) for state, action in _play(env, rng, steps, ledger)]
    ledger.hold("input", all(_same(copy, state) for state, _, copy in told), "another state than before the step")
    expected = [_snapshot(state) for state, _, _ in told]
    promise, env_rng = "functional" if functional else "stale", _streams(env, rng)[0]

    def again(t: int) -> None:
        try:
            result = _snapshot(env.step(told[t][0], told[t + 1][1], env_rng.at(t)))
        except Exception as refusal:
            ledger.hold(promise, not functional, f"{type(refusal).__name__}: {refusal}")
        else:
            ledger.hold(promise, _same(expected[t + 1], result), f"another state from step {t}")

    for t in range(steps):
        again(t)
    env.reset(len(rng), _streams(env, rng.fold(len(CONTRACT)))[2])  # other episodes, the same ticket numbers
    again(0)


def _overshoot(env: Env, rng: Rng, ledger: Ledger) -> None:
    if not isinstance(env.action_space, Box):
        return
    env_rng, _, reset_rng = _streams(env, rng)
    state = env.reset(len(rng), reset_rng)
    high = np.where(np.isfinite(env.action_space.high), env.action_space.high + 1, 1e3).astype(env.action_space.dtype)
    action: Array = np.stack([high] * len(rng))
    action = action if env.backend == "numpy" else torch.from_numpy(action).to(state.obs.device)
    new = _snapshot(_call(ledger, "overshoot", env.step, state, action, env_rng.at(0)))
    ledger.hold("overshoot", np.isfinite(new.obs).all() and np.isfinite(new.reward).all(), "NaN or infinity")


def _numpy(x: Array) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def _snapshot(state: State, rows: slice = slice(None)) -> State:
    """What an agent may see of a state, copied."""
    return State(**{name: None if (x := getattr(state, name)) is None else np.array(_numpy(x)[rows]) for name in SEEN})


def _same(a: Any, b: Any, exact: bool = True) -> bool:
    """Equal through and through; `exact=False` lets floats differ by rounding. Of an unknown object nothing is said."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor | np.ndarray):
        a, b = _numpy(a), _numpy(b)
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
