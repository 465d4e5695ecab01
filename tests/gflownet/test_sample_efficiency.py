"""Curves against calls of the reward and their areas, against values computed by hand and by the definition."""

import itertools

import numpy as np
import pytest

from gflownet.molecules.sample_efficiency import auc_top, top_mean_curve

NAN = float("nan")


def test_the_curve_is_the_mean_of_the_best_so_far() -> None:
    curve = top_mean_curve([1, 4, 2, 3, 5], k=2, every=2)
    assert curve.calls.tolist() == [2, 4, 5]  # the last point is the last call
    assert curve.mean.tolist() == [2.5, 3.5, 4.5]


def test_fewer_molecules_than_k_give_the_mean_of_those() -> None:
    assert top_mean_curve([1, 2, 6], k=10, every=2).mean.tolist() == [1.5, 3.0]


def test_a_failed_call_is_a_call_and_never_among_the_best() -> None:
    curve = top_mean_curve([NAN, NAN, -3, NAN, -1], k=2, every=1)
    assert curve.calls.tolist() == [1, 2, 3, 4, 5]
    assert curve.mean.tolist() == [0, 0, -3, -3, -2]


def test_no_calls() -> None:
    assert len(top_mean_curve([]).calls) == 0
    assert auc_top([], budget=10) == 0


def test_the_area_by_hand() -> None:
    # points (0, 0), (2, 2.5), (4, 3.5), (5, 4.5): areas 2.5, 6, 4
    assert auc_top([1, 4, 2, 3, 5], budget=5, k=2, every=2) == pytest.approx(12.5 / 5)
    # ends early: 4.5 is kept for 5 more calls
    assert auc_top([1, 4, 2, 3, 5], budget=10, k=2, every=2) == pytest.approx((12.5 + 22.5) / 10)
    # calls beyond the budget are ignored: points (0, 0), (2, 2.5), (3, 3)
    assert auc_top([1, 4, 2, 3, 5], budget=3, k=2, every=2) == pytest.approx((2.5 + 2.75) / 3)


def test_a_constant_reward_loses_half_of_the_first_interval() -> None:
    assert auc_top(np.ones(10_000), budget=10_000) == pytest.approx(1 - 50 / 10_000)


def test_the_area_equals_its_definition() -> None:
    rewards = np.random.default_rng(0).random(1234)
    points = [(0, 0.0)] + [(n, float(np.mean(sorted(rewards[:n])[-10:]))) for n in [*range(100, 1201, 100), 1234]]
    area = sum((b - a) * (u + v) / 2 for (a, u), (b, v) in itertools.pairwise(points))
    assert auc_top(rewards, budget=2000) == pytest.approx((area + (2000 - 1234) * points[-1][1]) / 2000, abs=1e-12)


@pytest.mark.parametrize("bad", [{"k": 0}, {"every": 0}])
def test_bad_settings(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        top_mean_curve([1.0], **bad)
    with pytest.raises(ValueError, match="budget of 0"):
        auc_top([1.0], budget=0)
