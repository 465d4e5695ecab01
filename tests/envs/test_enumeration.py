"""`enumerate_dag`: known partition functions, distributions by hand, by simulation and in closed form, flow balance."""

import math

import pytest
import torch
from torch import Tensor

from envs.check import RandomAct
from envs.core import DagEnv
from envs.dag.bits import Bits
from envs.dag.enumeration import Enumeration, enumerate_dag, enumeration_of
from envs.dag.hypergrid import HyperGrid
from envs.dag.search import NotADag, TooManyStates, hash_key, search
from envs.dag.segments import segment_logsumexp
from envs.dag.sets import Sets
from envs.random import Rng
from envs.rollout import rollout
from tests.dags import TableDag, crossing

ENVS: list[DagEnv] = [
    HyperGrid(2, 5),
    HyperGrid(3, 6, 0.01, convention="paper2021"),
    Bits(8, 2, 5),
    Bits(6, 2, 4, order="any"),
    Sets(7, 4),
    crossing(),
]
each_env = pytest.mark.parametrize("env", ENVS, ids=lambda e: type(e).__name__)


def uniform(found: Enumeration) -> Tensor:
    return (found.action_mask / found.action_mask.sum(1, keepdim=True)).double().log()


def arbitrary(found: Enumeration, seeds: int = 3) -> Tensor:
    logits = torch.randn(seeds, *found.action_mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return logits.masked_fill(~found.action_mask, -torch.inf).log_softmax(-1)


@pytest.mark.parametrize(("R0", "z"), [(0.1, 503.8), (0.01, 164.23), (0.001, 130.273)])
def test_the_grid_of_2021(R0: float, z: float) -> None:
    found = enumerate_dag(HyperGrid(4, 8, R0, convention="paper2021"))
    assert len(found.objects) == 3773
    assert math.exp(found.log_z) == pytest.approx(z, rel=1e-12)


def test_the_grid_with_stop() -> None:
    found = enumerate_dag(HyperGrid(4, 8))
    assert (len(found), len(found.objects), len(found.parent)) == (8192, 4096, 4096 + 4 * 7 * 8**3)


def test_two_parents_by_the_same_action() -> None:
    found = enumerate_dag(crossing())
    assert found.obs.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.level.tolist() == [0, 1, 1, 2, 3, 3]  # 4 can be reached in two steps, and comes after 3
    edges = torch.stack([found.parent, found.action, found.child], 1).tolist()
    assert edges == [[0, 0, 1], [0, 1, 2], [1, 0, 3], [2, 0, 3], [2, 1, 3], [1, 1, 4], [3, 0, 4], [3, 1, 5]]
    assert found.log_paths().exp().tolist() == pytest.approx([1, 1, 1, 3, 4, 3])
    assert found.target.tolist() == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.5))])
    assert found.terminal_distribution(uniform(found)).tolist() == pytest.approx([5 / 8, 3 / 8])
    assert found.visits_of(uniform(found)).tolist() == pytest.approx([1, 1 / 2, 1 / 2, 3 / 4, 5 / 8, 3 / 8])
    flow = found.flow()
    R4, R5 = math.exp(0.5), math.exp(-1)
    F3 = R4 / 2 + R5  # half of R4 comes straight from 1
    assert flow.log_flow.exp().tolist() == pytest.approx([R4 + R5, R4 / 2 + F3 / 3, 2 * F3 / 3, F3, R4, R5])
    assert flow.log_pf[2].exp().tolist() == pytest.approx([0.5, 0.5])


@each_env
def test_states_come_before_their_children_and_once(env: DagEnv) -> None:
    found = enumerate_dag(env)
    assert not found.terminated[0]
    assert (found.level[found.parent] < found.level[found.child]).all()
    assert (found.level.diff() >= 0).all()
    assert (found.child.diff() >= 0).all()
    assert len(torch.unique(hash_key(found.obs, found.terminated))) == len(found)
    assert len(found.parent) == int(found.action_mask[~found.terminated].sum())
    assert (found.child.bincount(minlength=len(found))[1:] > 0).all()
    texts = env.describe(found.obs[found.objects])
    assert len(set(texts)) == len(found.objects)


