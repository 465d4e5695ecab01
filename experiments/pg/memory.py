"""Estimated sizes of the arrays of a `pgrl` run."""

from __future__ import annotations

import math

from envs.core import Env
from envs.mdp.tabular import FiniteMDP
from experiments.pg.build import exact_values
from pgrl.baselines import Baseline, Linear
from pgrl.nets import MLP
from pgrl.policy import Policy
from pgrl.value_net import ValueNet

HINTS = {
    "parameters": "lower --hidden or --seeds",
    "episodes": "lower --batch-size, --hvp-batch-size, --horizon or --seeds",
    "baseline": "use --baseline time, or lower --seeds",
    "evaluation": "lower --eval-episodes or --seeds",
    "exact values": "lower --seeds",
}
COPIES = 8  # iterates, directions, gradients and tangents of an agent, and a checkpoint on its way


def arrays(
    env: Env,
    policy: Policy,
    baseline: Baseline,
    observation: int,
    *,
    horizon: int,
    seeds: int,
    batch_size: int,
    env_steps: int,
    discount: float,
    eval_episodes: int,
    hvp_batch_size: int | None = None,
) -> dict[str, int]:
    """Bytes of the arrays of a run, by what they are for. Settings as of `PGSettings`.

    Args:
        env: the environment; episodes that may end early are taken at full length, within the steps of the run.
        policy: the policy.
        baseline: the baseline.
        observation: numbers in an observation.
        horizon: of training episodes.
        hvp_batch_size: of the agent; an agent samples at two points at most, and a batch at the second is this or the same.
    """
    item = policy.dtype.itemsize
    wide = observation * 8 + 48  # of a step: observation, action, reward, masks
    ends = getattr(env, "terminates", True)
    most = max(1, env_steps // batch_size) if ends else env.horizon
    steps = min(horizon, most)
    found = {
        "parameters": COPIES * seeds * policy.size * item,
        "episodes": seeds * (batch_size + (hvp_batch_size or batch_size)) * steps * (wide + 4 * item * _activations(policy)),
    }
    if isinstance(baseline, Linear):
        found["baseline"] = 3 * 8 * seeds * baseline.features**2
    if isinstance(baseline, ValueNet):
        inputs, parameters = baseline.net.inputs, baseline.net.size
        found["baseline"] = seeds * (COPIES * item * parameters + 3 * 8 * batch_size * steps * (inputs + 1))
    if exact_values(env, policy, discount) is None:
        found["evaluation"] = seeds * eval_episodes * min(env.horizon, most) * wide
    elif isinstance(env, FiniteMDP):
        n, a, k = env.successors.shape
        found["exact values"] = 8 * n * (a * n + 6 * seeds * n if not env.is_sparse else a * k * 6 + seeds * (12 * a + 24))
    return found


def sampled(env: Env, episodes: int, steps: int | None = None) -> int:
    """Bytes of episodes of an environment: of one step each where they may end early."""
    space = env.observation_space
    wide = math.prod(getattr(space, "shape", None) or (1,)) * 8 + 48
    return episodes * wide * (steps or (1 if getattr(env, "terminates", True) else env.horizon))


def _activations(policy: Policy) -> int:
    """Numbers that a step's forward pass keeps."""
    net = policy.net
    return net.inputs * net.one_hot + sum(net.hidden) + net.outputs if isinstance(net, MLP) else policy.head.outputs
