"""Our environments as Gymnasium environments."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env as gymnasium_check

from envs.check import RandomAct, check_env
from envs.mdp.gymnasium_env import GymnasiumEnv
from envs.mdp.gymnasium_export import Exported
from envs.mdp.lqr import double_integrator
from envs.mdp.tabular import garnet, gridworld
from envs.random import Rng
from envs.registration import ENTRY_POINTS, register_envs
from envs.rollout import rollout

ROOT = Path(__file__).parents[2]
INFINITE = ".*Box .* space (minimum|maximum) value is -?infinity|.*recommend using a symmetric and normalized space"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_gymnasium_finds_nothing_to_say_about_our_worlds(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name == "pgrl/LQR-v0":  # its boxes are infinite, and Gymnasium warns of that in its own HalfCheetah
            warnings.filterwarnings("ignore", INFINITE)
        gymnasium_check(gymnasium.make(name).unwrapped)


@pytest.mark.parametrize("world", [gridworld(), garnet(seed=3), double_integrator(), GymnasiumEnv("CartPole-v1")])
def test_an_export_plays_the_episodes_of_rollout(world: Any) -> None:
    single = Exported(world)
    _, info = single.reset(seed=5)
    tau = rollout(world, RandomAct(world.action_space, world.backend == "numpy"), Rng.of_seeds([info["key"]]))
    obs, _ = single.reset(seed=5)
    for t in range(len(tau.mask)):
        assert np.array_equal(obs, tau.obs[t, 0].numpy())
        obs, reward, terminated, truncated, _ = single.step(tau.action[t, 0].numpy())
        assert reward == tau.reward[t, 0]
    assert terminated == bool(tau.terminated[0])
    assert truncated is (not terminated)
    with pytest.raises(gymnasium.error.ResetNeeded):
        single.step(0)


def test_an_export_that_comes_back_keeps_the_contract() -> None:
    check_env(GymnasiumEnv(lambda: Exported(gridworld()), horizon=50))
    masked = GymnasiumEnv(lambda: Exported(GymnasiumEnv("Taxi-v4")), horizon=20)
    assert "every row has a valid action" in check_env(masked)


def test_seeds_decide_and_resets_without_a_seed_differ() -> None:
    single = gymnasium.make("pgrl/LQR-v0")
    first = [single.reset(seed=7)[0], single.reset()[0], single.reset()[0]]
    second = [single.reset(seed=7)[0], single.reset()[0], single.reset()[0]]
    assert np.array_equal(first, second)
    assert len({float(x[0]) for x in first}) == 3


def test_settings_reach_the_world() -> None:
    assert gymnasium.make("pgrl/Garnet-v0", n_states=5, seed=2).observation_space == Discrete(5)
    single = gymnasium.make("pgrl/GridWorld-v0", text="S.G", slip=0.0, horizon=3)
    single.reset(seed=0)
    assert single.step(1)[:4] == (1, 0.0, False, False)
    assert single.step(1)[:4] == (2, 1.0, True, False)


def test_rendering_is_there_where_the_world_has_it() -> None:
    world: Any = gridworld()
    with pytest.raises(ValueError, match="render_mode is 'ansi', this environment has none"):
        Exported(world, "ansi")
    world.render = lambda state: f"state {int(state.obs[0])}"
    single = Exported(world, "ansi")
    with pytest.raises(gymnasium.error.ResetNeeded):
        single.render()
    obs, _ = single.reset(seed=0)
    assert single.render() == f"state {obs}"
    gymnasium.register("Drawn-v0", lambda render_mode=None: Exported(world, render_mode))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check(gymnasium.make("Drawn-v0", render_mode="ansi").unwrapped)
    del gymnasium.registry["Drawn-v0"]


def test_registering_twice_is_registering_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()


def test_a_fresh_python_needs_nothing_but_gymnasium(tmp_path: Path) -> None:
    code = """import gymnasium
gymnasium.make("envs.registration:pgrl/GridWorld-v0").reset(seed=0)
print(len(gymnasium.make_vec("pgrl/GridWorld-v0", 3).reset(seed=0)[0]))"""
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (out.stdout.strip(), out.stderr) == ("3", "")


def test_registration_is_light() -> None:
    code = "import sys, envs.registration; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
