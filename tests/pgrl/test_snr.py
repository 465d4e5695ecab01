"""Where noise = signal: the estimates against exact tr Cov and ‖∇J‖² of the tiny MDP, their intervals, and the wrong ones."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from envs.mdp.exact import gradient, hessian_vector
from experiments.pg.snr import Case, Measurement, Row, SnrSettings
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_pg import NPG
from pgrl.baselines import LeaveOneOut, Linear
from pgrl.gradients import Estimator
from pgrl.problem import Problem
from pgrl.snr import Estimate, NoiseToSignal, Sums, first_steps, student
from tests.worlds import (
    DISCOUNT,
    F64,
    HORIZON,
    THETA,
    all_trajectories,
    exact_mdp,
    probabilities,
    table_policy,
    tiny_mdp,
)

MDP = tiny_mdp()
POLICY = table_policy(MDP)
EXACT = exact_mdp(MDP, POLICY)
TAU = all_trajectories(MDP, HORIZON)
P = probabilities(MDP, POLICY, THETA, TAU)
EACH = THETA.expand(len(P), -1)
SIGNAL2 = float((gradient(EXACT, THETA[0], HORIZON) ** 2).sum())
NOISE2, NOISE2_VALUES = 3.1066076769613957, 0.9111688771941948  # E tr Cov(g), without a baseline and with V_t(s)
HESSIAN_NOISE2 = {False: 3.2898362330110484, True: 1.7602060650007876}  # E‖B - ∇²J‖², plain and causal
REPEATS = 400


def exact_values() -> Tensor:
    """discount^t V_t(s) at the states of all trajectories, [T, N]."""
    pi, r = torch.softmax(THETA.reshape(2, 2), 1), (MDP.transition * MDP.reward).sum(-1)
    V = torch.zeros(HORIZON + 1, 2, dtype=F64)
    for t in reversed(range(HORIZON)):
        V[t] = (pi * (r + DISCOUNT * MDP.transition @ V[t + 1])).sum(1)
    return DISCOUNT ** torch.arange(HORIZON, dtype=F64)[:, None] * V[:HORIZON].gather(1, TAU.obs)


def sums(each: Tensor, groups: int, size: int, seed: int) -> Sums:
    """Of estimates drawn from those of all trajectories, [N, D]."""
    made, draw = Sums(), torch.Generator().manual_seed(seed)
    for picks in torch.multinomial(P, groups * size, True, generator=draw).reshape(groups, size):
        made.add([each[picks[: size // 2]], each[picks[size // 2 :]]], HORIZON * size)
    return made


def z(values: list[float], exact: float) -> float:
    x = torch.tensor(values, dtype=F64)
    return float((x.mean() - exact) / (x.std() / len(x) ** 0.5))


def estimates(causal: bool | None = None, baseline: Tensor | None = None) -> Tensor:
    """g of all trajectories, [N, D]; or the columns of their B, [N, D, D]."""
    estimator = Estimator(POLICY, DISCOUNT, bool(causal))
    if causal is None:
        return estimator.gradient(EACH, TAU, baseline)
    return torch.stack([estimator.hessian_vector(EACH, TAU, e.expand_as(EACH)) for e in torch.eye(4, dtype=F64)], -1)


@pytest.mark.parametrize(("values", "noise2"), [(False, NOISE2), (True, NOISE2_VALUES)])
def test_signal_and_noise_of_g_are_unbiased_and_intervals_hold(values: bool, noise2: float) -> None:
    each = estimates(baseline=exact_values() if values else None)
    found = [sums(each, 10, 6, seed).noise_to_signal() for seed in range(REPEATS)]
    assert abs(z([x.signal2 for x in found], SIGNAL2)) < 4
    assert abs(z([x.noise2 for x in found], noise2)) < 4
    needed = HORIZON * noise2 / SIGNAL2
    inside = sum(x.low <= needed <= x.high for x in found) / REPEATS
    assert 0.9 < inside < 0.99
    assert all(x.low < x.needed < x.high for x in found if x.bounded)
    assert {(x.steps, x.estimates) for x in found} == {(HORIZON, 60)}


def test_the_square_of_the_mean_is_no_estimate_of_the_signal() -> None:
    """The negative control: it has the noise of the batch in it."""
    each = estimates()
    naive = []
    for seed in range(REPEATS):
        picks = torch.multinomial(P, 12, True, generator=torch.Generator().manual_seed(seed))
        naive.append(float((each[picks].mean(0) ** 2).sum()))
    assert z(naive, SIGNAL2) > 6
    assert abs(z(naive, SIGNAL2 + NOISE2 / 12)) < 4


@pytest.mark.parametrize("causal", [False, True])
def test_noise_of_all_columns_of_the_hessian_estimate(causal: bool) -> None:
    columns, noise, signal = estimates(causal).unbind(-1), [], []
    for seed in range(REPEATS // 2):
        found = [sums(each, 4, 6, seed).noise_to_signal() for each in columns]
        noise.append(sum(x.noise2 for x in found))
        signal.append(sum(x.signal2 for x in found))
    assert abs(z(noise, HESSIAN_NOISE2[causal])) < 4
    H = torch.stack([hessian_vector(EXACT, THETA[0], e, HORIZON) for e in torch.eye(4, dtype=F64)])
    assert abs(z(signal, float((H**2).sum()))) < 4


def test_without_a_signal_there_is_a_lower_bound_and_nothing_negative() -> None:
    noise = estimates() - gradient(EXACT, THETA[0], HORIZON)
    found = [sums(noise, 10, 6, seed).noise_to_signal() for seed in range(REPEATS)]
    assert min(x.signal2 for x in found) < 0
    assert all(0 < x.low < math.inf and x.needed > 0 for x in found)
    assert sum(not x.bounded for x in found) > 0.97 * REPEATS
    assert sorted(x.low for x in found)[REPEATS // 2] > 2 * HORIZON * NOISE2 / SIGNAL2  # what the signal would need


def test_an_estimate_is_that_of_the_estimator() -> None:
    """With a prefix, another discount, a fitted baseline, in chunks; and batches with leave-one-out baselines."""
    tau = TAU.columns(torch.arange(24))
    short = first_steps(tau, 2)
    assert short.steps == 48
    assert short.mask.shape == (2, 24)
    linear = Linear(0.7, 2, 1, True, 2)
    fitted = linear.fit(linear.init(1), first_steps(TAU, 2), 1)
    u = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=F64)
    for vector in (None, u):
        estimator = Estimator(POLICY, 0.7, True)
        b = linear.predict(fitted, short, 1)
        each = EACH[:24]
        by_hand = (
            estimator.gradient(each, short, b)
            if vector is None
            else estimator.hessian_vector(each, short, vector.expand_as(each), b)
        )
        made = Sums()
        for k in range(3):
            Estimate(estimator, linear, fitted, 2, vector).add(
                made, THETA, [tau.columns(torch.arange(4) + 8 * k + i) for i in (0, 4)], 4
            )
        total = (by_hand.sum(0) ** 2).sum()
        squares = (by_hand**2).sum()
        found = made.noise_to_signal()
        assert found.signal2 == pytest.approx(float((total - squares) / (24 * 23)), abs=1e-12)
        assert found.noise2 == pytest.approx(float((squares - total / 24) / 23), abs=1e-12)
        assert (found.steps, found.estimates) == (2, 24)
    others = LeaveOneOut(DISCOUNT)
    batches = [tau.columns(torch.arange(4) + 4 * k) for k in range(6)]
    by_hand = torch.cat([Estimator(POLICY, DISCOUNT).gradient(THETA, x, others.predict({}, x, 1)) for x in batches])
    made = Sums()
    for k in range(3):
        Estimate(Estimator(POLICY, DISCOUNT), others, {}, HORIZON).add(
            made, THETA, [tau.columns(torch.arange(4) + 8 * k + i) for i in (0, 4)], 4
        )
    found = made.noise_to_signal()
    assert found.noise2 == pytest.approx(float(by_hand.var(0).sum()), abs=1e-12)
    assert (found.steps, found.estimates) == (4 * HORIZON, 6)


def test_the_tool_agrees_with_enumeration_on_the_tiny_mdp() -> None:
    """All of it, sampled: g with and without a fitted baseline, a direction that is a batch's g."""
    problem = Problem(MDP, POLICY, DISCOUNT, (0,), HORIZON, 4)
    asked = SnrSettings(baselines=("none", "leave-one-out"), estimators=("g", "direction"), replicas=200, iterations=1)
    work = Measurement(problem, NPG(0.1), asked, HORIZON, "none", 30_000)
    rows = {(r["estimator"], r["baseline"]): r for r in work.run(THETA).rows}
    exact = HORIZON * NOISE2 / SIGNAL2
    for name in (("g", "none"), ("direction", "none")):
        low, high = float(rows[name]["low"]), float(rows[name]["high"])
        assert low / 1.1 < exact < 1.1 * high
        assert high / low < (1.5 if name[0] == "g" else 3)
    assert float(rows["g", "none"]["noise"]) == pytest.approx(NOISE2**0.5, rel=0.03)
    assert float(rows["g", "none"]["signal"]) == pytest.approx(SIGNAL2**0.5, rel=0.05)
    assert float(rows["g", "leave-one-out"]["needed"]) < exact
    assert float(rows["direction", "none"]["steps"]) == 4 * HORIZON
    assert 0.9 * 30_000 < work.used < 1.1 * 30_000


