"""Exact values on finite MDPs with many states and few successors of each: no table of states × states is made.

With P_π and r_π of a policy, M = discount·P_π, start distribution μ, and V = r_π + M V, λ = μ + M'λ  (for a horizon H both are
recursions over H steps):

    J = μ·V        ∇J = ∇_θ Σ λ(s) π_θ(a|s) Q(s, a)        the policy gradient theorem, λ and Q = r + discount·P V held fixed
    ∇²J u          the derivative along u of the same expression, with the derivatives of λ and Q, which are linear systems too

Linear systems are solved by BiCGSTAB (van der Vorst 1992) on residuals until these are at the level of rounding, and by plain
sweeps x <- b + M x, which always converge, where that makes no progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad, jvp

from envs.mdp.tabular import FiniteMDP

SWEEPS = 1_000  # of value iteration, before policy iteration


@dataclass(frozen=True)
class SparseValues:
    """Exact values of a policy on a finite MDP; arguments as of `envs.mdp.exact.ExactMDP`, theta is [S, D]."""

    mdp: FiniteMDP
    log_pi: Callable[[Tensor], Tensor]
    discount: float

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct successors of each state [s, k]; discount times their probabilities [s, a, k]; rewards [s, a]."""
        mdp = self.mdp
        n, width = mdp.n_states, mdp.n_actions * mdp.successors.shape[2]
        ordered, order = mdp.successors.reshape(n, width).sort(dim=1, stable=True)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        column = torch.empty_like(order).scatter_(1, order, new.cumsum(1) - 1)  # of each (a, successor), among the distinct
        k = int(column.max()) + 1
        near = torch.arange(n, device=order.device)[:, None].repeat(1, k)  # no successor is missing: a state stands for itself
        near.scatter_(1, column, mdp.successors.reshape(n, width))
        moves = mdp.probability.new_zeros(n, mdp.n_actions, k)
        moves.scatter_add_(2, column.view_as(mdp.successors), mdp.probability)
        return near, self.discount * moves, (mdp.probability * mdp.rewards).sum(-1)

    def _pi(self, theta: Tensor) -> Tensor:
        return self.log_pi(theta).exp()

    def _at(self, pi: Tensor) -> tuple[Tensor, Tensor]:
        """M as [S, s, k] and r_π [S, s]."""
        _, moves, reward = self._tables
        return torch.einsum("nsa,sak->nsk", pi, moves), (pi * reward).sum(-1)

    def _forward(self, M: Tensor, x: Tensor) -> Tensor:
        """M x, [S, s]."""
        return (M * x[:, self._tables[0]]).sum(-1)

    def _backward(self, M: Tensor, x: Tensor) -> Tensor:
        """M'x, [S, s]."""
        near = self._tables[0]
        return torch.zeros_like(x).index_add_(1, near.flatten(), (M * x[..., None]).flatten(1))

    def _next(self, V: Tensor) -> Tensor:
        """discount·P V, [S, s, a]."""
        near, moves, _ = self._tables
        return torch.einsum("nsk,sak->nsa", V[:, near], moves)

    def _q(self, V: Tensor) -> Tensor:
        """r + discount·P V, [S, s, a]."""
        return self._tables[2] + self._next(V)

    def J(self, theta: Tensor, horizon: int | None = None) -> Tensor:
        """J(θ), or J_H(θ), [S]; for derivatives see `gradient` and `hessian_vector`."""
        M, r = self._at(self._pi(theta.double().detach()))
        return (r + self._forward(M, self._values(M, r, horizon)[-1])) @ self.mdp.start

    def gradient(self, theta: Tensor, horizon: int | None = None) -> Tensor:
        """∇J(θ), or ∇J_H(θ), [S, D]."""
        theta = theta.double().detach()
        M, r = self._at(self._pi(theta))
        return self._score(theta, self._weight(self._values(M, r, horizon), self._visits(M, horizon)))

    def hessian_vector(self, theta: Tensor, u: Tensor, horizon: int | None = None) -> Tensor:
        """∇²J(θ) u, or ∇²J_H(θ) u, [S, D]."""
        theta, u = theta.double().detach(), u.double().detach()
        pi, dpi = jvp(self._pi, (theta,), (u,))[:2]
        M, r = self._at(pi)
        dM, dr = self._at(dpi)
        values, visits = self._values(M, r, horizon), self._visits(M, horizon)
        by_values = [dr + self._forward(dM, v) for v in values]
        by_visits = [self._backward(dM, x) for x in visits]
        if horizon is None:
            dvalues = [solve(lambda x: self._forward(M, x), by_values[0], self.discount)]
            dvisits = [solve(lambda x: self._backward(M, x), by_visits[0], self.discount)]
        else:
            dvalues, dvisits = [torch.zeros_like(r)], [torch.zeros_like(r)]
            for source, other in zip(by_values[:-1], by_visits[:-1], strict=True):
                dvalues.append(source + self._forward(M, dvalues[-1]))
                dvisits.append(other + self._backward(M, dvisits[-1]))
        change = torch.zeros_like(pi)
        for v, dv, x, dx in zip(values[::-1], dvalues[::-1], visits, dvisits, strict=True):
            change += dx[..., None] * self._q(v) + x[..., None] * self._next(dv)
        return jvp(self._score, (theta, self._weight(values, visits)), (u, change))[1]

    @cached_property
    def optimal(self) -> tuple[Tensor, Tensor]:
        """Optimal actions [s] and values [s]: policy iteration, begun where value iteration leads in 1,000 sweeps."""
        n, reward = self.mdp.n_states, self._tables[2]
        V = reward.new_zeros(1, n)
        for _ in range(SWEEPS):
            V, before = self._q(V).amax(-1), V
            if bool((V - before).abs().max() <= 1e-3 * V.abs().max()):
                break
        action = self._q(V)[0].argmax(1)
        best = action, torch.full_like(V[0], -torch.inf)
        while True:
            M, r = self._at(torch.nn.functional.one_hot(action, self.mdp.n_actions).to(reward.dtype)[None])
            V = self._values(M, r, None)[0]
            if not bool(V.sum() > best[1].sum()):  # actions that tie up to rounding would be exchanged for ever
                return best
            best = action, V[0]
            Q = self._q(V)[0]
            better = Q.amax(1) > Q.gather(1, action[:, None])[:, 0] + 1e-14 * Q.abs().max()
            if not bool(better.any()):
                return best
            action = torch.where(better, Q.argmax(1), action)

    def _values(self, M: Tensor, r: Tensor, horizon: int | None) -> list[Tensor]:
        """V; with a horizon H those of 0, 1, .., H - 1 steps to go."""
        if horizon is None:
            return [solve(lambda x: self._forward(M, x), r, self.discount)]
        values = [torch.zeros_like(r)]
        for _ in range(horizon - 1):
            values.append(r + self._forward(M, values[-1]))
        return values

    def _visits(self, M: Tensor, horizon: int | None) -> list[Tensor]:
        """λ; with a horizon H the discounted distribution of states at times 0, 1, .., H - 1."""
        start = self.mdp.start.expand(len(M), -1)
        if horizon is None:
            return [solve(lambda x: self._backward(M, x), start, self.discount)]
        visits = [start]
        for _ in range(horizon - 1):
            visits.append(self._backward(M, visits[-1]))
        return visits

    def _weight(self, values: list[Tensor], visits: list[Tensor]) -> Tensor:
        """Σ_t λ_t(s) Q_t(s, a), [S, s, a]."""
        weight = torch.zeros(*visits[0].shape, self.mdp.n_actions, dtype=torch.float64, device=visits[0].device)
        for v, x in zip(values[::-1], visits, strict=True):
            weight += x[..., None] * self._q(v)
        return weight

    def _score(self, theta: Tensor, weight: Tensor) -> Tensor:
        return grad(lambda th: (self._pi(th) * weight).sum())(theta)


