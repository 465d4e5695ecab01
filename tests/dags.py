"""A DAG as a table, one small enough to count by hand, and environments of the CPU stepped in torch."""

from copy import copy
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from envs.check import RandomAct
from envs.core import Parents, State, Trajectories
from envs.random import Rng
from envs.rollout import rollout


class TableDag:
    """`table[s][a]` is the state that action a leads to from s, -1 where it is invalid; states without moves are objects.

    The observation is the number of the state, shape [B].
    """

    backend: ClassVar[Any] = "torch"
    masked = True

    def __init__(self, table: list[list[int]], log_reward: list[float], horizon: int) -> None:
        self.table, self.worth = torch.tensor(table), torch.tensor(log_reward, dtype=torch.float64)
        self.n_states, n_actions = self.table.shape
        self.observation_space, self.action_space, self.horizon = Discrete(self.n_states), Discrete(n_actions), horizon

    def reset(self, n: int, rng: Rng) -> State:
        return self.state_at(torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool))

    def state_at(self, obs: Any, terminated: Any) -> State:
        over = (self.table[obs] < 0).all(1)
        never = torch.zeros_like(over)
        return State(obs, never.float(), over, never, None, (self.table[obs] >= 0) | over[:, None])

    def step(self, state: State, action: Any, rng: Rng) -> State:
        return self.state_at(torch.where(state.terminated, state.obs, self.table[state.obs, action]), state.terminated)

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents:
        child, parent, action = (self.table == obs[:, None, None]).nonzero(as_tuple=True)
        return Parents(child, parent, action)

    def edges_in(self, obs: Tensor, terminated: Tensor) -> Tensor:
        return (self.table == obs[:, None, None]).sum(1)

    def log_reward(self, obs: Tensor) -> Tensor:
        return self.worth[obs]

    def describe(self, obs: Tensor) -> list[str]:
        return [str(s) for s in obs.tolist()]

    def index(self, obs: Tensor) -> Tensor:
        return obs


def crossing() -> TableDag:
    """0 -> 1, 2;  1 and 2 -> 3 by the same action 0, and 2 -> 3 by action 1 too;  1 -> 4;  3 -> 4, 5.  Objects 4 and 5.

    3 is reached by paths of one length, 4 by paths of length 2 and 3.
    """
    table = [[1, 2], [3, 4], [3, 3], [4, 5], [-1, -1], [-1, -1]]
    return TableDag(table, [0.0, 0.0, 0.0, 0.0, 0.5, -1.0], horizon=3)


def torch_twin(env: Any) -> Any:
    """The same environment, stepped in torch on the CPU."""
    twin = copy(env)
    twin.backend = "torch"
    for name, value in vars(env).items():
        if isinstance(value, np.ndarray):
            setattr(twin, name, torch.from_numpy(value))
    return twin


def assert_same_journeys(a: Any, b: Any, episodes: int = 50) -> None:
    """To the bit, under the same random actions."""
    rng = Rng.of_seeds(range(episodes))
    ours, theirs = (rollout(env, RandomAct(env.action_space, env.backend == "numpy"), rng) for env in (a, b))
    assert a.backend != b.backend
    for f in fields(Trajectories):
        x, y = getattr(ours, f.name), getattr(theirs, f.name)
        assert x.dtype == y.dtype, f.name
        assert torch.equal(x, y), f.name
