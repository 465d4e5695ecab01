"""No γ^t and GAE-λ: their formulas, what B means for them, and that each misses ∇J_H where ours meets it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

from envs.core import Trajectories
from envs.mdp.exact import gradient
from pgrl.baselines import LeaveOneOut, baseline_for
from pgrl.gradients import Estimator, discounted_sums, tail_sums
from pgrl.problem import Problem
from tests.pgrl.test_estimators import DIRECTIONS, EXACT, MDP, POLICY, TAU, TO_ZERO, TRUE_GRADIENT, P, mean, state_values
from tests.worlds import DISCOUNT, F64, HORIZON, THETA, probabilities

EACH = THETA.expand(64, -1)
SOME_VALUES = torch.randn(HORIZON, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
BIASED = [(True, 1.0), (False, 0.9), (True, 0.9), (True, 0.0), (False, 0.0)]


def baseline_of(values: Tensor | None, undiscounted: bool, tau: Trajectories = TAU) -> Tensor | None:
    """A baseline of time and state [H, S] in the units of the weights, [T, B]."""
    if values is None:
        return None
    return values.gather(1, tau.obs) * (1.0 if undiscounted else TO_ZERO)


def weights_by_hand(tau: Trajectories, values: Tensor | None, undiscounted: bool, lam: float) -> Tensor:
    """The weight of ∇log π_t by the formulas, in loops over steps taken."""
    T, B = tau.mask.shape
    w = torch.zeros(T, B, dtype=F64)
    for i in range(B):
        n = int(tau.mask[:, i].sum())
        b = [0.0 if values is None else float(values[t, tau.obs[t, i]]) for t in range(n)] + [0.0]
        r = tau.reward[:, i].tolist()
        for t in range(n):
            if lam == 1:
                advantage = sum(DISCOUNT ** (h - t) * r[h] for h in range(t, n)) - b[t]
            else:
                advantage = sum((DISCOUNT * lam) ** (h - t) * (r[h] + DISCOUNT * b[h + 1] - b[h]) for h in range(t, n))
            w[t, i] = advantage * (1 if undiscounted else DISCOUNT**t)
    return w


def derivative(w: Tensor, u: Tensor) -> Tensor:
    """The derivative along u of the mean of Σ_t w_t ∇log π_t over all trajectories, at THETA."""

    def mean_g(theta: Tensor) -> Tensor:
        p = probabilities(MDP, POLICY, theta, TAU)
        surrogate: Callable[[Tensor], Tensor] = lambda th: (p * (w * POLICY.log_prob(th, TAU)).sum(0)).sum()  # noqa: E731
        return grad(surrogate)(theta)

    return jvp(mean_g, (THETA,), (u[None],))[1][0]


def ended(tau: Trajectories) -> Trajectories:
    """The episodes with numbers 0, 1, 2, 3, 0, ... of their steps taken."""
    steps = torch.arange(tau.mask.shape[1]) % (HORIZON + 1)
    return Trajectories(tau.obs, tau.action, tau.reward, torch.arange(HORIZON)[:, None] < steps, steps < HORIZON, tau.truncated)


def test_discounted_sums_are_the_recursion() -> None:
    x = torch.randn(37, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    for rate in (0.0, 0.3, 0.99, 1.0):
        y = torch.zeros(3, dtype=F64)
        for t in reversed(range(37)):
            y = x[t] + rate * y
            assert torch.allclose(discounted_sums(x, rate)[t], y, atol=1e-13)


@pytest.mark.parametrize("values", [None, SOME_VALUES], ids=["none", "values"])
@pytest.mark.parametrize(("undiscounted", "lam"), [*BIASED, (False, 1.0)])
def test_weights_are_those_of_the_formula(undiscounted: bool, lam: float, values: Tensor | None) -> None:
    for tau in (TAU, ended(TAU)):
        estimator = Estimator(POLICY, DISCOUNT, undiscounted_states=undiscounted, gae_lambda=lam)
        w = estimator.weights(EACH, tau, baseline_of(values, undiscounted))
        assert torch.allclose(w, weights_by_hand(tau, values, undiscounted, lam), atol=1e-14)


@pytest.mark.parametrize("undiscounted", [False, True])
def test_gae_with_lambda_one_is_the_estimator_without(undiscounted: bool) -> None:
    estimator = Estimator(POLICY, DISCOUNT, undiscounted_states=undiscounted)
    for tau in (TAU, ended(TAU)):
        b = baseline_of(SOME_VALUES, undiscounted, tau)
        assert torch.allclose(estimator._advantages(F64, tau, b), estimator.weights(EACH, tau, b), atol=1e-14)


@pytest.mark.parametrize("values", [None, SOME_VALUES], ids=["none", "values"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("undiscounted", "lam"), BIASED)
def test_bu_is_the_derivative_of_the_mean_of_g(undiscounted: bool, lam: float, causal: bool, values: Tensor | None) -> None:
    estimator = Estimator(POLICY, DISCOUNT, causal, undiscounted, lam)
    b = baseline_of(values, undiscounted)
    w = weights_by_hand(TAU, values, undiscounted, lam)
    for u in DIRECTIONS:
        Bu = estimator.hessian_vector(EACH, TAU, u.expand_as(EACH), b)
        assert torch.allclose(mean(Bu), derivative(w, u), atol=1e-12)


@pytest.mark.parametrize("undiscounted", [True, False])
def test_the_causal_form_of_the_unbiased_estimator_is_wrong_here(undiscounted: bool) -> None:
    """Negative control: Ψ_{max(t,k)} without its factor (discount λ)^{k-t}."""

    class Unscaled(Estimator):
        def _score_weights(self, psi: Tensor, c: Tensor) -> Tensor:
            return psi * c.cumsum(0) + tail_sums(psi * c) - psi * c

    u, lam = DIRECTIONS[4], 1.0 if undiscounted else 0.9
    truth = derivative(weights_by_hand(TAU, None, undiscounted, lam), u)
    Bu = mean(Unscaled(POLICY, DISCOUNT, True, undiscounted, lam).hessian_vector(EACH, TAU, u.expand_as(EACH)))
    assert float((Bu - truth).norm() / truth.norm()) > 1e-3


@pytest.mark.parametrize(("undiscounted", "lam"), BIASED)
def test_they_miss_the_gradient(undiscounted: bool, lam: float) -> None:
    """Negative control of the oracle test, with values that are not the policy's."""
    g = Estimator(POLICY, DISCOUNT, False, undiscounted, lam).gradient(EACH, TAU, baseline_of(SOME_VALUES, undiscounted))
    assert float((mean(g) - TRUE_GRADIENT).norm() / TRUE_GRADIENT.norm()) > 0.01


