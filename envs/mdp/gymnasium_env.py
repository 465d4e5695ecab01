"""`GymnasiumEnv`: any Gymnasium environment as a batched `Env`, with one instance for each row.

    reset   instance i .reset(seed = s_i), s_i from the key of row i
    step    instance i .step(action_i) for each row that has not ended; an ended row does not change, with reward 0

It does not use `gymnasium.vector.SyncVectorEnv`, whose autoreset starts the next episode by itself. Depending on the mode, that
adds a step that no policy took, or hides the last observation in `info`. Here an ended episode stays ended, its last
observation is the environment's own, and `terminated` and `truncated` are passed on unchanged.

The seed of a row determines its whole episode. So no generator state needs to be saved, and row k does not depend on the other
rows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import error
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from envs.core import Array, EnvironmentFault, State
from envs.raised import raised
from envs.random import Rng

Single = gymnasium.Env[Any, Any]
Space = gymnasium.Space[Any]

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "imageio": "mujoco", "pygame": "classic-control", "jax": "jax"}


class GymnasiumEnv:
    """A Gymnasium environment as a batched `Env`.

    Observations  Box: float32 of the same shape; Discrete(n, start): int64 counted from 0
    Actions       Discrete and MultiDiscrete: integers counted from 0, whatever the space's `start`; Box: floats, clipped to the
                  bounds before the environment gets them. The log-density of a Gaussian policy is that of the sampled action,
                  before clipping.
    action_mask   `info["action_mask"]` of a Discrete action space, if the environment gives one at reset

    `State.inner` is valid for one step only, because a step changes the instances behind the state.

    Args:
        make: an id such as "CartPole-v1", or a function without arguments that makes the environment.
        horizon: the most steps of an episode; None: the time limit of the environment's spec.

    Raises:
        ValueError: the id is unknown or an old MuJoCo id, a space is not supported, or there is no horizon.
        ImportError: a package is missing; the message has the pip command.
    """

    backend: ClassVar[Literal["torch", "numpy"]] = "numpy"

    def __init__(self, make: str | Callable[[], Single], *, horizon: int | None = None) -> None:
        self._given = make
        self._make: Callable[[], Single] = partial(_make, make) if isinstance(make, str) else make
        self._pool = [self._make()]
        single = self._pool[0]
        self.name = make if isinstance(make, str) else str(single)
        limit = single.spec.max_episode_steps if single.spec is not None else None
        if horizon is None and limit is None:
            raise ValueError(
                f"{self.name} has no time limit of its own: set the most steps of an episode, horizon=... (--horizon)"
            )
        self.horizon: int = horizon if horizon is not None else limit  # type: ignore[assignment]
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}, expected at least 1")
        self.observation_space, self._obs_start = _observations(single.observation_space, self.name)
        self.action_space, self._to_gymnasium = _actions(single.action_space, self.name)
        self._obs_dtype: Any = self.observation_space.dtype
        self._ticket: object | None = None

    def __reduce__(self) -> Any:
        """Pickle the settings only: a copy makes instances of its own."""
        return partial(GymnasiumEnv, self._given, horizon=self.horizon), ()

    def reset(self, n: int, rng: Rng) -> State:
        """Start n episodes, one for each row of `rng`. States of earlier episodes become stale.

        Raises:
            ValueError: n is below 1 or is not the number of rows.
            EnvironmentFault: an instance raises, or returns something of a wrong kind.
        """
        if not 1 <= n == len(rng):
            raise ValueError(f"{self.name}.reset got n = {n} and {len(rng)} random keys, expected one key for each episode")
        self._ticket = None
        while len(self._pool) < n:
            self._pool.append(self._make())
            if any(self._pool[-1] is other for other in self._pool[:-1]):
                raise ValueError(f"make returned the same {self.name} twice: let it build a new one at each call")
        shape: Any = self.observation_space.shape
        obs = np.empty((n, *shape), self._obs_dtype)
        masks: list[Any] = []
        for i, seed in enumerate(rng.integers().tolist()):
            try:
                seen, info = self._pool[i].reset(seed=seed)
                obs[i] = self._seen(seen, shape)
                masks.append(info.get("action_mask"))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise self._fault(error, "reset", i, None) from error
        if self._obs_start:
            obs -= self._obs_start
        mask = None
        if isinstance(self.action_space, Discrete) and any(m is not None for m in masks):
            mask = np.ones((n, int(self.action_space.n)), bool)
            for i, given in enumerate(masks):
                mask[i] = self._checked_mask(given, mask[i])
        never = np.zeros(n, bool)
        self._ticket = object()
        return State(obs, np.zeros(n, np.float32), never, never.copy(), self._ticket, mask)

    def step(self, state: State, action: Array, rng: Rng) -> State:
        """Step the rows that have not ended; `rng` is not used.

        Raises:
            ValueError: `state` is not the latest one, or `action` has a wrong shape.
            EnvironmentFault: an instance raises, or returns something of a wrong kind.
        """
        if self._ticket is None or state.inner is not self._ticket:
            raise ValueError(
                f"{self.name} cannot go back: this state is stale, a step or a reset came after it. "
                "Step the latest state, or give each batch of episodes an environment of its own"
            )
        actions = np.asarray(action)
        shape: Any = self.observation_space.shape
        if actions.shape != (len(state.obs), *self.action_space.shape):  # type: ignore[misc]
            raise ValueError(
                f"{self.name} got actions of shape {actions.shape}, expected {len(state.obs)} rows of {self.action_space}"
            )
        self._ticket = None  # after an exception in an instance no state can be stepped
        actions = self._to_gymnasium(actions)
        obs, reward = state.obs.copy(), np.zeros(len(state.obs), np.float32)
        terminated, truncated = state.terminated.copy(), state.truncated.copy()
        mask = None if state.action_mask is None else state.action_mask.copy()
        rows = (~(terminated | truncated)).nonzero()[0]
        for i in rows.tolist():
            try:
                seen, gain, over, cut, info = self._pool[i].step(actions[i])
                obs[i], reward[i] = self._seen(seen, shape), _number(gain)
                if not isinstance(info, dict):
                    raise _Wrong(f"returned info of type {type(info).__name__}, expected a dict")
                terminated[i], truncated[i] = _flag(over, "terminated"), _flag(cut, "truncated")
                # an ended row keeps its last mask: a softmax without valid actions is NaN
                if mask is not None and not (over or cut):
                    mask[i] = self._checked_mask(info.get("action_mask"), mask[i])
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise self._fault(error, "step", i, actions[i]) from error
        if self._obs_start:
            obs[rows] -= self._obs_start
        self._ticket = object()
        return State(obs, reward, terminated, truncated, self._ticket, mask)

    def close(self) -> None:
        """Close the instances; a later reset makes new ones."""
        self._ticket = None
        while self._pool:
            self._pool.pop().close()

    def _fault(self, error: BaseException, call: str, row: int, action: Any) -> EnvironmentFault:
        """What an instance raised or returned, as the fault of its row."""
        how = str(error) if isinstance(error, _Wrong) else raised(error)
        taken = action.tolist() if isinstance(action, np.ndarray | np.generic) else action
        return EnvironmentFault(call, row, action=taken, how=how)

    def _seen(self, seen: Any, shape: tuple[int, ...]) -> Any:
        if np.shape(seen) != shape:  # numpy would broadcast a smaller one
            raise _Wrong(f"returned an observation of shape {np.shape(seen)}, but its space has shape {shape}")
        kinds = "iub" if isinstance(self.observation_space, Discrete) else "fiub"
        if (kind := getattr(seen, "dtype", None) or np.asarray(seen).dtype).kind not in kinds:
            raise _Wrong(f"returned an observation of type {kind}, expected {self._obs_dtype}")
        if isinstance(self.observation_space, Discrete) and not 0 <= seen - self._obs_start < self.observation_space.n:
            raise _Wrong(f"returned the observation {seen}, which is not in {self._pool[0].observation_space}")
        return seen

    def _checked_mask(self, given: Any, before: Any) -> Any:
        mask = None if given is None else np.asarray(given, bool)
        if mask is None or mask.shape != before.shape or not mask.any():
            got = "no action_mask" if mask is None else f"action_mask {mask.astype(int).tolist()}"
            raise _Wrong(
                f"gave {got} in its info, but it gave masks before: "
                f"expected {len(before)} values with at least one valid action at reset and after every step"
            )
        return mask


class _Wrong(ValueError):
    """An environment returned something of a wrong kind; the message continues "the environment ..."."""


def _number(x: Any) -> float:
    try:
        if isinstance(x, str | bytes) or np.shape(x):
            raise TypeError
        return float(x)
    except (TypeError, ValueError):
        raise _Wrong(f"returned the reward {x!r:.80}, expected a number") from None


def _flag(x: Any, name: str) -> bool:
    if isinstance(x, bool | np.bool_) or (isinstance(x, np.ndarray) and x.dtype == bool and not x.shape):
        return bool(x)
    raise _Wrong(f"returned {name} = {x!r:.80} of type {type(x).__name__}, expected a bool")


def _observations(space: Space, name: str) -> tuple[Space, int]:
    """Our observation space, and what to subtract from the environment's observations."""
    if isinstance(space, Discrete):
        return Discrete(int(space.n)), int(space.start)
    if isinstance(space, Box):
        return Box(space.low.astype(np.float32), space.high.astype(np.float32), space.shape, np.float32), 0
    raise ValueError(
        f"{name} has the observation space {space}, expected Box or Discrete. Flatten it: "
        "GymnasiumEnv(lambda: gymnasium.wrappers.FlattenObservation(gymnasium.make(...)))"
    )


