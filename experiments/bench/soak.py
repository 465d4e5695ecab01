"""`make soak`: runs that are killed at random moments and started again by the same command end in the bytes of a whole run.

    python -m experiments.bench.soak --minutes 30 [--seed 0] [--out FOLDER]

    whole run of every case, then until the time is up, case after case:
        train ... --resume auto, killed by SIGKILL after a random time, until it ends by itself
        compare metrics (without wall and time/...), last checkpoint (tensors; meta without times) with the whole run
    one long run of each package: slope of memory and open files, then SIGTERM: seconds until the process has ended

Half of the kills hit the main process alone: its workers must end by themselves. Exit code 1 for any difference, a failed run,
a worker that stays, files left open, or memory that grows faster than `GROWTH`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.run.checkpoint import latest, load
from experiments.run.log import read_metrics

GROWTH = 20.0  # MB a minute, of the second half of a long run
ORPHANS = 20.0  # seconds that workers may take to notice that nobody needs them
LONG = 0.3  # fraction of the time for long runs
TIMES = ("wall", "metrics_bytes", "run")  # keys of a checkpoint's meta that differ between equal runs
CASES: dict[str, tuple[str, str]] = {
    "gridworld": ("pgrl", "train n-harpg --env gridworld --seeds 3 --env-steps 20000"),
    "cheetah": ("pgrl", "train n-pg-igt --env HalfCheetah-v5 --seeds 2 --env-steps 20000 --workers 2 --evaluations 4"),
    "hypergrid": ("gflownet", "train hypergrid --objective tb --seeds 2 --states 8000 --replay prioritised --epsilon 0.05"),
    "molecules": ("gflownet", "train molecules --objective tb --reward qed*sa --states 1600 --evaluations 4 --top-k 200"),
    "active": ("gflownet", "active hypergrid --objective tb --proxy oracle --seeds 2 --rounds 6 --states 600"),
}
ENDLESS: dict[str, tuple[str, str]] = {
    "gridworld": ("pgrl", "train n-harpg --env gridworld --seeds 3 --env-steps 1000000000 --log-rows 1000000"),
    "hypergrid": ("gflownet", "train hypergrid --objective tb --states 1000000000 --replay fifo --log-rows 100000"),
}


@dataclass
class Soak:
    """What was seen. faults: sentences."""

    out: Path
    dice: random.Random
    kills: int = 0
    rounds: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def started(case: tuple[str, str], out: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own; what it says is in `out`.txt."""
    program, words = case
    command = [sys.executable, "-m", f"experiments.cli.{program}", *words.split(), "--quiet", "--resume", "auto"]
    with out.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen([*command, "--out", str(out)], stdout=said, stderr=said, start_new_session=True)


def contents(run: Path) -> dict[str, Any]:
    """What equal runs have in common: rows, and the last checkpoint."""
    last = latest(run / "checkpoints")
    tensors, meta = load(last)
    return {
        "metrics": [json.dumps(row) for row in read_metrics(run, timing=False)],
        "iteration": last.name,
        "meta": {key: without_seconds(value) for key, value in meta.items() if key not in TIMES},
        **{f"tensor {name}": (x.shape, x.numpy().tobytes()) for name, x in tensors.items()},
    }


def without_seconds(value: Any) -> Any:
    """The counts of reward calls have their seconds beside them."""
    return {key: x for key, x in value.items() if key != "seconds"} if isinstance(value, dict) else value


def one_round(soak: Soak, name: str, whole: dict[str, Any], seconds: float, deadline: float) -> None:
    """One run, killed again and again until it ends. After the deadline nothing is killed."""
    out = soak.out / f"{name}-{soak.rounds.get(name, 0)}"
    while True:
        process = started(CASES[name], out)
        patience = soak.dice.uniform(0, 1.2 * seconds) if time.monotonic() < deadline else None
        try:
            code = process.wait(patience)
            break
        except subprocess.TimeoutExpired:
            soak.kills += 1
            kill(soak, process, alone=soak.dice.random() < 0.5)
    soak.rounds[name] = soak.rounds.get(name, 0) + 1
    if code != 0:
        said = out.with_suffix(".txt").read_text(errors="replace").strip().splitlines()
        soak.faults.append(f"{out} ended with exit code {code}: {said[-1] if said else 'nothing was said'}")
        return
    found = contents(out)
    if differ := [key for key in {**whole, **found} if found.get(key) != whole.get(key)]:
        soak.faults.append(f"{out} differs from the whole run in {', '.join(differ[:5])}")
        return
    shutil.rmtree(out)


