"""Exact values without tables of states × states: the dense ones on small MDPs, and 10,000 cells in little memory and time."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.mdp import tabular
from envs.mdp.exact import ExactMDP, gradient, hessian_vector
from envs.mdp.sparse import solve
from envs.mdp.tabular import FiniteMDP, garnet, gridworld
from tests.worlds import F64, exact_mdp, table_policy


def sparse_twin(mdp: FiniteMDP) -> FiniteMDP:
    tables = (mdp.successors, mdp.probability, mdp.rewards, mdp.start)
    return FiniteMDP.sparse(*tables, horizon=mdp.horizon, terminal=mdp.terminal)


def same_values(dense: ExactMDP, sparse: ExactMDP, seed: int, horizons: tuple[int | None, ...]) -> None:
    assert sparse.sparse is not None
    assert dense.sparse is None
    draw = torch.Generator().manual_seed(seed)
    theta, u = (torch.randn(3, dense.mdp.n_states * dense.mdp.n_actions, generator=draw, dtype=F64) for _ in range(2))
    tight = {"rtol": 1e-11, "atol": 1e-12}
    for horizon in horizons:
        assert torch.allclose(dense.J(theta, horizon), sparse.J(theta, horizon), **tight)
        assert torch.allclose(gradient(dense, theta, horizon), gradient(sparse, theta, horizon), **tight)
        product = hessian_vector(dense, theta, u, horizon)
        assert torch.allclose(product, hessian_vector(sparse, theta, u, horizon), **tight)
    assert torch.allclose(gradient(sparse, theta)[0], gradient(sparse, theta[:1])[0], **tight)
    assert torch.allclose(gradient(sparse, theta[0]), gradient(dense, theta[0]), **tight)
    assert torch.allclose(hessian_vector(sparse, theta[0], u[0]), hessian_vector(dense, theta[0], u[0]), **tight)
    assert sparse.J_star == pytest.approx(dense.J_star, rel=1e-12)
    assert torch.allclose(sparse.gap(theta), dense.gap(theta), **tight)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), discount=st.sampled_from([0.0, 0.5, 0.9, 0.99]), horizon=st.integers(1, 20))
def test_the_values_are_those_of_dense_tables_on_garnet(seed: int, discount: float, horizon: int) -> None:
    mdp = garnet(6, 3, 3, seed=seed)
    twin = sparse_twin(mdp)
    policy = table_policy(mdp)
    same_values(exact_mdp(mdp, policy, discount), exact_mdp(twin, policy, discount), seed, (None, 1, horizon))


@pytest.mark.parametrize("discount", [0.9, 0.999])
def test_the_values_are_those_of_dense_tables_on_a_gridworld(discount: float, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = gridworld(step_reward=-0.01)
    monkeypatch.setattr(tabular, "DENSE", 0)
    sparse = gridworld(step_reward=-0.01)
    policy = table_policy(dense)
    assert sparse.is_sparse
    assert not dense.is_sparse
    with pytest.raises(ValueError, match="no dense tables: use successors"):
        _ = sparse.transition
    same_values(exact_mdp(dense, policy, discount), exact_mdp(sparse, policy, discount), 0, (None, 2, 50))


@pytest.mark.parametrize("discount", [0.95, 0.999])
def test_ten_thousand_cells_take_seconds(discount: float) -> None:
    """J, ∇J, ∇²J·u, J* and the gap of a 100 × 100 gridworld; tables of states × states would take 6.4 GB."""
    rows = [["."] * 100 for _ in range(100)]
    rows[50][50], rows[20][70] = "G", "P"
    started = time.process_time()
    mdp = gridworld("\n".join(map("".join, rows)))
    exact = exact_mdp(mdp, table_policy(mdp), discount)
    draw = torch.Generator().manual_seed(0)
    theta, u = (torch.randn(1, 40_000, generator=draw, dtype=F64) for _ in range(2))
    g, Bu, gap = gradient(exact, theta), hessian_vector(exact, theta, u), exact.gap(theta)
    assert time.process_time() - started < 20  # 2 s measured on one core
    h = 1e-4
    slope = (exact.J(theta + h * u) - exact.J(theta - h * u)) / (2 * h)
    bend = (gradient(exact, theta + h * u) - gradient(exact, theta - h * u)) / (2 * h)
    assert float(slope) == pytest.approx(float((g * u).sum()), rel=1e-6)
    assert float((bend - Bu).norm() / Bu.norm()) < 1e-6
    assert 0 < float(gap) < exact.J_star
    V = exact._optimal[1]  # Bellman's equation
    ahead = (mdp.probability * (mdp.rewards + discount * V[mdp.successors])).sum(-1).amax(1)
    assert torch.allclose(ahead, V, rtol=1e-12, atol=1e-12)


def test_a_system_is_solved_to_rounding_where_the_krylov_method_breaks_down() -> None:
    n = 300
    shift = torch.arange(n).roll(-1)  # a long cycle: as far from symmetric as it gets
    b = torch.zeros(2, n, dtype=F64)
    b[0, 0] = 1.0  # the other row is 0
    x = solve(lambda v: 0.99 * v[:, shift], b, 0.99)
    assert float((x - 0.99 * x[:, shift] - b).abs().max()) < 1e-13
    assert not bool(x[1].any())


def test_bad_sparse_tables_are_refused() -> None:
    next_, p, r, start = (
        torch.zeros(2, 1, 1, dtype=torch.int64),
        torch.ones(2, 1, 1),
        torch.zeros(2, 1, 1),
        torch.tensor([1.0, 0]),
    )
    for bad, message in (
        ((next_ + 2, p, r, start), "states from 0 to 1"),
        ((next_, p / 2, r, start), "each row of probability must be a distribution"),
        ((next_, p, r, start / 2), "each row of start must be a distribution"),
        ((next_, p[:1], r, start), r"expected the same \[S, A, K\] with S = 2"),
    ):
        with pytest.raises(ValueError, match=message):
            FiniteMDP.sparse(*bad, horizon=3)
    with pytest.raises(ValueError, match="horizon is 0"):
        FiniteMDP.sparse(next_, p, r, start, horizon=0)
