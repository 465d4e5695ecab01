"""Converts block trees to RDKit molecules: all blocks, and one single bond for each node but the root.

    for each node i >= 1:  bond the atom of its own site to the atom of its parent's site;
                           each of the two loses a hydrogen (explicit ones, [nH] or [C@@H], here; RDKit removes implicit ones)

A partner takes the position of the hydrogen, so that stereocentres of a block keep their chirality. A centre that is no longer
one (two equal partners) loses its tag, and a centre that is created by attaching is left unspecified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rdkit import Chem, rdBase
from torch import Tensor

if TYPE_CHECKING:
    from envs.molecules.fragments import Fragment

Bond = tuple[int, int, int, int]  # (block in the list, its atom, other block in the list, its atom)


class Builder:
    """A vocabulary parsed by RDKit, from which many molecules are built.

    Raises:
        ValueError: RDKit cannot read the SMILES of a fragment.
    """

    def __init__(self, fragments: Sequence[Fragment]) -> None:
        self.fragments = fragments
        self.sites = [[atom for atom, _ in f.attach] for f in fragments]
        with rdBase.BlockLogs():
            self.mols = [Chem.MolFromSmiles(f.smiles) for f in fragments]
        for f, mol in zip(fragments, self.mols, strict=True):
            if mol is None or not mol.GetNumAtoms():
                raise ValueError(f"RDKit cannot read block {f.name}, {f.smiles!r}; write a SMILES that it can")
        self.size = [mol.GetNumAtoms() for mol in self.mols]
        self.stereo = [_has_stereo(mol) for mol in self.mols]

    def join(self, blocks: Sequence[int], bonds: Sequence[Bond]) -> Chem.Mol:
        """Build the sanitised molecule of some blocks, with their atoms in order.

        Args:
            blocks: indices of blocks, with repetition.
            bonds: single bonds between their atoms.

        Raises:
            ValueError: RDKit cannot sanitise the molecule.
        """
        start = [0]
        mol = Chem.RWMol(self.mols[blocks[0]])
        for block in blocks[1:]:
            start.append(mol.GetNumAtoms())
            mol.InsertMol(self.mols[block])
        for i, a, j, b in bonds:
            a, b = start[i] + a, start[j] + b
            mol.AddBond(a, b, Chem.BondType.SINGLE)
            for atom in (mol.GetAtomWithIdx(a), mol.GetAtomWithIdx(b)):
                if hydrogens := atom.GetNumExplicitHs():
                    atom.SetNumExplicitHs(hydrogens - 1)
        try:
            Chem.SanitizeMol(mol)
        except ValueError as refusal:
            names = ", ".join(self.fragments[block].name for block in blocks)
            raise ValueError(
                f"RDKit refuses the molecule of the blocks {names}: {refusal}; check their attachment atoms"
            ) from None
        if any(self.stereo[block] for block in blocks):
            Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        return mol.GetMol()

    def mol(self, row: Sequence[Sequence[int]]) -> Chem.Mol:
        """Build the molecule of one observation, K rows (block + 1, parent, own site, parent's site), absent nodes 0.

        Raises:
            ValueError: the tree is empty, has a site that a block lacks, or RDKit cannot sanitise the molecule.
        """
        nodes = [node for node in row if node[0]]
        if not nodes:
            raise ValueError("got the empty state, expected a tree of at least one block")
        blocks = [node[0] - 1 for node in nodes]
        bonds = [
            (i, self._atom(blocks[i], own), parent, self._atom(blocks[parent], up))
            for i, (_, parent, own, up) in enumerate(nodes)
            if i
        ]
        return self.join(blocks, bonds)

    def molecules(self, obs: Tensor) -> list[Chem.Mol]:
        """Build molecules, RDKit's log off.

        Args:
            obs: [B, K, 4], trees of blocks.

        Returns:
            B sanitised molecules.

        Raises:
            ValueError: a tree is empty, or RDKit refuses a molecule.
        """
        with rdBase.BlockLogs():
            return [self.mol(row) for row in obs.tolist()]

    def _atom(self, block: int, site: int) -> int:
        if not 0 <= site < len(self.sites[block]):
            name, sites = self.fragments[block].name, len(self.sites[block])
            raise ValueError(
                f"got site {site} of block {name}, which has {sites}; give an observation made with these fragments"
            )
        return self.sites[block][site]


def _has_stereo(mol: Chem.Mol) -> bool:
    centres = any(atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED for atom in mol.GetAtoms())
    return centres or any(bond.GetStereo() != Chem.BondStereo.STEREONONE for bond in mol.GetBonds())
