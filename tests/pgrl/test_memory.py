"""First-order memory: no tensor of a gradient or a Hessian-vector product is larger than parameters or activations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from envs.core import Trajectories
from pgrl.gradients import Estimator
from pgrl.heads import Gaussian
from pgrl.nets import MLP
from pgrl.policy import Policy


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("causal", [False, True])
def test_no_tensor_grows_with_the_square_of_the_parameters(causal: bool) -> None:
    """Sizes of Humanoid: 348 observations, 17 actions, 64×64: D = 27,602."""
    policy, S, T = Policy(MLP(348, (64, 64), 17), Gaussian(17, 0.0)), 3, 40
    theta = torch.randn(S, policy.size) / 10
    no = torch.zeros(S, dtype=torch.bool)
    step = torch.ones(T, S, dtype=torch.bool)
    tau = Trajectories(torch.randn(T, S, 348), torch.randn(T, S, 17), torch.randn(T, S), step, no, no)
    limit = max(S * policy.size, T * S * 348)
    for work in (
        lambda e: e.gradient(theta, tau),
        lambda e: e.hessian_vector(theta, tau, theta),
    ):
        with Largest() as largest:
            work(Estimator(policy, 0.99, causal))
        assert 0 < largest.elements <= limit
    assert policy.size > 27_000
