"""Metrics of molecules: of the best that were visited (the top-K buffer), and of fresh samples of the policy.

    top_k   top-k rewards; modes, circles and scaffolds above a threshold; how different the best are
    fresh     N = 128 of each seed, without exploration: valid, unique, mean reward, how different, a histogram of rewards

A molecule is its canonical isomeric SMILES: of several trees that are one molecule the first visited stands for all, with the
highest of their rewards. Rewards are those before tempering. Results of RDKit are cached for each tree (about 1 ms each).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch import Tensor

from experiments.gfn.metrics import TESTS, fresh, has_policy
from experiments.molecules.pictures import draw
from gflownet.flows.states import distinct
from gflownet.molecules.fingerprints import BYTES, Bits, ModeCounter, circles, fingerprints, internal_diversity
from gflownet.molecules.metrics import TOP, Drawn, Places, top_mean, unique
from gflownet.molecules.top_k import TopK
from gflownet.problem import DagProblem, Method
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.lru import LRUCache
from gflownet.rewards.trees import TreeReward

Row = dict[str, Any]
_scaffold: Any = MurckoScaffold.GetScaffoldForMol  # its own file carries no types
T = TypeVar("T")

THRESHOLD = 0.8  # default
FRESH = 128  # objects of each seed
SHOWN = 20  # molecules in a picture
BINS = 30
DIVERSE = 100  # the best molecules, for the diversity
LIKE = "morgan2-2048"
ONCE = "unique by canonical isomeric SMILES"
KEPT = f"the best distinct trees of each seed (--top-k), {ONCE}"
HIGH = f"Among {KEPT}, with reward > --mode-threshold"
EXACT = (
    f"log p_θ(x), exact over all ways to build x, of N <= {TESTS} distinct trees, the largest that uniform actions construct, "
    "or, where evaluations may not call the reward for them, trees in the top-K buffers of all seeds, evenly spaced by reward"
)
OWN = f"N = {FRESH} fresh trees of the policy (fewer with --evaluation-calls)"
DESCRIPTIONS = {
    **{f"mol/top_{k}": f"Mean reward of the {k} best molecules visited, {ONCE}, before tempering." for k in TOP},
    "mol/above": f"{HIGH}: their number, at most --top-k.",
    "mol/modes": f"{HIGH}: those whose Tanimoto similarity ({LIKE}) to every mode before is < 0.7, in order of visit.",
    "mol/circles": f"{HIGH}: #Circles, chosen greedily by falling reward at Tanimoto distance > 0.75 ({LIKE}); a lower bound.",
    "mol/scaffolds": f"{HIGH}: different Bemis-Murcko scaffolds with a ring.",
    "mol/diversity": f"1 - mean Tanimoto similarity ({LIKE}) over pairs i < j of the {DIVERSE} best molecules visited, {ONCE}.",
    "mol/valid": f"Fraction of N = {FRESH} fresh trees of the policy that RDKit sanitises, duplicates counted.",
    "mol/unique": f"Different canonical isomeric SMILES / valid ones, of N = {FRESH} fresh trees of the policy.",
    "mol/reward": f"Mean reward before tempering of {OWN}, duplicates counted.",
    "mol/log_reward": f"Mean log R of {OWN}, duplicates counted.",
    "mol/fresh_diversity": f"1 - mean Tanimoto similarity ({LIKE}) over pairs i < j of N = {FRESH} fresh trees, {ONCE}.",
    "hist/reward": f"Rewards before tempering of {OWN}, duplicates counted.",
    "eval/correlation": f"Pearson correlation of {EXACT}, with log R(x).",
    "eval/rank_correlation": f"Spearman correlation of {EXACT}, with log R(x).",
    "best/molecules": f"The {SHOWN} best molecules that any seed has visited, {ONCE}, with their rewards.",
}


class Described(NamedTuple):
    """RDKit's results for a tree. smiles: canonical, "" where it is no valid molecule; bits [256] its fingerprint."""

    smiles: str
    bits: Bits


