"""The MuJoCo tasks: equal to Gymnasium's to the bit, and loud when something is wrong."""

from __future__ import annotations

import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")

from envs.core import Env, EnvironmentFault, State  # noqa: E402
from envs.mdp import mujoco_env  # noqa: E402
from envs.mdp.mujoco_env import MujocoEnv  # noqa: E402
from envs.mdp.mujoco_tasks import TASKS  # noqa: E402
from envs.random import Rng  # noqa: E402
from envs.rollout import rollout  # noqa: E402

NEVER_END = {"HalfCheetah", "Swimmer", "Reacher", "HumanoidStandup"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo's own warnings write MUJOCO_LOG.TXT where one stands


def streams(n: int, first: int = 0) -> Rng:
    return Rng.of_seeds(range(first, first + n)).drawn(1, True)


def gymnasium_env(id: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    if "imageio" not in sys.modules:
        try:
            import imageio  # noqa: F401
        except ImportError:  # Gymnasium wants it for videos, at import
            monkeypatch.setitem(sys.modules, "imageio", types.ModuleType("imageio"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(id).unwrapped


class Linear:
    """action = obs W + noise; summed without BLAS, whose rounding depends on the number of rows."""

    def __init__(self, env: MujocoEnv) -> None:
        shape = (*env.observation_space.shape, *env.action_space.shape)  # type: ignore[misc]
        self.weight = np.random.default_rng(0).normal(0.0, 0.3, shape).astype(np.float32)

    def __call__(self, obs: Any, action_mask: Any, rng: Rng) -> Any:
        return (obs[:, :, None] * self.weight).sum(1) + 0.3 * rng.normal(self.weight.shape[1])

    def rows(self, lo: int, hi: int) -> Linear:
        return self


@pytest.mark.parametrize("name", TASKS)
def test_equal_to_gymnasium_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 200 steps of each of 2 rows, with ==; MjData are used again after a fall, so a stale warm start would show."""
    env = MujocoEnv(f"{name}-v5", dtype=np.float64)
    references = [gymnasium_env(env.id, monkeypatch) for _ in range(2)]
    assert env.action_space == references[0].action_space
    assert env.observation_space.shape == references[0].observation_space.shape
    assert env.horizon == gymnasium.spec(env.id).max_episode_steps
    generator = np.random.default_rng(7)
    compared, falls, episode = np.zeros(2, int), 0, 0
    while compared.min() < 200:
        state = env.reset(2, streams(2, 2 * episode))
        episode += 1
        for row, reference in enumerate(references):
            mujoco.mj_resetData(reference.model, reference.data)
            reference.set_state(env._pool[row].qpos.copy(), env._pool[row].qvel.copy())
            assert np.array_equal(reference._get_obs(), state.obs[row])
        for _ in range(200):
            action = (0.7 * generator.standard_normal((2, *env.action_space.shape))).astype(np.float32)  # type: ignore[misc]
            running = ~state.terminated
            state = env.step(state, action, streams(2))
            for row in np.flatnonzero(running):
                obs, reward, terminated, _, _ = references[row].step(action[row])
                assert np.array_equal(obs, state.obs[row])
                assert reward == state.reward[row]
                assert terminated == state.terminated[row]
                compared[row] += 1
                falls += terminated
            if state.terminated.all():
                break
    assert env.terminates == (name not in NEVER_END)
    assert (falls > 0) == env.terminates


@pytest.mark.parametrize("name", ["Walker2d", "Reacher", "Ant"])
def test_a_row_is_the_same_alone_and_in_company(name: str) -> None:
    company, alone = MujocoEnv(f"{name}-v5"), MujocoEnv(f"{name}-v5")
    actions = np.random.default_rng(1).uniform(-1, 1, (15, 4, *company.action_space.shape))  # type: ignore[misc]
    for row in range(4):
        state, single = company.reset(4, streams(4)), alone.reset(1, streams(1, row))
        for action in actions:
            assert np.array_equal(state.obs[row], single.obs[0])
            state = company.step(state, action, streams(4))
            single = alone.step(single, action[row : row + 1], streams(1))
            assert state.reward[row] == single.reward[0]
            assert state.terminated[row] == single.terminated[0]


def test_finished_rows_are_not_stepped() -> None:
    env = MujocoEnv("InvertedPendulum-v5")
    state = env.reset(3, streams(3))
    push = np.array([[3.0], [0.0], [0.0]], np.float32)
    while not state.terminated.any():
        state = env.step(state, push, streams(3))
    assert state.terminated.tolist() == [True, False, False]
    state = replace(state, truncated=np.array([False, True, False]))  # a limit of somebody else's
    seen, clocks = state.obs.copy(), [data.time for data in env._pool]
    push[0] = np.nan  # nobody asks what a finished episode would have done
    after = env.step(state, push, streams(3))
    assert [data.time > clock for data, clock in zip(env._pool, clocks, strict=True)] == [False, False, True]
    assert np.array_equal(after.obs[:2], seen[:2])
    assert after.reward.tolist() == [0.0, 0.0, 1.0]
    assert after.terminated.tolist() == [True, False, False]
    assert after.truncated.tolist() == [False, True, False]


def test_a_state_owns_its_arrays() -> None:
    env = MujocoEnv("Hopper-v5")
    first = env.reset(2, streams(2))
    kept = first.obs.copy()
    second = env.step(first, torch.full((2, 3), 0.1), streams(2))  # torch actions are welcome
    assert np.array_equal(first.obs, kept)
    assert not np.array_equal(second.obs, kept)
    assert second.obs.dtype == second.reward.dtype == np.float32
    second.obs[:] = 0.0  # what a caller does to its copy does not reach the world
    assert isinstance(env, Env)
    assert env.step(second, np.zeros((2, 3), np.float32), streams(2)).obs.any()


def test_float32_is_float64_rounded() -> None:
    narrow, wide = MujocoEnv("Humanoid-v5"), MujocoEnv("Humanoid-v5", dtype=np.float64)
    action = np.full((1, 17), 0.1, np.float32)
    a, b = (env.step(env.reset(1, streams(1)), action, streams(1)) for env in (narrow, wide))
    assert np.array_equal(a.obs, b.obs.astype(np.float32))
    assert a.reward == b.reward.astype(np.float32)


def test_a_stale_state_is_refused() -> None:
    env = MujocoEnv("InvertedPendulum-v5")
    action = np.zeros((1, 1), np.float32)
    first = env.reset(1, streams(1))
    env.step(first, action, streams(1))
    with pytest.raises(ValueError, match="not the newest"):
        env.step(first, action, streams(1))
    one, other = env, MujocoEnv("InvertedPendulum-v5")
    state: State = one.reset(1, streams(1))
    other.reset(1, streams(1))
    with pytest.raises(ValueError, match="not the newest"):
        other.step(state, action, streams(1))
    one.step(state, action, streams(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e11])
def test_an_action_that_is_no_number_names_its_row(bad: float) -> None:
    env = MujocoEnv("HalfCheetah-v5")
    state = env.reset(3, streams(3))
    action = np.zeros((3, 6), np.float32)
    action[2, 4] = bad
    with pytest.raises(ValueError, match=r"smaller step size\) in episode 2 after action"):
        env.step(state, action, streams(3))
    env.step(state, np.full((3, 6), 1e6, np.float32), streams(3))  # the state is still good; far outside is no fault
    assert not list(Path().iterdir())


def test_an_instability_is_a_fault_and_not_a_silent_restart(capfd: pytest.CaptureFixture[str]) -> None:
    env = MujocoEnv("Swimmer-v5")

    class Sabotage(Linear):
        calls = 0

        def __call__(self, obs: Any, action_mask: Any, rng: Rng) -> Any:
            self.calls += 1
            if self.calls == 4:
                env._pool[1].qvel[0] = 1e12
            return super().__call__(obs, action_mask, rng)

    with pytest.raises(EnvironmentFault, match="reward in episode 1 at step 3"):
        rollout(env, Sabotage(env), Rng.of_seeds(range(3)), horizon=10)
    rollout(env, Linear(env), Rng.of_seeds(range(3)), horizon=10)  # a reset heals it


@pytest.mark.parametrize("block", [mujoco_env.AT_ONCE, 7_000])
@pytest.mark.parametrize("name", TASKS)
def test_rewards_of_many_steps_at_once_are_those_of_each_step(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows end early, and some blocks are short; the reference reads the reward after each step."""
    monkeypatch.setattr(mujoco_env, "AT_ONCE", block)
    env = MujocoEnv(f"{name}-v5", dtype=np.float64)
    act, keys = Linear(env), Rng.of_seeds(range(3))
    tau = rollout(env, act, keys, horizon=70)
    actions = tau.action.numpy()
    state = env.reset(3, keys.fold(2).drawn(1, True))
    for t, action in enumerate(actions):
        assert np.array_equal(state.obs, tau.obs[t].numpy())
        over = state.terminated
        given = action.copy()
        state = env.step(state, given, streams(3))
        given[:] = 9.0  # what a caller does with its array afterwards is no action
        assert np.array_equal(state.reward, tau.reward[t].numpy())
        assert not state.reward[over].any()
    assert np.array_equal(state.terminated, tau.terminated.numpy())
    assert len(actions) == 70 or bool(tau.terminated.all())


def test_a_wrapper_may_change_rewards_of_some_steps() -> None:
    class Doubled:
        def __init__(self) -> None:
            self.env, self.steps = MujocoEnv("Swimmer-v5", horizon=5), 0
            self.backend, self.horizon, self.terminates = self.env.backend, 5, False
            self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
            self.reset = self.env.reset

        def step(self, state: State, action: Any, rng: Rng) -> State:
            self.steps += 1
            after = self.env.step(state, action, rng)
            return replace(after, reward=2.0 * after.reward) if self.steps == 2 else after

    wrapped = Doubled()
    act = Linear(wrapped.env)
    plain, doubled = rollout(wrapped.env, act, Rng.of_seeds([1, 2])), rollout(wrapped, act, Rng.of_seeds([1, 2]))
    expected = plain.reward.clone()
    expected[1] *= 2.0
    assert torch.equal(doubled.reward, expected)
    assert torch.equal(doubled.obs, plain.obs)


@pytest.mark.parametrize("block", [mujoco_env.AT_ONCE, 5_000])
def test_an_instability_is_named_with_its_step_long_after(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of warnings are looked at with the rewards; the step is still the one in which the row became unstable."""
    monkeypatch.setattr(mujoco_env, "AT_ONCE", block)
    env = MujocoEnv("Hopper-v5")

    class Sabotage(Linear):
        calls = 0

        def __call__(self, obs: Any, action_mask: Any, rng: Rng) -> Any:
            self.calls += 1
            if self.calls == 36:
                env._pool[2].qvel[3] = 1e12
            return 0.0 * super().__call__(obs, action_mask, rng)

    with pytest.raises(EnvironmentFault, match="reward in episode 2 at step 35"):
        rollout(env, Sabotage(env), Rng.of_seeds(range(3)), horizon=50)
    state = env.reset(2, streams(2))
    for step in range(40):
        if step == 33:
            env._pool[1].qvel[3] = 1e12
        state = env.step(state, np.zeros((2, 3), np.float32), streams(2))
        assert np.isnan(state.reward).tolist() == [False, step >= 33]  # MuJoCo has begun anew; that is no episode
    rollout(env, Linear(env), Rng.of_seeds(range(3)), horizon=50)


def test_making_one_writes_nothing_and_leaves_the_handler(capfd: pytest.CaptureFixture[str]) -> None:
    def handler(message: str) -> None: ...

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(handler)
    try:
        MujocoEnv("HalfCheetah-v5")
        assert mujoco.get_mju_user_warning() is handler
    finally:
        mujoco.set_mju_user_warning(before)
    assert not list(Path().iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", TASKS)
def test_first_states_have_the_distribution_of_gymnasium(name: str) -> None:
    env, n = MujocoEnv(f"{name}-v5", dtype=np.float64), 2000
    task, (qpos, qvel) = env.task, env._first(streams(n))
    joints = slice(None, -2 if task.goal else None)
    shift = (qpos - env._model.qpos0)[:, joints]
    assert np.abs(shift).max() <= task.qpos_noise
    assert shift.std() == pytest.approx(task.qpos_noise / 3**0.5, rel=0.05)
    velocity = qvel[:, joints]
    assert abs(velocity.mean()) < 0.1 * task.qvel_noise
    assert velocity.std() == pytest.approx(task.qvel_noise / (1.0 if task.normal_qvel else 3**0.5), rel=0.05)
    assert (np.abs(velocity).max() > task.qvel_noise) == task.normal_qvel
    if task.goal:
        distance = np.linalg.norm(qpos[:, -2:], axis=1) / task.goal
        assert distance.max() < 1.0
        assert (distance**2).mean() == pytest.approx(0.5, abs=0.03)  # uniform on the disc: the square is uniform on (0, 1)
        assert np.abs(qpos[:, -2:].mean(0)).max() < 0.01
        assert not qvel[:, -2:].any()


def test_first_states_have_the_moments_of_gymnasium_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HalfCheetah", "Reacher"):
        env, reference = MujocoEnv(f"{name}-v5", dtype=np.float64), gymnasium_env(f"{name}-v5", monkeypatch)
        ours = env.reset(400, streams(400)).obs
        theirs = np.stack([reference.reset(seed=seed)[0] for seed in range(400)])
        assert np.allclose(ours.mean(0), theirs.mean(0), atol=0.3 * theirs.std(0).max())
        assert np.allclose(ours.std(0), theirs.std(0), rtol=0.2, atol=1e-3)


@pytest.mark.parametrize(
    ("id", "words"),
    [
        ("HalfCheetah-v4", "use 'HalfCheetah-v5'"),
        ("Ant-v2", "use 'Ant-v5'"),
        ("HalfCheeta-v5", "did you mean 'HalfCheetah-v5'"),
        ("hopper", "did you mean 'Hopper-v5'"),
        ("Pong-v5", "choose one of HalfCheetah-v5"),
    ],
)
def test_an_unknown_id_names_the_right_one(id: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MujocoEnv(id)


@pytest.mark.parametrize("knob", [{"horizon": 0}, {"dtype": np.int32}])
def test_impossible_knobs_are_refused(knob: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"got {next(iter(knob))}"):
        MujocoEnv("Swimmer-v5", **knob)


def test_wrong_shapes_are_refused() -> None:
    env = MujocoEnv("Swimmer-v5", horizon=3)
    assert env.horizon == 3
    with pytest.raises(ValueError, match="one stream a row"):
        env.reset(2, streams(3))
    state = env.reset(2, streams(2))
    for shape in ((2, 3), (1, 2), (2,)):
        with pytest.raises(ValueError, match=r"give shape \(2, 2\)"):
            env.step(state, np.zeros(shape, np.float32), streams(2))


def test_without_mujoco_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"pip install 'pgrl\[mujoco\]'"):
        MujocoEnv("Ant-v5")
