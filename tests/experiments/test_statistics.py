"""Aggregation over seeds, against scipy and against arithmetic on paper."""

import numpy as np
import pytest

from experiments.plots.statistics import bootstrap_interval, iqm, loglog_slope

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10, 101])
def test_iqm_is_scipys_trimmed_mean(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    x = RNG.standard_normal((n, 6))
    np.testing.assert_allclose(iqm(x), stats.trim_mean(x, 0.25, axis=0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(iqm(x.T, axis=1), iqm(x), rtol=1e-14)


def test_iqm_by_hand() -> None:
    assert iqm([100.0, 1.0, 2.0, 3.0, -50.0, 4.0, 5.0, 7.0]) == (2 + 3 + 4 + 5) / 4
    assert iqm([1.0, 2.0, 6.0]) == 3.0


@pytest.mark.parametrize("n", [5, 10, 30])
def test_interval_is_scipys_percentile_bootstrap(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    x = np.sort(RNG.exponential(size=n))  # ordered: the resampling by rank then draws the very same resamples
    for statistic in (iqm, np.mean, np.median):
        low, high = bootstrap_interval(x, statistic, level=0.9, resamples=999, seed=7)
        theirs = stats.bootstrap(
            (x,), statistic, confidence_level=0.9, n_resamples=999, method="percentile", rng=np.random.default_rng(7)
        ).confidence_interval
        np.testing.assert_allclose([low, high], [theirs.low, theirs.high], rtol=1e-12)


def test_interval_by_rank_equals_the_plain_one_in_law_and_columns_stand_alone() -> None:
    x = RNG.standard_normal((10, 4))
    quick = np.array(bootstrap_interval(x, resamples=20000))
    plain = np.array(bootstrap_interval(x, lambda s, axis: iqm(s, axis), resamples=20000, seed=3))
    np.testing.assert_allclose(quick, plain, atol=0.04)
    alone = np.array([bootstrap_interval(x[:, k], resamples=20000) for k in range(4)]).T
    np.testing.assert_allclose(quick, alone, rtol=1e-13)
    assert bootstrap_interval(x, seed=5)[0].tolist() == bootstrap_interval(x, seed=5)[0].tolist()


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    inside = 0
    for _ in range(300):
        low, high = bootstrap_interval(RNG.standard_normal(20), resamples=400)
        inside += low <= 0.0 <= high
    assert 0.86 < inside / 300 < 0.99


def test_one_seed_has_an_interval_of_no_width_and_many_fit_in_memory() -> None:
    assert bootstrap_interval([3.0]) == (3.0, 3.0)
    low, high = bootstrap_interval(RNG.standard_normal((1000, 50)), np.mean, resamples=200)
    assert low.shape == (50,)
    assert np.all(low < high)


def test_slope_against_scipy_and_weights() -> None:
    stats = pytest.importorskip("scipy.stats")
    x = np.geomspace(1, 1e4, 30)
    y = 3 * x**-0.33 * np.exp(0.1 * RNG.standard_normal(30))
    theirs = stats.linregress(np.log(x), np.log(y))
    np.testing.assert_allclose(loglog_slope(x, y), [theirs.slope, theirs.stderr], rtol=1e-10)
    weights = RNG.uniform(0.5, 2, 30)
    np.testing.assert_allclose(loglog_slope(x, y, weights)[0], np.polyfit(np.log(x), np.log(y), 1, w=np.sqrt(weights))[0])
    assert loglog_slope([1, 10, 100], [8, 4, 2])[0] == pytest.approx(-np.log10(2))


@pytest.mark.parametrize("x", [[], [1.0, np.nan], 3.0])
def test_nothing_to_resample(x: object) -> None:
    with pytest.raises(ValueError, match=r"expected|non-finite"):
        bootstrap_interval(x)  # type: ignore[arg-type]


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 0, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 2])])
def test_no_slope(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match=r"positive numbers|no slope"):
        loglog_slope(x, y)
