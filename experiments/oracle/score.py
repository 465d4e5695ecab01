"""`Scorer`: the reward of molecules that nobody trains on, by the runner and the cache that training has.

    scorer.submit(molecules)    hand their canonical SMILES to the user's rewards
    scorer.rows(molecules)      RDKit's terms meanwhile; then a row for each molecule, in order

A molecule fails alone: its row has a status and a message, and no reward.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from experiments.cli.errors import UserError
from experiments.oracle.make import make_oracle
from experiments.oracle.runner import Runner
from experiments.oracle.settings import OracleSettings
from gflownet.rewards.cached import Quantities, from_smiles
from gflownet.rewards.expression import Expression
from gflownet.rewards.oracle import COMMAND, Scored

Row = dict[str, str | float]


class Molecule(NamedTuple):
    """A line of input: the text as given, and the canonical SMILES; "" where RDKit cannot read it."""

    given: str
    canonical: str


def molecule(given: str) -> Molecule:
    """Read a SMILES."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(given) if given else None
    return Molecule(given, Chem.MolToSmiles(mol) if mol is not None and mol.GetNumAtoms() else "")


class Scorer:
    """Scores molecules by a formula. It is a context manager, which ends the processes of the rewards.

    Args:
        formula: the reward; "" for the command alone.
        settings: how the user's rewards are run.
        workers: processes for RDKit's terms, and for each of the user's rewards (at least one).
        run: under which failed answers are kept, until `forget_failures`.

    Raises:
        UserError: the formula is invalid, or a reward cannot be loaded.
    """

    def __init__(self, formula: str, settings: OracleSettings, workers: int = 0, run: str = "") -> None:
        try:
            self.expression = Expression.parse(formula or COMMAND)
        except ValueError as error:
            raise UserError(f"--reward: {error}") from error
        if settings.reward_command and COMMAND not in self.expression.functions:
            raise UserError(f"--reward {formula!r} has no term {COMMAND}, so --reward-command would not be used: add it")
        self._measures = {term.quantity: term.measure for term in self.expression.terms}
        self._close = contextlib.ExitStack()
        self.oracles: dict[str, Runner] = {}
        self.status: Counter[str] = Counter()
        self.unreadable = 0
        self.first_failure = ""
        with contextlib.ExitStack() as stack:
            self._quantities = stack.enter_context(Quantities(self._measures, {}, 10_000, workers))
            for name in self.expression.functions:
                self.oracles[name] = stack.enter_context(make_oracle(name, settings, workers, run))
            self._close = stack.pop_all()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a row."""
        return ("smiles", "canonical_smiles", "reward", *self._labels, "status", "message")

    def submit(self, molecules: Sequence[Molecule]) -> None:
        """Start to score molecules and return at once."""
        smiles = _distinct(molecules)
        for oracle in self.oracles.values():
            oracle.submit(smiles)

    def rows(self, molecules: Sequence[Molecule]) -> list[Row]:
        """A row for each molecule, once all are scored."""
        self.submit(molecules)
        smiles = _distinct(molecules)
        terms = self._terms(smiles)
        said = {name: dict(zip(smiles, oracle(smiles), strict=True)) for name, oracle in self.oracles.items()}
        found = {one: self._row(one, terms[one], {name: of[one] for name, of in said.items()}) for one in smiles}
        return [self._noted(one, found) for one in molecules]

    def forget_failures(self) -> None:
        """Let the next run of this id ask again what failed."""
        for oracle in self.oracles.values():
            oracle.cache.forget_failures()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close.close()

    @property
    def _labels(self) -> tuple[str, ...]:
        return (*(term.label for term in self.expression.terms), *self.oracles)

    def _terms(self, smiles: list[str]) -> dict[str, tuple[dict[str, float], str]]:
        """RDKit's terms of each molecule, and why it has none."""
        if not self._measures or not smiles:
            return {one: ({}, "") for one in smiles}
        try:
            quantities = self._quantities(*from_smiles(smiles))
        except ValueError as error:  # of one of them
            if len(smiles) == 1:
                return {smiles[0]: ({}, " ".join(str(error).split()))}
            return {one: found for single in smiles for one, found in self._terms([single]).items()}
        columns = {term.label: term.shape(quantities[term.quantity]).tolist() for term in self.expression.terms}
        return {one: ({name: column[i] for name, column in columns.items()}, "") for i, one in enumerate(smiles)}

    def _row(self, smiles: str, terms: tuple[dict[str, float], str], said: dict[str, Scored]) -> Row:
        values, why = terms
        values = values | {name: scored.value for name, scored in said.items()}
        failed = None
        for name, scored in said.items():
            if failed is None and scored.status != "ok":
                failed = scored if len(said) == 1 else Scored.failed(scored.status, f"{name}: {scored.message}")
        if failed is None and why:
            failed = Scored.failed("invalid", why)
        reward = math.nan
        if failed is None:
            with np.errstate(all="ignore"):
                reward = float(self.expression.root({name: np.array([x]) for name, x in values.items()})[0])
            if not math.isfinite(reward):
                failed = Scored.failed("invalid", f"the reward is {reward}, expected a finite number")
        numbers: Row = {name: _cell(values.get(name, math.nan)) for name in self._labels}
        status, message = (failed.status, failed.message) if failed else ("ok", "")
        return {"reward": _cell(math.nan if failed else reward), **numbers, "status": status, "message": message}

    def _noted(self, one: Molecule, found: dict[str, Row]) -> Row:
        if one.canonical:
            row = found[one.canonical]
            self.status[str(row["status"])] += 1
            self.first_failure = self.first_failure or str(row["message"])
        else:
            self.unreadable += 1
            empty: Row = dict.fromkeys(self._labels, "")
            row = {"reward": "", **empty, "status": "invalid", "message": "RDKit cannot read this as SMILES"}
        return {"smiles": one.given, "canonical_smiles": one.canonical, **row}


def _distinct(molecules: Sequence[Molecule]) -> list[str]:
    return list(dict.fromkeys(one.canonical for one in molecules if one.canonical))


def _cell(value: float) -> str | float:
    return value if math.isfinite(value) else ""
