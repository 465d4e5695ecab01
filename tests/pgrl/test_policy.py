"""Policies: actors sample from log_prob, numpy equals torch, seeds are independent, masks are respected."""

import gymnasium
import numpy as np
import pytest
import torch

from envs.core import Trajectories
from envs.mdp.tabular import garnet
from envs.random import Rng
from pgrl.heads import Categorical, Gaussian, MultiCategorical
from pgrl.nets import MLP, TabularNet
from pgrl.policy import Policy, policy_for

F64 = torch.float64


def one_step(obs: torch.Tensor, action: torch.Tensor, mask: torch.Tensor | None = None) -> Trajectories:
    n = len(obs)
    no = torch.zeros(n, dtype=torch.bool)
    step = torch.ones(1, n, dtype=torch.bool)
    return Trajectories(obs[None], action[None], torch.zeros(1, n), step, no, no, None if mask is None else mask[None])


def theta_of(policy: Policy, seeds: int = 1) -> torch.Tensor:
    return torch.randn(seeds, policy.size, generator=torch.Generator().manual_seed(0), dtype=policy.dtype)


def rng_of(rows: int, dtype: torch.dtype, numpy: bool = False) -> Rng:
    rng = Rng.of_seeds([3]).spawn(rows).drawn(1, numpy)
    rng.dtype = dtype
    return rng


