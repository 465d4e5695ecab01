"""`make bench-gflownet`: iterations per second of GFlowNets on the hypergrid beside torchgfn and gfnx, in one run.

    python -m experiments.bench.gflownet [--peers .venv-peers/bin/python] [--seconds 8] [--out FILE.md]

The same network (one-hot input, 2 × 256, LeakyReLU), batch, objective, uniform P_B and trained policy for all, on-policy: the
policy is trained first, by trajectory balance, and handed to each. A figure is the median over ten windows, the better of one
thread and all; ours is measured before and after the peers, and the mean stands in the ratio. Without the peers' environment
only ours is measured.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # torch's threads spin, as the peers' do: the machine should be idle

import numpy as np
import torch
import tyro

from envs.dag.hypergrid import HyperGrid
from experiments.bench.peers.measure import WINDOW, per_second
from experiments.pg.config import cpus
from experiments.run.provenance import processor
from gflownet.evaluation import exact_law
from gflownet.gflownet import GFlowNet, GFlowNetState
from gflownet.metrics import SlidingWindow, l1_sum
from gflownet.problem import ITERATION, DagProblem
from gflownet.registry import register
from gflownet.sampling.sampler import sampler

Row = dict[str, Any]
OBJECTIVES = ("fm", "tb", "db", "subtb")
BATCHES = (16, 256, 4096)
SHAPE, R0 = (4, 8), 0.01
THRESHOLDS = (0.5, 0.3, 0.2, 0.1)
UNITS = {"speed": "iterations_per_s", "sample": "trajectories_per_s"}


def ours(mode: str, objective: str, batch: int, weights: Path, seconds: float) -> Row:
    """Our figure as the peers' scripts print theirs."""
    method, problem = _method(objective), DagProblem(HyperGrid(*SHAPE, R0), (0,), batch, 1_000_000)
    state, t = _begin(method, problem, weights), 0

    def train(n: int) -> float:
        nonlocal state, t
        steps = 0.0
        for _ in range(n):
            state, outcome = method.step(state, problem, t)
            steps, t = steps + float(outcome.metrics["rollout/length"]), t + 1
        return steps / n

    def sample(n: int) -> float:
        nonlocal t
        steps = 0.0
        for _ in range(n):
            act = sampler(problem.env, method.model(problem), state.theta, batch)
            tau = problem.play(act, problem.rng(ITERATION, t))
            steps, t = steps + tau.steps / batch, t + 1
        return steps / n

    rows = []
    for threads in (1, cpus()):
        torch.set_num_threads(threads)
        if mode == "speed":
            rows.append(per_second(train, seconds / 2, "iterations_per_s"))
        else:
            rows.append(per_second(sample, seconds / 2, "trajectories_per_s", batch))
    return max(rows, key=lambda row: row[UNITS[mode]])


def _method(objective: str, final_rate: float = 1.0) -> GFlowNet:
    return GFlowNet(register()[objective].make(), learning_rate=1e-3, log_z_rate=0.1, final_rate=final_rate, log_z_start=5.3)


def _begin(method: GFlowNet, problem: DagProblem, weights: Path) -> GFlowNetState:
    """The policy of the file; a state flow of the objective's own begins afresh."""
    state, net = method.init(problem), method.model(problem).net
    with np.load(weights) as file:
        for k, (w, b) in enumerate(net.unpack(state.theta[0, : net.size]), 1):  # type: ignore[attr-defined]
            trained, bias = torch.from_numpy(file[f"w{k}"]), torch.from_numpy(file[f"b{k}"])
            w[:, : trained.shape[1]], b[: len(bias)] = trained, bias
    return state


def trained_policy(file: Path) -> None:
    """Trajectory balance to a sum-L1 of about 0.1, as the npz that the peers read."""
    problem = DagProblem(HyperGrid(*SHAPE, R0), (0,), 16, 4000)
    method = _method("tb", 0.05)
    state, net = method.init(problem), method.model(problem).net
    for t in range(problem.iterations):
        state, _ = method.step(state, problem, t)
    layers = net.unpack(state.theta[0, : net.size])  # type: ignore[attr-defined]
    np.savez(file, **{f"{x}{k}": y.numpy() for k, layer in enumerate(layers, 1) for x, y in zip("wb", layer, strict=True)})


def wall(seconds: float, objective: str, rate: float) -> list[Row]:
    """Training time to each sum-L1, of the window of the last 200,000 objects and of the policy's exact law; batch 16."""
    from envs.dag.enumeration import enumerate_dag

    torch.set_num_threads(cpus())
    env = HyperGrid(*SHAPE, R0)
    truth, problem = enumerate_dag(env), DagProblem(env, (0,), 16, 20_000)
    method = GFlowNet(register()[objective].make(), learning_rate=rate, log_z_rate=0.1)
    state, window, clock, rows = method.init(problem), SlidingWindow.begin(1, WINDOW, len(truth.objects), "cpu"), 0.0, []
    waiting = {"window": list(THRESHOLDS), "exact": list(THRESHOLDS)}
    t = 0
    while clock < seconds and any(waiting.values()):
        built, begun = [], time.perf_counter()
        for _ in range(100):
            state, outcome = method.step(state, problem, t)
            built.append(outcome.objects[0])
            t += 1
        clock += time.perf_counter() - begun
        window = window.add(truth.object_of(torch.cat(built))[None])
        law = exact_law(method, state, problem, truth)
        for metric, value in (("window", window.law), ("exact", law)):
            distance = float(l1_sum(value, truth.law)[0])
            while waiting[metric] and distance < waiting[metric][0]:
                rows.append({"metric": metric, "sum_l1_below": waiting[metric].pop(0), "seconds": clock, "iterations": t})
    return rows


