"""`TreeReward`: the reward function of `envs.molecules.BlockTrees`, from a molecule reward and tensor scores.

obs [M, K, 4] -> RDKit molecules (only those not in the cache) -> terms;  sEH proxy on the atom graph -> p/8
log R = β log clip(r, r_min, r_max)

With a ledger, molecules are known by their canonical SMILES: trees that are one molecule have one reward and count once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rdkit import Chem, rdBase
from torch import Tensor

from envs.core import RewardFault
from envs.molecules.bridge import Builder
from envs.molecules.fragments import Fragment
from gflownet.rewards.cached import Molecules
from gflownet.rewards.calls import BudgetSpent, RewardCalls
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.combine import MoleculeReward
from gflownet.rewards.expression import Leaf
from gflownet.rewards.ledger import Ledger
from gflownet.rewards.lru import LRUCache

NAMES = 100_000  # trees whose SMILES are remembered
Score = Callable[[Tensor], Tensor]


class TreeReward:
    """log R of finished trees; RDKit terms are computed once for each tree.

    Args:
        fragments: the vocabulary.
        reward: the molecule reward.
        index: obs [M, K, 4] -> unique keys [M], e.g. `BlockTrees.index`.
        scores: functions obs [M, K, 4] -> [M] for the outside names of the reward.

    Attributes:
        ledger: notes each molecule that is scored, and limits their number; None: nothing is noted. See `note`.
    """

    def __init__(
        self,
        fragments: Sequence[Fragment],
        reward: MoleculeReward,
        index: Callable[[Tensor], Tensor],
        scores: Mapping[str, Score] | None = None,
    ) -> None:
        self.fragments, self.reward, self.scores = tuple(fragments), reward, dict(scores or {})
        self._builder, self._index = Builder(fragments), index
        self._names: LRUCache[str] = LRUCache(NAMES)
        self.ledger: Ledger | None = None
        self._started: Tensor | None = None

    def __call__(self, obs: Tensor) -> Tensor:
        """log R of trees obs [M, K, 4], [M] float64. Molecules that failed have the reward r_min.

        Raises:
            RewardFault: a term is not finite; the message names molecule and term.
            BudgetSpent: a molecule is not in the ledger, and the budget allows no further one. Those before it were scored.
        """
        root = self.reward.expression.root
        if self.ledger is None and isinstance(root, Leaf) and root.label in self.scores:  # nothing is read back from the device
            return self.tempered(self.calls(self.scores[root.label], obs))
        reward = np.nan_to_num(self._numbers(obs)["reward"], nan=self.reward.tempering.r_min)
        return torch.from_numpy(np.array(self.reward.tempering(reward))).to(obs.device)

    def note(self) -> Ledger:
        """Note from now on each molecule that is scored. The ledger, without a budget."""
        self.ledger = Ledger(self.reward.columns)
        return self.ledger

    @property
    def elsewhere(self) -> bool:
        """Whether an oracle scores molecules in other processes."""
        return self.ledger is not None and self.reward.quantities.elsewhere

    def start(self, obs: Tensor) -> None:
        """Start to score trees obs [M, K, 4] whose values are needed later, where an oracle does that; return at once."""
        if self.ledger is not None:
            self._started = obs
            self.reward.quantities.submit(self.ledger.reserve(self._canonical(obs)))

    def finish(self) -> None:
        """Score the trees that were started last, as far as the budget goes."""
        if self._started is not None:
            with contextlib.suppress(BudgetSpent):
                self._numbers(self._started)

    def parts(
        self, obs: Tensor, smiles: Sequence[str] | None = None, mols: Sequence[Chem.Mol] | None = None
    ) -> dict[str, Tensor]:
        """Compute the reward before tempering ("reward", first) and its terms.

        Args:
            obs: trees [M, K, 4].
            smiles: what `smiles` gives for them, where it is known.
            mols: what `molecules` gives for them, where they are built.

        Returns:
            [M] float64 each; NaN for the reward of molecules that failed.
        """
        return {name: torch.from_numpy(np.array(x)) for name, x in self._numbers(obs, smiles, mols).items()}

    def tempered(self, reward: Tensor) -> Tensor:
        """log R of rewards [M]."""
        return self.reward.tempering(reward)

    def untempered(self, log_reward: Tensor) -> Tensor:
        """The reward, clipped to [r_min, r_max], of a log R."""
        return self.reward.tempering.inverse(log_reward)

    def molecules(self, obs: Tensor) -> list[Chem.Mol]:
        """RDKit molecules of trees obs [M, K, 4]."""
        return self._builder.molecules(obs)

    def smiles(self, obs: Tensor) -> list[str]:
        """Canonical isomeric SMILES of trees obs [M, K, 4]."""
        return [Chem.MolToSmiles(mol) for mol in self.molecules(obs)]

    def of_smiles(self, smiles: Sequence[str]) -> dict[str, Floats]:
        """The same for different molecules by their canonical SMILES, where the reward needs no tree.

        Raises:
            ValueError: it needs trees.
            RewardFault, BudgetSpent: as for trees.
        """
        if self.scores:
            raise ValueError(f"{', '.join(self.scores)} is a score of trees")
        with rdBase.BlockLogs():
            mols = [Chem.MolFromSmiles(one) for one in smiles]
        return self._noted(smiles, lambda places: [mols[i] for i in places], lambda places: None)

    @property
    def calls(self) -> RewardCalls:
        """Counts the trees that are scored."""
        return self.reward.quantities.calls

    def scored(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the ledger, or the cache: keys [M], the least recently used first, and quantities [M, Q]."""
        if self.ledger is not None:
            return self.ledger.tensors()
        keys, values = self.reward.quantities.kept()
        trees = [i for i, key in enumerate(keys) if isinstance(key, int)]  # molecules of `of_smiles` have no tree
        return {"key": torch.tensor([keys[i] for i in trees], dtype=torch.int64), "value": torch.from_numpy(values[trees])}

    def restore(self, scored: Mapping[str, Tensor]) -> None:
        """Put back what `scored` gave.

        Raises:
            ValueError: it does not fit this reward.
        """
        if self.ledger is not None:
            self.ledger.restore(scored)
            return
        key, value = scored["key"], scored["value"]
        if key.dtype != torch.int64 or key.dim() != 1 or value.dtype != torch.float64:
            raise ValueError(f"got keys {key.dtype} {list(key.shape)} and values {value.dtype}, expected int64 and float64")
        self.reward.quantities.keep(key.tolist(), value.numpy())

    def _canonical(self, obs: Tensor) -> list[str]:
        return self._names(self._index(obs).tolist(), lambda places: self.smiles(obs[places]))

    def _numbers(
        self, obs: Tensor, smiles: Sequence[str] | None = None, mols: Sequence[Chem.Mol] | None = None
    ) -> Mapping[str, Any]:
        if self.ledger is None:

            def built(places: list[int]) -> list[Chem.Mol]:
                return self.molecules(obs[places]) if mols is None else [mols[i] for i in places]

            return self._computed(self._index(obs).tolist(), built, obs)
        smiles = self._canonical(obs) if smiles is None else smiles

        def molecules(places: list[int]) -> list[Chem.Mol]:
            """As their SMILES are read, whatever tree they are of; RDKit cannot read all that it writes."""
            with rdBase.BlockLogs():
                return [Chem.MolFromSmiles(smiles[i]) or self.molecules(obs[i : i + 1])[0] for i in places]

        return self._noted(smiles, molecules, lambda places: obs[places])

    def _noted(
        self, smiles: Sequence[str], molecules: Molecules, trees: Callable[[list[int]], Tensor | None]
    ) -> dict[str, Floats]:
        """The numbers of molecules; those that are new are scored and noted in the ledger."""
        ledger = Ledger(self.reward.columns) if self.ledger is None else self.ledger  # an empty one is false
        ledger.reserve(smiles)
        new = ledger.pending(smiles)
        if new:
            first = {one: i for i, one in reversed(list(enumerate(smiles)))}
            at = [first[one] for one in new]
            ledger.add(new, self._computed(new, lambda places: molecules([at[i] for i in places]), trees(at)))
        self.calls.cache_hits += len(smiles) - len(new)
        return ledger.rows(smiles)

    def _computed(self, keys: Sequence[Any], molecules: Molecules, obs: Tensor | None) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, score in self.scores.items():  # counted here where no quantity is cached
            assert obs is not None
            n = 0 if given or self.reward.needs_molecules else None
            given[name] = self.calls(score, obs, n).double().cpu().numpy()
        try:
            return self.reward.parts(keys, molecules, given)
        except (ValueError, RuntimeError) as error:  # the latter when worker processes die
            raise RewardFault(" ".join(str(error).split())) from error
