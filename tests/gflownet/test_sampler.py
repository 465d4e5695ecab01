"""Samplers: the distribution is exact in numpy and torch, with and without a cache, forwards and backwards."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gflownet.sampling.sampler
from envs.core import Trajectories
from envs.dag.backward import sample_backward
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.random import Rng
from envs.rollout import rollout
from gflownet.flows.flows import Flows
from gflownet.model import Model
from gflownet.networks import Stacked, StackedMLP
from gflownet.objectives.trajectory_balance import TrajectoryBalance
from gflownet.optimiser import Adam
from gflownet.problem import DagProblem
from gflownet.sampling.exploration import Exploration
from gflownet.sampling.replay import replayed
from gflownet.sampling.sampler import NumpySampler, Sampler, sampler
from tests.dags import torch_twin
from tests.exact_flows import DAGS, WORLDS, Slow, draws, model_for, wander

F64 = torch.float64
EXPLORE = [Exploration(), Exploration(epsilon=0.3), Exploration(temperature=2.5), Exploration(0.2, 0.5)]


def net_model(env: Any, heads: int = 1) -> Model:
    levels = tuple(env.observation_space.nvec.tolist())
    A = int(env.action_space.n)
    return Model(StackedMLP(len(levels), (16, 16), A * heads, levels), A, heads)


def theta_of(model: Model, seeds: int = 2, dtype: torch.dtype = F64) -> Tensor:
    """Twice as large as networks begin: policies that differ, and leave no object out."""
    return 2 * model.init(Rng.of_seeds(range(seeds))).to(dtype)


def play(env: Any, act: Any, keys: int, n: int, dtype: torch.dtype = F64) -> Trajectories:
    rng = Rng.of_seeds(range(keys))
    rng.dtype = dtype
    return rollout(env, act, rng.spawn(n))


def explored(log_pf: Tensor, valid: Tensor, explore: Exploration) -> Tensor:
    """The law of moves that the sampler is to have, from log P_F [..., A] at temperature 1."""
    p = torch.softmax(torch.where(valid, log_pf / explore.temperature, -torch.inf), -1)
    return ((1 - explore.epsilon) * p + explore.epsilon * valid / valid.sum(-1, keepdim=True)).log()


def chi_square_z(often: Tensor, law: Tensor) -> float:
    """How many standard deviations chi² lies above its mean, for counts [K] of independent draws; impossible objects: inf."""
    n = often.sum()
    if bool(often[law == 0].any()):
        return math.inf
    often, law = often[law > 0], law[law > 0]
    chi2 = ((often - n * law) ** 2 / (n * law)).sum()
    variance = 2 * (len(law) - 1) + ((1 / law).sum() - len(law) ** 2 - 2 * len(law) + 2) / n  # exact for a multinomial
    return float((chi2 - len(law) + 1) / variance.sqrt())


# -- forwards


@pytest.mark.parametrize("explore", EXPLORE, ids=repr)
@pytest.mark.parametrize("world", ["stop", "paper2021", "append", "any", "sets"])
def test_numpy_memory_and_torch_do_the_same(world: str, explore: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same keys, the same actions; in float64, where no number of these falls between two roundings."""
    env, n = WORLDS[world], 40
    model = net_model(env)
    theta = theta_of(model)
    plain = sampler(env, model, theta, n, explore)
    monkeypatch.setattr(gflownet.sampling.sampler, "MEMO_ROWS", 1)
    memory = sampler(env, model, theta, n, explore)
    assert isinstance(plain, NumpySampler)
    assert isinstance(memory, NumpySampler)
    assert plain._memo is None
    assert memory._memo is not None
    twin = torch_twin(env)
    in_torch = sampler(twin, model, theta, n, explore)
    assert isinstance(in_torch, Sampler)
    taus = [play(e, act, 2, n) for e, act in ((env, plain), (env, memory), (twin, in_torch))]
    taus.append(play(env, Sampler(env, model, theta, n, explore, None), 2, n))
    assert len(torch.unique(taus[0].last, dim=0)) > 5
    for other in taus[1:]:
        assert torch.equal(other.action * other.mask, taus[0].action * taus[0].mask)
        assert torch.equal(other.mask, taus[0].mask)
        assert torch.equal(other.last, taus[0].last)


