"""The tiny MDP of the reference values, all its trajectories, and formulas as plain loops."""

from itertools import product

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.mdp.exact import ExactMDP
from envs.mdp.lqr import LQR, double_integrator
from envs.mdp.tabular import FiniteMDP
from pgrl.policy import Policy, policy_for

F64 = torch.float64
HORIZON, DISCOUNT = 3, 0.9
THETA = torch.tensor([[0.3, -0.2, 0.1, 0.5]], dtype=F64)


def tiny_mdp() -> FiniteMDP:
    transition = torch.tensor([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]], dtype=F64)
    reward = torch.tensor([[1.0, -0.5], [0.25, 2.0]], dtype=F64)
    return FiniteMDP(transition, reward, torch.tensor([0.6, 0.4], dtype=F64), horizon=HORIZON)


def table_policy(mdp: FiniteMDP) -> Policy:
    return policy_for(mdp, dtype=F64)


def exact_mdp(mdp: FiniteMDP, policy: Policy, discount: float = DISCOUNT) -> ExactMDP:
    states = torch.arange(mdp.n_states)
    return ExactMDP(mdp, lambda theta: policy.log_probs_at(theta, states), discount)


def all_trajectories(mdp: FiniteMDP, horizon: int) -> Trajectories:
    """Every sequence of `horizon` (state, action) pairs as one batch; their probabilities tell which can happen."""
    steps = list(product(range(mdp.n_states), range(mdp.n_actions)))
    paths = torch.tensor(list(product(steps, repeat=horizon)))  # [N, H, 2]
    obs, action = paths[..., 0].T, paths[..., 1].T
    n = obs.shape[1]
    never = torch.zeros(n, dtype=torch.bool)
    reward = (mdp.transition * mdp.reward).sum(-1)[obs, action]
    return Trajectories(obs, action, reward, torch.ones(horizon, n, dtype=torch.bool), never, never)


def probabilities(mdp: FiniteMDP, policy: Policy, theta: Tensor, tau: Trajectories) -> Tensor:
    """p(τ | θ) of each episode, [N]."""
    moves = mdp.transition[tau.obs[:-1], tau.action[:-1], tau.obs[1:]].prod(0)
    return mdp.start[tau.obs[0]] * moves * policy.log_prob(theta, tau).exp().prod(0)


def scores_by_hand(theta: Tensor, tau: Trajectories, states: int, actions: int) -> tuple[Tensor, Tensor]:
    """∇log π [T, N, D] and ∇²log π [T, N, D, D] of a softmax table, from the formula."""
    pi = torch.softmax(theta.reshape(states, actions), 1)
    T, N = tau.obs.shape
    score = torch.zeros(T, N, states, actions, dtype=F64)
    hess = torch.zeros(T, N, states, actions, states, actions, dtype=F64)
    for t in range(T):
        for i in range(N):
            s, a = int(tau.obs[t, i]), int(tau.action[t, i])
            score[t, i, s] = torch.eye(actions, dtype=F64)[a] - pi[s]
            hess[t, i, s, :, s, :] = torch.outer(pi[s], pi[s]) - torch.diag(pi[s])
    return score.flatten(2), hess.flatten(4).flatten(2, 3)


def reference_lqr() -> LQR:
    return double_integrator()