def kill(soak: Soak, process: subprocess.Popen[bytes], alone: bool) -> None:
    """SIGKILL, to the main process or to its workers too; the former's workers are waited for."""
    (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + ORPHANS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        soak.faults.append(f"a worker lived on for {ORPHANS:.0f} s after process {process.pid} was killed")


def watch(soak: Soak, name: str, seconds: float) -> str:
    """A long run, then SIGTERM: the sentence about it."""
    out = soak.out / f"long-{name}"
    process = started(ENDLESS[name], out)
    begun, seen = time.monotonic(), []
    while (now := time.monotonic() - begun) < seconds and process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            seen.append((now / 60, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{process.pid}/fd"))))
        time.sleep(0.5)
    asked = time.monotonic()
    process.terminate()
    code, took = process.wait(), time.monotonic() - asked
    minutes, memory, files = np.array(seen[len(seen) // 2 :]).T
    slope = float(np.polyfit(minutes, memory, 1)[0])
    more = int(files.max() - files[0])
    if code != 128 + signal.SIGTERM:
        soak.faults.append(f"the long run {name} ended with exit code {code} after SIGTERM")
    if more > 2:  # a checkpoint under way has some open
        soak.faults.append(f"the long run {name} had {more} more files open in the end")
    if slope > GROWTH and minutes[-1] - minutes[0] > 1:
        soak.faults.append(f"memory of the long run {name} grows by {slope:.1f} MB a minute")
    return (
        f"{name}: {memory[-1]:.0f} MB, {slope:+.2f} MB a minute over the last {minutes[-1] - minutes[0]:.1f} minutes; "
        f"{files[-1]:.0f} open files, {more:+d}; ended {took:.2f} s after SIGTERM"
    )


def soak(minutes: float = 30.0, seed: int = 0, out: Path | None = None) -> list[str]:
    """Print what was done; the faults found.

    Args:
        minutes: how long, beside a whole run of every case (two minutes)
        seed: of the moments of killing
        out: where the runs are; default: a temporary folder, which stays where a fault was found
    """
    folder = out or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    found = Soak(folder, random.Random(seed))
    wholes, seconds = {}, {}
    for name, case in CASES.items():
        begun = time.monotonic()
        if started(case, run := folder / f"{name}-whole").wait() != 0:
            raise SystemExit(f"{name} does not run: see {run.with_suffix('.txt')}")
        seconds[name], wholes[name] = time.monotonic() - begun, contents(run)
        print(f"{name}: whole run of {seconds[name]:.1f} s", flush=True)
    start = time.monotonic()
    deadline = start + 60 * minutes * (1 - LONG)
    while time.monotonic() < deadline:
        for name in CASES:
            if time.monotonic() < deadline:
                one_round(found, name, wholes[name], seconds[name], deadline)
    rounds = ", ".join(f"{name} {count}" for name, count in found.rounds.items())
    print(f"{found.kills} kills by SIGKILL; runs compared: {rounds}", flush=True)
    for name in ENDLESS:
        print(watch(found, name, 60 * minutes * LONG / len(ENDLESS)), flush=True)
    for fault in found.faults:
        print(f"FAULT {fault}")
    print(f"verdict: {f'{len(found.faults)} faults, see {folder}' if found.faults else 'every run ended in the same bytes'}")
    if not found.faults and out is None:
        shutil.rmtree(folder)
    return found.faults


if __name__ == "__main__":
    raise SystemExit(1 if tyro.cli(soak) else 0)
