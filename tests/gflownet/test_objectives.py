"""Every objective: 0 with gradient 0 at the exact flow, equal to its formula elsewhere, and sensitive to known mistakes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Parents, Trajectories
from gflownet.flows.flows import Flows
from gflownet.objectives import Objective
from gflownet.objectives.detailed_balance import DetailedBalance
from gflownet.objectives.flow_matching import FlowMatching
from gflownet.objectives.forward_looking import ForwardLookingDB, ForwardLookingSubTB
from gflownet.objectives.modified_detailed_balance import ModifiedDetailedBalance
from gflownet.objectives.residuals import LOSSES
from gflownet.objectives.soft_dqn import SoftDQN
from gflownet.objectives.subtrajectory_balance import SubTrajectoryBalance
from gflownet.objectives.trajectory_balance import TrajectoryBalance
from gflownet.objectives.vargrad import VarGrad
from gflownet.trees.actions import DenseLogits
from tests.exact_flows import DAGS, WORLDS, N, S, Slow, draws, exact_theta, loss_and_gradient, model_for, wander

RESIDUALS: Any = ("squared", "huber", "shifted-cosh")
OBJECTIVES: dict[str, Any] = {
    "fm": FlowMatching(),
    "fm-smoothing": FlowMatching(smoothing=0.05, terminal_weight=3.0),
    "db": DetailedBalance(),
    "mdb": ModifiedDetailedBalance(),
    "tb": TrajectoryBalance(),
    "vargrad": VarGrad(),
    "subtb": SubTrajectoryBalance(),
    "subtb-0.1": SubTrajectoryBalance(0.1),
    "subtb-2": SubTrajectoryBalance(1.0),
    "fl-db": ForwardLookingDB(),
    "fl-subtb": ForwardLookingSubTB(),
    "soft-dqn": SoftDQN(),
    "munchausen": SoftDQN(munchausen=0.15),
}
BACKWARD = ("uniform", "maxent", "learned", "tlm")
each_objective = pytest.mark.parametrize("name", OBJECTIVES)
each_backward = pytest.mark.parametrize("backward", BACKWARD)
each_world = pytest.mark.parametrize("world", WORLDS)


def feasible(name: str, world: str) -> bool:
    """Modified DB needs a world where every state can be kept."""
    return name != "mdb" or hasattr(WORLDS[world], "stop")


def flows_at(theta: Tensor, env: Any, objective: Any, backward: str, tau: Trajectories, log_reward: Tensor) -> Flows:
    model, leaf = model_for(env, objective, backward), theta.clone().requires_grad_()
    return Flows(env, model, leaf, tau, log_reward, backward=backward, theta_target=theta)


def at_exact_flow(world: str, objective: Any, backward: str = "uniform", env: Any = None, roll: int = 0) -> Flows:
    """Journeys of the uniform policy under the exact flow of `world`; env: a wrong description of it."""
    right = WORLDS[world]
    theta = exact_theta(right, DAGS[world], model_for(right, objective, backward), objective, backward)
    tau, log_reward = wander(right)
    return flows_at(theta, env or right, objective, backward, tau, log_reward.roll(roll))


def is_zero(objective: Any, flows: Flows) -> bool:
    loss, gradient = loss_and_gradient(objective, flows)
    return bool(loss.abs().max() < 1e-12) and bool(gradient.abs().max() < 1e-12)


@each_backward
@each_world
@each_objective
def test_zero_at_the_exact_flow_and_nowhere_near(name: str, world: str, backward: str) -> None:
    if not feasible(name, world):
        pytest.skip("no stop action")
    objective = OBJECTIVES[name]
    flows = at_exact_flow(world, objective, backward)
    assert is_zero(objective, flows)
    log_z = objective.log_z(flows).detach()
    assert (log_z - DAGS[world].log_z).abs().max() < 1e-12
    away = flows.theta.detach() + 0.1 * draws(*flows.theta.shape, seed=9)
    loss, gradient = loss_and_gradient(objective, flows_at(away, flows.env, objective, backward, *wander(flows.env)))
    assert loss.min() > 1e-5
    assert gradient.abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("residual", RESIDUALS)
@each_objective
def test_zero_for_every_residual(name: str, residual: Any) -> None:
    objective = replace(OBJECTIVES[name], residual=residual)
    for world in ("stop", "paper2021"):
        assert is_zero(objective, at_exact_flow(world, objective))


def test_what_an_objective_cannot_do_it_says() -> None:
    for world in ("append", "sets", "detours"):
        with pytest.raises(ValueError, match="an environment with a `stop` action"):
            is_zero(OBJECTIVES["mdb"], at_exact_flow(world, OBJECTIVES["mdb"]))
    for name in ("fl-db", "fl-subtb", "mdb"):
        env = Wrong(WORLDS["stop"], without=("log_reward_partial",))
        with pytest.raises(ValueError, match=r"give the environment log_reward_partial\(obs\)"):
            is_zero(OBJECTIVES[name], at_exact_flow("stop", OBJECTIVES[name], env=env))
    with pytest.raises(ValueError, match=r"give the environment log_paths\(obs, terminated\)"):
        is_zero(OBJECTIVES["db"], at_exact_flow("stop", OBJECTIVES["db"], "maxent", Wrong(WORLDS["stop"], ("log_paths",))))
    for wrong, message in (
        (lambda: SubTrajectoryBalance(0.0), "decay is 0"),
        (lambda: ForwardLookingSubTB(math.inf), "decay is inf"),
        (lambda: FlowMatching(smoothing=-1.0), "smoothing is -1"),
        (lambda: FlowMatching(terminal_weight=math.nan), "terminal_weight is nan"),
        (lambda: SoftDQN(munchausen=1.0), "munchausen is 1"),
        (lambda: SoftDQN(clip=1.0), "clip is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# -- formulas, one trajectory at a time


def slow_loss(name: str, objective: Any, slow: Slow, target: Slow, walks: list[Any], log_z: float) -> float:
    rho = {"squared": lambda x: x * x, "huber": lambda x: x * x if abs(x) < 1 else 2 * abs(x) - 1}
    rho["shifted-cosh"] = lambda x: 2 * math.cosh(x) - 2
    loss = rho[objective.residual]
    R, F, pf, pb = slow.log_reward, slow.log_flow, slow.log_pf, slow.log_pb
    if name.startswith("fl"):
        partial = DETOURS.log_reward_partial(slow.dag.obs).tolist()
        F = lambda s: R(s) if slow.dag.terminated[s] else slow.log_flow(s) + partial[s]  # noqa: E731
    if name == "tb":
        return mean(loss(log_z + sum(map(pf, walk)) - R(walk[-1][2]) - sum(map(pb, walk))) for walk in walks)
    if name == "vargrad":
        zeta = [R(walk[-1][2]) + sum(map(pb, walk)) - sum(map(pf, walk)) for walk in walks]
        return mean(loss(z - mean(zeta)) for z in zeta)
    if name in ("db", "fl-db"):
        return mean(loss(F(e[0]) + pf(e) - F(e[2]) - pb(e)) for walk in walks for e in walk)
    if "subtb" in name:
        return mean(slow_pieces(loss, objective.decay, walk, F, pf, pb) for walk in walks)
    if name.startswith("fm"):
        entered = [e[2] for walk in walks for e in walk]
        return mean(slow_flow_matching(loss, objective, slow, s) for s in entered)
    assert name in ("soft-dqn", "munchausen")
    alpha = objective.munchausen
    lam = 1 / (1 - alpha)
    V = lambda s: R(s) if slow.dag.terminated[s] else lam * target.log_sum(s)  # noqa: E731
    y = lambda e: pb(e) + alpha * max(objective.clip, lam * target.log_pf(e)) + V(e[2])  # noqa: E731
    return mean(loss(lam * slow.edge_flow(e[0], e[1]) - y(e)) for walk in walks for e in walk)


def slow_pieces(loss: Any, decay: float, walk: list[Any], F: Any, pf: Any, pb: Any) -> float:
    total = weights = 0.0
    for i in range(len(walk)):
        for j in range(i + 1, len(walk) + 1):
            piece = walk[i:j]
            total += decay ** (j - i) * loss(F(piece[0][0]) + sum(map(pf, piece)) - F(piece[-1][2]) - sum(map(pb, piece)))
            weights += decay ** (j - i)
    return total / weights


def slow_flow_matching(loss: Any, objective: Any, slow: Slow, s: int) -> float:
    inflow = sum(math.exp(slow.edge_flow(e[0], e[1])) for e in slow.into[s])
    ended = bool(slow.dag.terminated[s])
    outflow = math.exp(slow.log_reward(s)) if ended else math.exp(slow.log_sum(s))
    delta = math.log(objective.smoothing + inflow) - math.log(objective.smoothing + outflow)
    return (objective.terminal_weight if ended else 1.0) * loss(delta)


def mean(xs: Any) -> float:
    xs = list(xs)
    return sum(xs) / len(xs)


DETOURS = WORLDS["detours"]
FORMULAS: dict[str, Any] = {name: objective for name, objective in OBJECTIVES.items() if name != "mdb"}
FORMULAS["munchausen-clipped"] = SoftDQN(munchausen=0.3, clip=-0.5)


@each_backward
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_one_trajectory_at_a_time(name: str, residual: Any, backward: str) -> None:
    """At a random θ, where nothing cancels."""
    objective, dag = replace(FORMULAS[name], residual=residual), DAGS["detours"]
    model, (tau, log_reward) = model_for(DETOURS, objective, backward), wander(DETOURS)
    theta, slower = draws(S, model.size, seed=1), draws(S, model.size, seed=2)
    flows = Flows(DETOURS, model, theta, tau, log_reward, backward=backward, theta_target=slower)
    for seed, loss in enumerate(objective.loss(flows)):
        slow, target = (
            Slow(dag, model, x[seed, :-1].view(len(dag), -1)[DETOURS.index(dag.obs)], backward) for x in (theta, slower)
        )
        walks = [slow.walk(tau, column) for column in range(seed * N, (seed + 1) * N)]
        assert len({len(walk) for walk in walks}) > 1  # of different lengths
        truth = slow_loss(name.removesuffix("-clipped"), objective, slow, target, walks, float(theta[seed, -1]))
        assert float(loss) == pytest.approx(truth, rel=1e-12)


@each_backward
@pytest.mark.parametrize("world", ["stop", "paper2021"])
def test_modified_detailed_balance_one_trajectory_at_a_time(world: str, backward: str) -> None:
    env, dag, objective = WORLDS[world], DAGS[world], ModifiedDetailedBalance()
    model, (tau, log_reward) = model_for(env, objective, backward), wander(env)
    theta = draws(S, model.size, seed=1)
    for seed, loss in enumerate(objective.loss(Flows(env, model, theta, tau, log_reward, backward=backward))):
        slow = Slow(dag, model, theta[seed, :-1].view(env.n_states, -1)[env.index(dag.obs)], backward)
        R = env.log_reward(dag.obs).tolist()
        stop = {e[0]: slow.log_pf(e) for e in slow.edges if e[1] == env.stop}  # an object is kept for certain
        steps = [e for c in range(seed * N, (seed + 1) * N) for e in slow.walk(tau, c) if e[1] != env.stop]
        delta = [
            R[t] + slow.log_pb((s, a, t)) + stop[s] - R[s] - slow.log_pf((s, a, t)) - stop.get(t, 0.0) for s, a, t in steps
        ]
        assert float(loss) == pytest.approx(mean(x * x for x in delta), rel=1e-12)


def test_vargrad_is_the_variance_over_the_batch() -> None:
    tau, log_reward = wander(DETOURS)
    model = model_for(DETOURS, VarGrad(), "uniform")
    flows = Flows(DETOURS, model, draws(S, model.size), tau, log_reward)
    zeta = flows.log_reward + flows.log_pb.sum(0) - flows.log_pf.sum(0)
    assert torch.allclose(VarGrad().loss(flows), zeta.var(1, correction=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_residuals_have_curvature_two_and_grow_no_faster_than_they_should(residual: str) -> None:
    loss = LOSSES[residual]
    x = torch.tensor([-1e-6, 0.0, 1e-6], dtype=torch.float64)
    assert torch.allclose(loss(x), x**2, rtol=1e-9, atol=0)
    ends = torch.tensor([-1e20, -50.0, 50.0, 1e20], requires_grad=True)
    value = loss(ends)
    (slope,) = torch.autograd.grad(value[1:3].sum(), ends)
    assert torch.isfinite(value[1:3]).all()
    assert slope[1] == -slope[2] < 0
    if residual != "squared":
        assert torch.isfinite(value).all()


# -- gradients


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("backward", ["uniform", "learned"])
@each_objective
def test_gradients_are_those_of_finite_differences(name: str, residual: Any, backward: str) -> None:
    world = "detours" if feasible(name, "detours") else "paper2021"
    env, objective = WORLDS[world], replace(OBJECTIVES[name], residual=residual)
    model, (tau, log_reward) = model_for(env, objective, backward), wander(env, n=8)
    theta, slower = draws(S, model.size, seed=1), draws(S, model.size, seed=2)
    if isinstance(objective, SoftDQN):  # P_B is a reward there, and teaches nothing
        backward = "uniform"

    def loss(theta: Tensor) -> Tensor:
        return objective.loss(Flows(env, model, theta, tau, log_reward, backward=backward, theta_target=slower))

    assert torch.autograd.gradcheck(loss, theta.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_the_loss_of_a_network_does_not_move_a_backward_policy_with_a_loss_of_its_own() -> None:
    objective, tlm, learned = TrajectoryBalance(), *(model_for(DETOURS, TrajectoryBalance(), b) for b in ("tlm", "learned"))
    theta, (tau, log_reward) = draws(S, tlm.size), wander(DETOURS)
    for backward, model, moves in (("tlm", tlm, False), ("learned", learned, True)):
        flows = Flows(DETOURS, model, theta.clone().requires_grad_(), tau, log_reward, backward=backward)
        gradient = loss_and_gradient(objective, flows)[1][:, :-1].view(S, DETOURS.n_states, -1)
        assert bool(gradient[..., -model.actions :].any()) == moves


# -- negative controls: what has been wrong in other people's code must not pass


class Wrong:
    """An environment with some members missing and others changed."""

    def __init__(self, env: Any, without: tuple[str, ...] = (), **changed: Any) -> None:
        self._env, self._without, self._changed = env, without, changed

    def __getattr__(self, name: str) -> Any:
        if name in self._changed:
            return self._changed[name]
        if name in self._without:
            raise AttributeError(name)
        return getattr(self._env, name)


def with_parents(env: Any, change: Callable[[Parents], Parents]) -> Wrong:
    return Wrong(env, ("edges_in",), parents=lambda obs, terminated: change(env.parents(obs, terminated)))


def one_missing(p: Parents) -> Parents:
    """The first of a state that has two."""
    several = p.child.bincount()[p.child] > 1
    first = torch.ones_like(several)
    order = p.child.argsort(stable=True)
    first[order[1:]] = p.child[order[1:]] != p.child[order[:-1]]
    keep = ~(several & first)
    return Parents(p.child[keep], p.obs[keep], p.action[keep])


def one_spurious(p: Parents) -> Parents:
    """The first action of the source leads to every state that has parents."""
    child = torch.unique(p.child)
    new = ~torch.isin(child, p.child[(p.action == 0) & (p.obs == p.obs * 0).reshape(len(p.obs), -1).all(1)])
    child = child[new]
    obs = torch.zeros_like(p.obs[: len(child)])
    return Parents(torch.cat([p.child, child]), torch.cat([p.obs, obs]), torch.cat([p.action, torch.zeros_like(child)]))


def one_for_each_action(p: Parents) -> Parents:
    """Edges kept in a table [child, action]: of two parents by the same action one is lost."""
    cells = {(c, a): i for i, (c, a) in enumerate(zip(p.child.tolist(), p.action.tolist(), strict=True))}
    keep = torch.tensor(sorted(cells.values()), dtype=torch.int64)
    return Parents(p.child[keep], p.obs[keep], p.action[keep])


@pytest.mark.parametrize("world", ["stop", "paper2021", "any", "sets", "detours"])
@pytest.mark.parametrize("change", [one_missing, one_spurious])
@pytest.mark.parametrize("name", ["fm", "fm-smoothing", "db", "tb", "vargrad", "subtb", "fl-db", "soft-dqn"])
def test_parents_missing_or_spurious(name: str, change: Any, world: str) -> None:
    if name == "vargrad" and world in ("any", "sets"):
        pytest.skip("a factor common to all trajectories is part of the Z that it does without")
    env = with_parents(WORLDS[world], change)
    assert not is_zero(OBJECTIVES[name], at_exact_flow(world, OBJECTIVES[name], env=env))


def test_edges_keyed_by_child_and_action() -> None:
    """Right where actions can be inverted, wrong where two parents reach a child by the same one."""
    for name in ("fm", "db", "tb", "subtb"):
        objective = OBJECTIVES[name]
        for world, right in (("stop", True), ("any", True), ("sets", True), ("detours", False)):
            env = with_parents(WORLDS[world], one_for_each_action)
            assert is_zero(objective, at_exact_flow(world, objective, env=env)) == right


@pytest.mark.parametrize("world", ["stop", "paper2021", "detours"])
@pytest.mark.parametrize("name", ["fm", "fm-smoothing", "db", "tb", "vargrad", "subtb", "fl-db", "fl-subtb", "soft-dqn"])
def test_rewards_of_another_trajectory(name: str, world: str) -> None:
    assert not is_zero(OBJECTIVES[name], at_exact_flow(world, OBJECTIVES[name], roll=1))


class LastIndex(Flows):
    """The log-reward stands at the last index of the batch, not at each trajectory's own end."""

    def end_with_reward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.log_reward[None]])


