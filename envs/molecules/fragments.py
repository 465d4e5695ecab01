"""The vocabulary: fragments with the atoms where others attach, read from JSON, and their symmetries among those atoms.

    fragments-1   {"format": "fragments-1", "fragments": [{"name": "phenol", "smiles": "Oc1ccccc1", "attach": [[0, 1]]}, ...]}
                  attach: [atom in the order of the SMILES, how many partners it takes]; free text ("about") is passed over
    2021          the three tables of `blocks_PDB_105.json`, {"block_name": {"0": ...}, "block_smi": {...}, "block_r": {...}};
                  rows of one SMILES become one fragment: the union of their atoms, each as often as any row has it

A partner takes the place of one hydrogen; sulphur and phosphorus may instead make one more bond (O=S=O to O=[SH](=O)R).

Symmetries: a permutation of the sites counts if an automorphism of the molecule makes it that keeps element, charge,
hydrogens, isotope, multiplicity, bonds (aromatic ones as such, whatever the Kekulé form) and written stereo. Mirror images
are different: enantiotopic atoms of a fragment with written centres are not exchanged. Only what happens to the sites is
enumerated, never the automorphisms, which may be billions:

    images = [()]
    for each site s:  images = [(*p, t) for p in images for each site t if the molecule with marks at the sites 0..s
                                matches the molecule with the same marks at the sites (*p, t)]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rdkit import Chem, rdBase

from envs.molecules.blocks import GROUP, Blocks

FORMAT = "fragments-1"
TABLES_2021 = ("block_name", "block_smi", "block_r")


@dataclass(frozen=True)
class Fragment:
    """attach: ((atom index in the order of the SMILES, how many partners it takes), ...); site s of the block is entry s."""

    name: str
    smiles: str
    attach: tuple[tuple[int, int], ...]


def default_fragments() -> tuple[Fragment, ...]:
    """The vocabulary of this package, `default_fragments.json`, whose "about" says how it was chosen."""
    return fragments_from_json(files("envs.molecules").joinpath("default_fragments.json").read_text(encoding="utf-8"))


def load_fragments(path: Path) -> tuple[Fragment, ...]:
    """From a JSON file of either format. Raises ValueError as `fragments_from_json`, with the path, and OSError."""
    try:
        return fragments_from_json(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is no text, so not JSON; give a JSON file of fragments") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fragments_from_json(text: str) -> tuple[Fragment, ...]:
    """From the text of either format. Raises ValueError, one sentence that names the fragment and says what to do."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}); give a JSON file of fragments") from None
    if isinstance(data, dict) and set(TABLES_2021) <= data.keys():
        fragments = _of_2021(*(data[table] for table in TABLES_2021))
    elif isinstance(data, dict) and data.get("format") == FORMAT and isinstance(data.get("fragments"), list):
        fragments = tuple(_entry(entry, number) for number, entry in enumerate(data["fragments"], 1))
    else:
        raise ValueError(
            f'it is JSON but holds no fragments: expected {{"format": "{FORMAT}", "fragments": [...]}}, '
            f"or the tables {', '.join(TABLES_2021)} of the 2021 format"
        )
    check(fragments)
    return fragments


def as_json(fragments: Sequence[Fragment]) -> str:
    """The text of the format fragments-1, a fragment a line: what `fragments_from_json` reads."""
    entries = [{"name": f.name, "smiles": f.smiles, "attach": [list(point) for point in f.attach]} for f in fragments]
    lines = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f'{{\n  "format": "{FORMAT}",\n  "fragments": [\n{lines}\n  ]\n}}\n'


