"""Distances, noise floors, sliding windows, modes, correlations; exact and estimated distributions."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance
from torch import Tensor

from envs.dag.bits import Bits
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.random import Rng
from gflownet.baselines.metropolis import Metropolis
from gflownet.baselines.soft_pg import SoftPolicyGradient
from gflownet.baselines.uniform import Uniform
from gflownet.evaluation import exact_distribution, log_p
from gflownet.metrics import (
    SlidingWindow,
    empirical,
    jensen_shannon,
    kl,
    l1_mean,
    l1_sum,
    noise_floor,
    pearson,
    ranks,
    spearman,
    total_variation,
)
from gflownet.problem import DagProblem
from tests.dags import crossing

F64 = torch.float64


def laws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).softmax(-1)


# -- distances


def test_distances_between_laws() -> None:
    p, q = laws(3, 7), laws(7, seed=1)
    assert torch.allclose(total_variation(p, q) * 2, l1_sum(p, q))
    assert torch.allclose(l1_mean(p, q) * 7, l1_sum(p, q))
    for k in range(3):
        assert float(jensen_shannon(p, q)[k]) == pytest.approx(float(distance.jensenshannon(p[k], q)) ** 2, abs=1e-14)
        assert float(kl(p, q)[k]) == pytest.approx(float(stats.entropy(p[k], q)), abs=1e-14)
    for d in (total_variation, l1_sum, l1_mean, jensen_shannon, kl):
        assert torch.equal(d(p, p), torch.zeros(3, dtype=F64))


def test_distances_between_laws_that_share_nothing() -> None:
    p, q = torch.eye(2, dtype=F64)
    assert float(l1_sum(p, q)) == 2
    assert float(total_variation(p, q)) == 1
    assert float(jensen_shannon(p, q)) == pytest.approx(math.log(2))
    assert float(kl(p, q)) == math.inf
    assert float(kl(p, (p + q) / 2)) == pytest.approx(math.log(2))


def test_laws_of_counts_are_float64() -> None:
    counts = torch.tensor([[1, 3], [0, 0]])
    assert empirical(counts)[0].tolist() == [0.25, 0.75]
    assert empirical(counts)[1].isnan().all()
    p, q = torch.tensor([0.1, 0.9]), torch.tensor([0.1, 0.9], dtype=F64)
    assert all(d(p, q).dtype == F64 for d in (total_variation, l1_sum, l1_mean, jensen_shannon, kl))


# -- the noise floor


@pytest.mark.parametrize("n", [1, 2, 3, 10, 57])
def test_noise_floor_is_the_mean_absolute_deviation(n: int) -> None:
    law = torch.cat([laws(6, seed=n), torch.tensor([1.0, 0.0, 0.5, 1 / 3, 0.1], dtype=F64)])  # not a law; terms are separate
    k = torch.arange(n + 1, dtype=F64)
    exact = sum(float((torch.from_numpy(stats.binom.pmf(k, n, float(p))) * (k / n - p).abs()).sum()) for p in law)
    assert noise_floor(law, n) == pytest.approx(exact, rel=1e-10)


def test_noise_floor_is_met_by_draws() -> None:
    law, n, repeats = laws(20).pow(3), 200, 4000
    law = law / law.sum()
    draws = torch.multinomial(law, n * repeats, replacement=True, generator=torch.Generator().manual_seed(0)).view(repeats, n)
    counts = torch.zeros(repeats, 20, dtype=torch.int64).scatter_add_(1, draws, torch.ones_like(draws))
    l1 = l1_sum(empirical(counts), law)
    assert abs(float(l1.mean()) - noise_floor(law, n)) / float(l1.std() / repeats**0.5) < 4.5
    assert abs(float(kl(empirical(counts), law).mean()) / (19 / (2 * n)) - 1) < 0.1  # what the docstring says
    assert abs(float(jensen_shannon(empirical(counts), law).mean()) / (19 / (8 * n)) - 1) < 0.1


@pytest.mark.parametrize(("R0", "floor"), [(0.1, 2.7e-5), (0.01, 1.9e-5), (0.001, 1.1e-5)])
def test_noise_floor_of_the_paper(R0: float, floor: float) -> None:
    env = HyperGrid(4, 8, R0=R0, convention="paper2021")
    cells = torch.cartesian_prod(*[torch.arange(8)] * 4)
    R = env.log_reward(cells[env.reachable(cells)]).exp()
    assert noise_floor(R / R.sum(), 200_000) / len(R) == pytest.approx(floor, rel=0.03)


def test_noise_floor_needs_draws() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        noise_floor(laws(3), 0)


# -- the window


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 12),
    batches=st.lists(st.integers(0, 30), max_size=8),
    seed=st.integers(0, 1000),
)
def test_a_window_counts_the_last(size: int, batches: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    window, history = SlidingWindow.begin(2, size, 5), torch.zeros(2, 0, dtype=torch.int64)
    for m in batches:
        ids = torch.randint(0, 5, (2, m), generator=draw)
        window, history = window.add(ids), torch.cat([history, ids], 1)
        last = history[:, -size:]
        assert window.held == last.shape[1]
        assert window.position == history.shape[1]
        for s in range(2):
            assert torch.equal(window.counts[s], last[s].bincount(minlength=5))
            ring = window.ids[s][window.ids[s] >= 0].long()
            assert torch.equal(ring.sort().values, last[s].sort().values)
    if window.held:
        assert torch.allclose(window.distribution.sum(1), torch.ones(2, dtype=F64))


# -- modes


# -- correlations


def test_correlations_are_scipys() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 40, generator=draw, dtype=F64), torch.randn(40, generator=draw, dtype=F64)
    tied = torch.randint(0, 5, (3, 40), generator=draw)
    for k in range(3):
        assert float(pearson(x, y)[k]) == pytest.approx(stats.pearsonr(x[k], y).statistic, abs=1e-13)
        assert float(spearman(x, y)[k]) == pytest.approx(stats.spearmanr(x[k], y).statistic, abs=1e-13)
        assert float(spearman(tied, y)[k]) == pytest.approx(stats.spearmanr(tied[k], y).statistic, abs=1e-13)
        assert ranks(tied)[k].tolist() == stats.rankdata(tied[k]).tolist()
    assert pearson(torch.ones(3), torch.arange(3.0)).isnan()
    assert float(spearman(torch.tensor([-math.inf, 0.0, 1.0]), torch.tensor([1.0, 2.0, 9.0]))) == pytest.approx(1)


# -- laws of methods


class Table:
    """A method whose policies are given, [heads, S, N, A] at the states of an enumeration."""

    def __init__(self, dag: Any, log_pf: Tensor) -> None:
        self.dag, self.table = dag, log_pf

    def log_pf(self, state: Any, problem: Any, obs: Tensor, valid: Tensor) -> Tensor:
        return self.table[..., self.dag.find(obs, torch.zeros(len(obs), dtype=torch.bool)), :]


@pytest.mark.parametrize(
    "env", [crossing(), HyperGrid(2, 4), HyperGrid(2, 4, convention="paper2021")], ids=lambda e: str(e)[:20]
)
def test_at_the_exact_flow_every_backward_path_says_the_same(env: Any) -> None:
    dag = enumerate_dag(env)
    problem = DagProblem(env, seeds=(0, 1))
    method: Any = Table(dag, dag.flow().log_pf.expand(3, 2, -1, -1))
    objects = dag.obs[dag.objects]
    estimate = log_p(method, None, problem, objects, 2, Rng.of_seeds(range(len(objects))))
    assert estimate.shape == (2, len(objects))
    assert torch.allclose(estimate, dag.target.log().expand(2, -1), atol=1e-10)


def test_the_estimate_is_unbiased_for_any_policy() -> None:
    env, m = HyperGrid(2, 4), 4000
    dag, problem = enumerate_dag(env), DagProblem(env, seeds=(0, 1), dtype=F64)
    logits = torch.randn(2, 2, len(dag), 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    method: Any = Table(dag, torch.where(dag.action_mask, logits, -torch.inf).log_softmax(-1))
    law = dag.terminal_distribution(method.table).mean(0)  # an episode is played by one of two heads
    objects = dag.obs[dag.objects]
    rng = Rng.of_seeds(range(len(objects)))
    each = torch.stack([log_p(method, None, problem, objects, m // 20, rng.fold(k)).exp() for k in range(20)])
    z = (each.mean(0) - law) / (each.std(0) / 20**0.5).clamp_min(1e-12)
    assert float(z[..., 1:].abs().max()) < 6  # Student's t of 19 degrees of freedom, 30 of them
    assert float((each.mean(0) / law - 1).abs().max()) < 0.05


def test_a_tree_has_one_path_to_each_object() -> None:
    env = Bits(4, 1, n_modes=2)
    dag, problem = enumerate_dag(env), DagProblem(env, seeds=(0, 1), dtype=F64)
    method = SoftPolicyGradient(hidden=(8,))
    state = method.init(problem)
    objects = dag.obs[dag.objects]
    estimate = log_p(method, state, problem, objects, 1, Rng.of_seeds(range(len(objects))))
    law = exact_distribution(method, state, problem, dag)
    assert torch.allclose(estimate.exp(), law, atol=1e-12)
    assert torch.allclose(law.sum(1), torch.ones(2, dtype=F64))


def test_exact_laws_need_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = DagProblem(HyperGrid(2, 4), seeds=(0,))
    dag = enumerate_dag(problem.env)
    with pytest.raises(ValueError, match="Metropolis has no policy"):
        exact_distribution(Metropolis(), None, problem, dag)
    whole = exact_distribution(Uniform(), None, problem, dag)
    monkeypatch.setattr("gflownet.evaluation.ROWS", 7)
    assert torch.equal(exact_distribution(Uniform(), None, problem, dag), whole)