@pytest.mark.parametrize("name", ["db", "subtb", "fl-db", "fl-subtb", "soft-dqn", "munchausen"])
def test_rewards_at_the_wrong_end_when_lengths_differ(name: str) -> None:
    objective = OBJECTIVES[name]
    for world, right in (("sets", True), ("stop", False), ("detours", False)):  # sets: all are of one length
        f = at_exact_flow(world, objective)
        wrong = LastIndex(f.env, f.model, f.theta, f.tau, f.log_reward.flatten(), theta_target=f.theta.detach())
        assert is_zero(objective, wrong) == right


@pytest.mark.parametrize("name", ["db", "tb", "vargrad", "subtb", "fl-db", "soft-dqn"])
def test_the_stop_edge_counted_among_the_edges_into_the_cell(name: str) -> None:
    right = WORLDS["stop"]
    env = Wrong(right, edges_in=lambda obs, terminated: right.edges_in(obs, terminated & False))
    assert not is_zero(OBJECTIVES[name], at_exact_flow("stop", OBJECTIVES[name], env=env))


@pytest.mark.parametrize("world", ["stop", "any", "sets", "detours"])
def test_what_is_invalid_leaks_out_of_flow_matching(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `detours` the source cannot be kept, nor state 1 left by action 1; in grids and sets what is full takes no more."""
    objective = OBJECTIVES["fm"]
    assert is_zero(objective, at_exact_flow(world, objective))
    total = DenseLogits.total.func
    leaky = property(lambda moves: total(DenseLogits(moves.given, torch.ones_like(moves.given, dtype=torch.bool))))
    monkeypatch.setattr(DenseLogits, "total", leaky)
    assert not is_zero(objective, at_exact_flow(world, objective))


def test_objectives_are_objectives() -> None:
    assert all(isinstance(objective, Objective) for objective in OBJECTIVES.values())
