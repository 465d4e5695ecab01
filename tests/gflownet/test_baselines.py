"""Baselines of GFlowNets, each against its exact distribution, gradient or transition kernel."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.dag.bits import Bits
from envs.dag.enumeration import Enumeration, enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.dag.sets import Sets
from envs.pytree import tensors_of
from envs.random import Rng
from gflownet.baselines.metropolis import Metropolis, log_acceptance
from gflownet.baselines.ppo import PPO, Steps, advantages, clipped, entropy
from gflownet.baselines.soft_pg import SoftPolicyGradient, leave_one_out, surrogate
from gflownet.baselines.uniform import Uniform
from gflownet.evaluation import exact_distribution
from gflownet.flows.flows import Flows
from gflownet.metrics import l1_sum, noise_floor, total_variation
from gflownet.objectives.vargrad import VarGrad
from gflownet.problem import DagProblem, Method
from tests.dags import crossing

F64 = torch.float64


def run(method: Any, problem: DagProblem, iterations: int) -> tuple[Any, list[Any]]:
    state, outcomes = method.init(problem), []
    for t in range(iterations):
        state, outcome = method.step(state, problem, t)
        outcomes.append(outcome)
    return state, outcomes


METHODS = [
    Uniform(),
    Metropolis(),
    PPO(hidden=(16,), updates=4, learning_rate=1e-2),
    SoftPolicyGradient(hidden=(16,), learning_rate=1e-2),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
class TestEveryMethod:
    def test_is_a_method_that_counts_what_it_visits(self, method: Method) -> None:
        problem = DagProblem(HyperGrid(2, 8), seeds=(3, 4), batch_size=8)
        state, outcomes = run(method, problem, 3)
        assert isinstance(method, Method)
        for outcome in outcomes:
            assert outcome.objects.shape == (2, 8, 2)
            worth = problem.env.log_reward(outcome.objects.flatten(0, 1)).view(2, 8)
            assert torch.equal(outcome.log_reward, worth)
            assert not outcome.fault
            assert all(torch.as_tensor(x).isfinite().all() for x in outcome.metrics.values())
        log_z = method.log_z(state)
        assert log_z is None or log_z.shape == (2,)

    def test_the_same_seeds_give_the_same_bytes(self, method: Method) -> None:
        problem = DagProblem(HyperGrid(2, 8), seeds=(3, 4), batch_size=8)
        (a, one), (b, two) = run(method, problem, 4), run(method, problem, 4)
        for first, second in zip(one, two, strict=True):
            assert torch.equal(first.objects, second.objects)
            assert all(torch.equal(first.metrics[k], second.metrics[k]) for k in first.metrics)
        first_state, second_state = tensors_of(a), tensors_of(b)
        assert all(torch.equal(x, second_state[name]) for name, x in first_state.items())

    def test_a_seed_alone_does_what_it_does_in_company(self, method: Method) -> None:
        problem = DagProblem(HyperGrid(2, 8), seeds=(3, 4, 5), batch_size=8, dtype=F64)
        state, together = run(method, problem, 4)
        lone, alone = run(method, replace(problem, seeds=(4,)), 4)
        for one, three in zip(alone, together, strict=True):
            assert torch.equal(one.objects[0], three.objects[1])
        law, lone_law = (law_or_none(method, s, p) for s, p in ((state, problem), (lone, replace(problem, seeds=(4,)))))
        if law is not None and lone_law is not None:
            assert torch.allclose(law[1], lone_law[0], atol=1e-12)
            assert not torch.allclose(law[1], law[0], atol=1e-3) or isinstance(method, Uniform)

    def test_where_torch_steps_the_world(self, method: Method) -> None:
        if isinstance(method, Metropolis):
            return
        method = replace(method, hidden=(8,)) if hasattr(method, "hidden") else method  # type: ignore[type-var]
        _, outcomes = run(method, DagProblem(crossing(), seeds=(0, 1), batch_size=5), 2)
        assert set(outcomes[-1].objects.flatten().tolist()) <= {4, 5}


def law_or_none(method: Method, state: Any, problem: DagProblem) -> Tensor | None:
    return None if isinstance(method, Metropolis) else exact_distribution(method, state, problem, enumerate_dag(problem.env))


# -- uniform


def test_uniform_moves_have_the_law_of_their_policy() -> None:
    problem = DagProblem(HyperGrid(2, 4), seeds=(0,), batch_size=20_000)
    dag = enumerate_dag(problem.env)
    state, (outcome,) = run(Uniform(), problem, 1)
    law = exact_distribution(Uniform(), state, problem, dag)[0]
    counts = dag.object_of(outcome.objects[0]).bincount(minlength=len(law))
    z = (counts - 20_000 * law) / (20_000 * law * (1 - law)).sqrt()
    assert float(z.abs().max()) < 4.5
    assert abs(float(law.sum()) - 1) < 1e-12


# -- Metropolis


@dataclass
class Given:
    """Stands for an Rng whose uniform numbers are known."""

    u: Tensor

    def uniform(self, *shape: int) -> Tensor:
        assert self.u.shape[1:] == shape
        return self.u


def middles(n: int) -> list[float]:
    return [(k + 0.5) / n for k in range(n)]


WORLDS: dict[str, tuple[Any, Tensor]] = {  # every equally likely outcome of the uniform numbers that a proposal draws
    "stop": (HyperGrid(2, 8), torch.tensor(middles(4), dtype=F64)),
    "paper2021": (HyperGrid(2, 8, convention="paper2021"), torch.tensor(middles(4), dtype=F64)),
    "sets": (Sets(4, 2, scale=2.0), torch.tensor(list(itertools.permutations(middles(4))), dtype=F64)),
    "full set": (Sets(3, 3), torch.tensor([middles(3)], dtype=F64)),
    "bits": (Bits(6, 2, n_modes=3), torch.tensor(middles(6), dtype=F64)),
}


def kernel(env: Any, dag: Enumeration, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The chain's transition matrix [K, K] and the mean acceptance from each object [K], both exact."""
    objects, K = dag.obs[dag.objects], len(dag.objects)
    here = torch.arange(K)
    moves, mean = torch.zeros(K, K, dtype=F64), torch.zeros(K, dtype=F64)
    for u in draws:
        proposed, log_ratio = env.propose(objects, Given(u.expand(K, *u.shape)))
        there = dag.object_of(proposed)
        a = log_acceptance(dag.log_reward, env.log_reward(proposed), log_ratio).exp() / len(draws)
        moves.index_put_((here, there), a, accumulate=True)
        mean += a
    return moves + torch.diag(1 - mean), mean


