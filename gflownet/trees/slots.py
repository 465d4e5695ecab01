"""Valid actions of block trees in static shapes: the valid attachment points of a state are in P slots; logits are not stored.

    P        an upper bound on the open attachment points with this vocabulary, at most the (K - 1)·S of the actions
    total    log Σ exp over the rows of each slot, then over the slots and stop; a chunk of states at a time, whose logits are
             computed again for the gradient
    at       one inner product for each requested action
    draw     first the slot, then its row

Nothing is read back from a GPU, and memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from gflownet.sampling.exploration import Exploration, first_reaching
from gflownet.trees.network import Attach, BlockTreeNet

CHUNK = 1 << 26  # numbers of a tensor in memory at a time


class OpenPoints:
    """The valid attachment points of S·M states.

    point [S·M, P] node·S + site, 0 in an unused slot    there [S·M, P] bool    name [S·M, P] number of the site
    row   [S·M, Q, R] bool, valid rows at all Q points             stop  [S·M] bool
    """

    def __init__(self, net: BlockTreeNet, obs: Tensor, valid: Tensor) -> None:
        """obs [S·M, K, 4], valid actions [S·M, A]."""
        self.net, self.sites = net, net.blocks.S
        self.block, self.stop = obs[..., 0], valid[:, -1]
        self.row = valid[:, :-1].view(len(valid), -1, net.blocks.R)
        usable = self.row.any(-1)
        rank, points = usable.cumsum(1) - 1, usable.shape[1]
        P = min(points, net.blocks.most_points(net.max_blocks - 1))
        place = torch.where(usable, rank.clamp_max(P), P)
        index = torch.arange(points, device=obs.device).expand_as(place)
        self.point = torch.zeros_like(place[:, :1]).expand(-1, P + 1).scatter(1, place, index)[:, :P]
        self.there = torch.arange(P, device=obs.device) < usable.sum(1, keepdim=True)
        self.name = self.number(self.block.gather(1, self.point // self.sites), self.point)

    def number(self, block: Tensor, point: Tensor) -> Tensor:
        """Numbers of the sites `point` of nodes with the blocks `block`."""
        return self.net.numbers.flatten().take(block * self.sites + point % self.sites)


class SlotLogits:
    """A policy head at S·M states (`gflownet.trees.actions.ActionLogits`): `heads`: one for each seed; stop [S·M]."""

    def __init__(self, heads: Sequence[Attach], stop: Tensor, points: OpenPoints, chunk: int = CHUNK) -> None:
        self.heads, self.points, self.chunk = heads, points, chunk
        self.given, self.stop = stop, torch.where(points.stop, stop, -torch.inf)

    @cached_property
    def total(self) -> Tensor:
        return torch.logsumexp(torch.cat([self._slots(1.0), self.stop[:, None]], 1), 1)

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        logits, stops = self._at(state, action)
        return torch.where(stops, self.given.index_select(0, state), logits)

    def draw(self, u: Tensor, explore: Exploration) -> Tensor:
        """Draw actions.

        Args:
            u: uniform numbers, [S·M], one for each state.
            explore: the exploration.

        Returns:
            [S·M] actions.
        """
        points, T = self.points, explore.temperature
        Q, R = points.row.shape[1:]
        slots, stop = self._slots(T), self.stop / T
        total = torch.logsumexp(torch.cat([slots, stop[:, None]], 1), 1)
        valid = torch.cat([points.row.sum(2).gather(1, points.point) * points.there, points.stop[:, None]], 1)
        count = valid.sum(1, keepdim=True)
        p = torch.cat([slots, stop[:, None]], 1).sub(total[:, None]).exp()
        mass = explore.mixed(p, valid, count)
        cdf = mass.cumsum(1)
        threshold = u * cdf[:, -1]
        slot = first_reaching(cdf, threshold[:, None], valid > 0)
        stops = slot == points.point.shape[1]
        inside = torch.where(stops, 0, slot)[:, None]
        point = points.point.gather(1, inside)
        rows = points.row.gather(1, point[:, :, None].expand(-1, 1, R))[:, 0]
        logits = torch.where(rows, self._rows(point[:, 0]) / T, -torch.inf)
        within = explore.mixed((logits - total[:, None]).exp(), rows, count).cumsum(1)
        below = cdf.gather(1, inside) - mass.gather(1, inside)
        fraction = ((threshold[:, None] - below) / mass.gather(1, inside)).clamp(torch.finfo(mass.dtype).eps, 1)
        row = first_reaching(within, fraction * within[:, -1:], rows)
        return torch.where(stops, Q * R, point[:, 0] * R + row)

    def _slots(self, temperature: float) -> Tensor:
        """[S·M, P] log Σ exp over the valid rows of each slot, of logits / temperature; -inf in an unused slot."""
        points, found = self.points, []
        some = max(1, self.chunk // (points.point.shape[1] * max(points.row.shape[2], self.heads[0].node.shape[-1])))
        M = len(points.point) // len(self.heads)
        whole = zip(*(torch.split(x, M) for x in (points.point, points.there, points.name, points.row)), strict=True)
        for head, seed in zip(self.heads, whole, strict=True):
            weights = (head.site, head.row, head.row_bias, temperature, points.sites)
            parts = zip(*(torch.split(x, some) for x in (head.node, *seed)), strict=True)
            if some >= M:
                found += [_slot_totals(*part, *weights) for part in parts]  # type: ignore[call-arg]
            else:  # a generator's state cannot be read while a CUDA graph is captured
                found += [checkpoint(_slot_totals, *p, *weights, use_reentrant=False, preserve_rng_state=False) for p in parts]
        return torch.cat(found)

    def _at(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [E] of attaching, and whether an action is stop."""
        Q, R = self.points.row.shape[1:]
        stops = action == Q * R
        point, row = torch.where(stops, 0, action // R), action % R
        x, seed = self._reads(state, point)
        weights = torch.cat([head.row.t() for head in self.heads]).index_select(0, seed * R + row)
        bias = torch.cat([head.row_bias for head in self.heads]).index_select(0, seed * R + row)
        return (x * weights).sum(1) + bias, stops

    def _rows(self, point: Tensor) -> Tensor:
        """[S·M, R] logits at one point of each state."""
        x, _ = self._reads(torch.arange(len(point), device=point.device), point)
        parts = zip(torch.split(x, len(x) // len(self.heads)), self.heads, strict=True)
        return torch.cat([torch.addmm(head.row_bias, part, head.row) for part, head in parts])

    def _reads(self, state: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the row weights at E attachment points, [E, d], and the seeds [E] of their states."""
        points, (M, K, _) = self.points, self.heads[0].node.shape
        at = state * K + point // points.sites
        seed = state // M
        name = points.number(points.block.flatten().index_select(0, at), point)
        node = torch.cat([head.node.flatten(0, 1) for head in self.heads]).index_select(0, at)
        site = torch.cat([head.site for head in self.heads]).index_select(0, seed * len(self.heads[0].site) + name)
        return gelu(node + site), seed


def _slot_totals(
    node: Tensor,
    point: Tensor,
    there: Tensor,
    name: Tensor,
    row: Tensor,
    site: Tensor,
    weight: Tensor,
    bias: Tensor,
    temperature: float,
    sites: int,
) -> Tensor:
    """[m, P] of m states of one seed; arguments as in `OpenPoints` and `Attach`."""
    m, K, d = node.shape
    at = torch.arange(m, device=node.device)[:, None] * K + point // sites
    x = gelu(node.view(-1, d).index_select(0, at.flatten()) + site.index_select(0, name.flatten()))
    valid = row.gather(1, point[:, :, None].expand(-1, -1, row.shape[2])) & there[:, :, None]
    logits = torch.addmm(bias, x, weight).view(valid.shape)
    logits = logits if temperature == 1 else logits / temperature
    return torch.logsumexp(torch.where(valid, logits, -torch.inf), 2)
