"""The optimality gap on the gridworld against environment steps: six algorithms, ten seeds each.

    python -m experiments.studies.gridworld --out runs/gridworld

Made by it: results/gridworld.png, results/gridworld.csv. The seeds are not those on which the recipes were tuned.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import pgrl
from experiments.cli.errors import guarded
from experiments.plots.curves import curves, table
from experiments.studies import scaled

ALGORITHMS = ("reinforce", "n-pg", "n-mpg", "n-pg-igt", "harpg", "n-harpg")
ENV_STEPS = 60_000


def study(out: Path = Path("runs/studies/gridworld"), scale: float = 1.0, figure: Path | None = None) -> Path:
    """Train the six algorithms and draw their gap.

    Args:
        out: a folder for the runs
        scale: factor of the budget
        figure: .png or .svg; default: gridworld.png in that folder
    """
    runs = []
    for algo in ALGORITHMS:
        settings = {"seeds": 10, "seed": 100, "env_steps": scaled(ENV_STEPS, scale)}
        runs.append(pgrl.train(algo, env="gridworld", out=out / algo, resume=True, **settings).folder)
    print(table(runs))
    return curves(runs, figure or out / "gridworld.png")


if __name__ == "__main__":
    guarded(lambda: print(f"figure: {tyro.cli(study)}"))
