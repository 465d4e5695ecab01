"""`Exploration`: the exploration policy, one formula for all samplers.

p  =  (1 - ε) softmax(logits / temperature)  +  ε uniform over valid actions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exploration:
    """Parameters of the exploration policy.

    Args:
        epsilon: ε, probability of a uniform valid action, in [0, 1]; a tensor is not checked.
        temperature: logits are divided by it.

    Raises:
        ValueError: an argument is out of range.
    """

    epsilon: float | Tensor = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, Tensor) or 0 <= self.epsilon <= 1) or not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"epsilon is {self.epsilon}, temperature {self.temperature}: expected 0 <= epsilon <= 1 and temperature > 0"
            )

    @property
    def uniform(self) -> bool:
        """Whether ε > 0 (True for a tensor)."""
        return isinstance(self.epsilon, Tensor) or self.epsilon > 0

    def mixed(self, p: Tensor, valid: Tensor, count: Tensor) -> Tensor:
        """Mix probabilities with the uniform distribution.

        Args:
            p: probabilities.
            valid: the number of valid actions of each entry of p (bool: one or none).
            count: the number of valid actions of the state, broadcast against p.

        Returns:
            (1 - ε) p + ε valid / count.
        """
        return (1 - self.epsilon) * p + self.epsilon * valid / count if self.uniform else p

    def mix_in(self, p: Any, valid: Any) -> None:
        """`mixed` in numpy and in place, for unnormalised p [M, A]; the result is normalised if ε > 0."""
        if self.uniform:
            p *= (1 - self.epsilon) / p.sum(1, keepdims=True)
            p += valid * (self.epsilon / valid.sum(1, keepdims=True)).astype(p.dtype)


def first_reaching(cdf: Tensor, threshold: Tensor, valid: Tensor) -> Tensor:
    """Invert a cumulative sum, so that nothing invalid comes out however a device rounds its sums.

    Args:
        cdf: [M, A] cumulative sums of probabilities.
        threshold: [M, 1].
        valid: [M, A] bool.

    Returns:
        [M] the first valid entry that reaches the threshold, or the last valid one where none does.
    """
    index = torch.arange(cdf.shape[1], device=cdf.device)
    reached = torch.where(valid & (cdf >= threshold), index, cdf.shape[1]).amin(1)
    return torch.minimum(reached, torch.where(valid, index, 0).amax(1))
