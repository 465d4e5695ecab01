"""Objectives: frozen dataclasses of hyperparameters with `loss(flows) -> [S]`, around pure functions of tensors.

    uses    what it needs besides the policy: "state_flow", "log_z", "target" (a target network)
    log_z   the objective's own estimate of log Z, [S]

An objective and its gradient are 0 exactly if the policy samples objects in proportion to their reward.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from gflownet.flows.flows import Flows


@runtime_checkable
class Objective(Protocol):
    """A loss of a batch of trajectories, [S], and an estimate of log Z, [S]."""

    uses: ClassVar[frozenset[str]]

    def loss(self, flows: Flows) -> Tensor: ...

    def log_z(self, flows: Flows) -> Tensor: ...


@runtime_checkable
class RestrictsBackward(Protocol):
    """An objective that supports only some backward policies."""

    backwards: ClassVar[tuple[str, ...]]