def check(fragments: Sequence[Fragment]) -> None:
    """Raises ValueError where a fragment cannot be used, and where two have one name, or one molecule with the same sites."""
    if not fragments:
        raise ValueError("there are no fragments; give at least one")
    repeated = [name for name, count in Counter(f.name for f in fragments).items() if count > 1]
    if repeated:
        raise ValueError(f"fragment {repeated[0]}: this name is there more than once; give each fragment its own")
    seen = dict[str, str]()
    for f in fragments:
        mol = molecule(f)
        _check_sites(f, mol)
        for atom, count in f.attach:
            mol.GetAtomWithIdx(atom).SetAtomMapNum(count)
        same = seen.setdefault(Chem.MolToSmiles(mol), f.name)
        if same != f.name:
            raise ValueError(
                f"fragment {f.name}: it is {same} once more, with the same attachment atoms; remove one of the two"
            )


def molecule(fragment: Fragment) -> Chem.Mol:
    """RDKit's molecule, atoms in the order of the SMILES. Raises ValueError where there is none, or more than one."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(fragment.smiles)
    where = f"fragment {fragment.name}"
    if mol is None or not mol.GetNumAtoms():
        raise ValueError(f"{where}: RDKit cannot read its SMILES {fragment.smiles!r}; correct it")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise ValueError(f"{where}: its SMILES {fragment.smiles!r} has parts that no bond joins; give one molecule without '.'")
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        raise ValueError(f"{where}: its SMILES {fragment.smiles!r} has a '*'; leave it out and name its neighbour in attach")
    if any(atom.GetAtomMapNum() for atom in mol.GetAtoms()):
        raise ValueError(f"{where}: its SMILES {fragment.smiles!r} has atom map numbers; write it without")
    return mol


def blocks_of(fragments: Sequence[Fragment]) -> Blocks:
    """The tables of a vocabulary: sites in the order of `attach`, room for partners, symmetries.

    Raises ValueError as `check`, and where a fragment has more than GROUP symmetries.
    """
    check(fragments)
    capacities = [[count for _, count in f.attach] for f in fragments]
    return Blocks.of([f.name for f in fragments], capacities, [symmetries(f) for f in fragments])


def symmetries(fragment: Fragment) -> list[list[int]]:
    """All permutations of the sites that automorphisms make; the first is the identity. Errors as `blocks_of`."""
    mol, sites = molecule(fragment), [atom for atom, _ in fragment.attach]
    room = dict(fragment.attach)
    colour = colours(mol, room)
    marks = range(max(colour) + 1, max(colour) + 1 + len(sites))

    def marked(images: Sequence[int]) -> Chem.Mol:
        return coloured(mol, {**dict(enumerate(colour)), **{sites[t]: mark for t, mark in zip(images, marks, strict=False)}})

    images: list[tuple[int, ...]] = [()]
    for s in range(len(sites)):
        query = marked(range(s + 1))
        images = [
            (*p, t)
            for p in images
            for t in range(len(sites))
            if t not in p and colour[sites[t]] == colour[sites[s]] and matches(marked((*p, t)), query)
        ]
        if len(images) > GROUP:
            raise ValueError(
                f"fragment {fragment.name}: its {len(sites)} attachment atoms have over {GROUP} symmetries; name fewer"
            )
    return [list(p) for p in images]


def colours(mol: Chem.Mol, room: dict[int, int]) -> list[int]:
    """A number from 1 for each atom, equal where element, charge, hydrogens, radicals, isotope and room (0 if absent) are."""
    kinds = [
        (
            a.GetAtomicNum(),
            a.GetFormalCharge(),
            a.GetTotalNumHs(),
            a.GetNumRadicalElectrons(),
            a.GetIsotope(),
            room.get(a.GetIdx(), 0),
        )
        for a in mol.GetAtoms()
    ]
    rank = {kind: number for number, kind in enumerate(sorted(set(kinds)), 1)}
    return [rank[kind] for kind in kinds]


def coloured(mol: Chem.Mol, colour: dict[int, int]) -> Chem.Mol:
    """A copy whose isotopes are colours: RDKit's match compares those, where it would pass over hydrogens and zero charges."""
    copy = Chem.Mol(mol)
    for atom, number in colour.items():
        copy.GetAtomWithIdx(atom).SetIsotope(number)
    return copy


