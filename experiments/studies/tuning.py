"""The search behind the recipes of classic control and MuJoCo: every algorithm has as many settings, seeds and steps on a task.

    python -m experiments.studies.tuning --out runs/tuning
    python -m experiments.studies.tuning --out runs/tuning --envs Hopper-v5 --algos n-pg-igt

A grid over the step size and η, with the schedules of the recipe, on seeds that no figure uses. The score of a setting is the
return of the mean action, averaged over seeds and over the evaluations of the second half of training; -inf where it diverged.
The table, best setting first, is written to tuning.csv. What becomes a recipe is copied into experiments/recipes/pg by hand,
beside the settings of the task that all algorithms share.

Made by it: results/tuning.csv, with --envs CartPole-v1, and with --envs HalfCheetah-v5 --scale 1.5, all algorithms but adam-pg.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import pgrl
from experiments.cli.errors import UserError, guarded
from experiments.pg.config import cpus
from experiments.recipes.pg import general, mujoco
from experiments.run.faults import FAULT
from experiments.run.out_file import whole_file
from experiments.studies import scaled

METRIC = "eval/return_mean_action"
SEEDS = {"seed": 1_000, "seeds": 2}
ENV_STEPS = 100_000


def grid(step_sizes: tuple[float, ...], etas: tuple[float, ...]) -> list[dict[str, float]]:
    return [{"step_size": s, "eta": e} for s, e in itertools.product(step_sizes, etas)]


GRIDS: dict[str, list[dict[str, float]]] = {
    "n-pg": [{"step_size": s} for s in (0.025, 0.05, 0.1, 0.2)],
    "n-mpg": grid((0.1, 0.2), (0.3, 0.6)),
    "n-pg-igt": grid((0.1, 0.2), (0.3, 0.6)),
    "n-harpg": grid((0.05, 0.1), (0.5, 0.8)),
    "sharp": [{"step_size": s} for s in (0.1, 0.2, 0.4, 0.8)],
    "reinforce": [{"step_size": s} for s in (3e-4, 1e-3, 3e-3, 1e-2)],
    "harpg": [{"step_size": s, "eta": 0.6} for s in (3e-4, 1e-3, 3e-3, 1e-2)],
    "adam-pg": [{"step_size": s} for s in (1e-3, 3e-3, 1e-2, 3e-2)],
}


def study(
    out: Path = Path("runs/studies/tuning"),
    scale: float = 1.0,
    figure: Path | None = None,
    envs: tuple[str, ...] = (*general.RECIPES, *mujoco.TASKS),
    algos: tuple[str, ...] = tuple(GRIDS),
    jobs: int | None = None,
) -> Path:
    """Train every setting and write the table.

    Args:
        out: a folder for the runs
        scale: factor of the budget
        figure: .csv; default: tuning.csv in that folder
        envs: tasks
        algos: algorithms
        jobs: processes; default: one for each CPU
    """
    steps = scaled(ENV_STEPS, scale)
    wanted = [(env, algo, k) for env in envs for algo in algos for k in range(len(GRIDS[algo]))]
    with ProcessPoolExecutor(jobs or cpus(), multiprocessing.get_context("spawn")) as pool:
        scores: dict[tuple[str, str, int], float] = {}
        for (env, algo, k), score in zip(
            wanted, pool.map(_score, wanted, [out] * len(wanted), [steps] * len(wanted)), strict=True
        ):
            scores[env, algo, k] = score
            print(f"{env} {algo} {GRIDS[algo][k]}: {score:.1f}", file=sys.stderr)
    table = figure or out / "tuning.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["env", "algo", "step_size", "eta", METRIC, "env_steps", "seeds"])
    writer.writerows(_rows(scores, steps))
    table.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(table) as write:
        write(text.getvalue().encode())
    return table


def _score(wanted: tuple[str, str, int], out: Path, steps: int) -> float:
    """The score of one setting, trained if it is not there yet."""
    torch.set_num_threads(1)
    env, algo, k = wanted
    setting = GRIDS[algo][k]
    name = "-".join([algo, *(f"{key}={value:g}" for key, value in setting.items())])
    settings: dict[str, Any] = {**SEEDS, **setting, "env_steps": steps, "evaluations": 4, "eval_episodes": 2}
    try:
        run = pgrl.train(
            algo, env=env, out=out / env / name, resume=True, quiet=True, workers=0, log_rows=4, checkpoints=1, **settings
        )
    except UserError as error:
        if error.exit_code != FAULT:
            raise
        return -math.inf  # it diverged
    values = run.metrics[METRIC]
    return float(np.nanmean(values[len(values) // 2 :]))


def _rows(scores: dict[tuple[str, str, int], float], steps: int) -> Iterator[list[Any]]:
    """One row a setting, the best first for each task and algorithm."""
    order = sorted(scores, key=lambda key: (key[0], key[1], -np.nan_to_num(scores[key], nan=-np.inf)))
    for env, algo, k in order:
        setting = GRIDS[algo][k]
        score = f"{scores[env, algo, k]:.1f}"
        yield [env, algo, setting["step_size"], setting.get("eta", ""), score, steps, SEEDS["seeds"]]


if __name__ == "__main__":
    guarded(lambda: print(f"table: {tyro.cli(study)}"))
