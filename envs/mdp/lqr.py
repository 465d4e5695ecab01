"""The linear-quadratic regulator: s' = A s + B a + w, r = -(s'Qs + a'Ra), with noise w ~ N(0, W) and s_0 ~ N(0, Σ_0).

Actions are not clipped, so that the exact values of `envs.mdp.exact`, which are those of the linear system, hold for a Gaussian
policy a = K s + σ ε. Every episode runs to the horizon.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import State
from envs.random import Rng


class LQR:
    """A linear-quadratic regulator with state s [n] and action a [m].

    Args:
        A: [n, n], state to next state.
        B: [n, m], action to next state.
        Q: [n, n], cost of the state.
        R: [m, m], cost of the action.
        W: [n, n], covariance of the noise.
        start: [n, n], covariance of s_0, whose mean is 0.
        horizon: steps of an episode.
        dtype: of observations and rewards.
        device: of the tensors.

    Raises:
        ValueError: a shape disagrees with that of B, a covariance is not positive definite, or `horizon` is below 1.
    """

    backend: ClassVar[Literal["torch", "numpy"]] = "torch"
    terminates: ClassVar[bool] = False

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        Q: Tensor,
        R: Tensor,
        W: Tensor,
        start: Tensor,
        *,
        horizon: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        A, B, Q, R, W, start = (torch.as_tensor(x, dtype=torch.float64, device=device) for x in (A, B, Q, R, W, start))
        self.n, self.m = B.shape
        n, m = self.n, self.m
        shapes = {"A": (A, (n, n)), "Q": (Q, (n, n)), "R": (R, (m, m)), "W": (W, (n, n)), "start": (start, (n, n))}
        for name, (value, shape) in shapes.items():
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape} to go with B of shape {(n, m)}")
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}, expected at least 1")
        self.A, self.B, self.Q, self.R, self.W, self.start = A, B, Q, R, W, start
        self.horizon, self.dtype = horizon, dtype
        self._roots = []
        for name, covariance in (("W", W), ("start", start)):
            root, failed = torch.linalg.cholesky_ex(covariance)
            if bool(failed):
                raise ValueError(f"{name} is not positive definite: it must be a covariance matrix")
            self._roots.append(root.to(dtype))
        self._A, self._B, self._Q, self._R = (x.to(dtype) for x in (A, B, Q, R))
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (n,), np.float64 if dtype == torch.float64 else np.float32
        )
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (m,), self.observation_space.dtype.type)

    def reset(self, n: int, rng: Rng) -> State:
        obs = rng.normal(self.n).to(self.dtype) @ self._roots[1].T
        never = torch.zeros(n, dtype=torch.bool, device=obs.device)
        return State(obs, torch.zeros(n, dtype=self.dtype, device=obs.device), never, never)

    def step(self, state: State, action: Tensor, rng: Rng) -> State:
        s, a = state.obs, action.to(self.dtype)
        reward = -(((s @ self._Q) * s).sum(-1) + ((a @ self._R) * a).sum(-1))
        obs = s @ self._A.T + a @ self._B.T + rng.normal(self.n).to(self.dtype) @ self._roots[0].T
        return State(obs, reward, state.terminated, state.truncated)


def double_integrator(horizon: int = 50, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> LQR:
    """Make an LQR with n = 2, m = 1: position and velocity under a force, A = [[.9, .2], [0, .8]], B = [0; .5]."""
    eye = [[1.0, 0.0], [0.0, 1.0]]
    tables = ([[0.9, 0.2], [0.0, 0.8]], [[0.0], [0.5]], [[1.0, 0.0], [0.0, 0.5]], [[0.3]], [[0.05, 0.0], [0.0, 0.05]], eye)
    return LQR(*(torch.tensor(x, dtype=torch.float64) for x in tables), horizon=horizon, dtype=dtype, device=device)
