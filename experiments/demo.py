"""`make demo`: four methods on the gridworld at equal environment steps; a table, a figure, TensorBoard files.

python -m experiments.demo [--out runs/demo] [--env-steps 60_000] [--seeds 10]
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import tyro

from experiments.config import as_config, cpus, defaults
from experiments.curves import curves, table
from experiments.errors import guarded
from experiments.start import start

SEED = 100  # the recipes were tuned on others
METHODS = ("reinforce", "n-mpg", "n-pg-igt", "n-harpg")


def demo(out: Path = Path("runs/demo"), env: str = "gridworld", env_steps: int | None = None, seeds: int = 10) -> None:
    """Train REINFORCE, N-MPG, N-PG-IGT and N-HARPG and compare them.

    Args:
        out: folder for the runs and the figure; older runs of a demo there are replaced
        env: environment
        env_steps: of each seed and method; default: the recipe's
        seeds: of each method
    """
    for algo in METHODS:  # runs of an older demo, and nothing else
        if (out / algo / "config.json").exists():
            shutil.rmtree(out / algo)
    begun, folders, jobs = time.monotonic(), [], []
    for algo in METHODS:
        settings, knobs, _ = defaults(algo, env)
        settings = dataclasses.replace(settings, seed=SEED, seeds=seeds, env_steps=env_steps or settings.env_steps)
        argv = ["pgrl", "train", algo, "--env", env, "--env-steps", str(settings.env_steps), "--seeds", str(seeds)]
        argv += ["--seed", str(SEED)]
        folders.append(out / algo)
        jobs.append((as_config(algo, settings, knobs, "cpu"), out / algo, argv, True))
    print(f"{' '.join(METHODS)} on {env}: {seeds} seeds × {settings.env_steps:,} environment steps each", file=sys.stderr)
    with ProcessPoolExecutor(cpus(), multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(start, *job) for job in jobs]):
            print(f"{time.monotonic() - begun:4.0f} s  {future.result()}", file=sys.stderr)
    figure = curves(folders, out / "gap.png")
    print(f"\n{table(folders)}\n")
    print(f"figure       {figure}\nnumbers      {figure.with_suffix('.csv')}\nTensorBoard  tensorboard --logdir {out}")
    print(f"{time.monotonic() - begun:.0f} seconds", file=sys.stderr)


if __name__ == "__main__":
    guarded(lambda: tyro.cli(demo))
