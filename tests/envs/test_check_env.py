"""`check_env`: correct environments pass, and for each check there is an environment that fails it."""

from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple

from envs.check import CONTRACT, ContractError, RandomAct, check_env
from envs.core import Env, State
from envs.mdp.lqr import double_integrator
from envs.mdp.tabular import garnet, gridworld
from envs.random import Rng
from envs.rollout import rollout


class Walk:
    """A walk on the line that ends beyond ±1.5; a function of its arguments."""

    backend: ClassVar[Any] = "torch"
    observation_space: Any = Box(-9.0, 9.0, (1,))
    action_space: Any = Discrete(3)
    horizon = 20

    def reset(self, n: int, rng: Rng) -> State:
        x, never = rng.uniform(1) - 0.5, torch.zeros(n, dtype=torch.bool)
        return State(x, torch.zeros(n), never, never, {"x": x}, torch.ones(n, 3, dtype=torch.bool))

    def step(self, state: State, action: Any, rng: Rng) -> State:
        over = state.terminated | state.truncated
        x = state.inner["x"] + torch.where(over, 0.0, (action - 1) * rng.uniform())[:, None]
        reward = torch.where(over, 0.0, 1.0)
        return State(x, reward, state.terminated | (x[:, 0].abs() > 1.5), state.truncated, {"x": x}, state.action_mask)


class Track:
    """A point that is pushed along; the world is inside, `inner` is a ticket."""

    backend: ClassVar[Any] = "numpy"
    observation_space: Any = Box(-np.inf, np.inf, (1,), np.float64)
    action_space: Any = Box(-1.0, 1.0, (1,))
    horizon = 20
    terminates = False

    def __init__(self) -> None:
        self.ticket: Any = None

    def reset(self, n: int, rng: Rng) -> State:
        self.x = np.asarray(rng.normal(1), np.float64)
        return self.state(np.zeros(n))

    def step(self, state: State, action: Any, rng: Rng) -> State:
        if state.inner is not self.ticket:
            raise ValueError("stale")
        self.x = self.x + np.clip(action, -1, 1) * rng.uniform()[:, None]
        return self.state(-np.abs(self.x[:, 0]))

    def state(self, reward: Any) -> State:
        self.ticket, never = object(), np.zeros(len(reward), bool)
        return State(self.x, reward, never, never, self.ticket)


def with_members(kind: Any, **members: Any) -> Env:
    return type("Broken", (kind,), members)()  # type: ignore[no-any-return]


def after(kind: Any, change: Any) -> Env:
    """`kind` with `change` applied to the state after each step."""
    return with_members(kind, step=lambda self, state, action, rng: change(kind.step(self, state, action, rng)))


def from_start(kind: Any, change: Any) -> Env:
    """The same after reset and step."""
    reset = lambda self, n, rng: change(kind.reset(self, n, rng))  # noqa: E731
    return with_members(type(after(kind, change)), reset=reset)


def without(name: str) -> Env:
    members = {k: v for k, v in vars(Walk).items() if k != name and not k.startswith("__")}
    return type("Broken", (), members)()  # type: ignore[no-any-return]


def set_row(x: Any, value: Any) -> Any:
    x = x.clone()
    x[1] = value
    return x


class Unsticky(Walk):
    def step(self, state: State, action: Any, rng: Rng) -> State:
        new = super().step(state, action, rng)
        return replace(new, terminated=new.terminated & ~state.terminated)


class Drifting(Walk):
    """Ended rows walk on."""

    def step(self, state: State, action: Any, rng: Rng) -> State:
        awake = replace(state, terminated=torch.zeros_like(state.terminated))
        new = super().step(awake, action, rng)
        return replace(new, terminated=state.terminated | new.terminated, reward=torch.where(state.terminated, 0.0, 1.0))


class Buffered(Track):
    """Hands out the array that it goes on writing to."""

    def step(self, state: State, action: Any, rng: Rng) -> State:
        before, new = state.obs, super().step(state, action, rng)
        before[:] = new.obs
        return replace(new, obs=before)


class Forgetful(Track):
    """Draws from a generator of its own that no key decides."""

    draw = np.random.default_rng(0)

    def step(self, state: State, action: Any, rng: Rng) -> State:
        new = super().step(state, action, rng)
        return replace(new, reward=self.draw.normal(size=len(new.reward)))


class Crowd(Walk):
    """Rewards depend on the other rows."""

    def step(self, state: State, action: Any, rng: Rng) -> State:
        new = super().step(state, action, rng)
        return replace(new, reward=new.reward * new.reward.mean())


class Grabbing(Walk):
    def step(self, state: State, action: Any, rng: Rng) -> State:
        new = super().step(state, action, rng)
        state.inner["x"] = new.inner["x"]
        return new


class Hidden(Walk):
    """Keeps the time outside the state."""

    def reset(self, n: int, rng: Rng) -> State:
        self.t = 0
        return super().reset(n, rng)

    def step(self, state: State, action: Any, rng: Rng) -> State:
        self.t += 1
        new = super().step(state, action, rng)
        return replace(new, reward=new.reward * self.t)


class Trusting(Track):
    """Never looks at the ticket."""

    def step(self, state: State, action: Any, rng: Rng) -> State:
        return super().step(replace(state, inner=self.ticket), action, rng)


class Counted(Track):
    """The ticket is the time: a state from before another reset passes."""

    def reset(self, n: int, rng: Rng) -> State:
        state, self.ticket = super().reset(n, rng), 0
        return replace(state, inner=0)

    def step(self, state: State, action: Any, rng: Rng) -> State:
        t = self.ticket
        new, self.ticket = super().step(state, action, rng), t + 1
        return replace(new, inner=t + 1)


