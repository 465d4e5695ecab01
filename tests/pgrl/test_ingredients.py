"""Normalised observations, bounded actions and the last layer's scale: the estimators stay exact."""

import gymnasium
import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from envs.core import State, Trajectories
from envs.mdp.bounded import BoundedActions
from envs.mdp.exact import ExactMDP, gradient, hessian_vector
from envs.mdp.tabular import FiniteMDP
from envs.random import Rng
from pgrl.agents.n_harpg import NHARPG
from pgrl.gradients import Estimator
from pgrl.heads import Categorical, Gaussian
from pgrl.nets import MLP
from pgrl.normalise import LIMIT, statistics
from pgrl.policy import Policy, policy_for
from pgrl.problem import Problem
from tests.worlds import DISCOUNT, F64, HORIZON, all_trajectories, tiny_mdp

FEATURES = torch.tensor([[1.0, 300.0], [-0.5, 100.0]], dtype=F64)  # of the two states, of very different scales
STATS = statistics(FEATURES)[None]


def featured(seed: int, scale: float = 1.0) -> tuple[Policy, Tensor]:
    policy = Policy(MLP(2, (3,), 2, scale=scale), Categorical(2), F64, normalised=2)
    theta = policy.init(Rng.of_seeds([seed]))
    return policy, policy.normalised_by(theta, [FEATURES])


def exact_of(mdp: FiniteMDP, policy: Policy) -> ExactMDP:
    return ExactMDP(mdp, lambda theta: policy.log_probs_at(theta, FEATURES), DISCOUNT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_means_are_exact_with_normalised_observations(causal: bool, scale: float) -> None:
    mdp = tiny_mdp()
    policy, theta = featured(3, scale)
    exact, listed = exact_of(mdp, policy), all_trajectories(mdp, HORIZON)
    tau = Trajectories(FEATURES[listed.obs], listed.action, listed.reward, listed.mask, listed.terminated, listed.truncated)
    moves = mdp.transition[listed.obs[:-1], listed.action[:-1], listed.obs[1:]].prod(0)
    p = mdp.start[listed.obs[0]] * moves * policy.log_prob(theta, tau).exp().prod(0)
    assert float(p.sum()) == pytest.approx(1, abs=1e-14)
    estimator = Estimator(policy, DISCOUNT, causal)
    g = (p[:, None] * estimator.per_trajectory(theta, tau)).sum(0)
    assert torch.allclose(g, gradient(exact, theta[0], HORIZON), atol=1e-12)
    u = torch.randn(1, policy.size, generator=torch.Generator().manual_seed(0), dtype=F64)
    u[:, -4:] = 0  # no agent moves the statistics
    Bu = (p[:, None] * estimator.per_trajectory(theta, tau, u)).sum(0)
    assert torch.allclose(Bu, hessian_vector(exact, theta[0], u[0], HORIZON), atol=1e-12)
    assert float(g.norm()) > 1e-4
    assert torch.equal(g[-4:], torch.zeros(4, dtype=F64))
    assert torch.equal(Bu[-4:], torch.zeros(4, dtype=F64))
    raw = Policy(policy.net, policy.head, F64)  # what is not normalised is another policy, and its gradient another one
    assert not torch.allclose(Estimator(raw, DISCOUNT).gradient(theta[:, :-4], tau)[0], g[:-4], rtol=1e-2)


class Drift:
    """s' = s + a, the reward is -(s' - 1)²; two steps from s = 0."""

    backend = "torch"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-0.3, 0.5, (1,), np.float64)
    horizon = 2

    def reset(self, n: int, rng: Rng) -> State:
        no = torch.zeros(n, dtype=torch.bool)
        return State(torch.zeros(n, 1, dtype=F64), torch.zeros(n, dtype=F64), no, no)

    def step(self, state: State, action: Tensor, rng: Rng) -> State:
        obs = state.obs + action
        return State(obs, -((obs[:, 0] - 1) ** 2), state.terminated, state.truncated)


