"""Episodes played in other processes are the same episodes, whatever happens to the processes."""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from envs.core import EnvironmentFault, State, Trajectories
from envs.random import Rng
from envs.rollout import rollout
from envs.workers import Workers
from pgrl.policy import policy_for


@dataclass
class Walk:
    """A noisy walk on a line that ends beyond ±2; `trap` is what happens to an episode that begins above it."""

    horizon: int = 30
    trap: str = ""

    backend: ClassVar = "numpy"
    observation_space: ClassVar = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space: ClassVar = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, n: int, rng: Rng) -> State:
        x = rng.uniform(1)
        if self.trap == "exit" and os.getpid() != MAIN and not os.path.exists(FLAG):
            open(FLAG, "w").close()
            os._exit(3)
        return State(x, np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, bool))

    def step(self, state: State, action, rng: Rng) -> State:
        over = state.terminated
        x = np.where(over[:, None], state.obs, state.obs + 0.1 * action + 0.3 * rng.normal(1)).astype(np.float32)
        reward = np.where(over, 0.0, -np.abs(x[:, 0])).astype(np.float32)
        if self.trap == "nan":
            reward[np.abs(x[:, 0]) > 1.5] = np.nan
        return State(x, reward, over | (np.abs(x[:, 0]) > 2), state.truncated)


MAIN = int(os.environ.setdefault("WALK_MAIN_PROCESS", str(os.getpid())))
FLAG = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"walk-{MAIN}-died-once")


def play(env: Walk, workers: Workers | None, episodes: int = 7) -> Trajectories:
    policy = policy_for(env, hidden=(4,))
    theta = policy.init(Rng.of_seeds(range(episodes)))
    return rollout(env, policy.actor(theta, 1, "numpy"), Rng.of_seeds(range(episodes)), workers=workers)


def same(a: Trajectories, b: Trajectories) -> bool:
    """Equal steps, up to rounding: vector instructions round differently at the end of an array."""
    if not (torch.equal(a.mask, b.mask) and torch.equal(a.terminated, b.terminated)):
        return False
    return all(
        torch.allclose(x[a.mask], y[a.mask], atol=1e-5) for x, y in ((a.obs, b.obs), (a.action, b.action), (a.reward, b.reward))
    )


def test_any_number_of_workers_plays_the_same_episodes() -> None:
    env = Walk()
    alone = play(env, None)
    assert alone.terminated.any()
    with Workers(env, 2) as workers:
        assert same(alone, play(env, workers))
        assert same(alone.rows(0, 1), play(env, workers, episodes=1))
        assert same(play(env, None, 2), play(env, workers, episodes=2))
        assert workers.restarts == 0


def test_seeds_are_not_cut_through_where_there_are_enough() -> None:
    """Then even rounding is the same: products are taken over the same rows."""
    env = Walk()
    policy = policy_for(env, hidden=(16, 16))
    actor = policy.actor(policy.init(Rng.of_seeds(range(3))), 5, "numpy")
    whole = rollout(env, actor, Rng.of_seeds(range(3)).spawn(5))
    with Workers(env, 1) as workers:
        split = rollout(env, actor, Rng.of_seeds(range(3)).spawn(5), workers=workers)
    assert torch.equal(split.action[split.mask][:15], whole.action[whole.mask][:15])
    assert same(split, whole)


def test_a_group_of_episodes_may_be_split_among_workers() -> None:
    env = Walk()
    policy = policy_for(env)
    actor = policy.actor(policy.init(Rng.of_seeds([5])), 6, "numpy")
    with Workers(env, 1) as workers:
        split = rollout(env, actor, Rng.of_seeds([5]).spawn(6), workers=workers)
    whole = rollout(env, actor, Rng.of_seeds([5]).spawn(6))
    assert same(split, whole)


def test_a_dead_worker_is_replaced_and_its_episodes_played_again() -> None:
    env = Walk(trap="exit")
    if os.path.exists(FLAG):
        os.unlink(FLAG)
    try:
        with Workers(env, 1) as workers:
            assert same(play(Walk(), None), play(env, workers))
            assert workers.restarts == 1
            victim = next(iter(workers._pool._processes))
            os.kill(victim, signal.SIGKILL)
            time.sleep(0.3)
            assert same(play(Walk(), None), play(env, workers))
            assert workers.restarts == 2
    finally:
        os.unlink(FLAG)


def test_a_fault_in_a_worker_names_the_episode_of_the_whole_batch() -> None:
    env = Walk(trap="nan")
    with pytest.raises(EnvironmentFault) as alone:
        play(env, None, 40)
    with Workers(env, 1) as workers, pytest.raises(EnvironmentFault) as shared:
        play(env, workers, 40)
    assert shared.value.what == alone.value.what == "reward"
    row, at = shared.value.row, shared.value.step
    tau = play(Walk(), None, 40)  # the same episodes without the trap
    assert tau.mask[at, row]
    after = tau.obs[at + 1, row] if at + 1 < len(tau.obs) else torch.tensor([9.0])
    assert float(after.abs()) > 1.5
    assert not bool((tau.obs[: at + 1, row].abs() > 1.5).any()) or at == 0


def test_no_worker_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Workers(Walk(), 0)
