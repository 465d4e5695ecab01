"""Policy heads: distributions over actions whose parameters are the outputs of a network.

log_prob(out [S, M, O], params [S, P], action [S, M, ...], action_mask) -> [S, M]
sampler(params [B, P]) -> a function (out [B, O], action_mask, rng) -> actions [B, ...], torch or numpy like its inputs
fisher(out, params, v_out, v_params, action_mask) -> F v for the Fisher information of (out, params)
mode(out [B, O], action_mask) -> the mean actions, or the most probable ones of discrete actions, [B, ...]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from envs.core import Array, to_tensor
from envs.random import Rng

Sampler = Callable[[Array, Array | None, Rng], Array]


def _choose(logits: Tensor, u: Tensor) -> Tensor:
    """Sample from the softmax of each row by inversion: the first action whose cumulative probability reaches u.

    The comparison is strict, so that an action of probability 0 is never sampled, whatever the rounding of the last sum.
    """
    cdf = torch.softmax(logits, -1).cumsum(-1)
    return (cdf < u[..., None] * cdf[..., -1:]).sum(-1)


def _valid(logits: Array, action_mask: Array | None) -> Tensor:
    """The logits with those of invalid actions at -1e9; not -inf: padded rows may have no valid action."""
    logits = to_tensor(logits)
    return logits if action_mask is None else logits.masked_fill(~to_tensor(action_mask), -1e9)


@dataclass(frozen=True)
class Categorical:
    """Softmax over `actions` logits; invalid actions (action_mask False) have probability 0."""

    actions: int

    @property
    def outputs(self) -> int:
        return self.actions

    size: ClassVar[int] = 0

    def init(self, like: Tensor) -> Tensor:
        return like[:, :0]

    def log_prob(self, out: Tensor, params: Tensor, action: Tensor, action_mask: Tensor | None) -> Tensor:
        return torch.log_softmax(_valid(out, action_mask), -1).gather(-1, action[..., None])[..., 0]

    def sampler(self, params: Array) -> Sampler:
        def sample(out: Array, action_mask: Array | None, rng: Rng) -> Array:
            action = _choose(_valid(out, action_mask), to_tensor(rng.uniform()))
            return action.numpy() if isinstance(out, np.ndarray) else action

        return sample

    def fisher(
        self, out: Tensor, params: Tensor, v_out: Tensor, v_params: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        p = torch.softmax(_valid(out, action_mask), -1)
        return p * (v_out - (p * v_out).sum(-1, keepdim=True)), v_params

    def mode(self, out: Array, action_mask: Array | None) -> Array:
        action = _valid(out, action_mask).argmax(-1)
        return action.numpy() if isinstance(out, np.ndarray) else action


@dataclass(frozen=True)
class MultiCategorical:
    """Independent softmax distributions, one for each entry of `sizes`, for MultiDiscrete actions."""

    sizes: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return sum(self.sizes)

    size: ClassVar[int] = 0

    def init(self, like: Tensor) -> Tensor:
        return like[:, :0]

    def log_prob(self, out: Tensor, params: Tensor, action: Tensor, action_mask: Tensor | None) -> Tensor:
        parts = [torch.log_softmax(part, -1) for part in torch.split(out, list(self.sizes), -1)]
        chosen = [p.gather(-1, action[..., i : i + 1])[..., 0] for i, p in enumerate(parts)]
        return torch.stack(chosen).sum(0)

    def sampler(self, params: Array) -> Sampler:
        def sample(out: Array, action_mask: Array | None, rng: Rng) -> Array:
            u = to_tensor(rng.uniform(len(self.sizes)))
            parts = torch.split(to_tensor(out), list(self.sizes), -1)
            action = torch.stack([_choose(part, u[:, i]) for i, part in enumerate(parts)], -1)
            return action.numpy() if isinstance(out, np.ndarray) else action

        return sample

    def fisher(
        self, out: Tensor, params: Tensor, v_out: Tensor, v_params: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        pairs = zip(torch.split(out, list(self.sizes), -1), torch.split(v_out, list(self.sizes), -1), strict=True)
        return torch.cat([Categorical(o.shape[-1]).fisher(o, params, v, v_params, None)[0] for o, v in pairs], -1), v_params

    def mode(self, out: Array, action_mask: Array | None) -> Array:
        parts = torch.split(to_tensor(out), list(self.sizes), -1)
        action = torch.stack([part.argmax(-1) for part in parts], -1)
        return action.numpy() if isinstance(out, np.ndarray) else action


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions whose standard deviations do not depend on the state.

    The density is that of the sampled action. `envs.mdp.bounded` clips or squashes it before a step.

    dim           D, entries of an action
    log_std       the initial log standard deviation, or the constant one if `learn` is False
    learn         train the log standard deviations
    action_shape  of an action; () stands for (dim,)
    """

    dim: int
    log_std: float
    learn: bool = True
    action_shape: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        return self.dim

    @property
    def size(self) -> int:
        return self.dim if self.learn else 0

    def init(self, like: Tensor) -> Tensor:
        return torch.full((len(like), self.size), self.log_std, dtype=like.dtype, device=like.device)

    def std(self, params: Tensor) -> Tensor:
        """The standard deviations, [S, dim]."""
        return params.exp() if self.learn else params.new_full((len(params), self.dim), math.exp(self.log_std))

    def log_prob(self, out: Tensor, params: Tensor, action: Tensor, action_mask: Tensor | None) -> Tensor:
        std = self.std(params)[:, None]
        z = (action.reshape(*action.shape[:2], self.dim) - out) / std
        # Scalar: plain numbers would be tensors without a tangent, which forward mode is slow with (`Estimator.hessian_vector`)
        half, constant = torch.ops.aten.mul.Scalar((z * z).sum(-1), -0.5), 0.5 * self.dim * math.log(2 * math.pi)
        log_p: Tensor = torch.ops.aten.sub.Scalar(half - std.log().sum(-1), constant)
        return log_p

    def sampler(self, params: Array) -> Sampler:
        std: Array = self.std(to_tensor(params))
        std = std.numpy() if isinstance(params, np.ndarray) else std
        flat = self.action_shape in ((), (self.dim,))

        def sample(out: Array, action_mask: Array | None, rng: Rng) -> Array:
            action = out + rng.normal(self.dim, scale=std)
            return action if flat else action.reshape(len(action), *self.action_shape)

        return sample

    def fisher(
        self, out: Tensor, params: Tensor, v_out: Tensor, v_params: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return v_out / self.std(params)[:, None] ** 2, 2 * v_params

    def mode(self, out: Array, action_mask: Array | None) -> Array:
        return out.reshape(len(out), *(self.action_shape or (self.dim,)))
