"""DAG environments by name, with their settings. Reading names and settings loads no torch.

hypergrid, bits, sets, molecules    ours                 path/to/file.py:make      a function that returns a DagEnv
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

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
    ndim: int = 4
    """coordinates"""
    height: int = 8
    """cells of each coordinate"""
    r0: float = 0.1
    """R0, what every cell is worth; the smaller, the harder to find the modes"""
    r1: float = 0.5
    """R1, in addition on the plateaus around the corners"""
    r2: float = 2.0
    """R2, in addition in the modes"""
    reward: str = "corners"
    """corners, cosine, or file.py:function of cells [M, ndim] that gives R > 0 [M]"""
    convention: Literal["stop", "paper2021"] = "stop"
    """stop: every cell is kept by the stop action; paper2021: an episode also ends at a coordinate of height - 1"""


@dataclass(frozen=True)
class BitsSettings:
    length: int = 120
    """bits"""
    word: int = 1
    """bits written at once"""
    n_modes: int = 60
    """hidden modes"""
    order: Literal["append", "any"] = "append"
    """append: from left to right; any: at any empty position"""
    beta: float = 3.0
    """how peaked the reward is: it falls from 1 to exp(-beta) over a distance of `length` bits"""
    radius: int = 0
    """an object within so many bits of a mode has found it"""
    modes_seed: int = 0
    """of the modes and the test set"""


@dataclass(frozen=True)
class SetsSettings:
    items: int = 30
    """to choose from"""
    size: int = 20
    """of a finished set"""
    scale: float = 1.0
    """energies of items are uniform on [-scale, scale]"""
    energies_seed: int = 0
    """of the energies"""


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
    """A function of cells in a file; whatever it raises becomes one sentence."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, cells: Tensor) -> Tensor:
        import torch

        try:
            return torch.as_tensor(self.function(cells), device=cells.device)
        except Exception as error:
            raise UserError(f"{self.name} failed on cells {list(cells.shape)}: {type(error).__name__}: {error}") from error


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

    make = load_object(name)
    try:
        takes = "device" in inspect.signature(make).parameters
        made = make(device=device) if takes else make()
    except Exception as error:
        raise UserError(f"{name} could not make an environment: {type(error).__name__}: {error}") from error
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
        "n coordinates that go up one by one; every cell can be kept",
        lambda k: replace(k, reward=absolute(k.reward)),
    ),
    "bits": EnvironmentEntry(
        BitsSettings, _bits, lambda k: f"{k.length} bits in words of {k.word}, {k.order}", "strings of bits with hidden modes"
    ),
    "sets": EnvironmentEntry(
        SetsSettings, _sets, lambda k: f"sets of {k.size} out of {k.items}", "sets of a fixed size, any order"
    ),
    "molecules": EnvironmentEntry(
        molecule_config.MoleculeSettings,
        molecule_config.molecules,
        molecule_config.title,
        "trees of building blocks with a chemist's reward",
        molecule_config.resolved,
    ),
}
