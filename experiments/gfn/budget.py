"""What a run asked of a reward of molecules: its budget, metrics against calls, five known drugs, and when it is wrong.

A run whose reward is scarce (--calls, or a reward of the user's) notes every molecule that it asks for, see
`gflownet.rewards.ledger`.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from rdkit import Chem

from experiments.cli.errors import UserError
from experiments.molecules.config import tree_reward
from experiments.oracle.check import DRUGS
from experiments.run import safe
from experiments.run.faults import REWARD_FAULT
from gflownet.molecules.fingerprints import fingerprints, internal_diversity
from gflownet.molecules.sample_efficiency import auc_top
from gflownet.problem import DagProblem
from gflownet.rewards.cached import STATUS
from gflownet.rewards.calls import RewardCalls
from gflownet.rewards.chemistry import Floats
from gflownet.rewards.combine import Tempering
from gflownet.rewards.ledger import REWARD, Ledger
from gflownet.rewards.oracle import STATUSES
from gflownet.rewards.trees import TreeReward

TOP = (1, 10, 100)
RECENT, FEWEST = 100, 10  # molecules that --max-failed looks at: the last ones, and at least so many
NAME = "calls.csv"
ASKED = (
    "of the molecules asked for so far, unique by canonical SMILES, before tempering; without those that failed and the five "
    "known drugs of --references"
)
DESCRIPTIONS = {
    **{f"oracle/top_{k}": f"Mean reward of the {k} best {ASKED}." for k in TOP},
    "oracle/auc_top_10": "Area under the mean of the 10 best against calls, divided by the budget (--calls), or by the "
    "calls so far without one: after every 100 calls, trapezoids, as in PMO (Gao et al. 2022). The last value goes on to the "
    "end.",
    "oracle/diversity": f"1 - mean Tanimoto similarity (morgan2-2048) over pairs of the 100 best {ASKED}.",
    **{f"oracle/{name}": f"Molecules asked for so far with status {name}." for name in STATUSES},
}


class Account:
    """What a run asked of its reward.

    Args:
        ledger: what it notes.
        calls: its count.
        tempering: of its rewards.
    """

    def __init__(self, ledger: Ledger, calls: RewardCalls, tempering: Tempering) -> None:
        self.ledger, self._calls, self._tempering = ledger, calls, tempering
        self._begun = len(ledger)  # in this process: after a reward was corrected, its old failures are not held against it

    @property
    def spent(self) -> bool:
        """Whether the budget is spent, and all that was asked for is known."""
        return self.ledger.budget is not None and len(self.ledger) >= self.ledger.budget

    def row(self, diversity: bool) -> dict[str, float]:
        """The metrics. diversity: the slow one too."""
        ledger, reward = self.ledger, self._rewards()
        order = np.argsort(-reward, kind="stable")  # NaN last
        order = order[: len(reward) - int(np.isnan(reward).sum())]
        found = {f"oracle/top_{k}": float(reward[order[:k]].mean()) if len(order) >= k else np.nan for k in TOP}
        if len(reward):
            found["oracle/auc_top_10"] = auc_top(reward, ledger.budget or len(reward))
        if diversity and len(order) > 1:
            best = [Chem.MolFromSmiles(ledger.smiles[i]) for i in order[: max(TOP)]]
            found["oracle/diversity"] = internal_diversity(fingerprints([mol for mol in best if mol], "morgan2-2048"))
        return found | {f"oracle/{name}": n for name, n in ledger.statuses().items()}

    def _rewards(self) -> Floats:
        """[N] in the order asked for, NaN for a molecule that failed and for the known drugs, which no method found."""
        reward = self.ledger.column(REWARD)
        known = {_canonical(one) for one in DRUGS.values()}
        reward[[i for i, one in enumerate(self.ledger.smiles[: len(known)]) if one in known]] = np.nan
        return reward

    def summary(self) -> str:
        """One line for people."""
        ledger, reward = self.ledger, self._rewards()
        spent = f" of {ledger.budget:,}" if ledger.budget else ""
        counts = ", ".join(f"{n:,} {name}" for name, n in ledger.statuses().items() if n and name != "ok")
        best = np.sort(reward[~np.isnan(reward)])[::-1][:10]
        mean = f"; mean of the 10 best {best.mean():.4g}" if len(best) else ""
        return f"asked for {len(ledger):,}{spent} different molecules{f' ({counts})' if counts else ''}{mean}"

    def write(self, folder: Path) -> None:
        """calls.csv in a run folder: a row for each molecule, in the order asked for. OSError where the disk fails."""
        ledger, text, table = self.ledger, io.StringIO(), self.ledger.table()
        terms = [name for name in ledger.columns if name != STATUS]
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("call", "smiles", STATUS, *terms))
        for i, (smiles, status) in enumerate(zip(ledger.smiles, table[STATUS].tolist(), strict=True)):
            values = ("" if np.isnan(x := table[name][i]) else repr(float(x)) for name in terms)
            rows.writerow((i + 1, smiles, STATUSES[int(status)], *values))
        safe.write(folder / NAME, text.getvalue().encode())

    def fault(self, max_failed: float) -> str:
        """What is wrong with the last molecules' statuses, in a sentence; "" where they are well."""
        status = self.ledger.column(STATUS, min(RECENT, len(self.ledger) - self._begun)).astype(int)
        failed = int((status > 0).sum())
        if len(status) < FEWEST or failed <= max_failed * len(status):
            return ""
        counts = ", ".join(f"{int((status == i).sum())} {name}" for i, name in enumerate(STATUSES) if i and (status == i).any())
        why = f"; the last: {self._calls.failure}" if self._calls.failure else ""
        allowed = f"more than --max-failed {max_failed:g} allows"
        return f"{failed} of the last {len(status)} molecules have no reward ({counts}), {allowed}{why}"

    def equal(self) -> str:
        """Whether all molecules asked for have one reward, or are clipped to one, in a sentence; "" otherwise and for few."""
        reward = self.ledger.column(REWARD)
        reward = reward[~np.isnan(reward)]
        if len(reward) < FEWEST:
            return ""
        low, high, all_have = float(reward.min()), float(reward.max()), f"all {len(reward)} molecules asked for so far have"
        if low == high:
            return f"{all_have} the reward {low:.6g}: is the reward what you meant?"
        r_min, r_max = self._tempering.r_min, self._tempering.r_max
        if not (high <= r_min or low >= r_max):
            return ""
        limit = f"--r-min {r_min:g} (larger must be better)" if high <= r_min else f"--r-max {r_max:g}"
        return f"{all_have} rewards from {low:.6g} to {high:.6g}, which all count as {limit}:"


