"""Trees of building blocks as a DAG: start from any block, attach blocks one by one at open attachment points, stop.

    state      a tree of at most K blocks in canonical form (`canonical.py`); equal observations are isomorphic trees
    action     (node · S + site) · R + row: attach block row_block[row], by its site row_site[row], to an open attachment point;
               in the empty state node = site = 0 and row is a block's first; the last action stops. A = (K - 1) · S · R + 1
    valid      one site of each orbit of open attachment points under the tree's automorphisms, each of the R rows
               (a vocabulary may restrict the sites that attach a block);
               stop from `min_blocks` on, and only stop in a tree of K blocks or without open attachment points
    parents    one edge for each orbit, under the automorphisms, of leaves that a row attaches (for a single block: the source)

Objects are finished trees up to isomorphism. Actions that an automorphism maps to each other count as one action, and leaves
likewise. So an edge of the DAG is one pair (state, action) in both directions, and p(x) ∝ R(x) needs no correction. Different
trees can still be the same molecule.

Differs from the code of 2021: a tree of K blocks ends with a stop, and parents are exactly the states that lead here. What a
block is, which of its points are open and which attach it, is the vocabulary's (`fragments.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Parents, RewardFault, State
from envs.dag.ancestry import ancestry
from envs.molecules.blocks import Blocks
from envs.molecules.canonical import NODES, Canonical, Canoniser
from envs.random import GOLDEN, Rng, mix

LogReward = Callable[[Tensor], Tensor]


def uniform(obs: Tensor) -> Tensor:
    """log R = 0 for M objects obs [M, *obs], [M] float64."""
    return torch.zeros(len(obs), dtype=torch.float64, device=obs.device)


class BlockTrees:
    """Trees of building blocks. An observation is [K, 4] int64, a tree in canonical form.

    Args:
        blocks: the vocabulary.
        log_reward: finished trees [M, K, 4] -> log R [M].
        max_blocks: K, the most blocks of a tree, 2 to 12.
        min_blocks: the fewest blocks of a finished tree.
        device: of all tensors.

    Raises:
        ValueError: an argument is out of range, or no tree of `min_blocks` blocks can be built.
    """

    masked = True
    backend: Literal["torch", "numpy"] = "torch"
    few_ancestors = True

    def __init__(
        self,
        blocks: Blocks,
        log_reward: LogReward = uniform,
        *,
        max_blocks: int = 8,
        min_blocks: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 2 <= max_blocks <= NODES or not 1 <= min_blocks <= max_blocks:
            raise ValueError(
                f"min_blocks is {min_blocks} and max_blocks {max_blocks}: expected 1 <= min_blocks <= max_blocks and "
                f"2 <= max_blocks <= {NODES}"
            )
        room = blocks.capacity.sum(1)
        if min_blocks > 2 and int(room.max()) < 2:
            raise ValueError(
                f"no tree of {min_blocks} blocks can be built: all {blocks.C} blocks have one attachment point; "
                "add a block with two attachment points, or set min_blocks to 2"
            )
        self.blocks, self.max_blocks, self.min_blocks = blocks.to(device), max_blocks, min_blocks
        self.device, self.reward = torch.device(device), log_reward
        self.canonical = Canoniser(self.blocks)
        K, S, R, C = max_blocks, blocks.S, blocks.R, blocks.C
        self.n_actions = (K - 1) * S * R + 1
        self._stop = self.n_actions - 1
        self.horizon = K + 1
        self.action_space = gymnasium.spaces.Discrete(self.n_actions)
        self.observation_space = gymnasium.spaces.MultiDiscrete(np.tile([C + 1, K, S, S], (K, 1)))
        words = torch.arange(1, 4 * K + 1, device=self.device)
        self._words = (mix(words * GOLDEN) | 1).view(K, 4)
        row = torch.arange(R, device=self.device)
        self._begins = row == self.blocks.first_row[self.blocks.row_block]
        self._all_join = bool((blocks.joins == (blocks.capacity > 0)).all())
        self._closes = self.blocks.capacity.sum(1)[self.blocks.row_block] == 1  # rows whose block has no other attachment point

    def with_reward(self, log_reward: LogReward) -> BlockTrees:
        """The same environment with another reward."""
        other = copy(self)
        other.reward = log_reward
        return other

    # -- forward dynamics

    def reset(self, n: int, rng: Rng) -> State:
        obs = torch.zeros(n, self.max_blocks, 4, dtype=torch.int64, device=self.device)
        return self.state_at(obs, torch.zeros(n, dtype=torch.bool, device=self.device))

    def step(self, state: State, action: Array, rng: Rng) -> State:
        grows = ~state.terminated & (action != self._stop)
        assert state.action_mask is not None
        obs, mask, ended = state.obs, state.action_mask, state.terminated | (action == self._stop)
        if self.device.type != "cpu":  # without reading the number of growing trees back to the host
            grown = self.canonical(self.attached(obs, action.clamp_max(self._stop - 1)))
            obs = torch.where(grows[:, None, None], grown.obs, obs)
            mask = torch.where(grows[:, None], self.valid_actions(grown), mask)
        elif bool(grows.any()):
            some = grows.nonzero()[:, 0]
            grown = self.canonical(self.attached(obs[some], action[some]))
            every, valid = len(some) == len(obs), self.valid_actions(grown)
            obs = grown.obs if every else obs.index_copy(0, some, grown.obs)
            mask = valid if every else mask.index_copy(0, some, valid)
        return State(obs, state.reward, ended, state.truncated, None, mask)

    def state_at(self, obs: Array, terminated: Array) -> State:
        """The states with these observations, [M, K, 4] in canonical form, and flags [M]."""
        never = torch.zeros_like(terminated)
        return State(obs, never.float(), terminated, never, None, self.valid_actions(self.canonical(obs)))

    def attached(self, obs: Tensor, action: Tensor) -> Tensor:
        """Attach a block by actions [M], not stop, to trees obs [M, K, 4]. The result is not in canonical form."""
        size = self.size(obs)
        place, row = action // self.blocks.R, action % self.blocks.R
        node, site = place // self.blocks.S, place % self.blocks.S
        more = torch.stack([self.blocks.row_block[row] + 1, node, self.blocks.row_site[row], site], 1)
        more[:, 1:] *= (size > 0)[:, None]
        at = size.clamp_max(self.max_blocks - 1)[:, None, None].expand(-1, 1, 4)
        return obs.scatter(1, at, more[:, None])

    def valid_actions(self, tree: Canonical) -> Tensor:
        """Valid actions of unfinished trees, [M, A] bool."""
        blocks, K = self.blocks, tree.obs.shape[1]
        size = self.size(tree.obs)
        room = self._room(tree)
        index, sites = torch.arange(K, device=room.device), torch.arange(blocks.S, device=room.device)
        chosen = (tree.first == index)[..., None] & (tree.least == sites)
        point = ((room > 0) & chosen & (size < K)[:, None, None])[:, : K - 1].flatten(1)
        mask = torch.empty(len(size), self.n_actions, dtype=torch.bool, device=size.device)
        adds = mask[:, :-1].view(len(size), (K - 1) * blocks.S, blocks.R)
        adds.copy_(point[:, :, None].expand_as(adds))
        if self.min_blocks > 2:  # a tree below min_blocks must keep an open attachment point
            tight = (room.sum((1, 2)) == 1) & (size + 1 < self.min_blocks)
            adds &= ~(tight[:, None] & self._closes)[:, None]
        adds[:, 0] |= (size == 0)[:, None] & self._begins
        mask[:, -1] = size >= self.min_blocks
        return mask

    def size(self, obs: Tensor) -> Tensor:
        """Number of blocks of each tree, [M], for obs [M, K, 4]."""
        return (obs[..., 0] > 0).sum(1)

    def _room(self, tree: Canonical) -> Tensor:
        """Number of further partners that each site can have, [M, K, S]."""
        code = tree.obs[..., 0]
        return (self.blocks.capacity[(code - 1).clamp_min(0)] - tree.partner) * (code > 0)[..., None]

    # -- backward dynamics

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents:
        """All edges into M states, for obs [M, K, 4], terminated [M]."""
        size = self.size(obs)
        ended = terminated.nonzero()[:, 0]
        single = ((size == 1) & ~terminated).nonzero()[:, 0]
        several = ((size > 1) & ~terminated).nonzero()[:, 0]
        child, leaf = self.leaves(obs[several]).nonzero(as_tuple=True)
        before, action = self._without(obs[several][child], leaf)
        begun = self.blocks.first_row[obs[single, 0, 0] - 1]
        return Parents(
            torch.cat([ended, single, several[child]]),
            torch.cat([obs[ended], torch.zeros_like(obs[single]), before.obs]),
            torch.cat([torch.full_like(ended, self._stop), begun, action]),
        )

    def leaves(self, obs: Tensor) -> Tensor:
        """One leaf of each orbit under automorphisms, [M, K] bool; an action attaches a leaf to what is left without it."""
        index = torch.arange(obs.shape[1], device=obs.device)
        leaves = (self.canonical.partners(obs).sum(2) == 1) & (self.canonical.orbits(obs) == index)
        if self._all_join:
            return leaves
        own = torch.cat([obs[:, 1:2, 3], obs[:, 1:, 2]], 1)  # a leaf at the root is bonded to node 1
        return leaves & self.blocks.joins[(obs[..., 0] - 1).clamp_min(0), own]

    def _without(self, tree: Tensor, leaf: Tensor) -> tuple[Canonical, Tensor]:
        """Remove the node leaf [E] from trees [E, K, 4]; return the trees and the action [E] that attaches it again."""
        e, index = (torch.arange(n, device=leaf.device) for n in (len(leaf), self.max_blocks))
        at_root = leaf == 0
        # the bond of the leaf: to its parent's site, or, at the root, to the site of its only partner
        bond = tree[e, torch.where(at_root, 1, leaf)]
        node = torch.where(at_root, 0, bond[:, 1])
        site, own = (torch.where(at_root, bond[:, i], bond[:, 5 - i]) for i in (2, 3))
        block = tree[e, leaf, 0] - 1
        shifted = torch.nn.functional.pad(tree[:, 1:], (0, 0, 0, 1))
        less = torch.where((index >= leaf[:, None])[..., None], shifted, tree)
        less[..., 1] -= ((less[..., 1] > leaf[:, None]) | (at_root[:, None] & (less[..., 1] > 0))).long()
        less[:, 0, 1:] = 0
        found = self.canonical(less)
        now, called = found.node[e, node].clamp_max(self.max_blocks - 1), found.site[e, node, site]
        point = found.first[e, now] * self.blocks.S + found.least[e, now, called]
        return found, point * self.blocks.R + self.blocks.row[block, own]

    def edge_count(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """Number of edges into each state, [M], for obs [M, K, 4], terminated [M]."""
        several = ~terminated & (self.size(obs) > 1)
        if self.device.type != "cpu":
            return torch.where(several, self.leaves(obs).sum(1), terminated | (self.size(obs) == 1))
        count = (terminated | (self.size(obs) == 1)).long()
        return count.masked_scatter_(several, self.leaves(obs[several]).sum(1))

    def log_paths(self, obs: Tensor, terminated: Tensor) -> Tensor:
        """Log of the number of paths from the source, [M] float64, by listing all ancestors."""
        return ancestry(self, obs, terminated).log_paths()

    def index(self, obs: Tensor) -> Tensor:
        """A hash of each observation, [M] int64; distinct observations may collide with probability 2^-64."""
        return mix((obs * self._words).sum((1, 2)))

    def propose(self, obs: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Propose x' for MCMC: attach a block, remove a leaf, or swap (both), each with probability 1/3.

        The action is uniform over those possible; if there is none, the tree does not change. The chain is irreducible.

        Args:
            obs: finished trees, [M, K, 4].
            rng: M random keys.

        Returns:
            The trees [M, K, 4], and log q(x|x') - log q(x'|x), [M] float64. For a swap, the tree in between is an auxiliary
            variable: the probabilities of attaching cancel, and the ratio of the numbers of leaves remains.
        """
        u = rng.uniform(3).double()
        kind, here = (3 * u[:, 0]).long(), self.leaves(obs)
        n_leaves = here.sum(1)
        nth = (u[:, 1] * n_leaves).long()
        shorter, _ = self._without(obs, (here.cumsum(1) <= nth[:, None]).sum(1).clamp_max(self.max_blocks - 1))
        grow = kind == 0
        shrink = (kind == 1) & (n_leaves > 0) & (self.size(obs) > self.min_blocks)
        base = self.canonical(torch.where(grow[:, None, None], obs, shorter.obs))
        adds = self.valid_actions(base)[:, :-1]
        n_adds = adds.sum(1)
        grow, swap = grow & (n_adds > 0), (kind == 2) & (n_leaves > 0)
        action = (adds.cumsum(1) <= (u[:, 2] * n_adds).long()[:, None]).sum(1)
        taller = self.canonical(self.attached(base.obs, torch.where(grow | swap, action, 0)))
        moved = torch.where((grow | swap)[:, None, None], taller.obs, torch.where(shrink[:, None, None], shorter.obs, obs))
        now, before, adds_there = self.leaves(moved).sum(1).double().log(), n_leaves.double().log(), n_adds.double().log()
        ratio = torch.where(swap, before - now, torch.where(grow, adds_there - now, before - adds_there))
        return moved, torch.where(grow | shrink | swap, ratio, 0.0)

    # -- rewards

    def log_reward(self, obs: Tensor) -> Tensor:
        """log R of finished trees obs [M, K, 4], [M] float64; -inf is possible.

        Raises:
            RewardFault: the reward returned another shape or, on the CPU, NaN.
        """
        log_r = self.reward(obs).double()
        if tuple(log_r.shape) != (len(obs),):
            raise RewardFault(f"the reward returned shape {tuple(log_r.shape)}, expected ({len(obs)},): one for each molecule")
        if bool(torch.isnan(log_r).any()) if self.device.type == "cpu" else False:
            at = int(torch.isnan(log_r).nonzero()[0])
            raise RewardFault(f"the reward of {self.describe(obs[at : at + 1])[0]} is not a number: correct the reward")
        return log_r

    @property
    def elsewhere(self) -> bool:
        """Whether the reward computes log-rewards elsewhere, once it is told to start."""
        return bool(getattr(self.reward, "elsewhere", False))

    def start_log_reward(self, obs: Tensor) -> None:
        """Start to compute the log-rewards of finished trees obs [M, K, 4], where the reward can; return at once."""
        if self.elsewhere:
            self.reward.start(obs)  # type: ignore[attr-defined]

    def log_reward_partial(self, obs: Tensor) -> Tensor:
        """log R of trees that may be unfinished, [M] float64; 0 for the empty tree."""
        there = self.size(obs) > 0
        log_r = torch.zeros(len(obs), dtype=torch.float64, device=obs.device)
        log_r[there] = self.log_reward(obs[there])
        return log_r

    def describe(self, obs: Tensor) -> list[str]:
        """The blocks in order, each with parent, parent's site and own site: benzene | 0:0-1 amide | ..."""
        return [self._text([node for node in tree if node[0]]) for tree in obs.tolist()]

    def _text(self, tree: list[list[int]]) -> str:
        names = [self.blocks.names[node[0] - 1] for node in tree]
        bonds = [f"{parent}:{theirs}-{own} " if i else "" for i, (_, parent, own, theirs) in enumerate(tree)]
        return " | ".join(bond + name for bond, name in zip(bonds, names, strict=True)) or "nothing"
