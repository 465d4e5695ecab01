"""`Exported`: an `Env` as a single Gymnasium environment, with a batch of one. The key of an episode comes from `np_random`.

    reset(seed)   seeds np_random; key = a number from np_random; state = env.reset(1, key)
    step(action)  state = env.step(state, action); truncated at the environment's horizon

The episode with key k is the one that `rollout` samples for `Rng.of_seeds([k])`, given the same actions.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded

from envs.core import Array, Env, State, to_numpy
from envs.random import Rng
from envs.rollout import AHEAD, ENV, RESET


class Exported(gymnasium.Env[Any, Any]):
    """An `Env` with Gymnasium's interface and a batch of one.

    Observations and actions have the dtype of the spaces. `info["action_mask"]` is [A] int8, if the environment has masks;
    `info["key"]` is set by reset. An episode that reaches the horizon without ending by itself is truncated.

    Args:
        env: the environment.
        render_mode: "ansi", if `env` has `render(state) -> str`, or None.

    Raises:
        ValueError: the environment does not have this render mode.
        ResetNeeded: `step` or `render` is called before `reset`, or `step` after the end of an episode.
    """

    def __init__(self, env: Env, render_mode: str | None = None) -> None:
        modes = ["ansi"] if hasattr(env, "render") else []
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode is {render_mode!r}, this environment has {modes or 'none'}")
        self.metadata = {"render_modes": modes, "render_fps": 4}
        self.env, self.render_mode = env, render_mode
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._state: State | None = None
        self._t, self._over = 0, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        key = int(self.np_random.integers(2**62))
        rng, numpy = Rng.of_seeds([key]), self.env.backend == "numpy"
        self._rng = rng.fold(ENV).drawn(AHEAD, numpy)
        self._state = self.env.reset(1, rng.fold(RESET).drawn(1, numpy))
        self._t, self._over = 0, False
        return self._seen(self._state), {"key": key, **_info(self._state)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._state is None or self._over:
            raise ResetNeeded("the episode has ended or not begun: call reset() before step()")
        batch: Array = np.asarray(action, self.action_space.dtype)[None]
        if self.env.backend == "torch":
            batch = torch.from_numpy(batch).to(self._state.obs.device)
        state = self.env.step(self._state, batch, self._rng.at(self._t))
        self._t += 1
        terminated, truncated = bool(state.terminated[0]), bool(state.truncated[0])
        truncated = truncated or (self._t >= self.env.horizon and not terminated)
        self._state, self._over = state, terminated or truncated
        return self._seen(state), float(state.reward[0]), terminated, truncated, _info(state)

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("there is no state to render: call reset() before render()")
        return self.env.render(self._state)  # type: ignore[attr-defined]

    def _seen(self, state: State) -> Any:
        # a copy: the row is a view of a batch that the environment may return again
        seen = np.array(to_numpy(state.obs)[0], self.observation_space.dtype)
        return seen if seen.shape else seen[()]


def _info(state: State) -> dict[str, Any]:
    return {} if state.action_mask is None else {"action_mask": to_numpy(state.action_mask)[0].astype(np.int8)}


def make_gridworld(render_mode: str | None = None, **settings: Any) -> Exported:
    """Make pgrl/GridWorld-v0; `settings` are the arguments of `envs.mdp.tabular.gridworld`."""
    from envs.mdp.tabular import gridworld

    env: Any = gridworld(**settings)
    return Exported(env, render_mode)


def make_garnet(render_mode: str | None = None, **settings: Any) -> Exported:
    """Make pgrl/Garnet-v0; `settings` are the arguments of `envs.mdp.tabular.garnet`.

    The argument `seed` determines the MDP; the seed given to reset determines the episodes.
    """
    from envs.mdp.tabular import garnet

    env: Any = garnet(**settings)
    return Exported(env, render_mode)


def make_lqr(render_mode: str | None = None, **settings: Any) -> Exported:
    """Make pgrl/LQR-v0; `settings` are the arguments of `envs.mdp.lqr.double_integrator`."""
    from envs.mdp.lqr import double_integrator

    env: Any = double_integrator(**settings)
    return Exported(env, render_mode)
