"""`GFlowNet`: optimiser, replay, local search, seeds side by side; every objective converges to the target distribution."""

import inspect
import math
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

import gflownet.sampling.local_search
from envs.core import Trajectories
from envs.dag.backward import sample_backward
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.pytree import tensors_of
from envs.random import Rng
from gflownet.evaluation import exact_distribution
from gflownet.flows.flows import Flows
from gflownet.gflownet import GFlowNet, GFlowNetState
from gflownet.metrics import l1_sum, noise_floor
from gflownet.optimiser import Adam
from gflownet.problem import DagProblem
from gflownet.sampling.local_search import LocalSearch, local_search
from gflownet.sampling.replay import Replay
from tests.exact_flows import DAGS, WORLDS, draws, fitting, model_for, wander
from tests.gflownet.test_objectives import OBJECTIVES
from tests.gflownet.test_sampler import chi_square_z

TB = OBJECTIVES["tb"]
F64 = torch.float64


def run(method: GFlowNet, problem: DagProblem, iterations: int | None = None) -> GFlowNetState:
    state = method.init(problem)
    for t in range(iterations or problem.iterations):
        state, _ = method.step(state, problem, t)
    return state


# -- Adam


def test_adam_is_torch_s_step_by_step() -> None:
    theta = draws(1, 30).float()
    reference = theta.clone().requires_grad_()
    parts = [reference[:, :29].detach().clone().requires_grad_(), reference[:, 29:].detach().clone().requires_grad_()]
    theirs = torch.optim.Adam([{"params": parts[:1], "lr": 0.02}, {"params": parts[1:], "lr": 0.5}])
    ours, fine = Adam.begin(theta), torch.ones(1, dtype=torch.bool)
    for t in range(50):
        gradient = draws(1, 30, seed=t).float() * 10.0 ** (t % 7 - 3)
        parts[0].grad, parts[1].grad = gradient[:, :29].clone(), gradient[:, 29:].clone()
        theirs.step()
        ours.step(theta, gradient, 0.02, 0.5, fine)
        assert torch.allclose(theta, torch.cat([p.detach() for p in parts], 1), rtol=1e-6, atol=1e-6), t


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_seed_without_a_gradient_stays_as_it_is(bad: float) -> None:
    """To the bit, moments and all; afterwards it goes on as if the step had not been, and the others never noticed."""
    theta = draws(3, 20).float()
    adam = Adam.begin(theta)
    alone, own = theta[::2].clone(), Adam.begin(theta[::2])
    lagging, late = theta[1:2].clone(), Adam.begin(theta[1:2])
    for t in range(20):
        gradient, ill = draws(3, 20, seed=t).float(), t in (4, 5, 11)
        fine = torch.tensor([True, not ill, True])
        if ill:
            gradient[1, 3] = bad
        before = [x[1].clone() for x in (theta, adam.mean, adam.square, adam.steps)]
        adam.step(theta, gradient, 0.1, 1.0, fine)
        if ill:
            assert all(torch.equal(a, x[1]) for a, x in zip(before, (theta, adam.mean, adam.square, adam.steps), strict=True))
        else:
            late.step(lagging, gradient[1:2], 0.1, 1.0, fine[1:2])
        own.step(alone, gradient[::2], 0.1, 1.0, fine[::2])
        assert int(adam.failing[1]) == {4: 1, 5: 2, 11: 1}.get(t, 0)
    assert adam.skipped.tolist() == [0, 3, 0]
    assert torch.allclose(theta[::2], alone, rtol=1e-6, atol=1e-7)
    assert torch.allclose(theta[1:2], lagging, rtol=1e-6, atol=1e-7)


def test_an_update_that_is_not_finite_is_skipped_and_shown() -> None:
    problem, method = DagProblem(WORLDS["stop"], (0, 1), 8), GFlowNet(TB, hidden=(8,), log_z_start=1.0)
    state = run(method, problem, 2)
    state.theta[1, -1] = torch.nan  # log Z of the second seed
    before = state.theta.clone()
    state, outcome = method.step(state, problem, 2)
    assert torch.equal(state.theta[1].nan_to_num(), before[1].nan_to_num())
    assert not torch.equal(state.theta[0], before[0])
    assert state.adam.skipped.tolist() == state.adam.failing.tolist() == [0, 1]
    assert outcome.fault["fine"].tolist() == [True, False]
    assert outcome.fault["action"].shape == outcome.fault["mask"].shape
    assert torch.isfinite(state.log_z).all()  # the last one that was
    state.theta[1, -1] = 0.0
    state, outcome = method.step(state, problem, 3)
    assert outcome.fault == {}
    assert state.adam.skipped.tolist() == [0, 1]
    assert state.adam.failing.tolist() == [0, 0]


