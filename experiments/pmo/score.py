"""`Score`: a task of PMO with a budget. A molecule asked twice is answered from the ledger and not counted."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from rdkit import Chem, rdBase

from gflownet.rewards.chemistry import Floats
from gflownet.rewards.ledger import REWARD, Ledger
from gflownet.rewards.pmo import task


class Score:
    """Scores canonical SMILES by a task.

    Args:
        name: of the task.
        calls: how many different molecules may be asked.

    Attributes:
        ledger: the molecules asked, in order.
        seconds: CPU time in the task itself, reading SMILES included.
    """

    def __init__(self, name: str, calls: int) -> None:
        self.ledger, self.seconds, self._task = Ledger([REWARD], calls), 0.0, task(name)

    def __len__(self) -> int:
        """How many calls are spent."""
        return len(self.ledger)

    def __call__(self, smiles: Sequence[str]) -> Floats:
        """Scores [B] of B canonical SMILES; 0 for what RDKit cannot read.

        Raises:
            BudgetSpent: the budget did not suffice for all; as many as it allowed are in the ledger.
        """
        new = self.ledger.reserve(smiles)
        begun = time.process_time()
        with rdBase.BlockLogs():
            mols = [Chem.MolFromSmiles(one) for one in new]  # RDKit cannot read all that it writes
        values = [0.0 if mol is None else self._task(mol) for mol in mols]
        self.seconds += time.process_time() - begun
        self.ledger.add(new, {REWARD: np.array(values)})
        return self.ledger.rows(smiles)[REWARD]
