"""`check_dag`: correct environments pass, and for each check there is an environment that fails it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.check import CONTRACT, ContractError
from envs.core import DagEnv, Parents, State
from envs.dag.bits import Bits
from envs.dag.check_dag import DAG_CONTRACT, check_dag
from envs.dag.hypergrid import HyperGrid
from envs.dag.sets import Sets
from envs.random import Rng
from tests.dags import TableDag, crossing, torch_twin


def grid() -> HyperGrid:
    return HyperGrid(2, 4)


def late() -> HyperGrid:
    return HyperGrid(2, 4, convention="paper2021")


def wide() -> HyperGrid:
    """Too many cells to be checked one by one."""
    return HyperGrid(2, 400)


def with_members(make: Callable[[], Any], **members: Any) -> Any:
    """An environment with methods replaced; each is given the environment as it was, then its own arguments."""
    env, honest = make(), make()
    for name, member in members.items():
        setattr(env, name, (lambda f: lambda *args: f(honest, *args))(member) if callable(member) else member)
    return env


def edges(change: Callable[[Parents, Tensor, Tensor], Parents]) -> Callable[[Any, Tensor, Tensor], Parents]:
    return lambda env, obs, terminated: change(env.parents(obs, terminated), obs, terminated)


def pick(p: Parents, rows: Any) -> Parents:
    return Parents(p.child[rows], p.obs[rows], p.action[rows])


def first(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    """All edges but one."""
    return pick(p, slice(1, None))


def twice(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    return pick(p, torch.cat([torch.arange(len(p.child)), torch.tensor([3])]))


def another_child(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    return replace(p, child=torch.where(torch.arange(len(p.child)) == 2, (p.child + 1) % len(obs), p.child))


def another_action(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    """The first increment undone as the second, where that is valid."""
    return replace(p, action=torch.where((p.action == 0) & (p.obs[:, 1] < 3), 1, p.action))


def by_stopping(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    """A spurious edge: stopping leads to unfinished cells too."""
    more = (~terminated & (obs.sum(1) > 0)).nonzero()[:, 0]
    rows = torch.cat([p.child, more]), torch.cat([p.obs, obs[more]]), torch.cat([p.action, torch.full_like(more, 2)])
    return Parents(*rows)


def of_the_source(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    source = ((obs == 0).all(1) & ~terminated).nonzero()[:, 0]
    return Parents(torch.cat([p.child, source]), torch.cat([p.obs, obs[source]]), torch.cat([p.action, source * 0]))


def from_below(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    """Cells at zero have a parent at minus one."""
    low = ((obs[:, 0] == 0) & (obs[:, 1] > 0) & ~terminated).nonzero()[:, 0]
    below = obs[low] - torch.tensor([1, 0])
    return Parents(torch.cat([p.child, low]), torch.cat([p.obs, below]), torch.cat([p.action, low * 0]))


def from_ended(p: Parents, obs: Tensor, terminated: Tensor) -> Parents:
    """Cells at the border are undone along the other coordinate, where an episode has ended (paper2021)."""
    border = ((obs[:, 0] == 3) & (obs[:, 1] > 0)).nonzero()[:, 0]
    before = obs[border] - torch.tensor([0, 1])
    return Parents(torch.cat([p.child, border]), torch.cat([p.obs, before]), torch.cat([p.action, border * 0 + 1]))


def all_valid(env: Any, obs: Any, terminated: Any) -> State:
    state = env.state_at(obs, terminated)
    return replace(state, action_mask=state.action_mask | True)


def after(change: Callable[[State, State, Any], State]) -> Callable[..., State]:
    return lambda env, state, action, rng: change(env.step(state, action, rng), state, action)


def paid(new: State, old: State, action: Any) -> State:
    """The reward of cells is paid by the last step too."""
    return replace(new, reward=(new.terminated & ~old.terminated) * np.float32(0.5))


def elsewhere(env: Any, n: int, rng: Rng) -> State:
    return env.state_at((rng.uniform(2) > 0.5).astype(np.int64), np.zeros(n, bool))


def diamond() -> TableDag:
    """Every action is valid everywhere."""
    return TableDag([[1, 2], [3, 3], [3, 3], [-1, -1]], [0.0] * 4, horizon=2)


def unmasked(name: str) -> Callable[..., State]:
    return lambda env, *args: replace(getattr(env, name)(*args), action_mask=None)


def unreachable() -> TableDag:
    """6 leads to 4, and nothing leads to 6."""
    table = [*crossing().table.tolist(), [4, -1]]
    return TableDag(table, [0.0] * 4 + [0.5, -1.0, 0.0], horizon=3)


def too_few_ways(env: Any, obs: Tensor, terminated: Tensor) -> Tensor:
    """Paths counted as if coordinates went up one after the other."""
    return torch.zeros(len(obs), dtype=torch.float64)


def one_more(env: Any, obs: Tensor, terminated: Tensor) -> Tensor:
    return env.edges_in(obs, terminated) + (torch.arange(len(obs)) == 3)[:, None]


BROKEN: list[tuple[str, Any]] = [
    ("discrete", with_members(diamond, reset=unmasked("reset"), step=unmasked("step"))),
    ("ends", TableDag([[1, 1], [2, 2], [3, 3], [-1, -1]], [0.0] * 4, horizon=2)),
    ("ends", TableDag([[1, 2], [0, 3], [3, 3], [-1, -1]], [0.0] * 4, horizon=3)),
    ("ends", with_members(grid, step=after(lambda new, old, a: replace(new, truncated=new.terminated)))),
    ("one source", with_members(grid, reset=elsewhere)),
    ("step reward", with_members(grid, step=after(paid))),
    ("state_at", with_members(grid, state_at=all_valid)),
    ("state_at", with_members(lambda: Sets(30, 20), state_at=all_valid)),
    ("state_at", with_members(grid, state_at=lambda env, obs, t: env.state_at(obs, t & ~t))),
    ("distinct", with_members(grid, index=lambda env, obs: obs.sum(1))),
    ("numbers", with_members(grid, index=lambda env, obs: env.index(obs) + 1)),
    ("numbers", with_members(grid, index=lambda env, obs: env.index(obs).double())),
    ("edge list", with_members(grid, parents=edges(lambda p, *_: replace(p, action=p.action[1:])))),
    ("edge list", with_members(grid, parents=edges(lambda p, *_: replace(p, child=p.child + 1)))),
    ("edge list", with_members(grid, parents=edges(lambda p, *_: replace(p, obs=p.obs.float())))),
    ("edge list", with_members(grid, parents=lambda env, obs, terminated: [])),
    ("no parents", with_members(grid, parents=edges(of_the_source))),
    ("parents unfinished", with_members(late, parents=edges(from_ended))),
    ("valid edges", with_members(grid, parents=edges(lambda p, *_: replace(p, action=p.action + 1)))),
    ("leads here", with_members(grid, parents=edges(another_action))),
    ("leads here", with_members(grid, parents=edges(another_child))),
    ("leads here", with_members(grid, parents=edges(by_stopping))),
    ("leads here", with_members(wide, parents=edges(by_stopping))),
    ("once", with_members(grid, parents=edges(twice))),
    ("once", with_members(wide, parents=edges(twice))),
    ("all edges", with_members(grid, parents=edges(first))),
    ("all edges", with_members(wide, parents=edges(lambda p, *_: pick(p, p.action != 1)))),
    ("all edges", with_members(crossing, parents=edges(lambda p, *_: pick(p, (p.obs != 2) | (p.action != 1))))),
    ("reachable", with_members(grid, parents=edges(from_below))),
    ("reachable", unreachable()),
    ("edges_in", with_members(grid, edges_in=one_more, parents=edges(lambda p, *_: p))),
    ("edges_in", with_members(crossing, edges_in=lambda env, obs, t: env.edges_in(obs, t)[:, :1])),
    ("log_paths", with_members(grid, log_paths=too_few_ways)),
    ("log_reward", with_members(grid, log_reward=lambda env, obs: env.log_reward(obs).float())),
    ("log_reward", with_members(grid, log_reward=lambda env, obs: env.log_reward(obs)[:, None])),
    ("log_reward", with_members(grid, log_reward=lambda env, obs: obs.double().sum(1).log())),
    ("log_reward", HyperGrid(2, 4, reward=lambda cells: cells.sum(1))),
    ("partial", with_members(grid, log_reward_partial=lambda env, obs: env.log_reward(obs) + 1)),
    ("modes", with_members(lambda: HyperGrid(2, 8), modes=lambda env, obs: env.modes(obs) + 2)),
    ("describe", with_members(grid, describe=lambda env, obs: [str(sum(x)) for x in obs.tolist()])),
    ("describe", with_members(grid, describe=lambda env, obs: ["a"])),
]


@pytest.mark.parametrize(("name", "env"), BROKEN, ids=lambda x: x if isinstance(x, str) else "")
def test_a_failed_check_raises(name: str, env: Any) -> None:
    with pytest.raises(ContractError) as fault:
        check_dag(env)
    assert fault.value.name == name, fault.value
    requirement, advice = DAG_CONTRACT[name]
    assert str(fault.value).startswith(f"failed check: {requirement}; got ")
    assert str(fault.value).endswith(f" {advice}.")


@pytest.mark.parametrize("name", ["state_at", "parents", "log_reward", "describe"])
def test_a_missing_member_is_named(name: str) -> None:
    members = {k: v for k, v in vars(TableDag).items() if k != name and not k.startswith("__")}
    members["state_at" if name != "state_at" else "_at"] = TableDag.state_at
    members["__init__"] = TableDag.__init__
    if name == "state_at":
        members |= {"reset": _reset, "step": _step}
    env = type("Broken", (), members)(crossing().table.tolist(), crossing().worth.tolist(), 3)
    with pytest.raises(ContractError, match=f"no {name}") as fault:
        check_dag(env)
    assert fault.value.name == "dag members"


def _reset(self: Any, n: int, rng: Rng) -> State:
    return crossing().reset(n, rng)


def _step(self: Any, state: State, action: Any, rng: Rng) -> State:
    return crossing().step(state, action, rng)


def test_each_check_has_an_environment_that_fails_it() -> None:
    assert {name for name, _ in BROKEN} | {"dag members"} == DAG_CONTRACT.keys()
    assert not DAG_CONTRACT.keys() & CONTRACT.keys()


def test_the_contract_of_environments_is_checked_too() -> None:
    with pytest.raises(ContractError) as fault:
        check_dag(with_members(grid, horizon=0))
    assert fault.value.name == "horizon"


@pytest.mark.parametrize(
    "env",
    [grid(), late(), wide(), crossing(), Bits(4, 1, 2, order="any"), torch_twin(late()), Sets(5, 2)],
    ids=lambda e: type(e).__name__,
)
def test_good_environments_keep_the_contract(env: Any) -> None:
    passed = check_dag(env)
    assert isinstance(env, DagEnv)
    reported = {name for name, (requirement, _) in DAG_CONTRACT.items() if requirement in passed}
    assert reported == {name for name, (requirement, _) in DAG_CONTRACT.items() if requirement in check_dag(env, seed=3)}
    optional = {"edges_in", "log_paths", "partial", "modes", "numbers", "distinct"}
    assert reported >= DAG_CONTRACT.keys() - optional
    assert ("log_paths" in reported) == (hasattr(env, "log_paths") and env.n_states < 20_000)


def test_without_the_optional_members() -> None:
    members = {k: v for k, v in vars(TableDag).items() if k not in ("edges_in", "index")}
    env = type("Bare", (), members)(crossing().table.tolist(), crossing().worth.tolist(), 3)
    del env.n_states
    assert DAG_CONTRACT["all edges"][0] in check_dag(env)
