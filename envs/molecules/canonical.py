"""Canonical forms of batches of block trees: two tensors are equal if and only if the trees are isomorphic.

An isomorphism maps nodes to nodes with the same block and sites to sites by one of the block's symmetries. With M a mark and

    T(i, s)   = Σ over the partners j at site s of node i of  m(j -> i)             the subtrees at a site, as a multiset
    m(i -> j) = hash( c_i, min over symmetries g of  T(i, ·) + M at the site towards j, without j, permuted by g )
    colour(i) = hash( c_i, min over symmetries g of  T(i, ·) permuted by g )        the whole tree as seen from node i

messages go up the tree and down again (two passes over the nodes). Two nodes have one colour if and only if an automorphism
maps one to the other (up to collisions of 64-bit hashes). The root is a node of the lowest colour; sites are renumbered by the
symmetry that attains the minimum over g; nodes are listed depth first, partners in order of (site, message). Ties are related
by an automorphism, so that every choice gives the same tensor.

A node is (block + 1, parent, own site towards the parent, the parent's site). The last three are 0 for the root, all four for
an absent node. Parents come before their children.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.molecules.blocks import Blocks
from envs.random import GOLDEN, mix

NODES = 12  # the most nodes of a tree: a path from the root is encoded in an int64
BITS = 5  # of each step of the path
NONE = torch.iinfo(torch.int64).max


class Canonical(NamedTuple):
    """B trees of at most K nodes in canonical form, and the orbits of their automorphisms.

    obs     [B, K, 4]
    partner [B, K, S]  number of partners of each site
    first   [B, K]     the first node of a node's orbit under automorphisms of the tree
    least   [B, K, S]  the lowest site of the site's orbit, at the first node of the node's orbit
    node    [B, K]     new index of node i of the given tree (K for an absent node)
    site    [B, K, S]  new indices of its sites
    """

    obs: Tensor
    partner: Tensor
    first: Tensor
    least: Tensor
    node: Tensor
    site: Tensor


class Messages(NamedTuple):
    """Messages of B trees of at most N nodes. seen [B, N, G]: Σ_s w(g(s)) T(i, s), a hash of T(i, ·) permuted by g.

    up, down  [B, N] m(i -> parent) and m(parent -> i), with the symmetries g_up, g_down that minimise them
    lowest, g_whole  [B, N] the minimum of `seen` over g, and its g;  colour [B, N]
    """

    seen: Tensor
    up: Tensor
    down: Tensor
    g_up: Tensor
    g_down: Tensor
    lowest: Tensor
    g_whole: Tensor
    colour: Tensor


class Canoniser:
    """Computes canonical forms: a call maps trees [B, K, 4], parents before children, to `Canonical`.

    Args:
        blocks: the vocabulary.
        names: hashes of the blocks [C] and of their sites [C, S], so that messages do not depend on the vocabulary's order;
            None: made from their numbers.
    """

    def __init__(self, blocks: Blocks, names: tuple[Tensor, Tensor] | None = None) -> None:
        device, C, S = blocks.capacity.device, blocks.C, blocks.S
        word = mix(torch.arange(1, 3 * max(C, S) + 2) * GOLDEN)
        self.mark, word = int(word[0]), word.to(device)
        self._salt, self._salt_whole = word[-C:], word[-2 * C : -C]
        weight = word[1 : S + 1].expand(C, S)
        if names:
            self._salt, self._salt_whole, weight = mix(names[0]), mix(names[0] ^ GOLDEN), names[1]
        self.blocks = blocks
        weight = (weight | 1)[:, None].expand_as(blocks.symmetry).gather(2, blocks.symmetry)
        self._weight = weight.transpose(1, 2).contiguous()  # [C, S, G]
        self._inverse = blocks.symmetry.argsort(-1)
        self._image = blocks.symmetry.transpose(1, 2).contiguous().to(torch.int8)  # [C, S, G]

    def __call__(self, tree: Tensor) -> Canonical:
        B, K, _ = tree.shape
        tree = self._cut(tree)
        N = tree.shape[1]
        code, parent, own, theirs = tree.unbind(2)
        there, block = code > 0, (code - 1).clamp_min(0)
        rows, index = torch.arange(B, device=tree.device), torch.arange(N, device=tree.device).expand(B, N)
        messages = self.messages(tree)
        root = messages.colour.argmin(1)
        is_root = index == root[:, None]
        # sites of a node in one orbit of the tree's automorphisms have the same lowest image under the minimising symmetries
        least = torch.where((messages.seen == messages.lowest[..., None])[:, :, None], self._image[block], self.blocks.S)
        least = least.amin(3).long()

        # reverse the edges from the root to node 0: the old parent p_i of node i on the path gets i as its new parent
        path = self._path(parent, root, rows)
        moved = torch.where(path[:, 1:], parent[:, 1:], N)[..., None].expand(-1, -1, 5)
        old = torch.stack([parent, own, theirs, messages.up, messages.g_up], 2)
        new = torch.stack([index, theirs, own, messages.down, messages.g_down], 2)
        turned = torch.cat([old, old[:, :1]], 1).scatter(1, moved, new[:, 1:])[:, :N]
        ancestor, own, theirs, message, g = turned.unbind(2)
        ancestor, g = torch.where(is_root, index, ancestor), torch.where(is_root, messages.g_whole, g)
        site = self.blocks.symmetry[block, g]  # [B, N, S] new indices of sites
        own = site.gather(2, own[..., None])[..., 0]
        theirs = site[rows[:, None], ancestor].gather(2, theirs[..., None])[..., 0]

        order = self._depth_first(there, ancestor, theirs, message, is_root, index)
        node = torch.where(there, torch.empty_like(order).scatter_(1, order, index), K)
        bond = torch.stack([node.gather(1, ancestor), own, theirs], 2) * ~is_root[..., None]
        obs = torch.cat([code[..., None], bond], 2) * there[..., None]
        # the orbits, in new indices of nodes and sites
        obs = obs.gather(1, order[..., None].expand(-1, -1, 4))
        old_site = self._inverse[block, g][rows[:, None], order]
        least = least[rows[:, None], order].gather(2, old_site)
        first = _first(messages.colour.gather(1, order))
        least = (least[..., None] == least[rows[:, None], first][:, :, None]).long().argmax(3)
        node, partner = torch.nn.functional.pad(node, (0, K - N), value=K), self.partners(obs)
        obs, partner, first, least, site = (_padded(x, K) for x in (obs, partner, first, least, site))
        return Canonical(obs, partner, first, least, node, site)

    def orbits(self, tree: Tensor) -> Tensor:
        """`Canonical.first` of trees in canonical form, [B, K]."""
        return _padded(_first(self.messages(self._cut(tree)).colour), tree.shape[1])

    def _cut(self, tree: Tensor) -> Tensor:
        """Remove, on the CPU, the node positions that are empty in all trees."""
        if tree.device.type != "cpu" or not len(tree):
            return tree
        return tree[:, : max(1, int((tree[..., 0] > 0).sum(1).max()))]

    def partners(self, obs: Tensor) -> Tensor:
        """Number of partners of each site, [B, K, S]."""
        code, parent, own, theirs = obs.unbind(2)
        bonded = (code > 0) & (torch.arange(obs.shape[1], device=obs.device) > 0)
        S = self.blocks.S
        mine = torch.nn.functional.one_hot(own, S) * bonded[..., None]
        its = torch.nn.functional.one_hot(theirs, S) * bonded[..., None]
        return mine.scatter_add(1, parent[..., None].expand_as(its), its)

    def messages(self, tree: Tensor) -> Messages:
        """Pass messages up from the last node to the first, and down again. Hashes of the subtrees at a site are additive."""
        code, parent, own, theirs = tree.unbind(2)
        there, block = code > 0, (code - 1).clamp_min(0)
        above = block.gather(1, parent)
        at_own, at_theirs = self._weight[block, own], self._weight[above, theirs]  # [B, N, G]
        salt, salt_above = self._salt[block], self._salt[above]
        seen = torch.zeros_like(at_own)
        up, down, g_up, g_down = (torch.zeros_like(block) for _ in range(4))
        marked, rows = at_own * self.mark, torch.arange(len(tree), device=tree.device)
        flat, first = seen.view(-1, seen.shape[2]), rows * tree.shape[1]  # index_add_ is one kernel on a GPU; index_put_ sorts
        for i in range(tree.shape[1] - 1, 0, -1):
            lowest, g_up[:, i] = (seen[:, i] + marked[:, i]).min(1)
            up[:, i] = mix(lowest + salt[:, i]) * there[:, i]
            flat.index_add_(0, first + parent[:, i], at_theirs[:, i] * up[:, i : i + 1])
        without = at_theirs * (self.mark - up)[..., None]
        for i in range(1, tree.shape[1]):
            lowest, g_down[:, i] = (seen[rows, parent[:, i]] + without[:, i]).min(1)
            down[:, i] = mix(lowest + salt_above[:, i]) * there[:, i]
            seen[:, i] += at_own[:, i] * down[:, i : i + 1]
        lowest, g_whole = seen.min(2)
        colour = torch.where(there, mix(lowest + self._salt_whole[block]), NONE)
        return Messages(seen, up, down, g_up, g_down, lowest, g_whole, colour)

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
    def _depth_first(there: Tensor, parent: Tensor, site: Tensor, message: Tensor, is_root: Tensor, index: Tensor) -> Tensor:
        """[B, N] the nodes in preorder, absent ones last. The key of a node is its ancestors' ranks among their siblings."""
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


def _first(colour: Tensor) -> Tensor:
    """[B, N] the first node of each node's colour."""
    return (colour[:, :, None] == colour[:, None, :]).long().argmax(2)


def _padded(x: Tensor, K: int) -> Tensor:
    short = K - x.shape[1]
    return torch.nn.functional.pad(x, (0,) * (2 * (x.dim() - 2)) + (0, short)) if short else x
