"""What an agent is shown: every step counted, baselines from elsewhere, seeds that end at their own budget."""

import pytest
import torch

from envs.mdp.exact import gradient
from envs.mdp.tabular import FiniteMDP, gridworld
from experiments.pg.train import PGTraining, step
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_pg import NPG
from pgrl.baselines import baseline_for
from pgrl.gradients import Estimator
from pgrl.policy import policy_for
from pgrl.problem import Problem
from pgrl.registry import register
from tests.worlds import (
    DISCOUNT,
    F64,
    HORIZON,
    THETA,
    all_trajectories,
    exact_mdp,
    probabilities,
    table_policy,
    tiny_mdp,
)


def problem(seeds: int = 4, **settings: object) -> Problem:
    env = gridworld(horizon=20)
    return Problem(env, policy_for(env, dtype=F64), 0.95, tuple(range(seeds)), 20, **settings)  # type: ignore[arg-type]


def test_both_trajectories_of_harpg_count() -> None:
    agent, world = NHARPG(0.1), problem(batch_size=3)
    state, _ = agent.step(agent.init(world.theta()), first := world.iteration(0))
    _, _ = agent.step(state, second := world.iteration(1))
    assert [len(w.sampled) for w in (first, second)] == [1, 2]
    assert all(tau.mask.shape[1] == 12 for tau in second.sampled)
    by_hand = sum(tau.mask.sum(0).reshape(4, 3).sum(1) for tau in second.sampled)
    assert torch.equal(second.env_steps(), by_hand)


def test_points_are_sampled_independently_and_iterations_differ() -> None:
    world = problem(50)
    theta = world.theta()
    a, b = world.iteration(0).sample(theta, theta)
    again, _ = world.iteration(0).sample(theta, theta)
    other, _ = world.iteration(1).sample(theta, theta)
    assert torch.equal(a.obs, again.obs)
    assert not torch.equal(a.obs[0], b.obs[0])
    assert not torch.equal(a.obs[0], other.obs[0])
    q = world.iteration(0)
    assert not torch.equal(q.uniform(), q.uniform())


def test_evaluation_leaves_training_alone() -> None:
    world = problem()
    theta = world.theta()
    before = world.iteration(3).sample(theta)[0]
    tau = world.evaluate(theta, 7, 3)
    assert tau.mask.shape[1] == 28
    assert torch.equal(world.iteration(3).sample(theta)[0].obs, before.obs)


@pytest.mark.parametrize("name", ["time", "value"])
def test_fitted_baselines_keep_the_mean_and_lower_the_variance(name: str) -> None:
    mdp = tiny_mdp()
    policy, tau = table_policy(mdp), all_trajectories(mdp, HORIZON)
    p = probabilities(mdp, policy, THETA, tau)
    baseline = baseline_for(name, discount=DISCOUNT, horizon=HORIZON, observation_size=1, n_states=2)
    assert baseline.predict(baseline.init(1), tau, 1) is None
    elsewhere = Problem(mdp, policy, DISCOUNT, (0,), HORIZON, 500).evaluate(THETA, 500, 0)
    fitted = baseline.fit(baseline.init(1), elsewhere, 1)
    b = baseline.predict(fitted, tau, 1)
    assert b is not None
    each = THETA.expand(64, -1)
    estimator = Estimator(policy, DISCOUNT)
    g, plain = estimator.gradient(each, tau, b), estimator.gradient(each, tau)
    mean = (p[:, None] * g).sum(0)
    assert torch.allclose(mean, gradient(exact_mdp(mdp, policy), THETA[0], HORIZON), atol=1e-12)
    variance, before = ((p[:, None] * (x - mean) ** 2).sum() for x in (g, plain))
    assert variance < 0.6 * before


def test_a_seed_stops_at_its_own_budget() -> None:
    """Seeds whose episodes are short go on alone; those that are done keep their parameters."""
    world, agent = (
        problem(6, baseline=baseline_for("value", discount=0.95, horizon=20, observation_size=1, n_states=22)),
        NPG(0.3),
    )
    training, t, finished = PGTraining.begin(agent, world), 0, {}
    while bool((training.env_steps < 150).any()):
        training, metrics, _ = step(world, agent, training, 150)
        for k in range(6):
            if training.env_steps[k] >= 150 and k not in finished:
                finished[k] = (training.state.theta[k].clone(), t)
            elif k in finished:
                assert torch.equal(training.state.theta[k], finished[k][0])
                assert metrics["train/direction_norm"][k].isnan()
        t += 1
    assert len({when for _, when in finished.values()}) > 1
    assert bool((training.env_steps < 150 + 20).all())
    alone = PGTraining.begin(agent, lone := problem(1, baseline=world.baseline))
    for _ in range(finished[0][1] + 1):
        alone, _, _ = step(lone, agent, alone, 150)
    assert torch.allclose(alone.state.theta[0], finished[0][0], atol=1e-9)


@pytest.mark.parametrize("baseline", ["none", "leave-one-out", "time", "value", "value-net"])
@pytest.mark.parametrize("algo", register())
def test_a_seed_alone_is_the_seed_in_company_where_episodes_begin_in_a_terminal_state(algo: str, baseline: str) -> None:
    """Then some seeds see no step for several iterations, and others do."""
    mdp = tiny_mdp()
    reward = (mdp.transition * mdp.reward).sum(-1)
    transition = torch.eye(3, dtype=F64)[:, None].repeat(1, 2, 1)
    transition[:2, :, :2] = mdp.transition
    start, terminal = torch.tensor([0.1, 0.1, 0.8], dtype=F64), torch.tensor([False, False, True])
    env = FiniteMDP(transition, torch.cat([reward, reward[:1]]), start, horizon=HORIZON, terminal=terminal)
    fitted = baseline_for(baseline, discount=DISCOUNT, horizon=HORIZON, observation_size=1, n_states=3)
    entry = register()[algo]
    agent = entry.make(**{"step_size": 0.3, **entry.preset})

    def trained(seeds: tuple[int, ...]) -> torch.Tensor:
        world = Problem(env, policy_for(env, dtype=F64), DISCOUNT, seeds, HORIZON, 2, True, fitted)
        training = PGTraining.begin(agent, world)
        for _ in range(5):
            training, _, _ = step(world, agent, training, 1_000)
        return training.state.theta

    together = trained(tuple(range(6)))
    for seed in (0, 3, 5):
        assert torch.allclose(trained((seed,))[0], together[seed], atol=1e-12)