def test_gae_is_unbiased_with_the_exact_values() -> None:
    for lam in (0.0, 0.5, 0.9):
        g = Estimator(POLICY, DISCOUNT, gae_lambda=lam).gradient(EACH, TAU, baseline_of(state_values(), False))
        assert torch.allclose(mean(g), gradient(EXACT, THETA[0], HORIZON), atol=1e-12)


@pytest.mark.parametrize("name", ["leave-one-out", "time", "value", "value-net"])
def test_baselines_predict_without_the_discount_of_time(name: str) -> None:
    sizes = {"discount": DISCOUNT, "horizon": HORIZON, "observation_size": 1, "n_states": 2}
    plain, undiscounted = (baseline_for(name, undiscounted_states=flag, **sizes) for flag in (False, True))  # type: ignore[arg-type]
    fitted = [b.fit(b.init(2), TAU, 2) for b in (plain, undiscounted)]
    a, b = plain.predict(fitted[0], TAU, 2), undiscounted.predict(fitted[1], TAU, 2)
    assert a is not None
    assert b is not None
    assert torch.allclose(a, TO_ZERO * b, atol=1e-12)


def test_small_discounts_leave_no_infinity() -> None:
    """discount^t underflows at once; without γ^t every step still counts."""
    b = LeaveOneOut(1e-200, True).predict({}, TAU, 32)
    assert b is not None
    assert bool(b.isfinite().all())
    w = Estimator(POLICY, 1e-200, undiscounted_states=True).weights(EACH, TAU, b)
    assert torch.allclose(w, TAU.reward - b)


def test_a_problem_hands_both_to_its_estimator() -> None:
    made = Problem(MDP, POLICY, DISCOUNT, (0,), HORIZON, causal=True, undiscounted_states=True, gae_lambda=0.5)
    assert made.estimator == Estimator(POLICY, DISCOUNT, True, True, 0.5)
    iteration = made.iteration(0)
    tau = TAU.rows(0, 5)
    assert torch.equal(iteration.gradient(THETA, tau), made.estimator.gradient(THETA, tau))
    with pytest.raises(ValueError, match=r"gae_lambda is 1.5, expected a number in \[0, 1\]"):
        Estimator(POLICY, DISCOUNT, gae_lambda=1.5).gradient(THETA, TAU)
    assert P.sum() == pytest.approx(1)
