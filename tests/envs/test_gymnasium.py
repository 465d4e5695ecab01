"""Gymnasium environments as ours."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.wrappers import FlattenObservation, TimeLimit

from envs.check import RandomAct, check_env
from envs.core import Env, EnvironmentFault, Trajectories
from envs.mdp.gymnasium_env import GymnasiumEnv
from envs.random import Rng
from envs.rollout import RESET, rollout


class Buttons(gymnasium.Env[Any, Any]):
    """Counts how far two dials stand from a hidden pair; ends when both are found. Dials count from 5."""

    observation_space = Box(-1.0, 1.0, (2, 2), np.float64)
    action_space = MultiDiscrete([3, 4], start=[5, 5])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.hidden = self.np_random.integers([3, 4]) + 5
        return self.np_random.uniform(-1, 1, (2, 2)), {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        right = action == self.hidden
        return self.np_random.uniform(-1, 1, (2, 2)), float(right.sum()), bool(right.all()), False, {}


class Track(gymnasium.Env[Any, Any]):
    """A point pushed along a line by at most 1/2; goes on for ever."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)
    action_space = Box(-0.5, 0.5, (1,), np.float64)

    def __init__(self, broken_at: int | None = None) -> None:
        self.broken_at = broken_at

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t, self.pushes = self.np_random.normal(size=1), 0, [0.0]
        return self.x, {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        self.x += action  # in place, as careless environments do
        self.t += 1
        self.pushes.append(float(action[0]))
        return self.x, -1.0 if self.t != self.broken_at else np.nan, False, False, {}


class Corridor(gymnasium.Env[Any, Any]):
    """Cells 3..7, moves 10 (left) and 11 (right) where there is room; ends in cell 7. Says which moves are valid."""

    observation_space = Discrete(5, start=3)
    action_space = Discrete(2, start=10)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.cell = 3
        return self.cell, self._info()

    def step(self, action: Any) -> Any:
        assert self._info()["action_mask"][action - 10]
        self.cell += 2 * (int(action) - 10) - 1
        return np.int64(self.cell), 1.0, self.cell == 7, False, self._info()

    def _info(self) -> Any:
        return {"action_mask": np.array([self.cell > 3, self.cell < 7], np.int8) * (self.cell < 7)}


@pytest.fixture(scope="module", autouse=True)
def toys() -> Any:
    names = {"Buttons-v0": Buttons, "Track-v0": Track, "Corridor-v0": Corridor}
    for name, kind in names.items():
        gymnasium.register(f"toys/{name}", kind, max_episode_steps=20)
    yield
    for name in names:
        del gymnasium.registry[f"toys/{name}"]


def play(env: Env, seeds: Any, horizon: int | None = None) -> Trajectories:
    return rollout(env, RandomAct(env.action_space, env.backend == "numpy"), Rng.of_seeds(seeds), horizon)


class Push:
    """The same number always; a Gaussian policy with no noise left."""

    def __init__(self, push: float) -> None:
        self.push = push

    def __call__(self, obs: Any, action_mask: Any, rng: Rng) -> Any:
        return np.full((len(obs), 1), self.push, np.float32)

    def rows(self, lo: int, hi: int) -> "Push":
        return self


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "Acrobot-v1", "toys/Buttons-v0", "toys/Track-v0", "toys/Corridor-v0", "Taxi-v4"]
)
def test_the_contract_is_kept(name: str) -> None:
    assert "stepping an old state raises, or gives the same result" in check_env(GymnasiumEnv(name))


def test_cartpole_is_a_plain_loop_bit_for_bit() -> None:
    env, seeds = GymnasiumEnv("CartPole-v1"), range(6)
    for _ in range(2):  # the second time on instances that have been used
        tau = play(env, seeds)
        plain = gymnasium.make("CartPole-v1")
        for i, seed in enumerate(Rng.of_seeds(seeds).fold(RESET).integers().tolist()):
            obs, _ = plain.reset(seed=seed)
            for t in range(int(tau.mask[:, i].sum())):
                assert np.array_equal(obs, tau.obs[t, i].numpy())
                obs, reward, terminated, truncated, _ = plain.step(int(tau.action[t, i]))
                assert reward == tau.reward[t, i]
            assert (terminated, truncated) == (bool(tau.terminated[i]), bool(tau.truncated[i])) == (True, False)
            assert not tau.reward[t + 1 :, i].any()