class Molecules:
    """Metrics of an environment whose reward is a TreeReward. It remembers what RDKit said, which changes no number.

    threshold  a molecule with a higher reward before tempering may be a mode
    size       trees that are remembered
    """

    descriptions = DESCRIPTIONS

    def __init__(self, env: Any, threshold: float, size: int = 50_000) -> None:
        self._env, self._threshold = env, threshold
        self._reward: TreeReward = env.reward
        self._seen: LRUCache[Described] = LRUCache(size)
        self._scaffolds: LRUCache[str] = LRUCache(size)

    def row(self, top_k: TopK, method: Method, state: Any, problem: DagProblem, t: int, scored: int | None = None) -> Row:
        """Both: tag -> [S], NaN where there are too few, and a histogram. Methods without a policy have no fresh ones.

        scored: how many fresh ones of each seed the reward may be called for; None: all.
        """
        row = self.of_top_k(top_k)
        if has_policy(method, state, problem):
            row |= self.of_fresh(*fresh(method, state, problem, FRESH, t, scored))
        return row

    def picture(self, top_k: TopK) -> bytes | None:
        """PNG of the best molecules of all seeds with their rewards; None where there are none yet."""
        best = self.best(top_k)
        return draw([smiles for smiles, _ in best], [f"{reward:.4g}" for _, reward in best]) if best else None

    def scored(self, top_k: TopK, n: int = TESTS) -> tuple[Tensor, Tensor]:
        """At most n of the different trees in the buffers of all seeds, evenly spaced by reward: [m, K, 4], log R [m]."""
        there = top_k.there
        obs, log_reward = top_k.obs[there].long(), top_k.log_reward[there]
        first = distinct(top_k.key[there], None, 1, None).first
        order = first[log_reward[first].argsort(descending=True, stable=True)]
        at = order[torch.linspace(0, max(0, len(order) - 1), min(n, len(order)), device=order.device).long()]
        return obs[at], log_reward[at]

    # -- of the top_k

    def of_top_k(self, top_k: TopK) -> Row:
        """tag -> [S], NaN where there are too few."""
        rows = [self._of_best(drawn, bits) for drawn, bits in (self._best(top_k, seed) for seed in range(len(top_k.key)))]
        return {tag: torch.tensor([row[tag] for row in rows], dtype=torch.float64) for tag in rows[0]}

    def best(self, top_k: TopK, n: int = SHOWN) -> list[tuple[str, float]]:
        """SMILES and reward of the n best molecules of all seeds, fewer where there are fewer."""
        rewards: dict[str, float] = {}
        for seed in range(len(top_k.key)):
            drawn, _ = self._best(top_k, seed)
            for i in drawn.by_reward[:n].tolist():
                rewards[drawn.smiles[i]] = max(float(drawn.reward[i]), rewards.get(drawn.smiles[i], -np.inf))
        return sorted(rewards.items(), key=lambda entry: (-entry[1], entry[0]))[:n]

    def _best(self, top_k: TopK, seed: int) -> tuple[Drawn, Bits]:
        """The molecules above the threshold and at least the 1,000 best, in order of visit; with their fingerprints."""
        there = int(top_k.there[seed].sum())
        reward = self._reward.untempered(top_k.log_reward[seed, :there]).cpu().numpy()
        look = max(int((reward > self._threshold).sum()), max(TOP))
        while True:
            some = min(look, there)
            seen = self._look(top_k.obs[seed, :some], top_k.key[seed, :some])
            if some == there or len({one.smiles for one in seen} - {""}) >= max(TOP):
                break
            look *= 2
        order = top_k.visited_at[seed, :some].argsort().tolist()
        return _unique([seen[i] for i in order], reward[order])

    def _of_best(self, drawn: Drawn, bits: Bits) -> dict[str, float]:
        row = {f"mol/top_{k}": top_mean(drawn, k) for k in TOP}
        high = drawn.above(self._threshold)
        by_reward = _among(drawn.by_reward, high)
        best = drawn.by_reward[:DIVERSE]
        row["mol/above"] = len(high)
        row["mol/modes"] = ModeCounter.begin().add(bits[high])[0].modes
        row["mol/circles"] = circles(bits[by_reward])
        row["mol/scaffolds"] = self._count_scaffolds(drawn.at(high))
        row["mol/diversity"] = internal_diversity(bits[best]) if len(best) == DIVERSE else np.nan
        return row

    def _count_scaffolds(self, smiles: list[str]) -> int:
        return len(set(self._scaffolds(smiles, lambda places: [scaffold(smiles[i]) for i in places])) - {""})

    # -- of fresh ones

    def of_fresh(self, objects: Tensor, log_reward: Tensor) -> Row:
        """tag -> [S], and the histogram; of objects [S, N, K, 4], of which the first have log_reward [S, n], n <= N."""
        reward = self._reward.untempered(log_reward)
        found = []
        for some in objects:
            seen = self._look(some, self._env.index(some))
            valid = [one for one in seen if one.smiles]
            drawn, bits = _unique(seen, np.zeros(len(seen)))
            unique = len(drawn.smiles) / len(valid) if valid else np.nan
            found.append((len(valid) / len(seen), unique, internal_diversity(bits)))
        columns = torch.tensor(found, dtype=torch.float64).T
        row: Row = dict(zip(("mol/valid", "mol/unique", "mol/fresh_diversity"), columns, strict=True))
        if not log_reward.shape[1]:
            return row
        return {**row, "mol/reward": reward.mean(1), "mol/log_reward": log_reward.mean(1), "hist/reward": histogram(reward)}

    def _look(self, obs: Tensor, key: Tensor) -> list[Described]:
        rows = obs.long()
        return self._seen(key.tolist(), lambda places: seen(self._reward.molecules(rows[places])))


