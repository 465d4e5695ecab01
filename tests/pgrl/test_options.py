"""HARPG with a batch size of its own for the correction and a q for each episode: exact means, counting, streams of seeds."""

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import pgrl.enumeration as enumeration
from envs.core import EnvironmentFault
from envs.mdp.lqr import double_integrator
from envs.mdp.tabular import gridworld
from experiments.pg.train import PGTraining, step
from pgrl.agent import Transport, World
from pgrl.agents.harpg import HARPG
from pgrl.agents.n_harpg import NHARPG
from pgrl.baselines import Baseline, Fitted, LeaveOneOut, NoBaseline, baseline_for
from pgrl.check import exact_bias, verdict
from pgrl.enumeration import Outcomes, TinyMDP, enumerated, tiny_mdps
from pgrl.gradients import Estimator
from pgrl.policy import policy_for
from pgrl.problem import Problem

F64 = torch.float64
OPTIONS: list[dict[str, Any]] = [
    {"hvp_batch_size": 1},
    {"hvp_batch_size": 2},
    {"hvp_batch_size": 3},
    {"q_per_episode": True},
    {"hvp_batch_size": 2, "q_per_episode": True},
]


def named(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


@pytest.mark.parametrize(
    ("make", "options"), [*((NHARPG, options) for options in OPTIONS), (HARPG, OPTIONS[-1]), (HARPG, OPTIONS[1])]
)
def test_the_direction_is_unbiased(make: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration, "ROWS", 50_000)
    agent = make(step_size=0.2, eta=0.5, **options)
    assert agent.unbiased
    found = {case.name: case.biases for case in exact_bias(agent)}
    assert max(b for biases in found.values() for b in biases) < 1e-12
    assert all(len(found[name]) > 1 for name in ("arms", "pairs"))


# the same with the baselines, in both forms of B


def fitted_on(baseline: Baseline, mdp: TinyMDP) -> Fitted:
    """A fit on all trajectories of an MDP, whatever their probabilities: an earlier iteration."""
    fitted = baseline.init(1)
    for _ in range(5):
        fitted = baseline.fit(fitted, mdp.trajectories, 1)
    return fitted


CASES = [
    (options, name)
    for name in ("none", "leave-one-out", "time", "value", "value-net")
    for options in ({}, *OPTIONS[1:])
    if name != "leave-one-out" or options.get("hvp_batch_size") != 3  # too many outcomes
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("options", "name"), CASES)
def test_baselines_and_the_causal_form_leave_the_mean(
    options: dict[str, Any], name: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enumeration, "ROWS", 200_000)
    chain, pairs, _ = tiny_mdps()
    short = dataclasses.replace(chain, horizon=2 if options.get("hvp_batch_size", 1) > 1 else 3)
    mdp = pairs if name == "leave-one-out" else short
    made = baseline_for(name, discount=mdp.discount, horizon=mdp.horizon, observation_size=1, n_states=len(mdp.move))

    class Estimates(Outcomes):
        """`Outcomes` with this form of B and this baseline."""

        fitted: ClassVar[Fitted] = fitted_on(made, mdp)

        def _of(self, tau: Any) -> tuple[Estimator, Tensor | None]:
            rows = len(self.weight)
            fitted = {key: x.expand(rows, *x.shape[1:]) for key, x in self.fitted.items()}
            return Estimator(self.policy, self.discount, causal), made.predict(fitted, tau, rows)

        def gradient(self, theta: Tensor, tau: Any) -> Tensor:
            estimator, b = self._of(tau)
            return estimator.gradient(theta, tau, b)

        def hessian_vector(self, theta: Tensor, tau: Any, u: Tensor) -> Tensor:
            estimator, b = self._of(tau)
            return estimator.hessian_vector(theta, tau, u, b)

    agent = NHARPG(step_size=0.75, eta=0.5, **options)
    for here in enumerated(agent, mdp, Estimates, iterations=2):
        truth = mdp.gradient(here.before.theta)
        off = (here.history @ (here.mean_d - truth)).norm() / (here.history @ truth).norm()
        assert float(off) < 1e-12
    assert here.t == 1


# negative controls


class OfTheMean(NHARPG):
    """θ^ at the mean of the q_i: no uniform number."""

    def step(self, state: Transport, world: World) -> tuple[Transport, Any]:
        return super().step(state, MeanQ(world))  # type: ignore[arg-type]


class MeanQ:
    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def uniform(self, m: int = 1) -> Tensor:
        return self.world.uniform(m).mean(1, keepdim=True).expand(-1, m)


class Turned(NHARPG):
    """The episode of θ^_i with the Hessian of θ^_{i+1}."""

    def step(self, state: Transport, world: World) -> tuple[Transport, Any]:
        return super().step(state, Elsewhere(world))  # type: ignore[arg-type]


class Elsewhere(MeanQ):
    def uniform(self, m: int = 1) -> Tensor:
        return self.world.uniform(m)

    def hessian_vector(self, theta: Tensor, tau: Any, u: Tensor) -> Tensor:
        rows = len(self.world.weight)  # type: ignore[attr-defined]
        return self.world.hessian_vector(theta.reshape(rows, -1, theta.shape[1]).roll(1, 1).reshape(theta.shape), tau, u)


class Counted(NHARPG):
    """The sum over the correction's episodes, divided by the batch size of the gradient."""

    def step(self, state: Transport, world: World) -> tuple[Transport, Any]:
        return super().step(state, Summed(world))  # type: ignore[arg-type]


class Summed(Elsewhere):
    def hessian_vector(self, theta: Tensor, tau: Any, u: Tensor) -> Tensor:
        n = tau.mask.shape[1] // len(self.world.weight)  # type: ignore[attr-defined]
        return self.world.hessian_vector(theta, tau, u) * n / self.world.batch_size


@pytest.mark.parametrize("wrong", [OfTheMean, Turned, Counted])
def test_wrong_batches_of_the_correction_are_found(wrong: Any) -> None:
    options = {"hvp_batch_size": 2, "q_per_episode": wrong is not Counted}
    for agent, right in ((wrong, False), (NHARPG, True)):
        claims = {claim.line: claim.holds for claim in verdict(agent(0.2, eta=0.5, **options))}
        assert claims == {"start": True, "bias": right}


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_equal_qs_are_one_q(hidden: tuple[int, ...]) -> None:
    """The same episodes at the same points: m products of one episode each are one product of m episodes."""

    class SameQ(Elsewhere):
        def uniform(self, m: int = 1) -> Tensor:
            return torch.full((3, m), 0.3, dtype=F64)

        hessian_vector = property(lambda self: self.world.hessian_vector)  # type: ignore[assignment]

    env = double_integrator()
    world = Problem(env, policy_for(env, hidden=hidden, dtype=F64), 0.95, (0, 1, 2), 20, 2, causal=True)
    found = []
    for each in (False, True):
        agent = HARPG(1e-3, eta=0.5, hvp_batch_size=4, q_per_episode=each)
        state, _ = agent.step(agent.init(world.theta()), world.iteration(0))
        found.append(agent.step(state, SameQ(world.iteration(1)))[0].d)  # type: ignore[arg-type]
    assert torch.allclose(*found, rtol=1e-10)


def test_a_q_for_each_episode_has_less_variance() -> None:
    """Exactly, over all outcomes: the correction of two episodes at two points against one point."""
    mdp = tiny_mdps()[2]

    def variance(**options: Any) -> float:
        *_, here = enumerated(NHARPG(3.0, eta=0.5, **options), mdp, iterations=2)
        error = here.after.d.reshape(*here.weight.shape, -1) - here.mean_d[:, None]
        return float(here.history @ (here.weight * (error**2).sum(-1)).sum(1))

    one, two, each = (variance(hvp_batch_size=n, q_per_episode=q) for n, q in ((1, False), (2, False), (2, True)))
    assert each < two < one


# counting and streams


def problem(seeds: int | tuple[int, ...] = 3, env: Any = None, **settings: Any) -> Problem:
    env = env or gridworld(horizon=20)
    every = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    return Problem(env, policy_for(env, dtype=F64), 0.95, every, 20, **settings)


@pytest.mark.parametrize("each", [False, True])
def test_the_episodes_of_both_batches_count(each: bool) -> None:
    agent, world = NHARPG(0.1, hvp_batch_size=5, q_per_episode=each), problem(batch_size=2)
    state, _ = agent.step(agent.init(world.theta()), world.iteration(0))
    agent.step(state, second := world.iteration(1))
    assert [tau.mask.shape[1] for tau in second.sampled] == [3 * 2, 3 * 5]
    by_hand = sum(tau.mask.sum(0).reshape(3, -1).sum(1) for tau in second.sampled)
    assert torch.equal(second.env_steps(), by_hand)
    assert float(by_hand.double().mean()) > 3 * 20  # seven episodes that seldom end


@pytest.mark.parametrize("env", [gridworld(horizon=20), double_integrator()], ids=["table", "network"])
def test_batches_of_several_sizes_are_the_episodes_of_each(env: Any) -> None:
    world = problem(env=env)
    theta = world.theta() + 0.1 * torch.arange(3, dtype=F64)[:, None]
    other = -theta
    a, b = world.iteration(3).sample(theta, other, n=(4, 6))
    a4, b4 = world.iteration(3).sample(theta, other, n=4)
    assert torch.equal(a.action, a4.action)
    by_seed = b.action.reshape(len(b.action), 3, 6, -1)[:, :, :4].flatten(1)
    assert torch.allclose(by_seed[: len(b4.action)], b4.action.flatten(1), atol=1e-12)


def test_several_points_of_a_seed_are_sampled_at_once() -> None:
    """Seed s has the rows s·m .. s·m + m - 1 of θ: episode i is what point i alone would play with its random numbers."""
    world = problem(2)
    spread = 3 * torch.randn(2 * 3, world.policy.size, generator=torch.Generator().manual_seed(0), dtype=F64)
    (tau,) = world.iteration(0).sample(spread, n=1)
    for i in range(3):
        (at_i,) = world.iteration(0).sample(spread[i::3], n=3)
        for seed in range(2):
            alone, here = at_i.action[:, 3 * seed + i], tau.action[:, 3 * seed + i]
            length = min(len(alone), len(here))
            assert torch.equal(alone[:length], here[:length])
    assert not torch.equal(tau.action[:, 0], at_i.action[:, 0])


@pytest.mark.parametrize("biased", [{}, {"undiscounted_states": True, "gae_lambda": 0.9}], ids=["unbiased", "biased"])
@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_a_seed_alone_is_the_seed_in_company(options: dict[str, Any], biased: dict[str, Any]) -> None:
    agent, undiscounted = NHARPG(0.3, eta=0.5, **options), bool(biased)
    name, size = ("value-net" if biased else "value"), {"observation_size": 1, "n_states": 22}
    value = baseline_for(name, discount=0.95, horizon=20, undiscounted_states=undiscounted, **size)

    def trained(seeds: tuple[int, ...]) -> Tensor:
        world = problem(seeds, baseline=value, batch_size=2, **biased)
        training = PGTraining.begin(agent, world)
        for _ in range(4):
            training, _, _ = step(world, agent, training, 10_000)
        return training.state.theta

    together = trained((0, 1, 2, 3))
    for seed in (0, 2):
        assert torch.allclose(trained((seed,))[0], together[seed], atol=1e-12)


def test_q_of_a_seed_are_its_own_and_other_streams_stay() -> None:
    world = problem(3)
    q, one = world.iteration(2).uniform(4), world.iteration(2).uniform()
    assert q.shape == (3, 4)
    assert torch.equal(q[:, :1], one)
    assert torch.allclose(problem((2,)).iteration(2).uniform(4), q[2:])
    assert len(q.unique()) == 12
    first = []
    for agent in (NHARPG(0.1), NHARPG(0.1, hvp_batch_size=7, q_per_episode=True)):
        state, _ = agent.step(agent.init(world.theta()), world.iteration(0))
        agent.step(state, iteration := world.iteration(1))
        first.append(iteration.sampled[0])
    assert torch.equal(first[0].action, first[1].action)


def test_a_fault_is_of_the_right_seed_and_episode() -> None:
    class Breaks(type(gridworld())):  # type: ignore[misc]
        row = 0

        def step(self, state: Any, action: Any, rng: Any) -> Any:
            raise EnvironmentFault("broke", row=self.row)

    env = gridworld(horizon=20)
    env.__class__ = Breaks
    world = problem((7, 8), env)
    theta = world.theta()
    for row, seed, episode in ((0, 7, 0), (3, 8, 1), (4, 7, 0), (6, 7, 2), (7, 8, 0), (9, 8, 2)):
        env.row = row
        with pytest.raises(EnvironmentFault) as found:
            world.iteration(0).sample(theta, theta, n=(2, 3))
        assert (found.value.seed, found.value.row) == (seed, episode)


def test_what_does_not_fit_is_refused() -> None:
    world = problem(2)
    theta = world.theta()
    with pytest.raises(ValueError, match="got 1 numbers of episodes, expected one for each of 2 points"):
        world.iteration(0).sample(theta, theta, n=(3,))
    with pytest.raises(ValueError, match="at 3 parameter vectors, expected a multiple of 2 seeds"):
        world.iteration(0).sample(torch.cat([theta, theta[:1]]))
    with pytest.raises(ValueError, match="hvp_batch_size"):
        NHARPG(0.1, hvp_batch_size=0)
    with pytest.raises(ValueError, match="batch size of 2"):
        LeaveOneOut(0.9).predict({}, world.iteration(0).sample(theta, n=1)[0], 2)
    assert NoBaseline().predict({}, world.iteration(0).sample(theta, n=1)[0], 2) is None


# clipping


def test_a_clipped_correction_is_not_longer_than_its_limit_and_claims_nothing() -> None:
    world = problem(8, double_integrator())
    theta = world.theta()
    d = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=F64) * 600
    state = Transport(theta, theta - 0.1, d, 1)
    v = correction(state, world)
    free, clipped = (
        NHARPG(1.0, eta=0.5, eta_power=0.0, clip_correction=c).step(state, world.iteration(1)) for c in (None, 0.05)
    )
    shortened = v + 2 * (clipped[0].d - free[0].d)  # d_t has half of the correction
    limit = 0.05 * state.d.norm(dim=1)
    was = v.norm(dim=1)
    assert torch.allclose(shortened.norm(dim=1), torch.minimum(was, limit), atol=1e-12)
    assert torch.allclose(clipped[1]["opt/correction_norm"], was)
    assert torch.equal(clipped[1]["opt/correction_clipped"] > 0, was > limit)
    assert 0 < int((was > limit).sum()) < 8


