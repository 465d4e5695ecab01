"""Exact values against reference values of the tiny MDP and the reference LQR, and inequalities of the theory (T5, T6)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.mdp.exact import ExactLQR, full_hessian, geometric_sum, gradient, hessian_vector
from envs.mdp.lqr import LQR, double_integrator
from envs.mdp.tabular import garnet, gridworld
from pgrl.policy import policy_for
from pgrl.theory import ProblemConstants, suggest_horizon
from tests.worlds import DISCOUNT, F64, HORIZON, THETA, exact_mdp, table_policy, tiny_mdp


def blocks(c: float, e: float, f: float) -> torch.Tensor:
    return torch.tensor([[-c, c, e, -e], [c, -c, -e, e], [e, -e, -f, f], [-e, e, f, -f]], dtype=F64)


@pytest.fixture
def tiny():
    mdp = tiny_mdp()
    return exact_mdp(mdp, table_policy(mdp))


def test_finite_horizon_reference(tiny) -> None:
    theta = THETA[0]
    a, b = 0.481423973730307, 0.403668012747148
    assert float(tiny.J(theta, HORIZON)) == pytest.approx(2.1085578175298183, abs=1e-14)
    assert torch.allclose(gradient(tiny, theta, HORIZON), torch.tensor([a, -a, -b, b], dtype=F64), atol=1e-14)
    expected = blocks(0.053530523607995, 0.023131736927684, 0.123638808329217)
    assert torch.allclose(full_hessian(tiny, theta, HORIZON), expected, atol=1e-14)


def test_infinite_horizon_reference(tiny) -> None:
    theta = THETA[0]
    assert float(tiny.J(theta)) == pytest.approx(7.776640687143198, abs=1e-13)
    assert tiny.J_star == pytest.approx(12.627118644067789, abs=1e-13)
    assert tiny._optimal[0].tolist() == [0, 1]
    g = gradient(tiny, theta)
    expected = torch.tensor([1.665455463450512, -1.665455463450512, -1.427073609066607, 1.427073609066607], dtype=F64)
    assert torch.allclose(g, expected, atol=1e-13)
    assert torch.allclose(full_hessian(tiny, theta), blocks(0.11568003641976, 0.11023546710560, 0.48646582726376), atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(tiny.fisher(theta))
    assert torch.allclose(eigenvalues, torch.tensor([0, 0, 0.191301687775269, 0.282891519810174], dtype=F64), atol=1e-12)
    assert float(eigenvalues[0]) == pytest.approx(0, abs=1e-15)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), horizon=st.integers(1, 70))
def test_derivatives_against_central_differences_on_garnet(seed: int, horizon: int) -> None:
    mdp = garnet(5, 3, 2, seed=seed)
    exact = exact_mdp(mdp, table_policy(mdp))
    draw = torch.Generator().manual_seed(seed)
    theta, u = (torch.randn(15, generator=draw, dtype=F64) for _ in range(2))
    for H in (None, horizon):
        h = 1e-5
        slope = (exact.J(theta + h * u, H) - exact.J(theta - h * u, H)) / (2 * h)
        assert float(slope) == pytest.approx(float(gradient(exact, theta, H) @ u), rel=1e-6, abs=1e-7)
        bend = (gradient(exact, theta + h * u, H) - gradient(exact, theta - h * u, H)) / (2 * h)
        assert torch.allclose(bend, hessian_vector(exact, theta, u, H), rtol=1e-5, atol=1e-6)


def test_doubling_equals_the_plain_sum() -> None:
    M = torch.rand(3, 4, 4, dtype=F64) * 0.3
    for horizon in (1, 2, 3, 7, 8, 50):
        total, power = torch.zeros_like(M), torch.eye(4, dtype=F64).expand_as(M)
        for _ in range(horizon):
            total, power = total + power, power @ M
        assert torch.allclose(geometric_sum(M, horizon), total, atol=1e-12)
    assert torch.allclose(geometric_sum(M * 0.3, None), geometric_sum(M * 0.3, 400), atol=1e-12)


def test_t5_truncation_bounds(tiny) -> None:
    """‖∇J_H - ∇J‖ ≤ D_g discount^H and J - J_H ≤ r_max discount^H/(1-discount)."""
    theta, bounds = THETA[0], ProblemConstants(r_max=2.0, M_g=2**0.5, M_h=1.0, discount=DISCOUNT)
    measured = []
    for H in (5, 20, 50, 100):
        error = float((gradient(tiny, theta, H) - gradient(tiny, theta)).norm())
        assert error <= bounds.gradient_truncation(H)
        assert float(tiny.J(theta) - tiny.J(theta, H)) <= bounds.return_truncation(H)
        apart = full_hessian(tiny, theta, H) - full_hessian(tiny, theta)
        assert float(torch.linalg.matrix_norm(apart, 2)) <= bounds.hessian_truncation(H)
        measured.append(error)
    assert measured == pytest.approx([1.79, 0.369, 0.0157, 8.07e-5], rel=5e-3)


def test_constants_bound_what_they_say(tiny) -> None:
    bounds = ProblemConstants(r_max=2.0, M_g=2**0.5, M_h=1.0, discount=DISCOUNT)
    assert float(torch.linalg.matrix_norm(full_hessian(tiny, THETA[0]), 2)) <= bounds.L_g
    assert bounds.sigma_g**2 >= 3.1066
    assert bounds.sigma_h(HORIZON) ** 2 >= 3.2898
    assert suggest_horizon(1000, 0.9) == 70
    with pytest.raises(ValueError, match="expected at least 1"):
        suggest_horizon(0, 0.9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_t6_compatible_residual_vanishes_and_gradient_domination(seed: int) -> None:
    """A full softmax table is compatible: ε_bias = 0. Then ‖∇J‖ ≥ (μ_F/M_g) (J* - J), with μ_F of the reduced table."""
    mdp = garnet(4, 3, 2, seed=seed)
    theta = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=F64)
    assert exact_mdp(mdp, table_policy(mdp)).transfer_error(theta) < 1e-20
    reduced = policy_for(mdp, dtype=F64, reduced=True)
    exact = exact_mdp(mdp, reduced)
    theta = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=F64)
    mu = float(torch.linalg.eigvalsh(exact.fisher(theta))[0])
    assert mu > 1e-6
    assert exact.transfer_error(theta) < 1e-18
    assert float(gradient(exact, theta).norm()) >= mu / 2**0.5 * float(exact.gap(theta)) - 1e-12


def test_advantage_has_mean_zero(tiny) -> None:
    pi = torch.softmax(THETA.reshape(2, 2), 1)
    assert torch.allclose((pi * tiny.advantage(THETA[0])).sum(1), torch.zeros(2, dtype=F64), atol=1e-13)


def test_a_stack_of_thetas_is_each_of_them(tiny) -> None:
    stack = torch.randn(5, 4, dtype=F64)
    assert torch.allclose(tiny.J(stack), torch.stack([tiny.J(x) for x in stack]), atol=1e-13)
    assert torch.allclose(gradient(tiny, stack), torch.stack([gradient(tiny, x) for x in stack]), atol=1e-12)


def test_full_hessian_refuses_large_theta(tiny) -> None:
    with pytest.raises(ValueError, match="use hessian_vector"):
        full_hessian(tiny, torch.zeros(2001))


@pytest.mark.parametrize(("side", "discount"), [(5, 0.95), (5, 0.99), (9, 0.9), (9, 0.999)])
def test_actions_that_tie_up_to_rounding_end_the_policy_iteration(side: int, discount: float) -> None:
    """A goal of 10^6 in the middle of a square: actions that symmetry makes equal differ by rounding, which is no gain."""
    rows = [["."] * side for _ in range(side)]
    rows[side // 2][side // 2] = "G"
    text = "\n".join(map("".join, rows))
    small, large = (gridworld(text, goal_reward=goal) for goal in (1.0, 1e6))
    best, scaled = (exact_mdp(mdp, table_policy(mdp), discount).J_star for mdp in (small, large))
    assert scaled == pytest.approx(1e6 * best, rel=1e-12)


# ---- LQR

SIGMA = 0.4
K = torch.tensor([-0.3, -0.4], dtype=F64)


@pytest.fixture
def lqr() -> ExactLQR:
    return ExactLQR(double_integrator(), lambda th: (th.reshape(-1, 1, 2), th.new_full((len(th), 1), SIGMA)), 0.95)


def test_lqr_reference(lqr) -> None:
    assert float(lqr.J(K)) == pytest.approx(-11.474407376528, abs=1e-11)
    assert torch.allclose(gradient(lqr, K), torch.tensor([-3.032603318340, -2.949067095411], dtype=F64), atol=1e-11)
    bend = hessian_vector(lqr, K, torch.tensor([1.0, -2.0], dtype=F64))
    assert torch.allclose(bend, torch.tensor([-22.336556192, 25.254483203], dtype=F64), atol=1e-8)
    eigenvalues = torch.linalg.eigvalsh(lqr.fisher(K))
    assert torch.allclose(eigenvalues, torch.tensor([1.364372260, 2.528013742], dtype=F64), atol=1e-8)
    assert torch.allclose(lqr.K_star, torch.tensor([[-0.628523857852, -0.888236338112]], dtype=F64), atol=1e-11)
    assert float(lqr.J_star(K)) == pytest.approx(-10.545370296394, abs=1e-11)


def test_lqr_optimum_is_stationary_and_the_undiscounted_gain_is_not(lqr) -> None:
    assert float(gradient(lqr, lqr.K_star.flatten()).norm()) < 1e-12
    env, P = lqr.lqr, lqr.lqr.Q
    for _ in range(2000):  # the trap: Riccati without the discount
        gain = -torch.linalg.solve(env.R + env.B.T @ P @ env.B, env.B.T @ P @ env.A)
        P = env.Q + env.A.T @ P @ (env.A + env.B @ gain)
    assert float(lqr.J(gain.flatten())) == pytest.approx(-10.5677, abs=5e-5)


def test_lqr_finite_horizon_by_the_plain_recursion(lqr) -> None:
    env, gain = lqr.lqr, K.reshape(1, 2)
    L, S, J = env.A + env.B @ gain, env.start, 0.0
    for t in range(20):
        J -= 0.95**t * float(((env.Q + gain.T @ env.R @ gain) @ S).trace() + SIGMA**2 * env.R.trace())
        S = L @ S @ L.T + SIGMA**2 * env.B @ env.B.T + env.W
    assert float(lqr.J(K, 20)) == pytest.approx(J, abs=1e-12)
    assert float(lqr.J(K, 3000)) == pytest.approx(float(lqr.J(K)), abs=1e-10)


def test_lqr_that_runs_away_is_worth_minus_infinity(lqr) -> None:
    assert float(lqr.J(20 * K)) == -torch.inf


def test_lqr_transfer_error_by_sampling(lqr) -> None:
    """E over d*, π* of (tr(σ²G) - e'Ge)²: a mean over time of sampled episodes, within 4.5 standard errors."""
    env, c = lqr.lqr, 0.95
    draw = torch.Generator().manual_seed(0)
    n, gain = 20_000, K.reshape(1, 2)
    L = env.A + env.B @ gain
    stage = (env.Q + gain.T @ env.R @ gain).flatten()
    P = torch.linalg.solve(torch.eye(4, dtype=F64) - c * torch.kron(L.T, L.T), stage).reshape(2, 2)
    G = env.R + c * env.B.T @ P @ env.B
    s, total = torch.randn(n, 2, generator=draw, dtype=F64), torch.zeros(n, dtype=F64)
    for t in range(300):
        a = s @ lqr.K_star.T + SIGMA * torch.randn(n, 1, generator=draw, dtype=F64)
        e = a - s @ gain.T
        total += (1 - c) * c**t * (SIGMA**2 * G.trace() - ((e @ G) * e).sum(1)) ** 2
        s = s @ env.A.T + a @ env.B.T + 0.05**0.5 * torch.randn(n, 2, generator=draw, dtype=F64)
    z = (float(total.mean()) - lqr.transfer_error(K)) / float(total.std() / n**0.5)
    assert abs(z) < 4.5
    assert lqr.transfer_error(K) > 0.01


def several_actions() -> tuple[ExactLQR, torch.Tensor, torch.Tensor]:
    """n = 2, m = 2, a different noise for each action; the gain K and σ."""
    A, B = torch.tensor([[0.9, 0.2], [0.0, 0.8]], dtype=F64), torch.tensor([[0.5, 0.0], [0.1, 0.4]], dtype=F64)
    eye, sigma = torch.eye(2, dtype=F64), torch.tensor([0.4, 0.7], dtype=F64)
    env = LQR(A, B, eye, 0.3 * eye, 0.05 * eye, eye, horizon=50)
    gain = torch.tensor([[-0.3, -0.1], [0.05, -0.4]], dtype=F64)
    return ExactLQR(env, lambda th: (th.reshape(-1, 2, 2), sigma.expand(len(th), 2)), 0.95), gain, sigma


def test_lqr_fisher_of_several_actions_by_the_plain_recursion() -> None:
    """F[(i, j), (k, l)] = [i = k] σ_i^-2 (1 - c) Σ_t c^t (E s s')_jl, with the second moments step by step."""
    exact, gain, sigma = several_actions()
    env, c = exact.lqr, exact.discount
    L, S, X = env.A + env.B @ gain, env.start, torch.zeros(2, 2, dtype=F64)
    for t in range(1000):
        X += (1 - c) * c**t * S
        S = L @ S @ L.T + env.B @ torch.diag(sigma**2) @ env.B.T + env.W
    expected = torch.zeros(2, 2, 2, 2, dtype=F64)
    for i in range(2):
        expected[i, :, i] = X / sigma[i] ** 2
    assert torch.allclose(exact.fisher(gain.flatten()), expected.reshape(4, 4), atol=1e-11)


def test_lqr_fisher_of_several_actions_by_sampling() -> None:
    """The mean of (1 - c) Σ_t c^t score score' over episodes, the score by automatic differentiation; 4.5 standard errors."""
    exact, gain, sigma = several_actions()
    env, c, n = exact.lqr, exact.discount, 20_000
    draw = torch.Generator().manual_seed(0)
    s, total = torch.randn(n, 2, generator=draw, dtype=F64), torch.zeros(n, 4, 4, dtype=F64)
    for t in range(200):
        a = s @ gain.T + sigma * torch.randn(n, 2, generator=draw, dtype=F64)
        K = gain.expand(n, 2, 2).clone().requires_grad_()
        log_p = -(((a - (K @ s[..., None])[..., 0]) / sigma) ** 2).sum() / 2
        (score,) = torch.autograd.grad(log_p, K)
        total += (1 - c) * c**t * score.reshape(n, 4, 1) * score.reshape(n, 1, 4)
        s = s @ env.A.T + a @ env.B.T + 0.05**0.5 * torch.randn(n, 2, generator=draw, dtype=F64)
    z = (total.mean(0) - exact.fisher(gain.flatten())) / (total.std(0) / n**0.5)
    assert float(z.abs().max()) < 4.5
