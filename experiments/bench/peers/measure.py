"""What the peers' scripts share: arguments, the target distribution, two clocks, and rows of JSON. NumPy alone is needed."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable
from functools import reduce
from time import perf_counter, process_time
from typing import Any

import numpy as np

Row = dict[str, Any]
Array = np.ndarray[Any, np.dtype[Any]]
THRESHOLDS = (0.5, 0.3, 0.2, 0.1)


def arguments(peer: str) -> argparse.Namespace:
    """The command line of a peer's script."""
    parser = argparse.ArgumentParser(description=f"Time {peer} on the hypergrid; prints a line of JSON for each measurement.")
    parser.add_argument("--mode", choices=("speed", "sample", "race"), default="speed")
    parser.add_argument("--objective", choices=("fm", "tb", "db", "subtb"), default="tb")
    parser.add_argument("--batch", type=int, default=16, help="trajectories in an iteration")
    parser.add_argument("--ndim", type=int, default=4, help="coordinates of a cell")
    parser.add_argument("--height", type=int, default=8, help="values of a coordinate")
    parser.add_argument("--r0", type=float, default=0.01, help="reward everywhere")
    parser.add_argument("--weights", default="", help="npz to begin from: w1 [in, 256], b1, w2, b2, w3 [256, actions], b3")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure for, after warm-up and compilation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's step size for the networks")
    parser.add_argument("--lr-z", type=float, default=0.1, help="Adam's step size for log Z")
    return parser.parse_args()


def header(peer: str, version: str, args: argparse.Namespace) -> Row:
    """The columns that say what was measured."""
    names = ("mode", "objective", "batch", "ndim", "height", "r0", "threads", "seed")
    return {"peer": peer, "version": version} | {k: getattr(args, k) for k in names} | {"trained": bool(args.weights)}


