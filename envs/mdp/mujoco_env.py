"""`MujocoEnv`: the MuJoCo v5 tasks as a batched `Env`, with one MjData per row, direct calls of `mj_step`, the rest in numpy.

    reset   for each row: positions and velocities = the model's + noise from the row's key;  mj_forward
    step    for each unfinished row: controls = action;  mj_step × frame_skip                        (without the GIL)
            for all rows at once: the arrays that the task reads -> observation, reward, fell        (mujoco_tasks.py)

One environment uses one thread; `envs.workers` runs episodes in parallel processes. Threads are slower: whether they divide the
rows of a step or the episodes, one thread wakes another every few steps, and waking takes as long as a step.

For equal positions, velocities and actions the results equal those of `gymnasium.make(id).unwrapped`, bit for bit in float64.

Differs from Gymnasium: after a physical instability MuJoCo silently resets the simulation; here the reward is NaN, which
`rollout` reports as an EnvironmentFault. An action that is not finite raises instead of acting as zero.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np

from envs.core import Array, Diverged, State
from envs.mdp.mujoco_tasks import TASKS, Step
from envs.random import Rng

HUGE = 1e10  # mjMAXVAL: if a control exceeds it, MuJoCo sets all controls of the row to zero
LOADING = threading.Lock()


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
        self.terminates = task.fell is not None
        self.task, self._mujoco = task, _import_mujoco(id)
        self._model = _load(self._mujoco, task.xml)
        self._nu = int(self._model.nu)
        self._pool: list[Any] = []
        self._views: list[list[memoryview]] = []  # of MuJoCo's own memory; joining bytes is the cheapest way to gather
        self._ticket = _first_ticket(self)
        self._grow_pool(1)
        low, high = self._model.actuator_ctrlrange.astype(np.float32).T
        seen = task.observe(self._look(1)).shape[1]
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
        self._rows = [(data, data.ctrl) for data in self._pool[:n]]
        self._read = [view for views in self._views[:n] for view in views]
        self._alarms = [data.warning.number for data in self._pool[:n]]
        self._now = self._look(n)
        self._never = np.zeros(n, bool), np.zeros(n, bool)
        self._ticket += 1
        obs = self.task.observe(self._now).astype(self.dtype)
        return State(obs, np.zeros(n, self.dtype), *self._never, inner=self._ticket)

    def step(self, state: State, action: Array, rng: Rng) -> State:
        """Step the unfinished rows. Actions are not clipped here; MuJoCo clamps the controls.

        Args:
            state: the newest State of this environment; MuJoCo cannot step an older one.
            action: [B, A], numpy or torch; rows of ended episodes are ignored.
            rng: not used.

        Raises:
            ValueError: the state is stale, or the action has a wrong shape.
            Diverged: an action is NaN, infinite or beyond 1e10.
        """
        if state.inner != self._ticket:
            raise ValueError(
                "got a state that is not the newest of this environment; MuJoCo steps forward only: step what the last "
                "reset or step returned, and use one env for each batch of episodes"
            )
        task, before = self.task, self._now
        if not isinstance(action, np.ndarray):
            action = action.detach().cpu().numpy()
        if action.shape != (len(before), self._nu):
            raise ValueError(
                f"got actions of shape {action.shape}; {self.id} has {len(before)} rows here: give shape "
                f"{(len(before), self._nu)}"
            )
        # The same two arrays are passed from state to state until a row ends: if they are identical, all rows are running.
        running = state.terminated is self._never[0] and state.truncated is self._never[1]
        finished = None if running else state.terminated | state.truncated
        if not np.vdot(action, action) <= HUGE:  # True for NaN; cheaper than a check of every number
            self._refuse_faulty(action, finished)
        self._ticket += 1  # before the physics: an interrupted step cannot be repeated
        self._advance(action, finished)
        now = np.frombuffer(b"".join(self._read)).reshape(before.shape)
        fell = task.fell(now) if task.fell is not None else None
        reward = task.reward(Step(before, now, action, fell, *self._constants))
        if any(map(np.count_nonzero, self._alarms)):
            reward[[bool(alarm.any()) for alarm in self._alarms]] = np.nan
        terminated = state.terminated
        if finished is not None:
            reward[finished] = 0.0
            if fell is not None:
                terminated = terminated | (fell & ~finished)
        elif fell is not None and np.count_nonzero(fell):
            terminated = fell
        self._now = now
        obs = task.observe(now).astype(self.dtype)
        return State(obs, reward.astype(self.dtype), terminated, state.truncated, self._ticket)

    def _advance(self, action: Array, finished: Array | None) -> None:
        rows = self._rows
        if finished is not None:
            running = np.flatnonzero(~finished)
            rows, action = [rows[i] for i in running], action[running]
        step, forces, model, frame_skip = self._physics
        for (data, control), act in zip(rows, action, strict=True):
            control[:] = act
            step(model, data, frame_skip)
            if forces is not None:
                forces(model, data)

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

    def _refuse_faulty(self, action: Array, finished: Array | None) -> None:
        faulty = ~(np.abs(action) <= HUGE).all(1)
        if finished is not None:
            faulty &= ~finished
        if faulty.any():
            row = int(np.flatnonzero(faulty)[0])
            raise Diverged(
                f"got action {action[row].tolist()} in row {row} of {len(action)}; an action is finite and within ±1e10: "
                "check the policy's parameters for NaN, the step size may be too large"
            )

    def _look(self, n: int) -> Array:
        """[n, W] float64: a copy of the arrays that the task reads, of the first n rows."""
        return np.frombuffer(b"".join(view for views in self._views[:n] for view in views)).reshape(n, -1)

    def _grow_pool(self, n: int) -> None:
        while len(self._pool) < n:
            data = self._mujoco.MjData(self._model)
            self._pool.append(data)
            self._views.append([memoryview(view) for view in self.task.reads(data)])


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
