"""What each ingredient of the MuJoCo recipe brings: N-PG-IGT on HalfCheetah-v5 with one setting changed at a time.

    python -m experiments.studies.ingredients --out runs/ingredients

Made by it: results/ingredients.md. Three seeds that no recipe was tuned on, the same number of environment steps for each row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tyro

import pgrl
from experiments.cli.errors import guarded
from experiments.plots.statistics import iqm
from experiments.studies import scaled

ENV_STEPS = 200_000
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "raw observations": {"normalise_steps": 0},
    "last layer × 1": {"output_scale": 1.0},
    "log standard deviation 0": {"log_std": 0.0},
    "actions not bounded": {"bounds": "none"},
    "actions bounded by tanh": {"bounds": "tanh"},
    "baseline none": {"baseline": "none"},
    "baseline time": {"baseline": "time"},
    "baseline value-net": {"baseline": "value-net"},
    "horizon 1,000, 2 episodes": {"horizon": 1_000, "batch_size": 2},
    "horizon 100, 20 episodes": {"horizon": 100, "batch_size": 20},
    "discount 0.95": {"discount": 0.95},
    "Euclidean steps of 0.1": {"step_norm": "euclidean", "step_size": 0.1},
    "Euclidean steps of 0.02": {"step_norm": "euclidean", "step_size": 0.02},
    "biased: no γ^t": {"undiscounted_states": True},
    "biased: no γ^t, GAE 0.95": {"undiscounted_states": True, "gae_lambda": 0.95},
}


def study(
    out: Path = Path("runs/studies/ingredients"),
    scale: float = 1.0,
    figure: Path | None = None,
    variants: tuple[str, ...] = tuple(VARIANTS),
) -> Path:
    """Train every variant and write the table.

    Args:
        out: a folder for the runs
        scale: factor of the budget
        figure: the table, .md; default: ingredients.md in that folder
        variants: rows of the table
    """
    shared: dict[str, Any] = {"seeds": 3, "seed": 300, "env_steps": scaled(ENV_STEPS, scale), "evaluations": 4, "workers": 0}
    lines = [
        f"N-PG-IGT on HalfCheetah-v5 after {shared['env_steps']:,} steps. `python -m experiments.studies.ingredients`",
        "",
        "| setting | mean action: interquartile mean | each seed | with noise |",
        "|---" * 4 + "|",
    ]
    for name in variants:
        folder = out / "".join(c if c.isalnum() else "-" for c in name)
        run = pgrl.train("n-pg-igt", env="HalfCheetah-v5", out=folder, resume=True, **{**shared, **VARIANTS[name]})
        quiet, noisy = (run.metrics[tag][-1] for tag in ("eval/return_mean_action", "eval/return"))
        each = ", ".join(f"{value:,.0f}" for value in np.sort(quiet))
        lines.append(f"| {name} | {iqm(quiet):,.0f} | {each} | {iqm(noisy):,.0f} |")
    figure = figure or out / "ingredients.md"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_text("\n".join(lines) + "\n")
    return figure


if __name__ == "__main__":
    guarded(lambda: print(f"table: {tyro.cli(study)}"))