@pytest.mark.slow
@pytest.mark.parametrize("explore", EXPLORE, ids=repr)
@pytest.mark.parametrize("kind", ["numpy", "memory", "torch"])
def test_the_law_of_what_is_built(kind: str, explore: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, two seeds with policies of their own."""
    monkeypatch.setattr(gflownet.sampling.sampler, "MEMO_ROWS", 10**9 if kind == "numpy" else 1)
    env, n = HyperGrid(2, 5, convention="paper2021"), 20_000
    dag, model = enumerate_dag(env), net_model(env)
    theta = theta_of(model, dtype=torch.float32)
    act = Sampler(env, model, theta, n, explore, None) if kind == "torch" else sampler(env, model, theta, n, explore)
    tau = play(env, act, 2, n, torch.float32)
    assert tau.last is not None
    log_pf = model.log_pf(theta, dag.obs.expand(2, *dag.obs.shape), dag.action_mask)[0]
    law = dag.terminal_distribution(explored(log_pf, dag.action_mask, explore))
    often = torch.stack([dag.object_of(x).bincount(minlength=len(dag.objects)) for x in tau.last.view(2, n, -1)])
    for k in range(2):
        assert chi_square_z(often[k], law[k]) < 4
        assert chi_square_z(often[k], law[1 - k]) > 30  # the other seed's policy is told from this one
        other = dag.terminal_distribution(
            explored(log_pf, dag.action_mask, Exploration(0.3) if explore == Exploration() else Exploration())
        )
        assert chi_square_z(often[k], other[k]) > 8


class Extreme:
    """A stream whose uniforms lie as near to 0 or to 1 as they come."""

    def __init__(self, u: float, rows: int, numpy: bool) -> None:
        self.u = torch.full((rows, 1), u)
        self.numpy = numpy

    def uniform(self, *shape: int) -> Any:
        return self.u.numpy() if self.numpy else self.u


@pytest.mark.parametrize("u", [2.0**-24, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_invalid_actions_are_never_drawn(u: float, epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All masks of 5 moves but the empty one, with numbers so far apart that most probabilities are 0 in float32."""
    monkeypatch.setattr(gflownet.sampling.sampler, "MEMO_ROWS", 10**9)
    valid = torch.cartesian_prod(*[torch.tensor([False, True])] * 5)[1:]
    env = HyperGrid(4, 3)
    model, rows = Model(StackedMLP(4, (), 5, (3,) * 4), 5), len(valid)
    for scale in (0.0, 1.0, 300.0):
        theta = (scale * draws(1, model.size)).float()
        obs = torch.randint(3, (rows, 4), generator=torch.Generator().manual_seed(0))
        explore = Exploration(epsilon)
        ours = NumpySampler(env, model, theta, rows, explore, None)(obs.numpy(), valid.numpy(), Extreme(u, rows, True))  # type: ignore[arg-type]
        theirs = Sampler(torch_twin(env), model, theta, rows, explore, None)(obs, valid, Extreme(u, rows, False))  # type: ignore[arg-type]
        for action in (torch.as_tensor(ours), theirs):
            assert valid[torch.arange(rows), action].all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_each_head_has_its_own_law(kind: str) -> None:
    env, n, heads = HyperGrid(2, 4), 15_000, 3
    dag, model = enumerate_dag(env), net_model(env, heads)
    theta = theta_of(model, dtype=torch.float32)
    head = torch.arange(2 * n) % heads
    make = Sampler if kind == "torch" else NumpySampler
    tau = play(env, make(env, model, theta, n, Exploration(), head), 2, n, torch.float32)
    assert tau.last is not None
    law = dag.terminal_distribution(model.log_pf(theta, dag.obs.expand(2, *dag.obs.shape), dag.action_mask))
    place = dag.object_of(tau.last)
    for seed in range(2):
        for k in range(heads):
            mine = (head == k) & (torch.arange(2 * n) // n == seed)
            often = place[mine].bincount(minlength=len(dag.objects))
            assert chi_square_z(often, law[k, seed]) < 4
            assert chi_square_z(often, law[(k + 1) % heads, seed]) > 20


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"epsilon": 1.1}, {"temperature": 0.0}, {"temperature": math.inf}])
def test_exploration_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= epsilon <= 1 and temperature > 0"):
        Exploration(**wrong)


# -- a Module of one's own


class Trunk(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs.to(self.layers[0].weight.dtype) / 3)


