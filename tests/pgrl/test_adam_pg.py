"""Adam-PG: the formula in a loop, the claims of its direction, what must not move, and that its steps are named biased."""

import math

import pytest
import torch

from envs.mdp.bounded import BoundedActions
from pgrl.agents.adam_pg import AdamPG
from pgrl.agents.n_pg import NPG
from pgrl.check import exact_bias, verdict
from pgrl.heads import Gaussian
from pgrl.nets import MLP
from pgrl.policy import Policy
from pgrl.problem import Problem
from pgrl.registry import register
from tests.pgrl.test_agents import run
from tests.pgrl.test_ingredients import Drift
from tests.synthetic import SyntheticWorld

F64 = torch.float64
START = torch.tensor([[1.0, -2.0], [0.3, 0.4]], dtype=F64)


class Recorded(SyntheticWorld):
    """Keeps the gradients that it gave."""

    def gradient(self, theta, tau):
        self.given = [*getattr(self, "given", []), super().gradient(theta, tau)]
        return self.given[-1]


def noisy(noise: float = 0.5) -> Recorded:
    return Recorded(lambda th: -(th**3), lambda th, u: -3 * th**2 * u, noise)


def by_hand(gradients: list[float], theta: float, agent: AdamPG) -> list[tuple[float, float]]:
    """(θ, first moment corrected) after each iteration, as Algorithm 1 of the paper has them, for one coordinate."""
    m = v = 0.0
    path = []
    for i, g in enumerate(gradients, 1):
        m = (1 - agent.eta) * m + agent.eta * g
        v = (1 - agent.square_weight) * v + agent.square_weight * g * g
        m_hat, v_hat = m / (1 - (1 - agent.eta) ** i), v / (1 - (1 - agent.square_weight) ** i)
        theta += agent.step_size * (2 / (i + 1)) ** agent.step_power * m_hat / (math.sqrt(v_hat) + agent.epsilon)
        path.append((theta, m_hat))
    return path


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize(("eta", "square_weight"), [(0.1, 0.001), (0.3, 0.3), (1.0, 0.5), (0.5, 1.0)])
def test_steps_are_those_of_the_paper(eta: float, square_weight: float, power: float) -> None:
    agent, world = AdamPG(0.1, power, eta, square_weight, epsilon=1e-3), noisy()
    states = [after for _, after in run(agent, world, START, 30)]
    for seed in range(2):
        for k in range(2):
            path = by_hand([float(g[seed, k]) for g in world.given], float(START[seed, k]), agent)
            for state, (theta, d) in zip(states, path, strict=True):
                assert float(state.theta[seed, k]) == pytest.approx(theta, rel=1e-12, abs=1e-12)
                assert float(state.d[seed, k]) == pytest.approx(d, rel=1e-10, abs=1e-12)


def test_it_agrees_with_torch() -> None:
    agent, world = AdamPG(0.05), noisy()
    *_, (_, last) = run(agent, world, START, 50)
    theta = torch.nn.Parameter(START.clone())
    adam = torch.optim.Adam([theta], lr=0.05, betas=(0.9, 0.999), eps=1e-8, maximize=True)
    for g in world.given:
        theta.grad = g
        adam.step()
    assert torch.allclose(last.theta, theta.detach(), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_coordinates_without_gradient_do_not_move(dtype: torch.dtype) -> None:
    still = torch.tensor([1.0, 0.0], dtype=dtype)
    theta = START.to(dtype)
    for weights in (still, 0 * still):
        world = SyntheticWorld(lambda th, w=weights: w.expand_as(th), lambda th, u: 0 * u)
        for _, after in run(AdamPG(0.1), world, theta, 5):
            assert torch.equal(after.theta[:, weights == 0], theta[:, weights == 0])
            assert bool((after.theta[:, weights != 0] > theta[:, weights != 0]).all())


def test_the_statistics_of_observations_do_not_move() -> None:
    policy = Policy(MLP(1, (), 1), Gaussian(1, -0.5), F64, normalised=1)
    problem = Problem(BoundedActions(Drift(), "clip"), policy, 0.9, (0, 1), 2, 4, normalise_steps=20)
    theta, _ = problem.start()
    state = AdamPG(0.1).init(theta)
    for t in range(4):
        state, _ = AdamPG(0.1).step(state, problem.iteration(t))
    assert torch.equal(state.theta[:, -2:], theta[:, -2:])
    assert bool((state.theta[:, :-2] != theta[:, :-2]).all())


def test_the_direction_with_eta_one_is_the_gradient() -> None:
    """Its bias is 0 over all outcomes, as that of N-PG is; with η < 1 the claim of order 1 is tested, not excused."""
    assert max(max(case.biases) for case in exact_bias(AdamPG(0.1, eta=1.0))) < 1e-14
    assert max(max(case.biases) for case in exact_bias(AdamPG(0.1))) > 1e-3
    for (_, a), (_, b) in zip(run(AdamPG(0.1, eta=1.0), noisy(), START, 1), run(NPG(0.1), noisy(), START, 1), strict=True):
        assert torch.equal(a.d, b.d)
    assert {claim.line: claim.holds for claim in verdict(AdamPG(0.1))} == {"start": True, "estimates": True, "order": True}


def test_the_mean_step_is_not_along_the_mean_gradient() -> None:
    """Why it is named biased: gradients (4, 1) and (-1, 1) have the mean (1.5, 1); the first steps have the mean (0, 1)."""
    gradients = torch.tensor([[4.0, 1.0], [-1.0, 1.0]], dtype=F64)
    world = SyntheticWorld(lambda th: gradients, lambda th, u: 0 * u)
    *_, (before, after) = run(AdamPG(0.1), world, torch.zeros(2, 2, dtype=F64), 1)
    assert (after.theta - before.theta).mean(0).tolist() == pytest.approx([0.0, 0.1], abs=1e-8)
    assert [name for name, entry in register().items() if entry.biased] == ["adam-pg"]