def quadrature(low: float, high: float, nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights of integrals over (-7, 7) of functions that are smooth but at the bounds."""
    x, w = (torch.from_numpy(v) for v in leggauss(nodes))
    edges = torch.tensor([-7.0, low, high, 7.0], dtype=F64)
    half, middle = edges.diff() / 2, (edges[1:] + edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).flatten(), (half[:, None] * w).flatten()


@pytest.mark.parametrize("how", ["clip", "tanh"])
@pytest.mark.parametrize("causal", [False, True])
def test_means_are_exact_with_bounded_actions(how: str, causal: bool) -> None:
    """All pairs of actions of two steps, by quadrature: the density is that of the action before it is bounded."""
    env, rng = BoundedActions(Drift(), how), Rng.of_seeds([0])
    policy = Policy(MLP(1, (), 1), Gaussian(1, -0.5), F64)
    theta = torch.tensor([[0.4, 0.1, -0.6]], dtype=F64)
    nodes, weights = quadrature(-0.3, 0.5)
    a, b = (x.flatten()[:, None] for x in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight = (weights[:, None] * weights).flatten()
    first = env.reset(len(a), rng)
    second = env.step(first, a, rng)
    last = env.step(second, b, rng)
    assert bool((last.obs <= 1.0).all())  # two steps of at most 0.5
    no = torch.zeros(len(a), dtype=torch.bool)
    reward = torch.stack([second.reward, last.reward])
    tau = Trajectories(
        torch.stack([first.obs, second.obs]), torch.stack([a, b]), reward, torch.ones(2, len(a), dtype=bool), no, no
    )  # type: ignore[call-overload]

    def J(th: Tensor) -> Tensor:
        return (weight * policy.log_prob(th[None], tau).sum(0).exp() * tau.returns(DISCOUNT)).sum()

    p = weight * policy.log_prob(theta, tau).sum(0).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    estimator, u = Estimator(policy, DISCOUNT, causal), torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    g = (p[:, None] * estimator.per_trajectory(theta, tau)).sum(0)
    Bu = (p[:, None] * estimator.per_trajectory(theta, tau, u)).sum(0)
    assert torch.allclose(g, torch.func.grad(J)(theta[0]), atol=1e-11)
    assert torch.allclose(Bu, torch.func.hessian(J)(theta[0]) @ u[0], atol=1e-11)  # type: ignore[operator]
    stepped = torch.stack([env.within(a), env.within(b)])  # the density of what was stepped is another one
    wrong = Trajectories(tau.obs, stepped, reward, tau.mask, no, no)
    assert not torch.allclose((p[:, None] * estimator.per_trajectory(theta, wrong)).sum(0), g, rtol=1e-2)


def test_bounds() -> None:
    env = BoundedActions(Drift(), "clip")
    given = torch.tensor([[-9.0], [0.2], [9.0], [torch.nan]], dtype=F64)
    assert env.within(given)[:3].flatten().tolist() == [-0.3, 0.2, 0.5]
    assert bool(env.within(given)[3].isnan())
    inside = BoundedActions(Drift(), "tanh").within(given.numpy())
    assert inside[:3].flatten() == pytest.approx([-0.3, 0.1 + 0.4 * np.tanh(0.2), 0.5])
    free = Drift()
    free.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ValueError, match="needs actions with finite bounds"):
        BoundedActions(free, "clip")
    with pytest.raises(ValueError, match="expected clip, tanh"):
        BoundedActions(Drift(), "squash")


def test_clipped_tasks_equal_gymnasium_with_clipped_actions() -> None:
    mujoco = pytest.importorskip("envs.mdp.mujoco_env")
    pytest.importorskip("mujoco")
    ours = BoundedActions(mujoco.MujocoEnv("Hopper-v5", dtype=np.float64), "clip")
    theirs = gymnasium.wrappers.ClipAction(gymnasium.make("Hopper-v5").unwrapped)
    rng = Rng.of_seeds([0]).spawn(1).drawn(1, True)
    state = ours.reset(1, rng)
    theirs.reset(seed=0)
    theirs.unwrapped.set_state(ours.env._pool[0].qpos.copy(), ours.env._pool[0].qvel.copy())  # type: ignore[attr-defined]
    random = np.random.default_rng(0)
    for _ in range(20):
        action = 3 * random.standard_normal((1, 3))
        state = ours.step(state, action, rng)
        obs, reward, terminated, _, _ = theirs.step(action[0])
        assert state.obs[0].tolist() == obs.tolist()
        assert float(state.reward[0]) == reward
        if terminated:
            break


def problem_of(seeds: tuple[int, ...], steps: int = 100) -> Problem:
    env = BoundedActions(Drift(), "clip")
    policy = policy_for(env, hidden=(4,), dtype=F64, output_scale=0.1, normalise=True)
    return Problem(env, policy, 0.9, seeds, 2, batch_size=2, normalise_steps=steps)


def test_statistics_are_counted_frozen_and_those_of_the_seed_alone() -> None:
    company, alone = problem_of((3, 4, 5)), problem_of((4,))
    theta, steps = company.start()
    own, _ = alone.start()
    assert torch.equal(theta[1], own[0])
    assert steps.tolist() == [100, 100, 100]
    agent = NHARPG(0.1)
    state = agent.init(theta)
    for t in range(3):
        state, _ = agent.step(state, company.iteration(t))
    assert not torch.equal(state.theta[:, :-2], theta[:, :-2])
    assert torch.equal(state.theta[:, -2:], theta[:, -2:])
    seen = company._play((company.theta(),), (50,), company._rng(3).fold(0), 2)[0].obs.reshape(2, 3, 50)
    assert torch.allclose(theta[:, -2], seen.mean((0, 2)))
    assert torch.allclose(theta[:, -1], 1 / seen.transpose(0, 1).reshape(3, -1).std(1))


def test_a_constant_feature_is_centred_and_outliers_are_clipped() -> None:
    obs = torch.stack([torch.full((50,), 1e6), torch.arange(50.0)], 1)
    stats = statistics(obs)
    assert stats[[0, 2]].tolist() == [1e6, 1.0]
    policy = Policy(MLP(2, (), 1), Gaussian(1, 0.0), F64, normalised=2)
    theta = torch.cat([torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64), stats])[None]
    assert policy.outputs(theta, torch.tensor([[[1e6 + 0.5, 24.5], [0.0, 24.5], [1e6, 1e9]]])).flatten().tolist() == [
        0.5,
        -LIMIT,
        LIMIT,
    ]
    with pytest.raises(ValueError, match="expected 2 or more"):
        statistics(obs[:1])


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_actors_see_normalised_observations(backend: str) -> None:
    policy = Policy(MLP(2, (4,), 3), Gaussian(3, -50.0), F64, normalised=2)
    theta = policy.normalised_by(policy.init(Rng.of_seeds([1, 2])), [FEATURES, FEATURES * 2])
    obs = torch.randn(2 * 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * 100
    expected = policy.outputs(theta, obs.reshape(2, 5, 2)).reshape(10, 3)
    seen = obs.numpy() if backend == "numpy" else obs
    for mode in (False, True):
        act = policy.actor(theta, 5, backend, mode=mode)
        rng = Rng.of_seeds([3]).spawn(10).drawn(1, backend == "numpy")
        assert torch.allclose(torch.as_tensor(act(seen, None, rng)), expected, atol=1e-12)
        assert torch.allclose(torch.as_tensor(act.rows(5, 10)(seen[5:], None, rng.rows(5, 10))), expected[5:], atol=1e-12)
        one = act.rows(7, 8)
        assert torch.allclose(torch.as_tensor(one(seen[7:8], None, rng.rows(7, 8))), expected[7:8], atol=1e-12)
