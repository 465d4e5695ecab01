"""T1-T4, T7, T8: the estimators against exact derivatives by enumerating every trajectory, and the wrong ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envs.core import Trajectories
from envs.mdp.exact import ExactLQR, gradient, hessian_vector
from envs.mdp.lqr import double_integrator
from envs.mdp.tabular import garnet
from envs.random import Rng
from envs.rollout import rollout
from pgrl.baselines import LeaveOneOut
from pgrl.gradients import Estimator, effective_sample_size, importance_weights, rewards_to_go, weighted_gradient
from pgrl.policy import policy_for
from tests.worlds import (
    DISCOUNT,
    F64,
    HORIZON,
    THETA,
    all_trajectories,
    exact_mdp,
    probabilities,
    scores_by_hand,
    table_policy,
    tiny_mdp,
)

MDP = tiny_mdp()
POLICY = table_policy(MDP)
EXACT = exact_mdp(MDP, POLICY)
TAU = all_trajectories(MDP, HORIZON)
P = probabilities(MDP, POLICY, THETA, TAU)
DIRECTIONS = torch.cat([torch.eye(4, dtype=F64), torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=F64)])
TO_ZERO = DISCOUNT ** torch.arange(HORIZON, dtype=F64)[:, None]  # discount^t
TRUE_GRADIENT = gradient(EXACT, THETA[0], HORIZON)


def mean(values: Tensor) -> Tensor:
    return (P[:, None] * values).sum(0)


def true_hessian_vector(u: Tensor) -> Tensor:
    return hessian_vector(EXACT, THETA[0], u, HORIZON)


def hessian_samples(estimator: Estimator, tau: Trajectories = TAU) -> Tensor:
    """B of each trajectory, [N, D, D]: column j is B e_j."""
    return torch.stack([estimator.per_trajectory(THETA, tau, e[None]) for e in torch.eye(4, dtype=F64)], -1)


@pytest.mark.parametrize("causal", [False, True])
def test_t1_means_over_all_trajectories_are_exact(causal: bool) -> None:
    estimator = Estimator(POLICY, DISCOUNT, causal)
    assert float(P.sum()) == pytest.approx(1, abs=1e-14)
    assert float(P @ TAU.returns(DISCOUNT)) == pytest.approx(float(EXACT.J(THETA[0], HORIZON)), abs=1e-13)
    assert torch.allclose(mean(estimator.per_trajectory(THETA, TAU)), TRUE_GRADIENT, atol=1e-12)
    for u in DIRECTIONS:
        assert torch.allclose(mean(estimator.per_trajectory(THETA, TAU, u[None])), true_hessian_vector(u), atol=1e-12)
    B = (P[:, None, None] * hessian_samples(estimator)).sum(0)
    assert torch.allclose(B, B.T, atol=1e-12)


def test_reference_variances() -> None:
    """tr Cov(g) and E‖B - ∇²J‖² of the plain, the baseline and the causal (T3) forms."""
    H = torch.stack([true_hessian_vector(e) for e in torch.eye(4, dtype=F64)], 1)

    def spread(B: Tensor) -> float:
        return float((P * ((B - H) ** 2).sum((1, 2))).sum())

    g = Estimator(POLICY, DISCOUNT).per_trajectory(THETA, TAU)
    assert float((P[:, None] * (g - TRUE_GRADIENT) ** 2).sum()) == pytest.approx(3.1066076769613957, abs=1e-12)
    assert spread(hessian_samples(Estimator(POLICY, DISCOUNT))) == pytest.approx(3.2898362330110484, abs=1e-12)
    assert spread(hessian_samples(Estimator(POLICY, DISCOUNT, causal=True))) == pytest.approx(1.7602060650007876, abs=1e-12)


def state_values() -> Tensor:
    """V_t(s), [H, S], by backward induction."""
    pi, r = torch.softmax(THETA.reshape(2, 2), 1), (MDP.transition * MDP.reward).sum(-1)
    V = torch.zeros(HORIZON + 1, 2, dtype=F64)
    for t in reversed(range(HORIZON)):
        V[t] = (pi * (r + DISCOUNT * MDP.transition @ V[t + 1])).sum(1)
    return V[:HORIZON]


@pytest.mark.parametrize("causal", [False, True])
def test_t2_a_baseline_of_time_and_state_leaves_the_means(causal: bool) -> None:
    V = state_values()
    each = THETA.expand(TAU.mask.shape[1], -1)
    estimator = Estimator(POLICY, DISCOUNT, causal)
    for b in (V, torch.randn(HORIZON, 2, generator=torch.Generator().manual_seed(0), dtype=F64)):
        baseline = TO_ZERO * b.gather(1, TAU.obs)
        assert torch.allclose(mean(estimator.gradient(each, TAU, baseline)), TRUE_GRADIENT, atol=1e-12)
        for u in DIRECTIONS:
            Bu = estimator.hessian_vector(each, TAU, u.expand_as(each), baseline)
            assert torch.allclose(mean(Bu), true_hessian_vector(u), atol=1e-12)
    g = estimator.gradient(each, TAU, TO_ZERO * V.gather(1, TAU.obs))
    assert float((P[:, None] * (g - TRUE_GRADIENT) ** 2).sum()) == pytest.approx(0.9111688771941948, abs=1e-12)
    if not causal:
        H = torch.stack([true_hessian_vector(e) for e in torch.eye(4, dtype=F64)], 1)
        columns = [
            estimator.hessian_vector(each, TAU, e.expand_as(each), TO_ZERO * V.gather(1, TAU.obs))
            for e in torch.eye(4, dtype=F64)
        ]
        spread = float((P * ((torch.stack(columns, -1) - H) ** 2).sum((1, 2))).sum())
        assert spread == pytest.approx(2.483125213991464, abs=1e-12)


def test_t4_the_correction_over_the_segment_is_the_gradient_difference() -> None:
    x, w = np.polynomial.legendre.leggauss(16)
    nodes, weights = (torch.from_numpy(x) + 1) / 2, torch.from_numpy(w) / 2
    other = torch.tensor([[-0.4, 0.2, 0.7, 0.1]], dtype=F64)
    total = torch.zeros(4, dtype=F64)
    for q, weight in zip(nodes, weights, strict=True):
        between = q * THETA + (1 - q) * other
        p = probabilities(MDP, POLICY, between, TAU)
        v = Estimator(POLICY, DISCOUNT).per_trajectory(between, TAU, THETA - other)
        total += weight * (p[:, None] * v).sum(0)
    assert torch.allclose(total, TRUE_GRADIENT - gradient(EXACT, other[0], HORIZON), atol=1e-14)


@pytest.mark.parametrize("stepwise", [False, True])
def test_t7_importance_weighted_gradients_are_exact(stepwise: bool) -> None:
    other = torch.tensor([[-0.4, 0.2, 0.7, 0.1]], dtype=F64)
    each_other = other.expand(64, -1)
    weights = importance_weights(POLICY.log_prob(other, TAU), POLICY.log_prob(THETA, TAU), TAU.mask, stepwise=stepwise)
    g = weighted_gradient(POLICY, each_other, TAU, DISCOUNT, weights)
    assert torch.allclose(mean(g), gradient(EXACT, other[0], HORIZON), atol=1e-12)
    unweighted = Estimator(POLICY, DISCOUNT).gradient(each_other, TAU)
    assert not torch.allclose(mean(unweighted), gradient(EXACT, other[0], HORIZON), atol=1e-2)
    assert torch.allclose(effective_sample_size(torch.ones(7)), torch.tensor(7.0))
    assert float(effective_sample_size(torch.tensor([1e30, 0.0, 0.0], dtype=F64))) == 1.0


def test_t8_every_trajectory_equals_the_formula_by_hand() -> None:
    score, hess = scores_by_hand(THETA, TAU, 2, 2)
    psi = rewards_to_go(TAU, DISCOUNT)
    grad_phi = (psi[..., None] * score).sum(0)
    hess_phi = (psi[..., None, None] * hess).sum(0)
    estimator = Estimator(POLICY, DISCOUNT)
    assert torch.allclose(estimator.per_trajectory(THETA, TAU), grad_phi, atol=1e-14)
    for u in DIRECTIONS:
        by_hand = (score.sum(0) @ u)[:, None] * grad_phi + hess_phi @ u
        assert torch.allclose(estimator.per_trajectory(THETA, TAU, u[None]), by_hand, atol=1e-13)


def test_t8_causal_form_by_hand() -> None:
    score, hess = scores_by_hand(THETA, TAU, 2, 2)
    B = torch.zeros(64, 4, 4, dtype=F64)
    for h in range(HORIZON):
        G = score[: h + 1].sum(0)
        B += DISCOUNT**h * TAU.reward[h, :, None, None] * (G[:, :, None] * G[:, None, :] + hess[: h + 1].sum(0))
    assert torch.allclose(hessian_samples(Estimator(POLICY, DISCOUNT, causal=True)), B, atol=1e-13)


def test_t8_modes_of_differentiation_agree_on_a_network() -> None:
    """The library's reverse-over-forward, forward-over-reverse, reverse-over-reverse, central differences."""
    from torch.func import grad, jvp

    policy = policy_for(MDP, hidden=(5, 4), dtype=F64)
    rng = Rng.of_seeds([3])
    rng.dtype = F64
    theta = policy.init(rng)
    u = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    tau = TAU.rows(5, 6)
    psi = rewards_to_go(tau, DISCOUNT)

    def phi(th: Tensor) -> Tensor:
        return (psi * policy.log_prob(th, tau)).sum()

    cross = (grad(lambda th: policy.log_prob(th, tau).sum())(theta) * u).sum() * grad(phi)(theta)
    forward_over_reverse = jvp(grad(phi), (theta,), (u,))[1]
    reverse_over_reverse = grad(lambda th: (grad(phi)(th) * u).sum())(theta)
    h = 1e-5
    differences = (grad(phi)(theta + h * u) - grad(phi)(theta - h * u)) / (2 * h)
    ours = Estimator(policy, DISCOUNT).hessian_vector(theta, tau, u) - cross
    assert torch.allclose(ours, forward_over_reverse, atol=1e-10)
    assert torch.allclose(ours, reverse_over_reverse, atol=1e-10)
    assert torch.allclose(ours, differences, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_torchs_two_forward_modes_give_the_same_bits(activation: str, causal: bool) -> None:
    """Real actions take the one that is cheaper for short episodes; the reference is `torch.func`."""
    from torch.func import grad, jvp

    env = double_integrator(horizon=7)
    policy = policy_for(env, hidden=(8, 8), activation=activation)
    theta = policy.init(Rng.of_seeds(range(3)))
    tau = rollout(env, policy.actor(theta, 2), Rng.of_seeds(range(6)))
    u = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))
    estimator = Estimator(policy, DISCOUNT, causal)
    psi = estimator.weights(theta, tau)

    def along_u(th: Tensor) -> Tensor:
        log_p, c = jvp(lambda x: policy.log_prob(x, tau), (th,), (u,))
        return (estimator._score_weights(psi, c.detach() * tau.mask) * log_p + psi * c).sum()

    assert torch.equal(estimator.hessian_vector(theta, tau, u), grad(along_u)(theta))


