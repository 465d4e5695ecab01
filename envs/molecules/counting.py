"""How many trees there are, for as long as they are few: what decides whether a space of molecules is enumerated.

    trees of 0 blocks = {nothing};  trees of k blocks = distinct {a tree of k - 1 blocks and a block more}
    states = trees + trees that may be finished

Stops in the middle of a size once there are too many, so that the answer takes a second for any vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.dag.search import TooManyStates
from envs.dag.segments import distinct_keys
from envs.molecules.block_trees import BlockTrees

ROWS = 1 << 19  # numbers of a mask that is looked at at once


def count_states(env: BlockTrees, limit: int) -> int:
    """States of the whole space, an object and the tree before it being two. Raises TooManyStates above `limit`."""
    trees, count = torch.zeros(1, env.max_blocks, 4, dtype=torch.int64, device=env.device), 1
    for size in range(1, env.max_blocks + 1):
        each = 2 if size >= env.min_blocks else 1
        trees = _grown(env, trees, (limit - count) // each)
        count += each * len(trees)
        if count > limit:
            raise TooManyStates(f"there are at least {count:,} states, more than the {limit:,} that are enumerated")
    return count


def _grown(env: BlockTrees, trees: Tensor, room: int) -> Tensor:
    """Distinct trees with a block more; not all of them where there are more than `room`."""
    found = trees[:0]
    for some in torch.split(trees, max(1, ROWS // env.n_actions)):
        parent, action = env.valid_actions(env.canonical(some))[:, :-1].nonzero(as_tuple=True)
        more = torch.cat([found, env.canonical(env.attached(some[parent], action)).obs])
        found = more[distinct_keys(env.index(more))[2]]
        if len(found) > room:
            break
    return found
