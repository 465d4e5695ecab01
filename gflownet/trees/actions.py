"""The outputs of a policy head for the actions of M states: log F(s, a) or a logit for each valid action.

    DenseLogits   [M, A], -inf where an action is not valid
    SparseLogits  actions are pairs (site, row) or stop, action = site · R + row, with logits at sites with valid actions only

A block tree has about a dozen open attachment points, but A has room for those of all trees: the other actions are left out.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from envs.core import Diverged, any_last
from envs.dag.segments import segment_logsumexp
from gflownet.sampling.exploration import Exploration


class ActionLogits(Protocol):
    """The outputs of one policy head at M states."""

    @property
    def total(self) -> Tensor:
        """log Σ exp over the valid actions of each state, [M]."""
        ...

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        """The logits of pairs (state [E], action [E]), [E]; without meaning where the action is not valid."""
        ...


class DenseLogits:
    """Logits of all A actions.

    Args:
        logits: [M, A].
        valid: [M, A] bool.
    """

    def __init__(self, logits: Tensor, valid: Tensor) -> None:
        self.given, self.logits = logits, torch.where(valid, logits, -torch.inf)

    @cached_property
    def total(self) -> Tensor:
        return torch.logsumexp(self.logits, -1)

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        return self.logits.flatten().index_select(0, state * self.logits.shape[1] + action)


class ValidActions:
    """Valid actions in sparse form: the N pairs (state, site) with a valid action.

    state, site [N], row [N, R] bool, stop [M] bool; sites: number of sites of a state

    Args:
        valid: [M, A] bool.
        R: rows.
    """

    def __init__(self, valid: Tensor, R: int) -> None:
        self.R, self.size = R, len(valid)
        rows = valid[:, :-1].view(len(valid), -1, R)
        self.sites = rows.shape[1]
        self.state, self.site = any_last(rows).nonzero(as_tuple=True)
        self.row, self.stop = rows[self.state, self.site], valid[:, -1]

    @cached_property
    def number(self) -> Tensor:
        """[M, sites] index of a site among the N pairs, 0 if it is not one of them."""
        number = self.state.new_zeros(self.size, self.sites)
        number[self.state, self.site] = torch.arange(len(self.state), device=number.device)
        return number


class SparseLogits:
    """Logits at the sites that have a valid action.

    Args:
        logits: [N, R].
        stop: [M], the logits of the stop action.
        valid: the valid actions of the M states.
    """

    def __init__(self, logits: Tensor, stop: Tensor, valid: ValidActions) -> None:
        self.valid, self.logits = valid, torch.where(valid.row, logits, -torch.inf)
        self.stop = torch.where(valid.stop, stop, -torch.inf)

    @cached_property
    def total(self) -> Tensor:
        both = torch.cat([torch.logsumexp(self.logits, 1), self.stop])
        states = torch.cat([self.valid.state, torch.arange(len(self.stop), device=both.device)])
        return segment_logsumexp(both, states, len(self.stop))

    def at(self, state: Tensor, action: Tensor) -> Tensor:
        R, stops = self.valid.R, action == self.valid.sites * self.valid.R
        site = torch.where(stops, 0, action // R)
        index = self.valid.number.flatten().index_select(0, state * self.valid.sites + site) * R + action % R
        every = torch.cat([self.logits.flatten(), self.stop])
        return every.index_select(0, torch.where(stops, len(self.logits) * R + state, index))

    def draw(self, u: Tensor, explore: Exploration) -> Tensor:
        """[M] actions, one uniform number u [M] for each: first the site, then its row, both by cumulative sums."""
        valid = self.valid
        if not len(valid.state):
            return torch.full((valid.size,), valid.sites * valid.R, device=u.device)
        T = explore.temperature
        tempered = self if T == 1 else SparseLogits(self.logits / T, self.stop / T, valid)
        p = (tempered.logits - tempered.total[valid.state, None]).exp()
        stop = (tempered.stop - tempered.total).exp()
        if explore.uniform:
            count = valid.stop.to(p.dtype).index_add(0, valid.state, valid.row.sum(1).to(p.dtype))
            p, stop = explore.mixed(p, valid.row, count[valid.state, None]), explore.mixed(stop, valid.stop, count)
        within = p.cumsum(1)
        mass = p.new_zeros(valid.size, valid.sites + 1)
        mass[valid.state, valid.site] = within[:, -1]
        mass[:, -1] = stop
        cdf = mass.cumsum(1)
        if not bool(cdf[:, -1].isfinite().all()):
            raise Diverged("the policy's logits are not finite: try a smaller learning rate")
        threshold = u * cdf[:, -1]
        site = (cdf < threshold[:, None]).sum(1)  # strictly less: an action of probability 0 is never sampled
        stops = site == valid.sites
        inside = torch.where(stops, 0, site)
        below = (cdf - mass).gather(1, inside[:, None])[:, 0]
        here = within[valid.number.gather(1, inside[:, None])[:, 0]]
        fraction = ((threshold - below) / mass.gather(1, inside[:, None])[:, 0]).clamp(torch.finfo(mass.dtype).eps, 1) * here[
            :, -1
        ]
        row = (here < fraction[:, None]).sum(1)
        return torch.where(stops, valid.sites * valid.R, site * valid.R + row)
