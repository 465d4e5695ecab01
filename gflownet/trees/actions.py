"""What a policy head says of the moves of M states: one number for each legal move, log F(s, a) or a logit.

    Dense   [M, A] numbers, -inf where a move is not legal
    Points  moves are pairs (point, row) or stop, action = point · R + row; only points where something is legal have numbers

A tree of blocks has a handful of open points among dozens that some tree has: everything but the legal ones is left out.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from envs.core import Diverged, any_last
from envs.dag.segments import segment_logsumexp
from gflownet.sampling.exploration import Exploration


class Moves(Protocol):
    @property
    def total(self) -> Tensor:
        """[M] log Σ exp over the legal moves."""
        ...

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        """[E] the numbers of these moves (-inf, or anything, where one is not legal)."""
        ...


class Dense:
    def __init__(self, numbers: Tensor, legal: Tensor) -> None:
        self.given, self.numbers = numbers, torch.where(legal, numbers, -torch.inf)

    @cached_property
    def total(self) -> Tensor:
        return torch.logsumexp(self.numbers, -1)

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        return self.numbers.flatten().index_select(0, state * self.numbers.shape[1] + action)


class Legal:
    """Legal moves [M, A] by points: state and point [N] of those where something is legal, row [N, R] bool, stop [M] bool."""

    def __init__(self, legal: Tensor, R: int) -> None:
        self.R, self.size = R, len(legal)
        rows = legal[:, :-1].view(len(legal), -1, R)
        self.points = rows.shape[1]
        self.state, self.point = any_last(rows).nonzero(as_tuple=True)
        self.row, self.stop = rows[self.state, self.point], legal[:, -1]

    @cached_property
    def number(self) -> Tensor:
        """[M, points] which of the N a point is, 0 where it is none."""
        number = self.state.new_zeros(self.size, self.points)
        number[self.state, self.point] = torch.arange(len(self.state), device=number.device)
        return number


class Points:
    """logits [N, R] at the points of `legal`, stop [M]."""

    def __init__(self, logits: Tensor, stop: Tensor, legal: Legal) -> None:
        self.legal, self.logits = legal, torch.where(legal.row, logits, -torch.inf)
        self.stop = torch.where(legal.stop, stop, -torch.inf)

    @cached_property
    def total(self) -> Tensor:
        both = torch.cat([torch.logsumexp(self.logits, 1), self.stop])
        states = torch.cat([self.legal.state, torch.arange(len(self.stop), device=both.device)])
        return segment_logsumexp(both, states, len(self.stop))

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        R, stops = self.legal.R, action == self.legal.points * self.legal.R
        point = torch.where(stops, 0, action // R)
        index = self.legal.number.flatten().index_select(0, state * self.legal.points + point) * R + action % R
        numbers = torch.cat([self.logits.flatten(), self.stop])
        return numbers.index_select(0, torch.where(stops, len(self.logits) * R + state, index))

    def draw(self, u: Tensor, explore: Exploration) -> Tensor:
        """[M] actions, one uniform number u [M] for each: first the point, then its row, both by cumulative sums."""
        legal = self.legal
        if not len(legal.state):
            return torch.full((legal.size,), legal.points * legal.R, device=u.device)
        T = explore.temperature
        tempered = self if T == 1 else Points(self.logits / T, self.stop / T, legal)
        p = (tempered.logits - tempered.total[legal.state, None]).exp()
        stop = (tempered.stop - tempered.total).exp()
        if explore.uniform:
            count = legal.stop.to(p.dtype).index_add(0, legal.state, legal.row.sum(1).to(p.dtype))
            p, stop = explore.mixed(p, legal.row, count[legal.state, None]), explore.mixed(stop, legal.stop, count)
        within = p.cumsum(1)
        mass = p.new_zeros(legal.size, legal.points + 1)
        mass[legal.state, legal.point] = within[:, -1]
        mass[:, -1] = stop
        cdf = mass.cumsum(1)
        if not bool(cdf[:, -1].isfinite().all()):
            raise Diverged("the policy's numbers are not finite: try a smaller learning rate")
        threshold = u * cdf[:, -1]
        point = (cdf < threshold[:, None]).sum(1)  # strictly: what has no mass is never drawn
        stops = point == legal.points
        inside = torch.where(stops, 0, point)
        below = (cdf - mass).gather(1, inside[:, None])[:, 0]
        here = within[legal.number.gather(1, inside[:, None])[:, 0]]
        share = ((threshold - below) / mass.gather(1, inside[:, None])[:, 0]).clamp(torch.finfo(mass.dtype).eps, 1) * here[
            :, -1
        ]
        row = (here < share[:, None]).sum(1)
        return torch.where(stops, legal.points * legal.R, point * legal.R + row)