@pytest.mark.parametrize("name", ["CartPole-v1", "toys/Buttons-v0"])
def test_an_episode_is_the_same_alone_and_in_company(name: str) -> None:
    together = play(GymnasiumEnv(name), [3, 1, 4])
    for i, seed in enumerate([3, 1, 4]):
        alone, ours = play(GymnasiumEnv(name), [seed]), together.rows(i, i + 1)
        for field in ("obs", "action", "reward", "mask", "terminated", "truncated"):
            assert torch.equal(getattr(alone, field), getattr(ours, field))


def test_a_time_limit_truncates_and_keeps_the_last_observation() -> None:
    env = GymnasiumEnv(lambda: TimeLimit(Track(), 7), horizon=50)
    tau = rollout(env, Push(0.25), Rng.of_seeds([0, 1]))
    assert tau.mask.all()
    assert len(tau.mask) == 7
    assert tau.truncated.all()
    assert not tau.terminated.any()
    state = env.reset(2, Rng.of_seeds([0, 1]).fold(RESET))
    for _ in range(9):
        before, state = state, env.step(state, np.full((2, 1), 0.25), Rng.of_seeds([0, 1]))
    assert np.allclose(state.obs - tau.obs[0].numpy(), 7 * 0.25)
    assert np.array_equal(state.obs, before.obs)
    assert not state.reward.any()


def test_the_horizon_of_a_rollout_is_neither_an_end_nor_a_cut_of_the_world() -> None:
    tau = rollout(GymnasiumEnv("toys/Track-v0"), Push(0.0), Rng.of_seeds([0]), horizon=5)
    assert len(tau.mask) == 5
    assert not (tau.terminated | tau.truncated).any()


def test_the_world_gets_the_clipped_action_and_the_trajectory_the_drawn_one() -> None:
    made: list[Track] = []

    def make() -> Track:
        made.append(Track())
        return made[-1]

    tau = rollout(GymnasiumEnv(make, horizon=3), Push(2.0), Rng.of_seeds([0]))
    assert made[0].pushes == [0.0, 0.5, 0.5, 0.5]
    assert (tau.action == 2.0).all()


def test_spaces_that_start_elsewhere_count_from_zero() -> None:
    env = GymnasiumEnv("toys/Corridor-v0")
    assert (env.observation_space, env.action_space) == (Discrete(5), Discrete(2))
    tau = play(env, range(4))
    assert tau.action_mask is not None
    assert tau.obs[0].tolist() == [0] * 4
    assert tau.action_mask[0].tolist() == [[False, True]] * 4
    assert tau.action_mask.gather(2, tau.action[..., None]).all()
    assert tau.action_mask.any(2).all()
    assert GymnasiumEnv("toys/Buttons-v0").action_space == MultiDiscrete([3, 4])


def test_a_mask_that_is_forgotten_is_an_error() -> None:
    class Forgetful(Corridor):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {}

    with pytest.raises(ValueError, match="no action_mask in its info"):
        play(GymnasiumEnv(Forgetful, horizon=9), [0])


def test_nan_is_a_fault_that_names_step_and_action() -> None:
    env = GymnasiumEnv(lambda: Track(broken_at=4), horizon=10)
    with pytest.raises(EnvironmentFault, match=r"non-finite reward in episode 0 at step 3 after action \[0.25\]"):
        rollout(env, Push(0.25), Rng.of_seeds([0, 1]))


