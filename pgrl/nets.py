"""Networks as functions of flat parameters, batched over seeds: params [S, P], observations [S, M, ...] -> outputs [S, M, O].

`forward` accepts torch tensors and numpy arrays, like the environment's backend.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.core import Array
from envs.random import Rng


@dataclass(frozen=True)
class TabularNet:
    """A table with one row of outputs for each state, initially 0, so that the initial softmax is uniform.

    states   number of states
    outputs  O, outputs for each state
    reduced  the last output of each row is fixed at 0 and has no parameter
    """

    states: int
    outputs: int
    reduced: bool = False

    @property
    def size(self) -> int:
        return self.states * (self.outputs - self.reduced)

    def init(self, rng: Rng) -> Tensor:
        return torch.zeros(len(rng), self.size, device=rng.key.device)

    def unpack(self, params: Tensor) -> list[Tensor]:
        table = params.reshape(len(params), self.states, -1)
        return [torch.nn.functional.pad(table, (0, 1))] if self.reduced else [table]

    def forward(self, weights: list[Any], obs: Array) -> Array:
        """obs [S, M] integers -> [S, M, O]."""
        (table,) = weights
        if isinstance(obs, np.ndarray):
            return table[np.arange(len(table))[:, None], obs]
        return table.gather(1, obs[..., None].expand(*obs.shape, self.outputs))


@dataclass(frozen=True)
class MLP:
    """A fully connected network with Glorot-uniform weights and zero biases. Without hidden layers it is linear and all 0.

    inputs      entries of an observation, or number of states if `one_hot`
    hidden      widths of hidden layers
    outputs     O
    activation  tanh or softplus
    one_hot     observations are integers below `inputs`
    bias        False: no layer has biases (linear policies of LQR)
    scale       factor of the last layer's initial weights
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "tanh"
    one_hot: bool = False
    bias: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in ("tanh", "softplus"):
            raise ValueError(f"activation is {self.activation!r}, expected 'tanh' or 'softplus' (smooth, unlike ReLU)")

    @property
    def _widths(self) -> list[tuple[int, int]]:
        widths = (self.inputs, *self.hidden, self.outputs)
        return list(itertools.pairwise(widths))

    @property
    def size(self) -> int:
        return sum(a * b + b * self.bias for a, b in self._widths)

    def init(self, rng: Rng) -> Tensor:
        u = (2 * rng.uniform(self.size) - 1) * bool(self.hidden)
        parts, at = [], 0
        limits = [math.sqrt(6 / (a + b)) for a, b in self._widths]
        limits[-1] *= self.scale
        for (a, b), limit in zip(self._widths, limits, strict=True):
            parts += [u[:, at : at + a * b] * limit, torch.zeros(len(u), b * self.bias, device=u.device)]
            at += a * b + b * self.bias
        return torch.cat(parts, 1)

    def unpack(self, params: Tensor) -> list[Tensor]:
        """[W1 [S, in, h], b1 [S, 1, h], W2, b2, ...], views of params."""
        parts, at = [], 0
        for a, b in self._widths:
            parts.append(params[:, at : at + a * b].reshape(-1, a, b))
            at += a * b
            parts.append(params[:, None, at : at + b] if self.bias else params.new_zeros(len(params), 1, b))
            at += b * self.bias
        return parts

    def forward(self, weights: list[Any], obs: Array) -> Array:
        """obs [S, M, *shape], or [S, M] integers when one_hot -> [S, M, O]."""
        if isinstance(obs, np.ndarray):
            return self.of_numpy(weights)(obs)
        if self.one_hot:
            x = torch.nn.functional.one_hot(obs, self.inputs).to(weights[0].dtype)
        else:
            x = obs.reshape(*obs.shape[:2], self.inputs).to(weights[0].dtype)
        act = torch.tanh if self.activation == "tanh" else torch.nn.functional.softplus
        for i in range(0, len(weights) - 2, 2):
            x = act(torch.baddbmm(weights[i + 1], x, weights[i]))
        return torch.baddbmm(weights[-1], x, weights[-2])

    def of_numpy(self, weights: list[Any]) -> Callable[[Any], Any]:
        """`forward` of numpy arrays with these weights, as a function of obs.

        Also for one seed without the seed axis: weights [in, h], obs [M, ...] -> [M, O], by np.dot, which is cheaper.
        """
        dtype, axes, flat = weights[0].dtype, weights[0].ndim, weights[0].ndim == 2
        product, tanh = np.dot if flat else np.matmul, np.tanh if self.activation == "tanh" else None
        *hidden, (last, bias) = zip(weights[::2], weights[1::2], strict=True)
        one_hot = np.eye(self.inputs, dtype=dtype) if self.one_hot else None

        def forward(obs: Any) -> Any:
            x = obs
            if one_hot is not None:
                x = one_hot[obs]
            elif obs.ndim != axes:
                x = obs.reshape(*obs.shape[: 2 - flat], self.inputs)
            if x.dtype != dtype:
                x = x.astype(dtype)
            for w, b in hidden:
                x = product(x, w)
                x += b
                if tanh is not None:
                    tanh(x, x)
                else:
                    np.logaddexp(x, 0, x)
            x = product(x, last)
            x += bias
            return x

        return forward
