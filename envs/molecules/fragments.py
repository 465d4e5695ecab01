"""Vocabularies of fragments with attachment atoms: reading, checking and writing JSON, and the symmetries of fragments.

    fragments-1   {"format": "fragments-1", "fragments": [{"name": "phenol", "smiles": "Oc1ccccc1", "attach": [[0, 1]]}, ...]}
                  attach: [atom in the order of the SMILES, the most partners]; free text ("about") is ignored
                  joins, optional: [atom, ...], those of `attach` by which the fragment itself is attached, with the atoms that
                  equal them by symmetry; without it all of them
    2021          the three tables of `blocks_PDB_105.json`, {"block_name": {"0": ...}, "block_smi": {...}, "block_r": {...}}.
                  A row is attached by the first atom of its block_r and leaves the others open
        merged        rows with one SMILES are one fragment: the union of their atoms, each with its largest count, attached by
                      any of them
        paper2021     rows with one SMILES and the same atoms, equally often, are one fragment, attached by the atoms that begin
                      its rows: as published

A partner replaces one hydrogen; sulphur and phosphorus may instead form an additional bond (O=S=O to O=[SH](=O)R).

A symmetry is a permutation of the sites by an automorphism of the molecule that preserves element, charge, hydrogens, isotope,
multiplicity, bonds (aromatic ones regardless of the Kekulé form) and specified stereo. Mirror images are different:
enantiotopic atoms of a fragment with specified centres are not exchanged. The algorithm enumerates the permutations of sites,
not the automorphisms, of which there may be billions:

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
CONVENTIONS = ("merged", "paper2021")


@dataclass(frozen=True)
class Fragment:
    """A building block.

    `attach` is ((atom index in the order of the SMILES, the most partners), ...); entry s is site s of the block. `joins` are
    the atoms by which it can be attached, with those that equal them by symmetry; None: all of `attach`.
    """

    name: str
    smiles: str
    attach: tuple[tuple[int, int], ...]
    joins: tuple[int, ...] | None = None


def default_fragments() -> tuple[Fragment, ...]:
    """The default vocabulary, `default_fragments.json`; its "about" explains how it was chosen."""
    return fragments_from_json(files("envs.molecules").joinpath("default_fragments.json").read_text(encoding="utf-8"))


def load_fragments(path: Path, convention: str = "merged") -> tuple[Fragment, ...]:
    """Read fragments from a JSON file of either format.

    Args:
        path: of the file.
        convention: how the rows of the 2021 format become fragments, "merged" or "paper2021".

    Raises:
        ValueError: as `fragments_from_json`, with the path.
        OSError: the file cannot be read.
    """
    try:
        return fragments_from_json(path.read_bytes().decode("utf-8"), convention)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is not UTF-8 text; give a JSON file of fragments") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fragments_from_json(text: str, convention: str = "merged") -> tuple[Fragment, ...]:
    """Read fragments from JSON text of either format; `convention` as in `load_fragments`.

    Raises:
        ValueError: the text is invalid, `convention` is unknown or does not fit the format, or a fragment is as in `check`; the
            message names the fragment.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"got convention {convention!r}, expected {' or '.join(CONVENTIONS)}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}); give a JSON file of fragments") from None
    if isinstance(data, dict) and set(TABLES_2021) <= data.keys():
        fragments = _of_2021(convention, *(data[table] for table in TABLES_2021))
    elif isinstance(data, dict) and data.get("format") == FORMAT and isinstance(data.get("fragments"), list):
        fragments = tuple(_entry(entry, number) for number, entry in enumerate(data["fragments"], 1))
        if convention == "paper2021" and any(f.joins is None for f in fragments):
            raise ValueError(
                "it does not say which atoms attach a fragment, as the convention paper2021 needs: give the blocks file of "
                "2021, or fragments with joins, or choose the convention merged"
            )
    else:
        raise ValueError(
            f'it is JSON but holds no fragments: expected {{"format": "{FORMAT}", "fragments": [...]}}, '
            f"or the tables {', '.join(TABLES_2021)} of the 2021 format"
        )
    check(fragments)
    return fragments


