"""`ValueNet`: a small network of (observation, t/H) as a baseline, fitted on earlier iterations.

    fit, after each batch of episodes:
        update the mean and standard deviation of observations, t/H and values; rescale the last layer to predict as before
        for each epoch, for each minibatch:  a step of Adam on the mean square of net(x) - y, x and y normalised and clipped
    predict:  b_t(s_t) = mean + standard deviation · net(x)

A value is the discounted reward-to-go Σ_{h≥t} discount^{h-t} r_h of a step. All is per seed. Every seed starts from the same
weights, with a last layer of zeros, and minibatches are taken in a fixed scattered order: there is no randomness.

The variance of g relative to no baseline, on HalfCheetah-v5 with γ = 0.99, H = 200 and N-MPG, after t iterations:

    batch size            25     25     25      2      2      2     25, no γ^t
    t                      3     20     40      3     30    100     20     40
    value              0.579  0.356  0.093  0.830  0.900  0.801  0.173  0.100
    value-net          0.506  0.310  0.078  0.596  0.879  0.745  0.052  0.035
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.random import Rng
from pgrl.gradients import discounts, values_to_go
from pgrl.nets import MLP
from pgrl.policy import by_seed

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
CLIP = 10.0  # standard deviations
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ValueNet:
    """A tanh network for each seed; its parameters, the moments of Adam and the statistics are the fitted tensors.

    discount       of the problem
    horizon        time is divided by it
    size           entries of an observation
    n_states       number of states, if an observation is the index of a state: then it is one-hot
    hidden         widths of the hidden layers
    learning_rate  of Adam
    epochs         passes over a batch of episodes
    minibatch      steps of the environment for a step of Adam
    keep           weight of earlier batches in the statistics, in [0, 1)
    dtype          of the network
    undiscounted_states  predict b_t, not discount^t b_t
    """

    discount: float
    horizon: int
    size: int
    n_states: int = 0
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    epochs: int = 4
    minibatch: int = 512
    keep: float = 0.95
    dtype: torch.dtype = torch.float32
    undiscounted_states: bool = False

    @cached_property
    def net(self) -> MLP:
        """From features to a normalised value."""
        return MLP((self.n_states or self.size) + 1, self.hidden, 1)

    def init(self, seeds: int) -> dict[str, Tensor]:
        """Parameters [S, P], Adam's moments and count, and weight, mean and squared deviations of x and y [S, F + 1]."""
        weights = self.net.init(Rng.of_seeds([0])).to(self.dtype)
        weights[:, -self.hidden[-1] - 1 :] = 0
        params = weights.repeat(seeds, 1)
        moments = torch.zeros(seeds, self.net.inputs + 1, dtype=torch.float64)
        return {
            "params": params,
            "first": torch.zeros_like(params),
            "second": torch.zeros_like(params),
            "steps": torch.zeros(seeds, 1, dtype=torch.int64),
            "count": torch.zeros(seeds, 1, dtype=torch.float64),
            "mean": moments,
            "squares": moments.clone(),
        }

    def predict(self, fitted: dict[str, Tensor], tau: Trajectories, seeds: int) -> Tensor | None:
        if not bool((fitted["steps"] > 0).any()):
            return None  # before the first fit
        x = self._features(tau, seeds)
        mean, scale = fitted["mean"][:, None], _deviations(fitted)[:, None]
        out = self.net.forward(self.net.unpack(fitted["params"]), self._normalised(x, mean[..., :-1], scale[..., :-1]))
        value = mean[..., -1] + scale[..., -1] * out[..., 0].double()  # [S, T·n]
        T, B = tau.mask.shape
        value = value.reshape(seeds, T, B // seeds).transpose(0, 1).reshape(T, B)
        return value if self.undiscounted_states else discounts(tau, self.discount, torch.float64) * value

    def fit(self, fitted: dict[str, Tensor], tau: Trajectories, seeds: int) -> dict[str, Tensor]:
        known, y = (by_seed(a, seeds) for a in values_to_go(tau, self.discount, self.undiscounted_states))
        fitted = {name: x.to(y.device) for name, x in fitted.items()}
        both = torch.cat([self._features(tau, seeds), y[..., None]], -1)
        fitted = self._observed(fitted, both, known)
        both = self._normalised(both, fitted["mean"][:, None], _deviations(fitted)[:, None])
        shuffled = torch.frac(torch.arange(known.shape[1], device=y.device, dtype=torch.float64) * GOLDEN)
        order = torch.where(known, shuffled, 2.0).argsort(1)[:, : int(known.sum(1).max())]  # each seed's steps first
        both, known = both.gather(1, order[..., None].expand(-1, -1, both.shape[-1])), known.gather(1, order)
        for _ in range(self.epochs):
            for lo in range(0, order.shape[1], self.minibatch):
                fitted = self._step(fitted, both[:, lo : lo + self.minibatch], known[:, lo : lo + self.minibatch])
        return fitted

    def _features(self, tau: Trajectories, seeds: int) -> Tensor:
        """Observation and t/H, [S, T·n, F]."""
        T, B = tau.mask.shape
        t = torch.arange(T, device=tau.mask.device, dtype=torch.float64)[:, None, None].expand(T, B, 1) / self.horizon
        s = torch.nn.functional.one_hot(tau.obs, self.n_states) if self.n_states else tau.obs.reshape(T, B, -1)
        return by_seed(torch.cat([s.double(), t], -1), seeds)

    def _normalised(self, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return ((x - mean) / scale).clamp(-CLIP, CLIP).to(self.dtype)

    def _observed(self, fitted: dict[str, Tensor], both: Tensor, known: Tensor) -> dict[str, Tensor]:
        """The statistics after one more batch [S, T·n, F + 1] at the steps `known`; the last layer predicts as before."""
        mask, old, new = known[..., None], self.keep * fitted["count"], known.sum(1, keepdim=True).double()
        centre = torch.where(mask, both, 0.0).sum(1) / new.clamp_min(1)
        squares = torch.where(mask, (both - centre[:, None]) ** 2, 0.0).sum(1)
        apart, share = centre - fitted["mean"], new / (old + new).clamp_min(1e-300)
        squares = self.keep * fitted["squares"] + squares + apart**2 * old * share
        after = {**fitted, "count": old + new, "mean": fitted["mean"] + apart * share, "squares": squares}
        was, now = _deviations(fitted)[:, -1:], _deviations(after)[:, -1:]
        last = fitted["params"][:, -self.hidden[-1] - 1 :].double() * was
        last[:, -1:] += torch.where(fitted["count"] > 0, fitted["mean"] - after["mean"], 0.0)[:, -1:]
        params = fitted["params"].clone()
        params[:, -self.hidden[-1] - 1 :] = last / now
        return {**after, "params": params}

    def _step(self, fitted: dict[str, Tensor], both: Tensor, known: Tensor) -> dict[str, Tensor]:
        """One step of Adam for the seeds that have a step in the minibatch."""
        some = known.any(1, keepdim=True)
        params = fitted["params"].detach().requires_grad_()
        with torch.enable_grad():
            error = self.net.forward(self.net.unpack(params), both[..., :-1])[..., 0] - both[..., -1]
            loss = ((error * known) ** 2).sum(1) / known.sum(1).clamp_min(1)
        g = torch.autograd.grad(loss.sum(), params)[0]
        steps = fitted["steps"] + some
        first, second = (
            torch.where(some, fitted[name].lerp(x, 1 - beta), fitted[name])
            for name, x, beta in (("first", g, BETAS[0]), ("second", g**2, BETAS[1]))
        )
        powers = [1 - beta ** steps.clamp_min(1).double() for beta in BETAS]
        size = (second / powers[1].to(self.dtype)).sqrt() + EPSILON
        step = self.learning_rate * first / powers[0].to(self.dtype) / size
        params = torch.where(some, fitted["params"] - step, fitted["params"])
        return {**fitted, "params": params, "first": first, "second": second, "steps": steps}


def _deviations(fitted: dict[str, Tensor]) -> Tensor:
    """Standard deviations of x and y, [S, F + 1]; 1 where something is constant."""
    deviation = (fitted["squares"] / fitted["count"].clamp_min(1e-300)).sqrt()
    return torch.where(deviation > 1e-9 * fitted["mean"].abs() + 1e-100, deviation, 1.0)
