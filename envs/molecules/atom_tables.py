"""`atom_tables`: computes `AtomTables` for any vocabulary with RDKit.

1. each block alone, and each of its sites with 1, 2, ... methyl groups: features by number of partners
2. sites with equal properties (element, charge, bonds, neighbours) and number of partners are of one kind
3. each kind bonded to each kind: either its atom is the same as next to a methyl group, or it changes to one other state
4. comparison on random trees: a block in which a more distant atom changes raises ValueError
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement

import torch
from rdkit import Chem, rdBase

from envs.molecules.atoms import ELEMENTS, NO_BOND, WIDTH, AtomTables, assemble
from envs.molecules.bridge import Builder
from envs.molecules.first_atom import FirstAtom
from envs.molecules.fragments import Fragment, blocks_of, coloured, colours, molecule

Look = tuple[int, bool, str, int]  # atomic number, aromatic, hybridisation, hydrogens
SLOTS = {1: 0, 6: 1, 7: 2, 8: 3, 9: 4}
HYBRIDISATION = {"SP": 10, "SP2": 11, "SP3": 12}
TYPES = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
CHECKED, NODES = 200, 6  # random trees in the comparison, and their most blocks


def atom_tables(fragments: Sequence[Fragment]) -> AtomTables:
    """Compute the tables of a vocabulary with RDKit and compare them with RDKit on random trees.

    Args:
        fragments: the C building blocks.

    Returns:
        The tables, on the CPU.

    Raises:
        ValueError: RDKit refuses a block, or tables cannot describe it.
    """
    with rdBase.BlockLogs():
        derivation = _Derivation(fragments)
        tables = derivation.tables()
        derivation.check(tables)
    return tables


class _Derivation:
    def __init__(self, fragments: Sequence[Fragment]) -> None:
        self.fragments = fragments
        self.methyl = len(fragments)
        self.builder = Builder([*fragments, replace(fragments[0], name="methyl", smiles="C", attach=((0, 4),))])
        for f, mol in zip(fragments, self.builder.mols, strict=False):
            _check_elements(f, mol)
        self.alone = [_looks(self.builder.join([c], [])) for c in range(len(fragments))]
        self.states = [
            (c, s, n) for c, f in enumerate(fragments) for s, (_, room) in enumerate(f.attach) for n in range(1, room + 1)
        ]

    def atom(self, c: int, s: int) -> int:
        return self.fragments[c].attach[s][0]

    def tables(self) -> AtomTables:
        look: dict[tuple[int, int, int], Look] = {}
        kinds: dict[object, int] = {}
        kind_of: dict[tuple[int, int, int], int] = {}
        first: list[tuple[int, int, int]] = []
        for state in self.states:
            c, s, n = state
            a = self.atom(c, s)
            mol = self.builder.join([c] + [self.methyl] * n, [(0, a, i, 0) for i in range(1, n + 1)])
            looks = _looks(mol)[: len(self.alone[c])]
            look[state] = looks[a]
            if [x for i, x in enumerate(looks) if i != a] != [x for i, x in enumerate(self.alone[c]) if i != a]:
                raise ValueError(f"attaching to atom {a} of block {self.fragments[c].name} changes its other atoms; remove it")
            key = _outside(mol.GetAtomWithIdx(a), len(looks))
            kind_of[state] = kinds.setdefault(key, len(kinds))
            if kind_of[state] == len(first):
                first.append(state)
        changes, other = self._pairs(first, [look[state] for state in first])
        return self._fill(look, kind_of, changes, other)

    def _pairs(self, first: list[tuple[int, int, int]], look: list[Look]) -> tuple[torch.Tensor, dict[int, Look]]:
        """Which kind changes next to which, [Q, Q] bool, and the features after the change, by kind."""
        changes = torch.zeros(len(first), len(first), dtype=torch.bool)
        other: dict[int, Look] = {}
        for p, q in combinations_with_replacement(range(len(first)), 2):
            (c, s, n), (d, t, m) = first[p], first[q]
            a, b = self.atom(c, s), self.atom(d, t)
            bonds = [(0, a, 1, b)] + [(0, a, i, 0) for i in range(2, n + 1)] + [(1, b, i, 0) for i in range(n + 1, n + m)]
            mol = self.builder.join([c, d] + [self.methyl] * (n + m - 2), bonds)
            for x, y, found in ((p, q, mol.GetAtomWithIdx(a)), (q, p, mol.GetAtomWithIdx(b + self.builder.size[c]))):
                now = _look(found)
                if now != look[x]:
                    changes[x, y] = True
                    if other.setdefault(x, now) != now:
                        raise ValueError(f"a site of block {self.fragments[first[x][0]].name} changes in two ways; remove it")
        return changes, other

    def _fill(
        self,
        look: dict[tuple[int, int, int], Look],
        kind_of: dict[tuple[int, int, int], int],
        changes: torch.Tensor,
        other: dict[int, Look],
    ) -> AtomTables:
        C, S = len(self.fragments), max(len(f.attach) for f in self.fragments)
        A, P = max(map(len, self.alone)), max(n for _, _, n in self.states)
        rows: dict[Look, int] = {}
        feature = torch.zeros(C, A, P + 1, 2, dtype=torch.int64)
        kind = torch.zeros(C, S, P + 1, dtype=torch.int64)
        for c, looks in enumerate(self.alone):
            for a, x in enumerate(looks):
                feature[c, a] = rows.setdefault(x, len(rows))
        for (c, s, n), x in look.items():
            k = kind[c, s, n] = kind_of[c, s, n]
            feature[c, self.atom(c, s), n, 0] = rows.setdefault(x, len(rows))
            feature[c, self.atom(c, s), n, 1] = rows.setdefault(other.get(int(k), x), len(rows))

        site_atom, capacity = torch.zeros(C, S, dtype=torch.int64), torch.zeros(C, S, dtype=torch.int64)
        atom_site = torch.full((C, A), S)
        bonds = [_bonds(self.builder.mols[c]) for c in range(C)]
        source, target = (torch.zeros(C, max(1, *map(len, bonds)), dtype=torch.int64) for _ in range(2))
        bond = torch.full_like(source, NO_BOND)
        for c, f in enumerate(self.fragments):
            for s, (a, room) in enumerate(f.attach):
                site_atom[c, s], capacity[c, s], atom_site[c, a] = a, room, s
            for e, (a, b, t) in enumerate(bonds[c]):
                source[c, e], target[c, e], bond[c, e] = a, b, t
        size = torch.tensor([len(x) for x in self.alone])
        numbers = torch.stack([_row(x) for x in rows])
        blocks = blocks_of(self.fragments)
        groups = zip(self.fragments, blocks.symmetry.tolist(), strict=True)
        first = FirstAtom.of(
            self.fragments, blocks, [[_before_0(f, tuple(g[: len(f.attach)])) for g in group] for f, group in groups]
        )
        return AtomTables(size, site_atom, atom_site, capacity, kind, changes, feature, numbers, source, target, bond, first)

    def check(self, tables: AtomTables) -> None:
        """Compare the tables with RDKit on random trees."""
        trees = random_trees(self.fragments, CHECKED, NODES, random.Random(0))
        graph = assemble(tables, trees, stem_mask=False)
        rows = torch.split(tables.rows[graph.feature], graph.molecule.bincount(minlength=len(trees)).tolist())
        for tree, found in zip(trees.tolist(), rows, strict=True):
            mol = self.builder.mol(tree)
            if not torch.equal(found, torch.stack([_row(x) for x in _looks(mol)])):
                names = ", ".join(self.fragments[node[0] - 1].name for node in tree if node[0])
                raise ValueError(f"the atoms of the blocks {names} change in ways that tables cannot describe; remove one")


def random_trees(fragments: Sequence[Fragment], count: int, nodes: int, rng: random.Random) -> torch.Tensor:
    """Random trees, not in canonical form.

    Args:
        fragments: the vocabulary.
        count: trees.
        nodes: the most blocks of a tree.
        rng: the random generator.

    Returns:
        Observations, [count, nodes, 4] int64; each block is bonded to a random site with capacity left.
    """
    trees = []
    for _ in range(count):
        tree = [(0, 0, 0, 0)] * nodes
        trees.append(tree)
        room: list[tuple[int, int]] = []
        for i in range(rng.randint(1, nodes)):
            c = rng.randrange(len(fragments))
            sites = [s for s, (_, capacity) in enumerate(fragments[c].attach) for _ in range(capacity)]
            bond = (0, 0, 0)
            if i:
                if not room:
                    break
                parent, up = room.pop(rng.randrange(len(room)))
                own = sites.pop(rng.randrange(len(sites)))
                bond = (parent, own, up)
            tree[i] = (c + 1, *bond)
            room += [(i, s) for s in sites]
    return torch.tensor(trees).view(count, nodes, 4)


@cache
def _before_0(fragment: Fragment, images: tuple[int, ...]) -> int:
    """The atom that an automorphism of the fragment maps to atom 0; the automorphism maps its sites to `images`."""
    mol, sites = molecule(fragment), [atom for atom, _ in fragment.attach]
    colour = dict(enumerate(colours(mol, dict(fragment.attach))))
    marks = range(max(colour.values()) + 1, max(colour.values()) + 1 + len(sites))
    marked, query = (
        coloured(mol, {**colour, **dict(zip((sites[s] for s in order), marks, strict=True))})
        for order in (images, range(len(sites)))
    )
    match: tuple[int, ...] = marked.GetSubstructMatch(query, useChirality=True)
    return match.index(0)


def _check_elements(fragment: Fragment, mol: Chem.Mol) -> None:
    for atom in mol.GetAtoms():
        if not 1 <= atom.GetAtomicNum() <= ELEMENTS:
            raise ValueError(
                f"block {fragment.name} has an atom of atomic number {atom.GetAtomicNum()}, expected 1 to {ELEMENTS}; remove it"
            )
    for bond in mol.GetBonds():
        if bond.GetBondType() not in TYPES:
            raise ValueError(
                f"block {fragment.name} has a bond of type {bond.GetBondType().name}, "
                "expected single, double, triple or aromatic ones; remove it"
            )


def _look(atom: Chem.Atom) -> Look:
    return atom.GetAtomicNum(), atom.GetIsAromatic(), atom.GetHybridization().name, atom.GetTotalNumHs()


def _looks(mol: Chem.Mol) -> list[Look]:
    return [_look(atom) for atom in mol.GetAtoms()]


def _outside(atom: Chem.Atom, size: int) -> object:
    """The properties of an atom, and of its neighbours among the first `size` atoms, that decide conjugation in RDKit."""

    def near(x: Chem.Atom) -> tuple[object, ...]:
        return *_look(x), x.GetFormalCharge(), x.GetTotalDegree(), x.GetTotalValence(), x.GetNumRadicalElectrons()

    bonds = [(bond, bond.GetOtherAtom(atom)) for bond in atom.GetBonds()]
    return near(atom), tuple(sorted((bond.GetBondType().name, *near(x)) for bond, x in bonds if x.GetIdx() < size))


def _bonds(mol: Chem.Mol) -> list[tuple[int, int, int]]:
    found = []
    for bond in mol.GetBonds():
        a, b, t = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), TYPES.index(bond.GetBondType())
        found += [(a, b, t), (b, a, t)]
    return found


def _row(look: Look) -> torch.Tensor:
    number, aromatic, hybridisation, hydrogens = look
    row = torch.zeros(WIDTH)
    row[SLOTS.get(number, 5)] = 1
    row[9] = float(aromatic)
    if hybridisation in HYBRIDISATION:
        row[HYBRIDISATION[hybridisation]] = 1
    row[13] = hydrogens
    row[13 + number] = 1
    return row
