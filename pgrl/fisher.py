"""The step of a given length in the norm of the Fisher information: steepest ascent among policies, not among parameters.

    F = mean over states s of E_{a ~ π(.|s)} ∇log π(a|s) ∇log π(a|s)ᵀ
    step(d) = F⁻¹d / √(dᵀ F⁻¹ d)             it maximises ⟨d, Δ⟩ subject to Δᵀ F Δ = 1

A step of length γ changes the policy by a KL divergence of γ²/2 (mean over these states, up to third order), whatever the scale
of rewards, observations and parameters. F is that of the states of a batch, with the expectation over actions in closed form;
(F + damping·I)⁻¹d is found by conjugate gradients, with as much memory as a gradient.

Source: Amari 1998; Kakade 2001; Martens 2010 (conjugate gradients); Schulman et al. 2015 (length by the KL divergence).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from envs.core import Trajectories
from pgrl.agent import World, normalised
from pgrl.policy import Policy, by_seed

StepNorm = Literal["euclidean", "fisher"]

STATES = 1_000  # of each seed's batch that F is computed from, evenly spread over time
ITERATIONS = 10  # of conjugate gradients
DAMPING = 0.1


def fisher_vector(policy: Policy, theta: Tensor, tau: Trajectories) -> Callable[[Tensor], Tensor]:
    """The product with the Fisher information of the policy at the states of a batch.

    Args:
        policy: its network and its head.
        theta: [S, D], where F is evaluated.
        tau: S·n episodes, grouped by seed, from whatever policy; every step counts alike.

    Returns:
        A function v [S, D] -> F v [S, D].
    """
    S, (T, B) = len(theta), tau.mask.shape
    longest = tau.mask.reshape(T, S, B // S).any(2).sum(0)  # episode of each seed: others do not change the choice of states
    times = torch.arange(T, device=tau.mask.device)[:, None] * (longest * (B // S) // STATES).clamp_min(1)
    times = times[(times < longest).any(1)].repeat_interleave(B // S, 1)  # [K, B]
    chosen = times.clamp_max(T - 1), torch.arange(B, device=tau.mask.device)
    obs, mask = by_seed(tau.obs[chosen], S), by_seed(tau.mask[chosen] & (times < T), S)
    valid = None if tau.action_mask is None else by_seed(tau.action_mask[chosen], S)
    weight = (mask / mask.sum(1, keepdim=True).clamp_min(1)).to(theta.dtype)[..., None]
    head, at = policy.head, (policy.net.size, policy.net.size + policy.head.size)

    with torch.enable_grad():
        x = theta.detach().requires_grad_()
        out = policy.outputs(x, obs)
        w = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad((w * out).sum(), x, create_graph=True)  # Jᵀw, linear in w: its derivative along v is J v

    def product(v: Tensor) -> Tensor:
        (v_out,) = _derivative(back, w, v)
        of_out, of_params = head.fisher(out.detach(), theta[:, at[0] : at[1]], v_out, v[:, at[0] : at[1]], valid)
        (result,) = _derivative(out, x, weight * of_out)
        result[:, at[0] : at[1]] += of_params
        return result

    return product


def _derivative(y: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """The gradient of ⟨w, y⟩ in x; given as an argument of `grad`, w would make torch import sympy, a second."""
    with torch.enable_grad():
        return torch.autograd.grad((w * y).sum(), x, retain_graph=True)


def unit_step(norm: StepNorm, d: Tensor, world: World, theta: Tensor, tau: Trajectories) -> Tensor:
    """The step of length 1 along d: d/‖d‖, or the steepest one in the norm of the Fisher information, [S, D]; 0 where d = 0.

    Args:
        norm: euclidean or fisher.
        d: [S, D], the direction.
        world: of this iteration.
        theta: [S, D], the iterate.
        tau: episodes of this iteration, whose states the Fisher information is computed from.
    """
    return normalised(d) if norm == "euclidean" else natural_step(world.policy, theta, tau, d)


def natural_step(policy: Policy, theta: Tensor, tau: Trajectories, d: Tensor) -> Tensor:
    """The ascent direction of length 1 in the norm of the Fisher information, [S, D]; 0 where d = 0.

    Args:
        policy: its network and its head.
        theta: [S, D], where the step begins.
        tau: S·n episodes, grouped by seed, whose states F is computed from.
        d: [S, D], a gradient, or an estimate of one.
    """
    F = fisher_vector(policy, theta, tau)
    unit = normalised(d)
    x = conjugate_gradients(lambda v: F(v) + DAMPING * v, unit)
    length = (x * F(x)).sum(1, keepdim=True).clamp_min(0).sqrt()
    return torch.where(length > 0, x / length.clamp_min(torch.finfo(x.dtype).tiny), normalised(x))


def conjugate_gradients(A: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """An approximate solution x of A x = b for each row, A symmetric and positive definite, [S, D]; 0 where b = 0."""
    x, r, p = torch.zeros_like(b), b, b
    rr = (r * r).sum(1, keepdim=True)
    for _ in range(ITERATIONS):
        z = A(p)
        curvature = (p * z).sum(1, keepdim=True)
        alpha = torch.where(curvature > 0, rr / curvature, 0.0)
        x, r = x + alpha * p, r - alpha * z
        fresh = (r * r).sum(1, keepdim=True)
        p = r + torch.where(rr > 0, fresh / rr, 0.0) * p
        rr = fresh
    return x
