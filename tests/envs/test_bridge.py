"""Block trees as RDKit's molecules."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit")
from rdkit import Chem

from envs.molecules.bridge import Builder
from envs.molecules.fragments import Fragment, load_fragments

SEH = Path(__file__).resolve().parents[3] / "shared/data/seh"
VOCABULARY = (
    Fragment("pyrrole", "c1cc[nH]c1", ((3, 1), (0, 1))),
    Fragment("methane", "C", ((0, 4),)),
    Fragment("hand", "C[C@H](N)O", ((1, 1), (2, 2))),
    Fragment("other hand", "C[C@@H](N)O", ((1, 1), (0, 1))),
    Fragment("trans", "F/C=C/Cl", ((1, 1),)),
    Fragment("ammonium", "C[NH3+]", ((1, 3),)),
    Fragment("fluorine", "F", ((0, 1),)),
    Fragment("sulphur dioxide", "O=S=O", ((1, 2),)),
)


def tree(*nodes: tuple[int, int, int, int]) -> torch.Tensor:
    """[1, 4, 4]: (block, parent, own site, parent's site)."""
    obs = torch.zeros(1, 4, 4, dtype=torch.int64)
    for i, (block, *bond) in enumerate(nodes):
        obs[0, i] = torch.tensor((block + 1, *bond))
    return obs


def to_smiles(fragments: Sequence[Fragment], obs: torch.Tensor) -> list[str]:
    return [Chem.MolToSmiles(mol) for mol in Builder(fragments).molecules(obs)]


@pytest.mark.parametrize(
    ("nodes", "smiles"),
    [
        ([(0, 0, 0, 0)], "c1cc[nH]c1"),
        ([(0, 0, 0, 0), (1, 0, 0, 0)], "Cn1cccc1"),
        ([(0, 0, 0, 0), (0, 0, 0, 0)], "c1ccn(-n2cccc2)c1"),
        ([(0, 0, 0, 0), (0, 0, 0, 1)], "c1cn(-c2cc[nH]c2)cc1"),
        ([(5, 0, 0, 0), (1, 0, 0, 0), (6, 1, 0, 0), (1, 0, 0, 0)], "C[NH+](CF)C"),
        ([(2, 0, 0, 0)], "C[C@H](N)O"),
        ([(2, 0, 0, 0), (6, 0, 0, 0)], "C[C@](F)(N)O"),
        ([(3, 0, 0, 0), (6, 0, 0, 0)], "C[C@@](F)(N)O"),
        ([(6, 0, 0, 0), (3, 0, 0, 0)], "C[C@@](F)(N)O"),
        ([(2, 0, 0, 0), (6, 0, 0, 1)], "C[C@H](NF)O"),
        ([(3, 0, 0, 0), (1, 0, 0, 0)], "CC(C)(N)O"),  # two methyl groups: no centre any more
        ([(4, 0, 0, 0)], "F/C=C/Cl"),
        ([(4, 0, 0, 0), (1, 0, 0, 0)], "F/C(C)=C/Cl"),
        ([(7, 0, 0, 0), (6, 0, 0, 0)], "O=[SH](=O)F"),
        ([(7, 0, 0, 0), (6, 0, 0, 0), (6, 0, 0, 0)], "O=S(=O)(F)F"),
    ],
)
def test_partners_take_the_place_of_hydrogens(nodes: list[tuple[int, int, int, int]], smiles: str) -> None:
    obs = tree(*nodes)
    assert to_smiles(VOCABULARY, obs) == [Chem.CanonSmiles(smiles)]
    again = Chem.MolFromSmiles(Chem.MolToSmiles(Builder(VOCABULARY).molecules(obs)[0]))
    assert Chem.MolToSmiles(again) == Chem.CanonSmiles(smiles)


def test_hands_differ() -> None:
    assert Chem.CanonSmiles("C[C@](F)(N)O") != Chem.CanonSmiles("C[C@@](F)(N)O")
    both = torch.cat([tree((2, 0, 0, 0), (6, 0, 0, 0)), tree((3, 0, 0, 0), (6, 0, 0, 0))])
    assert len(set(to_smiles(VOCABULARY, both))) == 2


def test_building_leaves_the_blocks_as_they_were() -> None:
    builder, obs = Builder(VOCABULARY), tree((0, 0, 0, 0), (2, 0, 0, 0))[0].tolist()
    before = [Chem.MolToSmiles(mol) for mol in builder.mols]
    first = Chem.MolToSmiles(builder.mol(obs))
    assert Chem.MolToSmiles(builder.mol(obs)) == first
    assert [Chem.MolToSmiles(mol) for mol in builder.mols] == before


def test_faults_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    crowded = tree((6, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0))  # fluorine with two partners
    with pytest.raises(ValueError, match=r"the blocks fluorine, methane, pyrrole: .*valence"):
        to_smiles(VOCABULARY, crowded)
    with pytest.raises(ValueError, match="the empty state"):
        Builder(VOCABULARY).molecules(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="site 5 of block fluorine, which has 1"):
        to_smiles(VOCABULARY, tree((6, 0, 0, 0), (1, 0, 0, 5)))
    with pytest.raises(ValueError, match="cannot read block broken"):
        Builder([Fragment("broken", "C1CC", ((0, 1),))])
    assert capfd.readouterr().err == ""
    Chem.MolFromSmiles("C1CC")  # RDKit's log is silent only meanwhile
    assert "unclosed ring" in capfd.readouterr().err


@pytest.mark.skipif(not SEH.exists(), reason="needs ../shared/data/seh")
def test_the_molecules_of_2021() -> None:
    fragments = load_fragments(SEH / "blocks_PDB_105.json")
    smiles_of = json.loads((SEH / "blocks_PDB_105.json").read_text())["block_smi"]
    number = {f.smiles: c for c, f in enumerate(fragments)}
    site = [{atom: s for s, (atom, _) in enumerate(f.attach)} for f in fragments]
    with (SEH / "parity.csv").open() as file:
        rows = list(csv.DictReader(file))
    obs = torch.zeros(len(rows), 8, 4, dtype=torch.int64)
    for n, row in enumerate(rows):
        blocks = [number[smiles_of[str(i)]] for i in json.loads(row["blockidxs"])]
        obs[n, : len(blocks), 0] = torch.tensor(blocks) + 1
        for i, j, a, b in json.loads(row["jbonds"]):
            obs[n, j, 1:] = torch.tensor([i, site[blocks[j]][b], site[blocks[i]][a]])
    assert to_smiles(fragments, obs) == [Chem.CanonSmiles(row["smiles"]) for row in rows]