class Touchy(Track):
    def step(self, state: State, action: Any, rng: Rng) -> State:
        assert (np.abs(action) <= 1).all(), "out of bounds"
        return super().step(state, action, rng)


BROKEN: list[tuple[str, Env]] = [
    *[("members", without(name)) for name in ("backend", "observation_space", "action_space", "horizon", "reset", "step")],
    ("backend", with_members(Walk, backend="jax")),
    ("horizon", with_members(Walk, horizon=0)),
    ("horizon", with_members(Walk, horizon=2.5)),
    ("obs space", with_members(Walk, observation_space=Tuple([Discrete(2)]))),
    ("action space", with_members(Walk, action_space=gymnasium.spaces.MultiBinary(3))),
    ("start", with_members(Walk, action_space=Discrete(3, start=1))),
    ("calls", with_members(Walk, step=lambda self, state, action: state)),
    ("state", with_members(Walk, step=lambda self, state, action, rng: (state.obs, 0.0, False))),
    ("arrays", with_members(Walk, backend="numpy")),
    ("arrays", after(Walk, lambda s: replace(s, reward=[0.0] * 4))),
    ("shapes", after(Walk, lambda s: replace(s, obs=s.obs[:, 0]))),
    ("shapes", from_start(Walk, lambda s: replace(s, reward=s.reward[:, None]))),
    ("shapes", from_start(Walk, lambda s: replace(s, action_mask=s.action_mask[:, :2]))),
    ("shapes", with_members(Walk, reset=lambda self, n, rng: Walk.reset(self, n + 1, Rng.of_seeds(range(n + 1))))),
    ("flags", after(Walk, lambda s: replace(s, terminated=s.terminated.int()))),
    ("flags", from_start(Walk, lambda s: replace(s, action_mask=s.action_mask.float()))),
    ("reward type", after(Walk, lambda s: replace(s, reward=s.reward.long()))),
    ("obs type", from_start(Walk, lambda s: replace(s, obs=s.obs.double()))),
    ("finite obs", after(Walk, lambda s: replace(s, obs=set_row(s.obs, torch.nan)))),
    ("obs inside", after(Walk, lambda s: replace(s, obs=set_row(s.obs, 10.0)))),
    ("finite reward", after(Walk, lambda s: replace(s, reward=set_row(s.reward, torch.inf)))),
    ("no reward", from_start(Walk, lambda s: replace(s, reward=torch.ones_like(s.reward)))),
    ("mask", after(Walk, lambda s: replace(s, action_mask=None))),
    ("valid", after(Walk, lambda s: replace(s, action_mask=set_row(s.action_mask, False)))),
    ("terminates", with_members(Walk, terminates=False)),
    ("sticky", Unsticky()),
    ("reward after end", after(Walk, lambda s: replace(s, reward=torch.ones_like(s.reward)))),
    ("unchanged", Drifting()),
    ("stable", Buffered()),
    ("repeats", Forgetful()),
    ("alone", Crowd()),
    ("input", Grabbing()),
    ("functional", Hidden()),
    ("stale", Trusting()),
    ("stale", Counted()),
    ("overshoot", Touchy()),
]


@pytest.mark.parametrize(("name", "env"), BROKEN, ids=lambda x: x if isinstance(x, str) else "")
def test_a_failed_check_raises(name: str, env: Env) -> None:
    with pytest.raises(ContractError) as fault:
        check_env(env)
    assert fault.value.name == name, fault.value
    requirement, advice = CONTRACT[name]
    assert str(fault.value).startswith(f"failed check: {requirement}; got ")
    assert str(fault.value).endswith(f" {advice}.")


def test_each_check_has_an_environment_that_fails_it() -> None:
    assert {name for name, _ in BROKEN} == CONTRACT.keys()


@pytest.mark.parametrize("env", [Walk(), Track(), gridworld(), garnet(), double_integrator()], ids=lambda e: type(e).__name__)
def test_good_environments_keep_the_contract(env: Any) -> None:
    passed = check_env(env)
    assert passed == check_env(env, n=7, steps=30, seed=5)
    assert isinstance(env, Env)
    assert (CONTRACT["functional"][0] in passed) == (env.backend == "torch")


def test_checks_that_were_not_exercised_are_not_reported() -> None:
    passed = check_env(Walk(), steps=1)
    assert CONTRACT["sticky"][0] not in passed
    assert CONTRACT["overshoot"][0] not in passed


def test_one_row_is_no_company() -> None:
    with pytest.raises(ValueError, match="n is 1"):
        check_env(Walk(), n=1)


@pytest.mark.parametrize(
    "space",
    [Discrete(3), MultiDiscrete([2, 5]), Box(5.0, 6.0, (2,)), Box(-np.inf, np.inf, (2,)), Box(0.0, np.inf, (2, 2))],
    ids=str,
)
def test_random_actions_lie_in_their_space_and_fill_it(space: Any) -> None:
    actions = RandomAct(space, numpy=True)(np.zeros((500, 1)), None, Rng.of_seeds(range(500)).drawn(1, numpy=True))
    assert all(a in space for a in actions)
    assert actions.std(0).min() > 0.2


def test_random_actions_are_valid() -> None:
    mask = torch.tensor([[True, False, True]]).expand(300, 3)
    actions = RandomAct(Discrete(3), numpy=False)(torch.zeros(300), mask, Rng.of_seeds(range(300)))
    assert set(actions.tolist()) == {0, 2}
    assert abs((actions == 0).double().mean() - 0.5) < 0.15


def test_random_actions_go_through_rollout() -> None:
    tau = rollout(Track(), RandomAct(Track.action_space, numpy=True), Rng.of_seeds(range(5)))
    assert tau.action.shape == (20, 5, 1)
    assert tau.mask.all()
