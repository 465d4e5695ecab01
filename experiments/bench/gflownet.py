"""`make bench-gflownet`: GFlowNets on three hypergrids beside torchgfn and gfnx, by wall clock and by CPU time, in one run.

    python -m experiments.bench.gflownet [--peers .venv-peers/bin/python] [--seconds 5] [--out FILE.md]

Batch, objective, uniform P_B and the sampling policy are the same for all, on-policy: a one-hot MLP of 2 × 256 with LeakyReLU
is trained by trajectory balance first and handed to each. FM and TB train that network alone in every library. For the state
flow of DB and SubTB, ours and gfnx add one output to it, and torchgfn trains a second network of the same size. Adam's step is
too small to change the policy, so that episodes are equally long for all, from the first window to the last.

Every library is timed with one thread and with all. CPU time is that of the run with one thread. A figure is the median over
windows; ours is measured before and after the peers, and the mean is compared. A peer that is not installed is named as such.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # torch's threads spin, as the peers' do

import numpy as np
import torch
import tyro

from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from experiments.bench.peers.measure import THRESHOLDS, log_z, per_second, race
from experiments.pg.config import cpus
from experiments.run.provenance import processor
from gflownet.evaluation import exact_distribution
from gflownet.gflownet import GFlowNet, GFlowNetState
from gflownet.metrics import l1_sum
from gflownet.problem import ITERATION, DagProblem
from gflownet.registry import register
from gflownet.sampling.sampler import sampler

Row = dict[str, Any]
PEERS = ("torchgfn", "gfnx")
OBJECTIVES = ("fm", "tb", "db", "subtb")
UNITS = {"speed": "iterations_per_s", "sample": "trajectories_per_s"}
GRIDS = {"4-D, H = 8": (4, 8), "8-D, H = 8": (8, 8), "2-D, H = 64": (2, 64)}
BATCHES = {"4-D, H = 8": (16, 256, 4096), "8-D, H = 8": (16, 256), "2-D, H = 64": (16, 256)}
R0, STILL = 0.01, 1e-12  # Adam's step while the clock runs


@dataclass(frozen=True)
class Comparison:
    """One grid on which all libraries begin from the same policy.

    grid      dimensions and height         weights   npz of the policy
    seconds   of measuring, for each figure  peers     Python of the environment that holds the other libraries
    """

    grid: tuple[int, int]
    weights: Path
    seconds: float
    peers: Path
    parameters: dict[tuple[str, str], int] = field(default_factory=dict)

    def ours(self, mode: str, objective: str, batch: int) -> list[Row]:
        """A row for one thread and a row for all, as the peers' scripts print theirs."""
        method = method_of(objective, self.grid, STILL, STILL)
        problem = DagProblem(HyperGrid(*self.grid, R0), (0,), batch, 1_000_000)
        state, t = _begin(method, problem, self.weights), 0
        self.parameters["ours", objective] = method.model(problem).net.size

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
        for threads in _threads():
            torch.set_num_threads(threads)
            each = {"speed": 1, "sample": batch}[mode]
            row = per_second(train if mode == "speed" else sample, self.seconds / 2, UNITS[mode], each)
            rows.append(row | {"threads": threads})
        return rows

    def theirs(self, name: str, mode: str, objective: str, batch: int) -> list[Row] | str:
        """The same of a peer, or why there is none."""
        if name == "gfnx" and objective == "fm":
            return "no FM"
        if not version_of(self.peers, name):
            return "not installed"
        rows = []
        for threads in _threads():
            options = {"mode": mode, "objective": objective, "batch": batch, "threads": threads, "weights": self.weights}
            options |= {"ndim": self.grid[0], "height": self.grid[1], "r0": R0, "seconds": self.seconds}
            options |= {"lr": STILL, "lr-z": STILL}
            found = [row for row in run_peer(self.peers, name, options) if UNITS[mode] in row]
            if not found:
                return "failed"
            self.parameters[name, objective] = found[0]["parameters"]
            rows += found
        return rows

    def row(self, mode: str, objective: str, batch: int) -> str:
        """A line of the table."""
        unit = UNITS[mode]
        before = self.ours(mode, objective, batch)
        theirs = [self.theirs(name, mode, objective, batch) for name in PEERS]
        after = self.ours(mode, objective, batch)
        mean = [
            a | {key: (a[key] + b[key]) / 2 for key in (unit, "cpu_ms", "mean_episode_length")}
            for a, b in zip(before, after, strict=True)
        ]
        cells = [f"{batch:,}", objective, *_figures(mean, unit)]
        for rows in theirs:
            if isinstance(rows, str):
                cells += [rows, "–", "–"]
                continue
            wall = max(r[unit] for r in mean) / max(r[unit] for r in rows)
            cells += [*_figures(rows, unit), f"{wall:.1f}, {rows[0]['cpu_ms'] / mean[0]['cpu_ms']:.1f}"]
        return f"| {' | '.join(cells)} |"


