"""`make demo`: policy gradients on the gridworld, GFlowNets on hypergrids and on molecules; tables, figures, TensorBoard files.

python -m experiments.demo [--out runs/demo] [--env-steps 60_000] [--seeds 10]
"""

from __future__ import annotations

import csv
import dataclasses
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import tyro

from experiments.cli.errors import guarded
from experiments.cli.molecules import sample
from experiments.gfn import commands as gfn_commands
from experiments.gfn import config as gfn_config
from experiments.molecules.pictures import draw
from experiments.pg.commands import start
from experiments.pg.config import as_config, cpus, defaults
from experiments.plots.curves import curves, table
from experiments.plots.gflownet import distribution

SEED = 100  # the recipes were tuned on others
METHODS = ("reinforce", "n-mpg", "n-pg-igt", "n-harpg")
GRIDS = {"flow-4d": (4, 8, 60_000), "flow-2d": (2, 16, 32_000)}  # ndim, height, objects of each seed
MOLECULES = 24_000  # visited while training on QED·SA; then SAMPLED are drawn, SHOWN of them in a picture
SAMPLED, SHOWN = 200, 48


def demo(out: Path = Path("runs/demo"), env: str = "gridworld", env_steps: int | None = None, seeds: int = 10) -> None:
    """Train REINFORCE, N-MPG, N-PG-IGT and N-HARPG and compare them; train GFlowNets on grids and on molecules.

    Args:
        out: folder for the runs and the figure; older runs of a demo there are replaced
        env: environment
        env_steps: of each seed and method; default: the recipe's
        seeds: of each method
    """
    for algo in (*METHODS, *GRIDS, "molecules"):  # runs of an older demo, and nothing else
        if (out / algo / "config.json").exists():
            shutil.rmtree(out / algo)
    begun, folders = time.monotonic(), []
    jobs: list[tuple[Any, ...]] = [_molecules(out / "molecules")]  # the longest first
    jobs += [_flow(out / name, *grid) for name, grid in GRIDS.items()]
    for algo in METHODS:
        settings, hyperparameters, _ = defaults(algo, env)
        settings = dataclasses.replace(settings, seed=SEED, seeds=seeds, env_steps=env_steps or settings.env_steps)
        argv = ["pgrl", "train", algo, "--env", env, "--env-steps", str(settings.env_steps), "--seeds", str(seeds)]
        argv += ["--seed", str(SEED)]
        folders.append(out / algo)
        jobs.append((start, as_config(algo, settings, hyperparameters, "cpu"), out / algo, argv, True))
    print(f"{' '.join(METHODS)} on {env}: {seeds} seeds × {settings.env_steps:,} environment steps each", file=sys.stderr)
    with ProcessPoolExecutor(cpus(), multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_alone, *job) for job in jobs]):
            print(f"{time.monotonic() - begun:4.0f} s  {future.result()}", file=sys.stderr)
    figure, flow = curves(folders, out / "gap.png"), curves([out / "flow-4d"], out / "flow.png", x="states")
    print(f"\n{table(folders)}\n\n{table([out / 'flow-4d'])}\n")
    print(f"figures      {figure}  {flow}  {distribution(out / 'flow-2d', out / 'distribution.png')}")
    print(f"molecules    {out / 'molecules.png'}  {out / 'molecules.csv'}  {SAMPLED} drawn, the first {SHOWN} in the picture")
    print(f"numbers      {figure.with_suffix('.csv')}  {flow.with_suffix('.csv')}\nTensorBoard  tensorboard --logdir {out}")
    print(f"{time.monotonic() - begun:.0f} seconds", file=sys.stderr)


def _flow(folder: Path, ndim: int, height: int, states: int) -> tuple[Any, ...]:
    """Flow matching on a hypergrid as a job: what to call, and its arguments."""
    train, choice, _ = gfn_config.defaults("fm", "hypergrid")
    env_settings = {**choice.env_settings, "ndim": ndim, "height": height, "r0": 0.01}
    train = dataclasses.replace(train, states=states, seed=SEED, checkpoints=4)
    argv = ["gflownet", "train", "hypergrid", "--objective", "fm", "--ndim", str(ndim), "--height", str(height)]
    argv += ["--r0", "0.01", "--states", str(states), "--seed", str(SEED)]
    config = gfn_config.as_config(dataclasses.replace(choice, env_settings=env_settings), train, "cpu")
    return gfn_commands.start, config, folder, argv, True


def _molecules(folder: Path) -> tuple[Any, ...]:
    """A GFlowNet on molecules of our own fragments as a job, with a file of molecules and a picture beside its folder."""
    train, choice, _ = gfn_config.defaults("tb", "molecules")
    choice = dataclasses.replace(choice, env_settings={**choice.env_settings, "reward": "qed*sa", "max_blocks": 5})
    train = dataclasses.replace(train, states=MOLECULES, seed=SEED, checkpoints=4, evaluations=10)
    argv = ["gflownet", "train", "molecules", "--objective", "tb", "--reward", "qed*sa", "--max-blocks", "5"]
    argv += ["--states", str(MOLECULES)]
    return _trained_and_drawn, gfn_config.as_config(choice, train, "cpu"), folder, [*argv, "--seed", str(SEED)], True


def _trained_and_drawn(config: dict[str, Any], folder: Path, argv: list[str], quiet: bool) -> Path:
    gfn_commands.start(config, folder, argv, quiet)
    file = folder.with_name("molecules.csv")
    sample([str(folder), "--n", str(SAMPLED), "--unique", "--out", str(file), "--quiet"])
    with file.open(newline="") as rows:
        shown = list(csv.DictReader(rows))[:SHOWN]
    picture = draw([row["smiles"] for row in shown], [f"{float(row['reward']):.3f}" for row in shown], columns=8)
    file.with_suffix(".png").write_bytes(picture)
    return folder


def _alone(work: Callable[..., Path], *arguments: Any) -> Path:
    """One job in a process with one thread: there is a process for each core."""
    torch.set_num_threads(1)
    return work(*arguments)


if __name__ == "__main__":
    guarded(lambda: tyro.cli(demo))