def correction(state: Transport, world: Problem) -> Tensor:
    iteration = world.iteration(1)
    q = iteration.uniform()
    between = q * state.theta + (1 - q) * state.theta_prev
    _, tau = iteration.sample(state.theta, between)
    return iteration.hessian_vector(between, tau, state.theta - state.theta_prev)


@pytest.mark.parametrize("make", [HARPG, NHARPG])
def test_clipping_is_declared_and_check_says_so(make: Any) -> None:
    agent = make(0.2, clip_correction=0.1)
    assert not agent.unbiased
    assert agent.biases == ("clip_correction",)
    claims = verdict(agent)
    assert [(claim.line, claim.holds) for claim in claims] == [("start", True), ("estimates", None)]
    assert "because clip_correction makes it biased" in claims[1].sentence
    assert make(0.2).unbiased
    with pytest.raises(ValueError, match="clip_correction"):
        make(0.2, clip_correction=0.0)


def test_clipping_that_claims_to_be_unbiased_fails() -> None:
    class Claims(NHARPG):
        unbiased = True  # type: ignore[assignment]

    assert {claim.line: claim.holds for claim in verdict(Claims(0.2, eta=0.5, clip_correction=0.1))}["bias"] is False


def test_no_last_direction_no_correction() -> None:
    """d_{t-1} = 0 shortens the correction to 0, without a division by 0."""
    world = problem(2)
    theta = world.theta()
    state = Transport(theta + 1, theta, torch.zeros_like(theta), 3)
    after, metrics = NHARPG(0.1, clip_correction=1.0).step(state, world.iteration(0))
    assert bool(after.d.isfinite().all())
    assert torch.equal(metrics["opt/correction_clipped"], (metrics["opt/correction_norm"] > 0).to(F64))
