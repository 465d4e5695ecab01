"""The baseline value-net: exact means, less variance than a linear fit where values are not linear, seeds that do not mix."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from envs.core import Trajectories
from envs.mdp.exact import gradient
from envs.mdp.lqr import double_integrator
from experiments.pg.train import PGTraining, step
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_mpg import NMPG
from pgrl.baselines import Fitted, Linear, baseline_for
from pgrl.gradients import Estimator, rewards_to_go
from pgrl.policy import policy_for
from pgrl.problem import Problem
from pgrl.value_net import ValueNet, _deviations
from tests.worlds import DISCOUNT, F64, HORIZON, THETA, all_trajectories, exact_mdp, probabilities, table_policy, tiny_mdp

NET = ValueNet(0.9, 4, 2, hidden=(16, 16), minibatch=64, learning_rate=1e-2, dtype=F64)


def episodes(seeds: int, n: int, steps: int = 4, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Trajectories:
    """Rewards s_1 s_2 at observations that do not depend on actions; episodes of several lengths."""
    draw, B = torch.Generator().manual_seed(seed), seeds * n
    obs = torch.randn(steps, B, 2, generator=draw, dtype=F64)
    mask = torch.arange(steps)[:, None] < torch.randint(1, steps + 1, (B,), generator=draw)
    no = torch.zeros(B, dtype=torch.bool)
    return Trajectories(obs * scale + shift, torch.zeros(steps, B), obs.prod(-1) * mask, mask, no, ~no)


def repeatedly(baseline: ValueNet | Linear, seeds: int, n: int, fits: int) -> Fitted:
    fitted = baseline.init(seeds)
    for i in range(fits):
        fitted = baseline.fit(fitted, episodes(seeds, n, seed=i), seeds)
    return fitted


def predicted(baseline: ValueNet | Linear, fitted: Fitted, tau: Trajectories, seeds: int) -> Tensor:
    b = baseline.predict(fitted, tau, seeds)
    assert b is not None
    return b


def test_it_learns_a_value_that_a_quadratic_does_not() -> None:
    linear = Linear(0.9, 4, 2, True)
    tau = episodes(2, 200, seed=99)
    y = rewards_to_go(tau, 0.9, F64)
    left = [
        float(((y - predicted(b, repeatedly(b, 2, 100, 60), tau, 2)) * tau.mask).pow(2).sum() / (y * tau.mask).pow(2).sum())
        for b in (NET, linear)
    ]
    assert left[0] < 0.65 < 0.95 < left[1]  # what later rewards add cannot be known


def test_the_mean_is_exact_and_the_variance_smaller() -> None:
    mdp = tiny_mdp()
    policy, tau = table_policy(mdp), all_trajectories(mdp, HORIZON)
    p = probabilities(mdp, policy, THETA, tau)
    net = baseline_for("value-net", discount=DISCOUNT, horizon=HORIZON, observation_size=1, n_states=2)
    assert net.predict(net.init(1), tau, 1) is None
    earlier = Problem(mdp, policy, DISCOUNT, (0,), HORIZON, 500)
    fitted = net.init(1)
    for t in range(30):
        fitted = net.fit(fitted, earlier.evaluate(THETA, 500, t), 1)
    b = net.predict(fitted, tau, 1)
    each, truth = THETA.expand(64, -1), gradient(exact_mdp(mdp, policy), THETA[0], HORIZON)
    variance = []
    for baseline in (b, None):
        g = Estimator(policy, DISCOUNT).gradient(each, tau, baseline)
        assert torch.allclose((p[:, None] * g).sum(0), truth, atol=1e-12)
        variance.append(float((p[:, None] * (g - truth) ** 2).sum()))
    assert variance[0] < 0.4 * variance[1]


def test_fitted_on_the_batch_itself_it_is_biased() -> None:
    """Negative control: with the values of this very trajectory, not of earlier iterations, the mean is another."""
    mdp = tiny_mdp()
    policy, tau = table_policy(mdp), all_trajectories(mdp, HORIZON)
    p = probabilities(mdp, policy, THETA, tau)
    net = ValueNet(DISCOUNT, HORIZON, 1, 2, hidden=(8,), learning_rate=0.1, epochs=10, dtype=F64)
    fitted = net.fit(net.init(64), tau, 64)  # a fit for each trajectory
    b = net.predict(fitted, tau, 64)
    g = (p[:, None] * Estimator(policy, DISCOUNT).gradient(THETA.expand(64, -1), tau, b)).sum(0)
    truth = gradient(exact_mdp(mdp, policy), THETA[0], HORIZON)
    assert float((g - truth).norm() / truth.norm()) > 0.1


def test_seeds_do_not_mix() -> None:
    """With episodes of other lengths beside it, and a seed that sees no step."""
    tau = episodes(3, 20)
    tau = replace(tau, mask=tau.mask & (torch.arange(60) < 40), reward=tau.reward * (torch.arange(60) < 40))
    together = NET.fit(NET.init(3), tau, 3)
    b = predicted(NET, together, tau, 3)
    for seed in range(3):
        own = tau.rows(20 * seed, 20 * seed + 20)
        alone = NET.fit(NET.init(1), own, 1)
        for name, x in alone.items():
            assert torch.allclose(x[0], together[name][seed], atol=1e-11), name
        if seed < 2:
            assert torch.allclose(predicted(NET, alone, own, 1), b[: len(own.mask), 20 * seed : 20 * seed + 20], atol=1e-11)
    assert bool((b[:, 40:] == 0).all())
    assert int(together["steps"][2]) == 0


def test_units_do_not_matter() -> None:
    """Observations far from 0, in other units, and rewards a thousand times as large: the same predictions, times 1,000."""
    fitted, far = NET.init(2), NET.init(2)
    for i in range(5):
        tau, other = episodes(2, 30, seed=i), episodes(2, 30, seed=i, scale=1e-3, shift=10.0)
        fitted, far = NET.fit(fitted, tau, 2), NET.fit(far, replace(other, reward=1000 * tau.reward), 2)
    tau, other = episodes(2, 30, seed=9), episodes(2, 30, seed=9, scale=1e-3, shift=10.0)
    assert torch.allclose(1000 * predicted(NET, fitted, tau, 2), predicted(NET, far, other, 2), rtol=1e-6, atol=1e-5)


def test_constants_and_outliers_give_finite_predictions() -> None:
    tau = episodes(1, 20)
    constant = replace(tau, obs=torch.full_like(tau.obs, 3.0), reward=tau.mask.double())
    fitted = NET.fit(NET.init(1), constant, 1)
    for obs in (constant.obs, constant.obs * 1e30, tau.obs):
        b = predicted(NET, fitted, replace(tau, obs=obs), 1)
        assert bool(b.isfinite().all())
        assert float(b.abs().max()) < 100


def test_new_statistics_leave_predictions_alone() -> None:
    fitted = repeatedly(NET, 2, 30, 3)
    tau = episodes(2, 30, seed=7)
    both = torch.cat([torch.zeros(2, 120, 3, dtype=F64) + fitted["mean"][:, None, :3], torch.randn(2, 120, 1).double() + 5], -1)
    after = NET._observed(fitted, both, torch.ones(2, 120, dtype=torch.bool))
    kept = {**after, "mean": after["mean"].clone(), "squares": after["squares"].clone(), "count": after["count"]}
    kept["mean"][:, :3] = fitted["mean"][:, :3]  # of x: only y is rescaled for
    kept["squares"][:, :3] = (_deviations(fitted)[:, :3] ** 2) * after["count"]
    assert not torch.allclose(after["mean"][:, 3], fitted["mean"][:, 3], atol=0.1)
    assert torch.allclose(predicted(NET, kept, tau, 2), predicted(NET, fitted, tau, 2), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_run_that_is_taken_up_again_ends_in_the_same_bits(dtype: torch.dtype) -> None:
    env = double_integrator(horizon=10)
    policy = policy_for(env, dtype=dtype)
    net = baseline_for("value-net", discount=0.95, horizon=10, observation_size=2, dtype=dtype)
    problem, agent = Problem(env, policy, 0.95, (0, 1), 10, 4, True, net), NHARPG(0.1, eta=0.5, hvp_batch_size=3)

    def go(training: PGTraining, iterations: int) -> PGTraining:
        for _ in range(iterations):
            training, _, _ = step(problem, agent, training, 10**6)
        return training

    whole = go(PGTraining.begin(agent, problem), 6)
    half = go(PGTraining.begin(agent, problem), 3)
    meta = {"state": half.numbers(), "iteration": half.iteration}
    again = go(PGTraining.restored(agent, problem, {k: x.clone() for k, x in half.tensors().items()}, meta), 3)
    for name, x in whole.tensors().items():
        assert torch.equal(x, again.tensors()[name]), name
    assert whole.fitted["params"].dtype == dtype
    assert int(whole.fitted["steps"].min()) > 0


def test_a_fit_is_used_by_the_next_iteration_only() -> None:
    env = double_integrator(horizon=10)
    net = baseline_for("value-net", discount=0.95, horizon=10, observation_size=2)
    problem = Problem(env, policy_for(env, dtype=F64), 0.95, (0,), 10, 4, False, net)
    agent, training = NMPG(0.1), None
    training = PGTraining.begin(agent, problem)
    for _ in range(3):
        fitted = training.fitted
        iteration = problem.iteration(training.iteration, fitted)
        (tau,) = iteration.sample(training.state.theta)
        plain = problem.estimator.gradient(training.state.theta, tau, net.predict(fitted, tau, 1))
        assert torch.equal(iteration.gradient(training.state.theta, tau), plain)
        training, _, _ = step(problem, agent, training, 10**6)
        assert not torch.equal(training.fitted["params"], fitted["params"])