def emit(row: Row) -> None:
    print(json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def rewards(ndim: int, height: int, r0: float) -> Array:
    """R0 + 0.5 Π 1[0.25 < |x_d/(H−1) − 0.5|] + 2 Π 1[0.3 < |x_d/(H−1) − 0.5| < 0.4] of every cell, [H^n], last axis fastest."""
    # float32, because both libraries compute in it: at some heights (16 for one) the ring's edge falls exactly on a cell
    distance = np.abs(np.arange(height, dtype=np.float32) / np.float32(height - 1) - np.float32(0.5))
    outer, ring = distance > np.float32(0.25), (distance > np.float32(0.3)) & (distance < np.float32(0.4))
    corners, modes = (reduce(np.multiply.outer, [axis.astype(np.float64)] * ndim).ravel() for axis in (outer, ring))
    return np.asarray(r0 + 0.5 * corners + 2.0 * modes)


def log_z(ndim: int, height: int, r0: float) -> float:
    """log Σ_x R(x), where log Z begins when the policy is given."""
    return math.log(rewards(ndim, height, r0).sum())


def check_rewards(theirs: Array, ndim: int, height: int, r0: float) -> None:
    """Stop unless the library's rewards of all cells are the formula's."""
    ours = rewards(ndim, height, r0)
    if wrong := int((~np.isclose(theirs, ours, rtol=1e-5, atol=0)).sum()):
        raise SystemExit(f"{wrong} of {ours.size} rewards differ from the formula")


def terminal_law(probabilities: Array, ndim: int, height: int) -> Array:
    """Exact probability that an episode stops in each cell, [H^n], of a policy [H^n, n+1] whose last action is the stop."""
    cells = height**ndim
    level = np.indices((height,) * ndim).sum(0).ravel()
    reach = np.zeros(cells)
    reach[0] = 1.0
    for total in range(ndim * (height - 1)):
        here = np.flatnonzero(level == total)
        for d in range(ndim):
            stride = height ** (ndim - 1 - d)
            valid = here[here // stride % height < height - 1]
            reach[valid + stride] += reach[valid] * probabilities[valid, d]
    return reach * np.asarray(probabilities[:, -1], dtype=np.float64)


def cpu_seconds() -> float:
    """CPU time that other processes have used since the machine started, in seconds (Linux; NaN elsewhere)."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:9])
    except OSError:
        return math.nan
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])


def timed(run: Callable[[int], Any], n: int) -> tuple[float, Any]:
    begun = perf_counter()
    result = run(n)
    return perf_counter() - begun, result


def per_second(run: Callable[[int], float], seconds: float, name: str, each: int = 1, windows: int = 10) -> Row:
    """`each` times iterations per second, the median over windows, and the CPU time that one of them takes.

    Windows are of about `seconds / windows`, at least three, after a warm-up that finds how many iterations such a window
    holds. CPU time is that of this process: of one thread where one thread runs. Other processes disturb it less than they
    disturb the wall clock.

    Args:
        run: does n iterations and returns their mean episode length in actions, the stop included
        seconds: to measure for
        name: key of the rate
        each: trajectories or molecules of an iteration
        windows: how many

    Returns:
        `name`, its quartiles `low` and `high`, `cpu_ms` (milliseconds of CPU time, median), `windows`, `mean_episode_length`,
        and the CPUs that this process and all others kept busy meanwhile, `own_cpus` and `others_cpus`.
    """
    goal, n = seconds / windows, 1
    timed(run, 1)
    while (elapsed := timed(run, n)[0]) < 0.7 * goal:
        n = max(n + 1, math.ceil(n * min(4.0, goal / elapsed)))
    figures: list[float] = []
    cpu: list[float] = []
    lengths: list[float] = []
    begun, own, others = perf_counter(), process_time(), cpu_seconds()
    while perf_counter() - begun < seconds or len(figures) < 3:
        before = process_time()
        elapsed, length = timed(run, n)
        cpu.append(1000 * (process_time() - before) / n / each)
        figures.append(each * n / elapsed)
        lengths.append(length)
    low, median, high = statistics.quantiles(figures, n=4)
    spread = {name: median, "low": low, "high": high, "cpu_ms": statistics.median(cpu), "windows": len(figures)}
    elapsed = perf_counter() - begun
    load = {"own_cpus": (process_time() - own) / elapsed, "others_cpus": (cpu_seconds() - others) / elapsed}
    return spread | {"mean_episode_length": statistics.fmean(lengths)} | load


def race(run: Callable[[int], Any], distance: Callable[[], float], seconds: float, every: int = 100) -> list[Row]:
    """When Σ|p − target| of the policy's exact terminal distribution p first falls below each of THRESHOLDS.

    The clocks run in `run` only.

    Args:
        run: trains n iterations
        distance: Σ|p − target| now
        seconds: of CPU time at most
        every: iterations between two looks

    Returns:
        A row for each threshold that was reached: `sum_l1_below`, `seconds` (wall clock), `cpu_seconds`, `iterations`.
    """
    rows: list[Row] = []
    waiting, clock, cpu, done = list(THRESHOLDS), 0.0, 0.0, 0
    while cpu < seconds and waiting:
        before = process_time()
        elapsed, _ = timed(run, every)
        cpu, clock, done = cpu + process_time() - before, clock + elapsed, done + every
        value = distance()
        while waiting and value < waiting[0]:
            rows.append({"sum_l1_below": waiting.pop(0), "seconds": clock, "cpu_seconds": cpu, "iterations": done})
    return rows


def distance_of(policy: Callable[[], Array], args: argparse.Namespace) -> Callable[[], float]:
    """Σ|p − target| of a policy [H^n, n + 1] on the grid of the arguments."""
    target = rewards(args.ndim, args.height, args.r0)
    target = target / target.sum()
    return lambda: float(np.abs(terminal_law(policy(), args.ndim, args.height) - target).sum())


def load(path: str) -> list[tuple[Array, Array]]:
    """The three layers of a file of weights, (w [in, out], b [out]) each, float32."""
    with np.load(path) as file:
        return [(file[f"w{k}"].astype(np.float32), file[f"b{k}"].astype(np.float32)) for k in (1, 2, 3)]
