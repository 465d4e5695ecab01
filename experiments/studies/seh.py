"""Molecules with a high predicted affinity for soluble epoxide hydrolase, the task of Bengio et al. (NeurIPS 2021).

    python -m experiments.studies.seh --blocks blocks_PDB_105.json --weights best_params.pkl.gz --out runs/seh

Both files were published with the paper. Made by it: the table in results/seh.md, before `--preset paper` used the convention
paper2021; the table has `--convention merged`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

import gflownet
from experiments.cli.errors import guarded
from experiments.molecules.table import table
from experiments.studies import scaled

STATES = 100_000
SHARED: dict[str, Any] = {"preset": "paper", "top_k": 20_000, "metrics": "sampled"}
METHODS: dict[str, dict[str, Any]] = {
    "fm-paper": {"objective": "fm"},
    "tb-paper": {"objective": "tb"},
    "tb": {"objective": "tb", "batch_size": 64, "replay": "prioritised", "learning_rate": 2e-3, "epsilon": 0.02},
    "mcmc": {"objective": "mcmc"},
    "ppo": {"objective": "ppo"},
    "random": {"objective": "uniform"},
}


def study(
    blocks: Path, weights: Path, out: Path = Path("runs/studies/seh"), scale: float = 1.0, figure: Path | None = None
) -> Path:
    """Train the six methods, one seed each, and write the table.

    Args:
        blocks: the paper's building blocks
        weights: of the paper's proxy
        out: a folder for the runs
        scale: factor of the budget and of the rows
        figure: the table, .md; default: seh.md in that folder
    """
    task = {**SHARED, "fragments": blocks, "seh_weights": weights, "states": scaled(STATES, scale)}
    runs = []
    for name, settings in METHODS.items():
        runs.append(gflownet.train("molecules", out=out / name, resume=True, **{**task, **settings}).folder)
    rows = tuple(scaled(n, scale) for n in (10_000, 25_000, 50_000))
    figure = figure or out / "seh.md"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_text(table(runs, rows, scale=8) + "\n")
    return figure


if __name__ == "__main__":
    guarded(lambda: print(f"table: {tyro.cli(study)}"), program="gflownet")
