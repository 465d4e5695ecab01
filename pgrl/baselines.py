"""Baselines b_t(s_t) that leave the estimators unbiased: they do not depend on the trajectory they are subtracted from.

    none            b = 0
    leave-one-out   at time t, the mean reward-to-go of the seed's *other* episodes of the same batch (n ≥ 2)
    time, value     ridge regression of the reward-to-go on features of t, or of (t, s), fitted on *earlier* iterations
    value-net       a network of (s, t), fitted on *earlier* iterations: `pgrl.value_net`

The fitted parameters are a dict of tensors that the caller keeps. Predictions are in the units of Ψ_t, discount^t b_t, or b_t
with `undiscounted_states`, so that no division by powers of the discount is needed, which may underflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from envs.core import Trajectories
from pgrl.gradients import discounts, rewards_to_go, values_to_go
from pgrl.policy import by_seed
from pgrl.value_net import ValueNet

Fitted = dict[str, Tensor]


class Baseline(Protocol):
    """A baseline; `seeds` is S, and the B = S·n episodes of tau are grouped by seed.

    init(seeds)                  the parameters before any fit
    predict(fitted, tau, seeds)  discount^t b_t (or b_t), [T, B], or None for no baseline
    fit(fitted, tau, seeds)      the parameters after one more batch
    """

    def init(self, seeds: int) -> Fitted: ...

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None: ...

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted: ...


@dataclass(frozen=True)
class NoBaseline:
    """b = 0."""

    def init(self, seeds: int) -> Fitted:
        return {}

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None:
        return None

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted:
        return fitted


@dataclass(frozen=True)
class LeaveOneOut:
    """The mean reward-to-go of the seed's other episodes in the batch; an ended episode counts with reward-to-go 0.

    A mean that includes the episode itself would scale the gradient by 1 - 1/n.
    """

    discount: float
    undiscounted_states: bool = False

    def init(self, seeds: int) -> Fitted:
        return {}

    def predict(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor | None:
        n = tau.mask.shape[1] // seeds
        if n < 2:
            raise ValueError(f"the leave-one-out baseline got {n} episode for each seed, expected a batch size of 2 or more")
        to_go = rewards_to_go(tau, self.discount, undiscounted_states=self.undiscounted_states)
        grouped = to_go.reshape(len(to_go), seeds, n)
        return ((grouped.sum(2, keepdim=True) - grouped) / (n - 1)).reshape(to_go.shape)

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted:
        return fitted


@dataclass(frozen=True)
class Linear:
    """Ridge regression of the reward-to-go for each seed, with exponentially discounted normal equations.

    discount   of the problem
    horizon    time is divided by it
    size       entries of an observation
    states     use features of the observation too: one-hot if `n_states` > 0, else s and s², with s clipped to ±10 (the
               features of Duan et al. 2016)
    n_states   number of states, if an observation is the index of a state
    keep       weight of earlier batches at each fit, in [0, 1)
    ridge      relative to the mean of the diagonal
    undiscounted_states  predict b_t, not discount^t b_t
    """

    discount: float
    horizon: int
    size: int
    states: bool
    n_states: int = 0
    keep: float = 0.9
    ridge: float = 1e-5
    undiscounted_states: bool = False

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
        if not bool((scale > 0).any()):
            return None  # before the first fit
        eye = torch.eye(self.features, dtype=gram.dtype, device=gram.device)
        ridge = torch.where(scale > 0, self.ridge * scale, 1.0)  # a seed that has seen no step yet: w = 0
        w = torch.linalg.solve(gram + ridge[:, None, None] * eye, moment)
        n = tau.mask.shape[1] // seeds
        value = (self._features(tau) * w.repeat_interleave(n, 0)).sum(-1)
        return value if self.undiscounted_states else discounts(tau, self.discount, torch.float64) * value

    def fit(self, fitted: Fitted, tau: Trajectories, seeds: int) -> Fitted:
        known, y = values_to_go(tau, self.discount, self.undiscounted_states)
        x = self._features(tau) * known[..., None]
        x, y = by_seed(x, seeds), by_seed(y, seeds)  # [S, T·n, F], [S, T·n]
        gram = self.keep * fitted["gram"].to(x.device) + x.mT @ x
        moment = self.keep * fitted["moment"].to(x.device) + (x.mT @ y[..., None])[..., 0]
        return {"gram": gram, "moment": moment}


def baseline_for(
    name: str,
    *,
    discount: float,
    horizon: int,
    observation_size: int,
    n_states: int = 0,
    undiscounted_states: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Baseline:
    """Make a baseline by name.

    Args:
        name: none, leave-one-out, time, value or value-net.
        discount: of the problem.
        horizon: of the problem; time is divided by it.
        observation_size: entries of an observation.
        n_states: number of states if an observation is the index of a state, else 0.
        undiscounted_states: as of the `Estimator`.
        dtype: of the network of value-net.

    Raises:
        ValueError: there is no baseline of this name.
    """
    match name:
        case "none":
            return NoBaseline()
        case "leave-one-out":
            return LeaveOneOut(discount, undiscounted_states)
        case "time" | "value":
            states = name == "value"
            return Linear(discount, horizon, observation_size, states, n_states, undiscounted_states=undiscounted_states)
        case "value-net":
            return ValueNet(discount, horizon, observation_size, n_states, dtype=dtype, undiscounted_states=undiscounted_states)
    raise ValueError(f"baseline is {name!r}, expected none, leave-one-out, time, value or value-net")