# -- log Z


def shifted(env: Any, by: float) -> Any:
    """The environment with all log-rewards changed by a number, as log Z then is."""
    other = copy(env)
    vars(other)["log_reward"] = lambda obs: env.log_reward(obs) + by
    return other


@pytest.mark.parametrize("replay", ["none", "prioritised"])
@pytest.mark.parametrize("heads", [1, 2])
def test_log_z_starts_where_the_first_batch_says(replay: str, heads: int) -> None:
    """log R is shifted by 50, as in a space of molecules: log Z is there at once, up to one step of Adam."""
    env = shifted(WORLDS["stop"], -50.0)
    problem, rate = DagProblem(env, (0, 1), 64), 0.1
    auto = GFlowNet(TB, hidden=(8,), log_z_rate=rate, replay=replay, heads=heads)
    zero = replace(auto, log_z_start=0.0)
    state, outcome = auto.step(auto.init(problem), problem, 0)
    other, same = zero.step(zero.init(problem), problem, 0)
    assert torch.equal(outcome.log_reward, same.log_reward)
    start = -same.metrics["train/residual"]
    assert (start < -40).all()
    assert torch.allclose(state.theta[:, -1], start, rtol=0, atol=1.001 * rate)
    assert torch.allclose(other.theta[:, -1], torch.zeros(2), rtol=0, atol=1.001 * rate)
    assert torch.allclose(outcome.metrics["train/residual"], torch.zeros(2), rtol=0, atol=1e-4)
    if heads == 1:
        assert (outcome.metrics["train/loss"] < same.metrics["train/loss"] / 100).all()
    later, _ = auto.step(state, problem, 1)
    assert torch.allclose(later.theta[:, -1], start, rtol=0, atol=2.5 * rate)  # only once


def test_log_z_starts_at_the_first_update_that_is_taken() -> None:
    """One reward of the second seed is so low that the square of its residual is not finite; in the next iteration none is."""
    env = shifted(WORLDS["stop"], -50.0)
    plain = env.log_reward
    once = [torch.where(torch.arange(128) == 100, -1e30, 0.0)]
    vars(env)["log_reward"] = lambda obs: plain(obs) + (once.pop() if once else 0.0)
    problem, auto = DagProblem(env, (0, 1), 64), GFlowNet(TB, hidden=(8,))
    state, outcome = auto.step(auto.init(problem), problem, 0)
    assert outcome.fault["fine"].tolist() == [True, False]
    assert float(state.theta[0, -1]) < -40
    assert float(state.theta[1, -1]) == 0.0
    first = state.theta[0, -1].clone()
    state, _ = auto.step(state, problem, 1)
    assert float(state.theta[1, -1]) < -40
    assert abs(float(state.theta[0, -1] - first)) < 0.2


def test_objectives_without_log_z_do_not_see_its_start() -> None:
    problem = DagProblem(WORLDS["stop"], (0,), 8)
    one, other = (run(GFlowNet(OBJECTIVES["db"], hidden=(8,), log_z_start=start), problem, 3).theta for start in ("auto", 0.0))
    assert torch.equal(one, other)


# -- replay


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_replayed_is_what_was_played(world: str) -> None:
    env = WORLDS[world]
    problem, (tau, log_reward) = DagProblem(env, (0, 1), 24), wander(env)
    replay = Replay.begin(problem, 30).add(tau, log_reward)
    drawn, worth = replay.draw(problem, 50, False, problem.rng(1))
    assert torch.equal(worth, env.log_reward(drawn.last))
    for seed in range(2):
        theirs = {journey(drawn, i) for i in range(50 * seed, 50 * (seed + 1))}
        ours = {journey(tau, i) for i in range(24 * seed, 24 * (seed + 1))}
        assert theirs <= ours
        assert len(theirs) > len(ours) / 2


