"""`MoleculeReward`: an expression over terms of a molecule, and its tempering for a GFlowNet.

    r     = expression(terms)                                expression.py, chemistry.py
    log R = β log clip(r, r_min, r_max)

A reward below r_min, including 0 and negative ones, counts as r_min, because a GFlowNet needs R > 0. With the sEH proxy p as
r = p/8, β = 10 and r_min = 0.1/8 this is the (max(0.1, p)/8)^10 of the code of 2021. NaN and infinities raise.

    reward = MoleculeReward.of("qed*sa", Tempering(beta=8.0))
    keys, molecules = from_smiles(["CCO", "c1ccccc1"])
    parts = reward.parts(keys, molecules)                    {"reward": [B], "qed": [B], "sa": [B], "sa_score": [B]}
    reward.tempering(parts["reward"])                        log R [B]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from rdkit import Chem
from torch import Tensor

from gflownet.rewards.cached import STATUS, Function, Molecules, Quantities, require_finite
from gflownet.rewards.calls import RewardCalls
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.expression import Expression
from gflownet.rewards.oracle import Oracle

Numbers = TypeVar("Numbers", Floats, Tensor)


@dataclass(frozen=True)
class Tempering:
    """log R = β log clip(r, r_min, r_max).

    Raises:
        ValueError: unless β > 0 and 0 < r_min < r_max.
    """

    beta: float
    """inverse temperature: larger means closer to the best"""
    r_min: float = 0.01
    """what a lower reward counts as; above 0"""
    r_max: float = math.inf
    """what a higher reward counts as"""

    def __post_init__(self) -> None:
        if not (0 < self.beta < math.inf and 0 < self.r_min < self.r_max):
            raise ValueError(
                f"got beta {self.beta}, r_min {self.r_min}, r_max {self.r_max}, expected beta > 0 and 0 < r_min < r_max"
            )

    def __call__(self, reward: Numbers) -> Numbers:
        """log R [B] (float64 for a tensor) of rewards r [B], an array or a tensor on any device; NaN stays NaN."""
        if isinstance(reward, Tensor):
            return self.beta * reward.double().clamp(self.r_min, self.r_max).log()
        return self.beta * np.log(np.clip(reward, self.r_min, self.r_max))

    def inverse(self, log_reward: Tensor) -> Tensor:
        """The reward, clipped to [r_min, r_max], of a log R [B]."""
        return (log_reward.double() / self.beta).exp()


@dataclass(frozen=True)
class MoleculeReward:
    """An expression, its tempering, and the cached quantities of molecules that it needs."""

    expression: Expression
    tempering: Tempering
    quantities: Quantities = field(repr=False)

    @staticmethod
    def of(
        text: str,
        tempering: Tempering,
        outside: Collection[str] = (),
        functions: Mapping[str, Function | Oracle] | None = None,
        size: int = 100_000,
        workers: int = 0,
        calls: RewardCalls | None = None,
    ) -> MoleculeReward:
        """Make a reward.

        Args:
            text: the expression, in the grammar of `expression.py`.
            tempering: from rewards to log R.
            outside: names of scores that the caller gives to `parts` for every batch.
            functions: the functions named in the text, by "file.py:function", or oracles in their place.
            size: molecules in the cache.
            workers: processes that compute quantities; 0: this process.
            calls: counts the molecules that are not in the cache.

        Raises:
            ValueError: the text is invalid, or names a function that is not in `functions`.
        """
        expression = Expression.parse(text, outside)
        handed = functions or {}
        if unknown := [name for name in expression.functions if name not in handed]:
            raise ValueError(f"the reward uses {unknown[0]}, which was not loaded; loaded: {', '.join(handed) or 'none'}")
        measures = {term.quantity: term.measure for term in expression.terms}
        wanted = {name: handed[name] for name in expression.functions}
        return MoleculeReward(expression, tempering, Quantities(measures, wanted, size, workers, calls))

    @property
    def needs_molecules(self) -> bool:
        """Whether a term needs RDKit molecules: False if all are given from outside."""
        return bool(self.quantities.names)

    def parts(
        self, keys: Sequence[Hashable], molecules: Molecules, given: Mapping[str, Sequence[float] | Floats] | None = None
    ) -> dict[str, Floats]:
        """Compute the reward of B molecules and its terms.

        Args:
            keys: of the molecules, as for `cached.Quantities`.
            molecules: makes molecules, as for `cached.Quantities`.
            given: the scores of the outside names, [B] each.

        Returns:
            [B] float64 each: "reward" before tempering, then each term by its label, then the quantities that terms transform
            (sa_score, logp, mw, tpsa, rotors) and, where the formula has functions, STATUS. The reward of a molecule at which
            an oracle failed is NaN.

        Raises:
            ValueError: a value is not finite (the message names molecule and term), or a given score is missing.
        """

        def smiles(i: int) -> str:
            return Chem.MolToSmiles(molecules([i])[0])

        quantities = self.quantities(keys, molecules) if self.needs_molecules else {}
        scores = {term.label: term.shape(quantities[term.quantity]) for term in self.expression.terms}
        scores |= {name: quantities[name] for name in self.expression.functions}
        for name in self.expression.outside:
            values = np.asarray((given or {}).get(name, ()), dtype=np.float64)
            if values.shape != (len(keys),):
                raise ValueError(
                    f"got scores of shape {list(values.shape)} for {name}, expected one for each of {len(keys)} molecules"
                )
            require_finite(name, values, smiles)
            scores[name] = values
        with np.errstate(all="ignore"):  # values that are not finite raise below
            reward = self.expression.root(scores)
        failed = quantities[STATUS] > 0 if STATUS in quantities else np.zeros(len(reward), bool)
        require_finite(f'the reward "{self.expression.text}"', np.where(failed, 0.0, reward), smiles)
        reward = np.where(failed, np.nan, reward)
        return {"reward": reward, **scores, **{name: x for name, x in quantities.items() if name not in scores}}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what `parts` returns, in order."""
        terms = (*(term.label for term in self.expression.terms), *self.expression.functions, *self.expression.outside)
        return ("reward", *terms, *(name for name in self.quantities.names if name not in terms))

    def log_reward(
        self, keys: Sequence[Hashable], molecules: Molecules, given: Mapping[str, Sequence[float] | Floats] | None = None
    ) -> Floats:
        """log R of B molecules, [B]; arguments and errors as `parts`. A molecule that failed has the reward r_min."""
        return self.tempering(np.nan_to_num(self.parts(keys, molecules, given)["reward"], nan=self.tempering.r_min))