@pytest.mark.parametrize("name", WORLDS)
def test_metropolis_leaves_the_law_as_it_is_and_nothing_else(name: str) -> None:
    env, draws = WORLDS[name]
    dag = enumerate_dag(env)
    P, accepted = kernel(env, dag, draws)
    flow = dag.target[:, None] * P
    assert float((flow - flow.T).abs().max()) < 1e-15  # detailed balance
    assert float((dag.target @ P - dag.target).abs().max()) < 1e-14
    assert total_variation(torch.linalg.matrix_power(P, 10_000)[0], dag.target) < 1e-6  # from anywhere: no second law
    if len(dag.target) > 1:
        wrong = dag.target * accepted
        assert total_variation(wrong / wrong.sum(), dag.target) > 0.01


def test_chains_reach_the_law() -> None:
    env, n, iterations = HyperGrid(2, 8), 1000, 1200
    dag = enumerate_dag(env)
    P, accepted = kernel(env, dag, WORLDS["stop"][1])
    start = exact_distribution(Uniform(), None, DagProblem(env, seeds=(0,)), dag)[0]
    _, outcomes = run(Metropolis(), DagProblem(env, seeds=(0, 1), batch_size=n), iterations)
    for t in (0, 30, iterations - 1):  # all chains at one time are independent draws
        law = start @ torch.linalg.matrix_power(P, t)
        counts = dag.object_of(outcomes[t].objects.flatten(0, 1)).bincount(minlength=64).double()
        rare = 2 * n * law < 5
        z = ((counts - 2 * n * law) / (2 * n * law).sqrt())[~rare]
        assert abs(float((z**2).sum()) - len(z)) / math.sqrt(2 * len(z)) < 4.5
        assert 0.6 < l1_sum(counts / (2 * n), law) / noise_floor(law, 2 * n) < 1.4
    assert total_variation(law, dag.target) < 1e-3
    share = float(torch.stack([o.metrics["train/acceptance"] for o in outcomes[-20:]]).mean())
    assert abs(share - float((dag.target * accepted).sum())) < 4.5 * 0.5 / math.sqrt(2 * n)
    # negative control: recording only the chains that moved
    right, wrong = torch.zeros(64, dtype=F64), torch.zeros(64, dtype=F64)
    for before, after in itertools.pairwise(outcomes[-300:]):
        changed = (before.objects != after.objects).any(-1)
        wrong += dag.object_of(after.objects[changed]).bincount(minlength=64)
        right += dag.object_of(after.objects.flatten(0, 1)).bincount(minlength=64)
    assert l1_sum(right / right.sum(), dag.target) < 0.05
    assert l1_sum(wrong / wrong.sum(), dag.target) > 0.5


