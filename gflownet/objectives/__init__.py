"""Objectives: frozen dataclasses of knobs with `loss(flows) -> [S]`, one a file, around pure functions of tensors.

    uses    what the model must hold beside the policy: "state_flow", "log_z", "target" (a slow copy of the parameters)
    log_z   the objective's own estimate of log Z, [S]

An objective is zero, with zero gradient, exactly where the policy samples objects in proportion to their reward.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from gflownet.flows.flows import Flows


@runtime_checkable
class Objective(Protocol):
    uses: ClassVar[frozenset[str]]

    def loss(self, flows: Flows) -> Tensor: ...

    def log_z(self, flows: Flows) -> Tensor: ...


@runtime_checkable
class RestrictsBackward(Protocol):
    """An objective that makes sense with some backward policies only."""

    backwards: ClassVar[tuple[str, ...]]
