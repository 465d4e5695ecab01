"""`MujocoEnv`: the MuJoCo v5 tasks as a batched `Env`, with one MjData per row, direct calls of `mj_step`, the rest in numpy.

    reset   for each row: positions and velocities = the model's + noise from the row's key;  mj_forward
    step    for each unfinished row: controls = action;  mj_step × frame_skip                        (without the GIL)
            for all rows at once: the arrays that the task reads -> observation, healthy             (mujoco_tasks.py)
    reward  of up to 128 steps at once, from the bytes that the steps have read, when one of them is asked for

One environment uses one thread; `envs.workers` runs episodes in parallel processes. Threads are slower: whether they divide the
rows of a step or the episodes, one thread wakes another every few steps, and waking takes as long as a step.

For equal positions, velocities and actions the results equal those of `gymnasium.make(id).unwrapped`, bit for bit in float64.

Differs from Gymnasium: after a physical instability MuJoCo silently resets the simulation; here the reward is NaN, which
`rollout` reports as an EnvironmentFault. An action that is not finite raises instead of acting as zero. MuJoCo's counters of
warnings are read with the arrays of the task, and looked at when rewards are computed.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np

from envs.core import Array, EnvironmentFault, State
from envs.mdp.mujoco_tasks import TASKS, Step
from envs.random import Rng

HUGE = 1e10  # mjMAXVAL: if a control exceeds it, MuJoCo sets all controls of the row to zero
AT_ONCE = 1 << 20  # bytes of states whose rewards are computed together, at least 2 steps and at most 128
LOADING = threading.Lock()


class MujocoState(State):
    """A State whose reward is computed when it is read, by the `Rewards` of its episodes."""

    def __getattr__(self, name: str) -> Any:  # of what is not there yet
        if name != "reward" or "step" not in self.__dict__:
            raise AttributeError(name)
        rewards, step = self.__dict__["step"]
        reward = self.__dict__["reward"] = rewards.of(step)
        return reward

    def rewards(self, states: list[State]) -> Array | None:
        """The rewards of these states, [T, B], if they are the states after each step since reset; None: they are not."""
        rewards, steps = self.__dict__.get("step", (None, 0))
        given = [state.__dict__.get("step") for state in states]
        if rewards is None or given != [(rewards, t) for t in range(steps + 1)]:
            return None
        return rewards.all()


class Rewards:
    """The rewards of the episodes since a reset.

    Args:
        first: the bytes that reset has read.
        shape: of a step's bytes as float64, (B, W + counters); the last columns are counters of warnings.
        reward: before, now [M, W] and actions [M, A] -> rewards [M].
        dtype: of the rewards.
    """

    def __init__(self, first: bytes, shape: tuple[int, int], width: int, reward: Callable[..., Array], dtype: Any) -> None:
        self._read, self._actions, self._finished = [first], list[Array](), list[Array | None]()
        self._shape, self._width, self._reward, self._dtype = shape, width, reward, dtype
        self._known: list[Array] = []
        self._at_once = min(max(AT_ONCE // len(first), 2), 128)

    def add(self, read: bytes, action: Array, finished: Array | None) -> tuple[Rewards, int]:
        """One more step; returns what `MujocoState` keeps: self and the number of the step."""
        self._read.append(read)
        self._actions.append(action.copy())  # the caller may use the array again
        self._finished.append(finished)
        step = len(self._known) + len(self._actions) - 1
        if len(self._actions) == self._at_once:
            self._compute()
        return self, step

    def of(self, step: int) -> Array:
        """[B]"""
        if step >= len(self._known):
            self._compute()
        return self._known[step]

    def all(self) -> Array:
        """[T, B]"""
        if self._actions:
            self._compute()
        return np.concatenate(self._known).reshape(-1, self._shape[0])

    def _compute(self) -> None:
        joined, width = b"".join(self._read), self._width
        states = np.frombuffer(joined).reshape(len(self._read), *self._shape)
        before, now = (x.reshape(-1, self._shape[1])[:, :width] for x in (states[:-1], states[1:]))
        reward = self._reward(before, now, np.concatenate(self._actions)).reshape(len(self._actions), -1)
        counters = np.frombuffer(joined, np.int32).reshape(len(self._read), self._shape[0], -1)[1:, :, 2 * width + 1 :: 2]
        if np.count_nonzero(counters):
            reward[counters.any(2)] = np.nan
        for step, finished in enumerate(self._finished):
            if finished is not None:
                reward[step, finished] = 0.0
        self._known.extend(reward.astype(self._dtype))
        self._read, self._actions, self._finished = self._read[-1:], [], []


class MujocoEnv:
    """A MuJoCo v5 task, e.g. `MujocoEnv("HalfCheetah-v5")`, as an `envs.core.Env`.

    Args:
        id: the task's name in Gymnasium.
        horizon: steps of an episode; None: Gymnasium's time limit. `step` itself never truncates.
        dtype: of observations and rewards, np.float32 or np.float64; the physics is always float64.

    Raises:
        ValueError: the id, the horizon or the dtype is not supported.
        ImportError: MuJoCo is not installed.
    """

    backend: ClassVar[Literal["torch", "numpy"]] = "numpy"

    def __init__(self, id: str, *, horizon: int | None = None, dtype: Any = np.float32) -> None:
        task = TASKS[_task_name(id)]
        self.id = id
        self.horizon = _at_least_one("horizon", task.horizon if horizon is None else horizon)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"got dtype {self.dtype}; observations are np.float32 or np.float64: choose one of these")
        self.terminates = task.healthy is not None
        self.task, self._mujoco = task, _import_mujoco(id)
        self._model = _load(self._mujoco, task.xml)
        self._nu = int(self._model.nu)
        self._pool: list[Any] = []
        self._views: list[list[memoryview]] = []  # of MuJoCo's own memory; joining bytes is the cheapest way to gather
        self._ticket = _first_ticket(self)
        self._good = -1  # how many entries of `healthy` are True while no running row falls; -1: not known yet
        self._grow_pool(1)
        low, high = self._model.actuator_ctrlrange.astype(np.float32).T
        self._width = sum(x.size for x in task.reads(self._pool[0]))  # the counters of warnings are behind
        read = np.concatenate([np.frombuffer(view) for view in self._views[0]])
        seen = task.observe(read[None, : self._width], self.dtype).shape[1]
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Box(-np.inf, np.inf, (seen,), self.dtype.type)
        self.action_space: gymnasium.Space[Any] = gymnasium.spaces.Box(low, high, dtype=np.float32)
        time_step = float(self._model.opt.timestep)
        forces = self._mujoco.mj_rnePostConstraint if task.contact_forces else None
        self._physics = self._mujoco.mj_step, forces, self._model, task.frame_skip
        self._constants = (time_step * task.frame_skip, time_step, self._model.body_mass.copy())

    def __reduce__(self) -> Any:
        """Pickle the settings only: a copy is a new environment, without MuJoCo's state."""
        return functools.partial(MujocoEnv, self.id, horizon=self.horizon, dtype=self.dtype), ()

    def __repr__(self) -> str:
        return f"MujocoEnv({self.id!r}, horizon={self.horizon}, dtype=np.{self.dtype.name})"

    def reset(self, n: int, rng: Rng) -> State:
        """Start n episodes. The initial state of row i depends on key i only and has the distribution of Gymnasium's `reset`.

        States of earlier episodes become stale.

        Raises:
            ValueError: n is below 1, or differs from len(rng).
        """
        if n != len(rng) or n < 1:
            raise ValueError(f"got n = {n} and random streams for {len(rng)} rows; give one stream a row, at least one row")
        self._grow_pool(n)
        qpos, qvel = self._first(rng)
        for data, position, velocity in zip(self._pool, qpos, qvel, strict=False):
            self._mujoco.mj_resetData(self._model, data)
            data.qpos[:] = position
            data.qvel[:] = velocity
            self._mujoco.mj_forward(self._model, data)
        self._all = [(data, data.ctrl, row) for row, data in enumerate(self._pool[:n])]
        self._read = [view for views in self._views[:n] for view in views]
        self._shape = n, self._nu
        self._follow(np.zeros(n, bool), np.zeros(n, bool))
        read = b"".join(self._read)
        self._whole = n, len(read) // (8 * n)
        self._rewards = Rewards(read, self._whole, self._width, self._reward, self.dtype)
        now = np.ndarray(self._whole, np.float64, read)[:, : self._width]
        self._ticket += 1
        return State(self.task.observe(now, self.dtype), np.zeros(n, self.dtype), *self._flags, inner=self._ticket)

    def step(self, state: State, action: Array, rng: Rng) -> State:
        """Step the unfinished rows. Actions are not clipped here; MuJoCo clamps the controls.

        Args:
            state: the newest State of this environment; MuJoCo cannot step an older one.
            action: [B, A], numpy or torch; rows of ended episodes are ignored.
            rng: not used.

        Raises:
            ValueError: the state is stale, or the action has a wrong shape.
            EnvironmentFault: an action is NaN, infinite or beyond 1e10.
        """
        if state.inner != self._ticket:
            raise ValueError(
                "got a state that is not the newest of this environment; MuJoCo steps forward only: step what the last "
                "reset or step returned, and use one env for each batch of episodes"
            )
        if not isinstance(action, np.ndarray):
            action = action.detach().cpu().numpy()
        if action.shape != self._shape:
            raise ValueError(
                f"got actions of shape {action.shape}; {self.id} has {self._shape[0]} rows here: give shape {self._shape}"
            )
        # The same two arrays are passed from state to state until a row ends: if they are identical, the same rows are running.
        if state.terminated is not self._flags[0] or state.truncated is not self._flags[1]:
            self._follow(state.terminated, state.truncated)
        if not np.vdot(action, action) <= HUGE:  # True for NaN; cheaper than a check of every number
            self._refuse_faulty(action)
        self._ticket += 1  # before the physics: an interrupted step cannot be repeated
        step, forces, model, frame_skip = self._physics
        for data, control, row in self._running:
            control[:] = action[row]
            step(model, data, frame_skip)
            if forces is not None:
                forces(model, data)
        read = b"".join(self._read)
        now = np.ndarray(self._whole, np.float64, read)[:, : self._width]
        taken = self._rewards.add(read, action, self._finished)
        if self.task.healthy is not None:
            good = self.task.healthy(now)
            if np.count_nonzero(good) != self._good:  # the numbers of ended rows do not change
                self._end(~good.all(1))
                self._good = int(np.count_nonzero(good))
        new = object.__new__(MujocoState)  # an __init__ of a frozen dataclass takes as long as the observation
        terminated, truncated = self._flags
        new.__dict__.update(
            obs=self.task.observe(now, self.dtype),
            terminated=terminated,
            truncated=truncated,
            inner=self._ticket,
            action_mask=None,
            step=taken,
        )
        return new

    def _follow(self, terminated: Array, truncated: Array) -> None:
        """From here on, the rows are running that these flags leave."""
        finished = terminated | truncated
        self._flags = terminated, truncated
        self._finished: Array | None = finished if finished.any() else None
        self._running = [self._all[row] for row in np.flatnonzero(~finished)]
        self._good = -1

    def _end(self, fell: Array) -> None:
        """Running rows end where they fell."""
        terminated, truncated = self._flags
        if self._finished is not None:
            fell &= ~self._finished
        if fell.any():
            self._follow(terminated | fell, truncated)

    def _reward(self, before: Array, now: Array, action: Array) -> Array:
        healthy = self.task.healthy(now).all(1) if self.task.healthy is not None else np.ones(len(now), bool)
        return self.task.reward(Step(before, now, action, healthy, *self._constants))

    def _first(self, rng: Rng) -> tuple[Array, Array]:
        """Positions and velocities of the first state, [B, nq] and [B, nv] float64."""
        task, model = self.task, self._model

        def uniform(*shape: int) -> Array:
            return np.asarray(rng.uniform(*shape), np.float64)

        qpos = model.qpos0 + task.qpos_noise * (2.0 * uniform(model.nq) - 1.0)
        noise = np.asarray(rng.normal(model.nv), np.float64) if task.normal_qvel else 2.0 * uniform(model.nv) - 1.0
        qvel = task.qvel_noise * noise
        if task.goal is not None:  # uniform on the disc; Gymnasium draws from the square until it hits the disc
            area, turn = uniform(2).T
            radius, angle = task.goal * np.sqrt(area), 2.0 * math.pi * turn
            qpos[:, -2:] = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
            qvel[:, -2:] = 0.0
        return qpos, qvel

    def _refuse_faulty(self, action: Array) -> None:
        faulty = ~(np.abs(action) <= HUGE).all(1)
        if self._finished is not None:
            faulty &= ~self._finished
        if faulty.any():
            row = int(np.flatnonzero(faulty)[0])
            how = "got an action that is NaN or beyond ±1e10 (try a smaller step size)"
            raise EnvironmentFault("action", row, action=action[row].tolist(), how=how)

    def _grow_pool(self, n: int) -> None:
        while len(self._pool) < n:
            data = self._mujoco.MjData(self._model)
            self._pool.append(data)
            self._views.append([memoryview(view) for view in (*self.task.reads(data), _counters(data))])