@pytest.mark.parametrize(
    ("R0", "bias", "mass", "true_mass"), [(0.1, 0.19, 0.013, 0.0826), (0.01, 0.42, 0.040, 0.2445), (0.001, 0.50, 0.056, 0.3072)]
)
def test_recording_accepted_moves_only_is_biased_as_measured(R0: float, bias: float, mass: float, true_mass: float) -> None:
    """The paper's chain walks on 4,096 cells; its metric keeps the 3,773 that a GFlowNet reaches."""
    env = HyperGrid(4, 8, R0=R0)
    cells = torch.cartesian_prod(*[torch.arange(8)] * 4)
    log_reward = env.log_reward(cells)
    mean = torch.zeros(len(cells), dtype=F64)
    for u in middles(8):
        proposed, log_ratio = env.propose(cells, Given(torch.full((len(cells),), u)))  # type: ignore[arg-type]
        mean += log_acceptance(log_reward, env.log_reward(proposed), log_ratio).exp() / 8
    kept = HyperGrid(4, 8, convention="paper2021").reachable(cells)
    assert int(kept.sum()) == 3773
    law, recorded = log_reward.exp()[kept], (log_reward.exp() * mean)[kept]
    law, recorded = law / law.sum(), recorded / recorded.sum()
    modes = env.modes(cells[kept]) >= 0
    assert float(l1_sum(law, recorded)) == pytest.approx(bias, abs=0.006)
    assert float(recorded[modes].sum()) == pytest.approx(mass, abs=0.0006)
    assert float(law[modes].sum()) == pytest.approx(true_mass, abs=0.0001)


def test_metropolis_says_what_an_environment_lacks() -> None:
    with pytest.raises(ValueError, match=r"TableDag has no proposals between objects.*propose"):
        Metropolis().init(DagProblem(crossing(), seeds=(0,)))


# -- PPO


