"""What a net says of some states, through one of two doors: all its numbers, or those that legal moves need."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gflownet.model import Model
from gflownet.trees.actions import Dense, Legal, Moves, Points
from gflownet.trees.network import BlockTreeNet


class Answers(Protocol):
    def moves(self, head: int) -> Moves:
        """The head's numbers for the legal moves."""
        ...

    @property
    def log_flow(self) -> Tensor:
        """[S·M] log F(s)."""
        ...


class DenseAnswers:
    """out [S·M, O], legal [S·M, A]."""

    def __init__(self, model: Model, out: Tensor, legal: Tensor) -> None:
        self.model, self.out, self.legal = model, out, legal

    def moves(self, head: int) -> Moves:
        return Dense(self.model.policy(self.out, head), self.legal)

    @property
    def log_flow(self) -> Tensor:
        return self.model.log_flow(self.out)


class PointAnswers:
    """Of one seed's tree net, params [P], at states [M, K, 4] with legal moves [M, A]."""

    def __init__(self, net: BlockTreeNet, params: Tensor, obs: Tensor, legal: Tensor) -> None:
        self.legal = Legal(legal, net.blocks.R)
        self.scores = net.points(params, obs, self.legal.state, self.legal.point)

    def moves(self, head: int) -> Points:
        return Points(self.scores.logits[head], self.scores.stop[head], self.legal)

    @cached_property
    def log_flow(self) -> Tensor:
        return self.scores.flow[0]


def by_points(model: Model, seeds: int) -> bool:
    """Trees of blocks on the CPU: a state has a handful of legal points out of dozens."""
    net = model.net
    return isinstance(net, BlockTreeNet) and seeds == 1 and net.blocks.capacity.device.type == "cpu" and not model.backward


def ask(model: Model, params: Tensor, obs: Tensor, legal: Tensor, dense: bool = False) -> Answers:
    """params [S, P], obs [S, M, *obs], legal [S·M, A]."""
    if by_points(model, len(params)) and not dense:
        assert isinstance(model.net, BlockTreeNet)
        return PointAnswers(model.net, params[0], obs[0], legal)
    return DenseAnswers(model, model.net.forward(params, obs).flatten(0, 1), legal)


def log_policy(model: Model, theta: Tensor, obs: Tensor, state: Tensor, action: Tensor, legal: Tensor) -> Tensor:
    """[heads, S, E] log P_F(action | state) of moves E from states obs [M, *obs], legal [M, A]; theta [S, D], no gradients."""
    found = []
    with torch.no_grad():
        for seed in torch.split(theta[:, :-1], 1):
            answers = ask(model, seed, obs[None], legal)
            every = [answers.moves(k) for k in range(model.heads)]
            found.append(torch.stack([moves.at(state, action) - moves.total[state] for moves in every]))
    return torch.stack(found, 1)