def test_a_batch_is_the_mean_of_its_trajectories_and_seeds_do_not_mix() -> None:
    tau = TAU.rows(0, 60)
    stack = torch.cat([THETA, THETA * 2, -THETA])
    for causal in (False, True):
        estimator = Estimator(POLICY, DISCOUNT, causal)
        u = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
        g, Bu = estimator.gradient(stack, tau), estimator.hessian_vector(stack, tau, u)
        assert torch.allclose(g, estimator.per_trajectory(stack, tau).reshape(3, 20, 4).mean(1), atol=1e-13)
        assert torch.allclose(Bu, estimator.per_trajectory(stack, tau, u).reshape(3, 20, 4).mean(1), atol=1e-13)
        alone = estimator.hessian_vector(stack[1:2], tau.rows(20, 40), u[1:2])
        assert torch.allclose(Bu[1:2], alone, atol=1e-13)


def test_steps_not_taken_do_not_count() -> None:
    padded = Trajectories.cat([TAU, Trajectories(*(x[:1, :1].repeat(9, 1) for x in (TAU.obs, TAU.action, TAU.reward, TAU.mask)),
                                                 TAU.terminated[:1], TAU.truncated[:1])])  # fmt: skip
    assert padded.mask.shape == (9, 65)
    junk = Trajectories(
        padded.obs, padded.action, padded.reward + 5 * ~padded.mask, padded.mask, padded.terminated, padded.truncated
    )
    for causal in (False, True):
        estimator = Estimator(POLICY, DISCOUNT, causal)
        u = DIRECTIONS[4][None]
        assert torch.allclose(
            estimator.per_trajectory(THETA, junk, u)[:64], estimator.per_trajectory(THETA, TAU, u), atol=1e-13
        )
        assert torch.allclose(estimator.per_trajectory(THETA, junk)[:64], estimator.per_trajectory(THETA, TAU), atol=1e-13)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), causal=st.booleans())
