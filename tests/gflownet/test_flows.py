"""`Flows` against plain Python: each seed alone and with others, without effects of padding."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envs.core import Trajectories
from envs.dag.hypergrid import HyperGrid
from envs.dag.search import hash_key
from envs.dag.segments import segment_logsumexp
from envs.random import Rng
from envs.rollout import rollout
from gflownet.flows.edges import edges_of
from gflownet.flows.flows import Flows
from gflownet.flows.states import distinct
from gflownet.model import Model
from gflownet.networks import StackedMLP
from gflownet.objectives.flow_matching import FlowMatching
from gflownet.objectives.forward_looking import ForwardLookingSubTB
from gflownet.objectives.modified_detailed_balance import ModifiedDetailedBalance
from gflownet.objectives.soft_dqn import SoftDQN
from gflownet.objectives.subtrajectory_balance import SubTrajectoryBalance
from gflownet.objectives.vargrad import VarGrad
from tests.exact_flows import DAGS, WORLDS, N, S, Slow, draws, loss_and_gradient, model_for, wander
from tests.pgrl.test_memory import Largest

SUBTB = SubTrajectoryBalance()
each_world = pytest.mark.parametrize("world", WORLDS)
each_backward = pytest.mark.parametrize("backward", ["uniform", "maxent", "learned"])


# -- the numbers


@each_backward
@each_world
def test_steps_one_at_a_time(world: str, backward: str) -> None:
    env, dag = WORLDS[world], DAGS[world]
    model, (tau, log_reward) = model_for(env, SUBTB, backward), wander(env)
    theta = draws(S, model.size)
    flows = Flows(env, model, theta, tau, log_reward, backward=backward)
    log_pf, log_pb, log_flow = torch.zeros(flows.mask.shape), torch.zeros(flows.mask.shape), flows.log_state_flow
    log_pf, log_pb = log_pf.double(), log_pb.double()
    for seed in range(S):
        slow = Slow(dag, model, theta[seed, :-1].view(env.n_states, -1)[env.index(dag.obs)], backward)
        for i in range(N):
            walk = slow.walk(tau, seed * N + i)
            for t, edge in enumerate(walk):
                log_pf[t, seed, i], log_pb[t, seed, i] = slow.log_pf(edge), slow.log_pb(edge)
                assert float(log_flow[t, seed, i]) == pytest.approx(slow.log_flow(edge[0]), rel=1e-12)
            assert (log_flow[len(walk) :, seed, i] == slow.log_reward(walk[-1][2])).all()
            assert int(flows.visited[:, seed, i].sum()) == len(walk) + 1
    assert torch.allclose(flows.log_pf, log_pf, rtol=1e-12, atol=1e-12)
    assert torch.allclose(flows.log_pb, log_pb, rtol=1e-12, atol=1e-12)


@each_world
def test_the_edges_into_the_states_that_were_entered(world: str) -> None:
    env, dag = WORLDS[world], DAGS[world]
    model, (tau, log_reward) = model_for(env, FlowMatching(), "uniform"), wander(env)
    theta, weight = draws(S, model.size), draws(S, N, seed=1).exp()
    edges = edges_of(Flows(env, model, theta, tau, log_reward, weight=weight))
    for seed in range(S):
        slow = Slow(dag, model, theta[seed, :-1].view(env.n_states, -1)[env.index(dag.obs)], "uniform")
        truth: dict[int, float] = {}
        for i in range(N):
            for _, _, s in slow.walk(tau, seed * N + i):
                truth[s] = truth.get(s, 0.0) + float(weight[seed, i])
        expected = sorted(
            (
                math.log(sum(math.exp(slow.edge_flow(p, a)) for p, a, _ in slow.into[s])),
                slow.log_reward(s) if dag.terminated[s] else slow.log_sum(s),
                bool(dag.terminated[s]),
                count,
            )
            for s, count in truth.items()
        )
        real = edges.count[seed] > 0
        found = zip(
            *(x[seed][real].tolist() for x in (edges.log_inflow, edges.log_outflow, edges.terminal, edges.count)), strict=True
        )
        for ours, theirs in zip(sorted(found), expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@each_backward
@pytest.mark.parametrize("world", ["stop", "paper2021", "any"])
def test_seeds_in_company_and_alone(world: str, backward: str) -> None:
    """A network, where seeds see different numbers of states; and a world without numbers for them, told apart by a hash."""
    env, back = WORLDS[world], backward == "learned"
    A = int(env.action_space.n)
    levels = tuple(env.observation_space.nvec.tolist())
    model = Model(StackedMLP(len(levels), (16,), A * (1 + back) + 1, levels), A, 1, True, back)
    theta, (tau, log_reward) = draws(3, model.size) / 3, wander(env, seeds=3, n=6)
    for objective in (SUBTB, FlowMatching(), SoftDQN(0.15), VarGrad()):
        losses = list[Tensor]()
        for world_ in (env, Unnumbered(env)):
            together = Flows(world_, model, theta, tau, log_reward, backward=backward, theta_target=theta + 0.1)
            loss = objective.loss(together)
            for k in range(3):
                one, own = slice(6 * k, 6 * (k + 1)), theta[k : k + 1]
                alone = Flows(
                    world_,
                    model,
                    own,
                    tau.rows(one.start, one.stop),
                    log_reward[one],
                    backward=backward,
                    theta_target=own + 0.1,
                )
                assert torch.allclose(objective.loss(alone)[0], loss[k], rtol=1e-12, atol=0)
            losses.append(loss)
        assert torch.allclose(*losses, rtol=1e-12, atol=0)


class Unnumbered:
    """The environment without `index`."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name in ("index", "n_states"):
            raise AttributeError(name)
        return getattr(self._env, name)


