"""`fragments_from`: makes a vocabulary from a list of SMILES by the BRICS rules of retrosynthesis, as implemented in RDKit.

    cut every molecule at all its BRICS bonds; both atoms of a cut bond become attachment atoms
    merge fragments with the same canonical SMILES
        count    its number of occurrences
        attach   the union over its occurrences, each atom with the largest number of partners in one occurrence
    sort by frequency, then by SMILES

An occurrence is mapped to the fragment by the automorphism that gives the lowest atom numbers, so that a phenyl is the same
fragment wherever its bond was.

J. Degen, C. Wegscheid-Gerlach, A. Zaliani, M. Rarey, "On the art of compiling and using 'drug-like' chemical fragment spaces",
ChemMedChem 3 (2008) 1503.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from rdkit import Chem, rdBase
from rdkit.Chem import BRICS

from envs.molecules.fragments import Fragment, check, coloured, colours

AUTOMORPHISMS = 1000  # the most that are compared for the lowest atom numbers

Attachments = tuple[tuple[int, int], ...]  # (atom, partners), ascending


def fragments_from(
    smiles: Iterable[str], min_count: int = 1, max_atoms: int | None = None, limit: int | None = None
) -> tuple[Fragment, ...]:
    """Make fragments of molecules, the most frequent first, each named by its canonical SMILES.

    Args:
        smiles: lines "SMILES" or "SMILES name"; blank lines and those that begin with # are skipped.
        min_count: the fewest occurrences of a fragment.
        max_atoms: the most heavy atoms of a fragment; None: no limit.
        limit: the most fragments; None: no limit.

    Raises:
        ValueError: RDKit cannot read a SMILES (with the line number, from 1), or no fragment is left.
    """
    count, attach = Counter[str](), defaultdict[str, Counter[int]](Counter)
    molecules, layout = 0, dict[tuple[str, Attachments], tuple[str, Attachments]]()
    with rdBase.BlockLogs():
        for number, line in enumerate(smiles, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            mol = Chem.MolFromSmiles(words[0])
            if mol is None or not mol.GetNumAtoms():
                raise ValueError(f"line {number}: RDKit cannot read the SMILES {words[0]!r}; correct or remove it")
            molecules += 1
            for part in _cut(mol):
                if part not in layout:
                    layout[part] = _mapped(*part)
                text, attachments = layout[part]
                count[text] += 1
                attach[text] |= Counter(dict(attachments))  # the union of two counters takes the larger count
    if not molecules:
        raise ValueError("there is no SMILES in the input, expected lines with a SMILES each")
    if not count:
        raise ValueError(
            f"none of the {molecules} molecules has a bond that BRICS cuts, so there are no fragments; give larger ones"
        )
    order = sorted(count, key=lambda text: (-count[text], text))
    kept = [text for text in order if count[text] >= min_count and (max_atoms is None or _heavy(text) <= max_atoms)]
    if not kept[:limit]:
        raise ValueError(
            f"none of the {len(order)} fragments is left with min_count {min_count}, max_atoms {max_atoms}, limit {limit}; "
            f"the commonest occurs {count[order[0]]} times, the smallest has {min(map(_heavy, order))} heavy atoms: relax them"
        )
    fragments = tuple(Fragment(text, text, tuple(sorted(attach[text].items()))) for text in kept[:limit])
    check(fragments)
    return fragments


def _cut(mol: Chem.Mol) -> list[tuple[str, Attachments]]:
    """Cut all BRICS bonds of a molecule: the SMILES of each part, and the number of partners that its atoms lost.

    Parts without an attachment atom (uncut molecules, counter-ions) are left out.
    """
    bonds = [mol.GetBondBetweenAtoms(*pair) for pair, _ in BRICS.FindBRICSBonds(mol)]  # type: ignore[no-untyped-call]
    # BRICS also cuts C=C, but blocks are joined by single bonds only
    cut = [bond for bond in bonds if bond.GetBondType() == Chem.BondType.SINGLE]
    if not cut:
        return []
    for bond in cut:
        for atom in (bond.GetBeginAtom(), bond.GetEndAtom()):
            atom.SetIntProp("partners", atom.GetIntProp("partners") + 1 if atom.HasProp("partners") else 1)
    apart = Chem.FragmentOnBonds(mol, [bond.GetIdx() for bond in cut], dummyLabels=[(0, 0)] * len(cut))
    for atom in apart.GetAtoms():
        if atom.GetAtomicNum() == 0 and atom.GetDegree() == 1 and atom.GetIdx() >= mol.GetNumAtoms():
            atom.SetAtomicNum(1)  # a hydrogen in place of the dummy keeps [nH] and the chirality of stereocentres
    found = list[tuple[str, Attachments]]()
    for part in Chem.GetMolFrags(apart, asMols=True):
        part = Chem.RemoveHs(part)
        Chem.AssignStereochemistry(part, cleanIt=True, force=True)
        text, place = _canonical(part)
        attachments = tuple(
            sorted((place[a.GetIdx()], a.GetIntProp("partners")) for a in part.GetAtoms() if a.HasProp("partners"))
        )
        if attachments:
            found.append((text, attachments))
    return found


def _mapped(text: str, attachments: Attachments) -> tuple[str, Attachments]:
    """The canonical form of a SMILES, and the attachments as its lowest atom numbers over all automorphisms."""
    mol = Chem.MolFromSmiles(text)
    text, place = _canonical(mol)
    fragment = Chem.MolFromSmiles(text)
    painted = coloured(fragment, dict(enumerate(colours(fragment, {}))))
    ways = painted.GetSubstructMatches(painted, uniquify=False, useChirality=True, maxMatches=AUTOMORPHISMS)
    return text, min(tuple(sorted((way[place[atom]], partners) for atom, partners in attachments)) for way in ways)


def _canonical(mol: Chem.Mol) -> tuple[str, dict[int, int]]:
    """The canonical SMILES, and the position of each atom in it."""
    text = Chem.MolToSmiles(mol)
    order = mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
    return text, {atom: place for place, atom in enumerate(order)}


def _heavy(smiles: str) -> int:
    return Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()