def test_a_stale_state_is_refused() -> None:
    env, rng = GymnasiumEnv("CartPole-v1"), Rng.of_seeds([0])
    old = env.reset(1, rng)
    env.step(old, np.array([1]), rng)
    with pytest.raises(ValueError, match="stale"):
        env.step(old, np.array([1]), rng)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPol-v1", "Did you mean CartPole-v1"),
        ("CartPole-v7", "no environment is registered as 'CartPole-v7'. Did you mean CartPole-v1"),
        ("nowhere/Thing-v0", "install it and name its module first"),
        ("HalfCheetah-v9", "Did you mean HalfCheetah-v5"),
        ("not a name!", "no environment is registered as 'not a name!'"),
        ("HalfCheetah-v4", "use HalfCheetah-v5"),
        ("Ant-v2", "use Ant-v5"),
        ("Hopper-v3", "use Hopper-v5"),
        ("Blackjack-v1", "FlattenObservation"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_name_that_cannot_be_served_says_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumEnv(name, horizon=9)


@pytest.mark.parametrize(
    ("module", "entry", "command"),
    [
        ("Box2D", "gymnasium.envs.box2d.lunar_lander:LunarLander", 'pip install swig && pip install "gymnasium[box2d]"'),
        ("imageio", "gymnasium.envs.mujoco.ant_v5:AntEnv", 'pip install "gymnasium[mujoco]"'),
        ("jax", "gymnasium.envs.phys2d.cartpole:CartPoleJaxEnv", 'pip install "gymnasium[jax]"'),
        ("pygame", "elsewhere:Thing", 'pip install "gymnasium[classic-control]"'),
        ("ghost", "elsewhere:Thing", "pip install ghost"),
    ],
)
def test_a_missing_package_says_how_to_install_it(
    module: str, entry: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        try:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        except ModuleNotFoundError as cause:
            raise gymnasium.error.DependencyNotInstalled("run something") from cause

    monkeypatch.setitem(gymnasium.registry, "Needy-v0", gymnasium.envs.registration.EnvSpec("Needy-v0", entry))
    monkeypatch.setattr(gymnasium, "make", missing)
    with pytest.raises(ImportError) as fault:
        GymnasiumEnv("Needy-v0")
    assert str(fault.value) == f"Needy-v0 needs a package that is not installed: {command}"


def test_what_an_environment_must_have() -> None:
    class Odd(Track):
        action_space = Box(0, 5, (1,), np.int64)

    class Nested(Track):
        observation_space = Dict(a=Box(0, 1), b=Discrete(2))

        def reset(self, **_: Any) -> Any:
            super().reset(**_)
            return {"a": np.zeros(1, np.float32), "b": 1}, {}

    class Short(Track):
        observation_space = Box(-np.inf, np.inf, (3,))

    track = Track()
    with pytest.raises(ValueError, match="let it build a new one at each call"):
        play(GymnasiumEnv(lambda: track, horizon=3), [0, 1])
    with pytest.raises(ValueError, match="n = 2 and 1 random keys"):
        GymnasiumEnv(Track, horizon=3).reset(2, Rng.of_seeds([0]))
    with pytest.raises(ValueError, match="set the most steps of an episode"):
        GymnasiumEnv(Track)
    with pytest.raises(ValueError, match="horizon is 0"):
        GymnasiumEnv(Track, horizon=0)
    with pytest.raises(ValueError, match="ActionWrapper"):
        GymnasiumEnv(Odd, horizon=3)
    with pytest.raises(ValueError, match="FlattenObservation"):
        GymnasiumEnv(Nested, horizon=3)
    with pytest.raises(ValueError, match=r"observation of shape \(1,\), but its space has shape \(3,\)"):
        play(GymnasiumEnv(Short, horizon=3), [0])
    env = GymnasiumEnv(Track, horizon=3)
    state = env.reset(1, Rng.of_seeds([0]))
    with pytest.raises(ValueError, match=r"actions of shape \(1,\), expected 1 rows"):
        env.step(state, np.zeros(1), Rng.of_seeds([0]))
    flat = GymnasiumEnv(lambda: FlattenObservation(Nested()), horizon=3)
    assert flat.reset(2, Rng.of_seeds([0, 1])).obs.shape == (2, 3)
    flat.close()
