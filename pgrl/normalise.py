"""Observations normalised by frozen statistics, (s - mean) · scale, clipped to ±10.

The statistics are the last 2·O entries of θ, [mean | scale]. No gradient reaches them, so that no step moves them: θ_t, θ_{t-1}
and, to rounding, every point between them see the same observations, as transport and Hessian-vector products need. A running
average would change the policy between two evaluations of one θ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.core import Array

LIMIT = 10.0  # standard deviations
CONSTANT = 1e-6  # a smaller standard deviation, relative to the mean or to 1, is rounding


def identity(like: Tensor, size: int) -> Tensor:
    """Statistics that change nothing, [S, 2·size]."""
    return torch.cat([like.new_zeros(len(like), size), like.new_ones(len(like), size)], 1)


def statistics(obs: Tensor) -> Tensor:
    """[mean | 1/standard deviation] of observations [M, *obs], [2·O] float64; a constant entry has scale 1.

    Raises:
        ValueError: there are fewer than two observations.
    """
    x = obs.double().flatten(1)
    if len(x) < 2:
        raise ValueError(f"got {len(x)} observation to normalise by, expected 2 or more")
    mean, std = x.mean(0), x.std(0)
    varies = std > CONSTANT * mean.abs().clamp_min(1.0)
    return torch.cat([mean, torch.where(varies, 1 / std, 1.0)])


def normalised_observations(obs: Array, stats: Array) -> Array:
    """obs [S, M, *obs] with statistics [S, 2·O], or [M, *obs] with [2·O] -> the shape with O last, the precision of `stats`."""
    return normaliser(stats)(obs)


def normaliser(stats: Array) -> Callable[[Array], Array]:
    """`normalised_observations` with these statistics, as a function of the observations."""
    size, seeds = stats.shape[-1] // 2, stats.shape[:-1]
    mean, scale = stats[..., None, :size], stats[..., None, size:]

    def in_numpy(obs: Any) -> Any:
        x = obs.reshape(*seeds, -1, size) - mean
        x *= scale
        return np.minimum(np.maximum(x, -LIMIT, out=x), LIMIT, out=x)

    def in_torch(obs: Tensor) -> Tensor:
        x = obs.reshape(*seeds, -1, size).to(stats.dtype)
        return ((x - mean) * scale).clamp(-LIMIT, LIMIT)

    return in_numpy if isinstance(stats, np.ndarray) else in_torch
