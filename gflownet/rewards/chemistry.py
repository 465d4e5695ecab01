"""Terms of a molecule's reward, computed by RDKit alone; nothing is downloaded.

quantities (one molecule -> one number)                                  source
    qed          quantitative estimate of drug-likeness, 0 to 1          Bickerton et al., Nature Chemistry 4:90 (2012)
    sa_score     synthetic accessibility, 1 (easy) to 10 (hard)          Ertl and Schuffenhauer, J. Cheminform. 1:8 (2009)
    logp         octanol-water partition, Crippen contributions          Wildman and Crippen, JCICS 39:868 (1999)
    mw           average molecular weight, g/mol
    tpsa         topological polar surface, Å^2                          Ertl et al., J. Med. Chem. 43:3714 (2000)
    rotors       number of rotatable bonds, RDKit's strict definition
    Similarity   Tanimoto similarity to a reference, morgan2-2048

terms (the factors and summands of a reward; larger is better)
    qed                           the quantity
    sa                            (10 - sa_score) / 9, from 0 to 1
    logp[low,high] and mw, tpsa, rotors, each also with [low,high,width]
                                  1 inside the window, exp(-d^2 / 2 width^2) at distance d outside
    similar[SMILES]               the similarity to it, from 0 to 1

A molecule is a sanitised RDKit molecule without explicit hydrogens, as `Chem.MolFromSmiles` makes it.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, DataStructs, RDConfig, rdBase
from rdkit.Chem import QED, rdFingerprintGenerator, rdMolDescriptors
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogEntry, SmartsMatcher

Floats = NDArray[np.float64]
Measure = Callable[[Chem.Mol], float]
"""A quantity of one molecule. It must be picklable, so that worker processes can compute it."""

MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


_QED: Callable[..., float] = QED.qed  # untyped in RDKit
_PROPERTIES: Callable[..., tuple[float, ...]] = QED.QEDproperties


def qed(mol: Chem.Mol) -> float:
    """exp(Σ w_i log d_i / Σ w_i), 0 to 1: desirabilities d_i of weight, logP, H-bond acceptors and donors, polar surface,
    rotors, aromatic rings and structural alerts, with the mean weights of the paper (QED_w,mo).

    The value is that of RDKit's `QED.qed`. Where there are no hydrogens to remove, the properties are counted here: the alerts
    by one call for all of them.
    """
    return _QED(mol, qedProperties=_qed_properties(mol))


def _qed_properties(mol: Chem.Mol) -> tuple[float, ...] | None:
    if mol.GetNumHeavyAtoms() != mol.GetNumAtoms():
        return None
    return _PROPERTIES(
        MW=mw(mol),
        ALOGP=logp(mol),
        HBA=sum(len(mol.GetSubstructMatches(pattern)) for pattern in QED.Acceptors),
        HBD=rdMolDescriptors.CalcNumHBD(mol),
        PSA=tpsa(mol),
        ROTB=int(rotors(mol)),
        AROM=len(Chem.GetSSSR(Chem.DeleteSubstructs(Chem.Mol(mol), QED.AliphaticRings))),
        ALERTS=len(_alerts().GetMatches(mol)),
    )


@functools.cache
def _alerts() -> FilterCatalog:
    found = FilterCatalog()
    for i, pattern in enumerate(QED.StructuralAlerts):
        found.AddEntry(FilterCatalogEntry(str(i), SmartsMatcher(str(i), pattern)))
    return found


def sa_score(mol: Chem.Mol) -> float:
    """1 (easy to make) to 10 (hard): rare fragments, size, stereo centres, spiro, bridge and large-ring atoms (RDKit Contrib).

    Raises ModuleNotFoundError for an RDKit that was built without its Contrib folder.
    """
    return float(_sascorer().calculateScore(mol))


def logp(mol: Chem.Mol) -> float:
    """Σ of atomic contributions (Crippen)."""
    return float(rdMolDescriptors.CalcCrippenDescriptors(mol)[0])


def mw(mol: Chem.Mol) -> float:
    """Average molecular weight in g/mol, hydrogens included."""
    return float(rdMolDescriptors._CalcMolWt(mol))


def tpsa(mol: Chem.Mol) -> float:
    """Topological polar surface area in Å^2, from N and O only."""
    return float(rdMolDescriptors.CalcTPSA(mol))


def rotors(mol: Chem.Mol) -> float:
    """Number of rotatable bonds; amides and the like do not count."""
    return float(rdMolDescriptors.CalcNumRotatableBonds(mol, rdMolDescriptors.NumRotatableBondsOptions.Strict))


@dataclass(frozen=True)
class Similarity:
    """Tanimoto similarity |a & b| / |a | b| of Morgan fingerprints (radius 2, 2048 bits) to that of a reference."""

    fingerprint: DataStructs.ExplicitBitVect

    @staticmethod
    def to(smiles: str) -> Similarity:
        """The similarity to a reference molecule.

        Raises:
            ValueError: RDKit cannot read the SMILES.
        """
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(smiles) if smiles else None
        if mol is None:
            raise ValueError(f"similar[{smiles}]: RDKit cannot read this as SMILES; give the molecule to resemble")
        return Similarity(MORGAN.GetFingerprint(mol))

    def __call__(self, mol: Chem.Mol) -> float:
        return float(DataStructs.TanimotoSimilarity(self.fingerprint, MORGAN.GetFingerprint(mol)))


# -- from quantities to terms


def same(x: Floats) -> Floats:
    """The quantity itself."""
    return x


def ease(sa: Floats) -> Floats:
    """(10 - sa) / 9: 1 is easiest to synthesise, 0 hardest."""
    return (10 - sa) / 9


@dataclass(frozen=True)
class Window:
    """1 for low <= x <= high, exp(-d^2 / 2 width^2) outside, d being the distance to the window. Units are those of x."""

    low: float
    high: float
    width: float

    def __call__(self, x: Floats) -> Floats:
        d = np.maximum(np.maximum(self.low - x, x - self.high), 0.0)
        return np.exp(-0.5 * (d / self.width) ** 2)


@dataclass(frozen=True)
class Term:
    """A term of a reward: shape(measure(molecule)).

    label     its name in formulas and files
    quantity  the name of the quantity
    measure   computes the quantity of a molecule
    shape     from quantities [B] to the term [B]
    """

    label: str
    quantity: str
    measure: Measure
    shape: Callable[[Floats], Floats]


PLAIN: Mapping[str, Term] = {"qed": Term("qed", "qed", qed, same), "sa": Term("sa", "sa_score", sa_score, ease)}
WINDOWS: Mapping[str, tuple[Measure, float]] = {
    "logp": (logp, 1.0),
    "mw": (mw, 50.0),
    "tpsa": (tpsa, 20.0),
    "rotors": (rotors, 2.0),
}
"""Name -> the quantity and the default width."""
SYNOPSIS = (*PLAIN, *(f"{name}[low,high]" for name in WINDOWS), "similar[SMILES]")
"""The syntax of all terms."""


def term(name: str, inside: str | None) -> Term:
    """Make the term `name[inside]`, or `name` if `inside` is None.

    Raises:
        KeyError: there is no term of this name.
        ValueError: brackets are missing, superfluous or have a wrong content.
    """
    if name in PLAIN:
        if inside is not None:
            raise ValueError(f"{name} takes no brackets, got [{inside}]")
        return PLAIN[name]
    if name == "similar":
        if inside is None:
            raise ValueError("similar needs a molecule, as in similar[CC(=O)Oc1ccccc1C(=O)O]")
        label = f"similar[{inside}]"
        return Term(label, label, Similarity.to(inside), same)
    measure, width = WINDOWS[name]
    try:
        numbers = [float(x) for x in (inside or "").split(",")]
    except ValueError:
        numbers = []
    low, high, width = (*numbers, width)[:3] if len(numbers) in (2, 3) else (math.nan,) * 3
    if not (low <= high and 0 < width < math.inf):
        raise ValueError(f"{name} needs a window, {name}[low,high] or {name}[low,high,width], with low <= high and width > 0")
    return Term(f"{name}[{','.join(f'{x:.12g}' for x in numbers)}]", name, measure, Window(low, high, width))


@functools.cache
def _sascorer() -> ModuleType:
    """Load RDKit's Contrib script, which is not in a package. Its first score reads a table of 3.8 MB (0.3 s)."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ModuleNotFoundError(
            f"this RDKit has no {path}, which computes the SA score: install the wheel, pip install rdkit"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
