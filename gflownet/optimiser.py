"""Adam (Kingma and Ba 2015) for the parameters of S seeds; a seed can skip a step independently of the others.

torch's Adam counts steps for all seeds together, and would update a seed whose gradient is not finite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Rate = float | Tensor
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam(NamedTuple):
    """The state of the optimiser.

    mean, square      [S, D] moments
    steps             [S] steps taken
    skipped, failing  [S] skipped updates, in total and since the last step taken
    """

    mean: Tensor
    square: Tensor
    steps: Tensor
    skipped: Tensor
    failing: Tensor

    @staticmethod
    def begin(theta: Tensor) -> Adam:
        count = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
        return Adam(torch.zeros_like(theta), torch.zeros_like(theta), count, count.clone(), count.clone())

    def step(self, theta: Tensor, gradient: Tensor, rate: Rate, last_rate: Rate, fine: Tensor) -> None:
        """Take one step, in place, on theta and on this state.

        Args:
            theta: [S, D].
            gradient: [S, D].
            rate: learning rate.
            last_rate: learning rate of the last column of theta, log Z.
            fine: [S] bool, the seeds to update.
        """
        if theta.device.type == "cpu" and isinstance(rate, float) and isinstance(last_rate, float):
            counts = set(self.steps.tolist())
            if len(counts) == 1 and bool(fine.all()):
                return self._all_alike(theta, gradient, rate, last_rate, counts.pop() + 1)
        gradient = torch.where(fine[:, None], gradient, 0.0)
        weight = fine.to(theta.dtype)[:, None]
        self.steps.add_(fine)
        self.skipped.add_(~fine)
        self.failing.add_(1).mul_(~fine)
        # m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + ε) = scale · m / (sqrt(v) + ε sqrt(1 - β2^t))
        count = self.steps.clamp_min(1).double()[:, None]  # in float32 the first 1 - β2^t would have a relative error of 1e-5
        correction = (1 - BETAS[1] ** count).sqrt().to(theta.dtype)
        scale = -weight * correction / (1 - BETAS[0] ** count).to(theta.dtype)
        self.mean.lerp_(gradient, (1 - BETAS[0]) * weight)
        self.square.lerp_(gradient.square(), (1 - BETAS[1]) * weight)
        step = self.mean / self.square.sqrt().add_(EPSILON * correction)
        step[:, :-1].mul_(rate)
        step[:, -1:].mul_(last_rate)
        theta.addcmul_(step, scale)

    def _all_alike(self, theta: Tensor, gradient: Tensor, rate: float, last_rate: float, count: int) -> None:
        """`step` if all seeds take step number `count`: with Python numbers instead of tensors, in fewer passes."""
        self.steps.fill_(count)
        self.failing.zero_()
        correction = math.sqrt(1 - BETAS[1] ** count)
        scale = -correction / (1 - BETAS[0] ** count)
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = self.square.sqrt().add_(EPSILON * correction)
        theta[:, :-1].addcdiv_(self.mean[:, :-1], size[:, :-1], value=rate * scale)
        theta[:, -1:].addcdiv_(self.mean[:, -1:], size[:, -1:], value=last_rate * scale)