# -- nothing leaks


@pytest.mark.parametrize(
    "objective", [SUBTB, FlowMatching(), FlowMatching(smoothing=0.1), SoftDQN(0.15), VarGrad(), ForwardLookingSubTB()], ids=repr
)
@each_backward
def test_states_that_were_not_met_do_not_matter(objective: Any, backward: str) -> None:
    """NaN in their rows of the table, and where moves are invalid; one seed meets fewer states than the other."""
    env, n = WORLDS["stop"], 2
    model, (tau, log_reward) = model_for(env, objective, backward), wander(env, n=n, seed=12)
    theta = draws(S, model.size)
    flows = Flows(env, model, theta.clone().requires_grad_(), tau, log_reward, backward=backward, theta_target=theta)
    loss, gradient = loss_and_gradient(objective, flows)
    met = [env.index(tau.obs[:, n * seed : n * seed + n][tau.mask[:, n * seed : n * seed + n]]) for seed in range(S)]
    assert len({len(torch.unique(rows)) for rows in met}) == S
    used = torch.zeros(S, env.n_states, model.net.outputs, dtype=torch.bool)
    for seed, rows in enumerate(met):
        used[seed, rows] = True
        if isinstance(objective, FlowMatching):
            used[seed, env.index(env.parents(flows.next[0], flows.next[1]).obs)] = True
    going = ~DAGS["stop"].terminated
    used[:, env.index(DAGS["stop"].obs[going]), : model.actions] &= DAGS["stop"].action_mask[going]
    poisoned = theta.clone()
    poisoned[:, :-1] = torch.where(used.flatten(1), theta[:, :-1], torch.nan)
    poisoned[:, -1] = torch.nan  # log Z, which none of these uses
    flows = Flows(env, model, poisoned.clone().requires_grad_(), tau, log_reward, backward=backward, theta_target=poisoned)
    again, slope = loss_and_gradient(objective, flows)
    assert torch.equal(again, loss)
    assert torch.equal(slope, gradient)
    poisoned[1] = torch.nan  # the whole other seed
    flows = Flows(env, model, poisoned.clone().requires_grad_(), tau, log_reward, backward=backward, theta_target=poisoned)
    again, slope = loss_and_gradient(objective, flows)
    assert again[0] == loss[0]
    assert torch.isnan(again[1])
    assert torch.equal(slope[0], gradient[0])


