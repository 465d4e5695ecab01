"""Protocols of the optional members of a DAG environment. Each saves work, or makes an objective or a metric possible.

    if offers(env, CountsPaths):  env.log_paths(obs, terminated)

`offers` inspects the object and not its class, so that it sees the members that a wrapper delegates by `__getattr__`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor

from envs.core import DagEnv
from envs.random import Rng


class Keyed(DagEnv, Protocol):
    """index(obs) -> [M] int64, a unique key of each observation. Used for deduplication."""

    def index(self, obs: Tensor) -> Tensor: ...


class Indexed(Keyed, Protocol):
    """The keys run from 0 to n_states - 1. Used for tables and enumeration."""

    n_states: int


class CountsEdges(DagEnv, Protocol):
    """edges_in(obs, terminated) -> [M, A]: number of edges into these states by action (bool if never more than one)."""

    def edges_in(self, obs: Tensor, terminated: Tensor) -> Tensor: ...


class CountsParents(DagEnv, Protocol):
    """edge_count(obs, terminated) -> [M]: number of edges into these states."""

    def edge_count(self, obs: Tensor, terminated: Tensor) -> Tensor: ...


class CountsPaths(DagEnv, Protocol):
    """log_paths(obs, terminated) -> [M]: log of the number of paths from the source. Used by the MaxEnt backward policy."""

    def log_paths(self, obs: Tensor, terminated: Tensor) -> Tensor: ...


class FewAncestors(DagEnv, Protocol):
    """few_ancestors: whether all ancestors of an object can be listed, so that log p(x) is exact. Read the value too."""

    few_ancestors: bool


class WithStop(DagEnv, Protocol):
    """stop: the action that finishes any state. Used by modified detailed balance."""

    stop: int


class PartialReward(DagEnv, Protocol):
    """log_reward_partial(obs) -> [M]: the log-reward extended to states that have not ended. Used by forward-looking losses."""

    def log_reward_partial(self, obs: Tensor) -> Tensor: ...


class StartsReward(DagEnv, Protocol):
    """start_log_reward(obs): start to compute the log-rewards of finished objects elsewhere, and return at once.

    elsewhere: whether that saves time. Used to construct objects while the rewards of others are computed.
    """

    @property
    def elsewhere(self) -> bool: ...

    def start_log_reward(self, obs: Tensor) -> None: ...


class WithModes(DagEnv, Protocol):
    """modes(obs) -> [M] int64: the mode that a finished object lies in, from 0 to n_modes - 1, or -1. n_modes may be 0."""

    @property
    def n_modes(self) -> int: ...

    def modes(self, obs: Tensor) -> Tensor: ...


class WithTestSet(DagEnv, Protocol):
    """test_set() -> [M, *obs]: finished objects for the correlation of log p with log R."""

    def test_set(self) -> Tensor: ...


class WithDevice(DagEnv, Protocol):
    """device: where the tensors of the environment are. Without it: the CPU."""

    device: torch.device


class Proposes(DagEnv, Protocol):
    """propose(obs, rng) -> (x' [M, *obs], log q(x|x') - log q(x'|x) [M]): a step of Metropolis–Hastings between objects."""

    def propose(self, obs: Tensor, rng: Rng) -> tuple[Tensor, Tensor]: ...


T = TypeVar("T")


def offers(env: Any, protocol: type[T]) -> TypeGuard[T]:
    """Whether `env` has all members of one of the protocols above."""
    return all(hasattr(env, name) for name in _members(protocol))  # type: ignore[arg-type]


@cache
def _members(protocol: type) -> frozenset[str]:
    """The members of a protocol beyond those of `DagEnv`. Cached, because `offers` is called in every iteration."""
    more = [base for base in protocol.__mro__ if base not in DagEnv.__mro__]
    names = {name for base in more for name in (*vars(base), *vars(base).get("__annotations__", ()))}
    return frozenset(name for name in names if not name.startswith("_"))
