"""`make demo`: the studies of the gridworld and of molecules, HalfCheetah, and flow matching on two hypergrids.

python -m experiments.demo [--out runs/demo] [--scale 0.1]
"""

from __future__ import annotations

import io
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
import tyro

import gflownet
import pgrl
from experiments.cli.errors import guarded
from experiments.pg.config import cpus
from experiments.plots.curves import curves, table
from experiments.plots.gflownet import distribution
from experiments.studies import gridworld, molecules, scaled


def demo(out: Path = Path("runs/demo"), scale: float = 1.0) -> None:
    """Train policy gradients on the gridworld and HalfCheetah, GFlowNets on molecules and hypergrids; draw tables and figures.

    Args:
        out: folder for the runs and figures; finished runs there are loaded, others continued
        scale: factor of the budgets
    """
    begun = time.monotonic()
    parts: dict[str, Callable[[Path, float], Path]] = {
        "molecules": molecules.study,  # the longest first
        "halfcheetah": halfcheetah,
        "gridworld": gridworld.study,
        "hypergrid": hypergrids,
    }
    print(f"training {', '.join(parts)}: some minutes", file=sys.stderr)
    with ProcessPoolExecutor(min(cpus(), len(parts)), multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_alone, part, out / name, scale) for name, part in parts.items()]):
            print(done.result(), flush=True)
            print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(f"TensorBoard: tensorboard --logdir {out}")


def halfcheetah(out: Path, scale: float) -> Path:
    """N-PG-IGT on HalfCheetah with its recipe, three seeds: the return of the mean action against environment steps."""
    settings = {"env_steps": scaled(200_000, scale), "seeds": 3, "seed": 100, "evaluations": 10, "eval_episodes": 2}
    run = pgrl.train("n-pg-igt", env="HalfCheetah-v5", out=out / "n-pg-igt", resume=True, workers=0, **settings)
    print(table([run.folder], "eval/return_mean_action"))
    return curves([run.folder], out / "return.png", "eval/return_mean_action")


def hypergrids(out: Path, scale: float) -> Path:
    """Flow matching: L1 against objects visited on a 4-D grid; the learnt distribution beside the target on a 2-D grid."""
    large, flat = (
        gflownet.train(
            "hypergrid", "fm", out=out / f"fm-{ndim}d", resume=True, ndim=ndim, height=height, r0=0.01, states=states, seed=100
        ).folder
        for ndim, height, states in ((4, 8, scaled(60_000, scale)), (2, 16, scaled(32_000, scale)))
    )
    print(table([large]))
    print(f"figure: {curves([large], out / 'l1.png', x='states')}")
    return distribution(flat, out / "distribution.png")


def _alone(part: Callable[[Path, float], Path], out: Path, scale: float) -> str:
    """One part in a process with one thread, since there is a process for each core; what it prints."""
    torch.set_num_threads(1)
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()):
        print(f"figure: {part(out, scale)}")
    return said.getvalue()


if __name__ == "__main__":
    guarded(lambda: tyro.cli(demo))
