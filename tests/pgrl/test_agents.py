"""T9-T13 and the identities: agents as optimisers, on functions whose derivatives are known."""

import math

import pytest
import torch
from torch import Tensor

from pgrl.agent import normalised
from pgrl.agents.adam_pg import AdamPG
from pgrl.agents.harpg import HARPG
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_mpg import NMPG
from pgrl.agents.n_pg import NPG
from pgrl.agents.n_pg_igt import NPGIGT
from pgrl.agents.reinforce import REINFORCE
from pgrl.registry import register
from tests.synthetic import SyntheticWorld

F64 = torch.float64
A = torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=F64)
START = torch.tensor([[1.0, -2.0]], dtype=F64)


def quadratic(noise: float = 0.0) -> SyntheticWorld:
    return SyntheticWorld(lambda th: -th @ A, lambda th, u: -u @ A, noise)


def cubic() -> SyntheticWorld:
    return SyntheticWorld(lambda th: -(th**2), lambda th, u: -2 * th * u)


def run(agent, world, theta: Tensor, iterations: int):
    """The states before and after each iteration."""
    state = agent.init(theta)
    for _ in range(iterations):
        before = state
        state, _ = agent.step(state, world)
        yield before, state


def worst_error(agent, world, iterations: int, start: int = 0, theta: Tensor = START) -> float:
    errors = [float((after.d - world.slope(before.theta)).norm()) for before, after in run(agent, world, theta, iterations)]
    return max(errors[start:])


def test_t9_implicit_transport_is_exact_on_a_quadratic() -> None:
    assert worst_error(NPGIGT(step_size=1.0), quadratic(), 2000) < 1e-14
    assert worst_error(NMPG(step_size=1.0), quadratic(), 2000) > 0.1


def test_t9_on_a_cubic_the_error_is_of_second_order() -> None:
    """Halving the step divides N-PG-IGT's error by 4, momentum's by 2."""
    for agent, order in ((NPGIGT, 2), (NMPG, 1)):
        errors = []
        for step in (0.01, 0.005):
            world, theta = cubic(), torch.tensor([[1.0, 2.0]], dtype=F64)
            *_, (before, after) = run(agent(step_size=step), world, theta, 20)
            errors.append(float((after.d - world.slope(before.theta)).norm()))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_look_ahead_with_the_last_eta_is_not_exact() -> None:
    """Negative control: public code extrapolates with η_{t-1} and averages with η_t."""

    class Lagged(NPGIGT):
        def step(self, state, world):
            theta, theta_prev, d, t = state
            eta = self.eta * (2 / (t + 2)) ** self.eta_power
            lagged = self.eta * (2 / (t + 1)) ** self.eta_power if t else 1.0
            ahead = theta + ((1 - lagged) / lagged) * (theta - theta_prev)
            d = (1 - eta) * d + eta * world.gradient(ahead, *world.sample(ahead))
            step = self.step_size * 2 / (t + 2)
            return state._replace(theta=theta + step * normalised(d), theta_prev=theta, d=d, t=t + 1), {}

    assert worst_error(Lagged(step_size=1.0), quadratic(), 2000) > 0.1
    assert worst_error(Lagged(step_size=1.0), quadratic(), 2000, start=200) > 1e-6


class GaussWorld(SyntheticWorld):
    """The Hessian's mean over q in place of one q, by 3-point Gauss-Legendre: exact for cubics."""

    def sample(self, *thetas: Tensor, n: int | None = None) -> tuple[Tensor, ...]:
        self.start, self.last = getattr(self, "last", None), thetas[0]
        return super().sample(*thetas)

    def hessian_vector(self, theta: Tensor, tau: Tensor, u: Tensor) -> Tensor:
        assert torch.allclose(self.last - self.start, u, atol=1e-15)
        parts = [(5 / 18, 0.5 - 0.15**0.5), (8 / 18, 0.5), (5 / 18, 0.5 + 0.15**0.5)]
        return sum(weight * self.bend(self.start + q * u, u) for weight, q in parts)


@pytest.mark.parametrize("agent", [HARPG(step_size=0.05), NHARPG(step_size=0.5)])
def test_t10_exact_hessians_transport_the_gradient_exactly(agent) -> None:
    world = GaussWorld(cubic().slope, cubic().bend)
    assert worst_error(agent, world, 300, theta=torch.tensor([[1.0, 2.0]], dtype=F64)) < 1e-12


@pytest.mark.slow
def test_t11_error_slopes_on_a_forced_path() -> None:
    """J' = sin along θ_{t+1} = θ_t + 4/(t+2), unit noise in g and in the Hessian: the RMS error decays as the theory says."""
    replicas, last, first = 1000, 20_000, 200

    def slopes(agent) -> tuple[float, float]:
        world = SyntheticWorld(torch.sin, lambda th, u: th.cos() * u, noise=1.0)
        state = agent.init(torch.zeros(replicas, 1, dtype=F64))
        xs, ys, z = [], [], 0.0
        marks = {round(first * 1.1**k) for k in range(60)}
        for t in range(last):
            theta = state.theta
            state, _ = agent.step(state, world)
            forced = theta + 4 / (t + 2)
            state = state._replace(theta=forced)
            if t in marks:
                error = state.d - theta.sin()
                xs.append(math.log(t))
                ys.append(0.5 * math.log(float((error**2).mean())))
                z = max(z, abs(float(error.mean() / (error.std() / replicas**0.5))))
        x, y = torch.tensor(xs), torch.tensor(ys)
        return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()), z

    for agent, slope in ((NMPG(4.0), -1 / 3), (NPGIGT(4.0), -2 / 5), (NHARPG(4.0), -1 / 2)):
        measured, z = slopes(agent)
        assert measured == pytest.approx(slope, abs=0.06)
        if agent.unbiased:
            assert z < 4.5


