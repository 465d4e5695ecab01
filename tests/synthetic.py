"""A `World` without episodes: gradients and Hessian-vector products are given functions of θ, plus noise."""

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]


class SyntheticWorld:
    """`slope(theta)` = ∇J, `bend(theta, u)` = ∇²J u; sampling hands the point itself back as the "trajectories"."""

    def __init__(self, slope: Field, bend: Callable[[Tensor, Tensor], Tensor], noise: float = 0.0, seed: int = 0) -> None:
        self.slope, self.bend, self.noise = slope, bend, noise
        self.draw = torch.Generator().manual_seed(seed)
        self.episodes, self.seeds = 0, 1

    def sample(self, *thetas: Tensor, n: int | None = None) -> tuple[Tensor, ...]:
        self.episodes, self.seeds = self.episodes + len(thetas), len(thetas[0])
        return thetas

    def _noise(self, like: Tensor) -> Tensor:
        return self.noise * torch.randn(like.shape, generator=self.draw, dtype=like.dtype)

    def gradient(self, theta: Tensor, tau: Tensor) -> Tensor:
        assert torch.equal(theta, tau), "differentiated elsewhere than sampled"
        return self.slope(theta) + self._noise(theta)

    def hessian_vector(self, theta: Tensor, tau: Tensor, u: Tensor) -> Tensor:
        assert torch.equal(theta, tau), "differentiated elsewhere than sampled"
        return self.bend(theta, u) + self._noise(theta) * u.norm(dim=1, keepdim=True)

    def uniform(self, m: int = 1) -> Tensor:
        return torch.rand(self.seeds, m, generator=self.draw, dtype=torch.float64)