def _threads() -> list[int]:
    return sorted({1, cpus()})


def _figures(rows: list[Row], unit: str) -> list[str]:
    """Rates with one thread and with all; CPU time with one, and the mean length of an episode."""
    rates = " / ".join(f"{row[unit]:,.3g}" if row[unit] < 1000 else f"{row[unit]:,.0f}" for row in rows)
    return [rates, f"{rows[0]['cpu_ms']:,.3g} ({rows[0]['mean_episode_length']:.0f})"]


def method_of(objective: str, grid: tuple[int, int], rate: float, log_z_rate: float, final_rate: float = 1.0) -> GFlowNet:
    entry, start = register()[objective], log_z(*grid, R0)
    return GFlowNet(entry.make(), learning_rate=rate, log_z_rate=log_z_rate, final_rate=final_rate, log_z_start=start)


def _begin(method: GFlowNet, problem: DagProblem, weights: Path) -> GFlowNetState:
    """The policy of the file; a state flow of the objective's own begins afresh."""
    state, net = method.init(problem), method.model(problem).net
    with np.load(weights) as file:
        for k, (w, b) in enumerate(net.unpack(state.theta[0, : net.size]), 1):  # type: ignore[attr-defined]
            trained, bias = torch.from_numpy(file[f"w{k}"]), torch.from_numpy(file[f"b{k}"])
            w[:, : trained.shape[1]], b[: len(bias)] = trained, bias
    return state


def trained_policy(file: Path, grid: tuple[int, int], iterations: int = 4000) -> None:
    """Trajectory balance (on 4-D, H = 8 to a sum-L1 of about 0.1), as the npz that the peers read."""
    problem = DagProblem(HyperGrid(*grid, R0), (0,), 16, iterations)
    method = method_of("tb", grid, 1e-3, 0.1, 0.05)
    state, net = method.init(problem), method.model(problem).net
    for t in range(problem.iterations):
        state, _ = method.step(state, problem, t)
    layers = net.unpack(state.theta[0, : net.size])  # type: ignore[attr-defined]
    np.savez(file, **{f"{x}{k}": y.numpy() for k, layer in enumerate(layers, 1) for x, y in zip("wb", layer, strict=True)})


def version_of(peers: Path, name: str) -> str:
    """Of a library in the peers' environment; empty if it is not there."""
    if not peers.exists():
        return ""
    code = f"import {'gfn' if name == 'torchgfn' else name}; from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([peers, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def run_peer(python: Path, name: str, options: dict[str, Any]) -> list[Row]:
    """The rows that a peer's script prints."""
    script = Path(__file__).parent / "peers" / f"{name}_bench.py"
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        print(f"{name} {' '.join(arguments)}: nothing measured. {done.stderr.strip()[-200:]}", file=sys.stderr)
    return rows


def our_race(objective: str, rate: float, seed: int, seconds: float) -> list[Row]:
    """From scratch on 4-D, H = 8, batch 16, one thread."""
    torch.set_num_threads(1)
    env = HyperGrid(*GRIDS["4-D, H = 8"], R0)
    truth, problem = enumerate_dag(env), DagProblem(env, (seed,), 16, 1_000_000)
    method = GFlowNet(register()[objective].make(), learning_rate=rate, log_z_rate=0.1)
    state, t = method.init(problem), 0

    def train(n: int) -> None:
        nonlocal state, t
        for _ in range(n):
            state, _ = method.step(state, problem, t)
            t += 1

    return race(train, lambda: float(l1_sum(exact_distribution(method, state, problem, truth), truth.target)[0]), seconds)


def race_rows(peers: Path, seeds: int, seconds: float) -> Iterator[str]:
    """The race to a distance: median and range over seeds, by three clocks."""
    entries: dict[str, Callable[[int], list[Row]]] = {
        "ours, TB": lambda seed: our_race("tb", 1e-3, seed, seconds),
        "ours, modified DB, step 0.003": lambda seed: our_race("mdb", 3e-3, seed, seconds),
    }
    for name in PEERS:
        if not version_of(peers, name):
            continue
        options = {"mode": "race", "seconds": seconds, "threads": 1, "ndim": 4, "height": 8, "r0": R0}
        entries[f"{name}, TB"] = lambda seed, name=name, options=options: run_peer(peers, name, options | {"seed": seed})  # type: ignore[misc]
    found: dict[str, list[list[Row]]] = {name: [] for name in entries}
    for seed in range(seeds):
        for name, run in entries.items():
            found[name].append(run(seed))
            print(f"race, seed {seed}, {name}: {found[name][-1][-1:]}", file=sys.stderr, flush=True)
    yield f"**The race to a sum-L1 of the policy's exact distribution**, 4-D, H = 8, batch 16, {seeds} seeds, one thread"
    yield ""
    yield "Median (range) over the seeds, from scratch, Adam's step 0.001 where not said, compilation apart."
    yield f"A run stops after {seconds:.0f} s of CPU time."
    yield ""
    yield "| method | clock |" + "".join(f" below {threshold} |" for threshold in THRESHOLDS)
    yield "|---" * (2 + len(THRESHOLDS)) + "|"
    for name in found:
        for clock, label in {"cpu_seconds": "CPU s", "seconds": "wall s", "iterations": "iterations"}.items():
            cells = [_over_seeds(found[name], threshold, clock) for threshold in THRESHOLDS]
            yield f"| {name} | {label} | {' | '.join(cells)} |"
    compiled = [rows[-1]["compile_s"] for rows in found.get("gfnx, TB", []) if rows]
    if compiled:
        yield ""
        yield f"gfnx compiles for {statistics.median(compiled):.1f} s before it begins."
    for name in PEERS:
        if f"{name}, TB" not in found:
            yield from ("", f"{name}: not installed.")
    yield ""


