"""DAG environments by name, with their settings. Reading names and settings loads no torch.

hypergrid, bits, sets, molecules    ours                 path/to/file.py:make      a function that returns a DagEnv
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from envs.ranges import Natural, NonNegative, Positive, Range, Seed
from experiments.cli.errors import UserError
from experiments.cli.load import absolute, load_object, short_name
from experiments.cli.verbs import close_to
from experiments.molecules import config as molecule_config

if TYPE_CHECKING:
    from torch import Tensor

    from envs.core import DagEnv

MEMBERS = (
    "backend",
    "observation_space",
    "action_space",
    "horizon",
    "reset",
    "step",
    "state_at",
    "parents",
    "log_reward",
    "describe",
)


@dataclass(frozen=True)
class HyperGridSettings:
    ndim: Annotated[int, Range(1, 64)] = 4
    """number of coordinates"""
    height: Annotated[int, Range(2, 1_000_000)] = 8
    """number of values of each coordinate"""
    r0: Positive = 0.1
    """R0, the reward of every cell; the smaller, the harder the exploration"""
    r1: NonNegative = 0.5
    """R1, added on the plateaus around the corners"""
    r2: NonNegative = 2.0
    """R2, added in the modes"""
    reward: str = "corners"
    """corners, cosine, or file.py:function that maps cells [M, ndim] to rewards R > 0 [M]"""
    convention: Literal["stop", "paper2021"] = "stop"
    """stop: episodes end by the stop action alone; paper2021: also when a coordinate reaches height - 1"""


@dataclass(frozen=True)
class BitsSettings:
    length: Annotated[int, Range(1, 10_000)] = 120
    """number of bits"""
    word: Annotated[int, Range(1, 16)] = 1
    """number of bits that an action writes"""
    n_modes: Annotated[int, Range(1, 100_000)] = 60
    """number of hidden modes"""
    order: Literal["append", "any"] = "append"
    """order of construction: append (from left to right) or any (at any empty position)"""
    beta: NonNegative = 3.0
    """inverse temperature: the reward falls from 1 to exp(-beta) over a Hamming distance of `length` bits"""
    radius: Natural = 0
    """a mode counts as found when an object is within this Hamming distance"""
    modes_seed: Seed = 0
    """seed of the modes and the test set"""


@dataclass(frozen=True)
class SetsSettings:
    items: Annotated[int, Range(1, 4_096)] = 30
    """number of items to choose from"""
    size: Annotated[int, Range(1, 4_096)] = 20
    """number of items in a finished set"""
    scale: NonNegative = 1.0
    """energies of items are uniform on [-scale, scale]"""
    energies_seed: Seed = 0
    """seed of the energies"""


@dataclass(frozen=True)
class NoSettings:
    """An environment from a file is what its function returns."""


@dataclass(frozen=True)
class EnvironmentEntry:
    """settings: a dataclass; make(settings, device); title(settings): for figures, without spaces at the ends.

    resolved: settings -> settings that a config can hold, without files whose contents may change.
    """

    settings: type[Any]
    make: Callable[[Any, str], DagEnv]
    title: Callable[[Any], str]
    about: str
    resolved: Callable[[Any], Any] = lambda settings: settings


def find_env(name: str) -> EnvironmentEntry:
    """UserError with close matches when there is none."""
    if name.partition(":")[0].endswith(".py"):
        return EnvironmentEntry(
            NoSettings, lambda settings, device: _outside(name, device), lambda settings: short_name(name), ""
        )
    if name not in ENVIRONMENTS:
        raise UserError(
            f"no environment is called {name!r}; close: {close_to(name, ENVIRONMENTS, ', '.join(ENVIRONMENTS))}, file.py:make"
        )
    return ENVIRONMENTS[name]


@dataclass(frozen=True)
class Reward:
    """A reward function from a file; an exception in it becomes a RewardFault."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, cells: Tensor) -> Tensor:
        import torch

        from envs.core import RewardFault
        from envs.raised import raised

        try:
            return torch.as_tensor(self.function(cells), device=cells.device).double()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RewardFault(f"the reward {self.name} {raised(error)} for cells {list(cells.shape)}") from error


def _hypergrid(settings: HyperGridSettings, device: str) -> DagEnv:
    from envs.dag.hypergrid import HyperGrid

    reward: Any = settings.reward
    if ".py" in settings.reward:
        reward = Reward(settings.reward, load_object(settings.reward))
    return HyperGrid(
        settings.ndim,
        settings.height,
        settings.r0,
        settings.r1,
        settings.r2,
        reward=reward,
        convention=settings.convention,
        device=device,
    )


def _bits(settings: BitsSettings, device: str) -> DagEnv:
    from envs.dag.bits import Bits

    return Bits(
        settings.length,
        settings.word,
        settings.n_modes,
        order=settings.order,
        beta=settings.beta,
        radius=settings.radius,
        seed=settings.modes_seed,
        device=device,
    )


def _sets(settings: SetsSettings, device: str) -> DagEnv:
    from envs.dag.sets import Sets

    return Sets(settings.items, settings.size, scale=settings.scale, seed=settings.energies_seed, device=device)


def _grid_title(settings: HyperGridSettings) -> str:
    reward = f"R0 = {settings.r0:g}" if settings.reward == "corners" else short_name(settings.reward)
    return f"hypergrid {settings.ndim}-D, H = {settings.height}, {reward}, {settings.convention}"


def _outside(name: str, device: str) -> DagEnv:
    """What the function in a file returns; it is given the device where it has a parameter of that name."""
    from envs.core import DagEnv
    from envs.raised import raised

    make = load_object(name)
    try:
        takes = "device" in inspect.signature(make).parameters
        made = make(device=device) if takes else make()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"{name} could not make an environment: it {raised(error)}") from error
    if not isinstance(made, DagEnv):
        lacks = [member for member in MEMBERS if not hasattr(made, member)]
        lack = f", which lacks {', '.join(lacks)}" if lacks else ""
        raise UserError(f"{name} returned a {type(made).__name__}{lack}: expected an envs.core.DagEnv")
    if device != "cpu" and not takes:
        raise UserError(f"--device {device}: {name} takes no device, so it runs on the CPU; use --device cpu")
    return made


ENVIRONMENTS = {
    "hypergrid": EnvironmentEntry(
        HyperGridSettings,
        _hypergrid,
        _grid_title,
        "grid on which each action increments a coordinate; every cell is a terminal state",
        lambda k: replace(k, reward=absolute(k.reward)),
    ),
    "bits": EnvironmentEntry(
        BitsSettings, _bits, lambda k: f"{k.length} bits in words of {k.word}, {k.order}", "bit strings with hidden modes"
    ),
    "sets": EnvironmentEntry(
        SetsSettings, _sets, lambda k: f"sets of {k.size} out of {k.items}", "sets of a fixed size, constructed in any order"
    ),
    "molecules": EnvironmentEntry(
        molecule_config.MoleculeSettings,
        molecule_config.molecules,
        molecule_config.title,
        "molecules from building blocks, rewards from RDKit, the sEH proxy or a file",
        molecule_config.resolved,
    ),
}
