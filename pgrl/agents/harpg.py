"""HARPG: Hessian-aided recursive policy gradient (Fatkhullin et al. 2023, Algorithm 2).

    sample τ_0 ~ p(. | θ_0);  d_0 = g(τ_0, θ_0);  θ_1 = θ_0 + γ_0 d_0
    for t = 1, 2, ...
        q_t ~ Uniform(0, 1);  θ^_t = q_t θ_t + (1-q_t) θ_{t-1}
        sample τ_t ~ p(. | θ_t) and, independently, τ^_t ~ p(. | θ^_t)
        v_t = B(τ^_t, θ^_t) (θ_t - θ_{t-1})
        d_t = (1-η_t) (d_{t-1} + v_t) + η_t g(τ_t, θ_t)
        θ_{t+1} = θ_t + γ_t d_t

The mean of v_t over q_t and τ^_t is exactly ∇J(θ_t) - ∇J(θ_{t-1}): d_t is unbiased at every t.

With Δ = θ_t - θ_{t-1}, a correction from m episodes is v_t = (1/m) Σ_i B(τ^_i, θ^_i) Δ with θ^_i = q_i θ_t + (1-q_i) θ_{t-1}.
The q_i are one number, or m independent ones (`q_per_episode`). Each term alone has the mean

    E_q E[B(τ^_i, θ^_i)Δ | q_i] = ∫_0^1 ∇²J(θ_{t-1} + qΔ) Δ dq = ∇J(θ_t) - ∇J(θ_{t-1}),

and so has their mean, whether or not the terms are independent. Only the variance differs: one q leaves Var_q(∇²J(θ^)Δ)
however large m is; m of them divide it all by m, and take the memory of m gradients. (On HalfCheetah the noise of episodes is
so much larger that no difference was measured, for steps of 0.05 and of 3.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.ranges import Count, NonNegative, Positive, Weight, check_fields
from pgrl.agent import Metrics, Transport, World, norm
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class HARPG:
    """Hessian-aided recursive policy gradient; complexity ε^-2, two trajectories an iteration.

    The step is multiplied by the gradient, so it must suit the problem's scale: N-HARPG needs less tuning.
    """

    step_size: Positive
    """γ_0: the step at t = 0, multiplied by the direction"""
    step_power: NonNegative = 1 / 2
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    eta: Weight = 1.0
    """η_0: the weight of the new gradient, in (0, 1]; at t = 0 it is always 1"""
    eta_power: NonNegative = 1.0
    """exponent of η_t = η_0 (2/(t+2))^p; 0 is a constant weight"""
    hvp_batch_size: Count | None = None
    """episodes of each seed for the Hessian correction; default: the batch size"""
    q_per_episode: bool = False
    """a q_t for each episode of the correction, not one for all: the same mean, less variance"""
    clip_correction: Positive | None = None
    """biased: shorten the correction to this times the norm of the last direction"""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def biases(self) -> tuple[str, ...]:
        """The biased hyperparameters that are set."""
        return () if self.clip_correction is None else ("clip_correction",)

    @property
    def unbiased(self) -> bool:
        return not self.biases

    @property
    def order(self) -> int | None:
        return 0 if self.biases else None

    def init(self, theta: Tensor) -> Transport:
        return Transport(theta, theta, torch.zeros_like(theta), 0)

    def step(self, state: Transport, world: World) -> tuple[Transport, Metrics]:
        step = polynomial(self.step_size, self.step_power, state.t)
        eta = polynomial(self.eta, self.eta_power, state.t)
        d, _, metrics = direction(state, world, eta, self.hvp_batch_size, self.q_per_episode, self.clip_correction)
        return Transport(state.theta + step * d, state.theta, d, state.t + 1), {"opt/step_size": step, **metrics}


def direction(
    state: Transport,
    world: World,
    eta: float,
    hvp_batch_size: int | None = None,
    q_per_episode: bool = False,
    clip: float | None = None,
) -> tuple[Tensor, Trajectories, Metrics]:
    """d_t of HARPG and of everything built on it, [S, D], and the episodes at θ_t."""
    theta, theta_prev, d, t = state
    if t == 0:
        (tau,) = world.sample(theta)
        return world.gradient(theta, tau), tau, {"opt/eta": 1.0}
    m, n = (hvp_batch_size or world.batch_size, 1) if q_per_episode else (1, hvp_batch_size)
    q = world.uniform(m).reshape(-1, 1)
    new, old = theta.repeat_interleave(m, 0), theta_prev.repeat_interleave(m, 0)
    between = q * new + (1 - q) * old  # m points for each seed, n episodes at each
    tau, tau_between = world.sample(theta, between, n=(None, n))
    v = world.hessian_vector(between, tau_between, new - old).reshape(len(theta), m, -1).mean(1)
    metrics: Metrics = {"opt/eta": eta, "opt/correction_norm": norm(v)[:, 0]}
    if clip is not None:
        length, most = norm(v), clip * norm(d)
        v = torch.where(length > most, v * (most / length), v)
        metrics["opt/correction_clipped"] = (length > most)[:, 0].to(v.dtype)
    return (1 - eta) * (d + v) + eta * world.gradient(theta, tau), tau, metrics
