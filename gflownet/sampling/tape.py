"""`Tape`: records the forward pass of the rollout, so that the loss on the new trajectories needs a backward pass only.

    in the rollout   inputs and outputs of every layer are recorded, once for each state that is evaluated
    in the loss      outputs come from the tape; their gradient is computed from the layers, as in backpropagation

It is valid until the parameters change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.core import Trajectories
from gflownet.networks import SLOPE, StackedMLP


class Tape:
    """Recorded layers; rows are in the order of evaluation.

    `slot` maps keys of states to rows, if states are cached.

    Args:
        net: the network.
        theta: [1, D], its parameters.
        room: initial number of rows.
    """

    def __init__(self, net: StackedMLP, theta: Tensor, room: int) -> None:
        self.net, self.slot = net, None  # type: tuple[StackedMLP, Any]
        self.rows = 0
        self._dtype = theta.detach().cpu().numpy().dtype
        self._layers = [np.empty((room, width), self._dtype) for width in net.widths]

    def room(self, rows: int) -> list[Any]:
        """Arrays for the next `rows` rows: [rows, features], hidden layers, [rows, O]."""
        begin, self.rows = self.rows, self.rows + rows
        if self.rows > len(self._layers[0]):
            more = max(self.rows, 2 * len(self._layers[0])) - begin
            self._layers = [np.concatenate([x[:begin], np.empty((more, x.shape[1]), self._dtype)]) for x in self._layers]
        return [x[begin : self.rows] for x in self._layers]

    def states(self, tau: Trajectories, steps: Tensor, env: Any) -> tuple[Tensor, Tensor, Tensor]:
        """`Flows.states` in the order of the tape: one for each step taken, or the distinct ones if states are cached."""
        T, n = tau.mask.shape
        assert tau.action_mask is not None
        rows = torch.arange(len(steps))
        first = rows
        if self.slot is not None:
            rows = torch.from_numpy(self.slot)[env.index(tau.obs.flatten(0, 1)[steps])]
            first = rows.new_zeros(self.rows).index_put_((rows,), torch.arange(len(steps)))
        some = steps[first]
        row = rows.new_zeros((T + 1) * n).index_copy_(0, steps, rows)
        return tau.obs.flatten(0, 1)[some][None], tau.action_mask.flatten(0, 1)[some][None], row.view(T + 1, n)

    def outputs(self, params: Tensor) -> Tensor:
        """The recorded outputs, [rows, O], differentiable in params [1, P], the parameters of the rollout."""
        layers = [torch.from_numpy(x[: self.rows]) for x in self._layers]
        out: Tensor = _Taped.apply(params, layers[-1], self.net, layers[:-1])  # type: ignore[no-untyped-call]
        return out


class _Taped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, params: Tensor, outputs: Tensor, net: StackedMLP, inputs: list[Tensor]) -> Tensor:
        ctx.net, ctx.inputs = net, inputs
        ctx.save_for_backward(params)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (params,) = ctx.saved_tensors
        total = torch.empty_like(params)
        weights, slots = ctx.net.unpack(params[0]), ctx.net.unpack(total[0])
        for i in reversed(range(len(ctx.inputs))):
            x = ctx.inputs[i]
            torch.mm(x.T, gradient, out=slots[i][0])
            torch.sum(gradient, 0, out=slots[i][1])
            if i > 0:
                behind = gradient @ weights[i][0].T
                gradient = torch.ops.aten.leaky_relu_backward(behind, x, SLOPE, True)
        return total, None, None, None
