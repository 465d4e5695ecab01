"""The vocabulary: symmetries against brute force, the default fragments, the 2021 file, every complaint, BRICS."""

import json
import math
import random
from itertools import combinations_with_replacement, permutations
from pathlib import Path

import pytest

import envs.molecules

Chem = pytest.importorskip("rdkit.Chem")

from envs.molecules.blocks import Blocks  # noqa: E402
from envs.molecules.brics import fragments_from  # noqa: E402
from envs.molecules.fragments import (  # noqa: E402
    Fragment,
    as_json,
    blocks_of,
    default_fragments,
    fragments_from_json,
    load_fragments,
    symmetries,
)

SEH = Path(__file__).parents[3] / "shared" / "data" / "seh" / "blocks_PDB_105.json"


def fragment(smiles: str, *atoms: int, **counts: int) -> Fragment:
    return Fragment(smiles, smiles, tuple((atom, counts.get(f"of_{atom}", 1)) for atom in atoms))


def pair(f: Fragment, s: int, g: Fragment, t: int) -> str:
    """SMILES of two fragments, bonded at the site s of one and t of the other."""
    mol = Chem.RWMol(Chem.MolFromSmiles(f.smiles))
    first = mol.GetNumAtoms()
    mol.InsertMol(Chem.MolFromSmiles(g.smiles))
    return grown(mol, [(f.attach[s][0], first + g.attach[t][0])])


def saturated(f: Fragment) -> str:
    """SMILES of a fragment with a methyl group at every attachment point."""
    mol = Chem.RWMol(Chem.MolFromSmiles(f.smiles))
    return grown(mol, [(atom, mol.AddAtom(Chem.Atom(6))) for atom, count in f.attach for _ in range(count)])


def grown(mol: "Chem.RWMol", bonds: list[tuple[int, int]]) -> str:
    for bond in bonds:
        mol.AddBond(*bond, Chem.BondType.SINGLE)
        for atom in map(mol.GetAtomWithIdx, bond):
            atom.SetNumExplicitHs(max(0, atom.GetNumExplicitHs() - 1))
    Chem.SanitizeMol(mol)
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return str(Chem.MolToSmiles(mol))


def brute_force(f: Fragment) -> set[tuple[int, ...]]:
    """The permutations of the sites that leave the canonical SMILES with numbered sites as it is."""

    def numbered(images: tuple[int, ...]) -> str:
        mol = Chem.MolFromSmiles(f.smiles)
        for number, s in enumerate(images, 1):
            atom, count = f.attach[s]
            here = mol.GetAtomWithIdx(atom)
            here.SetIsotope(1000 * here.GetIsotope() + 100 * count + number)
        return str(Chem.MolToSmiles(mol))

    identity = tuple(range(len(f.attach)))
    return {p for p in permutations(identity) if numbered(p) == numbered(identity)}


def rows(blocks: Blocks) -> list[tuple[int, int]]:
    return list(zip(blocks.row_block.tolist(), blocks.row_site.tolist(), strict=True))


# -- symmetries

SYMMETRIC = [
    (fragment("c1ccccc1", 0, 1, 2, 3, 4, 5), 12),
    (fragment("c1ccccc1", 0, 3), 2),
    (fragment("c1ccccc1", 0, 1, 2), 2),
    (fragment("C1CCCCC1", 0, 1, 2, 3, 4, 5), 12),
    (fragment("C1CCCCC1", 0, 1, 2, 3, 4, 5, of_0=2), 2),
    (fragment("c1ccncc1", 0, 1, 2, 4, 5), 2),
    (fragment("CN", 0, 1, of_0=3, of_1=2), 1),
    (fragment("CO", 0, 1, of_0=3), 1),
    (fragment("CC", 0, 1, of_1=2), 1),
    (fragment("c1c[nH]cn1", 0, 1, 2, 3), 1),  # the two nitrogens differ in their hydrogen only
    (fragment("[NH3+]CCN", 0, 3), 1),  # ... in their charge
    (fragment("[CH2-]C[CH2+]", 0, 2), 1),
    (fragment("[2H]CC", 0, 1), 1),
    (fragment("[13CH3]C", 0, 1), 1),  # ... in their isotope
    (fragment("c1ccc2ccccc2c1", 0, 1, 5, 6), 4),  # aromatic bonds are equal, whatever the Kekulé form
    (fragment("C1=CC=CC=CC=C1", 0, 1, 2, 3, 4, 5), 2),  # ... the double bonds of cyclooctatetraene are not
    (fragment("C[C@H](O)[C@H](O)C", 0, 5), 1),  # meso: the ends are mirror images
    (fragment("C[C@H](O)[C@@H](O)C", 0, 5), 2),
    (fragment("CC(O)C(O)C", 0, 5), 2),
    (fragment("C[C@H](N)C(N)=O", 2, 4), 1),
    (fragment("C/C=C/C", 0, 3), 2),
    (fragment("C/C=C(/C)C", 3, 4), 2),  # no stereo where two groups are equal
    (fragment("CC=C(C)C", 3, 4), 2),
    (fragment("C/C=C/C(C)/C=C\\C", 0, 7), 1),
    (fragment("C/C=C/C(C)/C=C/C", 0, 7), 2),
    (fragment("C12C3C4C1C5C2C3C45", 0, 1, 2, 3, 4, 5, 6, 7), 48),  # cubane with its mirror images
]


