"""A genetic algorithm on molecular graphs (Jensen, Chem. Sci. 10:3567, 2019) with the settings of PMO.

    population = 120 molecules, scored
    repeat      parents a, b ~ score;  child = crossover(a, b), with probability 0.067 mutated;  70 times
                population = the best 120 of population and children

Crossover cuts both parents at an acyclic single bond, or at two bonds of one ring, and joins a piece of each. A mutation
appends, inserts, deletes or changes an atom, changes the order of a bond, opens or closes a ring. All edits are made in the
Kekulé form with implicit hydrogens; what RDKit cannot sanitise, or is too large or too strained, is tried again.

Differs from the paper: parents are drawn from the population itself, not from a mating pool drawn from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase

from experiments.pmo.score import Score

POPULATION, OFFSPRING, MUTATION = 120, 70, 0.067
ATTEMPTS = 10  # of a crossover or a mutation
STALE = 100  # generations without a new molecule, after which the search ends
SMALLEST, SIZE, SPREAD = 6, 39.15, 3.5  # heavy atoms; the largest size of a child is drawn around SIZE
LARGEST_RING = 6
RING_SIZES, RING_SHARES = (3, 4, 5, 6), (0.05, 0.05, 0.45, 0.45)  # of rings that are closed
SINGLE, DOUBLE, TRIPLE = Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE
ORDERS, ORDER_SHARES = (SINGLE, DOUBLE, TRIPLE), (0.6, 0.35, 0.05)
ELEMENTS = {SINGLE: (6, 7, 8, 9, 16, 17, 35), DOUBLE: (6, 7, 8, 16), TRIPLE: (6, 7)}  # of atoms at a bond of this order
STRAINED = tuple(map(Chem.MolFromSmarts, ("[R]=[R]=[R]", "[r3,r4]=[r3,r4]")))

Rng = np.random.Generator


@dataclass(frozen=True)
class Member:
    """A molecule of the population: canonical SMILES, Kekulé form, score."""

    smiles: str
    kekule: Chem.Mol
    score: float


def genetic(score: Score, source: Iterator[str], rng: Rng) -> None:
    """Optimise until `score` says that its budget is spent, or nothing new is found.

    Args:
        score: from canonical SMILES to scores.
        source: canonical SMILES of the first population.
        rng: all random choices.
    """
    first = [smiles for smiles, _ in zip(source, range(POPULATION), strict=False)]
    population = best([Member(s, kekule(Chem.MolFromSmiles(s)), x) for s, x in zip(first, score(first), strict=True)])
    stale = 0
    while stale < STALE:
        weights = np.array([member.score for member in population]) + 1e-10
        parents = rng.choice(len(population), (OFFSPRING, 2), p=weights / weights.sum())
        children: dict[str, Chem.Mol] = {}
        for a, b in parents.tolist():
            children.update(reproduced(population[a].kekule, population[b].kekule, rng))
        asked = len(score)
        scores = score(list(children))
        stale = 0 if len(score) > asked else stale + 1
        offspring = [Member(s, kekule(mol), x) for (s, mol), x in zip(children.items(), scores, strict=True)]
        population = best(population + offspring)


def best(members: list[Member]) -> list[Member]:
    """The best POPULATION different molecules, the best first."""
    different = {member.smiles: member for member in members}
    return sorted(different.values(), key=lambda member: -member.score)[:POPULATION]


def reproduced(a: Chem.Mol, b: Chem.Mol, rng: Rng) -> dict[str, Chem.Mol]:
    """A child of two molecules, SMILES -> molecule; none where no attempt led to a molecule."""
    child = attempted(lambda: crossover(a, b, rng), rng)
    if child and rng.random() < MUTATION:
        (mol,) = child.values()
        return mutated(kekule(mol), rng)
    return child


def mutated(mol: Chem.Mol, rng: Rng) -> dict[str, Chem.Mol]:
    """A neighbour of a molecule in Kekulé form, SMILES -> molecule; none where no attempt led to a molecule."""

    def mutation() -> Chem.Mol | None:
        return MUTATIONS[rng.integers(len(MUTATIONS))](Chem.RWMol(mol), rng)

    return attempted(mutation, rng)


def attempted(edit: Callable[[], Chem.Mol | None], rng: Rng) -> dict[str, Chem.Mol]:
    """The first valid result of up to ATTEMPTS edits, SMILES -> molecule."""
    largest = rng.normal(SIZE, SPREAD)
    with rdBase.BlockLogs():
        for _ in range(ATTEMPTS):
            edited = edit()
            mol = None if edited is None else valid(edited, largest)
            if mol is not None:
                return {Chem.MolToSmiles(mol): mol}
    return {}


def kekule(mol: Chem.Mol) -> Chem.Mol:
    """The Kekulé form, in which hydrogens follow from valences."""
    mol = Chem.Mol(mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    for atom in mol.GetAtoms():
        if not atom.GetNumRadicalElectrons():
            atom.SetNumExplicitHs(0)
            atom.SetNoImplicit(False)
    mol.UpdatePropertyCache()
    return mol


def valid(edited: Chem.Mol, largest: float) -> Chem.Mol | None:
    """The molecule that an edited graph stands for, as read from its SMILES; None where there is none, or not a good one."""
    if not SMALLEST <= edited.GetNumAtoms() <= largest or Chem.SanitizeMol(edited, catchErrors=True):
        return None
    mol = Chem.MolFromSmiles(Chem.MolToSmiles(edited))
    if mol is None or len(Chem.GetMolFrags(mol)) > 1:
        return None
    if any(len(ring) > LARGEST_RING for ring in mol.GetRingInfo().AtomRings()):
        return None
    return None if any(mol.HasSubstructMatch(pattern) for pattern in STRAINED) else mol


# -- crossover


def crossover(a: Chem.Mol, b: Chem.Mol, rng: Rng) -> Chem.Mol | None:
    """A piece of each parent, joined; None where one of them has no such bonds."""
    if rng.random() < 0.5:
        return joined(piece(a, chain_cut(a, rng), rng), piece(b, chain_cut(b, rng), rng), (SINGLE,))
    orders = ((SINGLE, SINGLE), (SINGLE, DOUBLE), (DOUBLE, SINGLE))[rng.integers(3)]
    return joined(piece(a, ring_cut(a, rng), rng), piece(b, ring_cut(b, rng), rng), orders)


def chain_cut(mol: Chem.Mol, rng: Rng) -> list[int]:
    """An acyclic single bond; none where there is none."""
    found = [bond.GetIdx() for bond in mol.GetBonds() if bond.GetBondType() == SINGLE and not bond.IsInRing()]
    return [found[rng.integers(len(found))]] if found else []


def ring_cut(mol: Chem.Mol, rng: Rng) -> list[int]:
    """Two bonds of a ring that belong to no other, in random order; none where there are none."""
    rings = mol.GetRingInfo()
    found = [[bond for bond in ring if rings.NumBondRings(bond) == 1] for ring in rings.BondRings()]
    found = [ring for ring in found if len(ring) > 1]
    if not found:
        return []
    return [int(bond) for bond in rng.choice(found[rng.integers(len(found))], 2, replace=False)]


def piece(mol: Chem.Mol, bonds: list[int], rng: Rng) -> Chem.Mol | None:
    """One of the two pieces that cuts leave; a dummy atom of isotope i stands for the other end of cut i = 1, 2."""
    if not bonds:
        return None
    labels = [(i, i) for i in range(1, len(bonds) + 1)]
    pieces = Chem.GetMolFrags(
        Chem.FragmentOnBonds(mol, bonds, dummyLabels=labels, bondTypes=[SINGLE] * len(bonds)), asMols=True, sanitizeFrags=False
    )
    return pieces[rng.integers(2)] if len(pieces) == 2 else None


def joined(a: Chem.Mol | None, b: Chem.Mol | None, orders: tuple[Chem.BondType, ...]) -> Chem.Mol | None:
    """Two pieces with a bond in the place of each pair of dummy atoms."""
    if a is None or b is None:
        return None
    mol = Chem.RWMol(Chem.CombineMols(a, b))
    dummies: dict[int, list[Chem.Atom]] = {}
    for atom in mol.GetAtoms():
        if not atom.GetAtomicNum():
            dummies.setdefault(atom.GetIsotope(), []).append(atom)
    for label, order in enumerate(orders, 1):
        x, y = (dummy.GetNeighbors()[0].GetIdx() for dummy in dummies[label])
        if mol.GetBondBetweenAtoms(x, y) is not None:
            return None
        mol.AddBond(x, y, order)
    for index in sorted((atom.GetIdx() for pair in dummies.values() for atom in pair), reverse=True):
        mol.RemoveAtom(index)
    return mol


# -- mutations: a molecule in Kekulé form that may be changed -> the result; None where there is no place for it


def append_atom(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    order = ORDERS[rng.choice(3, p=ORDER_SHARES)]
    found = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetTotalNumHs() >= int(order)]
    if not found:
        return None
    new = mol.AddAtom(Chem.Atom(int(rng.choice(ELEMENTS[order]))))
    mol.AddBond(found[rng.integers(len(found))], new, order)
    return mol


def insert_atom(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    bond = any_bond(mol, rng)
    if bond is None:
        return None
    a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    new = mol.AddAtom(Chem.Atom(int(rng.choice((6, 7, 8, 16)))))
    mol.RemoveBond(a, b)
    mol.AddBond(a, new, SINGLE)
    mol.AddBond(new, b, SINGLE)
    return mol


def change_bond_order(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    bond = any_bond(mol, rng)
    if bond is None:
        return None
    bond.SetBondType([order for order in ORDERS if order != bond.GetBondType()][rng.integers(2)])
    return mol


def delete_ring_bond(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    found = [bond for bond in mol.GetBonds() if bond.IsInRing()]
    if not found:
        return None
    bond = found[rng.integers(len(found))]
    mol.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    return mol


def add_ring(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    size = RING_SIZES[rng.choice(len(RING_SIZES), p=RING_SHARES)]
    free = np.array([atom.GetTotalNumHs() > 0 for atom in mol.GetAtoms()])
    pairs = np.argwhere(np.triu(Chem.GetDistanceMatrix(mol) == size - 1) & free[:, None] & free)
    if not len(pairs):
        return None
    a, b = pairs[rng.integers(len(pairs))].tolist()
    mol.AddBond(a, b, SINGLE)
    return mol


def delete_atom(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    """One at the end, or one between two others, which are then bonded."""
    found = [atom for atom in mol.GetAtoms() if atom.GetDegree() in (1, 2)]
    if not found:
        return None
    atom = found[rng.integers(len(found))]
    ends = [other.GetIdx() for other in atom.GetNeighbors()]
    first, last = ends[0], ends[-1]
    if first != last:
        if mol.GetBondBetweenAtoms(first, last) is not None:
            return None
        mol.AddBond(first, last, SINGLE)
    mol.RemoveAtom(atom.GetIdx())
    return mol


def change_atom(mol: Chem.RWMol, rng: Rng) -> Chem.Mol | None:
    """To another element without charge."""
    atom = mol.GetAtomWithIdx(int(rng.integers(mol.GetNumAtoms())))
    others = [number for number in ELEMENTS[SINGLE] if number != atom.GetAtomicNum()]
    mol.ReplaceAtom(atom.GetIdx(), Chem.Atom(others[rng.integers(len(others))]))
    return mol


def any_bond(mol: Chem.RWMol, rng: Rng) -> Chem.Bond | None:
    return mol.GetBondWithIdx(int(rng.integers(mol.GetNumBonds()))) if mol.GetNumBonds() else None


MUTATIONS = (append_atom, insert_atom, change_bond_order, delete_ring_bond, add_ring, delete_atom, change_atom)