def _counters(data: Any) -> Array:
    """MuJoCo's mjWarningStat[]: pairs (lastinfo, number) of int32, as they are in memory, and numbers that are not zero."""
    info, number = data.warning.lastinfo, data.warning.number
    assert number.ctypes.data == info.ctypes.data + 4
    assert info.strides == number.strides == (8,)
    return np.lib.stride_tricks.as_strided(info, (2 * len(info),), (4,))


def _task_name(id: str) -> str:
    name, dash, version = id.rpartition("-v")
    if name in TASKS and version == "5":
        return name
    if name in TASKS and re.fullmatch(r"\d+", version):
        raise ValueError(f"got {id!r}; only version 5 of the MuJoCo tasks is supported: use {name + '-v5'!r}")
    known = {task.lower(): f"{task}-v5" for task in TASKS}
    near = [known[match] for match in difflib.get_close_matches((name if dash else id).lower(), known, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {', '.join(known.values())}"
    raise ValueError(f"got {id!r}, which is not a MuJoCo task here; {hint}")


def _first_ticket(env: MujocoEnv) -> int:
    return id(env) << 32  # tickets of different environments are different


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"got {name} = {value}, expected at least 1")
    return value


def _import_mujoco(id: str) -> Any:
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(f"{id} needs the package mujoco, which is not installed: pip install 'pgrl[mujoco]'") from error
    return mujoco


def _load(mujoco: Any, xml: str) -> Any:
    """Load the model file `xml` of Gymnasium."""
    # Without importing gymnasium.envs.mujoco, which needs packages for rendering.
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / xml
    # MuJoCo's own handler writes MUJOCO_LOG.TXT into the working directory whenever half_cheetah.xml is loaded.
    warned: list[str] = []
    with LOADING:
        handler = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(warned.append)
        try:
            model = mujoco.MjModel.from_xml_path(str(path))
        finally:
            mujoco.set_mju_user_warning(handler)
    for message in warned:
        if "settotalmass" not in message:
            warnings.warn(f"MuJoCo warns about {xml}: {message}", stacklevel=3)
    return model
