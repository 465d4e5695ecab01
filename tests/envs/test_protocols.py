"""Protocols of DAG environments are checked on the object, so that a wrapper offers the members of what it wraps."""

from typing import Any

import pytest

from envs.core import DagEnv
from envs.dag import protocols
from envs.dag.bits import Bits
from envs.dag.hypergrid import HyperGrid
from envs.dag.protocols import (
    CountsPaths,
    FewAncestors,
    Indexed,
    Keyed,
    PartialReward,
    WithModes,
    WithStop,
    WithTestSet,
    offers,
)

ALL = [x for x in vars(protocols).values() if isinstance(x, type) and DagEnv in x.__mro__[1:]]


class Wrapper:
    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


class OnlyKeys:
    def index(self, obs: Any) -> Any:
        return obs


def test_what_our_environments_offer() -> None:
    grid, bits = HyperGrid(2, 4), Bits(8, 4, n_modes=2)
    for protocol in (Indexed, Keyed, CountsPaths, PartialReward, WithModes, WithStop):
        assert offers(grid, protocol)
    assert offers(bits, WithTestSet)
    assert not offers(grid, WithTestSet)
    assert not offers(grid, FewAncestors)


@pytest.mark.parametrize("protocol", ALL, ids=lambda x: x.__name__)
def test_a_wrapper_offers_what_it_wraps_and_nothing_offers_all(protocol: Any) -> None:
    grid = HyperGrid(2, 4)
    assert offers(Wrapper(grid), protocol) == offers(grid, protocol)
    assert not offers(object(), protocol)


def test_members_of_the_base_count() -> None:
    assert offers(OnlyKeys(), Keyed)
    assert not offers(OnlyKeys(), Indexed)
