"""`make bench-learning`: learning curves of ours and of Stable-Baselines3 with its defaults, at equal environment steps.

    python -m experiments.bench.learning [--tasks HalfCheetah-v5 Hopper-v5 ...] [--algos n-mpg n-pg-igt n-harpg]
    python -m experiments.bench.learning --runs RUN ... --out experiments/results          draws runs that are there

The value is the return of the mean action. Ours are trained with their recipes; PPO, A2C and TRPO by `peers/sb3_bench.py` in an
environment of their own, whose curves stand in a CSV file that is committed, so that figures are made again without it. Both
go on where they were stopped: a finished run or seed is not trained again.

Made by it: a figure with intervals over seeds and its CSV for each task, and learning.md.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

import pgrl
from experiments.cli.errors import UserError, guarded
from experiments.plots.curves import curves, gather
from experiments.plots.statistics import bootstrap_interval, iqm
from experiments.run.run import Run

METRIC = "eval/return_mean_action"
PEER = Path(__file__).parent / "peers" / "sb3_bench.py"


def bench(
    runs: tuple[Path, ...] = (),
    tasks: tuple[str, ...] = ("HalfCheetah-v5",),
    algos: tuple[str, ...] = ("n-mpg", "n-pg-igt", "n-harpg"),
    env_steps: int = 1_000_000,
    seeds: int = 10,
    seed: int = 200,
    folder: Path = Path("runs/bench-learning"),
    peers: Path = Path(".venv-sb3/bin/python"),
    peer_algos: tuple[str, ...] = ("ppo", "a2c", "trpo"),
    peer_seeds: int = 5,
    csv: Path = Path("experiments/results/sb3.csv"),
    out: Path = Path("experiments/results"),
) -> list[Path]:
    """Train what is missing, then draw one figure for each task.

    Args:
        runs: run folders to draw; nothing is trained
        tasks: Gymnasium ids
        algos: of ours
        env_steps: budget of each seed
        seeds: of ours
        seed: first seed of ours, which the tuning has not seen
        folder: where ours are trained
        peers: Python of the environment that holds Stable-Baselines3
        peer_algos: of theirs: ppo, a2c, trpo
        peer_seeds: seeds 0, 1, ... of theirs
        csv: curves of theirs
        out: folder of the figures
    """
    if not runs:
        train_peers(peers, csv, tasks, peer_algos, peer_seeds, env_steps)
        runs = tuple(
            pgrl.train(
                algo, env=task, out=folder / task / algo, resume=True, seeds=seeds, seed=seed, env_steps=env_steps
            ).folder
            for task in tasks
            for algo in algos
        )
    return report(runs, csv, out)


def train_peers(peers: Path, csv: Path, tasks: Sequence[str], algos: Sequence[str], seeds: int, env_steps: int) -> None:
    """Curves of Stable-Baselines3 that are not in the file yet; a sentence on stderr where it is not installed."""
    if not peers.exists():
        print(f"Stable-Baselines3 is not installed ({peers}): its curves are those of {csv}", file=sys.stderr)
        return
    options = {
        "tasks": tasks,
        "algos": algos,
        "seeds": map(str, range(seeds)),
        "env-steps": [str(env_steps)],
        "out": [str(csv)],
    }
    words = [word for name, values in options.items() for word in (f"--{name}", *values)]
    if subprocess.run([peers, PEER, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
        raise UserError(f"{PEER.name} failed: the same command goes on with the seeds that are missing", exit_code=1)


def report(runs: Sequence[Path], csv: Path, out: Path) -> list[Path]:
    """Figures, the CSV beside each, and learning.md with the values at the end.

    Args:
        runs: run folders of one or more tasks, which log the return of the mean action.
        csv: curves of the peers; a task that is not in it is drawn without them.
        out: the folder.

    Returns:
        The figures, in the order of the tasks.
    """
    tasks: dict[str, list[Path]] = {}
    for run in runs:
        tasks.setdefault(str(Run.open(run).config.get("env")), []).append(run)
    known, figures = environments(csv), []
    lines = [
        "# Learning curves beside Stable-Baselines3 with its defaults",
        "",
        "`make bench-learning`. Return of the mean action.",
    ]
    for task, folders in tasks.items():
        others = csv if task in known else None
        if others is None:
            print(f"{csv} has no curves of {task}: it is drawn without them", file=sys.stderr)
        figures.append(curves(folders, out / f"learning-{task.lower()}.png", METRIC, others=others))
        lines += ["", f"## {task}", "", *table(folders, others)]
    text = "\n".join(lines) + "\n"
    (out / "learning.md").write_text(text)
    print(text)
    return figures


def environments(path: Path) -> set[str]:
    """What the curves of a CSV file are of."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {row.get("env") or "" for row in csv.DictReader(file)}


def table(runs: Sequence[Path], others: Path | None) -> list[str]:
    """Lines of Markdown: the interquartile mean, the worst and the best seed where the shortest line ends."""
    _, found, _ = gather(runs, METRIC, "env_steps", None, others=others)
    budget = min(curve.x[-1] for curve in found)
    lines = [
        f"| method | seeds | after {budget:,.0f} steps: interquartile mean | 95 % interval | worst seed | best seed |",
        "|---" * 6 + "|",
    ]
    for curve in found:
        last = np.array([np.interp(budget, curve.x, y) for y in curve.y])
        low, high = bootstrap_interval(last)
        ends = f"{low:,.0f} to {high:,.0f} | {last.min():,.0f} | {last.max():,.0f}"
        lines.append(f"| {curve.algo} | {len(last)} | {iqm(last):,.0f} | {ends} |")
    return lines


if __name__ == "__main__":
    guarded(lambda: print("\n".join(f"figure: {made}" for made in tyro.cli(bench))))