def journey(tau: Trajectories, i: int) -> tuple[Any, ...]:
    length = int(tau.mask[:, i].sum())
    assert tau.last is not None
    assert tau.action_mask is not None
    inside = (tau.obs[:length, i], tau.action[:length, i], tau.action_mask[:length, i], tau.last[i])
    return length, *(str(x.tolist()) for x in inside)


def test_the_ring_forgets_the_oldest() -> None:
    """Words of a string number the trajectories; a batch of 6 at a time goes into 16 places, in another order for each seed."""
    env = WORLDS["append"]
    problem, held = DagProblem(env, (0, 1), 6), Replay.begin(DagProblem(env, (0, 1), 6), 16)
    for batch in range(5):
        tau, _ = wander(env, n=6, seed=batch)
        held = held.add(tau, (torch.arange(12) % 6 + 6 * batch + 100 * (torch.arange(12) // 6)).double())
        assert held.size == min(16, 6 * (batch + 1))
        latest = torch.arange(6 * (batch + 1))[-16:]
        assert torch.equal(held.log_reward[:, : held.size].sort(1).values, torch.stack([latest, latest + 100]).double())
    _, worth = held.draw(problem, 4000, False, problem.rng(1))
    often = (worth.view(2, -1) - torch.tensor([[0.0], [100.0]]) - 14).long()
    for seed in range(2):
        assert chi_square_z(often[seed].bincount(minlength=16), torch.full((16,), 1 / 16, dtype=F64)) < 4


def test_half_of_a_prioritised_draw_is_from_the_top_tenth() -> None:
    env, n = WORLDS["sets"], 20_000
    tau, _ = wander(env, n=60)
    problem, order = DagProblem(env, (0, 1), 60), torch.rand(2, 60, generator=torch.Generator().manual_seed(0)).argsort(1)
    held = Replay.begin(problem, 200).add(tau, order.flatten().double())
    _, worth = held.draw(problem, n, True, problem.rng(1))
    law = torch.cat([torch.full((54,), 0.5 / 54), torch.full((6,), 0.5 / 6)]).double()
    for drawn in worth.view(2, n).long():
        often = drawn.bincount(minlength=60)
        assert int(often[54:].sum()) == n // 2
        assert abs(chi_square_z(often, law)) < 4
        assert chi_square_z(often, torch.full((60,), 1 / 60, dtype=F64)) > 100
    few = Replay.begin(problem, 200).add(*wander(env, n=1))  # a single one is drawn alone
    assert few.draw(problem, 5, True, problem.rng(1))[1].view(2, 5).std(1).eq(0).all()


# -- local search


def search_from_the_law(world: Any, accept: Any, backward: str, search: Any = local_search) -> tuple[Tensor, Tensor]:
    """Counts of objects after one round from independent draws of the law, under a policy that is not optimal; and the law."""
    env, dag, n = world, enumerate_dag(world), 12_000
    model = model_for(env, TB, backward)
    theta, problem = draws(1, model.size, seed=3), DagProblem(env, (0,), n, dtype=F64)
    start = torch.multinomial(dag.target, n, True, generator=torch.Generator().manual_seed(1))
    tau = sample_backward(env, dag.obs[dag.objects[start]], Rng.of_seeds([5]).spawn(n))
    worth = env.log_reward(tau.last)
    found, log_reward, *_ = search(problem, model, theta, tau, worth, LocalSearch(1, 0.5, accept), backward, problem.rng(1))
    assert torch.equal(log_reward, env.log_reward(found.last))
    assert float((found.last != tau.last).reshape(n, -1).any(1).double().mean()) > 0.02
    return dag.object_of(found.last).bincount(minlength=len(dag.objects)), dag.target


def mutated(old: str, new: str) -> Any:
    """local_search with a piece of its text replaced."""
    source = inspect.getsource(local_search)
    assert source.count(old) == 1
    names = dict(vars(gflownet.sampling.local_search))
    exec(source.replace(old, new), names)
    return names["local_search"]


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["uniform", "maxent", "learned"])
@pytest.mark.parametrize("world", ["paper2021", "any", "detours"])
def test_metropolis_leaves_the_law_as_it_is(world: str, backward: str) -> None:
    often, law = search_from_the_law(WORLDS[world], "metropolis", backward)
    assert abs(chi_square_z(often, law)) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(u.log() < ratio) & ", ""),  # every proposal
        (" & (rebuilt.mask.sum(0) == length - kept)", ""),  # lengths forgotten
        ("ratio = ratio - _log_ratio(problem, model, theta, path, log_reward, backward)", "ratio = new - log_reward"),
    ],
)
def test_other_rules_do_not(old: str, new: str) -> None:
    often, law = search_from_the_law(HyperGrid(2, 4, convention="paper2021"), "metropolis", "uniform", mutated(old, new))
    assert chi_square_z(often, law) > 8


