"""Finite MDPs as batched environments: from transition tables, gridworlds from a text map, random Garnet MDPs.

`envs.mdp.exact` computes the exact value of a policy on them, J(θ), and its gradient and Hessian.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import Array, State
from envs.random import Rng


class FiniteMDP:
    """A finite MDP with S states and A actions. An episode ends on entering a terminal state.

    Terminal states are absorbing and have reward 0.

    Args:
        transition: [S, A, S] probabilities P(s' | s, a); rows sum to 1.
        reward: [S, A] or [S, A, S], r(s, a) or r(s, a, s').
        start: [S] distribution of the first state.
        horizon: steps after which `rollout` truncates an episode.
        terminal: [S] bool; None: no state is terminal.
        dtype: of the rewards that `step` returns.
        device: on the CPU a batch is stepped in numpy, whose look-ups take a third of the time of torch's; elsewhere in torch.

    Raises:
        ValueError: shapes disagree, a row is not a distribution, or `horizon` is below 1.
    """

    def __init__(
        self,
        transition: Tensor,
        reward: Tensor,
        start: Tensor,
        *,
        horizon: int,
        terminal: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        transition, reward, start = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (transition, reward, start))
        n, a = transition.shape[:2]
        terminal = torch.zeros(n, dtype=torch.bool) if terminal is None else torch.as_tensor(terminal, dtype=torch.bool)
        reward = reward[..., None].expand(*reward.shape, n) if reward.dim() == 2 else reward
        for name, value, shape in (
            ("transition", transition, (n, a, n)),
            ("reward", reward, (n, a, n)),
            ("start", start, (n,)),
            ("terminal", terminal, (n,)),
        ):
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape} for {n} states and {a} actions")
        for name, rows in (("transition", transition), ("start", start)):
            if bool((rows < 0).any()) or not torch.allclose(rows.sum(-1), torch.ones(()).double(), atol=1e-9):
                raise ValueError(f"each row of {name} must be a distribution: non-negative, with sum 1")
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}, expected at least 1")
        here = torch.eye(n, dtype=torch.float64)[:, None, :].expand(n, a, n)
        self._dense: tuple[Tensor, Tensor] | None = (
            torch.where(terminal[:, None, None], here, transition).to(device),
            torch.where(terminal[:, None, None], 0.0, reward).to(device),
        )
        k = int((self.transition > 0).sum(-1).max())
        order = (self.transition > 0).to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :k]
        tables = order, self.transition.gather(-1, order), self.reward.gather(-1, order)
        self._complete(*tables, start.to(device), terminal.to(device), horizon, dtype)

    @classmethod
    def sparse(
        cls,
        successors: Tensor,
        probability: Tensor,
        rewards: Tensor,
        start: Tensor,
        *,
        horizon: int,
        terminal: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> FiniteMDP:
        """Make an MDP of many states with few successors each, for which no table of states × states is made.

        Args:
            successors: [S, A, K] int64, states s' that may follow (s, a); one may stand there twice.
            probability: [S, A, K], P(s' | s, a) of these; rows sum to 1.
            rewards: [S, A, K], r(s, a, s').
            start: [S] distribution of the first state.
            horizon: steps after which `rollout` truncates an episode.
            terminal: [S] bool; None: no state is terminal.
            dtype: of the rewards that `step` returns.
            device: see `FiniteMDP`.

        Raises:
            ValueError: shapes disagree, a successor is no state, a row is not a distribution, or `horizon` is below 1.
        """
        n, start, probability, rewards = len(start), start.double(), probability.double(), rewards.double()
        terminal = torch.zeros(n, dtype=torch.bool) if terminal is None else terminal
        shape = tuple(successors.shape)
        if len(shape) != 3 or shape[0] != n or tuple(probability.shape) != shape or tuple(rewards.shape) != shape:
            raise ValueError(
                f"successors have shape {shape}, probability {tuple(probability.shape)} and rewards {tuple(rewards.shape)}, "
                f"expected the same [S, A, K] with S = {n}"
            )
        if not 0 <= int(successors.min()) <= int(successors.max()) < n:
            raise ValueError(f"successors are expected to be states from 0 to {n - 1}")
        for name, rows in (("probability", probability), ("start", start)):
            if bool((rows < 0).any()) or not torch.allclose(rows.sum(-1), torch.ones(()).double(), atol=1e-9):
                raise ValueError(f"each row of {name} must be a distribution: non-negative, with sum 1")
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}, expected at least 1")
        mdp, ends = cls.__new__(cls), terminal[:, None, None]
        mdp._dense = None
        first = torch.arange(shape[2]).eq(0).double()  # a terminal state is followed by itself
        mdp._complete(
            torch.where(ends, torch.arange(n)[:, None, None], successors).to(device),
            torch.where(ends, first, probability).to(device),
            torch.where(ends, 0.0, rewards).to(device),
            start.to(device),
            terminal.to(device),
            horizon,
            dtype,
        )
        return mdp

    @property
    def is_sparse(self) -> bool:
        """Whether there are no tables of states × states: `transition` and `reward` raise ValueError."""
        return self._dense is None

    @property
    def transition(self) -> Tensor:
        """[S, A, S], P(s' | s, a)."""
        return self._tables[0]

    @property
    def reward(self) -> Tensor:
        """[S, A, S], r(s, a, s')."""
        return self._tables[1]

    @property
    def _tables(self) -> tuple[Tensor, Tensor]:
        if self._dense is None:
            raise ValueError(
                f"the MDP has {self.n_states:,} states and no dense tables: use successors, probability and rewards"
            )
        return self._dense

    def _complete(
        self,
        successors: Tensor,
        probability: Tensor,
        rewards: Tensor,
        start: Tensor,
        terminal: Tensor,
        horizon: int,
        dtype: Any,
    ) -> None:
        n, a, self._k = successors.shape
        self.n_states, self.n_actions, self.horizon, self.dtype = n, a, horizon, dtype
        self.successors, self.probability, self.rewards = successors, probability, rewards
        self.start, self.terminal, self.terminates = start, terminal, bool(terminal.any())
        self.observation_space = gymnasium.spaces.Discrete(n)
        self.action_space = gymnasium.spaces.Discrete(a)
        # for sampling: the successors of each (s, a) with their cumulative probabilities, flat over (s, a, k). The last
        # column of the latter is 1 and left out: the index of the successor is the number of columns below a uniform number
        cdf, reward = probability.cumsum(-1).flatten(0, 1), rewards.flatten().to(dtype)
        on_cpu = self.start.device.type == "cpu"
        self.backend: Literal["torch", "numpy"] = "numpy" if on_cpu else "torch"
        give = torch.Tensor.numpy if on_cpu else torch.Tensor.contiguous
        self._cdf = [give(column.contiguous()) for column in cdf.T[:-1]]
        self._next, self._reward, self._ends = give(successors.flatten()), give(reward), give(self.terminal)
        self._start_cdf = [give(c.reshape(1)) for c in self.start.cumsum(0)[:-1]]

    def reset(self, n: int, rng: Rng) -> State:
        u = rng.uniform()
        obs: Array = 0 * (u < 0)  # integers
        for c in self._start_cdf:
            obs = obs + (c < u)
        return State(obs, self._reward.take(obs) * 0, self._ends.take(obs), obs < 0)

    def step(self, state: State, action: Array, rng: Rng) -> State:
        pair = state.obs * self.n_actions + action
        index = pair * self._k
        if self._k > 1:
            u = rng.uniform()
            for column in self._cdf:
                index = index + (column.take(pair) < u)
        obs = self._next.take(index)
        terminated = self._ends.take(obs) if self.terminates else state.terminated
        return State(obs, self._reward.take(index), terminated, state.truncated)


DENSE = 512  # states, up to which there are tables of states × states
DEFAULT_MAP = """
.....
.##..
..P..
.P.#.
....G
"""
DIRECTIONS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}


def gridworld(
    text: str = DEFAULT_MAP,
    *,
    slip: float = 0.1,
    goal_reward: float = 1.0,
    pit_reward: float = -1.0,
    step_reward: float = 0.0,
    horizon: int = 50,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> FiniteMDP:
    """Make a gridworld from a text map. Actions: 0 up, 1 right, 2 down, 3 left.

    With probability `slip` the agent moves at a right angle to the chosen direction, with equal probability to either side. A
    step into a wall or over the edge stays in place.

    Args:
        text: the map, one line a row: `.` free, `#` wall, `S` start, `G` goal, `P` pit. Goals and pits end the episode. Without
            an `S` the start is uniform over the free cells.
        slip: probability in [0, 1].
        goal_reward: added on entering a goal.
        pit_reward: added on entering a pit.
        step_reward: of every step.
        horizon: steps after which `rollout` truncates an episode.
        dtype: of the rewards.
        device: see `FiniteMDP`.

    Returns:
        The MDP; states are the cells that are not walls, row by row.

    Raises:
        ValueError: a wrong character or a row of another length (with line and column), no start cell, or `slip` out of range.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    for i, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise ValueError(
                f"map line {i} has {len(line)} cells, expected {len(lines[0])} as in line 1 (column {len(line) + 1})"
            )
        for j, sign in enumerate(line, 1):
            if sign not in ".#SGP":
                raise ValueError(f"map line {i}, column {j}: got {sign!r}, expected one of . # S G P")
    if not 0 <= slip <= 1:
        raise ValueError(f"slip is {slip}, expected a probability between 0 and 1")
    cells = {(i, j): sign for i, line in enumerate(lines) for j, sign in enumerate(line) if sign != "#"}
    number = {cell: k for k, cell in enumerate(cells)}
    starts = [c for c, sign in cells.items() if sign == "S"] or [c for c, sign in cells.items() if sign == "."]
    if not starts:
        raise ValueError("the map has no cell to start from: add an S or a free cell (.)")
    n, directions = len(cells), list(DIRECTIONS.values())
    start = torch.zeros(n, dtype=torch.float64)
    start[[number[c] for c in starts]] = 1 / len(starts)
    terminal = torch.tensor([sign in "GP" for sign in cells.values()])
    if n > DENSE:
        there = torch.tensor([[number.get((i + di, j + dj), k) for di, dj in directions] for (i, j), k in number.items()])
        successors = torch.stack([there.roll(-turn, 1) for turn in (0, 1, -1)], -1)
        added = torch.tensor(
            [{"G": goal_reward, "P": pit_reward}.get(sign, 0.0) for sign in cells.values()], dtype=torch.float64
        )
        probability = torch.tensor([1 - slip, slip / 2, slip / 2], dtype=torch.float64).expand(successors.shape)
        return FiniteMDP.sparse(
            successors,
            probability,
            step_reward + added[successors],
            start,
            horizon=horizon,
            terminal=terminal,
            dtype=dtype,
            device=device,
        )
    transition, reward = torch.zeros(n, 4, n, dtype=torch.float64), torch.full((n, 4, n), step_reward, dtype=torch.float64)
    for (i, j), k in number.items():
        for a in range(4):
            for turn, p in ((0, 1 - slip), (1, slip / 2), (-1, slip / 2)):
                di, dj = directions[(a + turn) % 4]
                transition[k, a, number.get((i + di, j + dj), k)] += p
    for cell, sign in cells.items():
        reward[:, :, number[cell]] += {"G": goal_reward, "P": pit_reward}.get(sign, 0.0)
    return FiniteMDP(transition, reward, start, horizon=horizon, terminal=terminal, dtype=dtype, device=device)


def garnet(
    n_states: int = 8,
    n_actions: int = 3,
    branching: int = 3,
    *,
    seed: int = 0,
    horizon: int = 50,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> FiniteMDP:
    """Make a random MDP: `branching` successors of each (s, a) with Dirichlet(1) probabilities, rewards uniform on [0, 1].

    The first state is uniform over all states. The same `seed` gives the same MDP.

    Args:
        n_states: S.
        n_actions: A.
        branching: successors of each (s, a), between 1 and S.
        seed: of the tables.
        horizon: steps after which `rollout` truncates an episode.
        dtype: of the rewards.
        device: see `FiniteMDP`.

    Raises:
        ValueError: `branching` is out of range.

    Source:
        Archibald, McKinnon and Thomas 1995; Bhatnagar et al. 2009.
    """
    if not 1 <= branching <= n_states:
        raise ValueError(f"branching is {branching}, expected between 1 and n_states = {n_states}")
    draw = np.random.default_rng(seed)
    transition = np.zeros((n_states, n_actions, n_states))
    for s in range(n_states):
        for a in range(n_actions):
            transition[s, a, draw.choice(n_states, branching, replace=False)] = draw.dirichlet(np.ones(branching))
    reward, start = draw.uniform(size=(n_states, n_actions)), np.full(n_states, 1 / n_states)
    tables = (torch.from_numpy(x) for x in (transition, reward, start))
    return FiniteMDP(*tables, horizon=horizon, dtype=dtype, device=device)