def solve(apply: Callable[[Tensor], Tensor], b: Tensor, discount: float) -> Tensor:
    """x = b + M x for each row, to rounding.

    Args:
        apply: x [S, n] -> M x, whose powers decrease at least as discount^t.
        b: [S, n].
        discount: in [0, 1).
    """
    x, residual = torch.zeros_like(b), b
    tolerance = 4 * torch.finfo(b.dtype).eps
    for _ in range(20):  # restarts: the residual that the recursion carries drifts from the true one
        step = _bicgstab(apply, residual)
        after = b - (x + step) + apply(x + step)
        better = (after.abs().amax(1) < 0.5 * residual.abs().amax(1))[:, None]
        if not bool(better.any()):
            break
        x, residual = torch.where(better, x + step, x), torch.where(better, after, residual)
        if bool((residual.abs().amax(1) <= tolerance * x.abs().amax(1)).all()):
            return x
    for _ in range(math.ceil(math.log(tolerance) / math.log(max(discount, 0.5)))):
        if bool((residual.abs().amax(1) <= 4 * tolerance * x.abs().amax(1)).all()):
            break
        x = x + residual
        residual = b - x + apply(x)
    return x


def _bicgstab(apply: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """An approximate solution of x = b + M x from 0, 1e-10 of the way, or after 500 steps."""
    x, r = torch.zeros_like(b), b
    shadow, rho, p = r, (r * r).sum(1, keepdim=True), r
    goal = 1e-20 * rho
    for _ in range(500):
        Ap = p - apply(p)
        alpha = _ratio(rho, (shadow * Ap).sum(1, keepdim=True))
        s = r - alpha * Ap
        As = s - apply(s)
        omega = _ratio((As * s).sum(1, keepdim=True), (As * As).sum(1, keepdim=True))
        x = x + alpha * p + omega * s
        r = s - omega * As
        if bool(((r * r).sum(1, keepdim=True) <= goal).all()):
            break
        rho, before = (shadow * r).sum(1, keepdim=True), rho
        p = r + _ratio(rho, before) * _ratio(alpha, omega) * (p - omega * Ap)
    return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b, 0 where b = 0: a row that is solved stays as it is."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