POLICIES = {
    "table": Policy(TabularNet(5, 3), Categorical(3), F64),
    "reduced": Policy(TabularNet(5, 3, reduced=True), Categorical(3), F64),
    "one-hot": Policy(MLP(5, (4,), 3, one_hot=True), Categorical(3), F64),
    "mlp": Policy(MLP(2, (6, 5), 3, "softplus"), Categorical(3), F64),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_discrete_actors_sample_the_distribution(name: str, backend: str) -> None:
    policy, n = POLICIES[name], 60_000
    theta = theta_of(policy)
    obs = torch.full((n,), 2) if name != "mlp" else torch.tensor([[0.3, -1.0]], dtype=F64).expand(n, 2).contiguous()
    seen = obs.numpy() if backend == "numpy" else obs
    action = torch.as_tensor(policy.actor(theta, n, backend)(seen, None, rng_of(n, F64, backend == "numpy")))
    p = torch.stack([policy.log_prob(theta, one_step(obs[:1], torch.tensor([a])))[0, 0].exp() for a in range(3)])
    assert float(p.sum()) == pytest.approx(1)
    share = action.bincount(minlength=3).double() / n
    assert bool(((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all())


def test_masked_actions_are_never_drawn_and_have_probability_zero() -> None:
    policy, n = POLICIES["mlp"], 5_000
    theta = theta_of(policy)
    obs, mask = torch.randn(n, 2, dtype=F64), torch.rand(n, 3) > 0.5
    mask[~mask.any(1), 1] = True
    action = policy.actor(theta, n)(obs, mask, rng_of(n, F64))
    assert bool(mask.gather(1, action[:, None]).all())
    p = sum(policy.log_prob(theta, one_step(obs, torch.full((n,), a), mask))[0].exp() for a in range(3))
    assert torch.allclose(p, torch.ones(n, dtype=F64))


def test_multi_discrete() -> None:
    policy, n = Policy(MLP(2, (4,), 5), MultiCategorical((3, 2)), F64), 60_000
    theta, obs = theta_of(policy), torch.zeros(n, 2, dtype=F64)
    action = policy.actor(theta, n)(obs, None, rng_of(n, F64))
    every = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    p = policy.log_prob(theta, one_step(obs[:6], every))[0].exp()
    assert float(p.sum()) == pytest.approx(1)
    share = (action[:, 0] * 2 + action[:, 1]).bincount(minlength=6).double() / n
    assert bool(((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all())


@pytest.mark.parametrize("learn", [True, False])
def test_gaussian_is_torchs(learn: bool) -> None:
    policy = Policy(MLP(3, (4,), 2), Gaussian(2, -0.7, learn), F64)
    theta, obs, action = theta_of(policy), torch.randn(9, 3, dtype=F64), torch.randn(9, 2, dtype=F64)
    mean = policy.net.forward(policy.net.unpack(theta[:, : policy.net.size]), obs[None])[0]
    std = theta[0, -2:].exp() if learn else torch.full((2,), -0.7, dtype=F64).exp()
    expected = torch.distributions.Normal(mean, std).log_prob(action).sum(-1)
    assert torch.allclose(policy.log_prob(theta, one_step(obs, action))[0], expected)
    drawn = policy.actor(theta, 9)(obs, None, rng_of(9, F64))
    assert torch.allclose(drawn, mean + std * rng_of(9, F64).normal(2))


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
@pytest.mark.parametrize("bias", [True, False])
def test_numpy_forward_is_torchs(activation: str, bias: bool) -> None:
    policy = Policy(MLP(3, (7, 5), 2, activation, bias=bias), Gaussian(2, 0.0))
    theta, obs = theta_of(policy, 4), torch.randn(12, 3)
    a = policy.actor(theta, 3, "torch")(obs, None, rng_of(12, torch.float32))
    b = policy.actor(theta, 3, "numpy")(obs.numpy(), None, rng_of(12, torch.float32, True))
    assert np.allclose(a.numpy(), b, atol=1e-5)


@pytest.mark.parametrize("name", POLICIES)
def test_a_seed_alone_is_the_seed_in_company(name: str) -> None:
    policy = POLICIES[name]
    theta = theta_of(policy, 3)
    obs = torch.randint(0, 5, (6,)) if name != "mlp" else torch.randn(6, 2, dtype=F64)
    tau = one_step(obs, torch.randint(0, 3, (6,)))
    whole = policy.log_prob(theta, tau)
    assert torch.allclose(whole[:, 2:4], policy.log_prob(theta[1:2], tau.rows(2, 4)), atol=1e-12)
    actor = policy.actor(theta, 2)
    drawn = actor(obs, None, rng_of(6, F64))
    assert torch.equal(drawn[2:4], actor.rows(2, 4)(obs[2:4], None, rng_of(6, F64).rows(2, 4)))
    assert torch.equal(drawn[3:6], actor.rows(3, 6)(obs[3:6], None, rng_of(6, F64).rows(3, 6)))


def test_tables_begin_uniform_and_networks_by_seed() -> None:
    assert float(POLICIES["table"].init(Rng.of_seeds([1, 2])).abs().max()) == 0
    first, again = (POLICIES["mlp"].init(Rng.of_seeds([1, 2])) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(POLICIES["mlp"].init(Rng.of_seeds([2]))[0], first[1])


def test_policies_for_spaces() -> None:
    class World:
        observation_space = gymnasium.spaces.Box(-1, 1, (4,))
        action_space = gymnasium.spaces.Box(-1, 1, (2, 2))

    policy = policy_for(World(), hidden=(3,))
    action = policy.actor(theta_of(policy), 5)(torch.randn(5, 4), None, rng_of(5, torch.float32))
    assert action.shape == (5, 2, 2)
    assert policy_for(garnet(4, 3, 2), hidden=(3,)).net.one_hot
    with pytest.raises(ValueError, match="has a gain"):
        policy.gain(theta_of(policy))
    with pytest.raises(ValueError, match=r"expected \[S,"):
        policy.actor(torch.zeros(2, 3), 1)
    with pytest.raises(ValueError, match="activation"):
        MLP(2, (), 1, "relu")
    World.action_space = gymnasium.spaces.MultiBinary(3)
    with pytest.raises(ValueError, match="action space"):
        policy_for(World())
    World.action_space = gymnasium.spaces.Discrete(2)
    World.observation_space = gymnasium.spaces.Dict({})
    with pytest.raises(ValueError, match="FlattenObservation"):
        policy_for(World())
