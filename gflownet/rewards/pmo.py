"""The 20 tasks of PMO (practical molecular optimisation; Gao et al., NeurIPS 2022) that need RDKit alone, by name.

A task is a score of a molecule from 0 to 1; most are from GuacaMol (Brown et al., JCIM 59:1096, 2019). The three tasks of PMO
that need trained classifiers (drd2, gsk3b, jnk3) are left out.

    similarity    Tanimoto on counts of unfolded fingerprints: ECFP4, ECFP6 (Morgan, radius 2 and 3), FCFP4 (radius 2, feature
                  invariants), AP (atom pairs up to 10 bonds); on bits for PHCO (Gobbi pharmacophores)
    clip(u)       x / u, at most 1
    gauss(μ, s)   exp(-((x - μ) / s)^2 / 2); below: 1 for x <= μ, above: 1 for x >= μ
    gmean         geometric mean, 0 where one factor is 0
    isomer(F)     gmean of gauss(count in F, 1) of every element of F and gauss(atoms in F, 2) of the number of atoms

Time for one molecule, µs of one core, mean over 1,975 of ZINC (23 heavy atoms; reading its SMILES takes 90):

    isomers (both)  6    rediscoveries, amlodipine, perindopril, zaleplon, valsartan 25-30    median1 40    mestranol 50
    median2 60    albuterol 95    deco_hop, scaffold_hop 195    sitagliptin 205    fexofenadine 225    ranolazine 260
    osimertinib 320    qed 815

Targets are read once in a process. A score can be 0 for nearly all molecules (valsartan_smarts).
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rdkit import Chem, DataStructs
from rdkit.Chem import GraphDescriptors, rdFingerprintGenerator, rdMolDescriptors

from gflownet.rewards.chemistry import Measure, Term, logp, qed, same, tpsa
from gflownet.rewards.pharmacophores import PharmacophoreSimilarity, pharmacophores

_MORGAN = rdFingerprintGenerator.GetMorganGenerator
FINGERPRINTS = {
    "ECFP4": _MORGAN(radius=2),
    "ECFP6": _MORGAN(radius=3),
    "FCFP4": _MORGAN(radius=2, atomInvariantsGenerator=rdFingerprintGenerator.GetMorganFeatureAtomInvGen()),
    "AP": rdFingerprintGenerator.GetAtomPairGenerator(maxDistance=10),
}
ELEMENT = re.compile(r"([A-Z][a-z]?)(\d*)")

ALBUTEROL = "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1"
MESTRANOL = "COc1ccc2[C@H]3CC[C@@]4(C)[C@@H](CC[C@@]4(O)C#C)[C@@H]3CCc2c1"
CELECOXIB = "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F"
TROGLITAZONE = "Cc1c(C)c2OC(C)(COc3ccc(CC4SC(=O)NC4=O)cc3)CCc2c(C)c1O"
THIOTHIXENE = "CN(C)S(=O)(=O)c1ccc2Sc3ccccc3C(=CCCN4CCN(C)CC4)c2c1"
CAMPHOR = "CC1(C)C2CCC1(C)C(=O)C2"
MENTHOL = "CC(C)C1CCC(C)CC1O"
TADALAFIL = "O=C1N(CC(N2C1CC3=C(C2C4=CC5=C(OCO5)C=C4)NC6=C3C=CC=C6)=O)C"
SILDENAFIL = "CCCC1=NN(C2=C1N=C(NC2=O)C3=C(C=CC(=C3)S(=O)(=O)N4CCN(CC4)C)OCC)C"
OSIMERTINIB = "COc1cc(N(C)CCN(C)C)c(NC(=O)C=C)cc1Nc2nccc(n2)c3cn(C)c4ccccc34"
FEXOFENADINE = "CC(C)(C(=O)O)c1ccc(cc1)C(O)CCCN2CCC(CC2)C(O)(c3ccccc3)c4ccccc4"
RANOLAZINE = "COc1ccccc1OCC(O)CN2CCN(CC(=O)Nc3c(C)cccc3C)CC2"
PERINDOPRIL = "O=C(OCC)C(NC(C(=O)N1C(C(=O)O)CC2CCCCC12)C)CCC"
AMLODIPINE = r"Clc1ccccc1C2C(=C(/N/C(=C2/C(=O)OCC)COCCN)C)\C(=O)OC"
ZALEPLON = "O=C(C)N(CC)C1=CC=CC(C2=CC=NC3=C(C=NN23)C#N)=C1"
SITAGLIPTIN = "Fc1cc(c(F)cc1F)CC(N)CC(=O)N3Cc2nnc(n2CC3)C(F)(F)F"
HOP = "CCCOc1cc2ncnc(Nc3ccc4ncsc4c3)c2cc1S(=O)(=O)C(C)(C)C"
VALSARTAN_PART = "CN(C=O)Cc1ccc(c2ccccc2)cc1"
QUINAZOLINE = "[#7]-c1n[c;h1]nc2[c;h1]c(-[#8])[c;h0][c;h1]c12"
SULFONE = "CS([#6])(=O)=O"
BENZOTHIAZOLE = "[#7]-c1ccc2ncsc2c1"
CHAIN = "[#6]-[#6]-[#6]-[#8]-[#6]~[#6]~[#6]~[#6]~[#6]-[#7]-c1ccc2ncsc2c1"


@dataclass(frozen=True)
class PMOTask:
    """The score of a molecule by a task; its targets are read when it is first called in a process."""

    name: str

    def __call__(self, mol: Chem.Mol) -> float:
        return _scorer(self.name)(mol)


def task(name: str) -> PMOTask:
    """The task of a name in `TASKS`.

    Raises:
        ValueError: there is none; the message has close names.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, 3, 0.4) or TASKS
        raise ValueError(f"there is no PMO task {name!r}; close: {', '.join(close)}")
    return PMOTask(name)


