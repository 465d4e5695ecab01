"""`FirstAtom`: the atom that the sEH proxy marks in a tree without open attachment points.

The code of 2021 marks atom 0 of the molecule: atom 0, in its SMILES, of the block that came first. So a tree has there a value
for each block that can come first, and for each image of its atom 0 under the block's symmetries. (Two trees are among its 950
test states with two values each.) The rule takes one of these values. It sees the tree only, not the order of construction, the
numbers of nodes or the order of the vocabulary:

    a block can come first if, seen from it, every other block is attached by one of its `joins`
    the first of them has the most attachment points; then the first SMILES in alphabetical order; then attachment atoms
    equal blocks and images of atom 0: the least hash of the tree as seen from there, made from SMILES and atoms
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.molecules.blocks import Blocks
from envs.molecules.canonical import NONE, Canoniser
from envs.random import GOLDEN, mix

if TYPE_CHECKING:
    from envs.molecules.fragments import Fragment


class FirstAtom:
    """A call maps trees obs [B, K, 4], parents before children, to (node [B], atom of its block [B]).

    Args:
        blocks: the vocabulary.
        rank: [C] place of a block in the order above.
        names: hashes of the blocks [C] and of their sites [C, S].
        atom: [C, G] the atom that symmetry g maps to atom 0.
    """

    def __init__(self, blocks: Blocks, rank: Tensor, names: tuple[Tensor, Tensor], atom: Tensor) -> None:
        self.blocks, self.rank, self.names, self.atom = blocks, rank, names, atom
        self._canonical = Canoniser(blocks, names)

    @staticmethod
    def of(fragments: Sequence[Fragment], blocks: Blocks, atoms: Sequence[Sequence[int]]) -> FirstAtom:
        """Build the tables of a vocabulary.

        Args:
            fragments: the C building blocks.
            blocks: their tables.
            atoms: atoms[c][g], the atom of block c that its symmetry g maps to atom 0.
        """
        order = sorted(
            range(blocks.C), key=lambda c: (-sum(n for _, n in fragments[c].attach), fragments[c].smiles, _text(fragments[c]))
        )
        site = torch.zeros(blocks.C, blocks.S, dtype=torch.int64)
        for c, f in enumerate(fragments):
            site[c, : len(f.attach)] = torch.tensor([a for a, _ in f.attach])
        digests = [hashlib.sha256(_text(f).encode()).digest() for f in fragments]
        name = torch.tensor([int.from_bytes(digest[:8], "big", signed=True) for digest in digests])
        names = name, mix((site + 1) * GOLDEN)
        return FirstAtom(blocks, torch.tensor(order).argsort(), names, torch.tensor(atoms))

    def to(self, device: torch.device | str) -> FirstAtom:
        """The same tables on `device`."""
        names = self.names[0].to(device), self.names[1].to(device)
        return FirstAtom(self.blocks.to(device), self.rank.to(device), names, self.atom.to(device))

    def __call__(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        code, block = obs[..., 0], (obs[..., 0] - 1).clamp_min(0)
        messages = self._canonical.messages(obs)
        rank = torch.where((code > 0) & self._may_begin(obs), self.rank[block], self.blocks.C)
        colour = torch.where(rank == rank.amin(1, keepdim=True), messages.colour, NONE)
        node = colour.argmin(1)
        at = node[:, None]
        return node, self.atom[block.gather(1, at), messages.g_whole.gather(1, at)][:, 0]

    def _may_begin(self, obs: Tensor) -> Tensor:
        """[B, K] bool: whether every other block is attached by a site that may attach it, seen from a node."""
        code, parent, own, theirs = obs.unbind(2)
        block = (code - 1).clamp_min(0)
        child = (code > 0) & (torch.arange(obs.shape[1], device=obs.device) > 0)
        # whether the bond to the parent forbids that the node is attached to the parent, or the parent to the node
        down = (child & ~self.blocks.joins[block, own]).long()
        up = (child & ~self.blocks.joins[block.gather(1, parent), theirs]).long()
        wrong = down.sum(1, keepdim=True).repeat(1, obs.shape[1])
        for i in range(1, obs.shape[1]):
            wrong[:, i : i + 1] = wrong.gather(1, parent[:, i : i + 1]) + (up - down)[:, i : i + 1]
        return wrong == 0


def _text(fragment: Fragment) -> str:
    return json.dumps([fragment.smiles, sorted(fragment.attach)])