def matches(mol: Chem.Mol, query: Chem.Mol) -> bool:
    """Whether two coloured molecules of as many atoms and bonds are the same, stereo and all."""
    return mol.HasSubstructMatch(query, useChirality=True)


def _check_sites(f: Fragment, mol: Chem.Mol) -> None:
    if not f.attach:
        raise ValueError(f"fragment {f.name}: it has no attachment atoms; name at least one")
    repeated = [atom for atom, count in Counter(atom for atom, _ in f.attach).items() if count > 1]
    if repeated:
        raise ValueError(
            f"fragment {f.name}: attach names atom {repeated[0]} twice; name it once, with the number of its partners"
        )
    for atom, count in f.attach:
        if not 0 <= atom < mol.GetNumAtoms():
            raise ValueError(
                f"fragment {f.name}: attach names atom {atom}, {f.smiles} has atoms 0 to {mol.GetNumAtoms() - 1}; correct it"
            )
        if count < 1:
            raise ValueError(
                f"fragment {f.name}: atom {atom} is to take {count} partners; give at least 1, or leave the atom out"
            )
        if not _has_room(mol, atom, count):
            raise ValueError(
                f"fragment {f.name}: atom {atom} ({mol.GetAtomWithIdx(atom).GetSymbol()}) of {f.smiles} cannot take {count} "
                f"partner{'s' * (count > 1)}, having {mol.GetAtomWithIdx(atom).GetTotalNumHs()} hydrogens; lower the number"
            )


def _has_room(mol: Chem.Mol, atom: int, count: int) -> bool:
    """Whether RDKit accepts as many methyl groups there; valence is each atom's own, so that all sites may be used at once."""
    here = mol.GetAtomWithIdx(atom)
    if here.GetTotalNumHs() >= count:
        return True
    if here.GetNoImplicit() or count > 8:  # in brackets the hydrogens are what is written: one bond more makes a radical
        return False
    grown = Chem.RWMol(mol)
    for _ in range(count):
        grown.AddBond(atom, grown.AddAtom(Chem.Atom(6)), Chem.BondType.SINGLE)
    with rdBase.BlockLogs():
        return Chem.SanitizeMol(grown, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE


def _entry(entry: Any, number: int) -> Fragment:
    """Entry `number`, from 1, of our format."""
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"fragment {name}" if isinstance(name, str) and name else f"fragment number {number}"
    if not isinstance(entry, dict) or not {"name", "smiles", "attach"} <= entry.keys():
        raise ValueError(f'{where}: expected an object with "name", "smiles" and "attach"; correct it')
    if not isinstance(name, str) or not name or not isinstance(entry["smiles"], str):
        raise ValueError(f'{where}: expected texts as "name" and "smiles"; correct it')
    attach = entry["attach"]
    if not isinstance(attach, list) or not all(isinstance(p, list) and len(p) == 2 and all(map(_whole, p)) for p in attach):
        raise ValueError(f'{where}: expected "attach" as a list of [atom, number of partners], whole numbers; correct it')
    return Fragment(name, entry["smiles"], tuple((atom, count) for atom, count in attach))


def _of_2021(*tables: Any) -> tuple[Fragment, ...]:
    """The rows of the 2021 format, those of one SMILES merged into a fragment of that name; atoms in ascending order."""
    if not all(isinstance(table, dict) and table.keys() == tables[0].keys() for table in tables):
        raise ValueError(f"the tables {', '.join(TABLES_2021)} have different rows; give a whole file of the 2021 format")
    _, smiles, points = tables
    merged: dict[str, Counter[int]] = {}
    for row, text in smiles.items():
        if not isinstance(text, str) or not isinstance(points[row], list) or not all(map(_whole, points[row])):
            raise ValueError(f"row {row} of the 2021 tables: expected a SMILES and a list of atom numbers; correct it")
        count = merged.setdefault(text, Counter())
        count |= Counter(points[row])  # in place; the union of two counters takes the larger count
    return tuple(Fragment(text, text, tuple(sorted(count.items()))) for text, count in merged.items())


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
