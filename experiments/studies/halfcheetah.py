"""Training return on HalfCheetah-v5 against environment steps: N-HARPG with its recipe, ten seeds.

    python -m experiments.studies.halfcheetah --out runs/halfcheetah

Made by it: results/halfcheetah.png, results/halfcheetah.csv.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import pgrl
from experiments.cli.errors import guarded
from experiments.plots.curves import curves, table
from experiments.studies import scaled

ALGORITHMS = ("n-harpg",)
ENV_STEPS = 1_000_000


def study(out: Path = Path("runs/studies/halfcheetah"), scale: float = 1.0, figure: Path | None = None) -> Path:
    """Train N-HARPG and draw its return.

    Args:
        out: a folder for the runs
        scale: factor of the budget
        figure: .png or .svg; default: halfcheetah.png in that folder
    """
    runs = []
    for algo in ALGORITHMS:
        settings = {"seeds": 10, "env_steps": scaled(ENV_STEPS, scale)}
        runs.append(pgrl.train(algo, env="HalfCheetah-v5", out=out / algo, resume=True, **settings).folder)
    print(table(runs))
    return curves(runs, figure or out / "halfcheetah.png")


if __name__ == "__main__":
    guarded(lambda: print(f"figure: {tyro.cli(study)}"))