def as_json(fragments: Sequence[Fragment]) -> str:
    """Write fragments as JSON text of the format fragments-1, one fragment a line."""
    entries = [
        {"name": f.name, "smiles": f.smiles, "attach": [list(pair) for pair in f.attach]}
        | ({} if f.joins is None else {"joins": list(f.joins)})
        for f in fragments
    ]
    lines = ",\n".join("    " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f'{{\n  "format": "{FORMAT}",\n  "fragments": [\n{lines}\n  ]\n}}\n'


def check(fragments: Sequence[Fragment]) -> None:
    """Check a vocabulary.

    Raises:
        ValueError: a fragment cannot be used, or two have the same name, or the same molecule with the same sites.
    """
    if not fragments:
        raise ValueError("there are no fragments; give at least one")
    repeated = [name for name, count in Counter(f.name for f in fragments).items() if count > 1]
    if repeated:
        raise ValueError(f"fragment {repeated[0]}: this name occurs more than once; give each fragment a name of its own")
    seen = dict[str, str]()
    for f in fragments:
        mol = molecule(f)
        _check_sites(f, mol)
        for atom, count in f.attach:
            mol.GetAtomWithIdx(atom).SetAtomMapNum(count)
        same = seen.setdefault(Chem.MolToSmiles(mol), f.name)
        if same != f.name:
            raise ValueError(f"fragment {f.name}: it equals {same}, with the same attachment atoms; remove one of the two")


def molecule(fragment: Fragment) -> Chem.Mol:
    """The RDKit molecule of a fragment, with atoms in the order of the SMILES.

    Raises:
        ValueError: the SMILES cannot be read, has several molecules, or has a `*` or atom map numbers.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(fragment.smiles)
    where = f"fragment {fragment.name}"
    if mol is None or not mol.GetNumAtoms():
        raise ValueError(f"{where}: RDKit cannot read its SMILES {fragment.smiles!r}; correct it")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise ValueError(f"{where}: its SMILES {fragment.smiles!r} has several molecules; give one, without '.'")
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        raise ValueError(f"{where}: its SMILES {fragment.smiles!r} has a '*'; remove it and list its neighbour in attach")
    if any(atom.GetAtomMapNum() for atom in mol.GetAtoms()):
        raise ValueError(f"{where}: its SMILES {fragment.smiles!r} has atom map numbers; remove them")
    return mol


def blocks_of(fragments: Sequence[Fragment]) -> Blocks:
    """Make the tables of a vocabulary: sites in the order of `attach`, capacities, symmetries.

    Raises:
        ValueError: as `check`, or a fragment has more than GROUP symmetries.
    """
    check(fragments)
    capacities = [[count for _, count in f.attach] for f in fragments]
    sites = [[s for s, (atom, _) in enumerate(f.attach) if f.joins is None or atom in f.joins] for f in fragments]
    return Blocks.of([f.name for f in fragments], capacities, [symmetries(f) for f in fragments], sites)


def symmetries(fragment: Fragment) -> list[list[int]]:
    """All permutations of the sites by automorphisms of the fragment, the identity first.

    Raises:
        ValueError: as `molecule`, or there are more than GROUP symmetries.
    """
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
                f"fragment {fragment.name}: its {len(sites)} attachment atoms have over {GROUP} symmetries; list fewer"
            )
    return [list(p) for p in images]


def colours(mol: Chem.Mol, room: dict[int, int]) -> list[int]:
    """A number from 1 for each atom; equal numbers mean equal element, charge, hydrogens, radicals, isotope and capacity."""
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
    """A copy with colours as isotopes: RDKit's match compares isotopes, but not hydrogens or zero charges."""
    copy = Chem.Mol(mol)
    for atom, number in colour.items():
        copy.GetAtomWithIdx(atom).SetIsotope(number)
    return copy


def matches(mol: Chem.Mol, query: Chem.Mol) -> bool:
    """Whether two coloured molecules with equally many atoms and bonds are the same, including stereo."""
    return mol.HasSubstructMatch(query, useChirality=True)


def _check_sites(f: Fragment, mol: Chem.Mol) -> None:
    if not f.attach:
        raise ValueError(f"fragment {f.name}: it has no attachment atoms; list at least one in attach")
    repeated = [atom for atom, count in Counter(atom for atom, _ in f.attach).items() if count > 1]
    if repeated:
        raise ValueError(
            f"fragment {f.name}: attach lists atom {repeated[0]} twice; list it once, with the number of its partners"
        )
    if f.joins is not None and (not f.joins or not set(f.joins) <= {atom for atom, _ in f.attach}):
        raise ValueError(
            f"fragment {f.name}: joins lists {list(f.joins)}, expected one or more of its attachment atoms; correct it"
        )
    for atom, count in f.attach:
        if not 0 <= atom < mol.GetNumAtoms():
            raise ValueError(
                f"fragment {f.name}: attach lists atom {atom}, {f.smiles} has atoms 0 to {mol.GetNumAtoms() - 1}; correct it"
            )
        if count < 1:
            raise ValueError(
                f"fragment {f.name}: atom {atom} has {count} partners, expected at least 1; raise it, or remove the atom"
            )
        if not _has_room(mol, atom, count):
            raise ValueError(
                f"fragment {f.name}: atom {atom} ({mol.GetAtomWithIdx(atom).GetSymbol()}) of {f.smiles} cannot have {count} "
                f"partner{'s' * (count > 1)} with {mol.GetAtomWithIdx(atom).GetTotalNumHs()} hydrogens; lower the number"
            )


def _has_room(mol: Chem.Mol, atom: int, count: int) -> bool:
    """Whether RDKit accepts `count` methyl groups at an atom. Valence is local, so sites can be checked one by one."""
    here = mol.GetAtomWithIdx(atom)
    if here.GetTotalNumHs() >= count:
        return True
    if here.GetNoImplicit() or count > 8:  # bracket atoms have no implicit hydrogens: one more bond makes a radical
        return False
    grown = Chem.RWMol(mol)
    for _ in range(count):
        grown.AddBond(atom, grown.AddAtom(Chem.Atom(6)), Chem.BondType.SINGLE)
    with rdBase.BlockLogs():
        return Chem.SanitizeMol(grown, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE


def _entry(entry: Any, number: int) -> Fragment:
    """Parse entry `number` (from 1) of the format fragments-1."""
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"fragment {name}" if isinstance(name, str) and name else f"fragment number {number}"
    if not isinstance(entry, dict) or not {"name", "smiles", "attach"} <= entry.keys():
        raise ValueError(f'{where}: expected an object with "name", "smiles" and "attach"; correct it')
    if not _is_text(name) or not name or not _is_text(entry["smiles"]):
        raise ValueError(f'{where}: expected texts as "name" and "smiles"; correct it')
    attach = entry["attach"]
    if not isinstance(attach, list) or not all(isinstance(p, list) and len(p) == 2 and all(map(_whole, p)) for p in attach):
        raise ValueError(f'{where}: expected "attach" as a list of [atom, number of partners], whole numbers; correct it')
    joins = entry.get("joins")
    if joins is not None and not (isinstance(joins, list) and all(map(_whole, joins))):
        raise ValueError(f'{where}: expected "joins" as a list of atoms, whole numbers; correct it')
    return Fragment(
        name, entry["smiles"], tuple((atom, count) for atom, count in attach), None if joins is None else tuple(joins)
    )


def _of_2021(convention: str, *tables: Any) -> tuple[Fragment, ...]:
    """Parse the 2021 format; fragments have their atoms in ascending order."""
    if not all(isinstance(table, dict) and table.keys() == tables[0].keys() for table in tables):
        raise ValueError(f"the tables {', '.join(TABLES_2021)} have different rows; give a complete file of the 2021 format")
    _, smiles, atoms = tables
    for row, text in smiles.items():
        if not _is_text(text) or not isinstance(atoms[row], list) or not all(map(_whole, atoms[row])):
            raise ValueError(f"row {row} of the 2021 tables: expected a SMILES and a list of atom numbers; correct it")
    rows = [(text, atoms[row]) for row, text in smiles.items()]
    return _as_published(rows) if convention == "paper2021" else _merged(rows)


def _merged(rows: list[tuple[str, list[int]]]) -> tuple[Fragment, ...]:
    """Rows with one SMILES become one fragment, named by it."""
    merged: dict[str, Counter[int]] = {}
    for text, atoms in rows:
        count = merged.setdefault(text, Counter())
        count |= Counter(atoms)  # in place; the union of two counters takes the larger count
    return tuple(Fragment(text, text, tuple(sorted(count.items()))) for text, count in merged.items())


def _as_published(rows: list[tuple[str, list[int]]]) -> tuple[Fragment, ...]:
    """Rows with one SMILES and one multiset of atoms become one fragment, named by the SMILES, and by the atoms if need be."""
    begins: dict[tuple[str, tuple[int, ...]], set[int]] = {}
    for text, atoms in rows:
        begins.setdefault((text, tuple(sorted(atoms))), set()).update(atoms[:1])
    variants = Counter(text for text, _ in begins)
    return tuple(
        Fragment(
            text if variants[text] == 1 else f"{text}{{{','.join(map(str, atoms))}}}",
            text,
            tuple(sorted(Counter(atoms).items())),
            tuple(sorted(first)),
        )
        for (text, atoms), first in begins.items()
    )


def _is_text(value: Any) -> bool:
    """Whether it is text that can be written; half of a surrogate pair, which JSON can hold, is not."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
