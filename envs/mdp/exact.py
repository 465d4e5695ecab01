"""The exact value J(θ) of a policy, its gradient and its Hessian, in float64, for finite MDPs and LQR.

Both are linear systems with value J = c' (Σ_t M^t) x: M = discount·P_π for a finite MDP, and the transition of the second
moments of the state for LQR. So J is one linear solve (or, for a horizon H, O(log H) matrix products) and smooth in θ. Its
gradient and Hessian come from automatic differentiation and are exact to rounding. `theta` is [D] or [S, D] throughout.

The policy is a function of θ, so that this module does not depend on how policies are built:
    ExactMDP(mdp, log_pi, discount)   log_pi(theta [S, D]) -> [S, states, actions]
    ExactLQR(lqr, gain, discount)     gain(theta [S, D]) -> K [S, m, n], σ [S, m]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp

from envs.mdp.lqr import LQR
from envs.mdp.sparse import SparseValues
from envs.mdp.tabular import FiniteMDP


class Exact(Protocol):
    """What `ExactMDP` and `ExactLQR` have in common.

    J(theta, horizon)      E Σ_{t<horizon} discount^t r_t, [S]; horizon None: the infinite sum
    gap(theta)             J* - J(theta), [S], at least 0
    fisher(theta)          Fisher matrix of one parameter vector [D], [D, D]
    transfer_error(theta)  error of the compatible function approximation, one parameter vector [D]
    """

    @property
    def discount(self) -> float: ...

    def J(self, theta: Tensor, horizon: int | None = None) -> Tensor: ...

    def gap(self, theta: Tensor) -> Tensor: ...

    def fisher(self, theta: Tensor) -> Tensor: ...

    def transfer_error(self, theta: Tensor) -> float: ...


def gradient(exact: Exact, theta: Tensor, horizon: int | None = None) -> Tensor:
    """∇J(θ), or ∇J_H(θ) with a horizon H; same shape as theta, float64."""
    if sparse := _sparse_values(exact):
        return sparse.gradient(theta, horizon) if theta.dim() == 2 else sparse.gradient(theta[None], horizon)[0]
    return grad(lambda th: exact.J(th, horizon).sum())(theta.double())


def _sparse_values(exact: Exact) -> SparseValues | None:
    return exact.sparse if isinstance(exact, ExactMDP) else None


def hessian_vector(exact: Exact, theta: Tensor, u: Tensor, horizon: int | None = None) -> Tensor:
    """∇²J(θ) u, or ∇²J_H(θ) u with a horizon H, without forming the Hessian; same shape as theta, float64."""
    if sparse := _sparse_values(exact):
        one = theta.dim() == 1
        product = sparse.hessian_vector(theta[None], u[None], horizon) if one else sparse.hessian_vector(theta, u, horizon)
        return product[0] if one else product
    slope = grad(lambda th: exact.J(th, horizon).sum())
    return jvp(slope, (theta.double(),), (u.double(),))[1]


def full_hessian(exact: Exact, theta: Tensor, horizon: int | None = None) -> Tensor:
    """∇²J(θ), [D, D] float64, for one θ [D].

    Raises:
        ValueError: theta has more than 2,000 parameters.
    """
    if theta.numel() > 2000:
        raise ValueError(f"theta has {theta.numel()} parameters, expected at most 2000 for a full Hessian: use hessian_vector")
    return hessian(lambda th: exact.J(th, horizon))(theta.double())


def geometric_sum(M: Tensor, horizon: int | None) -> Tensor:
    """Σ_{t<horizon} M^t by repeated squaring, or (I - M)^{-1} for horizon None; M and the result are [..., n, n]."""
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device).expand_as(M)
    if horizon is None:
        return torch.linalg.solve(eye - M, eye)
    total, power = torch.zeros_like(M), eye  # invariant: Σ_{t<h} M^t and M^h, for h the leading bits of horizon
    for bit in bin(horizon)[2:]:
        total, power = total + power @ total, power @ power
        if bit == "1":
            total, power = total + power, power @ M
    return total


def _single(theta: Tensor) -> Tensor:
    if theta.dim() != 1:
        raise ValueError(f"theta has shape {tuple(theta.shape)}, expected one parameter vector [D]")
    return theta.double()


@dataclass(frozen=True)
class ExactMDP:
    """Exact values of a policy on a finite MDP.

    On a sparse one `J` is not differentiable: use `gradient` and `hessian_vector`.

    mdp       the environment
    log_pi    theta [S, D] -> [S, states, actions], log π_θ(a | s), differentiable
    discount  in [0, 1)
    """

    mdp: FiniteMDP
    log_pi: Callable[[Tensor], Tensor]
    discount: float

    @cached_property
    def sparse(self) -> SparseValues | None:
        """The same values without dense tables, where the MDP has none."""
        return SparseValues(self.mdp, self.log_pi, self.discount) if self.mdp.is_sparse else None

    def _model(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """π [.., s, a], M = discount·P_π [.., s, s], r_π [.., s]."""
        theta = theta.double()
        pi = (self.log_pi(theta) if theta.dim() == 2 else self.log_pi(theta[None])[0]).exp()
        M = self.discount * torch.einsum("...sa,sat->...st", pi, self.mdp.transition)
        return pi, M, torch.einsum("...sa,sa->...s", pi, self._reward)

    @cached_property
    def _reward(self) -> Tensor:
        return (self.mdp.transition * self.mdp.reward).sum(-1)

    def J(self, theta: Tensor, horizon: int | None = None) -> Tensor:
        """E Σ_{t<horizon} discount^t r_t, [S] (a scalar for theta [D]); horizon None: the infinite sum."""
        if self.sparse:
            return self.sparse.J(theta, horizon) if theta.dim() == 2 else self.sparse.J(theta[None], horizon)[0]
        _, M, r = self._model(theta)
        if horizon is None:
            eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
            return torch.linalg.solve(eye - M, r) @ self.mdp.start
        return (geometric_sum(M, horizon) @ r[..., None])[..., 0] @ self.mdp.start

    @cached_property
    def _optimal(self) -> tuple[Tensor, Tensor]:
        """Policy iteration: the optimal actions [s] and values [s]."""
        if self.sparse:
            return self.sparse.optimal
        P, r, n = self.mdp.transition, self._reward, self.mdp.n_states
        action = r.argmax(1)
        states = torch.arange(n, device=P.device)
        best = action, torch.full_like(r[:, 0], -torch.inf)
        while True:
            M = self.discount * P[states, action]
            V = torch.linalg.solve(torch.eye(n, dtype=P.dtype, device=P.device) - M, r[states, action])
            if not bool(V.sum() > best[1].sum()):  # actions that tie up to rounding would be exchanged for ever
                return best
            best = action, V
            Q = r + self.discount * P @ V
            better = Q.max(1).values > Q[states, action] + 1e-12
            if not bool(better.any()):
                return best
            action = torch.where(better, Q.argmax(1), action)

    @property
    def J_star(self) -> float:
        """max_π J(π) over all policies, with infinite horizon."""
        return float(self._optimal[1] @ self.mdp.start)

    def gap(self, theta: Tensor) -> Tensor:
        """J* - J(θ), [S], at least 0."""
        return self.J_star - self.J(theta)

    def _occupancy(self, M: Tensor) -> Tensor:
        """d(s) = (1 - discount) Σ_t discount^t P(s_t = s), a distribution [s]."""
        eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        return (1 - self.discount) * torch.linalg.solve((eye - M).mT, self.mdp.start)

    def _scores(self, theta: Tensor) -> Tensor:
        """∇ log π(a|s), [s, a, D]."""
        return jacrev(lambda th: self.log_pi(th[None])[0])(theta)

    def fisher(self, theta: Tensor) -> Tensor:
        """F(θ) = E_{s~d, a~π}[∇log π ∇log π'], [D, D], for one θ [D]."""
        theta = _single(theta)
        pi, M, _ = self._model(theta)
        weights, scores = self._occupancy(M)[:, None] * pi, self._scores(theta)
        return torch.einsum("sa,sad,sae->de", weights, scores, scores)

    def advantage(self, theta: Tensor) -> Tensor:
        """A(s, a) = Q(s, a) - V(s), [s, a], for one θ [D]."""
        _, M, r = self._model(_single(theta))
        V = torch.linalg.solve(torch.eye(len(M), dtype=M.dtype, device=M.device) - M, r)
        return self._reward + self.discount * self.mdp.transition @ V - V[:, None]

    def transfer_error(self, theta: Tensor) -> float:
        """E_{s~d*, a~π*}[(A(s, a) - (1 - discount) w'∇log π(a|s))²] with w = F⁺∇J, for one θ [D]; 0 for a tabular softmax.

        Source:
            Agarwal, Kakade, Lee and Mahajan 2021.
        """
        theta = _single(theta)
        # rtol: eigenvalues of redundant parameters are about 1e-17 after rounding and must count as 0
        w = torch.linalg.pinv(self.fisher(theta), rtol=1e-11, hermitian=True) @ gradient(self, theta)
        residual = self.advantage(theta) - (1 - self.discount) * self._scores(theta) @ w
        best = self._optimal[0]
        states = torch.arange(self.mdp.n_states, device=best.device)
        d = self._occupancy(self.discount * self.mdp.transition[states, best])
        return float((d * residual[states, best] ** 2).sum())


@dataclass(frozen=True)
class ExactLQR:
    """Exact values of a linear Gaussian policy a ~ N(K s, σ²) on an LQR.

    lqr       the environment
    gain      theta [S, D] -> K [S, m, n] and σ [S, m], differentiable
    discount  in [0, 1)
    """

    lqr: LQR
    gain: Callable[[Tensor], tuple[Tensor, Tensor]]
    discount: float

    def _K(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        K, std = self.gain(theta.double() if theta.dim() == 2 else theta.double()[None])
        noise = torch.diag_embed(std**2)
        return (K, noise) if theta.dim() == 2 else (K[0], noise[0])

    def J(self, theta: Tensor, horizon: int | None = None) -> Tensor:
        """E Σ_{t<horizon} discount^t r_t, [S] (a scalar for theta [D]); horizon None: the infinite sum.

        With infinite horizon it is -inf where the closed loop is unstable: discount · ρ(A + BK)² ≥ 1.
        """
        return self._J(*self._K(theta), horizon)

    def _J(self, K: Tensor, noise: Tensor, horizon: int | None) -> Tensor:
        env, n = self.lqr, self.lqr.n
        L = env.A + env.B @ K
        drift = env.W + env.B @ noise @ env.B.mT
        LL = torch.einsum("...ij,...kl->...ikjl", L, L).flatten(-4, -3).flatten(-2, -1)  # L ⊗ L on the second moments
        last = torch.zeros(*L.shape[:-2], 1, n * n + 1, dtype=L.dtype, device=L.device)
        last[..., -1] = 1.0
        M = self.discount * torch.cat([torch.cat([LL, drift.flatten(-2)[..., None]], -1), last], -2)
        cost = torch.cat([(env.Q + K.mT @ env.R @ K).flatten(-2), (env.R * noise).sum((-2, -1))[..., None]], -1)
        x = torch.cat([env.start.flatten(), env.start.new_ones(1)])
        J = -(cost[..., None, :] @ geometric_sum(M, horizon) @ x)[..., 0]
        if horizon is not None:
            return J
        with torch.no_grad():
            unstable = self.discount * torch.linalg.eigvals(L).abs().amax(-1) ** 2 >= 1
        return torch.where(unstable, -torch.inf, J)

    @cached_property
    def K_star(self) -> Tensor:
        """The optimal gain [m, n], from the discounted Riccati equation; it does not depend on the policy's noise."""
        env, c = self.lqr, self.discount
        P = env.Q
        for _ in range(100_000):
            K = -torch.linalg.solve(env.R + c * env.B.T @ P @ env.B, c * env.B.T @ P @ env.A)
            new = env.Q + c * env.A.T @ P @ (env.A + env.B @ K)
            if bool((new - P).abs().max() <= 1e-15 * new.abs().max()):
                break
            P = new
        return K

    def J_star(self, theta: Tensor) -> Tensor:
        """J(K*, σ(θ)), [S]: the best J at the noise level of θ."""
        noise = self._K(theta)[1]
        return self._J(self.K_star.expand(*noise.shape[:-2], -1, -1), noise, None)

    def gap(self, theta: Tensor) -> Tensor:
        """J(K*, σ(θ)) - J(θ), [S]; the policy class has the noise level σ(θ), and only the gain is optimised."""
        return self.J_star(theta) - self.J(theta)

    def fisher(self, theta: Tensor) -> Tensor:
        """F(θ) = (1 - discount) X ⊗ diag(σ^-2) for θ = K row-major, [mn, mn], with X = Σ_t discount^t E ss'."""
        K, noise = self._K(_single(theta))
        return torch.kron(torch.diag(1 / noise.diagonal()), (1 - self.discount) * self._second_moments(K, noise))

    def _second_moments(self, K: Tensor, noise: Tensor) -> Tensor:
        env, n, c = self.lqr, self.lqr.n, self.discount
        L = env.A + env.B @ K
        source = env.start + c / (1 - c) * (env.W + env.B @ noise @ env.B.T)
        return torch.linalg.solve(torch.eye(n * n, dtype=L.dtype) - c * torch.kron(L, L), source.flatten()).reshape(n, n)

    def transfer_error(self, theta: Tensor) -> float:
        """The transfer error as for ExactMDP, for one θ [D]. It is positive: A is quadratic in the action, the score is linear.

        With e = a - Ks and G = R + discount·B'PB the residual is tr(σ²G) - e'Ge. Its square is averaged over a ~ N(K*s, σ²)
        and s ~ d*.
        """
        env, c = self.lqr, self.discount
        K, noise = self._K(_single(theta))
        L = env.A + env.B @ K
        n = env.n
        stage = (env.Q + K.T @ env.R @ K).flatten()
        P = torch.linalg.solve(torch.eye(n * n, dtype=L.dtype) - c * torch.kron(L.T, L.T), stage).reshape(n, n)
        G = env.R + c * env.B.T @ P @ env.B
        best, apart = env.A + env.B @ self.K_star, self.K_star - K
        total, weight, S = 0.0, 1 - c, env.start
        while weight > 1e-17:
            C = apart @ S @ apart.T + noise  # e is Gaussian at each time: E(e'Ge) and E(e'Ge)² are known
            mean, level = (G * C).sum(), (G * noise).sum()
            total += weight * float(level**2 - 2 * level * mean + mean**2 + 2 * (G @ C @ G @ C).trace())
            weight, S = weight * c, best @ S @ best.T + env.W + env.B @ noise @ env.B.T
        return total
