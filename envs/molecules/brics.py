"""A vocabulary from any list of SMILES, by the BRICS rules of retrosynthesis as RDKit has them.

    cut every molecule at all its BRICS bonds; on either side the atom of the cut bond is an attachment atom
    fragments of one canonical SMILES are one
        count    how often it occurred
        attach   the union over its occurrences, each atom with the most partners that it had in one
    the most frequent come first, then by SMILES

An occurrence is laid on the fragment by the automorphism that gives the lowest atom numbers: a phenyl is a phenyl, wherever
its bond was.

J. Degen, C. Wegscheid-Gerlach, A. Zaliani, M. Rarey, "On the art of compiling and using 'drug-like' chemical fragment spaces",
ChemMedChem 3 (2008) 1503.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from rdkit import Chem, rdBase
from rdkit.Chem import BRICS

from envs.molecules.fragments import Fragment, check, coloured, colours

AUTOMORPHISMS = 1000  # looked at for the lowest atom numbers; of more, the first

Points = tuple[tuple[int, int], ...]  # (atom, partners), ascending


def fragments_from(
    smiles: Iterable[str], min_count: int = 1, max_atoms: int | None = None, limit: int | None = None
) -> tuple[Fragment, ...]:
    """Fragments of the molecules, the most frequent first, each named by its canonical SMILES.

    smiles     lines "SMILES" or "SMILES name"; blank ones and those that begin with # are passed over
    min_count  how often a fragment must occur      max_atoms  heavy atoms it may have      limit  how many are kept

    Raises ValueError at a SMILES that RDKit cannot read, with the number of its line (from 1), and where no fragment is left.
    """
    count, attach = Counter[str](), defaultdict[str, Counter[int]](Counter)
    molecules, layout = 0, dict[tuple[str, Points], tuple[str, Points]]()
    with rdBase.BlockLogs():
        for number, line in enumerate(smiles, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            mol = Chem.MolFromSmiles(words[0])
            if mol is None or not mol.GetNumAtoms():
                raise ValueError(f"line {number}: RDKit cannot read the SMILES {words[0]!r}; correct or remove it")
            molecules += 1
            for piece in _pieces(mol):
                if piece not in layout:
                    layout[piece] = _laid_out(*piece)
                text, points = layout[piece]
                count[text] += 1
                attach[text] |= Counter(dict(points))  # the union of two counters takes the larger count
    if not molecules:
        raise ValueError("there is no SMILES to take fragments from; give lines with a SMILES each")
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


def _pieces(mol: Chem.Mol) -> list[tuple[str, Points]]:
    """What is left of a molecule when all BRICS bonds are cut: SMILES and the partners that atoms lost, by atom of that SMILES.

    Pieces without an attachment atom (molecules that nothing cuts, counter-ions) are left out.
    """
    bonds = [mol.GetBondBetweenAtoms(*pair) for pair, _ in BRICS.FindBRICSBonds(mol)]  # type: ignore[no-untyped-call]
    # BRICS cuts C=C as well; blocks are joined by single bonds only
    cut = [bond for bond in bonds if bond.GetBondType() == Chem.BondType.SINGLE]
    if not cut:
        return []
    for bond in cut:
        for atom in (bond.GetBeginAtom(), bond.GetEndAtom()):
            atom.SetIntProp("partners", atom.GetIntProp("partners") + 1 if atom.HasProp("partners") else 1)
    apart = Chem.FragmentOnBonds(mol, [bond.GetIdx() for bond in cut], dummyLabels=[(0, 0)] * len(cut))
    for atom in apart.GetAtoms():
        if atom.GetAtomicNum() == 0 and atom.GetDegree() == 1 and atom.GetIdx() >= mol.GetNumAtoms():
            atom.SetAtomicNum(1)  # a hydrogen where the dummy stood keeps [nH] and the hands of stereocentres
    found = list[tuple[str, Points]]()
    for piece in Chem.GetMolFrags(apart, asMols=True):
        piece = Chem.RemoveHs(piece)
        Chem.AssignStereochemistry(piece, cleanIt=True, force=True)
        text, place = _canonical(piece)
        points = tuple(sorted((place[a.GetIdx()], a.GetIntProp("partners")) for a in piece.GetAtoms() if a.HasProp("partners")))
        if points:
            found.append((text, points))
    return found


def _laid_out(text: str, points: Points) -> tuple[str, Points]:
    """The canonical SMILES of a piece's SMILES, and the points in its atoms: the lowest that its automorphisms give."""
    mol = Chem.MolFromSmiles(text)
    text, place = _canonical(mol)
    fragment = Chem.MolFromSmiles(text)
    painted = coloured(fragment, dict(enumerate(colours(fragment, {}))))
    ways = painted.GetSubstructMatches(painted, uniquify=False, useChirality=True, maxMatches=AUTOMORPHISMS)
    return text, min(tuple(sorted((way[place[atom]], partners) for atom, partners in points)) for way in ways)


def _canonical(mol: Chem.Mol) -> tuple[str, dict[int, int]]:
    """The canonical SMILES, and the place in it of each atom."""
    text = Chem.MolToSmiles(mol)
    order = mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]
    return text, {atom: place for place, atom in enumerate(order)}


def _heavy(smiles: str) -> int:
    return Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()