def peer(python: Path, name: str, *arguments: str) -> list[Row]:
    """What a peer's script prints."""
    script = Path(__file__).parent / "peers" / f"{name}_bench.py"
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        print(f"{name} {' '.join(arguments)}: nothing measured. {done.stderr.strip()[-200:]}", file=sys.stderr)
    return rows


def bench(
    peers: Path = Path(".venv-peers/bin/python"),
    batches: tuple[int, ...] = BATCHES,
    seconds: float = 8.0,
    wall_seconds: float = 120.0,
    out: Path = Path("experiments/results/gflownet-speed.md"),
) -> None:
    """Measure, print, and write a table.

    Args:
        peers: Python of the environment that holds torchgfn and gfnx; without it only ours is measured
        batches: trajectories in an iteration
        seconds: of measuring, for each figure
        wall_seconds: of training at most, in the race to a distance; 0: none
        out: Markdown table
    """
    names = ("torchgfn", "gfnx") if peers.exists() else ()
    lines = [f"{processor()}, {cpus()} CPUs, Python {platform.python_version()}, torch {torch.__version__}", ""]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "trained.npz"
        trained_policy(weights)
        for mode, unit in UNITS.items():
            head = "Training, iterations/s" if mode == "speed" else "Sampling only, trajectories/s"
            lines += [f"**{head}** (length: mean steps of an episode)", "", "| batch | objective | ours (length) |"]
            lines[-1] += "".join(f" {name} (length) | ratio |" for name in names)
            lines += ["|---" * (3 + 2 * len(names)) + "|"]
            for batch in batches:
                for objective in OBJECTIVES if mode == "speed" else ("tb",):
                    lines.append(_row(mode, unit, objective, batch, weights, seconds, peers, names))
                    print(lines[-1], file=sys.stderr, flush=True)
            lines.append("")
    if wall_seconds > 0:
        lines += _race(peers, names, wall_seconds)
    text = "\n".join(lines) + "\n"
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"# Speed on the hypergrid, 4-D, H = 8, R0 = 0.01\n\n`make bench-gflownet`. {text}")


def _row(
    mode: str, unit: str, objective: str, batch: int, weights: Path, seconds: float, peers: Path, names: tuple[str, ...]
) -> str:
    before = ours(mode, objective, batch, weights, seconds / 2)
    theirs: list[Row | None] = []
    for name in names:
        if name == "gfnx" and objective == "fm":
            theirs.append(None)
            continue
        common = ("--mode", mode, "--objective", objective, "--batch", str(batch), "--weights", str(weights))
        found = peer(peers, name, *common, "--seconds", str(seconds))
        theirs.append(max((r for r in found if unit in r), key=lambda r: r[unit], default=None))
    after = ours(mode, objective, batch, weights, seconds / 2)
    rate = (before[unit] + after[unit]) / 2
    cells = [f"{batch:,}", objective, f"{rate:,.4g} ({after['mean_episode_length']:.0f})"]
    for r in theirs:
        cells += ["–", "–"] if r is None else [f"{r[unit]:,.3g} ({r['mean_episode_length']:.0f})", f"{rate / r[unit]:.1f}"]
    return f"| {' | '.join(cells)} |"


def _race(peers: Path, names: tuple[str, ...], seconds: float) -> list[str]:
    """Seconds of training to each distance; compilation apart."""
    columns = {"ours, TB": wall(seconds, "tb", 1e-3), "ours, modified DB, step 0.003": wall(seconds, "mdb", 3e-3)}
    for name in names:
        columns[f"{name}, TB"] = peer(
            peers, name, "--mode", "wall", "--seconds", str(seconds), "--threads", "1" if name == "torchgfn" else "2"
        )
    lines = [
        "**Seconds of training to a sum-L1**, batch 16, from scratch, Adam's step 0.001 where not said, compilation apart",
        "",
    ]
    lines += ["| distance | below |" + "".join(f" {name} |" for name in columns), "|---" * (2 + len(columns)) + "|"]
    for metric in ("window", "exact"):
        for threshold in THRESHOLDS:
            cells = []
            for rows in columns.values():
                hit = [r for r in rows if r.get("metric") == metric and r.get("sum_l1_below") == threshold and r.get("seconds")]
                cells.append(f"{hit[0]['seconds']:.1f}" if hit else f"not in {seconds:.0f}")
            lines.append(
                f"| {'last 200,000 objects' if metric == 'window' else 'exact law'} | {threshold} | {' | '.join(cells)} |"
            )
    return [*lines, ""]


if __name__ == "__main__":
    tyro.cli(bench)