def _over_seeds(runs: list[list[Row]], threshold: float, clock: str) -> str:
    """Median (least–most) of when the runs reached a threshold; how many of them did where not all."""
    values = [next((r[clock] for r in rows if r.get("sum_l1_below") == threshold), math.inf) for rows in runs]
    reached = sum(map(math.isfinite, values))

    def text(x: float) -> str:
        return "not reached" if math.isinf(x) else f"{x:,.0f}" if clock == "iterations" else f"{x:.1f}"

    if not reached:
        return text(math.inf)
    middle = sorted(values)[(len(values) - 1) // 2 : len(values) // 2 + 1]
    spread = f"{text(statistics.fmean(middle))} ({text(min(values))}–{text(max(values))})"
    return spread if reached == len(runs) else f"{spread}, {reached} of {len(runs)}"


def speed_rows(name: str, peers: Path, seconds: float, batches: tuple[int, ...]) -> Iterator[str]:
    """The tables of one grid."""
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(GRIDS[name], Path(folder) / "trained.npz", seconds, peers)
        torch.set_num_threads(1)
        trained_policy(comparison.weights, comparison.grid)
        yield from (f"## {name}, {HyperGrid(*comparison.grid, R0).height ** comparison.grid[0]:,} cells", "")
        for mode, title in (("speed", "Training, iterations/s"), ("sample", "Sampling only, trajectories/s")):
            each = "iteration" if mode == "speed" else "trajectory"
            yield from (f"**{title}: one thread / all**; CPU ms of one {each}, one thread (mean steps of an episode)", "")
            head = "".join(f" {peer} | CPU ms | ratio: wall, CPU |" for peer in PEERS)
            yield f"| batch | objective | ours | CPU ms |{head}"
            yield "|---" * (4 + 3 * len(PEERS)) + "|"
            for batch in batches:
                for objective in OBJECTIVES if mode == "speed" else ("tb",):
                    yield comparison.row(mode, objective, batch)
            yield ""
        sizes = [
            f"{objective} " + ", ".join(f"{who} {n:,}" for (who, what), n in comparison.parameters.items() if what == objective)
            for objective in OBJECTIVES
        ]
        yield from (f"Trained parameters: {'; '.join(sizes)}.", "")


def bench(
    peers: Path = Path(".venv-peers/bin/python"),
    grids: tuple[str, ...] = tuple(GRIDS),
    batches: tuple[int, ...] = (),
    seconds: float = 5.0,
    race_seconds: float = 60.0,
    race_seeds: int = 8,
    out: Path = Path("experiments/results/gflownet-speed.md"),
) -> None:
    """Measure, print, and write a table.

    Args:
        peers: Python of the environment that holds torchgfn and gfnx
        grids: which; default: all three
        batches: trajectories in an iteration; default: 16 and 256, on 4-D, H = 8 also 4,096
        seconds: of measuring, for each figure
        race_seconds: of CPU time at most, for each run of the race to a distance; 0: no race
        race_seeds: of each method in the race
        out: Markdown table, written line by line
    """
    if unknown := set(grids) - set(GRIDS):
        raise SystemExit(f"got grids {', '.join(sorted(unknown))}, expected some of: {'; '.join(GRIDS)}")
    machine = f"{processor()}, {cpus()} CPUs, Python {platform.python_version()}, torch {torch.__version__}"
    found = ", ".join(f"{name} {version_of(peers, name) or 'not installed'}" for name in PEERS)
    lines = ["# Speed on the hypergrid, R0 = 0.01", "", f"`make bench-gflownet`. {machine}; {found}.", ""]
    parts = [speed_rows(name, peers, seconds, batches or BATCHES[name]) for name in grids]
    if race_seconds > 0:
        parts.append(race_rows(peers, race_seeds, race_seconds))
    out.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for line in part:
            lines.append(line)
            print(line, flush=True)
            out.write_text("\n".join(lines).rstrip("\n") + "\n")


if __name__ == "__main__":
    tyro.cli(bench)
