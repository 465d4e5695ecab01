"""GFlowNets on a task of PMO: runs of `gflownet train molecules --reward pmo:TASK --calls N`, which go on where they stopped.

    gfn       trajectory balance with the recipe of molecules and its β = 8
    vargrad   the log-variance objective (no log Z to learn) at β = 32 with at most 6 fragments

A policy that has collapsed finds nothing new; then the run ends after STATES molecules for each call, and keeps its last value.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from experiments.cli.errors import UserError
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.pmo import task

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "gfn": {"objective": "tb"},
    "vargrad": {"objective": "vargrad", "beta": 32.0, "max_blocks": 6},
}
BATCH = 64  # molecules of an iteration, that of the recipe
STATES = 5
QUICK: Mapping[str, Any] = {
    "evaluations": 1,
    "top_k": 100,
    "log_rows": 20,
    "checkpoints": 5,
}  # what a run reports; its molecules are the same
TIMED = 200  # molecules that are scored once more to know the time of the task itself


def train(method: str, name: str, seed: int, calls: int, folder: Path) -> tuple[list[str], Floats, float]:
    """Train to the end of the budget.

    Args:
        method: of SETTINGS.
        name: of the task.
        seed: of the run.
        calls: the budget.
        folder: of the run, which goes on if it is there.

    Returns:
        The molecules asked, in order; their scores [N], NaN for one without; CPU seconds of the task itself, estimated.

    Raises:
        UserError: the run cannot go on.
    """
    import gflownet

    settings = {**SETTINGS[method], "reward": f"pmo:{name}", "seed": seed, "seeds": 1, "calls": calls, "states": STATES * calls}
    gflownet.train("molecules", out=folder, resume=True, quiet=True, references=False, device="cpu", **QUICK, **settings)
    smiles, scores = asked(folder / "calls.csv")
    begun = time.process_time()
    for one in smiles[:: max(1, len(smiles) // TIMED)]:
        task(name)(Chem.MolFromSmiles(one))
    timed = len(smiles[:: max(1, len(smiles) // TIMED)])
    return smiles, scores, (time.process_time() - begun) * len(smiles) / max(1, timed)


def asked(path: Path) -> tuple[list[str], Floats]:
    """The molecules and rewards of a run's calls.csv.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [row["smiles"] for row in rows], np.array([float(row["reward"] or "nan") for row in rows])
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is not what a run writes: remove the run, and repeat the command", exit_code=3) from None
