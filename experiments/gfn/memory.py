"""Estimated sizes of the arrays of a `gflownet` run."""

from __future__ import annotations

import math
from typing import Any

from envs.dag.protocols import Indexed, offers
from envs.molecules.block_trees import BlockTrees
from experiments.gfn.build import LIMIT
from gflownet.problem import DagProblem, Method, objects_per_iteration

COPIES = 8  # parameters, both moments of Adam, a target, gradients, and a checkpoint on its way
HINTS = {
    "parameters": "lower --hidden or --seeds",
    "batches": "lower --batch-size or --seeds",
    "objects": "lower --batch-size, --search-rounds or --seeds",
    "replay buffer": "lower --capacity or --seeds",
    "top-K buffer": "lower --top-k or --seeds",
    "all states": "use --metrics sampled",
    "window": "lower --window or --seeds, or use --metrics sampled",
}


def sampled(problem: DagProblem, samples: int) -> int:
    """Bytes of fresh objects of each seed with their log-rewards."""
    cells = math.prod(getattr(problem.env.observation_space, "shape", None) or (1,))
    return len(problem.seeds) * samples * (16 * cells + 32)


def arrays(method: Method, problem: DagProblem, *, metrics: str, window: int, top_k: int) -> dict[str, int]:
    """Bytes of the arrays of a run, by what they are for; trajectories are taken at full length. Settings as of `GFNSettings`.

    Raises:
        ValueError: the method has no network for this environment.
    """
    env, seeds, item = problem.env, len(problem.seeds), problem.dtype.itemsize
    own: Any = method
    actions, cells = int(env.action_space.n), math.prod(getattr(env.observation_space, "shape", None) or (1,))
    state = 8 * cells + actions + 32  # observation, mask of valid actions, reward
    hidden = sum(getattr(own, "hidden", ())) * (getattr(env, "max_blocks", 1) if isinstance(env, BlockTrees) else 1)
    outputs = actions * (getattr(own, "heads", 1) + 1)
    built = objects_per_iteration(method, problem.batch_size)
    steps = problem.batch_size * (env.horizon + 1) + getattr(own, "minibatch", 0)
    found = {"batches": seeds * steps * (state + 3 * item * (hidden + outputs)), "objects": seeds * built * (16 * cells + 32)}
    if hasattr(own, "model"):
        found["parameters"] = COPIES * seeds * own.model(problem).size * item
    if getattr(own, "replay", "none") != "none":
        found["replay buffer"] = 2 * seeds * own.capacity * (4 * env.horizon + 8)
    if isinstance(env, BlockTrees):
        found["top-K buffer"] = 2 * seeds * top_k * (8 * cells + 24)
    elif metrics != "sampled" and offers(env, Indexed) and env.n_states <= LIMIT:
        found["all states"] = env.n_states * (state + 24 * actions + 8 * seeds)
        found["window"] = 8 * seeds * window
    return found
