"""Losses of a residual x: convex functions with minimum 0 and curvature 2 at 0.

squared       x²
huber         x² up to |x| = 1, then 2|x| - 1
shifted-cosh  2 (cosh x - 1)      Hu et al. 2024, "Beyond squared error": e^x + e^-x - 2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Residual = Literal["squared", "huber", "shifted-cosh"]


def huber(x: Tensor) -> Tensor:
    """x² up to |x| = 1, then 2|x| - 1, elementwise."""
    size = x.abs()
    return torch.where(size <= 1, x**2, 2 * size - 1)


def shifted_cosh(x: Tensor) -> Tensor:
    """2 (cosh x - 1) as 4 sinh²(x/2), without cancellation near 0; linear beyond |x| = 20, to avoid overflow."""
    inside = x.clamp(-20, 20)
    return 4 * torch.sinh(inside / 2) ** 2 + (x.abs() - inside.abs()) * 2 * torch.sinh(inside.abs().detach())


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"squared": torch.square, "huber": huber, "shifted-cosh": shifted_cosh}
