"""Evaluates the network at states.

dense     all outputs: any network; trees with a learned P_B, or several seeds on the CPU
sparse    outputs of valid actions only: trees on the CPU, one seed
slots     the same in shapes that do not depend on the data: trees in static shapes, or on a GPU
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gflownet.model import Model
from gflownet.trees.actions import ActionLogits, DenseLogits, SparseLogits, ValidActions
from gflownet.trees.network import BlockTreeNet
from gflownet.trees.slots import OpenPoints, SlotLogits


class Outputs(Protocol):
    """The outputs of the network at S·M states."""

    def action_logits(self, head: int) -> ActionLogits:
        """The logits of a policy head."""
        ...

    @property
    def log_flow(self) -> Tensor:
        """log F(s), [S·M]."""
        ...


class DenseOutputs:
    """All outputs: out [S·M, O], valid [S·M, A] bool."""

    def __init__(self, model: Model, out: Tensor, valid: Tensor) -> None:
        self.model, self.out, self.valid = model, out, valid

    def action_logits(self, head: int) -> ActionLogits:
        return DenseLogits(self.model.policy(self.out, head), self.valid)

    @property
    def log_flow(self) -> Tensor:
        return self.model.log_flow(self.out)


class SparseOutputs:
    """The outputs of a tree network for valid actions: params [P] of one seed, obs [M, K, 4], valid [M, A] bool."""

    def __init__(self, net: BlockTreeNet, params: Tensor, obs: Tensor, valid: Tensor) -> None:
        self.valid = ValidActions(valid, net.blocks.R)
        self.scores = net.at_sites(params, obs, self.valid.state, self.valid.site)

    def action_logits(self, head: int) -> SparseLogits:
        return SparseLogits(self.scores.logits[head], self.scores.stop[head], self.valid)

    @cached_property
    def log_flow(self) -> Tensor:
        return self.scores.flow[0]


class SlotOutputs:
    """Of tree nets with params [S, P], at states [S, M, K, 4] with valid actions [S·M, A]."""

    def __init__(self, net: BlockTreeNet, params: Tensor, obs: Tensor, valid: Tensor) -> None:
        seeds = [net.attach(*seed) for seed in zip(params.unbind(), obs.unbind(), strict=True)]
        self._heads = list(zip(*(heads for heads, _ in seeds), strict=True))  # by policy, then by seed
        self._scores = [scores for _, scores in seeds]
        self._points = OpenPoints(net, obs.flatten(0, 1), valid)

    def action_logits(self, head: int) -> SlotLogits:
        return SlotLogits(self._heads[head], torch.cat([scores.stop[head] for scores in self._scores]), self._points)

    @cached_property
    def log_flow(self) -> Tensor:
        return torch.cat([scores.flow[0] for scores in self._scores])


def uses_sparse(model: Model, seeds: int) -> bool:
    """Whether the sparse form is used: for block trees on the CPU with one seed and without a learned backward policy."""
    net = model.net
    return isinstance(net, BlockTreeNet) and seeds == 1 and net.blocks.capacity.device.type == "cpu" and not model.backward


def uses_slots(model: Model, static: bool = False) -> bool:
    """Whether slots are used: for block trees in static shapes or on a GPU, without a learned backward policy."""
    net = model.net
    return isinstance(net, BlockTreeNet) and (static or net.blocks.capacity.device.type != "cpu") and not model.backward


def evaluate(model: Model, params: Tensor, obs: Tensor, valid: Tensor, static: bool = False) -> Outputs:
    """Evaluate the network.

    Args:
        model: the network and its heads.
        params: [S, P].
        obs: [S, M, *obs].
        valid: [S·M, A] bool, the valid actions.
        static: keep to shapes that do not depend on the data.

    Returns:
        The outputs at S·M states.
    """
    if uses_slots(model, static):
        assert isinstance(model.net, BlockTreeNet)
        return SlotOutputs(model.net, params, obs, valid)
    if uses_sparse(model, len(params)) and not static:
        assert isinstance(model.net, BlockTreeNet)
        return SparseOutputs(model.net, params[0], obs[0], valid)
    return DenseOutputs(model, model.net.forward(params, obs).flatten(0, 1), valid)


def log_policy(model: Model, theta: Tensor, obs: Tensor, state: Tensor, action: Tensor, valid: Tensor) -> Tensor:
    """log P_F(action | state) of E pairs, without gradients.

    Args:
        model: the network and its heads.
        theta: [S, D].
        obs: [M, *obs].
        state: [E], rows of obs.
        action: [E].
        valid: [M, A] bool, the valid actions.

    Returns:
        [heads, S, E].
    """
    found = []
    with torch.no_grad():
        for seed in torch.split(theta[:, :-1], 1):
            outputs = evaluate(model, seed, obs[None], valid)
            every = [outputs.action_logits(k) for k in range(model.heads)]
            found.append(torch.stack([logits.at(state, action) - logits.total[state] for logits in every]))
    return torch.stack(found, 1)
