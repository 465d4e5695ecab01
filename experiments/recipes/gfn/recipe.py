"""Tuned settings of `gflownet` by environment: what a bare `gflownet train ENV --objective NAME` uses, and prints.

`hyperparameters` are by objective or baseline: fields of the method, of the objective, or of the shared settings
(batch_size, states); `common` is for all GFlowNets. The preset "paper" holds the settings of
the paper that introduced the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GFNRecipe:
    """Settings for one environment; `note` says where they come from."""

    states: int
    batch_size: int = 16
    env_settings: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