@pytest.mark.parametrize(("f", "size"), SYMMETRIC, ids=lambda x: x.smiles if isinstance(x, Fragment) else str(x))
def test_symmetries_are_those_of_brute_force(f: Fragment, size: int) -> None:
    found = symmetries(f)
    assert found[0] == list(range(len(f.attach)))
    assert len(found) == len({tuple(p) for p in found}) == size
    if size < 48:
        assert {tuple(p) for p in found} == brute_force(f)


def test_symmetries_of_the_vocabularies_are_those_of_brute_force() -> None:
    for f in default_fragments():
        if len(f.attach) < 6:
            assert {tuple(p) for p in symmetries(f)} == brute_force(f), f.name


def test_millions_of_automorphisms_that_leave_the_sites_alone_cost_nothing() -> None:
    bulky = "C(C(C)(C)C)(C(C)(C)C)C(C)(C)C"  # 3! ** 4 for its methyl groups
    assert symmetries(fragment(f"C[Si]({bulky})({bulky})C", 0, 28)) == [[0, 1], [1, 0]]
    assert symmetries(fragment(f"C[Si]({bulky})({bulky})CC", 0, 28)) == [[0, 1]]


def test_too_many_symmetries_are_refused() -> None:
    f = Fragment("bush", "C(C(C)(C)C)(C(C)(C)C)(C(C)(C)C)C(C)(C)C", tuple((a, 1) for a in range(2, 17) if a not in (5, 9, 13)))
    with pytest.raises(ValueError, match=r"^fragment bush: its 12 attachment atoms have over 720 symmetries; list fewer$"):
        blocks_of([f])


def test_tables_follow_the_order_of_attach() -> None:
    blocks = blocks_of([fragment("CO", 1, 0, of_0=3), fragment("c1ccncc1", 4, 0, 2)])
    assert blocks.names == ("CO", "c1ccncc1")
    assert blocks.capacity.tolist() == [[1, 3, 0], [1, 1, 1]]
    assert blocks.orbit.tolist()[1] == [0, 1, 0]  # the atoms 4 and 2 are beside nitrogen
    assert rows(blocks) == [(0, 0), (0, 1), (1, 0), (1, 1)]


# -- the default vocabulary


def test_the_default_vocabulary_is_what_it_says() -> None:
    fragments = default_fragments()
    blocks = blocks_of(fragments)
    assert len(fragments) >= 100
    assert blocks.S <= 6
    assert blocks.R <= 210
    assert blocks.symmetry.shape[1] <= 12
    assert len({f.name for f in fragments}) == len(fragments)
    carbon = sum(element(fragments[c], s) == "C" for c, s in rows(blocks))
    assert f"{carbon} of the {blocks.R} ways" in (Path(envs.molecules.__file__).parent / "default_fragments.json").read_text()


@pytest.mark.parametrize("f", default_fragments(), ids=lambda f: f.name)
def test_default_fragments_are_sound_with_all_points_used(f: Fragment) -> None:
    mol = Chem.MolFromSmiles(saturated(f))
    assert mol is not None
    assert mol.GetNumAtoms() == Chem.MolFromSmiles(f.smiles).GetNumAtoms() + sum(count for _, count in f.attach)
    assert all(atom.GetNumRadicalElectrons() == 0 for atom in mol.GetAtoms())
    assert sum(atom.GetFormalCharge() for atom in mol.GetAtoms()) == 0


