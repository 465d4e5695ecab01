"""Metrics of reward and diversity of molecules. Each states its fingerprint, its N and the treatment of duplicates.

N molecules are drawn, as SMILES. RDKit sanitises the valid ones. Two molecules are equal if their canonical isomeric SMILES
are: charges, isotopes and stereo marks count, tautomers are different molecules. Duplicates count once, at the first
occurrence, with the highest reward of all copies. All metrics but validity, uniqueness and the mean reward are over unique
molecules.

similarity          Tanimoto, of the fingerprints in fingerprints.py; morgan2-2048 by default
internal diversity  1 - mean similarity over pairs i < j. MOSES includes i = j, which lowers it by (1 - mean) / M
modes               for x in order: x is a new mode if r(x) > threshold and its similarity to every mode before is < 0.7
                    (Bengio et al. 2021). It depends on the order: of visit, or of decreasing reward
circles             #Circles (Xie et al., ICLR 2023): the most molecules with all distances 1 - similarity > t. Greedy
                    selection in the given order gives a lower bound
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
"""Indices of molecules in a collection."""

_scaffold: Callable[[Chem.Mol], Chem.Mol] = MurckoScaffold.GetScaffoldForMol  # untyped in RDKit
TOP = (10, 100, 1000)


class Figure(NamedTuple):
    """A value and a sentence that describes it."""

    value: float
    meaning: str


# -- unique molecules


class Drawn(NamedTuple):
    """N = `drawn` SMILES, of which `valid` are molecules, U different ones, in order of first appearance.

    mean_reward  of the valid ones, duplicates counted; NaN without rewards
    smiles       U canonical isomeric SMILES
    reward       [U] the highest of all copies; NaN without rewards
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
        """U / valid; NaN if none is valid. It decreases with N, so compare at equal N."""
        return len(self.smiles) / self.valid if self.valid else np.nan

    @property
    def by_reward(self) -> Places:
        """Indices of the U molecules by decreasing reward, ties in order of appearance, NaN last."""
        return np.argsort(-self.reward, kind="stable")

    def above(self, threshold: float) -> Places:
        """Indices of the molecules with r > threshold, in order of appearance."""
        return np.flatnonzero(self.reward > threshold)

    def at(self, places: Places) -> list[str]:
        """The SMILES at these indices."""
        return [self.smiles[i] for i in places]


def collect(smiles: Sequence[str], reward: Sequence[float] | Floats | None = None) -> Drawn:
    """Collect the unique molecules of a sample.

    Args:
        smiles: N SMILES, valid or not.
        reward: [N]; those of invalid SMILES are ignored.

    Raises:
        ValueError: there is not one reward for each SMILES.
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
        canonical: N canonical SMILES, "" for an invalid one.
        reward: [N]; the highest of all copies counts.

    Returns:
        The U unique molecules in order of appearance, and the index of the first occurrence of each.
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
    """Mean reward of the k best of the U unique molecules; NaN if U < k."""
    best = drawn.reward[drawn.by_reward[:k]]
    return float(best.mean()) if len(best) == k else np.nan


def novelty(drawn: Drawn, known: Collection[str]) -> float:
    """Fraction of the U unique molecules that are not among the SMILES `known`, compared in canonical form; NaN for U = 0."""
    old = set(collect(list(known)).smiles)
    return float(np.mean([s not in old for s in drawn.smiles])) if drawn.smiles else np.nan


def scaffolds(molecules: Sequence[str | Chem.Mol]) -> int:
    """Number of different Bemis-Murcko scaffolds: rings and linkers with atom and bond types, without stereo marks."""
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
    """Find the modes among the U unique molecules: r > threshold and similarity < `similarity` to every mode before.

    Args:
        drawn: the molecules.
        threshold: of the reward.
        order: "visit", in order of appearance, or "reward", by decreasing reward.
        similarity: Tanimoto threshold.
        kind: the fingerprint.

    Returns:
        Indices of the modes among the U molecules.
    """
    places = drawn.above(threshold)
    if order == "reward":
        places = places[np.argsort(-drawn.reward[places], kind="stable")]
    _, new = ModeCounter.begin(similarity).add(fingerprints(drawn.at(places), kind))
    return places[new]


# -- summary


def summary(
    drawn: Drawn, threshold: float, kind: str = "morgan2-2048", known: Collection[str] | None = None, most: int = 20_000
) -> dict[str, Figure]:
    """Compute all metrics, by name, each with a sentence that describes it.

    Args:
        drawn: the molecules.
        threshold: reward threshold of modes, circles and scaffolds.
        kind: the fingerprint.
        known: SMILES for novelty; None: no novelty.
        most: modes, circles and scaffolds are over this many best molecules above the threshold.
    """
    N, U = drawn.drawn, len(drawn.smiles)
    once = f"{U} unique molecules (canonical isomeric SMILES, duplicates count once)"
    figures = {
        "validity": Figure(drawn.validity, f"fraction of {N} drawn SMILES that RDKit sanitises, duplicates counted"),
        "uniqueness": Figure(drawn.uniqueness, f"different canonical isomeric SMILES / {drawn.valid} valid of {N} drawn"),
        "mean_reward": Figure(drawn.mean_reward, f"mean over {drawn.valid} valid of {N} drawn, duplicates counted"),
        "mean_reward_unique": Figure(float(np.mean(drawn.reward)) if U else np.nan, f"mean over {once}"),
    }
    if known is not None:
        figures["novelty"] = Figure(novelty(drawn, known), f"fraction of {once} not among {len(known)} known SMILES")
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
    greedy = f"{kind}, greedy by decreasing reward, {among}"
    figures[f"modes_{kind}"] = Figure(counter.modes, f"molecules with Tanimoto < 0.7 to every mode before, {greedy}")
    figures[f"circles_{kind}"] = Figure(circles(bits), f"#Circles at distance 0.75, a lower bound, {greedy}")
    figures["scaffolds"] = Figure(scaffolds(drawn.at(high)), f"different Bemis-Murcko scaffolds with a ring {among}")
    return figures
