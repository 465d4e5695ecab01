"""Sample efficiency: the mean of the best k rewards against calls of the reward, and the area under that curve.

This is the protocol of PMO (Gao et al., NeurIPS 2022, arXiv 2206.12411). One number is one call: the reward of a molecule
that was not asked before, in the order asked.

    curve    after every 100 calls, and after the last one, the mean of the k best so far; of all while there are fewer
    area     trapezoids over calls from (0 calls, 0), divided by the budget
    early    a run that ends before its budget keeps its last value to the end

Calls that gave no number (NaN: the reward failed, or the molecule was invalid) count as calls and are never among the best;
the curve is 0 until the first number. For rewards from 0 to 1 the area is from 0 to 1 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflownet.rewards.chemistry import Floats


class TopMeanCurve(NamedTuple):
    """The mean of the best k rewards after `calls` calls.

    calls  [C] increasing; the last is the number of all calls
    mean   [C]
    """

    calls: NDArray[np.int64]
    mean: Floats


def top_mean_curve(rewards: Sequence[float] | Floats, k: int = 10, every: int = 100) -> TopMeanCurve:
    """The mean of the best k rewards so far, after every `every` calls and after the last.

    Args:
        rewards: [N] in the order asked; NaN for a call without a number.
        k: how many of the best.
        every: calls between two points.

    Returns:
        ceil(N / every) points, none for N = 0.
    """
    if k < 1 or every < 1:
        raise ValueError(f"got k = {k} and every = {every}, expected at least 1 for both")
    values = np.asarray(rewards, dtype=np.float64)
    calls = np.minimum(np.arange(1, -(-len(values) // every) + 1, dtype=np.int64) * every, len(values))
    best, means = np.empty(0), np.zeros(len(calls))
    for i, end in enumerate(calls):
        fresh = values[i * every : end]
        best = np.sort(np.concatenate([best, fresh[~np.isnan(fresh)]]))[::-1][:k]
        means[i] = best.mean() if len(best) else 0.0
    return TopMeanCurve(calls, means)


def auc_top(rewards: Sequence[float] | Floats, budget: int, k: int = 10, every: int = 100) -> float:
    """The area under the curve of the mean of the best k against calls, divided by the budget ("AUC top-k").

    Args:
        rewards: [N] in the order asked; calls beyond the budget are ignored.
        budget: calls allowed.
        k: how many of the best.
        every: calls between two points.

    Returns:
        A mean of the curve over the budget, in the unit of the reward; 0 without calls.

    Source:
        Gao et al., NeurIPS 2022, section 3.2.
    """
    if budget < 1:
        raise ValueError(f"got a budget of {budget} calls, expected at least 1")
    calls, mean = top_mean_curve(np.asarray(rewards, dtype=np.float64)[:budget], k, every)
    if not len(calls):
        return 0.0
    x, y = np.append(0, calls), np.append(0.0, mean)
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
    return (area + (budget - int(calls[-1])) * float(mean[-1])) / budget