def pmo_term(name: str, inside: str | None) -> Term:
    """The term `pmo:NAME` of a reward; `inside` must be None, as it takes no brackets.

    Raises:
        ValueError: there is no such task, or there are brackets.
    """
    measure = task(name)
    if inside is not None:
        raise ValueError(f"pmo:{name} takes no brackets, got [{inside}]")
    return Term(f"pmo:{name}", f"pmo:{name}", measure, same)


# -- scores of numbers, by the definitions above


def clip(most: float, of: Measure) -> Measure:
    return lambda mol: min(of(mol) / most, 1.0)


def gauss(mean: float, width: float, of: Measure) -> Measure:
    return lambda mol: _gauss(of(mol), mean, width)


def below(mean: float, width: float, of: Measure) -> Measure:
    return lambda mol: _gauss(max(of(mol), mean), mean, width)


def above(mean: float, width: float, of: Measure) -> Measure:
    return lambda mol: _gauss(min(of(mol), mean), mean, width)


def _gauss(x: float, mean: float, width: float) -> float:
    return math.exp(-0.5 * ((x - mean) / width) ** 2)


# -- means


def gmean(*factors: Measure) -> Measure:
    """The geometric mean. Factors after one that is 0 are not computed: put the cheap ones first."""

    def score(mol: Chem.Mol) -> float:
        total = 0.0
        for factor in factors:
            value = factor(mol)
            if value <= 0:
                return 0.0
            total += math.log(value)
        return math.exp(total / len(factors))

    return score


def mean(*summands: Measure) -> Measure:
    return lambda mol: math.fsum(summand(mol) for summand in summands) / len(summands)


# -- quantities


def similarity(fingerprint: str, smiles: str) -> Measure:
    if fingerprint == "PHCO":
        return PharmacophoreSimilarity(pharmacophores(Chem.MolFromSmiles(smiles)))
    count = FINGERPRINTS[fingerprint].GetSparseCountFingerprint
    target = count(Chem.MolFromSmiles(smiles))
    return lambda mol: float(DataStructs.TanimotoSimilarity(target, count(mol)))


def contains(smarts: str) -> Measure:
    pattern = Chem.MolFromSmarts(smarts)
    return lambda mol: float(mol.HasSubstructMatch(pattern))


def lacks(smarts: str) -> Measure:
    pattern = Chem.MolFromSmarts(smarts)
    return lambda mol: float(not mol.HasSubstructMatch(pattern))


def isomer(formula: str) -> Measure:
    wanted = elements(formula)
    atoms = sum(wanted.values())

    def score(mol: Chem.Mol) -> float:
        found = elements(rdMolDescriptors.CalcMolFormula(mol))
        squares = sum((found.get(symbol, 0) - n) ** 2 for symbol, n in wanted.items()) + (sum(found.values()) - atoms) ** 2 / 4
        return math.exp(-0.5 * squares / (len(wanted) + 1))

    return score