def test_better_is_never_worse() -> None:
    env = WORLDS["stop"]
    model, (tau, log_reward) = model_for(env, TB, "uniform"), wander(env, n=50)
    problem, theta = DagProblem(env, (0, 1), 50, dtype=F64), draws(2, model.size)
    found, worth, built, all_worth = local_search(
        problem, model, theta, tau, log_reward, LocalSearch(4, 0.5, "better"), "uniform", problem.rng(1)
    )
    assert (worth >= log_reward).all()
    assert (worth > log_reward).any()
    assert torch.equal(worth, env.log_reward(found.last))
    assert built.shape == (4, 100, 2)
    assert torch.equal(all_worth.flatten(), env.log_reward(built.flatten(0, 1)))
    assert torch.equal(torch.maximum(log_reward, all_worth.amax(0)), worth)


def test_every_object_built_by_local_search_counts() -> None:
    problem = DagProblem(WORLDS["stop"], (0, 1), 8)
    method = GFlowNet(TB, hidden=(8,), search_rounds=3, replay="fifo", capacity=50)
    state, outcome = method.step(method.init(problem), problem, 0)
    assert outcome.objects.shape == (2, 32, 2)
    assert torch.equal(outcome.log_reward, problem.env.log_reward(outcome.objects.flatten(0, 1)).view(2, 32))
    assert state.replay.position == 16


# -- seeds

