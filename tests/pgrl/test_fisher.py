"""Steps in the norm of the Fisher information, against F as a matrix, the KL divergence, and other parameters of one policy."""

import pytest
import torch
from torch import Tensor

from envs.core import Trajectories
from envs.random import Rng
from pgrl import fisher
from pgrl.fisher import conjugate_gradients, fisher_vector, natural_step
from pgrl.heads import Categorical, Gaussian, MultiCategorical
from pgrl.nets import MLP
from pgrl.policy import Policy

F64 = torch.float64
POLICIES = {
    "categorical": Policy(MLP(2, (4,), 3), Categorical(3), F64),
    "masked": Policy(MLP(2, (4,), 3), Categorical(3), F64),
    "multi": Policy(MLP(2, (4,), 5), MultiCategorical((2, 3)), F64),
    "gaussian": Policy(MLP(2, (4,), 2), Gaussian(2, -0.3), F64),
    "normalised": Policy(MLP(2, (4,), 2), Gaussian(2, -0.3), F64, normalised=2),
}


def batch_of(policy: Policy, seeds: int = 2, n: int = 2, T: int = 3, masked: bool = False) -> tuple[Tensor, Trajectories]:
    rng = Rng.of_seeds(range(seeds))
    rng.dtype = F64
    theta = policy.init(rng)
    theta[:, : policy.net.size] += 0.3 * rng.normal(policy.net.size)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(T, seeds * n, 2, generator=generator, dtype=F64)
    mask = torch.ones(T, seeds * n, dtype=torch.bool)
    mask[2, 1] = False
    valid = torch.rand(T, seeds * n, 3, generator=generator) > 0.4
    valid[..., 0] = True
    no = torch.zeros(seeds * n, dtype=torch.bool)
    return theta, Trajectories(obs, obs, obs[..., 0], mask, no, no, valid if masked else None)


def kl(policy: Policy, theta: Tensor, other: Tensor, tau: Trajectories) -> Tensor:
    """The mean over the steps of one seed of KL(π_theta ‖ π_other), from the formulas; theta and other [D]."""
    keep = tau.mask.T.flatten()
    outs = [policy.outputs(th[None], tau.obs.transpose(0, 1).reshape(1, -1, 2))[0][keep] for th in (theta, other)]
    if isinstance(policy.head, Gaussian):
        a, b = (policy.parts(th[None])[1].exp()[0] for th in (theta, other))
        each = (b / a).log() + (a**2 + (outs[0] - outs[1]) ** 2) / (2 * b**2) - 0.5
        return each.sum(-1).mean()
    if tau.action_mask is not None:
        valid = tau.action_mask.transpose(0, 1).reshape(-1, 3)[keep]
        outs = [out.masked_fill(~valid, -1e9) for out in outs]
    sizes = list(policy.head.sizes) if isinstance(policy.head, MultiCategorical) else [3]
    total: Tensor = torch.zeros((), dtype=F64)
    for p, q in zip(*(torch.split(out, sizes, -1) for out in outs), strict=True):
        log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
        total = total + (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return total


@pytest.mark.parametrize("name", POLICIES)
def test_the_fisher_information_is_the_hessian_of_the_kl_divergence(name: str) -> None:
    policy = POLICIES[name]
    theta, tau = batch_of(policy, masked=name == "masked")
    product = fisher_vector(policy, theta, tau)
    F = torch.stack([product(e.expand(2, -1)) for e in torch.eye(policy.size, dtype=F64)], 2)
    for seed in range(2):
        own = tau.columns(torch.arange(2 * seed, 2 * seed + 2))

        def divergence(other: Tensor, seed: int = seed, own: Trajectories = own) -> Tensor:
            return kl(policy, theta[seed], other, own)

        hessian = torch.autograd.functional.hessian(divergence, theta[seed])
        assert torch.allclose(F[seed], hessian, atol=1e-12)  # type: ignore[arg-type]
        assert float(F[seed].norm()) > 0.1


def test_a_step_has_length_one_and_is_steepest(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = POLICIES["gaussian"]
    theta, tau = batch_of(policy)
    d = torch.randn(2, policy.size, generator=torch.Generator().manual_seed(1), dtype=F64)
    monkeypatch.setattr(fisher, "ITERATIONS", 200)
    step = natural_step(policy, theta, tau, d)
    product = fisher_vector(policy, theta, tau)
    F = torch.stack([product(e.expand(2, -1)) for e in torch.eye(policy.size, dtype=F64)], 2)
    exact = torch.linalg.solve(F + fisher.DAMPING * torch.eye(policy.size, dtype=F64), d)
    exact = exact / torch.einsum("si,sij,sj->s", exact, F, exact).sqrt()[:, None]
    assert torch.allclose(step, exact, rtol=1e-8)
    assert torch.allclose((step * product(step)).sum(1), torch.ones(2, dtype=F64))
    assert torch.allclose(natural_step(policy, theta, tau, 1e-20 * d), step)
    assert torch.equal(natural_step(policy, theta, tau, 0 * d), 0 * d)
    small = 1e-3
    for seed in range(2):
        moved = kl(policy, theta[seed], theta[seed] + small * step[seed], tau.columns(torch.arange(2 * seed, 2 * seed + 2)))
        assert float(moved) == pytest.approx(small**2 / 2, rel=1e-2)


def test_seeds_do_not_meet_and_many_states_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = POLICIES["gaussian"]
    theta, tau = batch_of(policy, T=9)
    d = torch.randn(2, policy.size, generator=torch.Generator().manual_seed(1), dtype=F64)
    both = natural_step(policy, theta, tau, d)
    alone = natural_step(policy, theta[1:], tau.rows(2, 4), d[1:])
    assert torch.allclose(both[1:], alone, atol=1e-12)
    monkeypatch.setattr(fisher, "STATES", 6)
    every_third = Trajectories(tau.obs[::3], tau.action[::3], tau.reward[::3], tau.mask[::3], tau.terminated, tau.truncated)
    v = fisher_vector(policy, theta, tau)(d)
    monkeypatch.undo()
    assert torch.allclose(v, fisher_vector(policy, theta, every_third)(d))


def test_the_length_of_other_seeds_episodes_does_not_change_which_states_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = POLICIES["gaussian"]
    theta, tau = batch_of(policy, T=12)
    tau.mask[4:, 2:] = False
    d = torch.randn(2, policy.size, generator=torch.Generator().manual_seed(1), dtype=F64)
    monkeypatch.setattr(fisher, "STATES", 6)
    both = natural_step(policy, theta, tau, d)
    for seed in range(2):
        alone = natural_step(policy, theta[seed : seed + 1], tau.rows(2 * seed, 2 * seed + 2), d[seed : seed + 1])
        assert torch.allclose(both[seed : seed + 1], alone, atol=1e-12)


def test_conjugate_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, 6, 6, generator=generator, dtype=F64)
    A = A @ A.mT + torch.eye(6, dtype=F64)
    b = torch.randn(3, 6, generator=generator, dtype=F64)
    b[2] = 0
    x = conjugate_gradients(lambda v: (A @ v[..., None])[..., 0], b)
    assert torch.allclose(x, torch.linalg.solve(A, b), atol=1e-10)
    assert torch.equal(x[2], torch.zeros(6, dtype=F64))