def seen(molecules: Sequence[Chem.Mol]) -> list[Described]:
    """SMILES are read again, so that they are those of `gflownet.molecules.metrics.collect`."""
    found = []
    with rdBase.BlockLogs():
        for built in molecules:
            mol = Chem.MolFromSmiles(Chem.MolToSmiles(built))
            valid = mol is not None and mol.GetNumAtoms()
            bits = fingerprints([mol], LIKE)[0] if valid else np.zeros(BYTES, np.uint8)
            found.append(Described(Chem.MolToSmiles(mol) if valid else "", bits))
    return found


def scaffold(smiles: str) -> str:
    """As `gflownet.molecules.metrics.scaffolds` counts them: without stereo marks, "" where there is no ring."""
    mol: Chem.Mol = _scaffold(Chem.MolFromSmiles(smiles))
    return Chem.MolToSmiles(mol, False)


def histogram(x: Tensor) -> dict[str, Any]:
    """Of the numbers of each seed [S, N]: edges [BINS + 1] shared by all, counts [S][BINS]."""
    low, high = float(x.min()), float(x.max())
    edges = np.linspace(low, high if high > low else low + 1e-9 * max(1.0, abs(low)), BINS + 1)
    counts = [np.histogram(row, edges)[0].tolist() for row in x.double().cpu().numpy()]
    return {"edges": edges.tolist(), "counts": counts}


def _unique(found: Sequence[Described], reward: Floats) -> tuple[Drawn, Bits]:
    """The unique molecules in this order, each with its highest reward and its fingerprint."""
    drawn, first = unique([one.smiles for one in found], reward)
    bits = [found[i].bits for i in first]
    return drawn, np.stack(bits) if bits else np.zeros((0, BYTES), np.uint8)


def _among(order: Places, some: NDArray[np.int64]) -> Places:
    return order[np.isin(order, some)]