@pytest.mark.slow
def test_t12_end_to_end_slopes_are_at_least_the_bounds_and_ordered() -> None:
    """J = -log(1 + e^{-x}), where weak gradient domination is tight, with unit noise."""
    replicas, last = 400, 30_000
    measured = {}
    for name, bound in (("reinforce", 1 / 3), ("n-mpg", 1 / 3), ("n-pg-igt", 2 / 5), ("n-harpg", 1 / 2)):
        world = SyntheticWorld(
            lambda th: torch.sigmoid(-th), lambda th, u: -torch.sigmoid(th) * torch.sigmoid(-th) * u, noise=1.0, seed=1
        )
        agent = register()[name].make(step_size=2.0)
        state = agent.init(torch.zeros(replicas, 1, dtype=F64))
        xs, ys = [], []
        for t in range(last):
            state, _ = agent.step(state, world)
            if t >= 300 and t % 500 == 0:
                xs.append(math.log(t))
                ys.append(math.log(float(torch.nn.functional.softplus(-state.theta).mean())))
        x, y = torch.tensor(xs), torch.tensor(ys)
        measured[name] = -float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        assert measured[name] >= bound - 0.03, measured
    assert measured["reinforce"] < measured["n-mpg"] + 0.05
    assert measured["n-mpg"] < measured["n-harpg"]
    assert measured["n-pg-igt"] < measured["n-harpg"]


NORMALISED = [NPG(0.3), NMPG(0.3), NPGIGT(0.3), NHARPG(0.3)]


@pytest.mark.parametrize("agent", NORMALISED)
def test_t13_normalised_steps(agent) -> None:
    theta = torch.tensor([[1.0, -2.0], [0.5, 0.1]], dtype=F64)
    for before, after in run(agent, quadratic(0.5), theta, 30):
        step = 0.3 * (2 / (before.t + 2)) ** agent.step_power
        assert torch.allclose((after.theta - before.theta).norm(dim=1), torch.full((2,), step, dtype=F64), rtol=1e-12)


@pytest.mark.parametrize("agent", NORMALISED)
def test_t13_the_scale_of_the_reward_does_not_matter(agent) -> None:
    theta = torch.tensor([[1.0, -2.0]], dtype=F64)
    plain = SyntheticWorld(lambda th: -th @ A, lambda th, u: -u @ A)
    scaled = SyntheticWorld(lambda th: -64 * th @ A, lambda th, u: -64 * u @ A)
    for (_, a), (_, b) in zip(run(agent, plain, theta, 30), run(agent, scaled, theta, 30), strict=True):
        assert torch.allclose(a.theta, b.theta, rtol=1e-12)


@pytest.mark.parametrize("agent", NORMALISED)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_t13_no_direction_no_move_and_tiny_directions_are_safe(agent, dtype) -> None:
    theta = torch.tensor([[1.0, -2.0]], dtype=dtype)
    still = SyntheticWorld(torch.zeros_like, lambda th, u: torch.zeros_like(u))
    for _, after in run(agent, still, theta, 3):
        assert torch.equal(after.theta, theta)
    tiny = 1e-38 if dtype == torch.float32 else 1e-300
    faint = SyntheticWorld(lambda th: torch.full_like(th, tiny), lambda th, u: torch.zeros_like(u))
    *_, (_, after) = run(agent, faint, theta, 1)
    assert torch.allclose(after.theta - theta, torch.full_like(theta, 0.3 / 2**0.5), rtol=1e-5)


def test_eta_of_one_makes_igt_and_n_harpg_plain_normalised_gradients() -> None:
    theta = torch.tensor([[1.0, -2.0], [0.3, 0.4]], dtype=F64)
    reference = list(run(NPG(0.3, step_power=1.0), quadratic(), theta, 20))
    for agent in (NPGIGT(0.3, eta=1.0, eta_power=0.0), NHARPG(0.3, eta=1.0, eta_power=0.0)):
        for (_, a), (_, b) in zip(reference, run(agent, quadratic(), theta, 20), strict=True):
            assert torch.equal(a.theta, b.theta)
            assert torch.equal(a.d, b.d)


def test_a_point_that_did_not_move_gives_no_correction() -> None:
    agent, world = NHARPG(0.3, eta=0.5, eta_power=0.0), quadratic(1.0)
    state = agent.init(START)._replace(t=5)  # θ_5 = θ_4
    _, metrics = agent.step(state, world)
    assert float(metrics["opt/correction_norm"]) == 0.0


def test_trajectories_per_iteration() -> None:
    theta = torch.tensor([[1.0, -2.0]], dtype=F64)
    for agent, episodes in (
        (REINFORCE(0.1), 10),
        (NPG(0.1), 10),
        (NMPG(0.1), 10),
        (NPGIGT(0.1), 10),
        (AdamPG(0.1), 10),
        (HARPG(0.1), 19),
        (NHARPG(0.1), 19),
    ):
        world = quadratic(1.0)
        list(run(agent, world, theta, 10))
        assert world.episodes == episodes


def test_sharp_is_n_harpg_with_its_own_exponents() -> None:
    entry = register()["sharp"]
    agent = entry.make(step_size=0.1, **entry.preset)
    assert (agent.step_power, agent.eta_power) == (2 / 3, 2 / 3)


@pytest.mark.parametrize("name", sorted(register()))
def test_bad_knobs_are_refused(name: str) -> None:
    make = register()[name].make
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="step_size"):
            make(step_size=step)
    if "eta" in make.__dataclass_fields__:
        for eta in (0.0, 1.5, -0.1, math.nan):
            with pytest.raises(ValueError, match=r"\(0, 1\]"):
                make(step_size=0.1, eta=eta)
