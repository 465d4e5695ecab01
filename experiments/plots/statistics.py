"""Aggregation over seeds: interquartile mean, bootstrap intervals, fitted exponents. numpy only, no files.

The interquartile mean with a percentile bootstrap over seeds is what Agarwal et al., "Deep Reinforcement Learning at the
Edge of the Statistical Precipice" (NeurIPS 2021) recommend for few runs. Seeds are axis 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[..., Any]  # statistic(x, axis=...) reduces that axis, as numpy's and scipy's do

_CHUNK = 1 << 22  # numbers held at once while resampling


def iqm(x: ArrayLike, axis: int = 0) -> Any:
    """Interquartile mean: the mean after ⌊n/4⌋ values are cut at each end; the plain mean when n < 4.

    Source: Agarwal et al. 2021, equal to scipy.stats.trim_mean(x, 0.25).
    """
    ordered = np.sort(np.asarray(x, dtype=np.float64), axis=axis)
    n = ordered.shape[axis]
    cut = n // 4
    return np.take(ordered, range(cut, n - cut), axis=axis).mean(axis)


def bootstrap_interval(
    x: ArrayLike, statistic: Statistic = iqm, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Any, Any]:
    """Percentile bootstrap over seeds: the ends (low, high) of the central `level` of the resampled statistic.

    x: [S], or [S, ...] with everything of one seed resampled together. low and high have the shape of statistic(x, axis=0).
    Deterministic: the resampling depends on S, `resamples` and `seed` alone. Raises ValueError without seeds or on NaN.
    """
    x = _checked(x)
    picks = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    if statistic is iqm and x.ndim <= 2:
        return _quantiles(_resampled_iqm(x, picks), level)
    rows = max(1, _CHUNK // max(1, x.size))
    samples = [statistic(x[picks[i : i + rows]], axis=1) for i in range(0, resamples, rows)]
    return _quantiles(np.concatenate(samples), level)


def loglog_slope(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """Exponent p of y ∝ x^p by least squares on logarithms, and its standard error from the residuals (n − 2 degrees).

    x, y: [n] positive, n ≥ 3. weights: [n], relative inverse variances of log y. Raises ValueError otherwise.
    The standard error assumes independent residuals; along one learning curve prefer `bootstrap_interval` over seeds.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3 or not (np.all(x > 0) and np.all(y > 0)):
        raise ValueError(f"expected at least 3 pairs of positive numbers, got x {x.shape} and y {y.shape}")
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    u, v = np.log(x), np.log(y)
    u, v = u - np.average(u, weights=w), v - np.average(v, weights=w)
    spread = float(w @ u**2)
    if spread == 0:
        raise ValueError("all x are equal: no slope")
    slope = float(w @ (u * v)) / spread
    variance = float(w @ (v - slope * u) ** 2) / (len(x) - 2)
    return slope, float(np.sqrt(variance / spread))


def _checked(x: ArrayLike) -> Array:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"expected values of at least one seed along axis 0, got shape {x.shape}")
    if not np.all(np.isfinite(x)):
        raise ValueError("non-finite values cannot be resampled: drop them first")
    return x


def _resampled_iqm(x: Array, picks: NDArray[np.int64]) -> Array:
    """The IQM of every resample as one matrix product: [R, K] for x [S, K], [R] for x [S].

    A resample repeats the j-th smallest value some times; of these, the ones that trimming leaves are the part of their
    running total between ⌊n/4⌋ and n − ⌊n/4⌋. So the trimmed mean is a fixed weighting of the ordered values, without
    sorting any resample. Each column is resampled by rank, which leaves the distribution of its own interval as it is.
    """
    resamples, n = picks.shape
    cut = n // 4
    repeats = np.bincount((picks + n * np.arange(resamples)[:, None]).ravel(), minlength=resamples * n).reshape(resamples, n)
    kept = np.diff(np.clip(repeats.cumsum(1), cut, n - cut), axis=1, prepend=cut)
    return np.asarray(kept @ np.sort(x, axis=0)) / (n - 2 * cut)


def _quantiles(samples: Any, level: float) -> tuple[Any, Any]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
