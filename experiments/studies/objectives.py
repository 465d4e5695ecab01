"""All objectives and baselines on the 4-D hypergrid with R0 = 0.01: L1 to the target against objects visited, five seeds each.

    python -m experiments.studies.objectives --out runs/objectives

Made by it: results/objectives.png, results/objectives.csv. Settings are the recipe's, which was tuned for each objective on
one seed.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import gflownet
from experiments.cli.errors import guarded
from experiments.plots.panels import panels
from experiments.studies import scaled

OBJECTIVES = ("fm", "db", "mdb", "tb", "vargrad", "subtb", "fl-db", "fl-subtb", "soft-dqn", "munchausen")
BASELINES = ("soft-pg", "ppo", "mcmc", "uniform")
STATES = 200_000


def study(out: Path = Path("runs/studies/objectives"), scale: float = 1.0, figure: Path | None = None) -> Path:
    """Train every method and draw one panel for each.

    Args:
        out: a folder for the runs
        scale: factor of the budget
        figure: .png or .svg; default: objectives.png in that folder
    """
    runs = []
    for method in OBJECTIVES + BASELINES:
        settings = {"r0": 0.01, "seeds": 5, "states": scaled(STATES, scale)}
        runs.append(gflownet.train("hypergrid", method, out=out / method, resume=True, **settings).folder)
    return panels(runs, figure or out / "objectives.png")


if __name__ == "__main__":
    guarded(lambda: print(f"figure: {tyro.cli(study)}"), program="gflownet")
