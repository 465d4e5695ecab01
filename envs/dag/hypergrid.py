"""The hypergrid of Bengio et al. (NeurIPS 2021): cells {0..H-1}^n; an action increases a coordinate by 1 or stops.

    actions   0..n-1 increase a coordinate, n stops
    reward    corners  R0 + R1·Π[1/4 < |x_i/(H-1) - 1/2|] + R2·Π[3/10 < |x_i/(H-1) - 1/2| < 4/10]
              cosine   R0 + Π (cos(50 u_i) + 1)·N(5 u_i),  u_i = 2x_i/(H-1) - 1, N the standard normal density (A.6)

The literature has two conventions, whose results are not comparable:
    stop       an episode ends by the stop action only, in any cell (H^n objects; torchgfn, gfnx)
    paper2021  an episode also ends on entering a cell with a coordinate at H-1 (the code of 2021; 3,773 objects for n=4, H=8)

Differs from the paper's text: H-1 in place of H, as in its code and in its figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Parents, RewardFault, State
from envs.random import Rng

Reward = Callable[[Tensor], Tensor]
CONVENTIONS = ("stop", "paper2021")


class HyperGrid:
    """A hypergrid with `ndim` coordinates of `height` values. An observation is the cell, [ndim] int64.

    The module docstring defines the conventions and the rewards.

    Args:
        ndim: n, at least 1.
        height: H, at least 2.
        R0: of the corners and the cosine reward, above 0.
        R1: of the corners reward, at least 0.
        R2: of the corners reward, at least 0.
        reward: "corners", "cosine", or a function of cells [M, ndim] that returns R [M] > 0.
        convention: "stop" or "paper2021".
        device: on the CPU a batch is stepped in numpy, whose small operations take a third of the time of torch's; elsewhere in
            torch.

    Raises:
        ValueError: an argument is out of range, or the grid has 2^62 cells or more.
    """

    masked = True

    def __init__(
        self,
        ndim: int = 4,
        height: int = 8,
        R0: float = 0.1,
        R1: float = 0.5,
        R2: float = 2.0,
        *,
        reward: Literal["corners", "cosine"] | Reward = "corners",
        convention: str = "stop",
        device: torch.device | str = "cpu",
    ) -> None:
        if ndim < 1 or height < 2:
            raise ValueError(f"ndim is {ndim} and height is {height}, expected ndim >= 1 and height >= 2")
        if height**ndim >= 2**62:
            raise ValueError(
                f"a grid of {height}^{ndim} cells cannot be numbered: choose ndim and height with height^ndim < 2^62"
            )
        if convention not in CONVENTIONS:
            raise ValueError(f"convention is {convention!r}, expected {' or '.join(CONVENTIONS)}")
        if not callable(reward) and reward not in ("corners", "cosine"):
            raise ValueError(f"reward is {reward!r}, expected corners, cosine or a function of cells")
        if not callable(reward) and not (0 < R0 < math.inf and 0 <= R1 < math.inf and 0 <= R2 < math.inf):
            raise ValueError(f"R0, R1, R2 are {R0}, {R1}, {R2}: expected R0 > 0 (a log is taken) and R1, R2 >= 0")
        self.ndim, self.height, self.R0, self.R1, self.R2 = ndim, height, R0, R1, R2
        self.convention, self.reward, self._early = convention, reward, convention == "paper2021"
        self.device = torch.device(device)
        self.backend: Literal["torch", "numpy"] = "numpy" if self.device.type == "cpu" else "torch"
        self.observation_space = gymnasium.spaces.MultiDiscrete([height] * ndim)
        self.action_space = gymnasium.spaces.Discrete(ndim + 1)
        self.horizon = ndim * (height - 1) + 1 if convention == "stop" else ndim * (height - 2) + 1
        self.n_states, self.stop = height**ndim, ndim
        # the extra column is 0 always, so that one comparison with the limits gives the mask, with stop always valid
        increments = np.vstack([np.eye(ndim, ndim + 1, dtype=np.int64), np.zeros((1, ndim + 1), dtype=np.int64)])
        limits = np.array([2**62 if self._early else height - 1] * ndim + [2**62])
        on_cpu = self.backend == "numpy"
        self._increments, self._limits = (x if on_cpu else torch.from_numpy(x).to(self.device) for x in (increments, limits))
        self._strides = torch.tensor([height ** (ndim - 1 - i) for i in range(ndim)], device=self.device)
        twice = (
            5 * (2 * torch.arange(height, device=self.device) - (height - 1)).abs()
        )  # in integers: floats round wrongly at H = 16
        self._outer = 2 * twice > 5 * (height - 1)
        self._ring = (3 * (height - 1) < twice) & (twice < 4 * (height - 1))

    # -- forward dynamics, in numpy on the CPU

    def reset(self, n: int, rng: Rng) -> State:
        zeros = self._xp.zeros((n, self.ndim), dtype=self._xp.int64, **self._where)
        return self.state_at(
            zeros, self._xp.zeros(n, dtype=self._xp.bool_ if self.backend == "numpy" else torch.bool, **self._where)
        )

    def step(self, state: State, action: Array, rng: Rng) -> State:
        action = self._xp.where(state.terminated, self.ndim, action)
        return self._state(state.inner + self._increments[action], state.terminated | (action == self.ndim), state)

    def state_at(self, obs: Array, terminated: Array) -> State:
        never = terminated & ~terminated
        reward = never.astype(np.float32) if self.backend == "numpy" else never.float()
        wide = (obs, 0 * obs[:, :1])
        inner = np.concatenate(wide, 1) if self.backend == "numpy" else torch.cat(wide, 1)
        return self._state(inner, terminated, State(obs, reward, terminated, never))

    def _state(self, inner: Array, terminated: Array, before: State) -> State:
        obs = inner[:, : self.ndim]
        if self._early:
            terminated = terminated | (obs == self.height - 1).any(1)
        return State(obs, before.reward, terminated, before.truncated, inner, inner < self._limits)

    @property
    def _xp(self) -> Any:
        return np if self.backend == "numpy" else torch

    @property
    def _where(self) -> dict[str, Any]:
        return {} if self.backend == "numpy" else {"device": self.device}

    # -- the DAG, in torch

    def edges_in(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """[M, n + 1] bool: whether an edge with this action leads into the state; there is at most one."""
        if not self._early:
            return torch.cat([(obs > 0) & ~terminated[:, None], terminated[:, None]], 1)
        border = obs == self.height - 1
        on_border = border.any(1)
        kept = terminated & ~on_border
        by_step = torch.where(on_border[:, None], border, obs > 0) & ~kept[:, None]
        return torch.cat([by_step, kept[:, None]], 1)

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents:
        child, action = self.edges_in(obs, terminated).nonzero(as_tuple=True)
        increments = torch.as_tensor(self._increments, device=obs.device)[:, : self.ndim]
        return Parents(child, obs[child] - increments[action], action)

    def log_paths(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """Log of the number of paths from the source, [M] float64.

        It is log (Σx)!/Πx_i!, taken at the only parent if the path ends at the border (paper2021).
        """
        x = obs.double()
        if self._early:
            x = torch.where(terminated[:, None] & (obs == self.height - 1), x - 1, x)
        return torch.lgamma(x.sum(1) + 1) - torch.lgamma(x + 1).sum(1)

    def index(self, obs: Tensor) -> Tensor:
        """A unique number of each cell, [...] int64, below `n_states`, for obs [..., ndim]."""
        return (obs * self._strides).sum(-1)

    def reachable(self, obs: Tensor) -> Tensor:
        """[M] bool: whether these cells can be objects; in `paper2021` at most one coordinate is at H-1."""
        return (
            (obs == self.height - 1).sum(1) <= 1 if self._early else torch.ones(len(obs), dtype=torch.bool, device=obs.device)
        )

    def propose(self, obs: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Propose x' for MCMC: change one coordinate by ±1, all 2n changes with equal probability.

        A change that leaves the grid, or leads to a cell that is no object, is replaced by no change.

        Returns:
            The cells [M, n], and log q(x|x') - log q(x'|x), [M] float64, which is 0.
        """
        change = (rng.uniform() * 2 * self.ndim).long().clamp_max(2 * self.ndim - 1)
        step = torch.nn.functional.one_hot(change // 2, self.ndim) * (2 * (change % 2) - 1)[:, None]
        moved = (obs + step).clamp(0, self.height - 1)
        log_ratio = torch.zeros(len(obs), dtype=torch.float64, device=obs.device)
        return torch.where(self.reachable(moved)[:, None], moved, obs), log_ratio

    # -- rewards and modes

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R of cells obs [M, ndim], [M] float64.

        Raises:
            RewardFault: a reward function returned another shape, or a value that is not finite and positive.
        """
        if callable(self.reward):
            R = torch.as_tensor(self.reward(obs)).double()
            if tuple(R.shape) != (len(obs),):
                raise RewardFault(
                    f"the reward function returned shape {tuple(R.shape)}, expected ({len(obs)},): one for each cell"
                )
            bad = ~(torch.isfinite(R) & (R > 0))
            if bool(bad.any()):
                at = int(bad.nonzero()[0])
                raise RewardFault(f"R is {R[at].item()} at cell {obs[at].tolist()}, expected a positive number")
            return R.log()
        if self.reward == "cosine":
            u = 2 * obs.double() / (self.height - 1) - 1
            bump = (torch.cos(50 * u) + 1) * torch.exp(-((5 * u) ** 2) / 2) / math.sqrt(2 * math.pi)
            return (self.R0 + bump.prod(1)).log()
        plateau, peak = self._outer[obs].all(1).double(), self._ring[obs].all(1).double()
        return (self.R0 + self.R1 * plateau + self.R2 * peak).log()

    log_reward_partial = log_reward  # every cell is an object

    @property
    def n_modes(self) -> int:
        """Number of modes as regions, one for each corner: 2^n; 0 if no coordinate is in the ring, or for another reward."""
        return 2**self.ndim if self.reward == "corners" and bool(self._ring.any()) else 0

    def modes(self, obs: Tensor) -> Tensor:
        """The mode (corner) in which each cell lies, -1 if in none, [M] int64."""
        if not self.n_modes:
            return torch.full_like(obs[:, 0], -1)
        side = (2 * obs > self.height - 1).long()
        corner = (side << torch.arange(self.ndim, device=obs.device)).sum(1)
        return torch.where(self._ring[obs].all(1), corner, -1)

    def describe(self, obs: Tensor) -> list[str]:
        """The coordinates as text, e.g. 0,3,7."""
        return [",".join(map(str, cell)) for cell in obs.tolist()]