def elements(formula: str) -> dict[str, int]:
    """How many atoms of each element a formula has, hydrogens included; charges are left out."""
    return {symbol: int(n or 1) for symbol, n in ELEMENT.findall(formula)}


bertz: Measure = GraphDescriptors.BertzCT  # untyped in RDKit


def rings(mol: Chem.Mol) -> float:
    return float(rdMolDescriptors.CalcNumRings(mol))


def aromatic_rings(mol: Chem.Mol) -> float:
    return float(rdMolDescriptors.CalcNumAromaticRings(mol))


def fluorines(mol: Chem.Mol) -> float:
    return float(sum(atom.GetAtomicNum() == 9 for atom in mol.GetAtoms()))


def like(width: float, of: Measure, smiles: str) -> Measure:
    """gauss around the value of a reference molecule."""
    return gauss(of(Chem.MolFromSmiles(smiles)), width, of)


# -- tasks


TASKS: Mapping[str, Callable[[], Measure]] = {
    "albuterol_similarity": lambda: clip(0.75, similarity("FCFP4", ALBUTEROL)),
    "amlodipine_mpo": lambda: gmean(gauss(3, 0.5, rings), similarity("ECFP4", AMLODIPINE)),
    "celecoxib_rediscovery": lambda: similarity("ECFP4", CELECOXIB),
    "deco_hop": lambda: mean(clip(0.85, similarity("PHCO", HOP)), lacks(SULFONE), lacks(BENZOTHIAZOLE), contains(QUINAZOLINE)),
    "fexofenadine_mpo": lambda: gmean(above(90, 10, tpsa), below(4, 1, logp), clip(0.8, similarity("AP", FEXOFENADINE))),
    "isomers_c7h8n2o2": lambda: isomer("C7H8N2O2"),
    "isomers_c9h10n2o2pf2cl": lambda: isomer("C9H10N2O2PF2Cl"),
    "median1": lambda: gmean(similarity("ECFP4", CAMPHOR), similarity("ECFP4", MENTHOL)),
    "median2": lambda: gmean(similarity("ECFP6", TADALAFIL), similarity("ECFP6", SILDENAFIL)),
    "mestranol_similarity": lambda: clip(0.75, similarity("AP", MESTRANOL)),
    "osimertinib_mpo": lambda: gmean(
        above(100, 10, tpsa),
        below(1, 1, logp),
        clip(0.8, similarity("FCFP4", OSIMERTINIB)),
        below(0.85, 0.1, similarity("ECFP6", OSIMERTINIB)),
    ),
    "perindopril_mpo": lambda: gmean(gauss(2, 0.5, aromatic_rings), similarity("ECFP4", PERINDOPRIL)),
    "qed": lambda: qed,
    "ranolazine_mpo": lambda: gmean(
        gauss(1, 1, fluorines), above(95, 20, tpsa), above(7, 1, logp), clip(0.7, similarity("AP", RANOLAZINE))
    ),
    "scaffold_hop": lambda: mean(clip(0.75, similarity("PHCO", HOP)), contains(CHAIN), lacks(QUINAZOLINE)),
    "sitagliptin_mpo": lambda: gmean(
        isomer("C16H15F6N5O"),
        like(5, tpsa, SITAGLIPTIN),
        like(0.2, logp, SITAGLIPTIN),
        gauss(0, 0.1, similarity("ECFP4", SITAGLIPTIN)),
    ),
    "thiothixene_rediscovery": lambda: similarity("ECFP4", THIOTHIXENE),
    "troglitazone_rediscovery": lambda: similarity("ECFP4", TROGLITAZONE),
    "valsartan_smarts": lambda: gmean(
        contains(VALSARTAN_PART), like(5, tpsa, SITAGLIPTIN), like(0.2, logp, SITAGLIPTIN), like(30, bertz, SITAGLIPTIN)
    ),
    "zaleplon_mpo": lambda: gmean(similarity("ECFP4", ZALEPLON), isomer("C19H17N3O2")),
}
"""Name -> makes the score; it reads the targets."""


@functools.cache
def _scorer(name: str) -> Measure:
    return TASKS[name]()
