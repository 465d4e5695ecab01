"""The atom graph by look-ups beside RDKit's own, on thousands of random molecules."""

import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
from rdkit import Chem

from envs.molecules.atom_tables import atom_tables, random_trees
from envs.molecules.atoms import BARE, NO_BOND, AtomGraph, assemble
from envs.molecules.bridge import Builder
from envs.molecules.fragments import Fragment, default_fragments, load_fragments

SEH = Path(__file__).resolve().parents[3] / "shared/data/seh"
# what makes RDKit think: conjugation over bonds between blocks, charges, growing valences, triple bonds, carbanions, radicals
ODD = (
    Fragment("amine", "CNC", ((1, 1), (0, 3))),
    Fragment("ammonia", "N", ((0, 3),)),
    Fragment("water", "O", ((0, 2),)),
    Fragment("ethene", "C=C", ((0, 2), (1, 2))),
    Fragment("ethyne", "C#C", ((0, 1), (1, 1))),
    Fragment("nitro", "O=[NH+][O-]", ((1, 1),)),
    Fragment("sulphur dioxide", "O=S=O", ((1, 2),)),
    Fragment("phosphorus", "O=PO", ((1, 1), (2, 1))),
    Fragment("purine", "c1ncc2nc[nH]c2n1", ((0, 1), (2, 1), (5, 1), (6, 1))),
    Fragment("thiophene", "c1ccsc1", ((0, 1), (4, 1))),
    Fragment("pyridinium", "c1cc[nH+]cc1", ((3, 1), (0, 1))),
    Fragment("chlorine", "Cl", ((0, 1),)),
    Fragment("borane", "OBO", ((1, 1), (0, 1), (2, 1))),
    Fragment("silane", "[SiH4]", ((0, 4),)),
    Fragment("imine", "N=CN", ((0, 1), (1, 1), (2, 2))),
    Fragment("hydroxylamine", "NO", ((0, 2), (1, 1))),
    Fragment("anion", "[CH3-]", ((0, 3),)),
    Fragment("selenol", "[SeH]C=C", ((0, 1), (2, 2))),
    Fragment("azulene", "c1ccc2cccc2cc1", ((0, 1), (5, 1))),
)


def vocabulary(name: str) -> Sequence[Fragment]:
    if name == "2021" and not SEH.exists():
        pytest.skip("needs ../shared/data/seh")
    return {"odd": lambda: ODD, "default": default_fragments, "2021": lambda: load_fragments(SEH / "blocks_PDB_105.json")}[
        name
    ]()


def expected(mol: Chem.Mol) -> tuple[np.ndarray[Any, Any], set[tuple[int, int, int]]]:
    """Features and directed bonds of one molecule, from the description of the proxy's atom graph."""
    x = np.zeros((mol.GetNumAtoms(), 70))
    for i, atom in enumerate(mol.GetAtoms()):
        symbol = atom.GetSymbol()
        x[i, ["H", "C", "N", "O", "F"].index(symbol) if symbol in ("H", "C", "N", "O", "F") else 5] = 1
        x[i, 9] = atom.GetIsAromatic()
        for column, hybrid in ((10, "SP"), (11, "SP2"), (12, "SP3")):
            x[i, column] = str(atom.GetHybridization()) == hybrid
        x[i, 13] = atom.GetTotalNumHs(includeNeighbors=True)
        x[i, 13 + atom.GetAtomicNum()] = 1
    bonds = set()
    for bond in mol.GetBonds():
        t = ["SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"].index(str(bond.GetBondType()))
        a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds |= {(a, b, t), (b, a, t)}
    return x, bonds or {(0, 0, BARE)}


@pytest.mark.parametrize("name", ["odd", "default", "2021"])
def test_no_atom_and_no_bond_differs_from_rdkit(name: str) -> None:
    fragments = vocabulary(name)
    tables = atom_tables(fragments)
    obs = random_trees(fragments, 2000 if name == "odd" else 5000, 8, random.Random(7))
    assert (obs[..., 0] > 0).sum() > 3 * len(obs)
    graph = assemble(tables, obs, stem_mask=False)
    atoms = graph.molecule.bincount(minlength=len(obs))
    features = np.split(tables.rows[graph.feature].numpy(), atoms.cumsum(0)[:-1].numpy())
    start = (atoms.cumsum(0) - atoms)[graph.molecule[graph.source]]
    edges = [set() for _ in obs]
    triples = torch.stack([graph.source - start, graph.target - start, graph.bond], 1).tolist()
    for molecule, triple in zip(graph.molecule[graph.source].tolist(), triples, strict=True):
        assert tuple(triple) not in edges[molecule]
        edges[molecule].add(tuple(triple))
    for n, mol in enumerate(Builder(fragments).molecules(obs)):
        x, bonds = expected(mol)
        assert np.array_equal(features[n], x), Chem.MolToSmiles(mol)
        assert edges[n] == bonds, Chem.MolToSmiles(mol)


