"""`pgrl check`: right agents pass, a line sees each planted fault, an error in an agent is not taken for a missing claim."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch

from envs.core import LearnerFault
from envs.mdp.exact import gradient
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_mpg import NMPG
from pgrl.agents.n_pg import NPG
from pgrl.agents.n_pg_igt import NPGIGT
from pgrl.check import EXACT, LIMIT, bias, check_problems, exact_bias, order, verdict
from pgrl.enumeration import enumerated, started, stepped, tiny_mdps
from tests.pgrl.planted import BY_SAMPLING, LINES, OURS, PAGE, RIGHT, WRONG, claims_of, committed, row, sampled

F64 = torch.float64
EXACT_CELLS = 3 + LINES.index("sampling")  # of a row cut at |: all before sampling


def failed(agent, found=None) -> dict[str, float]:
    return {claim.line: claim.size for claim in verdict(agent, found) if claim.holds is False}


def test_there_is_a_row_for_each_agent() -> None:
    assert set(committed()) == {*OURS, *RIGHT, *WRONG}
    assert f"in {len(WRONG)} others" in PAGE.read_text()


@pytest.mark.parametrize("name", [*OURS, *RIGHT])
def test_right_agents_pass_and_are_exact(name: str) -> None:
    agent = {**OURS, **RIGHT}[name]
    claims = verdict(agent)
    assert all(claim.holds is not False for claim in claims)
    assert all(claim.size < 1e-14 for claim in claims if claim.line in ("start", "bias", "estimates") and claim.holds)
    if agent.order:
        assert claims[-1].size == pytest.approx(agent.order, abs=0.01)
    assert row(name, agent, claims).split("|")[:EXACT_CELLS] == committed()[name].split("|")[:EXACT_CELLS]


@pytest.mark.parametrize("name", [n for n in WRONG if n not in BY_SAMPLING])
def test_planted_faults_are_seen_in_the_enumeration(name: str) -> None:
    claims = claims_of(WRONG[name], None)
    assert row(name, WRONG[name], claims).split("|")[:EXACT_CELLS] == committed()[name].split("|")[:EXACT_CELLS]
    wrong = {claim.line: claim.size for claim in claims if claim.holds is False}
    assert wrong
    assert all(size > 1e-5 or math.isnan(size) for line, size in wrong.items() if line != "order")


@pytest.mark.parametrize("name", sorted(BY_SAMPLING))
def test_sampling_sees_what_enumeration_cannot(name: str) -> None:
    assert not failed(WRONG[name])
    assert "sampling" in failed(WRONG[name], sampled(WRONG[name], 1024, 9))


def test_a_fault_of_large_batches_is_seen_in_large_batches() -> None:
    wrong = WRONG["more than three episodes divided by three"]
    by_size = {n: {case.name: bias(wrong, case, [0]) for case in check_problems(4096, n)} for n in (1, 4)}
    assert "sampling" not in failed(wrong, by_size[1])
    assert "sampling" in failed(wrong, by_size[4])


def test_errors_are_projected_on_one_direction_for_all_replicas() -> None:
    """Negative control: along each replica's own gradient, which holds the noise of d_{t-1}, a right agent looks biased."""
    agent, case = NHARPG(step_size=1.0), check_problems(16_384)[1]
    assert all(f.z < LIMIT for f in bias(agent, case, [0, 1, 2]))
    state = started(agent, case.theta.expand(16_384, -1))
    for t in range(3):
        before = state.theta
        state = stepped(agent, state, case.problem.iteration(t), t)
    truth = gradient(case.exact, before, case.problem.horizon)
    along = ((state.d - truth) * truth).sum(1) / truth.norm(dim=1)
    assert abs(float(along.mean() / along.std())) * 16_384**0.5 > LIMIT


def test_another_seed_samples_other_replicas() -> None:
    first, again, other = (bias(NPG(0.2), check_problems(64, 4, seed)[0], [0]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_outcomes_of_an_iteration_have_probability_one() -> None:
    for mdp in tiny_mdps():
        for here in enumerated(NHARPG(0.5), mdp, iterations=2):
            assert torch.allclose(here.weight.sum(1), torch.ones(len(here.weight), dtype=F64), atol=1e-14)
            assert float(here.history.sum()) == pytest.approx(1, abs=1e-14)


def test_the_step_size_of_the_caller_does_not_matter() -> None:
    small, large = (exact_bias(dataclasses.replace(WRONG["q = ½"], step_size=step)) for step in (1e-4, 1e2))
    for a, b in zip(small, large, strict=True):
        assert a.biases == pytest.approx(b.biases, rel=1e-6, abs=1e-12)
    assert max(max(a.biases) for a in small) > 1e-3


def test_a_wrong_order_and_no_order_are_told_apart() -> None:
    assert order(NMPG(0.2)) == pytest.approx(1, abs=0.01)
    assert order(NPGIGT(0.2)) == pytest.approx(2, abs=0.01)
    assert order(NHARPG(0.2)) == math.inf

    class NoClaim(NMPG):
        order: ClassVar[int] = 0

    assert {claim.line for claim in verdict(NoClaim(0.2))} == {"start", "estimates"}


# an error in the agent is a fault, whatever its type


class Misspelt(NMPG):
    """Its order would be tested without noise, where the error was once taken for reading trajectories."""

    def step(self, state, world):
        return super().step(state, world) if state.t < 1 else self.stpe(state, world)


class Raises(NPG):
    @property
    def unbiased(self):
        return self.unbaised


class NoPair(NPG):
    def step(self, state, world):
        return super().step(state, world)[0]


class NoState(NPG):
    def init(self, theta):
        return {"theta": theta}


class Flat(NPG):
    def step(self, state, world):
        after, metrics = super().step(state, world)
        return after._replace(d=after.d[0]), metrics


class Elsewhere(NPG):
    def step(self, state, world):
        world.sample(state.theta[0])
        return super().step(state, world)


class Leaves(NPG):
    def step(self, state, world):
        raise SystemExit(0)


class Says(NPG):
    unbiased: ClassVar[str] = "yes"


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        (
            Misspelt(0.2),
            r"raised AttributeError: 'Misspelt' .* no attribute 'stpe' \(test_check.py, line \d+\) in step 1",
        ),
        (Raises(0.2), r"raised AttributeError: .*unbaised' \(test_check.py, line \d+\) in unbiased"),
        (NoPair(0.2), r"step returned Ascent, expected the pair \(state, metrics\)"),
        (NoState(0.2), r"init returned dict as its state, expected a NamedTuple with theta and d"),
        (Flat(0.2), r"step returned a tensor \(4,\) as d, expected a tensor \(1, 4\)"),
        (Elsewhere(0.2), r"asked for episodes at a tensor \(4,\), expected θ \[1, 4\]"),
        (Leaves(0.2), r"called sys.exit\(0\) \(test_check.py, line \d+\) in step 0"),
        (Says(0.2), r"has unbiased = 'yes', expected True or False"),
        (WRONG["q of its own random numbers"], r"two directions in iteration 1 .*: use world.uniform\(\)"),
    ],
)
def test_an_error_in_an_agent_is_reported(agent, sentence: str) -> None:
    with pytest.raises(LearnerFault, match=sentence):
        verdict(agent)


def test_a_direction_that_is_not_finite_fails() -> None:
    class NotFinite(NPG):
        def step(self, state, world):
            after, metrics = super().step(state, world)
            return after._replace(d=after.d / 0), metrics

    assert failed(NotFinite(0.2)) == {"start": math.inf, "bias": math.inf}
    assert EXACT < LIMIT