def played(method: PPO, problem: DagProblem, seed: int = 0) -> tuple[Any, Tensor, Steps]:
    """A batch of steps under random parameters."""
    model = method.model(problem)
    theta = torch.randn(len(problem.seeds), model.size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    tau = problem.play(sampler_of(problem, model, theta), problem.rng(1))
    return model, theta, method.steps(model, theta, tau, problem.env.log_reward(tau.last))  # type: ignore[arg-type]


def sampler_of(problem: DagProblem, model: Any, theta: Tensor) -> Any:
    from gflownet.sampling.sampler import sampler

    return sampler(problem.env, model, theta, problem.batch_size)


def test_advantages() -> None:
    value = torch.tensor([[1.0, 2.0], [3.0, 9.0], [5.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    reward = torch.tensor([10.0, 4.0])
    assert advantages(value, mask, reward, 0.0).tolist() == [[2.0, 2.0], [2.0, 0.0], [5.0, 0.0]]
    assert advantages(value, mask, reward, 1.0).tolist() == [[9.0, 2.0], [7.0, 0.0], [5.0, 0.0]]
    assert advantages(value, mask, reward, 0.5).tolist() == [[2.0 + 1.0 + 1.25, 2.0], [4.5, 0.0], [5.0, 0.0]]


def test_the_clipped_objective_starts_as_the_policy_gradient() -> None:
    method = PPO(tabular=True, entropy=0.0, value_weight=0.0, trace=1.0)
    problem = DagProblem(HyperGrid(2, 4), seeds=(0, 1), batch_size=8, dtype=F64)
    model, theta, steps = played(method, problem)
    batch = steps.draw(Rng.of_seeds([0, 1]).uniform(50))
    theta.requires_grad_()
    log_pf = model.log_pf(theta, batch.obs, batch.valid)[0].gather(2, batch.action[..., None])[..., 0]
    (plain,) = torch.autograd.grad((batch.advantage * log_pf).mean(1).sum(), theta)
    (ours,) = torch.autograd.grad(method.loss(model, theta, batch).sum(), theta)
    assert torch.allclose(ours, -plain, atol=1e-14)
    assert float(plain.abs().max()) > 1e-3


def test_there_is_no_gain_beyond_the_clip() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(clipped(ratio, torch.tensor([2.0, -2.0, 2.0, -2.0]), 0.2).sum(), ratio)
    assert gradient.tolist() == [0.0, -2.0, 2.0, 0.0]


def test_only_steps_that_were_taken_are_learned_from() -> None:
    problem = DagProblem(HyperGrid(2, 4), seeds=(0, 1), batch_size=8, dtype=F64)
    _, _, steps = played(PPO(tabular=True), problem)
    assert int(steps.taken.min()) < steps.order.shape[1]
    every = steps.draw(torch.linspace(0, 1, 4001, dtype=F64).expand(2, -1))
    for seed in range(2):
        drawn = set(map(tuple, torch.cat([every.obs[seed], every.action[seed][:, None]], 1).tolist()))
        real = steps.order[seed, : int(steps.taken[seed])]
        assert drawn == set(map(tuple, torch.cat([steps.obs[seed], steps.action[seed][:, None]], 1)[real].tolist()))


def test_entropy_with_invalid_actions() -> None:
    logits = torch.tensor([[0.0, 0.0, 7.0], [1.0, 2.0, 3.0]], dtype=F64, requires_grad=True)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    log_pf = torch.log_softmax(torch.where(valid, logits, -torch.inf), -1)
    h = entropy(log_pf, valid)
    expected = torch.distributions.Categorical(logits=logits[1].detach()).entropy()
    assert torch.allclose(h, torch.stack([torch.tensor(math.log(2), dtype=F64), expected]))
    (gradient,) = torch.autograd.grad(h.sum(), logits)
    assert gradient.isfinite().all()


def test_ppo_learns() -> None:
    method = PPO(hidden=(32,), learning_rate=3e-3, entropy=0.01, updates=16, minibatch=64)
    _, outcomes = run(method, DagProblem(HyperGrid(2, 8), seeds=(0, 1), batch_size=32), 60)
    means = torch.stack([o.log_reward.exp().mean(1) for o in outcomes])
    assert bool((means[-5:].mean(0) > 2 * means[:5].mean(0)).all())


# -- the soft policy gradient


def all_paths(env: Any) -> Tensor:
    """Every sequence of actions that ends an episode, [T, N], padded with 0."""
    dag = enumerate_dag(env)
    moves: dict[int, list[tuple[int, int]]] = {}
    for parent, action, child in zip(dag.parent.tolist(), dag.action.tolist(), dag.child.tolist(), strict=True):
        moves.setdefault(parent, []).append((action, child))
    ends, open_paths = [], [((), 0)]
    while open_paths:
        path, row = open_paths.pop()
        for action, child in moves[row]:
            if bool(dag.terminated[child]):
                ends.append((*path, action))
            else:
                open_paths.append(((*path, action), child))
    T = max(map(len, ends))
    return torch.tensor([path + (0,) * (T - len(path)) for path in ends]).T


def test_the_soft_policy_gradient_is_that_of_the_divergence() -> None:
    """All trajectories, and all pairs of them as batches of two."""
    from gflownet.sampling.replay import replayed

    env = HyperGrid(2, 3)
    paths = all_paths(env)
    N = paths.shape[1]
    problem = DagProblem(env, seeds=(0,), batch_size=N, dtype=F64)
    method = SoftPolicyGradient(tabular=True)
    model = method.model(problem)
    theta = torch.randn(1, model.size, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_()
    tau = replayed(problem, paths)
    assert bool(tau.terminated.all())
    assert tau.last is not None
    flows = Flows(env, model, theta, tau, env.log_reward(tau.last))
    log_pf, log_pb = flows.log_pf.sum(0)[0], flows.log_pb.sum(0)[0]
    zeta = flows.log_reward[0] + log_pb - log_pf
    p = log_pf.exp()
    assert abs(float(p.detach().sum()) - 1) < 1e-12
    log_z = enumerate_dag(env).log_z
    assert abs(float((flows.log_reward[0] + log_pb).exp().sum().log()) - log_z) < 1e-12  # P_B sums to 1

    def slope(y: Tensor) -> Tensor:
        return torch.autograd.grad(y, theta, retain_graph=True)[0]

    exact = slope((p * (log_z - zeta)).sum())
    i, j = torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij")
    pairs = torch.stack([i.flatten(), j.flatten()], 1)
    chance = p.detach()[pairs].prod(1)
    assert torch.allclose(slope((chance * surrogate(log_pf[pairs], zeta[pairs])).sum()), exact, atol=1e-10)
    greedy = (flows.log_reward[0] + log_pb).expand(N)  # negative control: without the entropy
    assert not torch.allclose(slope((chance * surrogate(log_pf[pairs], greedy[pairs])).sum()), exact, atol=1e-3)
    biased = -(chance * ((zeta.detach()[pairs] - zeta.detach()[pairs].mean(1, keepdim=True)) * log_pf[pairs]).mean(1)).sum()
    assert not torch.allclose(slope(biased), exact, atol=1e-3)  # negative control: a baseline that includes the trajectory


def test_the_soft_policy_gradient_is_vargrads() -> None:
    problem = DagProblem(HyperGrid(2, 4), seeds=(0, 1), batch_size=6, dtype=F64)
    model = SoftPolicyGradient(tabular=True).model(problem)
    theta = torch.randn(2, model.size, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_()
    tau = problem.play(sampler_of(problem, model, theta), problem.rng(1))
    assert tau.last is not None
    flows = Flows(problem.env, model, theta, tau, problem.env.log_reward(tau.last))
    log_pf = flows.log_pf.sum(0)
    (soft,) = torch.autograd.grad(
        surrogate(log_pf, flows.log_reward + flows.log_pb.sum(0) - log_pf).sum(), theta, retain_graph=True
    )
    (vargrad,) = torch.autograd.grad(VarGrad().loss(flows).sum(), theta)
    assert torch.allclose(soft, vargrad * 6 / (2 * 5), atol=1e-12)


def test_leave_one_out() -> None:
    assert leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]
    with pytest.raises(ValueError, match="batch_size is 1"):
        SoftPolicyGradient().init(DagProblem(HyperGrid(2, 4), seeds=(0,), batch_size=1))


@pytest.mark.parametrize("backward", ["uniform", "maxent"])
def test_the_soft_policy_gradient_finds_the_law(backward: Any) -> None:
    problem = DagProblem(HyperGrid(2, 4), seeds=(0, 1), batch_size=64)
    dag = enumerate_dag(problem.env)
    method = SoftPolicyGradient(tabular=True, learning_rate=0.05, backward=backward)
    state, _ = run(method, problem, 250)
    assert float(total_variation(exact_distribution(method, state, problem, dag), dag.target).max()) < 0.03
    assert float((method.log_z(state) - dag.log_z).abs().max()) < 0.05


# -- an update that cannot be made


def test_a_seed_whose_gradient_is_not_finite_sits_out() -> None:
    problem, method = DagProblem(HyperGrid(2, 4), seeds=(0, 1), batch_size=8), PPO(tabular=True, updates=2)
    state = method.init(problem)
    state.theta[1] = 1e38  # the value's square overflows
    before = state.theta.clone()
    _, outcome = method.step(state, problem, 0)
    assert outcome.fault["fine"].tolist() == [True, False]
    assert outcome.fault["action"].shape == outcome.fault["mask"].shape
    assert not torch.equal(state.theta[0], before[0])
    assert torch.equal(state.theta[1], before[1])
    assert state.adam.skipped.tolist() == [0, 2]


def test_knobs_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clip is 0\.0, expected a finite number above 0"):
        PPO(clip=0.0)
    with pytest.raises(ValueError, match="backward is 'tlm'"):
        SoftPolicyGradient(backward="tlm")  # type: ignore[arg-type]