def test_random_molecules_seldom_join_two_heteroatoms() -> None:
    fragments, rng, joins = default_fragments(), random.Random(0), list[bool]()
    blocks = blocks_of(fragments)
    for _ in range(3000):
        tree, points = [rng.randrange(blocks.C)], list[tuple[int, int]]()
        points += open_points(fragments, tree, 0)
        joins.append(False)
        for _ in range(rng.randint(1, 5)):
            if points:
                node, site = points.pop(rng.randrange(len(points)))
                block, own = rows(blocks)[rng.randrange(blocks.R)]
                tree.append(block)
                mine = open_points(fragments, tree, len(tree) - 1)
                mine.remove((len(tree) - 1, own))
                points += mine
                joins[-1] |= "C" not in (element(fragments[tree[node]], site), element(fragments[block], own))
    assert 0.05 < sum(joins) / len(joins) < 0.13


def element(f: Fragment, site: int) -> str:
    return str(Chem.MolFromSmiles(f.smiles).GetAtomWithIdx(f.attach[site][0]).GetSymbol())


def open_points(fragments: tuple[Fragment, ...], tree: list[int], node: int) -> list[tuple[int, int]]:
    return [(node, s) for s, (_, count) in enumerate(fragments[tree[node]].attach) for _ in range(count)]


# -- files


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    fragments = (*default_fragments(), fragment("C[C@H](N)O", 2, 0, of_2=2))
    assert fragments_from_json(as_json(fragments)) == fragments
    (tmp_path / "f.json").write_text(as_json(fragments))
    assert load_fragments(tmp_path / "f.json") == fragments
    assert as_json(fragments).count("\n") == len(fragments) + 5


def test_rows_of_2021_with_one_smiles_are_one_fragment() -> None:
    tables = {
        "block_name": {"0": "CO_0", "1": "F_0", "2": "CO_1"},
        "block_smi": {"0": "CO", "1": "F", "2": "CO"},
        "block_r": {"0": [0, 1], "1": [0], "2": [1, 0, 0, 0]},
    }
    assert fragments_from_json(json.dumps(tables)) == (Fragment("CO", "CO", ((0, 3), (1, 1))), Fragment("F", "F", ((0, 1),)))


@pytest.mark.skipif(not SEH.exists(), reason="the 2021 blocks are not here")
def test_the_blocks_of_2021() -> None:
    fragments = load_fragments(SEH)
    blocks = blocks_of(fragments)
    assert (blocks.C, blocks.R, blocks.S) == (72, 108, 6)
    for f in fragments:
        if len(f.attach) < 6:
            assert {tuple(p) for p in symmetries(f)} == brute_force(f)
    pairs = combinations_with_replacement(rows(blocks), 2)
    smiles = [pair(fragments[c], s, fragments[d], t) for (c, s), (d, t) in pairs]
    assert len(smiles) == math.comb(109, 2)
    assert len(set(smiles)) == 5537  # of all two-block states, as the original code makes them


# -- complaints


def entry(**changes: object) -> str:
    one: dict[str, object] = {"name": "ethanol", "smiles": "CCO", "attach": [[0, 1]], **changes}
    return json.dumps({"format": "fragments-1", "fragments": [one]})


def entries(*triples: tuple[str, str, list[list[int]]]) -> str:
    keys = ("name", "smiles", "attach")
    return json.dumps({"format": "fragments-1", "fragments": [dict(zip(keys, triple, strict=True)) for triple in triples]})


def tables(**changes: object) -> str:
    return json.dumps({"block_name": {"0": "C_0"}, "block_smi": {"0": "C"}, "block_r": {"0": [0]}, **changes})


