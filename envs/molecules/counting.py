"""`count_states`: counts the states of a space of block trees, up to a limit, to decide whether it can be enumerated.

    trees of 0 blocks = {the empty tree};  trees of k blocks = distinct {a tree of k - 1 blocks plus one block}
    states = trees + trees that may be finished

It stops as soon as the limit is exceeded, so that it takes about a second for any vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.dag.search import TooManyStates
from envs.dag.segments import distinct_keys
from envs.molecules.block_trees import BlockTrees

ROWS = 1 << 19  # entries of a mask in one chunk


def count_states(env: BlockTrees, limit: int) -> int:
    """Number of states of `env`; a finished tree and the same tree unfinished are two states.

    Raises:
        TooManyStates: there are more than `limit`.
    """
    trees, count = torch.zeros(1, env.max_blocks, 4, dtype=torch.int64, device=env.device), 1
    for size in range(1, env.max_blocks + 1):
        each = 2 if size >= env.min_blocks else 1
        trees = _grown(env, trees, (limit - count) // each)
        count += each * len(trees)
        if count > limit:
            raise TooManyStates(f"there are at least {count:,} states, more than the limit of {limit:,}")
    return count


def _grown(env: BlockTrees, trees: Tensor, room: int) -> Tensor:
    """Distinct trees with one block more; it stops once there are more than `room`."""
    found = trees[:0]
    for some in torch.split(trees, max(1, ROWS // env.n_actions)):
        parent, action = env.valid_actions(env.canonical(some))[:, :-1].nonzero(as_tuple=True)
        more = torch.cat([found, env.canonical(env.attached(some[parent], action)).obs])
        found = more[distinct_keys(env.index(more))[2]]
        if len(found) > room:
            break
    return found