@each_env
def test_the_hash_tells_states_apart_as_the_index_does(env: DagEnv) -> None:
    found = enumerate_dag(env)
    other = enumeration_of(search(env, 10_000, hash_key), env.log_reward, hash_key)
    assert len(other) == len(found)
    assert other.log_z == pytest.approx(found.log_z, rel=1e-14)
    rows = other.find(found.obs, found.terminated)
    assert torch.equal(found.find(other.obs[rows], other.terminated[rows]), torch.arange(len(found)))
    assert torch.equal(
        other.terminal_distribution(uniform(other)).sort().values, found.terminal_distribution(uniform(found)).sort().values
    )


@each_env
def test_the_policy_of_the_exact_flow_meets_the_law(env: DagEnv) -> None:
    found = enumerate_dag(env)
    free = torch.randn(len(found.child), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_pb = free - segment_logsumexp(free, found.child, len(found))[found.child]
    for flow in (found.flow(), found.flow(log_pb)):
        assert (found.terminal_distribution(flow.log_pf) - found.target).abs().max() < 1e-12
        assert float(flow.log_flow[0]) == pytest.approx(found.log_z, abs=1e-12)
        going = ~found.terminated
        assert flow.log_pf[going].logsumexp(1).abs().max() < 1e-12
        assert (flow.log_pf[going] > -torch.inf).eq(found.action_mask[going]).all()
        assert (segment_logsumexp(flow.log_edge_flow, found.child, len(found))[1:] - flow.log_flow[1:]).abs().max() < 1e-12
        assert (flow.log_flow.exp() - found.visits_of(flow.log_pf) * math.exp(found.log_z)).abs().max() < 1e-10


@each_env
def test_visits_by_the_transition_matrix(env: DagEnv) -> None:
    """u = e_0 (I - P)^-1, for several seeds at once and each alone."""
    found = enumerate_dag(env)
    log_pf = arbitrary(found)
    for seed, visits in zip(log_pf, found.visits_of(log_pf), strict=True):
        P = torch.zeros(len(found), len(found), dtype=torch.float64)
        P.index_put_((found.parent, found.child), seed[found.parent, found.action].exp(), accumulate=True)
        truth = torch.linalg.solve(torch.eye(len(found), dtype=torch.float64) - P.T, torch.eye(1, len(found)).double()[0])
        assert (visits - truth).abs().max() < 1e-12
        assert torch.equal(visits, found.visits_of(seed))
    law = found.terminal_distribution(log_pf.float())
    assert law.dtype == torch.float64
    assert (law.sum(-1) - 1).abs().max() < 1e-5


@each_env
def test_simulated_frequencies(env: DagEnv) -> None:
    found, n = enumerate_dag(env), 20_000
    tau = rollout(env, RandomAct(env.action_space, env.backend == "numpy"), Rng.of_seeds([7]).spawn(n))
    assert tau.last is not None
    law = found.terminal_distribution(uniform(found))
    often = found.object_of(tau.last).bincount(minlength=len(law)).double()
    z = (often - n * law) / (n * law * (1 - law)).sqrt()
    assert z[n * law > 10].abs().max() < 4.5
    chi2 = ((often - n * law) ** 2 / (n * law)).sum()
    assert (chi2 - len(law) + 1).abs() < 4.5 * (2 * len(law) + (1 / (n * law)).sum()).sqrt()


@each_env
def test_log_paths_in_closed_form(env: DagEnv) -> None:
    if isinstance(env, TableDag):
        pytest.skip("no closed form")
    found = enumerate_dag(env)
    assert (env.log_paths(found.obs, found.terminated) - found.log_paths()).abs().max() < 1e-12  # type: ignore[attr-defined]


@each_env
def test_states_are_found(env: DagEnv) -> None:
    found = enumerate_dag(env)
    assert torch.equal(found.find(found.obs, found.terminated), torch.arange(len(found)))
    some = torch.tensor([len(found.objects) - 1, 0])
    assert torch.equal(found.object_of(found.obs[found.objects][some]), some)
    with pytest.raises(ValueError, match=r"the finished state .* is not among the"):
        found.object_of(found.obs[found.objects[:1]] + 50)
    with pytest.raises(ValueError, match=r"the unfinished state .* is not among the"):
        found.find(found.obs[:1] + 77, torch.zeros(1, dtype=torch.bool))


def test_too_many_states() -> None:
    with pytest.raises(TooManyStates, match=r"has 4096 observations, more than the limit of 4000 .* use the sampled metrics"):
        enumerate_dag(HyperGrid(4, 8), limit=4000)
    with pytest.raises(TooManyStates, match=r"states after 16 steps, more than the limit of 5000: use the sampled metrics"):
        enumerate_dag(HyperGrid(4, 8), limit=5000)


@pytest.mark.parametrize(
    ("table", "horizon", "message"),
    [
        ([[1, 2], [3, 1], [3, 3], [-1, -1]], 5, "cycle"),
        ([[1, 2], [0, 3], [3, 3], [-1, -1]], 5, "cycle"),
        ([[1, 1], [2, 3], [1, 3], [-1, -1]], 5, "cycle"),
        ([[1, 2], [2, 3], [3, 3], [-1, -1]], 2, "a path of 3 steps"),
        ([[1, 1], [2, 2], [3, 3], [-1, -1]], 2, "goes on after 2 steps"),
    ],
)
def test_what_is_no_dag(table: list[list[int]], horizon: int, message: str) -> None:
    with pytest.raises(NotADag, match=message):
        enumerate_dag(TableDag(table, [0.0] * 4, horizon))


def test_a_dead_end() -> None:
    env = crossing()
    env.state_at = lambda obs, terminated: _stuck(env, obs, terminated)  # type: ignore[method-assign]
    with pytest.raises(NotADag, match="no action is valid in the unfinished state 3"):
        enumerate_dag(env)


def _stuck(env: TableDag, obs: Tensor, terminated: Tensor):  # type: ignore[no-untyped-def]
    state = TableDag.state_at(env, obs, terminated)
    state.action_mask[obs == 3] = False  # type: ignore[index]
    return state


def test_an_index_that_is_not_one() -> None:
    env = crossing()
    env.index = lambda obs: obs.clamp(max=4)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the states 4 and 5 have the same key: let `index`"):
        enumerate_dag(env)


def test_wrong_policies_are_refused() -> None:
    found = enumerate_dag(crossing())
    with pytest.raises(ValueError, match=r"log_pf has shape \(6, 3\), expected \(\.\.\., 6, 2\)"):
        found.terminal_distribution(torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"log_pb has shape \(3,\), expected \(8,\)"):
        found.flow(torch.zeros(3))
    with pytest.raises(ValueError, match="sums to 3"):
        found.flow(torch.zeros(8))


def test_a_backward_policy_that_leaves_out_an_edge() -> None:
    found = enumerate_dag(crossing())
    log_pb = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1]).double().log()  # 3 from 1 only, 4 from 3 only: 2 is never passed
    flow = found.flow(log_pb)
    assert flow.log_flow[2] == -torch.inf
    assert (flow.log_pf[2] == -torch.inf).all()
    assert (found.terminal_distribution(flow.log_pf) - found.target).abs().max() < 1e-12


def test_deep_and_narrow() -> None:
    found = enumerate_dag(HyperGrid(1, 100))
    assert len(found) == 200
    assert int(found.level[-1]) == 100
    assert found.terminal_distribution(found.flow().log_pf).sub(found.target).abs().max() < 1e-12
