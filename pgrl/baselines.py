"""Baselines b_t(s_t) that leave the estimators unbiased: they never look at the trajectory they are subtracted from.

    none            b = 0
    leave-one-out   at time t, the mean reward-to-go of the seed's *other* episodes of the same batch (n ≥ 2)
    time, value     ridge regression of the reward-to-go on features of t, or of (t, s), fitted on *earlier* iterations

What is learnt is a dict of tensors, kept by the caller. Predictions are discount^t b_t, in the units of Ψ_t, so that a
discount whose powers underflow divides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from envs.core import Trajectories
from pgrl.gradients import discounts, rewards_to_go
from pgrl.policy import by_seed

Fitted = dict[str, Tensor]


class Baseline(Protocol):
    def init(self, seeds: int) -> Fitted: ...

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None: ...

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted: ...


@dataclass(frozen=True)
class NoBaseline:
    def init(self, seeds: int) -> Fitted:
        return {}

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None:
        return None

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted:
        return fitted


@dataclass(frozen=True)
class LeaveOneOut:
    """An ended episode counts with reward-to-go 0. An in-batch mean that includes the episode itself would scale the
    gradient by 1 - 1/n."""

    discount: float

    def init(self, seeds: int) -> Fitted:
        return {}

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None:
        n = tau.mask.shape[1] // seeds
        if n < 2:
            raise ValueError(f"the leave-one-out baseline got {n} episode for each seed, expected a batch size of 2 or more")
        to_go = rewards_to_go(tau, self.discount)
        grouped = to_go.reshape(len(to_go), seeds, n)
        return ((grouped.sum(2, keepdim=True) - grouped) / (n - 1)).reshape(to_go.shape)

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted:
        return fitted


@dataclass(frozen=True)
class Linear:
    """Ridge regression, per seed, on exponentially forgotten normal equations.

    horizon    scales time
    keep       weight of the past at each fit, in [0, 1)
    ridge      relative to the mean of the diagonal
    states     use features of the observation too; `n_states` > 0 when it is a state's number (one-hot), else s and s²,
               clipped to ±10 (the features of Duan et al. 2016)
    """

    discount: float
    horizon: int
    size: int
    states: bool
    n_states: int = 0
    keep: float = 0.9
    ridge: float = 1e-5

    @property
    def features(self) -> int:
        return 4 + (0 if not self.states else self.n_states or 2 * self.size)

    def init(self, seeds: int) -> Fitted:
        f = self.features
        return {"gram": torch.zeros(seeds, f, f, dtype=torch.float64), "moment": torch.zeros(seeds, f, dtype=torch.float64)}

    def _features(self, tau: Trajectories) -> Tensor:
        """[T, B, F]."""
        T, B = tau.mask.shape
        t = torch.arange(T, device=tau.mask.device, dtype=torch.float64)[:, None].expand(T, B) / self.horizon
        parts = [torch.stack([torch.ones_like(t), t, t**2, t**3], -1)]
        if self.states and self.n_states:
            parts.append(torch.nn.functional.one_hot(tau.obs, self.n_states).double())
        elif self.states:
            s = tau.obs.reshape(T, B, -1).double().clamp(-10, 10)
            parts += [s, s**2]
        return torch.cat(parts, -1)

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None:
        gram, moment = fitted["gram"], fitted["moment"]
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)
        if not bool((scale > 0).all()):
            return None  # nothing seen yet
        eye = torch.eye(self.features, dtype=gram.dtype, device=gram.device)
        w = torch.linalg.solve(gram + (self.ridge * scale)[:, None, None] * eye, moment)
        n = tau.mask.shape[1] // seeds
        value = (self._features(tau) * w.repeat_interleave(n, 0)).sum(-1)
        return discounts(tau, self.discount, torch.float64) * value

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted:
        scale = discounts(tau, self.discount, torch.float64)
        known = tau.mask & (scale > 1e-280)  # later steps weigh nothing in any estimate
        x = self._features(tau) * known[..., None]
        y = torch.where(known, rewards_to_go(tau, self.discount, torch.float64) / scale.clamp_min(1e-280), 0.0)
        x, y = by_seed(x, seeds), by_seed(y, seeds)  # [S, T·n, F], [S, T·n]
        gram = self.keep * fitted["gram"].to(x.device) + x.mT @ x
        moment = self.keep * fitted["moment"].to(x.device) + (x.mT @ y[..., None])[..., 0]
        return {"gram": gram, "moment": moment}


def baseline_for(name: str, *, discount: float, horizon: int, observation_size: int, n_states: int = 0) -> Baseline:
    """The baseline called `name`; ValueError names the choices."""
    match name:
        case "none":
            return NoBaseline()
        case "leave-one-out":
            return LeaveOneOut(discount)
        case "time" | "value":
            return Linear(discount, horizon, observation_size, name == "value", n_states)
    raise ValueError(f"baseline is {name!r}, expected none, leave-one-out, time or value")