def test_a_neighbour_that_conjugates_flattens_a_nitrogen() -> None:
    fragments = [Fragment("ammonia", "N", ((0, 3),)), Fragment("formyl", "C=O", ((0, 1),)), Fragment("methane", "C", ((0, 1),))]
    tables = atom_tables(fragments)
    for partners, column in (([2], 12), ([1], 11), ([2, 2], 12), ([2, 1], 11), ([1, 2, 2], 11)):
        obs = torch.zeros(1, 4, 4, dtype=torch.int64)
        obs[0, : 1 + len(partners), 0] = torch.tensor([1, *(c + 1 for c in partners)])
        row = tables.rows[assemble(tables, obs, stem_mask=False).feature[0]]
        assert row[10:13].nonzero().flatten().tolist() == [column - 10]
        assert row[13] == 3 - len(partners)


def test_open_atoms_are_marked_and_else_the_first() -> None:
    fragments = [Fragment("ethane", "CC", ((1, 2),)), Fragment("water", "CO", ((1, 1),))]
    tables = atom_tables(fragments)

    def marks(*nodes: tuple[int, int, int, int], **how: Any) -> list[int]:
        obs = torch.zeros(1, 3, 4, dtype=torch.int64)
        obs[0, : len(nodes)] = torch.tensor(nodes)
        return assemble(tables, obs, **{"stem_mask": True, **how}).stem.long().tolist()

    assert marks((1, 0, 0, 0)) == [0, 1]
    assert marks((1, 0, 0, 0), (2, 0, 0, 0)) == [0, 1, 0, 0]
    assert marks((1, 0, 0, 0), (2, 0, 0, 0), (2, 0, 0, 0)) == [1, 0, 0, 0, 0, 0]  # none open: the first
    assert marks((2, 0, 0, 0), (2, 0, 0, 0)) == [1, 0, 0, 0]
    assert marks((1, 0, 0, 0), stem_mask=False) == [0, 0]
    closed = torch.zeros(1, 3, 1, dtype=torch.bool)
    assert marks((1, 0, 0, 0), (2, 0, 0, 0), open_sites=closed) == [1, 0, 0, 0]
    closed[0, 1] = True
    assert marks((1, 0, 0, 0), (2, 0, 0, 0), open_sites=closed) == [0, 0, 0, 1]


def test_padding_holds_the_same_graph() -> None:
    tables = atom_tables(ODD)
    obs = random_trees(ODD, 300, 5, random.Random(3))
    padded, ragged = (assemble(tables, obs, stem_mask=True, padded=p) for p in (True, False))
    assert len(padded.real) == obs.shape[0] * 5 * tables.feature.shape[1] > len(ragged.real)
    assert ragged.real.all()
    assert (ragged.bond != NO_BOND).all()
    assert (padded.molecule[padded.source] == padded.molecule[padded.target]).all()
    assert not padded.stem[~padded.real].any()
    compact = padded.compact()
    for f in fields(AtomGraph):
        if f.name != "size":
            assert torch.equal(getattr(compact, f.name), getattr(ragged, f.name))


def test_the_order_of_the_nodes_is_immaterial() -> None:
    tables = atom_tables(ODD)
    obs = random_trees(ODD, 200, 6, random.Random(5))
    order = torch.tensor([0, 4, 2, 5, 1, 3])  # where the nodes of the new observation stood
    place = order.argsort()
    moved = obs[:, order].clone()
    moved[..., 1] = torch.where(moved[..., 0] > 0, place[moved[..., 1]], 0)

    def content(graph: AtomGraph) -> tuple[Any, ...]:
        weight = graph.feature * 2 + graph.stem
        ends = (graph.molecule[graph.source] * 1000 + weight[graph.source]) * 1000 + weight[graph.target]
        return (graph.molecule * 1000 + weight).sort()[0], (ends * 10 + graph.bond).sort()[0]

    for a, b in zip(*(content(assemble(tables, x, stem_mask=True)) for x in (obs, moved)), strict=True):
        assert torch.equal(a, b)


def test_no_trees_are_no_atoms() -> None:
    graph = assemble(atom_tables(ODD), torch.zeros(0, 4, 4, dtype=torch.int64), stem_mask=True)
    assert len(graph.feature) == len(graph.bond) == graph.size == 0


@pytest.mark.parametrize(
    ("fragment", "complaint"),
    [
        (Fragment("thioamide", "NC=S", ((2, 1),)), "atom 2 of block thioamide changes its other atoms"),
        (Fragment("lead", "[PbH4]", ((0, 1),)), "block lead has an atom of atomic number 82"),
        (Fragment("dative", "C[NH2]->[Fe]", ((0, 1),)), "block dative has a bond of type DATIVE"),
    ],
)
def test_what_tables_cannot_describe_is_refused(fragment: Fragment, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        atom_tables([*ODD, fragment])


def test_a_wrong_table_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from envs.molecules import atom_tables as module

    monkeypatch.setattr(module, "_outside", lambda atom, size: atom.GetAtomicNum())  # kinds that are too coarse
    with pytest.raises(ValueError, match="remove"):
        atom_tables(ODD)
