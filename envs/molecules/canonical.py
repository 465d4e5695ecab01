"""The canonical form of trees of blocks, a batch at a time: equal tensors if and only if the trees are isomorphic.

An isomorphism maps nodes to nodes with the same block and sites to sites by one of the block's symmetries. With M a mark and

    T(i, s)   = Σ over the partners j at site s of node i of  m(j -> i)             what hangs at a site, as a multiset
    m(i -> j) = hash( c_i, min over symmetries g of  T(i, ·) + M at the site towards j, without j, permuted by g )
    colour(i) = hash( c_i, min over symmetries g of  T(i, ·) permuted by g )        the whole tree as seen from node i

messages go up the tree and down again (two passes over the nodes), and two nodes have one colour if and only if an automorphism
carries one to the other (up to collisions of 64-bit hashes). The root is a node of the lowest colour; sites are renamed by the
symmetry where the minimum over g was reached; nodes are written down depth first, partners in order of (site, message). Where
there is a choice, an automorphism carries one answer into the other, and the tensors are the same.

A node is (block + 1, parent, own site towards the parent, the parent's site), zeros for the root's last three and for no node.
Parents come before their children.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.molecules.blocks import Blocks
from envs.random import GOLDEN, mix

NODES = 12  # of the largest tree: a path from the root is spelt in an int64
BITS = 5  # of each of its letters
NONE = torch.iinfo(torch.int64).max


class Canonical(NamedTuple):
    """B trees of at most K nodes in canonical form, and what follows from their symmetries.

    obs     [B, K, 4]
    partner [B, K, S]  how many partners each site has
    first   [B, K]     the first node of a node's orbit under automorphisms of the tree
    least   [B, K, S]  the lowest site of the site's orbit, at the first node of the node's orbit
    node    [B, K]     where node i of the tree as it was given is now (K for no node)
    site    [B, K, S]  what its sites are called now
    """

    obs: Tensor
    partner: Tensor
    first: Tensor
    least: Tensor
    node: Tensor
    site: Tensor


class Canoniser:
    """Tables of a vocabulary, on its device. Call it with trees [B, K, 4], parents before children."""

    def __init__(self, blocks: Blocks) -> None:
        device, C, S = blocks.capacity.device, blocks.C, blocks.S
        word = mix(torch.arange(1, 3 * max(C, S) + 2, device=device) * GOLDEN)
        self.mark, weight = int(word[0]), word[1 : S + 1] | 1
        self._salt, self._salt_whole = word[-C:], word[-2 * C : -C]
        self.blocks = blocks
        self._weight = weight[blocks.symmetry]  # [C, G, S]: Σ_s weight[g(s)] T(s) is a hash of T permuted by g
        self._inverse = blocks.symmetry.argsort(-1)
        self._names = blocks.symmetry.transpose(1, 2).contiguous().to(torch.int8)  # [C, S, G]

    def __call__(self, tree: Tensor) -> Canonical:
        B, K, _ = tree.shape
        looked_at = int((tree[..., 0] > 0).sum(1).max()) if tree.device.type == "cpu" and B else K
        N = max(1, looked_at)
        code, parent, own, theirs = tree[:, :N].unbind(2)
        there, block = code > 0, (code - 1).clamp_min(0)
        rows = torch.arange(B, device=tree.device)
        T, up, down, g_up, g_down = self._messages(block, there, parent, own, theirs, rows)
        seen = (self._weight[block] * T[:, :, None]).sum(3)  # [B, N, G]
        lowest, g_whole = seen.min(2)
        colour = torch.where(there, mix(lowest + self._salt_whole[block]), NONE)
        root = colour.argmin(1)
        # sites of a node in one orbit of the tree's automorphisms have the same lowest name over the minimising symmetries
        lower = torch.where((seen == lowest[..., None])[:, :, None], self._names[block], self.blocks.S)
        least = lower.amin(3).long()

        # turn the edges from the root to node 0 around
        path = self._path(parent, root, rows)
        moved = torch.where(path[:, 1:], parent[:, 1:], N)  # node p_i of each edge of the path, whose new parent is i
        index = torch.arange(N, device=tree.device).expand(B, N)

        def turned(old: Tensor, new: Tensor, at_root: Tensor | int) -> Tensor:
            wide = torch.cat([old, old[:, :1]], 1).scatter(1, moved, new[:, 1:])
            return torch.where(index == root[:, None], at_root, wide[:, :N])

        ancestor = turned(parent, index, index)
        own_now, theirs_now = turned(own, theirs, 0), turned(theirs, own, 0)
        message = turned(up, down, 0)
        g = torch.where(index == root[:, None], g_whole, turned(g_up, g_down, 0))
        site = self.blocks.symmetry[block, g]  # [B, N, S]
        own_now = site.gather(2, own_now[..., None])[..., 0]
        theirs_now = site[rows[:, None], ancestor].gather(2, theirs_now[..., None])[..., 0]

        # siblings in order of (site, message), then depth first
        order = self._depth_first(there, ancestor, theirs_now, message, root, index)
        node = torch.full_like(order, K).scatter(1, order, index)
        node = torch.where(there, node, K)
        alive = there.gather(1, order)
        is_root = index == 0
        columns = [
            (code, None),
            (node.gather(1, ancestor), is_root),
            (own_now, is_root),
            (theirs_now, is_root),
        ]
        obs = torch.stack(
            [torch.where(alive if drop is None else alive & ~drop, x.gather(1, order), 0) for x, drop in columns],
            2,
        )
        # what is known of nodes and sites, under their new names
        to_old = self._inverse[block, g][rows[:, None], order]  # [B, N, S] the old name of a new site
        least = least[rows[:, None], order].gather(2, to_old)
        colour = colour.gather(1, order)
        first = (colour[:, :, None] == colour[:, None, :]).long().argmax(2)
        at_first = least[rows[:, None], first]
        least = (least[..., None] == at_first[:, :, None]).long().argmax(3)
        return Canonical(
            _padded(obs, K),
            _padded(self.partners(obs), K),
            _padded(first, K),
            _padded(least, K),
            torch.nn.functional.pad(node, (0, K - N), value=K),
            _padded(site, K),
        )

    def partners(self, obs: Tensor) -> Tensor:
        """[B, K, S] how many partners each site has."""
        code, parent, own, theirs = obs.unbind(2)
        bonded = (code > 0) & (torch.arange(obs.shape[1], device=obs.device) > 0)
        S = self.blocks.S
        mine = torch.nn.functional.one_hot(own, S) * bonded[..., None]
        its = torch.nn.functional.one_hot(theirs, S) * bonded[..., None]
        return mine.scatter_add(1, parent[..., None].expand_as(its), its)

    def _messages(
        self, block: Tensor, there: Tensor, parent: Tensor, own: Tensor, theirs: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """T [B, N, S]; m(i -> parent), m(parent -> i) and the symmetries that minimise them [B, N]."""
        B, N = block.shape
        S = self.blocks.S
        T = torch.zeros(B, N, S, dtype=torch.int64, device=block.device)
        up, down, g_up, g_down = (torch.zeros_like(block) for _ in range(4))
        for i in range(N - 1, 0, -1):
            c = block[:, i]
            marked = T[:, i].scatter_add(1, own[:, i : i + 1], torch.full_like(own[:, :1], self.mark))
            lowest, g_up[:, i] = (self._weight[c] * marked[:, None]).sum(2).min(1)
            up[:, i] = torch.where(there[:, i], mix(lowest + self._salt[c]), 0)
            T.view(B, N * S).scatter_add_(1, (parent[:, i] * S + theirs[:, i])[:, None], up[:, i : i + 1])
        for i in range(1, N):
            c, at = block[rows, parent[:, i]], theirs[:, i : i + 1]
            without = T[rows, parent[:, i]].scatter_add(1, at, self.mark - up[:, i : i + 1])
            lowest, g_down[:, i] = (self._weight[c] * without[:, None]).sum(2).min(1)
            down[:, i] = torch.where(there[:, i], mix(lowest + self._salt[c]), 0)
            T[:, i].scatter_add_(1, own[:, i : i + 1], down[:, i : i + 1])
        return T, up, down, g_up, g_down

    @staticmethod
    def _path(parent: Tensor, root: Tensor, rows: Tensor) -> Tensor:
        """[B, N] bool: the nodes from `root` up to node 0."""
        path = torch.zeros(parent.shape, dtype=torch.bool, device=parent.device)
        at = root
        for _ in range(parent.shape[1]):
            path[rows, at] = True
            at = parent[rows, at]
        return path

    @staticmethod
    def _depth_first(there: Tensor, parent: Tensor, site: Tensor, message: Tensor, root: Tensor, index: Tensor) -> Tensor:
        """[B, N] the nodes in preorder, absent ones last. A node's word is its ancestors' ranks among their siblings."""
        is_root = index == root[:, None]
        key = (site << 58) | ((message >> 6) & ((1 << 58) - 1))
        a, b = key[:, :, None], key[:, None, :]
        before = (b < a) | ((b == a) & (index[:, None, :] < index[:, :, None]))
        sibling = (parent[:, :, None] == parent[:, None, :]) & (there & ~is_root)[:, None, :]
        rank = torch.where(is_root, 0, (sibling & before).sum(2) + 1)
        word = rank << (BITS * (NODES - 1 - _to_the_root((~is_root).long(), parent)))
        return torch.where(there, _to_the_root(word, parent), NONE).argsort(1)


def _to_the_root(x: Tensor, parent: Tensor) -> Tensor:
    """[B, N] sums of x over each node and its ancestors; the root is its own parent and has x = 0."""
    for _ in range(max(1, (x.shape[1] - 1).bit_length())):
        x, parent = x + x.gather(1, parent), parent.gather(1, parent)
    return x


def _padded(x: Tensor, K: int) -> Tensor:
    short = K - x.shape[1]
    return torch.nn.functional.pad(x, (0,) * (2 * (x.dim() - 2)) + (0, short)) if short else x