def _actions(space: Space, name: str) -> tuple[Space, Callable[[Any], Any]]:
    """Our action space, and a function from a batch of its actions to the environment's actions, one for each row."""
    start: Any
    if isinstance(space, Discrete):
        start = int(space.start)
        return Discrete(int(space.n)), lambda a: list(a + start)  # NumPy integers, as space.sample() gives
    if isinstance(space, MultiDiscrete):
        start, dtype = space.start, space.dtype
        return MultiDiscrete(space.nvec), lambda a: (a + start).astype(dtype)
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high, kind = space.low, space.high, space.dtype
        ours = Box(low.astype(np.float32), high.astype(np.float32), space.shape, np.float32)
        return ours, lambda a: np.clip(a.astype(kind), low, high)
    raise ValueError(
        f"{name} has the action space {space}, expected Discrete, MultiDiscrete or Box of floats. "
        "Wrap it in a gymnasium.ActionWrapper that takes one of these"
    )


def _make(name: str) -> Single:
    """`gymnasium.make` with error messages that say what to do."""
    if new := _successor(name):
        raise ValueError(f"{name} is an old MuJoCo task with another physics interface: use {new}")
    try:
        return gymnasium.make(name, disable_env_checker=True)
    except (ImportError, error.DependencyNotInstalled) as missing:
        raise ImportError(f"{name} needs a package that is not installed: {_pip(name, missing)}") from missing
    except error.Error as unknown:
        if name.split(":")[-1] in gymnasium.registry:
            raise
        close = difflib.get_close_matches(name, [x for x in gymnasium.registry if not _successor(x)], n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"no environment is registered as {name!r}. {hint}"
            "If another package brings it, install it and name its module first, as in 'module:Name-v0'"
        ) from unknown


def _entry_point(name: str) -> str:
    spec = gymnasium.registry.get(name.split(":")[-1])
    return str(spec.entry_point) if spec else ""


def _successor(name: str) -> str | None:
    """The v5 task that replaces an old MuJoCo id, or None."""
    old = re.fullmatch(r"(?:.*:)?(\w+)-v[0-4]", name)
    new = f"{old[1]}-v5" if old else ""
    return new if _entry_point(new).startswith("gymnasium.envs.mujoco") else None


def _pip(name: str, missing: Exception) -> str:
    """The pip command for the package that `name` needs."""
    cause = missing.__cause__ if isinstance(missing.__cause__, ImportError) else missing
    module = (cause.name or "").split(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
    home = re.match(r"gymnasium\.envs\.(box2d|mujoco|phys2d)\b", _entry_point(name))
    extra = {"phys2d": "jax"}.get(home[1], home[1]) if home else EXTRAS.get(module.lower())
    if extra is None:
        return f"pip install {module}" if module else str(missing)
    swig = "swig && pip install " if extra == "box2d" else ""  # Box2D is compiled where no wheel fits
    return f'pip install {swig}"gymnasium[{extra}]"'
