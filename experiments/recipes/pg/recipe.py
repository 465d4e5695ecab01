"""Tuned settings by environment: what a bare `pgrl train ALGO --env ENV` uses, and prints.

A recipe holds every scientific choice that the command line has no default for. `hyperparameters` are
the agent's, by algorithm; those an algorithm does not name keep the exponents of its theorem. `settings` are those in which
an algorithm differs from the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PGRecipe:
    """Settings for one environment; `note` says where they come from."""

    discount: float
    env_steps: int
    horizon: int | None = None
    batch_size: int = 1
    hidden: tuple[int, ...] = ()
    baseline: str = "none"
    causal: bool = False
    log_std: float = 0.0
    learn_std: bool = True
    bias: bool = True
    output_scale: float = 1.0
    normalise_steps: int = 0
    bounds: str = "none"
    dtype: str = "float32"
    hyperparameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