@pytest.mark.parametrize("objective", [SUBTB, FlowMatching(), SoftDQN(), VarGrad(), ModifiedDetailedBalance()], ids=repr)
def test_padding_in_time_does_not_matter(objective: Any) -> None:
    env = WORLDS["stop"]
    model, (tau, log_reward) = model_for(env, objective, "learned"), wander(env)
    theta = draws(S, model.size)
    loss = objective.loss(Flows(env, model, theta, tau, log_reward, backward="learned", theta_target=theta))
    longer = Trajectories.cat([tau, _later(tau)]).columns(torch.arange(S * N))
    assert len(longer.mask) > len(tau.mask)
    padded = objective.loss(Flows(env, model, theta, longer, log_reward, backward="learned", theta_target=theta))
    assert torch.allclose(padded, loss, rtol=1e-13, atol=0)


def _later(tau: Trajectories) -> Trajectories:
    """Longer by three steps that were not taken."""
    assert tau.last is not None
    more = {
        name: torch.cat([x, x[:1].expand(3, *x.shape[1:])])
        for name in ("action", "reward", "mask", "action_mask")
        if (x := getattr(tau, name)) is not None
    }
    more["mask"] = torch.cat([tau.mask, torch.zeros_like(tau.mask[:3])])
    return replace(tau, obs=torch.cat([tau.obs, tau.last.expand(3, *tau.last.shape)]), **more)


