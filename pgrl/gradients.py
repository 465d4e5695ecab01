"""Unbiased estimators of ∇J_H(θ) and ∇²J_H(θ)u from trajectories.

    Ψ_t = Σ_{h≥t} discount^h r_h                        discounted from time 0, not differentiated
    Φ(τ, θ) = Σ_t Ψ_t log π_θ(a_t|s_t)                  the surrogate objective
    g(τ, θ) = ∇Φ                                        E g = ∇J_H            (GPOMDP; Baxter and Bartlett 2001)
    B(τ, θ)u = ⟨∇log p(τ|θ), u⟩ ∇Φ + (∇²Φ)u             E Bu = ∇²J_H u        (Shen et al. 2019)

Subtracting a baseline b_t(s_t) that does not depend on the trajectory's own actions or rewards, Ψ_t - discount^t b_t, leaves
both means unchanged. The *causal* form of B keeps the products of scores at times (t, k) weighted by Ψ_{max(t,k)} only (DiCE;
Foerster et al. 2018). It has the same mean and a smaller variance.

Two usual changes of Ψ are biased, and off by default:

    no γ^t    Ψ_t = Σ_{h≥t} discount^{h-t} r_h; the mean of g is no gradient of any function (Nota and Thomas 2020)
    GAE-λ     Ψ_t = Σ_{h≥t} λ^{h-t} δ_h with δ_h = discount^h (r_h + discount b_{h+1}(s_{h+1}) - b_h(s_h)), or both, with
              (discount λ)^{h-t} and without discount^h; b is 0 after the last step (Schulman et al. 2016)

Since Ψ depends on the trajectory alone, E Bu is still exactly the derivative of E g along u, in both forms of B. A product of
scores at times t < k keeps the part of Ψ_t from time k on: λ^{k-t} Ψ_k, (discount λ)^{k-t} Ψ_k without γ^t.

All results are per seed: theta [S, D], trajectories of S·n episodes, results [S, D], the mean over a seed's n episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.func import grad, jvp

from envs.core import Trajectories
from pgrl.policy import Policy


def discounts(tau: Trajectories, discount: float, dtype: torch.dtype) -> Tensor:
    """discount^t for the T steps of tau, [T, 1]."""
    t = torch.arange(len(tau.mask), device=tau.mask.device, dtype=dtype)
    return (discount**t)[:, None]


def tail_sums(x: Tensor) -> Tensor:
    """Σ_{h≥t} x_h along the first axis, [T, ...] -> [T, ...]."""
    return x.flip(0).cumsum(0).flip(0)


def discounted_sums(x: Tensor, rate: float) -> Tensor:
    """Σ_{h≥t} rate^{h-t} x_h along the first axis, [T, ...] -> [T, ...], in log2 T operations."""
    if rate == 1:
        return tail_sums(x)
    step = 1
    while step < len(x):  # sums over `step` terms become sums over twice as many
        x = torch.cat([x[:-step] + rate**step * x[step:], x[-step:]])
        step *= 2
    return x


def rewards_to_go(
    tau: Trajectories, discount: float, dtype: torch.dtype | None = None, undiscounted_states: bool = False
) -> Tensor:
    """Ψ_t = Σ_{h≥t} discount^h r_h, or Σ_{h≥t} discount^{h-t} r_h, [T, B]; 0 at steps not taken."""
    reward = (tau.reward * tau.mask).to(dtype or tau.reward.dtype)
    if undiscounted_states:
        return discounted_sums(reward, discount) * tau.mask
    return tail_sums(discounts(tau, discount, reward.dtype) * reward) * tau.mask


def values_to_go(tau: Trajectories, discount: float, undiscounted_states: bool) -> tuple[Tensor, Tensor]:
    """The steps that count and Σ_{h≥t} discount^{h-t} r_h there, 0 elsewhere: [T, B] bool and float64.

    Steps at which discount^t vanishes do not count, unless states are undiscounted: they have no weight in any estimate.
    """
    if undiscounted_states:
        return tau.mask, rewards_to_go(tau, discount, torch.float64, undiscounted_states)
    scale = discounts(tau, discount, torch.float64)
    known = tau.mask & (scale > 1e-280)
    return known, torch.where(known, rewards_to_go(tau, discount, torch.float64) / scale.clamp_min(1e-280), 0.0)


@dataclass(frozen=True)
class Estimator:
    """The estimators g and B for one policy.

    policy               its log_prob is differentiated
    discount             in (0, 1]
    causal               use the causal form of B
    undiscounted_states  biased: no γ^t
    gae_lambda           biased below 1: λ of GAE, in [0, 1]

    A `baseline` [T, B] of the methods is discount^t b_t, with `undiscounted_states` b_t.
    """

    policy: Policy
    discount: float
    causal: bool = False
    undiscounted_states: bool = False
    gae_lambda: float = 1.0

    @property
    def _rate(self) -> float:
        """The discount of a step in the units of Ψ."""
        return self.discount if self.undiscounted_states else 1.0

    def weights(self, theta: Tensor, tau: Trajectories, baseline: Tensor | None = None) -> Tensor:
        """The weight of ∇log π_t, [T, B]: (Ψ_t - discount^t b_t)/n, or Ψ_t/n of GAE."""
        if self.gae_lambda < 1:
            psi = self._advantages(theta.dtype, tau, baseline)
        else:
            psi = rewards_to_go(tau, self.discount, theta.dtype, self.undiscounted_states)
            if baseline is not None:
                psi = (psi - baseline.to(theta.dtype)) * tau.mask
        return psi * (len(theta) / tau.mask.shape[1])

    def _advantages(self, dtype: torch.dtype, tau: Trajectories, baseline: Tensor | None) -> Tensor:
        """Ψ_t of GAE, [T, B]."""
        delta = (tau.reward * tau.mask).to(dtype)
        if not self.undiscounted_states:
            delta = discounts(tau, self.discount, dtype) * delta
        if baseline is not None:
            b = baseline.to(dtype) * tau.mask  # 0 after the last step
            delta = delta - b
            delta[:-1] += self._rate * b[1:]
        return discounted_sums(delta, self._rate * self.gae_lambda) * tau.mask

    def gradient(self, theta: Tensor, tau: Trajectories, baseline: Tensor | None = None) -> Tensor:
        """The estimate g of ∇J_H(θ).

        Args:
            theta: [S, D].
            tau: S·n episodes sampled at theta, grouped by seed.
            baseline: [T, B]; None: no baseline.

        Returns:
            [S, D], the mean over the n episodes of each seed.

        Raises:
            ValueError: a shape or the discount is out of range.
        """
        self._check(theta, tau)
        return self._weighted_score(theta, tau, self.weights(theta, tau, baseline))

    def _weighted_score(self, theta: Tensor, tau: Trajectories, weights: Tensor) -> Tensor:
        """Σ_{t,b} weights · ∇ log π, [S, D]. Seeds do not interact, so that one sum gives the gradients of all seeds."""
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            surrogate = (weights * self.policy.log_prob(theta, tau)).sum()
        return torch.autograd.grad(surrogate, theta)[0]

    def hessian_vector(self, theta: Tensor, tau: Trajectories, u: Tensor, baseline: Tensor | None = None) -> Tensor:
        """The estimate B u of ∇²J_H(θ)u, by reverse mode over forward mode, with as much memory as a gradient.

        One forward pass computes log π and its derivative along u, c_t = ⟨∇log π_t, u⟩. Then c weighs the scores, and the
        gradient of Σ_t Ψ_t c_t is (∇²Φ)u.

        Args:
            theta: [S, D].
            tau: S·n episodes sampled at theta, grouped by seed.
            u: [S, D].
            baseline: [T, B]; None: no baseline.

        Returns:
            [S, D], the mean over the n episodes of each seed.

        Raises:
            ValueError: a shape or the discount is out of range.
        """
        self._check(theta, tau)
        u, theta = u.detach().to(theta.dtype).contiguous(), theta.detach().contiguous()  # forward mode needs real copies
        psi = self.weights(theta, tau, baseline)

        def along_u(log_p: Tensor, c: Tensor) -> Tensor:
            # the product is taken per trajectory before the mean: E ∇log p = 0, so that a product of means would vanish
            return (self._score_weights(psi, c.detach() * tau.mask) * log_p + psi * c).sum()

        if not tau.action.is_floating_point():  # torch's derivative of log_softmax is in place, except in torch.func
            return grad(lambda th: along_u(*jvp(lambda x: self.policy.log_prob(x, tau), (th,), (u,))))(theta)
        theta.requires_grad_()  # the same without torch.func, which doubles the time of short episodes
        with torch.enable_grad(), dual_level():
            # A tangent of 0: an operation with a tensor that has none takes torch 0.1 ms, in Python.
            action, moving = (make_dual(x, v) for x, v in ((tau.action, torch.zeros_like(tau.action)), (theta, u)))  # type: ignore[no-untyped-call]
            product = along_u(*unpack_dual(self.policy.log_prob(moving, replace(tau, action=action))))  # type: ignore[no-untyped-call]
        return torch.autograd.grad(product, theta)[0]  # within `dual_level`, the backward pass would carry tangents

    def _score_weights(self, psi: Tensor, c: Tensor) -> Tensor:
        """The weights of ∇log π_t in the first term of Bu, [T, B]; c is 0 at steps not taken."""
        if not self.causal:
            return c.sum(0) * psi
        later = discounted_sums(psi * c, self._rate * self.gae_lambda) - psi * c
        return psi * c.cumsum(0) + later

    def per_trajectory(self, theta: Tensor, tau: Trajectories, u: Tensor | None = None) -> Tensor:
        """g of each episode, or B u of each episode.

        Args:
            theta: [S, D].
            tau: B episodes sampled at theta.
            u: [S, D], the vector of the Hessian-vector product; None: g.

        Returns:
            [B, D]; needs B·D numbers of memory.
        """
        n = tau.mask.shape[1] // len(theta)
        each = theta.repeat_interleave(n, 0)
        if u is None:
            return self.gradient(each, tau)
        return self.hessian_vector(each, tau, u.repeat_interleave(n, 0))

    def _check(self, theta: Tensor, tau: Trajectories) -> None:
        self.policy.check(theta)
        if tau.mask.shape[1] % len(theta):
            raise ValueError(f"{tau.mask.shape[1]} episodes cannot be divided among {len(theta)} seeds: expected a multiple")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount is {self.discount}, expected a number in (0, 1]")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda is {self.gae_lambda}, expected a number in [0, 1]")


def importance_weights(log_p: Tensor, log_q: Tensor, mask: Tensor, *, stepwise: bool) -> Tensor:
    """Importance weights p/q of trajectories sampled from q.

    Products are computed as sums of logs, because 1,000 steps of ratio 1.1 would overflow float32.

    Args:
        log_p: [T, B], log-probabilities of the actions under the target policy.
        log_q: [T, B], those under the policy that sampled.
        mask: [T, B] bool, steps really taken.
        stepwise: Π_{k≤t} at time t, the weight of r_t; False: the weight of the whole trajectory at every t.

    Returns:
        [T, B].

    Source:
        Precup, Sutton and Singh 2000.
    """
    log_ratio = ((log_p - log_q) * mask).cumsum(0)
    return (log_ratio if stepwise else log_ratio[-1:].expand_as(log_ratio)).exp()


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σw)²/Σw² over the last axis: the effective number of samples, of n weighted ones.

    Args:
        weights: [..., n].

    Returns:
        [...], between 1 and n.

    Source:
        Kong 1992.
    """
    scaled = weights / weights.abs().amax(-1, keepdim=True)
    return scaled.sum(-1) ** 2 / (scaled**2).sum(-1)


def weighted_gradient(policy: Policy, theta: Tensor, tau: Trajectories, discount: float, weights: Tensor) -> Tensor:
    """Estimate ∇J_H(θ) from trajectories of another policy: Σ_t (Σ_{h≥t} discount^h w_h r_h) ∇log π_θ(a_t|s_t).

    Args:
        policy: its log_prob is differentiated.
        theta: [S, D].
        tau: S·n episodes, grouped by seed.
        discount: in (0, 1].
        weights: [T, B] from `importance_weights`; the estimate is unbiased for both kinds.

    Returns:
        [S, D], the mean over the n episodes of each seed.
    """
    reward = weights.to(theta.dtype) * tau.reward.to(theta.dtype)
    psi = rewards_to_go(Trajectories(tau.obs, tau.action, reward, tau.mask, tau.terminated, tau.truncated), discount)
    return Estimator(policy, discount)._weighted_score(theta, tau, psi * (len(theta) / tau.mask.shape[1]))
