"""What the benchmarks count, and what their tables say of a library that is not there."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.gflownet import Comparison, _over_seeds, trained_policy
from experiments.bench.peers.measure import distance_of, per_second, race, rewards


def test_cpu_time_leaves_out_waiting() -> None:
    def wait(n: int) -> float:
        time.sleep(0.01 * n)
        return 5.0

    row = per_second(wait, 0.1, "rate", each=4)
    assert row["rate"] < 400.0  # 4 in 10 ms
    assert row["cpu_ms"] < 1.0  # of the 2.5 ms that one takes
    assert row["mean_episode_length"] == 5.0


def test_race_tells_when_each_threshold_was_passed() -> None:
    done = 0

    def run(n: int) -> None:
        nonlocal done
        done += n

    rows = race(run, lambda: 60 / done, seconds=10.0)  # 0.6, 0.3, 0.2, 0.15, ...
    assert [(row["sum_l1_below"], row["iterations"]) for row in rows] == [(0.5, 200), (0.3, 300), (0.2, 400), (0.1, 700)]


def test_race_stops_after_its_cpu_time() -> None:
    assert race(lambda n: sum(range(20_000)), lambda: 1.0, seconds=0.01) == []


def test_distance_of_the_exact_policy_is_zero() -> None:
    # 1-D, H = 2: stop at once, or at the end of one step
    r = rewards(1, 2, 0.01)
    policy = np.array([[r[1] / r.sum(), r[0] / r.sum()], [0.0, 1.0]])
    args = argparse.Namespace(ndim=1, height=2, r0=0.01)
    assert distance_of(lambda: policy, args)() == pytest.approx(0.0)
    assert distance_of(lambda: np.array([[0.0, 1.0], [0.0, 1.0]]), args)() == pytest.approx(2 * r[1] / r.sum())


def test_medians_count_the_runs_that_did_not_arrive() -> None:
    arrived = [[{"sum_l1_below": 0.1, "cpu_seconds": float(x)}] for x in (4, 2, 3)]
    assert _over_seeds(arrived, 0.1, "cpu_seconds") == "3.0 (2.0–4.0)"
    assert _over_seeds([*arrived, [], []], 0.1, "cpu_seconds") == "4.0 (2.0–not reached), 3 of 5"
    assert _over_seeds([[], []], 0.1, "cpu_seconds") == "not reached"


@pytest.mark.usefixtures("one_thread")
def test_a_peer_that_is_not_installed_is_named(tmp_path: Path) -> None:
    grid, weights = (2, 4), tmp_path / "trained.npz"
    trained_policy(weights, grid, iterations=3)
    comparison = Comparison(grid, weights, 0.02, tmp_path / "no-python")
    row = comparison.row("speed", "tb", 4)
    assert row.count("not installed") == 2
    assert row.startswith("| 4 | tb | ")
