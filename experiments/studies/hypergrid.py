"""Fig. 2 of Bengio et al. (NeurIPS 2021): L1 to the target and modes found on the 4-D hypergrid, for three values of R0.

    python -m experiments.studies.hypergrid --out runs/hypergrid

Made by it: results/hypergrid.png. Settings are the paper's (`--preset paper`); PPO has a fifth of the budget.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import gflownet
from experiments.cli.errors import guarded
from experiments.plots.gflownet import figure2
from experiments.studies import scaled

STATES = {"fm": 500_000, "mcmc": 500_000, "uniform": 500_000, "ppo": 100_000}
R0 = (0.1, 0.01, 0.001)


def study(out: Path = Path("runs/studies/hypergrid"), scale: float = 1.0, figure: Path | None = None) -> Path:
    """Train flow matching, Metropolis–Hastings, PPO and uniform actions, five seeds each, and draw the figure.

    Args:
        out: a folder for the runs
        scale: factor of the budgets
        figure: .png or .svg; default: hypergrid.png in that folder
    """
    runs = []
    for r0 in R0:
        for method, states in STATES.items():
            settings = {"preset": "paper", "r0": r0, "seeds": 5, "states": scaled(states, scale)}
            run = gflownet.train("hypergrid", method, out=out / f"{method}-{r0}", resume=True, **settings)
            runs.append(run.folder)
    return figure2(tuple(runs), figure or out / "hypergrid.png")


if __name__ == "__main__":
    guarded(lambda: print(f"figure: {tyro.cli(study)}"), program="gflownet")
