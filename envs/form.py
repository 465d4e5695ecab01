"""The form of a State: the kinds, shapes and types of its arrays, which an environment's spaces and backend decide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete
from torch import Tensor

from envs.core import Env, State

SEEN = ("obs", "reward", "terminated", "truncated", "action_mask")


def form(env: Env, state: Any, n: int) -> Iterator[tuple[str, bool, str]]:
    """Examine the state of n episodes.

    Yields:
        (key of `envs.check.CONTRACT`, whether it holds, what was found); what comes after the first that does not hold is
        without meaning.
    """
    yield "state", all(hasattr(state, x) for x in (*SEEN, "inner")), f"a {type(state).__name__}, expected a State"
    kind: Any = Tensor if env.backend == "torch" else np.ndarray
    arrays: dict[str, Any] = {name: getattr(state, name) for name in SEEN}
    if arrays["action_mask"] is None:
        del arrays["action_mask"]
    for name, x in arrays.items():
        yield "arrays", isinstance(x, kind), f"{name} of type {type(x).__name__}, expected {kind.__name__}"
        wanted = _shape(env, name, n)
        yield "shapes", tuple(x.shape) == wanted, f"{name} of shape {tuple(x.shape)}, expected {wanted}"
    types = {name: str(x.dtype).removeprefix("torch.") for name, x in arrays.items()}
    for name in types.keys() - {"obs", "reward"}:
        yield "flags", types[name] == "bool", f"{name} of type {types[name]}, expected bool"
    yield "reward type", types["reward"].startswith("float"), f"reward of type {types['reward']}, expected floats"
    space = env.observation_space
    yield "obs type", types["obs"] == str(space.dtype), f"obs of type {types['obs']}, expected {space.dtype} as in {space}"


def flaw(env: Env, state: State, n: int) -> str:
    """What is wrong with the form of the state of n episodes; "" where nothing is."""
    return next((found for _, holds, found in form(env, state, n) if not holds), "")


def _shape(env: Env, name: str, n: int) -> Any:
    if name == "obs":
        return (n, *(env.observation_space.shape or ()))
    if name == "action_mask":
        return (n, int(env.action_space.n)) if isinstance(env.action_space, Discrete) else "no mask"
    return (n,)
