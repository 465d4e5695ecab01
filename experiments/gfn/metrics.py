"""Metrics of a GFlowNet run: the distributions of visited objects and of the policy, modes, log Z.

Where the environment is enumerated, two distributions are compared with the target distribution: the frequencies of the last
objects visited (eval/...), whose distance has a floor, that of as many independent samples, and the exact distribution of the
current policy (eval/exact_...). Elsewhere log p(x) of test objects is correlated with log R(x): exact log p for molecules,
whose ancestors are few, estimated by backward paths otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.core import Array, to_tensor
from envs.dag.enumeration import Enumeration
from envs.dag.protocols import FewAncestors, WithTestSet, offers
from envs.molecules.block_trees import BlockTrees
from envs.random import Rng
from envs.rollout import Act, rollout
from experiments.gfn import rewards
from gflownet import metrics as measure
from gflownet.baselines.uniform import UniformActions
from gflownet.evaluation import exact_distribution, exact_log_p, log_p
from gflownet.flows.states import distinct, key_of
from gflownet.metrics import SlidingWindow
from gflownet.problem import EVALUATION, Acts, DagProblem, Method

TESTS, PATHS = 128, 4  # objects whose log p is estimated, and backward paths of each
FRESH, HEADS, BACK, PICK = range(4)  # streams of an evaluation
DESCRIPTIONS = {
    "states": "Finished objects that each seed has visited so far: every object whose reward was evaluated.",
    "eval/l1": "Σ|p^ - p| of the last objects visited (--window), 0 to 2; eval/l1_floor is the value for exact sampling.",
    "eval/l1_mean": "The same divided by the number of objects: the empirical L1 error of Bengio et al. 2021.",
    "eval/l1_floor": "Expected eval/l1 of as many independent samples of the target distribution.",
    "eval/tv": "Total variation distance of the last objects visited from the target distribution: half of eval/l1.",
    "eval/jsd": "Jensen-Shannon divergence of the last objects visited and the target distribution, in nats.",
    "eval/kl": "KL(p^ || p) of the last objects visited from the target distribution, in nats.",
    "eval/exact_l1": "Σ|p_θ - p|: exact distance of the current policy's distribution from the target, no sampling.",
    "eval/exact_l1_mean": "The same divided by the number of objects.",
    "eval/exact_tv": "Total variation distance of the current policy's exact distribution from the target.",
    "eval/exact_jsd": "Jensen-Shannon divergence of the current policy's exact distribution and the target, in nats.",
    "eval/exact_kl": "KL(p_θ || p) of the current policy's exact distribution from the target, in nats.",
    "eval/modes": "Number of modes found so far, counted as regions.",
    "eval/all_modes_at": "Objects visited when the last mode was found.",
    "eval/log_z_error": "|log Z of the objective - exact log Z|.",
    "eval/log_z": "The objective's estimate of log Z.",
    "eval/correlation": f"Pearson correlation of log p_θ(x) by {PATHS} backward paths and log R(x), {TESTS} test objects.",
    "eval/rank_correlation": "Spearman correlation of the same.",
    "train/loss": "The loss of the last iteration.",
    "train/skipped": "Updates skipped so far because loss or gradient were not finite.",
    "train/residual": "Mean of log Z + Σ log P_F - log R - Σ log P_B of the objects just built: 0 where log Z has arrived.",
    "train/elbo": "Mean of log R + log P_B - log P_F over the last batch: log Z minus a divergence.",
    "train/acceptance": "Fraction of proposals accepted by Metropolis-Hastings.",
    "rollout/log_reward": "Mean log-reward of the objects of the last iteration.",
    "rollout/length": "Mean length of its trajectories.",
    **rewards.DESCRIPTIONS,
    "time/states_per_second": "Objects of all seeds together per second of training, evaluation included.",
}
Row = dict[str, Any]
Scored = tuple[Tensor, Tensor]  # objects [M, *obs] and their log-rewards [M]


def evaluation(
    method: Method,
    state: Any,
    problem: DagProblem,
    truth: Enumeration | None,
    window: SlidingWindow | None,
    t: int,
    scored: Scored | None = None,
) -> Row:
    """tag -> number or [S]. scored: objects that stand for the test objects, so that no reward is called."""
    row: Row = {}
    if window is not None and truth is not None and window.held:
        row |= against(truth, window.distribution, "eval/")
        row["eval/l1_floor"] = measure.noise_floor(truth.target, window.held)
    row |= of_the_policy(method, state, problem, truth, t, scored)
    return row


def modes(found_at: Tensor) -> Row:
    """found_at [S, modes]: how many objects had been visited when each mode was met, -1 for not yet."""
    if not found_at.shape[1]:
        return {}
    found = found_at >= 0
    at = torch.where(found.all(1), found_at.amax(1).double(), torch.nan)
    return {"eval/modes": found.sum(1).double(), "eval/all_modes_at": at}


def against(truth: Enumeration, distribution: Tensor, prefix: str) -> Row:
    """Distances of distributions [S, K] from the target distribution."""
    p = truth.target.expand_as(distribution)
    return {
        f"{prefix}l1": measure.l1_sum(distribution, p),
        f"{prefix}l1_mean": measure.l1_mean(distribution, p),
        f"{prefix}tv": measure.total_variation(distribution, p),
        f"{prefix}jsd": measure.jensen_shannon(distribution, p),
        f"{prefix}kl": measure.kl(distribution, p),
    }


def of_the_policy(
    method: Method, state: Any, problem: DagProblem, truth: Enumeration | None, t: int, scored: Scored | None = None
) -> Row:
    """The current policy: its exact distribution against the target, or a correlation, and log Z."""
    row: Row = {}
    if (log_z := method.log_z(state)) is not None:
        row["eval/log_z"] = log_z.double()
        if truth is not None:
            row["eval/log_z_error"] = (log_z.double() - truth.log_z).abs()
    if not has_policy(method, state, problem):
        return row
    if truth is not None:
        return row | against(truth, exact_distribution(method, state, problem, truth), "eval/exact_")
    objects = test_objects(method, state, problem, t) if scored is None else scored[0]
    if not len(objects):
        return row
    if offers(problem.env, FewAncestors) and problem.env.few_ancestors:
        log_pf = exact_log_p(method, state, problem, objects)
    else:
        rng = problem.rng(EVALUATION, t).fold(BACK).rows(0, 1).spawn(len(objects))
        log_pf = log_p(method, state, problem, objects, PATHS, rng)
    log_reward = problem.log_reward(objects) if scored is None else scored[1]
    row["eval/correlation"] = measure.pearson(log_pf, log_reward.expand_as(log_pf))
    row["eval/rank_correlation"] = measure.spearman(log_pf, log_reward.expand_as(log_pf))
    return row


def has_policy(method: Method, state: Any, problem: DagProblem) -> bool:
    """Metropolis-Hastings has none."""
    start = problem.env.reset(1, problem.rng(EVALUATION).rows(0, 1).drawn(1, problem.env.backend == "numpy"))
    valid = None if start.action_mask is None else to_tensor(start.action_mask)
    assert valid is not None
    return method.log_pf(state, problem, to_tensor(start.obs), valid) is not None


def test_objects(method: Method, state: Any, problem: DagProblem, t: int) -> Tensor:
    """[M, *obs]: some of the environment's test set, always the same, or fresh objects of the policies where it has none.

    Molecules: `held_back`.
    """
    if isinstance(problem.env, BlockTrees):
        return held_back(problem.env)
    if not offers(problem.env, WithTestSet):
        return fresh(method, state, problem, -(-TESTS // len(problem.seeds)), t)[0].flatten(0, 1)
    objects = problem.env.test_set()
    u = Rng.of_seeds([0], problem.device).fold(PICK).uniform(len(objects))[0]
    return objects[u.argsort()[:TESTS]]


def held_back(env: BlockTrees, n: int = TESTS) -> Tensor:
    """[m, K, 4] m <= n distinct trees, the same for every method and seed: the largest of 4n that uniform actions construct.

    With trees of all sizes the correlation would be one of sizes: no policy visits small trees often enough to learn their
    small probability.
    """
    last = rollout(env, UniformActions(), Rng.of_seeds([0], env.device).fold(PICK).spawn(4 * n)).last
    assert last is not None
    different = last[distinct(env.index(last), None, 1, None).first.sort().values]
    return different[env.size(different).argsort(descending=True, stable=True)[:n]]


@torch.no_grad()
def fresh(method: Method, state: Any, problem: DagProblem, n: int, t: int, scored: int | None = None) -> tuple[Tensor, Tensor]:
    """n objects of each seed by the policy as it is, without exploration: [S, n, *obs], and their log-rewards [S, n].

    scored: how many of each seed, the first ones, the reward is called for; None: all.
    """
    rng = problem.rng(EVALUATION, t)
    u = rng.fold(HEADS).spawn(n).uniform()
    tau = problem.play(policies(method, state, problem, u, n), rng.fold(FRESH), n)
    assert tau.last is not None
    objects = problem.by_seed(tau.last)
    some = objects[:, :scored].flatten(0, 1)
    log_reward = problem.log_reward(some) if len(some) else torch.zeros(0, dtype=torch.float64, device=some.device)
    return objects, log_reward.view(len(objects), -1 if len(some) else 0)


def policies(method: Method, state: Any, problem: DagProblem, u: Tensor, n: int) -> Act:
    """The policies of all seeds, without exploration, as an Act for S·n episodes; u [S·n] uniform, decides between heads."""
    own = method.actor(state, problem, n) if isinstance(method, Acts) else None
    return own or Policies(method, state, problem, u, n)


class Policies(Act):
    """The policies of all seeds as an Act for S·n episodes; a method with several heads plays one of them to the end.

    u  [S·n] uniform, decides the head
    """

    def __init__(self, method: Method, state: Any, problem: DagProblem, u: Tensor, n: int) -> None:
        self._method, self._state, self._problem, self._u = method, state, problem, u
        self._seed = torch.arange(len(u), device=u.device) // n
        self._key, self._n_keys = key_of(problem.env)

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        seen, valid, u = to_tensor(obs), to_tensor(action_mask), to_tensor(rng.uniform(1))
        groups = distinct(self._key(seen), None, 1, self._n_keys)
        log_pf = self._method.log_pf(self._state, self._problem, seen[groups.first], valid[groups.first])
        assert log_pf is not None
        cdf = log_pf[(self._u * len(log_pf)).long(), self._seed, groups.row].exp().cumsum(-1)
        action = (cdf < u.to(cdf) * cdf[:, -1:]).sum(-1)
        return action.numpy() if self._problem.env.backend == "numpy" else action
