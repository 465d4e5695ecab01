"""`BoundedActions`: an environment whose actions may be any real vectors, brought within its bounds before each step.

    clip    the nearest action within the bounds
    tanh    low + (high - low) · (1 + tanh a)/2

The trajectories hold the unbounded action a, and a policy's density is that of a. What happens between a and the reward belongs
to the environment, so the estimators of ∇J and ∇²J·u stay unbiased; for tanh, the Jacobian does not depend on θ given a.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from envs.core import Array, Env, State
from envs.random import Rng

BOUNDS = ("clip", "tanh")


@dataclass(frozen=True)
class BoundedActions:
    """Wrap an environment with bounded actions.

    Args:
        env: the environment; its action space is a Box with finite bounds.
        how: clip or tanh.

    Raises:
        ValueError: the action space has no finite bounds, or `how` is another.
    """

    env: Env
    how: str

    def __post_init__(self) -> None:
        if self.how not in BOUNDS:
            raise ValueError(f"bounds are {self.how!r}, expected {', '.join(BOUNDS)}")
        space = self.env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
            raise ValueError(f"--bounds {self.how} needs actions with finite bounds, got {space}: use --bounds none")

    @property
    def backend(self) -> Literal["torch", "numpy"]:
        return self.env.backend

    @property
    def observation_space(self) -> gymnasium.Space[Any]:
        return self.env.observation_space

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """The bounds of what is stepped."""
        return self.env.action_space

    @property
    def horizon(self) -> int:
        return self.env.horizon

    @property
    def terminates(self) -> bool:
        return getattr(self.env, "terminates", True)

    def reset(self, n: int, rng: Rng) -> State:
        return self.env.reset(n, rng)

    def step(self, state: State, action: Array, rng: Rng) -> State:
        return self.env.step(state, self.within(action), rng)

    def within(self, action: Array) -> Array:
        """The action that is stepped, [B, *act], of the precision of `action`; NaN stays NaN."""
        low, high = self._limits
        if isinstance(action, np.ndarray):
            clip = self.how == "clip"
            inside = np.minimum(np.maximum(action, low), high) if clip else low + (high - low) * (0.5 + 0.5 * np.tanh(action))
            return inside.astype(action.dtype, copy=False)
        low, high = (torch.as_tensor(x, device=action.device, dtype=action.dtype) for x in (low, high))
        return action.clamp(low, high) if self.how == "clip" else low + (high - low) * (0.5 + 0.5 * action.tanh())

    @cached_property
    def _limits(self) -> tuple[Any, Any]:
        space: Any = self.env.action_space
        return space.low, space.high

    def close(self) -> None:
        if hasattr(self.env, "close"):
            self.env.close()
