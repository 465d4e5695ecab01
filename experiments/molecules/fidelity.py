"""How near the policies of a run are to R^β: fresh samples, log p against log R, and log Z between two bounds.

x_i ~ p_θ, without exploration;  w_i = log R(x_i) - log p_θ(x_i), exact over all ways to construct x_i
y_j ~ R / Z, from a perfect sampler;  v_j = log R(y_j) - log p_θ(y_j)

E w <= log Z <= E v, with equality where p_θ = R / Z;  Bennett's acceptance ratio (1976) estimates log Z from both
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.gfn.commands import GFNRun, opened
from experiments.gfn.metrics import fresh, has_policy
from gflownet.baselines.replica_exchange import bennett
from gflownet.evaluation import exact_log_p
from gflownet.metrics import pearson

QUANTILES = (0.05, 0.5, 0.95)
LATER = 1 << 40  # the iteration whose random stream the samples come from: no evaluation of training has had it


def of_policy(folder: Path, n: int, exact: Tensor | None = None) -> dict[str, Any]:
    """Statistics of n fresh samples of each seed's policy.

    Args:
        folder: a run on molecules.
        n: samples of each seed.
        exact: objects of a perfect sampler of the same R^β, [m, K, 4].

    Returns:
        name -> a list with one number for each seed, three for `quantiles`; {} for a method without a policy.
        reward, quantiles: before β. correlation: Pearson, of log p_θ and log R. elbo: the mean of w. With `exact`: eubo,
        the mean of v, and log_z, by Bennett.
    """
    _, begun = opened(folder)
    if not has_policy(begun.method, begun.training.state, begun.problem):
        return {}
    objects, log_reward = fresh(begun.method, begun.training.state, begun.problem, n, LATER)
    env: Any = begun.problem.env
    reward = env.reward.untempered(log_reward)
    log_p = _of_own(begun, objects)
    w = log_reward - log_p
    found = {
        "reward": reward.mean(1),
        "quantiles": reward.quantile(torch.tensor(QUANTILES, dtype=reward.dtype), dim=1).T,
        "log_reward": log_reward.mean(1),
        "correlation": pearson(log_p, log_reward),
        "elbo": w.mean(1),
    }
    if exact is not None:
        v = begun.problem.log_reward(exact) - exact_log_p(begun.method, begun.training.state, begun.problem, exact)
        found["eubo"] = v.mean(1)
        found["log_z"] = torch.stack([bennett(a, b) for a, b in zip(w, v, strict=True)])
    return {name: x.tolist() for name, x in found.items()}


def _of_own(begun: GFNRun, objects: Tensor) -> Tensor:
    """log p_θ of objects [S, n, K, 4] under the policy of their own seed, [S, n]."""
    log_p = exact_log_p(begun.method, begun.training.state, begun.problem, objects.flatten(0, 1))
    S, n = objects.shape[:2]
    return log_p.view(S, S, n)[torch.arange(S), torch.arange(S)]
