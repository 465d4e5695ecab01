"""Where log Z starts decides what trajectory balance learns: celecoxib similarity · QED at β = 32, log Z from 0 and `auto`.

    python -m experiments.studies.log_z --out runs/log_z

Made by it: results/log_z.md. The true log Z is about -25 here, log R of the first molecules about -130, and log Z moves by at
most its learning rate in an iteration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

import gflownet
from experiments.cli.errors import guarded
from experiments.run.log import read_metrics
from experiments.studies import scaled

STATES = 16_000
CELECOXIB = "Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F"
TASK: dict[str, Any] = {"reward": f"similar[{CELECOXIB}]*qed", "beta": 32.0, "evaluations": 8}
OLD = {"log_z_rate": 0.1, "learning_rate": 2e-3, "final_rate": 1.0}  # the recipe before log Z started by itself
VARIANTS: dict[str, dict[str, Any]] = {
    "log Z = 0, old rates": {"log_z_start": 0.0, **OLD},
    "log Z = 0": {"log_z_start": 0.0},
    "auto, old rates": {"log_z_start": "auto", **OLD},
    "auto": {"log_z_start": "auto"},
}
COLUMNS = {
    "mean reward": "mol/reward",
    "mean log R": "mol/log_reward",
    "unique": "mol/unique",
    "correlation": "eval/correlation",
    "log Z": "eval/log_z",
    "residual": "train/residual",
}


def study(out: Path = Path("runs/studies/log_z"), scale: float = 1.0, figure: Path | None = None) -> Path:
    """Train the four variants, two seeds each, and write the table: means over seeds, of 128 fresh molecules of each policy.

    Args:
        out: a folder for the runs
        scale: factor of the budget
        figure: the table, .md; default: log_z.md in that folder
    """
    lines = [f"| start | molecules | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, settings in VARIANTS.items():
        task = {**TASK, "seeds": 2, "states": scaled(STATES, scale), **settings}
        run = gflownet.train("molecules", "tb", out=out / name.replace(" ", "-").replace(",", ""), resume=True, **task)
        rows = [row for row in read_metrics(run.folder) if "mol/reward" in row]
        for row in (rows[0], rows[len(rows) // 2], rows[-1]):
            numbers = [_mean(row.get(tag)) for tag in COLUMNS.values()]
            lines.append(f"| {name} | {row['states']:,} | {' | '.join(numbers)} |")
    figure = figure or out / "log_z.md"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_text("\n".join(lines) + "\n")
    return figure


def _mean(values: list[float | None] | None) -> str:
    known = [x for x in values or [] if x is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""


if __name__ == "__main__":
    guarded(lambda: print(f"table: {tyro.cli(study)}"), program="gflownet")
