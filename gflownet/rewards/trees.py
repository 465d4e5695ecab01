"""`TreeReward`: the reward function of `envs.molecules.BlockTrees`, from a molecule reward and tensor scores.

obs [M, K, 4] -> RDKit molecules (only those not in the cache) -> terms;  sEH proxy on the atom graph -> p/8
log R = β log clip(r, r_min, r_max)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from envs.core import RewardFault
from envs.molecules.bridge import Builder
from envs.molecules.fragments import Fragment
from gflownet.rewards.calls import RewardCalls
from gflownet.rewards.combine import MoleculeReward
from gflownet.rewards.expression import Leaf

Score = Callable[[Tensor], Tensor]


class TreeReward:
    """log R of finished trees; RDKit terms are computed once for each tree.

    Args:
        fragments: the vocabulary.
        reward: the molecule reward.
        index: obs [M, K, 4] -> unique keys [M], e.g. `BlockTrees.index`.
        scores: functions obs [M, K, 4] -> [M] for the outside names of the reward.
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

    def __call__(self, obs: Tensor) -> Tensor:
        """log R of trees obs [M, K, 4], [M] float64.

        Raises:
            RewardFault: a term is not finite; the message names molecule and term.
        """
        root = self.reward.expression.root
        if isinstance(root, Leaf) and root.label in self.scores:  # stays on the device, and nothing is read back
            return self.tempered(self.calls(self.scores[root.label], obs))
        return torch.from_numpy(np.array(self.reward.tempering(self._numbers(obs)["reward"]))).to(obs.device)

    def parts(self, obs: Tensor) -> dict[str, Tensor]:
        """The reward before tempering ("reward", first) and its terms, for trees obs [M, K, 4], [M] float64 each."""
        return {name: torch.from_numpy(np.array(x)) for name, x in self._numbers(obs).items()}

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

    @property
    def calls(self) -> RewardCalls:
        """Counts the trees that are scored."""
        return self.reward.quantities.calls

    def scored(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the cache: keys [M], the least recently used first, and quantities [M, Q]."""
        keys, values = self.reward.quantities.kept()
        return {"key": torch.tensor(keys, dtype=torch.int64), "value": torch.from_numpy(values)}

    def restore(self, scored: Mapping[str, Tensor]) -> None:
        """Put what `scored` gave into the cache.

        Raises:
            ValueError: it does not fit this reward.
        """
        key, value = scored["key"], scored["value"]
        if key.dtype != torch.int64 or key.dim() != 1 or value.dtype != torch.float64:
            raise ValueError(f"got keys {key.dtype} {list(key.shape)} and values {value.dtype}, expected int64 and float64")
        self.reward.quantities.keep(key.tolist(), value.numpy())

    def _numbers(self, obs: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, score in self.scores.items():  # counted here where no quantity is cached
            n = 0 if given or self.reward.needs_molecules else None
            given[name] = self.calls(score, obs, n).double().cpu().numpy()
        try:
            return self.reward.parts(self._index(obs).tolist(), lambda places: self.molecules(obs[places]), given)
        except (ValueError, RuntimeError) as error:  # the latter when worker processes die
            raise RewardFault(" ".join(str(error).split())) from error