COMPLAINTS = [
    ("{", r"it is not JSON \(.*line 1 column 2.*\); give a JSON file of fragments"),
    ("[" * 100_000, "it is not JSON .*; give a JSON file of fragments"),
    ("[]", 'it is JSON but holds no fragments: expected .*"format": "fragments-1".* or the tables block_name'),
    ('{"format": "fragments-2", "fragments": []}', "it is JSON but holds no fragments"),
    ('{"format": "fragments-1"}', "it is JSON but holds no fragments"),
    ('{"format": "fragments-1", "fragments": []}', "there are no fragments; give at least one"),
    ('{"format": "fragments-1", "fragments": [7]}', 'fragment number 1: expected an object with "name", "smiles" and "attach"'),
    (
        '{"format": "fragments-1", "fragments": [{"name": "ethane", "smiles": "CC"}]}',
        'fragment ethane: expected an object with "name"',
    ),
    (entry(name=""), 'fragment number 1: expected texts as "name" and "smiles"; correct it'),
    (entry(name=3), 'fragment number 1: expected texts as "name" and "smiles"; correct it'),
    (entry(smiles=None), 'fragment ethanol: expected texts as "name" and "smiles"; correct it'),
    (entry(attach=[0]), r'fragment ethanol: expected "attach" as a list of \[atom, number of partners\], whole numbers'),
    (entry(attach=[[0, 1.5]]), 'fragment ethanol: expected "attach" as a list'),
    (entry(attach=[[0, True]]), 'fragment ethanol: expected "attach" as a list'),
    (entry(attach={"0": 1}), 'fragment ethanol: expected "attach" as a list'),
    (entry(attach=[]), "fragment ethanol: it has no attachment atoms; list at least one in attach"),
    (
        entry(attach=[[0, 1], [0, 2]]),
        "fragment ethanol: attach lists atom 0 twice; list it once, with the number of its partners",
    ),
    (entry(attach=[[3, 1]]), "fragment ethanol: attach lists atom 3, CCO has atoms 0 to 2; correct it"),
    (entry(attach=[[-1, 1]]), "fragment ethanol: attach lists atom -1, CCO has atoms 0 to 2; correct it"),
    (entry(attach=[[0, 0]]), "fragment ethanol: atom 0 has 0 partners, expected at least 1; raise it, or remove the atom"),
    (
        entry(attach=[[2, 2]]),
        r"fragment ethanol: atom 2 \(O\) of CCO cannot have 2 partners with 1 hydrogens; lower the number",
    ),
    (
        entry(attach=[[0, 4]]),
        r"fragment ethanol: atom 0 \(C\) of CCO cannot have 4 partners with 3 hydrogens; lower the number",
    ),
    (entry(attach=[[0, 10**9]]), "fragment ethanol: atom 0 .* cannot have 1000000000 partners"),
    (
        entry(smiles="c1ccncc1", attach=[[3, 1]]),
        r"fragment ethanol: atom 3 \(N\) of c1ccncc1 cannot have 1 partner with 0 hydrogens",
    ),
    (
        entry(smiles="c1cc[nH]c1", attach=[[3, 2]]),
        r"fragment ethanol: atom 3 \(N\) of c1cc\[nH\]c1 cannot have 2 partners with 1 hydrogens",
    ),
    (
        entry(smiles="O=[S]=O", attach=[[1, 1]]),
        r"fragment ethanol: atom 1 \(S\) of O=\[S\]=O cannot have 1 partner with 0 hydrogens",
    ),
    (entry(smiles="CC("), r"fragment ethanol: RDKit cannot read its SMILES 'CC\('; correct it"),
    (entry(smiles=""), "fragment ethanol: RDKit cannot read its SMILES ''; correct it"),
    (entry(smiles="C(C)(C)(C)(C)C"), "fragment ethanol: RDKit cannot read its SMILES"),
    (
        entry(smiles="CCO.Cl"),
        "fragment ethanol: its SMILES 'CCO.Cl' has several molecules; give one, without '.'",
    ),
    (entry(smiles="*CO"), r"fragment ethanol: its SMILES '\*CO' has a '\*'; remove it and list its neighbour in attach"),
    (entry(smiles="[CH3:1]O"), r"fragment ethanol: its SMILES '\[CH3:1\]O' has atom map numbers; remove them"),
    (
        entries(("a", "C", [[0, 1]]), ("a", "N", [[0, 1]])),
        "fragment a: this name occurs more than once; give each fragment a name of its own",
    ),
    (
        entries(("a", "CO", [[0, 1]]), ("b", "OC", [[1, 1]])),
        "fragment b: it equals a, with the same attachment atoms; remove",
    ),
    (
        tables(block_r={}),
        "the tables block_name, block_smi, block_r have different rows; give a complete file of the 2021 format",
    ),
    (tables(block_r=[[0]]), "the tables block_name, block_smi, block_r have different rows"),
    (tables(block_smi={"0": 1}), "row 0 of the 2021 tables: expected a SMILES and a list of atom numbers; correct it"),
    (tables(block_r={"0": "0"}), "row 0 of the 2021 tables: expected a SMILES and a list of atom numbers; correct it"),
    (tables(block_r={"0": []}), "fragment C: it has no attachment atoms"),
]