KNOBS: list[dict[str, Any]] = [
    {},
    {"backward": "learned", "epsilon": 0.2, "epsilon_until": 0.5},
    {"backward": "tlm", "temperature": 1.5, "replay": "prioritised", "capacity": 40},
    {"replay": "fifo", "capacity": 20, "search_rounds": 2, "search_accept": "metropolis", "backward": "maxent"},
    {"heads": 3},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("name", ["fm", "db", "vargrad", "munchausen"])
def test_a_seed_is_the_same_alone_and_in_company_and_again(name: str, knobs: dict[str, Any]) -> None:
    """In float64, so that rounding does not tip an action; the same seeds give the same bytes."""
    env, seeds = WORLDS["paper2021"], (4, 9, 2)
    method = GFlowNet(OBJECTIVES[name], hidden=(16,), learning_rate=0.01, **fitting(OBJECTIVES[name], knobs))
    many = [run(method, DagProblem(env, seeds, 8, 10, dtype=F64)) for _ in range(2)]
    for key, value in tensors_of(many[0]).items():
        assert torch.equal(value, tensors_of(many[1])[key]), key
    for k, seed in enumerate(seeds):
        alone = run(method, DagProblem(env, (seed,), 8, 10, dtype=F64))
        assert torch.allclose(alone.theta[0], many[0].theta[k], rtol=0, atol=1e-9)
        assert torch.equal(alone.replay.actions[0], many[0].replay.actions[k])
    assert not torch.allclose(many[0].theta[0], many[0].theta[1], rtol=0, atol=1e-2)


@pytest.mark.parametrize("t", [0, 5, 10])
def test_steps_fall_to_their_final_rate(t: int) -> None:
    """Adam's first step is as long as the rate, whatever the gradient."""
    problem = DagProblem(WORLDS["stop"], (0,), 8, 11)
    method = GFlowNet(TB, learning_rate=0.1, log_z_rate=1.0, final_rate=0.01, log_z_start=0.0)
    before = method.init(problem)
    start = before.theta.clone()
    moved = (method.step(before, problem, t)[0].theta - start)[0].abs()
    assert float(moved[-1]) == pytest.approx(0.01 ** (t / 10), rel=1e-5)
    assert float(moved[:-1].max()) == pytest.approx(0.1 * 0.01 ** (t / 10), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"final_rate": 2.0}, "final_rate is 2"),
        ({"target_rate": math.nan}, "target_rate is nan"),
        ({"backward": "unifrom"}, "backward is 'unifrom', expected uniform, learned, maxent, tlm"),
        ({"replay": "lifo"}, "replay is 'lifo', expected none, fifo, prioritised"),
        ({"heads": 0}, "at least 1"),
        ({"hidden": (16, 0)}, "at least 1"),
        ({"epsilon": 2.0}, "epsilon is 2"),
        ({"search_accept": "always"}, "search_accept is 'always'"),
        ({"search_depth": 0.0}, "search_depth is 0"),
    ],
)
def test_wrong_knobs(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GFlowNet(TB, **wrong)


# -- convergence: the policy's exact law, in noise floors of 20,000 draws

EXPLORE: dict[str, dict[str, Any]] = {
    "on-policy": {},
    "replay": {"replay": "fifo", "capacity": 1000},
    "noise": {"epsilon": 0.2},
}
NAMES = [name for name in OBJECTIVES if not name.startswith("subtb-")]
SLOWER = {"db": (400, 0.1), "fl-db": (600, 0.1), "fl-subtb": (400, 0.1), "tb": (150, 0.1), "vargrad": (150, 0.1)}
WORLD = {"append": (300, 0.1), "any": (150, 0.2), "sets": (300, 0.1), "detours": (150, 0.2)}  # iterations, learning rate


def floors(world: str, name: str, iterations: int, rate: float, **knobs: Any) -> Tensor:
    """[S] Σ|p - R/Z| of the exact law of a trained policy, as a multiple of what 20,000 draws from R/Z are expected to show."""
    problem, dag = DagProblem(WORLDS[world], (0, 1), 32, iterations), DAGS[world]
    knobs = {"tabular": True, "log_z_rate": 0.3, **knobs}
    method = GFlowNet(OBJECTIVES[name], learning_rate=rate, final_rate=0.01, **knobs)
    state = run(method, problem)
    return l1_sum(exact_distribution(method, state, problem, dag), dag.target) / noise_floor(dag.target, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("explore", EXPLORE)
@pytest.mark.parametrize("name", NAMES)
def test_every_objective_arrives_at_the_law_of_a_grid(name: str, explore: str) -> None:
    assert floors("stop", name, *SLOWER.get(name, (250, 0.2)), **EXPLORE[explore]).max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLD)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mdb", "fm-smoothing")])
def test_and_of_strings_sets_and_detours(name: str, world: str) -> None:
    quick = name in ("vargrad", "soft-dqn", "munchausen")
    assert floors(world, name, *((150, 0.2) if quick else WORLD[world])).max() < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"backward": "learned"},
        {"backward": "maxent"},
        {"backward": "tlm"},
        {"temperature": 1.5},
        {"replay": "prioritised", "capacity": 500},
        {"search_rounds": 1},
        {"search_rounds": 1, "search_accept": "metropolis", "search_depth": 0.7},
        {"heads": 3},
    ],
    ids=str,
)
def test_and_so_does_every_way_to_explore_and_to_go_back(knobs: dict[str, Any]) -> None:
    assert floors("paper2021", "tb", 200, 0.1, **knobs).max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fm", "tb"])
def test_a_network_arrives_too(name: str) -> None:
    assert floors("stop", name, 500, 0.01, tabular=False, hidden=(64, 64)).max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tb", "vargrad", "soft-dqn"])
def test_without_a_backward_policy_the_law_is_missed_by_far(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """P_B = 1 everywhere: what many paths lead to is built too often."""
    none = cached_property(lambda flows: torch.zeros_like(flows.log_reward[None]).expand(flows.mask.shape))
    none.__set_name__(Flows, "log_pb")
    monkeypatch.setattr(Flows, "log_pb", none)
    assert floors("stop", name, 150, 0.2).min() > 20
