"""`Trees`: batches of block trees as index tensors for the network: nodes, bonds, and relations between nodes.

Ragged (CPU): real nodes only, grouped by tree size, so that a group is a dense block of m trees of n nodes without padding.
Padded (elsewhere): all K nodes of every tree, static shapes, nothing is read back to the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trees:
    """M trees as a list of N nodes.

    block    [N]  block + 1
    own, up  [N]  number of the own site on the bond to the parent, and of the parent's site; 0 at a root
    parent   [N]  index of the parent in the list; a root has its own
    tree     [N]  index of the tree
    n        [N]  size of the tree
    fraction    [N]  1/n; 0 at padding
    start    [M]  index of the root of each tree
    groups   (m, n, relation [m·n·n] of node i to node j), in order: m trees with n nodes each
    """

    block: Tensor
    own: Tensor
    up: Tensor
    parent: Tensor
    tree: Tensor
    n: Tensor
    fraction: Tensor
    start: Tensor
    groups: list[tuple[int, int, Tensor]]

    @staticmethod
    def of(obs: Tensor, number: Tensor, padded: bool) -> Trees:
        """Make the index tensors.

        Args:
            obs: [M, K, 4].
            number: [C + 1, S], the number of each site of each block (by block + 1).
            padded: the layout.
        """
        M, K = obs.shape[:2]
        there = obs[:, :, 0] > 0
        n = there.sum(1)
        size = n.clamp_min(1)  # the empty state is one token
        if padded:
            order = torch.arange(M, device=obs.device)
            slot, start = torch.arange(M * K, device=obs.device), order * K
            tree, place = slot // K, slot % K
            node, relation = obs.flatten(0, 1), relations(obs[:, :, 1])
            absent = place.view(M, K) >= size[:, None]
            groups = [(M, K, torch.where(absent[:, None], 3 * K, relation).flatten())]
        else:
            size, order = size.sort(stable=True)
            slot = (torch.arange(K) < size[:, None]).flatten().nonzero()[:, 0]
            start = torch.empty_like(order).index_copy_(0, order, size.cumsum(0) - size)
            tree, place = order[slot // K], slot % K
            node, relation = obs[tree, place], relations(obs[order, :, 1])
            counts = [(k, m) for k, m in enumerate(torch.bincount(size).tolist()) if m]
            alike = torch.split(relation, [m for _, m in counts])
            groups = [(m, k, r[:, :k, :k].flatten()) for r, (k, m) in zip(alike, counts, strict=True)]
        block, above, own, up = node.unbind(1)
        root = (place == 0) | (block == 0)
        first = start[tree]
        parent = first + torch.where(root, place, above)
        own = torch.where(root, 0, number[block, own])
        up = torch.where(root, 0, number[block[parent], up])
        fraction = torch.where((place == 0) | (block > 0), 1 / n.clamp_min(1)[tree].double(), 0.0)
        return Trees(block, own, up, parent, tree, n[tree], fraction, start, groups)


def relations(parent: Tensor) -> Tensor:
    """The relation of any two nodes of a tree.

    Args:
        parent: [M, K]; parents come before their children, and that of the root is 0.

    Returns:
        [M, K, K], below 3K: 3 · distance of i and j, + 2 if j is an ancestor of i, + 0 if a descendant, + 1 otherwise.
    """
    K = parent.shape[1]
    eye = torch.eye(K, device=parent.device)
    above = eye[parent].clone()
    above = torch.maximum(above, eye)  # j is i or its parent
    for _ in range(max(K - 2, 0).bit_length()):
        above = (above @ above).clamp_max(1)
    common = above @ above.mT  # number of common ancestors, including the nodes themselves
    depth = common.diagonal(dim1=1, dim2=2)
    distance = depth[:, :, None] + depth[:, None] - 2 * common
    return (3 * distance + above - above.mT + 1).long()
