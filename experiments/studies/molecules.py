"""Molecules in proportion to QED·SA: train with trajectory balance, draw 200 different ones, show the first 24.

    python -m experiments.studies.molecules --out runs/molecules

Made by it: results/molecules.png. Nothing is selected: the picture shows what the policy drew first.
"""

from __future__ import annotations

import csv
from pathlib import Path

import tyro

import gflownet
from experiments.cli.errors import guarded
from experiments.molecules.pictures import draw
from experiments.studies import scaled

STATES = 24_000
SAMPLED, SHOWN = 200, 24


def study(out: Path = Path("runs/studies/molecules"), scale: float = 1.0, figure: Path | None = None) -> Path:
    """Train, draw molecules, write them and a picture.

    Args:
        out: a folder for the run and molecules.csv
        scale: factor of the budget; 200 molecules are drawn at any scale
        figure: .png; default: molecules.png in that folder
    """
    settings = {"reward": "qed*sa", "max_blocks": 5, "seed": 100, "evaluations": 10, "states": scaled(STATES, scale)}
    run = gflownet.train("molecules", "tb", out=out / "tb", resume=True, **settings)
    rows = run.sample(SAMPLED, unique=True)
    with (out / "molecules.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    shown = rows[:SHOWN]
    rewards = [f"{row['reward']:.3f}" for row in shown]
    picture = draw([row["smiles"] for row in shown], rewards, columns=8, panel=(200, 160))
    figure = figure or out / "molecules.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(picture)
    return figure


if __name__ == "__main__":
    guarded(lambda: print(f"picture: {tyro.cli(study)}"), program="gflownet")
