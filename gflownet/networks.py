"""Networks as functions of flat parameters, for S seeds: params [S, P], observations [S, M, *obs] -> outputs [S, M, O].

    StackedMLP  one-hot of each coordinate (or the values themselves) -> LeakyReLU layers -> O outputs
    Tabular     one row of O outputs for each state of an environment with an index
    Stacked     any torch Module

Another network is a frozen dataclass with `size`, `outputs`, `init` and `forward`, or a torch Module wrapped in `Stacked`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from envs.core import Array
from envs.random import Rng

SLOPE = 0.01  # of LeakyReLU, torch's default and the paper's
MANY = 64  # the fewest rows for which torch's products, which use several threads, are faster


class LayerStore(Protocol):
    """Storage for the layers of a forward pass, for use by a later backward pass."""

    def room(self, rows: int) -> list[Any]:
        """Arrays for inputs, hidden layers and outputs of the next `rows` rows."""
        ...


@runtime_checkable
class Network(Protocol):
    """A network as a function of flat parameters."""

    @property
    def size(self) -> int:
        """P, the number of parameters of a seed."""
        ...

    @property
    def outputs(self) -> int:
        """O, the number of outputs."""
        ...

    def init(self, rng: Rng) -> Tensor:
        """Initial parameters from one key for each seed, [S, P]."""
        ...

    def forward(self, params: Tensor, obs: Tensor) -> Tensor:
        """The outputs for params [S, P] and obs [S, M, *obs], [S, M, O], differentiable in params."""
        ...


@dataclass(frozen=True)
class StackedMLP:
    """A fully connected network with LeakyReLU. Initial weights and biases are uniform on ±1/√fan_in, torch's default.

    inputs   entries of an observation
    hidden   widths of hidden layers
    outputs  O
    levels   number of values of each entry, which are one-hot encoded; (): entries are used as they are
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    levels: tuple[int, ...] = ()

    @property
    def _widths(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise((sum(self.levels) or self.inputs, *self.hidden, self.outputs)))

    @property
    def size(self) -> int:
        return sum(a * b + b for a, b in self._widths)

    @property
    def _sizes(self) -> list[int]:
        return [n for a, b in self._widths for n in (a * b, b)]

    @property
    def widths(self) -> list[int]:
        """Width of each layer: features, hidden layers, outputs."""
        return [a for a, _ in self._widths] + [self.outputs]

    def init(self, rng: Rng) -> Tensor:
        u = 2 * rng.uniform(self.size) - 1
        scales = torch.cat([torch.full((a * b + b,), 1 / math.sqrt(a)) for a, b in self._widths])
        return u * scales.to(u)

    def forward(self, params: Tensor, obs: Tensor) -> Tensor:
        parts = torch.split(params, self._sizes, 1)  # one split, whose gradient is one concatenation
        x = self._features(obs, params.dtype)
        alone = len(params) == 1
        x = x[0] if alone else x
        for i, (a, b) in enumerate(self._widths):
            w, bias = parts[2 * i], parts[2 * i + 1]
            x = torch.addmm(bias[0], x, w.view(a, b)) if alone else torch.baddbmm(bias[:, None], x, w.view(-1, a, b))
            if i < len(self.hidden):
                x = torch.nn.functional.leaky_relu(x, SLOPE)
        return x[None] if alone else x

    def unpack(self, params: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights [in, out] and biases [out] of each layer of one seed, views of params [P]."""
        parts = torch.split(params, self._sizes)
        return [(parts[2 * i].view(a, b), parts[2 * i + 1]) for i, (a, b) in enumerate(self._widths)]

    def _features(self, obs: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.levels:
            return obs.reshape(*obs.shape[:2], self.inputs).to(dtype)
        flat = obs.reshape(*obs.shape[:2], self.inputs)
        if len(set(self.levels)) == 1:
            one_hot = torch.eye(self.levels[0], dtype=dtype, device=obs.device)
            return torch.nn.functional.embedding(flat, one_hot).flatten(2)
        parts = [torch.nn.functional.one_hot(flat[..., i], n) for i, n in enumerate(self.levels)]
        return torch.cat(parts, -1).to(dtype)

    def actor(self, params: Tensor) -> NumpyLayers:
        """The same networks in numpy, whose products take two thirds of the time of torch's for a few rows."""
        flat = params.detach().cpu().numpy()
        layers, at = [], 0
        for a, b in self._widths:
            layers.append((flat[:, at : at + a * b].reshape(-1, a, b), flat[:, None, at + a * b : at + a * b + b]))
            at += a * b + b
        return NumpyLayers(self, layers)


class NumpyLayers:
    """The networks of S seeds in numpy, obs [S, M, *obs] -> [S, M, O]; `[seed]` is that of one seed, [M, *obs] -> [M, O]."""

    def __init__(self, net: StackedMLP, layers: list[tuple[Any, Any]], eyes: list[Any] | None = None) -> None:
        self._net, self._layers, self._same = net, layers, len(set(net.levels)) == 1
        dtype, levels = layers[0][0].dtype, net.levels[:1] if self._same else net.levels
        self._eyes = [np.eye(n, dtype=dtype) for n in levels] if eyes is None else eyes

    def __getitem__(self, seed: int) -> NumpyLayers:
        return NumpyLayers(self._net, [(w[seed], b[seed]) for w, b in self._layers], self._eyes)

    def __call__(self, obs: Array, tape: LayerStore | None = None) -> Array:
        lead = obs.shape[: self._layers[0][0].ndim - 1]
        rooms = [None] * (len(self._layers) + 1) if tape is None else tape.room(len(obs))
        x = self._features(obs.reshape(*lead, self._net.inputs), lead, rooms[0])
        many = len(lead) == 1 and len(x) >= MANY
        for i, (w, b) in enumerate(self._layers):
            if many:
                room = None if rooms[i + 1] is None else torch.from_numpy(rooms[i + 1])
                x = torch.addmm(torch.from_numpy(b[0]), torch.from_numpy(x), torch.from_numpy(w), out=room).numpy()
            else:
                x = np.matmul(x, w, out=rooms[i + 1])
                x += b
            if i < len(self._layers) - 1:
                np.maximum(x, SLOPE * x, out=x)
        return x

    def _features(self, x: Any, lead: tuple[int, ...], room: Any) -> Any:
        if self._same:
            one_hot = None if room is None else room.reshape(*lead, self._net.inputs, -1)
            return self._eyes[0].take(x, 0, one_hot, "clip").reshape(*lead, -1)
        x = np.concatenate([eye[x[..., i]] for i, eye in enumerate(self._eyes)], -1) if self._eyes else x
        if room is None:
            return x.astype(self._layers[0][0].dtype, copy=False)
        room[:] = x
        return room


@dataclass(frozen=True)
class Tabular:
    """A table with one row for each state, initially 0.

    states   number of states
    outputs  O
    index    observations [M, *obs] -> rows [M], below `states`
    """

    states: int
    outputs: int
    index: Callable[[Tensor], Tensor] = field(compare=False)

    @property
    def size(self) -> int:
        return self.states * self.outputs

    def init(self, rng: Rng) -> Tensor:
        return torch.zeros(len(rng), self.size, device=rng.key.device, dtype=rng.dtype)

    def forward(self, params: Tensor, obs: Tensor) -> Tensor:
        rows = self.index(obs.flatten(0, 1)).view(obs.shape[:2])
        table = params.view(len(params), self.states, self.outputs)
        return table.gather(1, rows[..., None].expand(*rows.shape, self.outputs))


class Stacked:
    """A torch Module [M, *obs] -> [M, O] as a network, batched over seeds by `torch.func.vmap`.

    Args:
        make: makes the module; it is called once for each seed, with torch's generator seeded from the seed's key.
        outputs: O.

    Raises:
        ValueError: the module has buffers.
    """

    def __init__(self, make: Callable[[], torch.nn.Module], outputs: int) -> None:
        self.make, self.outputs = make, outputs
        self._module = make()
        self._shapes = {name: p.shape for name, p in self._module.named_parameters()}
        if next(self._module.buffers(), None) is not None:
            raise ValueError("the module has buffers (running statistics?), expected parameters only: use layers without them")
        self.size = sum(shape.numel() for shape in self._shapes.values())

    def init(self, rng: Rng) -> Tensor:
        rows = []
        for seed in rng.integers().tolist():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                rows.append(torch.cat([p.detach().flatten() for p in self.make().parameters()]))
        return torch.stack(rows).to(rng.key.device, rng.dtype)

    def forward(self, params: Tensor, obs: Tensor) -> Tensor:
        def one(flat: Tensor, x: Tensor) -> Any:
            parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()])
            named = {name: p.view(shape) for (name, shape), p in zip(self._shapes.items(), parts, strict=True)}
            return torch.func.functional_call(self._module, named, (x,))

        return one(params[0], obs[0])[None] if len(params) == 1 else torch.func.vmap(one)(params, obs)
