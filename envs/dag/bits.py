"""Bit sequences (Malkin et al., NeurIPS 2022, 2201.13259): strings of bits, built word by word with k bits a word.

    order "append"   write the next word, from left to right: a tree, every state has one parent
    order "any"      write any word at any empty position (Tiapkin et al., AISTATS 2024, 2310.12934): t words have t parents

The episode ends by itself with the last word. R(x) = exp(-β min_m d(x, m) / length) with d the Hamming distance to one of M
hidden modes, which are concatenations of random blocks. The test set is every mode with 0, 1, .., length-1 of its bits flipped.

Differs from the papers: the distance is that of Tiapkin et al., not the edit distance of Malkin et al., and is divided by the
length; β = 2·length gives the reward of the former's code. Modes are distinct.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Parents, State
from envs.random import Rng

BLOCKS = ("00000000", "11111111", "11110000", "00001111", "00111100")


class Bits:
    """Strings of bits. An observation is [length / word] int64: the words as numbers, 2^word at positions not yet written.

    Args:
        length: bits of a finished string.
        word: bits of a word, 1 to 16; it divides `length`.
        n_modes: hidden modes.
        mode_blocks: blocks of which modes are made, if their length divides `length`; otherwise modes are random bits.
        order: "append" or "any".
        beta: β, at least 0; R falls from 1 to e^-β over a distance of `length` bits.
        radius: a mode counts as found by an object within this many bits (28 to 30 of 120 in the papers).
        seed: of the modes and the test set.
        device: on the CPU a batch is stepped in numpy, elsewhere in torch.

    Raises:
        ValueError: an argument is out of range, or there are fewer than `n_modes` distinct modes.
    """

    masked = True

    def __init__(
        self,
        length: int = 120,
        word: int = 1,
        n_modes: int = 60,
        mode_blocks: Sequence[str] = BLOCKS,
        order: str = "append",
        beta: float = 3.0,
        *,
        radius: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if word < 1 or word > 16 or length < word or length % word:
            raise ValueError(f"length is {length} and word is {word}, expected 1 <= word <= 16 and a multiple of it")
        if n_modes * length > 100_000_000:
            raise ValueError(f"{n_modes} modes of {length} bits are too many, expected at most 100,000,000 bits in all")
        if order not in ("append", "any"):
            raise ValueError(f"order is {order!r}, expected append or any")
        if not 0 <= beta < math.inf or radius < 0:
            raise ValueError(f"beta is {beta} and radius is {radius}, expected numbers of at least 0")
        self.length, self.word, self.order, self.beta, self.radius = length, word, order, beta, radius
        self.n_modes, self.seed, self.device = n_modes, seed, torch.device(device)
        self.mode_bits = torch.from_numpy(_draw_modes(length, n_modes, mode_blocks, seed)).to(device)  # [n_modes, length]
        self.positions, self.words = length // word, 2**word
        self.backend: Literal["torch", "numpy"] = "numpy" if self.device.type == "cpu" else "torch"
        self.observation_space = gymnasium.spaces.MultiDiscrete([self.words + 1] * self.positions)
        self.action_space = gymnasium.spaces.Discrete(self.words * (1 if order == "append" else self.positions))
        self.horizon = self.positions
        tree = (self.words ** (self.positions + 1) - 1) // (self.words - 1)
        self.n_states = tree if order == "append" else (self.words + 1) ** self.positions

    # -- forward dynamics, in numpy on the CPU

    def reset(self, n: int, rng: Rng) -> State:
        if self.backend == "numpy":
            return self.state_at(np.full((n, self.positions), self.words), np.zeros(n, bool))
        empty = torch.full((n, self.positions), self.words, device=self.device)
        return self.state_at(empty, torch.zeros(n, dtype=torch.bool, device=self.device))

    def step(self, state: State, action: Array, rng: Rng) -> State:
        xp: Any = np if self.backend == "numpy" else torch
        rows = np.arange(len(action)) if self.backend == "numpy" else torch.arange(len(action), device=self.device)
        if self.order == "append":
            place, value = (state.obs != self.words).sum(1).clip(max=self.positions - 1), action
        else:
            place, value = action // self.words, action % self.words
        obs = state.obs + 0
        obs[rows, place] = xp.where(state.terminated, obs[rows, place], value)
        return self._state(obs, state.reward, state.truncated)

    def state_at(self, obs: Array, terminated: Array) -> State:
        """The states with these observations. `terminated` is not used: a string has ended when no position is empty."""
        never = terminated & ~terminated
        return self._state(obs, never.astype(np.float32) if self.backend == "numpy" else never.float(), never)

    def _state(self, obs: Array, reward: Array, truncated: Array) -> State:
        empty = obs == self.words
        full = ~empty.any(1)
        free = (empty | full[:, None])[:, :, None]
        every = np.ones(self.words, bool) if self.backend == "numpy" else full.new_ones(self.words)
        mask = (free & every).reshape(len(obs), -1) if self.order == "any" else (full | ~full)[:, None] & every
        return State(obs, reward, full, truncated, None, mask)

    # -- the DAG, in torch

    def edges_in(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """[M, A] int64: 1 for each action that may have been the last, else 0."""
        count = torch.zeros(len(obs), int(self.action_space.n), dtype=torch.int64, device=obs.device)
        child, _, action = self._last(obs)
        count[child, action] = 1
        return count

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents:
        child, place, action = self._last(obs)
        before = obs[child]
        before[torch.arange(len(child), device=obs.device), place] = self.words
        return Parents(child, before, action)

    def _last(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The words that may have been written last: rows, positions and actions, [E] each."""
        written = obs != self.words
        if self.order == "append":
            written = written & (written.cumsum(1) == written.sum(1, keepdim=True))
        child, place = written.nonzero(as_tuple=True)
        return child, place, obs[child, place] + (place * self.words if self.order == "any" else 0)

    def log_paths(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """Log of the number of paths from the source, [M] float64: log t! for t words in any order, 0 for "append"."""
        count = (obs != self.words).sum(1).double()
        return torch.lgamma(count + 1) if self.order == "any" else torch.zeros_like(count)

    def index(self, obs: Tensor) -> Tensor:
        """A unique number of each observation, [...] int64, below `n_states`, for obs [..., positions].

        "append": shorter strings first, then by their words. "any": the words are digits to the base 2^word + 1.

        Raises:
            ValueError: the numbers do not fit into 62 bits.
        """
        if self.n_states >= 2**62:
            raise ValueError(f"{self.n_states} strings cannot be numbered, expected fewer than 2^62: do without `index`")
        number = torch.zeros_like(obs[..., 0])
        for word in obs.unbind(-1):
            if self.order == "any":
                number = number * (self.words + 1) + word
            else:  # the nodes of a complete tree, level by level
                number = torch.where(word < self.words, number * self.words + 1 + word, number)
        return number

    def propose(self, obs: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Propose x' for MCMC: flip one bit of each finished string, chosen uniformly.

        Returns:
            The strings [M, positions], and log q(x|x') - log q(x'|x), [M] float64, which is 0.
        """
        bit = (rng.uniform() * self.length).long().clamp_max(self.length - 1)[:, None]
        place, flip = bit // self.word, 1 << (bit % self.word)
        return obs.scatter(1, place, obs.gather(1, place) ^ flip), torch.zeros(len(obs), dtype=torch.float64, device=obs.device)

    # -- rewards and modes

    def bits(self, obs: Tensor) -> Tensor:
        """The bits of observations, [M, length] of 0 and 1, -1 at positions not yet written."""
        shift = torch.arange(self.word - 1, -1, -1, device=obs.device)
        bits = torch.where((obs == self.words)[..., None], -1, obs[..., None] >> shift & 1)
        return bits.reshape(len(obs), self.length)

    def tokens(self, bits: Tensor) -> Tensor:
        """Observations, [M, positions], of finished strings given as bits [M, length]."""
        weight = 2 ** torch.arange(self.word - 1, -1, -1, device=bits.device)
        return (bits.reshape(len(bits), self.positions, self.word) * weight).sum(-1)

    def distances(self, obs: Tensor) -> Tensor:
        """Hamming distance of the written bits to each mode, [M, n_modes] int64."""
        bits = self.bits(obs)
        sign = torch.where(bits < 0, 0, 2 * bits - 1).double()  # the product counts agreements minus disagreements
        written = (bits >= 0).sum(1, keepdim=True)
        return ((written - sign @ (2 * self.mode_bits - 1).double().T) / 2).round().long()

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R(x) = -β/length times the distance to the nearest mode, [M] float64. Positions not yet written do not count."""
        return -self.beta / self.length * self.distances(obs).amin(1).double()

    log_reward_partial = log_reward

    def modes(self, obs: Tensor) -> Tensor:
        """The nearest mode (the first of several) if it is within `radius` bits, else -1, [M] int64."""
        distance, mode = self.distances(obs).min(1)
        return torch.where(distance <= self.radius, mode, -1)

    def test_set(self) -> Tensor:
        """The test set, [n_modes·length, positions]: row m·length + i is mode m with i bits flipped."""
        draw = np.random.default_rng([self.seed, 1])
        order = draw.random((self.n_modes, self.length, self.length)).argsort(2).argsort(2)
        flip = torch.from_numpy(order < np.arange(self.length)[:, None]).to(self.device)
        return self.tokens((self.mode_bits[:, None] ^ flip.long()).reshape(-1, self.length))

    def describe(self, obs: Tensor) -> list[str]:
        """The bits as text, `_` where nothing is written."""
        return ["".join("_01"[bit + 1] for bit in row) for row in self.bits(obs).tolist()]


def _draw_modes(length: int, n_modes: int, blocks: Sequence[str], seed: int) -> Any:
    """[n_modes, length] int64 of 0 and 1, no two rows the same."""
    sizes = {len(block) for block in blocks}
    if len(sizes) != 1 or min(sizes) < 1 or set("".join(blocks)) - {"0", "1"} or len(set(blocks)) != len(blocks):
        raise ValueError(f"mode_blocks are {list(blocks)}, expected distinct strings of 0 and 1 of one length")
    parts = blocks if length % min(sizes) == 0 else ("0", "1")
    table = np.array([[int(bit) for bit in part] for part in parts], dtype=np.int64)
    count = length // table.shape[1]
    if not 1 <= n_modes <= len(parts) ** count:
        raise ValueError(
            f"n_modes is {n_modes}, expected between 1 and {len(parts) ** count}: {len(parts)} blocks, {count} in a mode"
        )
    draw, chosen = np.random.default_rng(seed), dict[bytes, Any]()
    while len(chosen) < n_modes:
        row = draw.integers(len(parts), size=count)
        chosen.setdefault(row.tobytes(), row)
    return table[np.stack(list(chosen.values()))].reshape(n_modes, length)
