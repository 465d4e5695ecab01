"""Every agent by name. Reading the names loads no torch: the class of an agent is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgrl.agent import Agent


@dataclass(frozen=True)
class AgentEntry:
    """A registered name.

    Attributes:
        source: the agent's class, or where it is: "module:Class".
        about: the first line of the class's docstring, or one line about the preset.
        preset: the hyperparameters that the name fixes.
        slope: the exponent of the sample complexity (gap ~ (environment steps)^-slope in the worst case); None where no theorem
            gives one.
        biased: what about its steps is biased, for people; empty if nothing is.
    """

    source: str | Callable[..., Agent]
    about: str = ""
    preset: dict[str, float] = field(default_factory=dict)
    slope: float | None = None
    biased: str = ""

    @property
    def make(self) -> Callable[..., Agent]:
        """The agent's class."""
        if not isinstance(self.source, str):
            return self.source
        module, _, name = self.source.partition(":")
        make: Callable[..., Agent] = getattr(import_module(module), name)
        return make


def register() -> dict[str, AgentEntry]:
    """Every agent by name."""
    return {
        "reinforce": AgentEntry("pgrl.agents.reinforce:REINFORCE", "Stochastic gradient ascent.", slope=1 / 3),
        "n-pg": AgentEntry("pgrl.agents.n_pg:NPG", "Normalised policy gradient; with a batch of one it need not converge."),
        "n-mpg": AgentEntry("pgrl.agents.n_mpg:NMPG", "Normalised policy gradient with momentum.", slope=1 / 3),
        "n-pg-igt": AgentEntry(
            "pgrl.agents.n_pg_igt:NPGIGT",
            "Normalised policy gradient with implicit gradient transport; complexity ε^-2.5, one trajectory an iteration.",
            slope=2 / 5,
        ),
        "harpg": AgentEntry(
            "pgrl.agents.harpg:HARPG",
            "Hessian-aided recursive policy gradient; complexity ε^-2, two trajectories an iteration.",
            slope=1 / 2,
        ),
        "n-harpg": AgentEntry(
            "pgrl.agents.n_harpg:NHARPG",
            "Normalised Hessian-aided recursive policy gradient; complexity ε^-2, two trajectories an iteration.",
            slope=1 / 2,
        ),
        "sharp": AgentEntry(
            "pgrl.agents.n_harpg:NHARPG",
            "N-HARPG with the exponents of SHARP: step_power = eta_power = 2/3.",
            {"step_power": 2 / 3, "eta_power": 2 / 3},
        ),
        "adam-pg": AgentEntry(
            "pgrl.agents.adam_pg:AdamPG",
            "Policy gradient with the steps of Adam; biased, since they are not along the direction.",
            biased="Adam's steps",
        ),
    }
