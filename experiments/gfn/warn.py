"""Warnings of a training run, one sentence each: equal rewards, a log Z that does not arrive, a policy that got worse.

The last two look at the evaluations in the second half of training: a policy often gets worse before it gets better.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

IN_A_ROW = 3  # evaluations
FAR = 5.0  # nats


class Warnings:
    """Reads the evaluated rows of a run.

    Args:
        total: objects that each seed visits in the run.
        rows: rows of the run so far, where it is resumed.
    """

    def __init__(self, total: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._total = total
        self._untrained: list[float] | None = None
        self._residuals: deque[list[float]] = deque(maxlen=IN_A_ROW)
        self._rewards: deque[list[float]] = deque(maxlen=IN_A_ROW)
        self._said: set[str] = set()
        for row in rows:
            self.of(row)

    def of(self, row: Mapping[str, Any]) -> list[str]:
        """The sentences that a row of metrics gives rise to, each at most once in a run."""
        # where evaluations call no reward, the molecules of the last iteration stand for those of the policy
        known = _of_seeds(row, "rollout/log_reward") if "mol/valid" in row else None
        reward, residual = _of_seeds(row, "mol/log_reward") or known, _of_seeds(row, "train/residual")
        late = (row.get("states") or 0) >= self._total / 2
        if reward is not None:
            self._untrained = self._untrained or reward
            if late:
                self._rewards.append(reward)
                if residual is not None:
                    self._residuals.append(residual)
        new = {kind: text for kind, text in self._found() if kind not in self._said}
        self._said |= set(new)
        return list(new.values())

    def _found(self) -> Iterable[tuple[str, str]]:
        if len(self._residuals) == IN_A_ROW:
            far = [min(map(abs, x)) for x in _by_seed(self._residuals) if min(x) > 0 or max(x) < 0]
            if far and max(far) > FAR:
                yield (
                    "residual",
                    f"log Z has not arrived: it is {max(far):.1f} or more away from the mean of log R + log P_B - log P_F at "
                    f"{IN_A_ROW} evaluations in a row: try a larger --log-z-rate, a smaller --beta, or more --states",
                )
        if len(self._rewards) == IN_A_ROW and self._untrained is not None:
            for best, before in zip(map(max, _by_seed(self._rewards)), self._untrained, strict=True):
                if best <= before:
                    yield (
                        "reward",
                        f"molecules of the policy have a mean log-reward of at most {best:.4g} at {IN_A_ROW} evaluations in a "
                        f"row, those of the untrained policy had {before:.4g}: try a smaller --learning-rate or --beta",
                    )
                    return


def equal_rewards(log_reward: Tensor) -> list[str]:
    """Of the first molecules: a reward that tells none from another is a mistake more often than not."""
    if log_reward.numel() > 1 and bool((log_reward == log_reward.flatten()[0]).all()):
        return [
            f"all {log_reward.numel()} molecules of the first iteration have log R = {float(log_reward.flatten()[0]):.6g}: "
            "is the reward what you meant? (--r-min raises what is lower)"
        ]
    return []


def _of_seeds(row: Mapping[str, Any], tag: str) -> list[float] | None:
    """An entry for each seed; a number that was not finite, which metrics.jsonl has as null, is NaN."""
    values = row.get(tag)
    return [math.nan if x is None else x for x in values] if isinstance(values, list) else None


def _by_seed(values: Iterable[list[float]]) -> list[tuple[float, ...]]:
    return list(zip(*values, strict=True))