@pytest.mark.parametrize(("text", "complaint"), COMPLAINTS, ids=[str(k) for k in range(len(COMPLAINTS))])
def test_what_cannot_be_used_is_refused_in_one_sentence(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^" + complaint):
        fragments_from_json(text)
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"mine.json: {complaint}"):
        load_fragments(file)


def test_one_molecule_with_other_sites_is_another_fragment() -> None:
    text = entries(("a", "CO", [[0, 1]]), ("b", "CO", [[0, 2]]), ("c", "CO", [[1, 1]]), ("d", "CO", [[0, 1], [1, 1]]))
    assert len(fragments_from_json(text)) == 4


def test_charges_radicals_and_more_bonds_on_sulphur_are_allowed() -> None:
    text = entries(("a", "C[NH3+]", [[0, 1], [1, 3]]), ("b", "C[CH]C", [[0, 1], [1, 1]]), ("c", "O=S=O", [[1, 2]]))
    assert len(fragments_from_json(text)) == 3


def test_a_pickle_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "f.pkl").write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(ValueError, match=r"f\.pkl: it is not UTF-8 text; give a JSON file of fragments"):
        load_fragments(tmp_path / "f.pkl")


# -- BRICS

DRUGS = """\
# ten drugs
CC(=O)Nc1ccc(O)cc1 paracetamol
CC(=O)Oc1ccccc1C(=O)O aspirin

CC(C)Cc1ccc(cc1)C(C)C(=O)O ibuprofen
Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F celecoxib
CN1CCN(CC1)Cc1ccc(cc1)C(=O)Nc1ccc(C)c(Nc2nccc(n2)-c2cccnc2)c1 imatinib
COc1cc2ncnc(Nc3ccc(F)c(Cl)c3)c2cc1OCCCN1CCOCC1 gefitinib
CC(=O)NC[C@H]1CN(C(=O)O1)c1ccc(N2CCOCC2)c(F)c1 linezolid
CN(C)CCCN1c2ccccc2CCc2ccccc12 imipramine
O=C(O)C1CC1.Cl salt
CNCC[C@H](Oc1ccc(cc1)C(F)(F)F)c1ccccc1\tfluoxetine
"""


def test_brics_finds_the_fragments_of_drugs() -> None:
    fragments = fragments_from(DRUGS.splitlines())
    found = {f.smiles: f.attach for f in fragments}
    expected = {
        "N": ((0, 2),),
        "O": ((0, 2),),
        "CC=O": ((1, 1),),  # acetyl, of paracetamol, aspirin and linezolid
        "C=O": ((0, 2),),
        "C1CC1": ((0, 1),),  # of the salt, whose counter-ion gives nothing
        "C1COCCN1": ((5, 1),),
        "CN1CCNCC1": ((4, 1),),
        "FC(F)F": ((1, 1),),
        "NS(=O)(=O)c1ccccc1": ((7, 1),),
        "c1ccncc1": ((1, 1),),
        "c1cncnc1": ((1, 1), (3, 1)),
        "c1cn[nH]c1": ((1, 1), (3, 1), (4, 1)),  # a cut N-aryl bond leaves a hydrogen on nitrogen
        "O=C1NCCO1": ((2, 1), (4, 1)),
        "c1ccccc1": ((0, 1), (1, 1), (3, 1)),  # phenyl, ortho and para: numbered from the same atom
        "CCC": ((0, 1), (2, 2)),  # -CH2CH2CH2- of gefitinib, -CH2CH2CH< of fluoxetine
    }
    assert {smiles: found.get(smiles) for smiles in expected} == expected
    assert "Cl" not in found
    for f in fragments:
        assert Chem.MolFromSmiles(saturated(f)) is not None
        assert Chem.CanonSmiles(f.smiles) == f.smiles == f.name
    assert blocks_of(fragments).C == len(fragments) == 28
    assert fragments_from_json(as_json(fragments)) == fragments


