"""N-HARPG: HARPG's direction with normalised steps (Fatkhullin et al. 2023, Algorithm 3).

    d_t as in HARPG
    θ_{t+1} = θ_t + γ_t d_t/‖d_t‖          (θ_t when d_t = 0)

SHARP (Salehkaleybar et al. 2022) is the same recursion with both exponents 2/3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.ranges import Count, NonNegative, Positive, Weight, check_fields
from pgrl.agent import Metrics, Transport, World
from pgrl.agents.harpg import direction
from pgrl.fisher import StepNorm, unit_step
from pgrl.schedules import polynomial


@dataclass(frozen=True)
class NHARPG:
    """Normalised Hessian-aided recursive policy gradient; complexity ε^-2, two trajectories an iteration."""

    step_size: Positive
    """γ_0: the length of the step at t = 0, in the norm of step_norm"""
    step_power: NonNegative = 1.0
    """exponent p of γ_t = γ_0 (2/(t+2))^p; 0 is a constant step"""
    step_norm: StepNorm = "euclidean"
    """norm in which a step has the length γ_t: euclidean, or fisher (natural gradient): a mean KL divergence of γ_t²/2"""
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
        d, tau, metrics = direction(state, world, eta, self.hvp_batch_size, self.q_per_episode, self.clip_correction)
        theta = state.theta + step * unit_step(self.step_norm, d, world, state.theta, tau)
        return Transport(theta, state.theta, d, state.t + 1), {"opt/step_size": step, **metrics}
