"""`Ledger`: the molecules that a run asked the reward for, each once, in order, with what the reward said; and their budget.

    reserve(smiles)    take those that are new, until the budget is spent; now they may be scored, here or elsewhere
    pending(smiles)    those of them that are reserved and not yet scored
    add(smiles, ...)   what the reward said of them
    rows(smiles)       look up; BudgetSpent where one is not there

A molecule is its canonical SMILES. The budget counts what the run asked for, whoever answered: a file of rewards that other
runs filled makes a run cheaper, but not its curve better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gflownet.rewards.cached import STATUS
from gflownet.rewards.calls import BudgetSpent
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.oracle import STATUSES

REWARD = "reward"
"""The column that every ledger has besides STATUS: the reward before tempering, NaN for a molecule that failed."""


class Ledger:
    """Molecules in the order in which they were asked for.

    Args:
        columns: names of the numbers of a molecule, REWARD among them. STATUS is added where it is missing.
        budget: the most different molecules; None: no limit. It may be changed.
    """

    def __init__(self, columns: Sequence[str], budget: int | None = None) -> None:
        self.columns, self.budget = tuple(dict.fromkeys((*columns, STATUS))), budget
        self.smiles: list[str] = []
        self._rows: list[tuple[float, ...]] = []
        self._place: dict[str, int] = {}
        self._reserved: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.smiles)

    @property
    def spent(self) -> bool:
        """Whether no further molecule may be scored."""
        return self.budget is not None and len(self.smiles) + len(self._reserved) >= self.budget

    def reserve(self, smiles: Sequence[str]) -> list[str]:
        """Those that are neither known nor reserved, each once, as far as the budget goes. They are now reserved."""
        new = [one for one in dict.fromkeys(smiles) if one not in self._place and one not in self._reserved]
        if self.budget is not None:
            new = new[: max(0, self.budget - len(self.smiles) - len(self._reserved))]
        self._reserved.update(dict.fromkeys(new))
        return new

    def pending(self, smiles: Sequence[str]) -> list[str]:
        """Those that are reserved and not yet scored, each once, in this order."""
        return [one for one in dict.fromkeys(smiles) if one in self._reserved]

    def add(self, smiles: Sequence[str], parts: Mapping[str, Floats]) -> None:
        """Note what the reward said.

        Args:
            smiles: different molecules, none of them known.
            parts: a number for each molecule, by column; without STATUS they are all ok.
        """
        parts = {STATUS: np.zeros(len(smiles)), **parts}
        table = np.stack([np.asarray(parts[name], dtype=np.float64) for name in self.columns], axis=1)
        for one, row in zip(smiles, table.tolist(), strict=True):
            self._place[one] = len(self.smiles)
            self.smiles.append(one)
            self._rows.append(tuple(row))
            self._reserved.pop(one, None)

    def rows(self, smiles: Sequence[str]) -> dict[str, Floats]:
        """What the reward said of molecules, column -> [B].

        Raises:
            BudgetSpent: one is not known.
        """
        try:
            rows = [self._rows[self._place[one]] for one in smiles]
        except KeyError as error:
            raise BudgetSpent(f"{error.args[0]} is not known, and the budget of {self.budget} molecules is spent") from None
        return self._by_column(rows)

    def table(self) -> dict[str, Floats]:
        """What the reward said of all molecules, column -> [N]."""
        return self._by_column(self._rows)

    def column(self, name: str, last: int | None = None) -> Floats:
        """One column of the table [N], of all molecules or of the last ones."""
        at, rows = self.columns.index(name), self._rows if last is None else self._rows[len(self._rows) - last :]
        return np.array([row[at] for row in rows], dtype=np.float64)

    def _by_column(self, rows: list[tuple[float, ...]]) -> dict[str, Floats]:
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(self.columns))
        return {name: np.ascontiguousarray(table[:, j]) for j, name in enumerate(self.columns)}

    def statuses(self) -> dict[str, int]:
        """How many molecules have each status."""
        counts = np.bincount(self.column(STATUS).astype(np.int64), minlength=len(STATUSES))
        return dict(zip(STATUSES, counts.tolist(), strict=True))

    # -- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """smiles: bytes, a line for each; values [N, columns]."""
        text = np.frombuffer("".join(f"{one}\n" for one in self.smiles).encode(), dtype=np.uint8)
        values = np.array(self._rows, dtype=np.float64).reshape(len(self._rows), len(self.columns))
        return {"smiles": torch.from_numpy(text.copy()), "values": torch.from_numpy(values)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, in place of what is there.

        Raises:
            ValueError: it does not fit.
        """
        text, values = tensors["smiles"], tensors["values"]
        if text.dtype != torch.uint8 or text.dim() != 1 or values.dtype != torch.float64 or values.dim() != 2:
            raise ValueError(f"got molecules {text.dtype} {list(text.shape)} with values {values.dtype} {list(values.shape)}")
        smiles = text.numpy().tobytes().decode(errors="replace").split("\n")[:-1]
        if values.shape != (len(smiles), len(self.columns)) or len(set(smiles)) < len(smiles):
            raise ValueError(
                f"got {len(smiles)} molecules, {len(set(smiles))} of them different, with values {list(values.shape)}, "
                f"expected {len(self.columns)} values of each"
            )
        status = values[:, self.columns.index(STATUS)]
        failed = status > 0
        if bool(((status != status.round()) | (status < 0) | (status >= len(STATUSES))).any()):
            raise ValueError("got a status that is none")
        if not bool(torch.isfinite(values[~failed]).all()):
            raise ValueError("got a value that is not finite")
        self.smiles, self._reserved = smiles, {}
        self._rows = [tuple(row) for row in values.tolist()]
        self._place = {one: i for i, one in enumerate(smiles)}