def test_t1_on_garnet(seed: int, causal: bool) -> None:
    mdp = garnet(3, 2, 2, seed=seed)
    policy = policy_for(mdp, hidden=(3,), activation="softplus", dtype=F64) if seed % 2 else table_policy(mdp)
    exact = exact_mdp(mdp, policy)
    draw = torch.Generator().manual_seed(seed)
    theta, u = (torch.randn(1, policy.size, generator=draw, dtype=F64) for _ in range(2))
    tau = all_trajectories(mdp, 3)
    p = probabilities(mdp, policy, theta, tau)
    estimator = Estimator(policy, 0.9, causal)
    assert torch.allclose((p[:, None] * estimator.per_trajectory(theta, tau)).sum(0), gradient(exact, theta, 3)[0], atol=1e-10)
    Bu = (p[:, None] * estimator.per_trajectory(theta, tau, u)).sum(0)
    assert torch.allclose(Bu, hessian_vector(exact, theta, u, 3)[0], atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_lqr_means_by_sampling(causal: bool) -> None:
    """100,000 episodes of a linear Gaussian policy: the means of g and Bu within 4.5 standard errors of the truth."""
    env, n, horizon = double_integrator(), 100_000, 8
    policy = policy_for(env, bias=False, dtype=F64)
    theta = torch.tensor([[-0.3, -0.4, -0.9162907]], dtype=F64)
    u = torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    rng = Rng.of_seeds([0]).spawn(n)
    rng.dtype = F64
    tau = rollout(env, policy.actor(theta, n), rng, horizon)
    exact = ExactLQR(env, policy.gain, 0.95)
    estimator = Estimator(policy, 0.95, causal)
    for samples, truth in (
        (estimator.per_trajectory(theta, tau), gradient(exact, theta, horizon)),
        (estimator.per_trajectory(theta, tau, u), hessian_vector(exact, theta, u, horizon)),
    ):
        z = (samples.mean(0) - truth[0]) / (samples.std(0) / n**0.5)
        assert bool((z.abs() < 4.5).all()), z


# ---- the wrong estimators that public code contains: each must miss the truth that ours meets


def wrong(values: Tensor, truth: Tensor = TRUE_GRADIENT) -> float:
    return float((mean(values) - truth).norm() / truth.norm())


def test_missing_discount_weights_fail() -> None:
    to_go = rewards_to_go(TAU, DISCOUNT) / DISCOUNT ** torch.arange(HORIZON, dtype=F64)[:, None]
    each = THETA.expand(64, -1)
    g = Estimator(POLICY, DISCOUNT)._weighted_score(each, TAU, to_go)
    assert wrong(g) == pytest.approx(0.115, abs=2e-3)
    cosine = torch.nn.functional.cosine_similarity(mean(g), TRUE_GRADIENT, dim=0)
    assert float(cosine) > 0.99999  # a test of the angle would not see it


class Dropped(Estimator):
    """No cross term."""

    def _score_weights(self, psi: Tensor, c: Tensor) -> Tensor:
        return 0 * psi


class WrongSign(Estimator):
    """What follows when the loss -J is differentiated and both factors of the cross term flip."""

    def _score_weights(self, psi: Tensor, c: Tensor) -> Tensor:
        return -c.sum(0) * psi


class BatchMeans(Estimator):
    """mean(∇Φ) · mean(⟨∇log p, u⟩) over a seed's episodes."""

    def _score_weights(self, psi: Tensor, c: Tensor) -> Tensor:
        return c.sum(0).reshape(-1, 2).mean(1).repeat_interleave(2) * psi


def mean_over_pairs(estimator: Estimator, u: Tensor) -> Tensor:
    """The mean of Bu over every batch of two independent trajectories."""
    i, j = torch.cartesian_prod(torch.arange(64), torch.arange(64)).T
    order = torch.stack([i, j], 1).flatten()
    pairs = Trajectories(
        *(x[:, order] for x in (TAU.obs, TAU.action, TAU.reward, TAU.mask)), TAU.terminated[order], TAU.truncated[order]
    )
    Bu = estimator.hessian_vector(THETA.expand(4096, -1), pairs, u.expand(4096, -1))
    return ((P[i] * P[j])[:, None] * Bu).sum(0)


@pytest.mark.parametrize("u", DIRECTIONS)
def test_wrong_cross_terms_miss_what_ours_meets(u: Tensor) -> None:
    truth = true_hessian_vector(u)
    assert torch.allclose(mean_over_pairs(Estimator(POLICY, DISCOUNT), u), truth, atol=1e-12)
    for wrong_one in (Dropped, WrongSign, BatchMeans):
        off = mean_over_pairs(wrong_one(POLICY, DISCOUNT), u) - truth
        assert float(off.norm()) > 0.5 * float(truth.norm()), wrong_one


def test_the_size_of_a_dropped_cross_term() -> None:
    H = torch.stack([true_hessian_vector(e) for e in torch.eye(4, dtype=F64)], 1)
    B = (P[:, None, None] * hessian_samples(Dropped(POLICY, DISCOUNT))).sum(0)
    assert float((B - H).norm() / H.norm()) == pytest.approx(4.0, abs=0.1)


def test_whitened_returns_fail() -> None:
    """Each trajectory's Ψ centred and divided by its standard deviation over time: a ratio, not an estimate."""
    to_go = rewards_to_go(TAU, DISCOUNT)
    g = Estimator(POLICY, DISCOUNT)._weighted_score(THETA.expand(64, -1), TAU, (to_go - to_go.mean(0)) / to_go.std(0))
    cosine = torch.nn.functional.cosine_similarity(mean(g), TRUE_GRADIENT, dim=0)
    assert float(cosine) == pytest.approx(0.883, abs=5e-4)
    assert float(mean(g).norm() / TRUE_GRADIENT.norm()) == pytest.approx(0.49, abs=5e-3)


def test_in_batch_mean_baseline_halves_a_pair_and_leave_one_out_does_not() -> None:
    i, j = torch.cartesian_prod(torch.arange(64), torch.arange(64)).T
    order = torch.stack([i, j], 1).flatten()
    pairs = Trajectories(
        *(x[:, order] for x in (TAU.obs, TAU.action, TAU.reward, TAU.mask)), TAU.terminated[order], TAU.truncated[order]
    )
    each, p = THETA.expand(4096, -1), P[i] * P[j]
    estimator = Estimator(POLICY, DISCOUNT)
    others = LeaveOneOut(DISCOUNT).predict({}, pairs, 4096)
    assert others is not None
    g = (p[:, None] * estimator.gradient(each, pairs, others)).sum(0)
    assert torch.allclose(g, TRUE_GRADIENT, atol=1e-12)
    own = rewards_to_go(pairs, DISCOUNT)
    in_batch = own.reshape(HORIZON, 4096, 2).mean(2, keepdim=True).expand(-1, -1, 2).reshape(HORIZON, -1)
    g = (p[:, None] * estimator.gradient(each, pairs, in_batch)).sum(0)
    assert torch.allclose(g, TRUE_GRADIENT / 2, atol=1e-12)


def test_wrong_shapes_are_refused() -> None:
    estimator = Estimator(POLICY, DISCOUNT)
    with pytest.raises(ValueError, match=r"expected \[S, 4\]"):
        estimator.gradient(torch.zeros(1, 5, dtype=F64), TAU)
    with pytest.raises(ValueError, match="cannot be divided"):
        estimator.gradient(torch.zeros(3, 4, dtype=F64), TAU)
    with pytest.raises(ValueError, match="discount"):
        Estimator(POLICY, 1.5).gradient(THETA, TAU)
    with pytest.raises(ValueError, match="batch size of 2"):
        LeaveOneOut(DISCOUNT).predict({}, TAU, 64)