def test_a_module_trains_and_each_seed_is_as_it_is_alone() -> None:
    env, n = WORLDS["stop"], 16
    model = Model(Stacked(Trunk, 3), 3)
    objective = TrajectoryBalance()

    def train(seeds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        problem = DagProblem(env, seeds, n, dtype=F64)
        theta, losses = model.init(problem.rng(0)), []
        adam = Adam.begin(theta)
        for t in range(50):
            tau = problem.play(sampler(env, model, theta, n), problem.rng(1, t))
            leaf = theta.clone().requires_grad_()
            loss = objective.loss(Flows(env, model, leaf, tau, env.log_reward(tau.last)))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            adam.step(theta, gradient, 0.04, 0.04, torch.ones(len(theta), dtype=torch.bool))
            losses.append(loss.detach())
        return theta, torch.stack(losses)

    theta, losses = train((3, 8))
    assert (losses[-10:].mean(0) < losses[:10].mean(0) / 2).all()
    assert len(torch.unique(theta[:, 0])) == 2
    for k, seed in enumerate((3, 8)):
        alone, curve = train((seed,))
        assert torch.allclose(alone[0], theta[k], rtol=0, atol=1e-8)
        assert torch.allclose(curve[:, 0], losses[:, k], rtol=1e-8, atol=0)


def test_a_module_s_numbers_are_its_own() -> None:
    net = Stacked(Trunk, 3)
    params, obs = net.init(Rng.of_seeds([1, 2])), torch.randint(4, (2, 7, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(params, net.init(Rng.of_seeds([1, 2])))
    for k in range(2):
        module = Trunk()
        torch.nn.utils.vector_to_parameters(params[k], module.parameters())
        assert torch.allclose(net.forward(params, obs)[k], module(obs[k]), rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="the module has buffers"):
        Stacked(lambda: torch.nn.BatchNorm1d(2), 2)


# -- backwards


@pytest.mark.parametrize("world", WORLDS)
def test_backward_paths_lead_to_the_objects_and_can_be_walked_again(world: str) -> None:
    env, dag = WORLDS[world], DAGS[world]
    model = model_for(env, TrajectoryBalance(), "uniform")
    x = dag.obs[dag.objects].repeat(2, *[1] * (dag.obs.dim() - 1))
    tau = sample_backward(env, x, Rng.of_seeds(range(len(x))))
    assert torch.equal(tau.last, x)
    assert torch.equal(tau.obs[0], dag.obs[:1].expand_as(x))
    assert tau.mask[0].all()
    assert (tau.mask[1:] <= tau.mask[:-1]).all()
    slow = Slow(dag, model, torch.zeros(len(dag), model.net.outputs), "uniform")
    edges = set(slow.edges)
    assert all(edge in edges for column in range(len(x)) for edge in slow.walk(tau, column))
    again = replayed(DagProblem(env, (0,)), tau.action)
    assert torch.equal(again.mask[: len(tau.mask)], tau.mask)
    assert not again.mask[len(tau.mask) :].any()
    assert torch.equal(again.last, tau.last)
    T = min(len(tau.mask), len(again.mask))
    assert torch.equal(again.obs[:T][tau.mask[:T]], tau.obs[:T][tau.mask[:T]])
    assert torch.equal(again.action_mask[:T][tau.mask[:T]], tau.action_mask[:T][tau.mask[:T]])


@pytest.mark.parametrize("learned", [False, True])
def test_the_law_of_backward_paths_where_two_parents_share_an_action(learned: bool) -> None:
    """All paths by hand; the control takes parents by action alone, which makes 1 -> 3 and 2 -> 3 one edge."""
    env, dag, n = WORLDS["detours"], DAGS["detours"], 40_000
    model = model_for(env, TrajectoryBalance(), "learned")
    out = draws(env.n_states, model.net.outputs, seed=4)
    slow = Slow(dag, model, out[env.index(dag.obs)], "learned" if learned else "uniform")
    logits = (lambda obs: out[env.index(obs), -model.actions :]) if learned else None
    for x in dag.objects.tolist():
        paths = [((), x, 0.0)]
        whole: dict[Any, float] = {}
        while paths:
            path, state, log_p = paths.pop()
            if state == 0:
                whole[path] = log_p
            paths += [((edge, *path), edge[0], log_p + slow.log_pb(edge)) for edge in slow.into[state]]
        law = torch.tensor(list(whole.values()), dtype=F64).exp()
        assert float(law.sum()) == pytest.approx(1)
        rng = Rng.of_seeds([x])
        rng.dtype = F64
        tau = sample_backward(env, dag.obs[x].expand(n), rng.spawn(n), logits)
        number = {path: k for k, path in enumerate(whole)}
        codes, which, count = torch.unique(
            torch.cat([tau.obs * tau.mask, tau.action * tau.mask, tau.mask.long()]),
            dim=1,
            return_inverse=True,
            return_counts=True,
        )
        often = torch.zeros(len(law), dtype=torch.int64)
        for group in range(codes.shape[1]):
            example = int((which == group).nonzero()[0])
            often[number[tuple(slow.walk(tau, example))]] += count[group]
        if len(law) > 1:
            assert abs(chi_square_z(often, law)) < 4
        if len(law) > 2:  # through 3: were the three edges into it two, their law would be seen to be another
            halved = torch.tensor([any(edge[:2] in ((1, 0), (2, 0)) for edge in path) for path in whole])
            merged = torch.where(halved, law / 2, law)
            assert chi_square_z(often, merged / merged.sum()) > 30


def test_a_path_longer_than_the_horizon_is_refused() -> None:
    env = HyperGrid(2, 4)
    env.horizon = 3
    with pytest.raises(ValueError, match=r"a path to \[3, 3\] is longer than the horizon of 3 steps"):
        sample_backward(env, torch.tensor([[3, 3]]), Rng.of_seeds([0]))


def test_journeys_that_wander_stay_within_the_horizon() -> None:
    for env in WORLDS.values():
        tau, log_reward = wander(env)
        assert len(tau.mask) <= env.horizon
        assert torch.isfinite(log_reward).all()
