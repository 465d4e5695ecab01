"""Counter-based random numbers: a function of (key, time step, draw), without a generator state to save or share.

Every episode has a key, derived from its seed, its stream and its position in the run by `Rng.fold`. The numbers of step t
are SplitMix64 outputs (Steele, Lea and Flood, OOPSLA 2014) at counters that belong to t alone. So seed k samples the same
episodes alone or among a thousand others, a resumed run needs no generator state, and CPU and GPU get the same bits.

A block of `ahead` steps is drawn at once, because a vectorised draw costs the same for 1 step as for 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MIX_1, _MIX_2, _30, _27, _31 = (np.uint64(x % (1 << 64)) for x in (MIX_1, MIX_2, 30, 27, 31))


def _spread(word: Any) -> Any:
    """(word + 1) · GOLDEN modulo 2^64, as int64."""
    if isinstance(word, Tensor):
        return (word + 1) * GOLDEN
    return ((word + 1) * GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift_xor(z: Tensor, by: int) -> Tensor:
    return z ^ ((z >> by) & ((1 << (64 - by)) - 1))  # >> is arithmetic on int64: mask the sign bits


def mix(z: Tensor) -> Tensor:
    """The output function of SplitMix64 on an int64 tensor of any shape; arithmetic wraps modulo 2^64."""
    if z.device.type == "cpu" and z.dim():  # the same in numpy, whose small operations take a third of the time of torch's
        return torch.from_numpy(_mix(z.numpy()).view(np.int64))
    return _shift_xor(_shift_xor(_shift_xor(z, 30) * MIX_1, 27) * MIX_2, 31)


def _mix(z: Any) -> Any:
    """`mix` of a numpy array of int64, as uint64."""
    u = z.view(np.uint64)
    for by, factor in ((_30, _MIX_1), (_27, _MIX_2)):
        v = u >> by
        v ^= u
        v *= factor
        u = v
    v = u >> _31
    v ^= u
    return v


class Rng:
    """B independent random streams, one for each row.

    `uniform` and `normal` return [B, *shape]. Two calls at the same time step are two independent draws; `at(t)` moves to
    time step t and resets the count of draws.

    Args:
        key: [B] int64, or a function that returns it, which is called at first use.
        ahead: time steps drawn at once.
        numpy: return numpy arrays instead of tensors.
        dtype: of the numbers, torch.float32 or torch.float64.
    """

    def __init__(
        self, key: Tensor | Callable[[], Tensor], ahead: int = 1, numpy: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self._key, self.ahead, self.numpy, self.dtype = key, ahead, numpy, dtype
        self._t = self._draw = 0
        self._blocks: dict[tuple[int, str, tuple[int, ...]], tuple[int, Any, Any]] = {}

    @staticmethod
    def of_seeds(seeds: Sequence[int], device: torch.device | str = "cpu") -> Rng:
        """One row for each seed; equal seeds give equal rows."""
        return Rng(mix(mix(torch.tensor(list(seeds), dtype=torch.int64, device=device) + GOLDEN)))

    @property
    def key(self) -> Tensor:
        """[B] int64, computed at first use."""
        if not isinstance(self._key, Tensor):
            self._key = self._key()
        return self._key

    def __reduce__(self) -> Any:  # as numpy: torch would send shared memory and a file descriptor
        return _rng_from_numpy, (self.key.cpu().numpy(), self.ahead, self.numpy, self.dtype)

    def __len__(self) -> int:
        return len(self.key)

    def fold(self, word: int | Tensor) -> Rng:
        """The sub-stream number `word` of each row; `word` is an integer or an int64 tensor [B]."""
        return Rng(lambda: mix(self.key + _spread(word)), dtype=self.dtype)

    def spawn(self, n: int) -> Rng:
        """n sub-streams of each row, row-major: [B] -> [B·n]."""
        words = torch.arange(n, device=self.key.device)
        return Rng(mix(self.key[:, None] + _spread(words)).flatten(), dtype=self.dtype)

    def rows(self, lo: int, hi: int) -> Rng:
        """The streams of rows lo..hi-1."""
        return Rng(self.key[lo:hi], self.ahead, self.numpy, self.dtype)

    def drawn(self, ahead: int, numpy: bool) -> Rng:
        """The same streams, with `ahead` steps drawn at once, as numpy arrays or tensors."""
        return Rng(lambda: self.key, ahead, numpy, self.dtype)

    def at(self, t: int) -> Rng:
        """Move to time step t, in place, and return self."""
        self._t, self._draw = t, 0
        return self

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on the open interval (0, 1), [B, *shape]."""
        return self._next("uniform", shape, None)

    def normal(self, *shape: int, scale: Any = None) -> Tensor:
        """Standard normal, [B, *shape]; or normal with standard deviations `scale`, an array like the result."""
        return self._next("normal", shape, scale)

    def integers(self) -> Any:
        """Uniform on 0 .. 2^31 - 1, [B] int64: seeds for environments with random generators of their own."""
        bits = self._bits(1)[0, :, 0]
        self._draw += 1
        value = (bits >> 32) & 0x7FFFFFFF
        return value.cpu().numpy() if self.numpy else value

    def _next(self, kind: str, shape: tuple[int, ...], scale: Any) -> Tensor:
        name = (self._draw, kind, shape)
        start, block, by = self._blocks.get(name, (0, None, None))
        if block is None or not start <= self._t < start + len(block) or by is not scale:
            start, block = self._t, self._block(kind, shape)
            if scale is not None:
                block = scale * block
            self._blocks[name] = (start, block, scale)
        self._draw += 1
        return block[self._t - start]

    def _block(self, kind: str, shape: tuple[int, ...]) -> Any:
        return (self._block_in_numpy if self.key.device.type == "cpu" else self._block_in_torch)(kind, shape)

    def _block_in_torch(self, kind: str, shape: tuple[int, ...]) -> Any:
        bits = self._bits(math.prod(shape))
        if kind == "normal":  # the inverse distribution function in float64: one uniform number for each normal one
            value = torch.special.ndtri(((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)).to(self.dtype)
        else:  # 23 bits in float32, so that k + 1/2 is exact and 1.0 is never reached
            keep = 23 if self.dtype == torch.float32 else 52
            value = ((bits >> (64 - keep)) & ((1 << keep) - 1)).to(self.dtype).add_(0.5).mul_(2.0**-keep)
        value = value.reshape(self.ahead, len(self.key), *shape)
        return value.cpu().numpy() if self.numpy else value

    def _block_in_numpy(self, kind: str, shape: tuple[int, ...]) -> Any:
        """The same bits on the CPU: numpy's small operations take a third of the time of torch's."""
        dtype = np.float32 if self.dtype == torch.float32 else np.float64
        key = _mix(self.key.numpy() + _spread(self._draw)).view(np.int64)
        counters = _counters(self._t, self.ahead, math.prod(shape), self.key.device)
        bits = _mix(key[None, :, None] + counters.numpy())
        keep = 53 if kind == "normal" else 23 if dtype == np.float32 else 52
        value = (bits >> np.uint64(64 - keep)).astype(np.float64 if kind == "normal" else dtype)
        value += 0.5
        value *= 2.0**-keep
        if kind == "normal":
            value = torch.special.ndtri(torch.from_numpy(value)).numpy().astype(dtype, copy=False)
        value = value.reshape(self.ahead, len(key), *shape)
        return value if self.numpy else torch.from_numpy(value)

    def _bits(self, width: int) -> Tensor:
        """[ahead, B, width] random bits of times t .. t+ahead-1."""
        key = mix(self.key + _spread(self._draw))
        # not from the cache on a GPU: a CUDA graph would keep reading a tensor that the cache has freed
        counters = _counters if key.device.type == "cpu" else _counters.__wrapped__
        return mix(key[None, :, None] + counters(self._t, self.ahead, width, key.device))


@lru_cache(64)
def _counters(t: int, ahead: int, width: int, device: torch.device) -> Tensor:
    """[ahead, 1, width]: the counters that are added to a key, one for each time step and position."""
    times = torch.arange(t, t + ahead, device=device)
    return _spread(times[:, None] * 65536 + torch.arange(width, device=device))[:, None, :]


def _rng_from_numpy(key: Any, ahead: int, numpy: bool, dtype: torch.dtype) -> Rng:
    return Rng(torch.from_numpy(key), ahead, numpy, dtype)