# -- a reward that is not what was meant


def references(problem: DagProblem) -> str:
    """The rewards of five known drugs before and after each transform, as a table; "" where the reward needs trees.

    Raises UserError (exit code 6) where the reward of the user fails for all of them.
    """
    reward = tree_reward(problem.env)
    if reward is None or reward.scores:
        return ""
    smiles = [_canonical(one) for one in DRUGS.values()]
    with problem.calls.around():
        parts = reward.of_smiles(smiles)
    if STATUS in parts and bool((parts[STATUS] > 0).all()):
        raise UserError(f"the reward failed for all of {', '.join(DRUGS)}: {problem.calls.failure}", REWARD_FAULT)
    return _table(reward, parts)


def _table(reward: TreeReward, parts: dict[str, Floats]) -> str:
    terms = [name for name in parts if name not in (REWARD, STATUS)]
    log_r = reward.reward.tempering(np.nan_to_num(parts[REWARD], nan=reward.reward.tempering.r_min))
    head = ["", *(_short(name) for name in terms), "reward", "log R"]
    lines = [head]
    for i, name in enumerate(DRUGS):
        status = STATUSES[int(parts[STATUS][i])] if STATUS in parts else "ok"
        numbers = [f"{parts[term][i]:.4g}" for term in terms]
        lines.append([name, *numbers, f"{parts[REWARD][i]:.4g}" if status == "ok" else status, f"{log_r[i]:.4g}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(w) if j == 0 else cell.rjust(w) for j, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _canonical(smiles: str) -> str:
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles)))


def _short(name: str) -> str:
    name = name.rpartition("/")[2]
    return name if len(name) <= 24 else f"{name[:21]}..."