def test_brics_does_not_depend_on_how_the_molecules_are_written() -> None:
    rng, other = random.Random(1), list[str]()
    for line in DRUGS.splitlines():
        if line and not line.startswith("#"):
            mol = Chem.MolFromSmiles(line.split()[0])
            order = rng.sample(range(mol.GetNumAtoms()), mol.GetNumAtoms())
            other.append(Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False))
    rng.shuffle(other)
    assert fragments_from(other) == fragments_from(DRUGS.splitlines())


def test_brics_orders_by_count_then_smiles_and_keeps_what_is_asked_for() -> None:
    lines = ["CCOc1ccccc1", "CCOc1ccccc1", "COc1ccc2ccccc2c1"]

    def kept(**options: int) -> list[str]:
        return [f.smiles for f in fragments_from(lines, **options)]

    assert kept() == ["CC", "O", "c1ccccc1", "CO", "c1ccc2ccccc2c1"]  # twice each, and once each
    assert kept(min_count=2) == ["CC", "O", "c1ccccc1"]
    assert kept(max_atoms=2) == ["CC", "O", "CO"]
    assert kept(limit=1) == ["CC"]
    assert kept(min_count=2, max_atoms=1, limit=5) == ["O"]


def test_brics_cuts_single_bonds_only_and_keeps_written_stereo() -> None:
    double = fragments_from(["O=C(Nc1ccccc1)c1ccc(/C=C/c2ccccc2)cc1"])  # the rules would cut C=C too
    assert Chem.CanonSmiles("c1ccccc1/C=C/c1ccccc1") in {f.smiles for f in double}
    hands = {f.smiles for f in fragments_from(["C[C@H](F)C(=O)N1CC[C@H](O)C1"])}
    assert hands == {Chem.CanonSmiles("C[C@H](F)C=O"), Chem.CanonSmiles("N1CC[C@H](O)C1")}


@pytest.mark.parametrize("drug", ["C[C@H](F)[C@H](F)Cc1ccccc1", "C[C@@H](F)[C@@H](F)Cc1ccccc1"])
def test_brics_tells_the_mirrored_ends_of_a_fragment_apart(drug: str) -> None:
    ring, chain = sorted(fragments_from([drug]), key=lambda f: "c" not in f.smiles)
    assert chain.smiles == Chem.CanonSmiles("C[C@H](F)[C@H](F)C") == Chem.CanonSmiles("C[C@@H](F)[C@@H](F)C")
    assert pair(ring, 0, chain, 0) == Chem.CanonSmiles(drug)


@pytest.mark.parametrize(
    ("lines", "options", "complaint"),
    [
        (["# mine", "", "CCO ethanol", "CC( broken"], {}, r"line 4: RDKit cannot read the SMILES 'CC\('; correct or remove it"),
        (["C[N](C)(C)(C)C"], {}, r"line 1: RDKit cannot read the SMILES 'C\[N\]\(C\)\(C\)\(C\)C'; correct or remove it"),
        (["smiles,name"], {}, "line 1: RDKit cannot read the SMILES 'smiles,name'"),
        (["", "# nothing"], {}, "there is no SMILES in the input, expected lines with a SMILES each"),
        (
            ["CC", "c1ccccc1"],
            {},
            "none of the 2 molecules has a bond that BRICS cuts, so there are no fragments; give larger ones",
        ),
        (
            ["CCOc1ccccc1"],
            {"min_count": 2},
            "none of the 3 fragments is left with min_count 2, .*; the commonest occurs 1 times",
        ),
        (
            ["CCOc1ccccc1"],
            {"max_atoms": 0},
            "none of the 3 fragments is left with .*max_atoms 0.* the smallest has 1 heavy atoms",
        ),
        (["CCOc1ccccc1"], {"limit": 0}, "none of the 3 fragments is left with .*limit 0"),
    ],
)
def test_brics_says_what_is_wrong(lines: list[str], options: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match="^" + complaint):
        fragments_from(lines, **options)