def test_weights_count_trajectories_several_times() -> None:
    """A weight of 2 is the trajectory twice, a weight of 0 is none; where all are 0 there is nothing to learn, and no NaN."""
    env, (tau, log_reward) = WORLDS["stop"], wander(WORLDS["stop"], seeds=1, n=4)
    twice = torch.tensor([0, 1, 3, 3])
    for objective in (SUBTB, FlowMatching(), SoftDQN(), VarGrad(), ModifiedDetailedBalance()):
        model = model_for(env, objective, "uniform")
        theta = draws(1, model.size).requires_grad_()
        weight = torch.tensor([[1.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
        weighted = Flows(env, model, theta, tau, log_reward, weight=weight, theta_target=theta)
        repeated = Flows(env, model, theta, tau.columns(twice), log_reward[twice], theta_target=theta)
        assert torch.allclose(objective.loss(weighted), objective.loss(repeated), rtol=1e-12, atol=0), objective
        loss, gradient = loss_and_gradient(objective, weighted.with_head(0, weight * 0))
        assert float(loss) == 0
        assert not gradient.any()


# -- distinct states


@settings(max_examples=150, deadline=None)
@given(
    visits=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=40),
    path=st.sampled_from(["table", "sort", "hash"]),
    one=st.booleans(),
)
def test_distinct_states_as_a_dict_finds_them(visits: list[tuple[int, int]], path: str, one: bool) -> None:
    seeds = 1 if one else 3
    n_keys = {"table": 7, "sort": 1_000_000, "hash": None}[path]
    far = {"table": 1, "sort": 142_857, "hash": 2**60}[path]
    owners = [0 if one else seed for seed, _ in visits]
    keys = [key * far - (2**62 if path == "hash" else 0) for _, key in visits]
    seed = None if one else torch.tensor(owners)
    found = distinct(torch.tensor(keys), seed, seeds, n_keys)
    places: dict[tuple[int, int], list[int]] = {}
    for i, who in enumerate(zip(owners, keys, strict=True)):
        places.setdefault(who, []).append(i)
    width = max(sum(owner == k for owner, _ in places) for k in range(seeds))
    assert found.first.shape == found.real.shape == found.count.shape == (seeds * width,)
    assert int(found.real.sum()) == len(places)
    assert len({int(found.row[at[0]]) for at in places.values()}) == len(places)
    for (owner, _), at in places.items():
        row = int(found.row[at[0]])
        assert found.row[at].eq(row).all()
        assert row // width == owner
        assert found.real[row]
        assert int(found.count[row]) == len(at)
        assert int(found.first[row]) in at
    assert not found.count[~found.real].any()
    assert torch.equal(found.of(torch.tensor(keys)).flatten()[found.row], torch.tensor(keys))


def test_hashes_do_not_collide() -> None:
    cells = torch.cartesian_prod(*[torch.arange(13)] * 5)  # a third of a million
    for obs in (cells, cells.float() / 7, cells[:, :, None] - 5):
        assert len(torch.unique(hash_key(obs))) == len(cells)
    assert torch.equal(hash_key(cells[:50]), torch.cat([hash_key(cells[i : i + 1]) for i in range(50)]))


# -- sums over edges


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(0, 4), st.floats(-800, 800) | st.just(-math.inf)), max_size=30),
    seed=st.integers(0, 99),
)
def test_segment_logsumexp_as_a_dense_one(values: list[tuple[int, float]], seed: int) -> None:
    segment = torch.tensor([k for k, _ in values], dtype=torch.int64)
    x = torch.tensor([v for _, v in values], dtype=torch.float64)

    def dense(x: Tensor) -> Tensor:
        return (
            torch.where(segment == torch.arange(5)[:, None], x, -torch.inf).logsumexp(1)
            if len(x)
            else torch.full((5,), -torch.inf)
        )

    ours, truth = segment_logsumexp(x.requires_grad_(), segment, 5), dense(x).double()
    assert torch.allclose(ours, truth, rtol=1e-12, atol=1e-12)
    some = torch.isfinite(truth)
    if bool(some.any()):
        weight = draws(5, seed=seed)[some]
        (gradient,) = torch.autograd.grad((ours[some] * weight).sum(), x)
        inside = x.detach().isfinite()
        (expected,) = torch.autograd.grad((dense(x)[some] * weight).sum(), x)
        assert torch.isfinite(gradient).all()
        assert torch.allclose(gradient[inside], expected[inside], rtol=1e-10, atol=1e-300)


def test_a_sum_over_no_edges_has_no_gradient() -> None:
    x = torch.tensor([1.0, -torch.inf], requires_grad=True)
    total = segment_logsumexp(x, torch.tensor([2, 0]), 4)
    assert total.tolist() == [-math.inf, -math.inf, 1.0, -math.inf]
    (gradient,) = torch.autograd.grad(total[2] + torch.where(torch.isfinite(total[[0, 1]]), total[[0, 1]], 0.0).sum(), x)
    assert gradient.tolist() == [1.0, 0.0]


class Onward:
    """The first move that is valid."""

    def __call__(self, obs: Any, action_mask: Any, rng: Rng) -> Any:
        return action_mask.argmax(1)

    def rows(self, lo: int, hi: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("residual", ["squared", "huber"])
def test_memory_does_not_grow_with_the_square_of_the_length(residual: Any) -> None:
    """300 steps, 64 trajectories: the largest tensor is one number for each visit and action, or for each pair of times."""
    env, objective = HyperGrid(1, 300), SubTrajectoryBalance(residual=residual)
    tau = rollout(env, Onward(), Rng.of_seeds([0]).spawn(S * 64))
    assert tau.last is not None
    model, T = model_for(env, objective, "uniform"), len(tau.mask)
    flows = Flows(env, model, draws(S, model.size).requires_grad_(), tau, env.log_reward(tau.last))
    with Largest() as largest:
        loss_and_gradient(objective, flows)
    assert T == 300
    assert largest.elements <= max((T + 1) ** 2, (T + 1) * S * 64 * model.actions)
