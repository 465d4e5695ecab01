"""How good and how different molecules are. Every number names its fingerprint, its N and what it does with duplicates.

N molecules are drawn, as SMILES. RDKit sanitises the valid ones. Two molecules are one where their canonical isomeric SMILES
are the same string: charges, isotopes and stereo marks count, tautomers are different molecules. A duplicate counts once,
where it came first, with the highest reward that any of its copies had. All but validity, uniqueness and the mean reward look
at unique molecules only.

similarity          Tanimoto, of the fingerprints that fingerprints.py names; morgan2-2048 unless another is asked for
internal diversity  1 - mean similarity over pairs i < j. MOSES counts i = j too, which takes (1 - mean) / M off it
modes               for x in order: x is a new mode if r(x) > threshold and its similarity to every mode before is < 0.7
                    (Bengio et al. 2021). The number depends on the order: of visit, or of falling reward
circles             #Circles (Xie et al., ICLR 2023): how many molecules can be chosen with all distances 1 - similarity > t.
                    Chosen greedily in the order given, which is a lower bound of the maximum
scaffolds           different Bemis-Murcko scaffolds; molecules without a ring have none
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from gflownet.molecules.fingerprints import ModeCounter, circles, fingerprints, mean_similarity, parsed
from gflownet.rewards.chemistry import Floats

Places = NDArray[np.int64]
"""Places of molecules in a collection."""

_scaffold: Callable[[Chem.Mol], Chem.Mol] = MurckoScaffold.GetScaffoldForMol  # its own file carries no types
TOP = (10, 100, 1000)


class Figure(NamedTuple):
    """A number and the sentence that says what it is."""

    value: float
    meaning: str


# -- what was drawn


class Drawn(NamedTuple):
    """N = `drawn` SMILES, of which `valid` are molecules, U different ones, in order of first appearance.

    mean_reward  of the valid ones, duplicates counted; NaN where none was given
    smiles       U canonical isomeric SMILES
    reward       [U] the highest of its copies; NaN where none was given
    """

    drawn: int
    valid: int
    mean_reward: float
    smiles: tuple[str, ...]
    reward: Floats

    @property
    def validity(self) -> float:
        """valid / N; NaN for N = 0."""
        return self.valid / self.drawn if self.drawn else np.nan

    @property
    def uniqueness(self) -> float:
        """U / valid: it falls as N grows, so compare at the same N. NaN where nothing is valid."""
        return len(self.smiles) / self.valid if self.valid else np.nan

    @property
    def by_reward(self) -> Places:
        """The U molecules by falling reward, the first seen first among equals; without a reward last."""
        return np.argsort(-self.reward, kind="stable")

    def above(self, threshold: float) -> Places:
        """Those with r > threshold, in order of visit."""
        return np.flatnonzero(self.reward > threshold)

    def at(self, places: Places) -> list[str]:
        return [self.smiles[i] for i in places]


def collect(smiles: Sequence[str], reward: Sequence[float] | Floats | None = None) -> Drawn:
    """N SMILES as they were drawn, valid or not, and their rewards [N].

    Raises ValueError where there is not one reward for each; rewards of what is not valid are not looked at.
    """
    rewards = np.full(len(smiles), np.nan) if reward is None else np.asarray(reward, dtype=np.float64)
    if rewards.shape != (len(smiles),):
        raise ValueError(f"got rewards of shape {list(rewards.shape)}, expected one for each of {len(smiles)} molecules")
    with rdBase.BlockLogs():
        read = [Chem.MolFromSmiles(text) for text in smiles]
        canonical = ["" if mol is None or not mol.GetNumAtoms() else Chem.MolToSmiles(mol) for mol in read]
    return unique(canonical, rewards)[0]


def unique(canonical: Sequence[str], reward: Floats) -> tuple[Drawn, list[int]]:
    """Group molecules by their canonical SMILES.

    Args:
        canonical: N canonical SMILES, "" for what is no valid molecule.
        reward: [N]; of a molecule that comes more than once the highest counts.

    Returns:
        The U unique molecules in order of appearance, and the place where each appears first.
    """
    place: dict[str, int] = {}
    best: list[float] = []
    first: list[int] = []
    valid, total = 0, 0.0
    for at, (text, r) in enumerate(zip(canonical, reward.tolist(), strict=True)):
        if not text:
            continue
        valid, total = valid + 1, total + r
        i = place.setdefault(text, len(best))
        if i == len(best):
            best.append(r)
            first.append(at)
        else:
            best[i] = float(np.fmax(best[i], r))
    drawn = Drawn(len(canonical), valid, total / valid if valid else np.nan, tuple(place), np.array(best, dtype=np.float64))
    return drawn, first


def top_mean(drawn: Drawn, k: int) -> float:
    """Mean reward of the k best of the U unique molecules; NaN where there are fewer than k."""
    best = drawn.reward[drawn.by_reward[:k]]
    return float(best.mean()) if len(best) == k else np.nan


def novelty(drawn: Drawn, known: Collection[str]) -> float:
    """Share of the U unique molecules that are not among `known` SMILES, both canonical; NaN for U = 0."""
    old = set(collect(list(known)).smiles)
    return float(np.mean([s not in old for s in drawn.smiles])) if drawn.smiles else np.nan


def scaffolds(molecules: Sequence[str | Chem.Mol]) -> int:
    """Different Bemis-Murcko scaffolds (rings and what links them, with their atom and bond types, without stereo marks)."""
    found = {Chem.MolToSmiles(_scaffold(parsed(m)), False) for m in molecules}
    return len(found - {""})


# -- modes


def modes(
    drawn: Drawn,
    threshold: float,
    order: Literal["visit", "reward"] = "visit",
    similarity: float = 0.7,
    kind: str = "morgan2-2048",
) -> Places:
    """Which of the U molecules are modes: r > threshold and similarity < `similarity` to every mode before, in that order."""
    places = drawn.above(threshold)
    if order == "reward":
        places = places[np.argsort(-drawn.reward[places], kind="stable")]
    _, new = ModeCounter.begin(similarity).add(fingerprints(drawn.at(places), kind))
    return places[new]


# -- all of it


def summary(
    drawn: Drawn, threshold: float, kind: str = "morgan2-2048", known: Collection[str] | None = None, most: int = 20_000
) -> dict[str, Figure]:
    """Every metric by a name for files, with the sentence that says what it is.

    Modes, circles and scaffolds look at the `most` best molecules with r > threshold, which the sentence says.
    """
    N, U = drawn.drawn, len(drawn.smiles)
    once = f"{U} unique molecules (canonical isomeric SMILES, duplicates count once)"
    figures = {
        "validity": Figure(drawn.validity, f"share of {N} drawn SMILES that RDKit sanitises, duplicates counted"),
        "uniqueness": Figure(drawn.uniqueness, f"different canonical isomeric SMILES / {drawn.valid} valid of {N} drawn"),
        "mean_reward": Figure(drawn.mean_reward, f"mean over {drawn.valid} valid of {N} drawn, duplicates counted"),
        "mean_reward_unique": Figure(float(np.mean(drawn.reward)) if U else np.nan, f"mean over {once}"),
    }
    if known is not None:
        figures["novelty"] = Figure(novelty(drawn, known), f"share of {once} not among {len(known)} known SMILES")
    best = fingerprints(drawn.at(drawn.by_reward[: max(TOP)]), kind)
    for k in TOP:
        figures[f"top_{k}_reward"] = Figure(top_mean(drawn, k), f"mean reward of the {k} best of {once}")
        alike = mean_similarity(best[:k]) if k <= U else np.nan
        pairs = f"Tanimoto over pairs i < j, {kind}, of the {k} best of {once}"
        figures[f"top_{k}_similarity_{kind}"] = Figure(alike, f"mean {pairs}")
        figures[f"top_{k}_diversity_{kind}"] = Figure(1 - alike, f"internal diversity, 1 - mean {pairs}")
    ordered = drawn.by_reward
    high = ordered[drawn.reward[ordered] > threshold][:most]
    among = f"among the {len(high)} best with reward > {threshold:g} (at most {most}) of {once}"
    bits = fingerprints(drawn.at(high), kind)
    counter, _ = ModeCounter.begin().add(bits)
    greedy = f"{kind}, greedy by falling reward, {among}"
    figures[f"modes_{kind}"] = Figure(counter.modes, f"molecules with Tanimoto < 0.7 to every mode before, {greedy}")
    figures[f"circles_{kind}"] = Figure(circles(bits), f"#Circles at distance 0.75, a lower bound, {greedy}")
    figures["scaffolds"] = Figure(scaffolds(drawn.at(high)), f"different Bemis-Murcko scaffolds with a ring {among}")
    return figures
