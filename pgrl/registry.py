"""Every agent by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgrl.agent import Agent
from pgrl.agents.harpg import HARPG
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_mpg import NMPG
from pgrl.agents.n_pg import NPG
from pgrl.agents.n_pg_igt import NPGIGT
from pgrl.agents.reinforce import REINFORCE


@dataclass(frozen=True)
class AgentEntry:
    """A registered name: the agent's class, the hyperparameters that the name fixes, and the exponent of the sample complexity
    (gap ~ (environment steps)^-slope in the worst case; None where no theorem gives one)."""

    make: Callable[..., Agent]
    preset: dict[str, float]
    slope: float | None = None


def register() -> dict[str, AgentEntry]:
    """Every agent by name."""
    return {
        "reinforce": AgentEntry(REINFORCE, {}, 1 / 3),
        "n-pg": AgentEntry(NPG, {}),
        "n-mpg": AgentEntry(NMPG, {}, 1 / 3),
        "n-pg-igt": AgentEntry(NPGIGT, {}, 2 / 5),
        "harpg": AgentEntry(HARPG, {}, 1 / 2),
        "n-harpg": AgentEntry(NHARPG, {}, 1 / 2),
        "sharp": AgentEntry(NHARPG, {"step_power": 2 / 3, "eta_power": 2 / 3}),
    }
