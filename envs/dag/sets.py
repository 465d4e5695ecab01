"""Sets of a fixed size (Pan et al., ICML 2023, 2302.01687): items are added one by one, in any order, none twice.

    actions   add item i, if it is not in the set; the episode ends by itself with the `size`-th item
    reward    R(x) = exp(-Σ_{i in x} energy_i)

A set of k items has k parents. Energies are additive, so `log_reward_partial` of an unfinished set is exact credit assignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Parents, State
from envs.random import Rng


class Sets:
    """Subsets with `size` of `items` items. An observation is [items] int64 of zeros and ones.

    Args:
        items: items to choose from.
        size: items of a finished set.
        energies: [items]; None: uniform on [-scale, scale], drawn from `seed`.
        scale: of random energies.
        seed: of random energies.
        device: on the CPU a batch is stepped in numpy, elsewhere in torch.

    Raises:
        ValueError: an argument is out of range.
    """

    masked = True

    def __init__(
        self,
        items: int = 30,
        size: int = 20,
        energies: Sequence[float] | Tensor | None = None,
        *,
        scale: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= size <= items:
            raise ValueError(f"size is {size} and there are {items} items, expected 1 <= size <= items")
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale is {scale}, expected a number of at least 0")
        drawn = np.random.default_rng(seed).uniform(-scale, scale, items) if energies is None else energies
        self.energies = torch.as_tensor(drawn, dtype=torch.float64, device=device)
        if tuple(self.energies.shape) != (items,) or not bool(self.energies.isfinite().all()):
            raise ValueError(f"energies are {self.energies.tolist()}, expected one finite number for each of {items} items")
        self.items, self.size, self.device = items, size, torch.device(device)
        self.backend: Literal["torch", "numpy"] = "numpy" if self.device.type == "cpu" else "torch"
        self.observation_space = gymnasium.spaces.MultiDiscrete([2] * items)
        self.action_space = gymnasium.spaces.Discrete(items)
        self.horizon = size
        self.n_states = sum(math.comb(items, k) for k in range(size + 1))
        eye = np.eye(items, dtype=np.int64)
        self._increments: Array = eye if self.backend == "numpy" else torch.from_numpy(eye).to(device)

    # -- forward dynamics, in numpy on the CPU

    def reset(self, n: int, rng: Rng) -> State:
        if self.backend == "numpy":
            return self.state_at(np.zeros((n, self.items), np.int64), np.zeros(n, bool))
        empty = torch.zeros(n, self.items, dtype=torch.int64, device=self.device)
        return self.state_at(empty, torch.zeros(n, dtype=torch.bool, device=self.device))

    def step(self, state: State, action: Array, rng: Rng) -> State:
        obs = state.obs + self._increments[action] * ~state.terminated[:, None]
        return self._state(obs, state.reward, state.truncated)

    def state_at(self, obs: Array, terminated: Array) -> State:
        """The states with these observations. `terminated` is not used: a set has ended when it is full."""
        never = terminated & ~terminated
        return self._state(obs, never.astype(np.float32) if self.backend == "numpy" else never.float(), never)

    def _state(self, obs: Array, reward: Array, truncated: Array) -> State:
        full = obs.sum(1) >= self.size
        return State(obs, reward, full, truncated, None, (obs == 0) | full[:, None])

    # -- the DAG, in torch

    def edges_in(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """[M, items] int64: 1 for each item that may have been the last, else 0."""
        return obs

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents:
        child, action = obs.nonzero(as_tuple=True)
        return Parents(child, obs[child] - torch.as_tensor(self._increments, device=obs.device)[action], action)

    def log_paths(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """Log of the number of paths from the source, [M] float64: log k! for a set of k items."""
        return torch.lgamma(obs.sum(1).double() + 1)

    def index(self, obs: Tensor) -> Tensor:
        """A unique number of each set, [...] int64, below `n_states`, for obs [..., items].

        Smaller sets come first, then the combinatorial number system: Σ_j C(c_j, j) for items c_1 < c_2 < ...

        Raises:
            ValueError: the numbers do not fit into 62 bits.
        """
        begin, ranks = self._numbers
        items = torch.arange(self.items, device=self.device)
        upto = obs.cumsum(-1).clamp(max=self.size)
        return begin[upto[..., -1]] + (ranks[items, upto] * obs).sum(-1)

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor]:
        """The first number of sets with k items, [size + 1], and C(item, j), [items, size + 1]."""
        if self.n_states >= 2**62:
            raise ValueError(f"{self.n_states} sets cannot be numbered, expected fewer than 2^62: do without `index`")
        begin = [sum(math.comb(self.items, k) for k in range(count)) for count in range(self.size + 1)]
        ranks = [[math.comb(item, j) for j in range(self.size + 1)] for item in range(self.items)]
        return torch.tensor(begin, device=self.device), torch.tensor(ranks, device=self.device)

    def propose(self, obs: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Propose x' for MCMC: exchange an item of a full set for one outside, all pairs with equal probability.

        Returns:
            The sets [M, items], and log q(x|x') - log q(x'|x), [M] float64, which is 0.
        """
        log_ratio = torch.zeros(len(obs), dtype=torch.float64, device=obs.device)
        if self.size == self.items:
            return obs, log_ratio
        order = rng.uniform(self.items)
        leaves, enters = (order * obs).argmax(1, keepdim=True), (order * (1 - obs)).argmax(1, keepdim=True)
        return obs.scatter(1, leaves, 0).scatter(1, enters, 1), log_ratio

    # -- rewards

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R(x) = -Σ of the energies, [M] float64."""
        return -(obs.double() @ self.energies)

    log_reward_partial = log_reward  # energies add up

    def describe(self, obs: Tensor) -> list[str]:
        """The items as text, e.g. {0,3,7}."""
        return ["{" + ",".join(str(i) for i, inside in enumerate(row) if inside) + "}" for row in obs.tolist()]