def test_a_direction_alone_gets_most_of_the_budget() -> None:
    problem = Problem(MDP, POLICY, DISCOUNT, (0,), HORIZON, 4)
    for estimators, replicas in ((("direction",), 200), (("g", "direction"), 150)):  # of 12 steps each, 80 or 30 % of 6,000
        asked = SnrSettings(baselines=("none",), estimators=estimators, replicas=200, iterations=1)  # type: ignore[arg-type]
        row = Measurement(problem, NPG(0.1), asked, HORIZON, "none", 6_000).run(THETA).rows[-1]
        assert (row["estimator"], row["estimates"]) == ("direction", replicas)


def test_bu_is_along_a_step_of_the_agent() -> None:
    """Twice the step: twice the signal and the noise, and the same steps are needed."""
    problem = Problem(MDP, POLICY, DISCOUNT, (0,), HORIZON)
    asked = SnrSettings(baselines=("none",), estimators=("Bu",))
    found = []
    for step in (0.1, 0.2):
        (row,) = Measurement(problem, NHARPG(step), asked, HORIZON, "none", 6_000).run(THETA).rows
        found.append(row)
    assert float(found[1]["noise"]) == pytest.approx(2 * float(found[0]["noise"]), rel=1e-9)
    assert float(found[1]["low"]) == pytest.approx(float(found[0]["low"]), rel=1e-9)


