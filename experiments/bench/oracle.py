"""What the runner of a user's reward costs beyond the reward itself, for one molecule a call.

    python -m experiments.bench.oracle [--calls 20000] [--workers 1]

The reward returns at once. "Computing" is CPU time of this process and of the reward's; a busy machine disturbs
it less than the wall clock. Memory is that of this process.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import tyro

from envs.ranges import Count, Workers
from experiments.oracle.cache import AnswerCache
from experiments.oracle.make import make_oracle
from experiments.oracle.settings import OracleSettings
from gflownet.rewards.oracle import Scored

BATCH = 100


def main(calls: Count = 20_000, workers: Workers = 1) -> None:
    """Print milliseconds a call, answers of the cache a second, and memory.

    Args:
        calls: different molecules
        workers: processes of the reward
    """
    smiles = [f"CC(=O)Oc1ccccc1C(=O)O{i}" for i in range(calls)]
    batches = [smiles[i : i + BATCH] for i in range(0, calls, BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        reward, file = Path(folder) / "reward.py", Path(folder) / "rewards.sqlite"
        reward.write_text("def score(smiles): return [1.0 for _ in smiles]\n")
        begun, spent, before = time.perf_counter(), _spent(), _memory()
        with make_oracle(f"{reward}:score", OracleSettings(reward_cache=str(file)), workers) as oracle:
            started = time.perf_counter() - begun
            for batch in batches:
                oracle(batch)
            in_it = oracle.counts.seconds
        wall, computing = time.perf_counter() - begun - started, _spent() - spent
        print(f"start: {started:.3f} s to the first process")
        print(f"a call: {(wall - in_it) / calls * 1e3:.3f} ms by the clock, {computing / calls * 1e3:.3f} ms of computing")
        print(f"memory: {before:.0f} MiB before, {_memory():.0f} MiB at most")

        with AnswerCache(file, _key(f"{reward}:score")) as cache:
            begun, spent = time.perf_counter(), _spent()
            found = sum(len(cache.get(batch)) for batch in batches)
            wall, computing = time.perf_counter() - begun, _spent() - spent
            print(f"cache: {found:,} found, {found / wall:,.0f}/s by the clock, {found / computing:,.0f}/s of computing")
            spent = _spent()
            for one in smiles:
                cache.put([(f"{one}C", Scored(1.0))])
            print(f"a write: {(_spent() - spent) / calls * 1e6:.0f} µs of computing, one at a time")


def _key(name: str) -> str:
    from experiments.oracle.spec import function_spec

    return function_spec(name).key


def _spent() -> float:
    """Seconds of CPU time of this process and of those that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _memory() -> float:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    tyro.cli(main)