def test_the_causal_form_has_the_same_signal_and_less_noise() -> None:
    """Both along the step that the agent makes: the noise of each is that of all trajectories."""
    problem = Problem(MDP, POLICY, DISCOUNT, (0,), HORIZON, causal=True)
    asked = SnrSettings(baselines=("none",), estimators=("Bu", "Bu-causal"))
    plain, causal = Measurement(problem, NHARPG(0.1), asked, HORIZON, "none", 20_000).run(THETA).rows
    assert (plain["estimator"], causal["estimator"]) == ("Bu", "Bu-causal")
    assert float(causal["noise"]) < 0.9 * float(plain["noise"])
    assert float(causal["signal"]) == pytest.approx(float(plain["signal"]), rel=0.2)


def test_horizons_and_discounts_share_their_episodes() -> None:
    problem = Problem(MDP, POLICY, DISCOUNT, (0,), HORIZON)

    def rows(**more: object) -> dict[Case, Row]:
        asked = replace(SnrSettings(baselines=("none",), estimators=("g",)), **more)  # type: ignore[arg-type]
        found = Measurement(problem, NPG(0.1), asked, HORIZON, "none", 6_000).run(THETA).rows
        return {Case(*(row[name] for name in Case._fields)): row for row in found}  # type: ignore[arg-type]

    own = Case("g", "none", HORIZON, DISCOUNT)
    assert rows(discounts=(0.5, DISCOUNT))[own] == rows()[own]
    several = rows(discounts=(0.5, DISCOUNT), horizons=(1, 3))
    assert len(several) == 4
    one, other = (several[own._replace(horizon=1, discount=x)] for x in (0.5, DISCOUNT))
    assert {**one, "discount": 0} == {**other, "discount": 0}  # discount^0 = 1
    long, short = (int(x["estimates"]) for x in (several[own], one))
    assert short == pytest.approx(4 * long, rel=0.1)  # half of the steps each: n/6 episodes of three, n/2 more of one


def test_student_s_quantile() -> None:
    for freedom, quantile in ((3, 3.18245), (4, 2.77645), (7, 2.36462), (19, 2.09302), (1000, 1.96234)):
        assert student(freedom) == pytest.approx(quantile, rel=0.01)


def test_estimates_that_are_all_equal_or_nearly_all_zero() -> None:
    def found(values: list[float]) -> NoiseToSignal:
        made = Sums()
        for x in values:
            made.add([torch.full((5, 2), x)], 50)
        return made.noise_to_signal()

    zero, one, rare = found([0.0] * 4), found([2.0] * 4), found([0.0, 0.0, 3.0, 0.0])
    assert (zero.needed, zero.low, zero.high) == (math.inf, 200, math.inf)
    assert (one.needed, one.signal2) == (0, 8)
    assert 0 < rare.low < math.inf == rare.high
    with pytest.raises(ValueError, match="not finite"):
        found([1.0, math.nan, 1.0])


def test_too_few_groups_are_refused() -> None:
    made = Sums()
    made.add([torch.ones(2, 3)], 5)
    with pytest.raises(ValueError, match="1 groups of estimates, expected 3"):
        made.noise_to_signal()
