"""Small vocabularies with symmetric blocks, and trees of them built and compared by hand, for the tests of molecules."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import torch
from torch import Tensor

from envs.molecules.blocks import Blocks

Tree = list[tuple[int, int, int, int]]  # nodes as in an observation

RING = [[(sign * site + turn) % 6 for site in range(6)] for sign in (1, -1) for turn in range(6)]
SYMMETRIC = {  # name: (capacities, symmetries)
    "F": ([1], [[0]]),
    "CH2": ([2], [[0]]),
    "benzene": ([1] * 6, RING),
    "CO": ([3, 1], [[0, 1]]),
    "CN": ([2, 2], [[0, 1]]),
    "pyridine": ([1] * 5, [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]),
    "triazine": ([1] * 3, [list(p) for p in itertools.permutations(range(3))]),
    "cyclopropane": ([2] * 3, [list(p) for p in itertools.permutations(range(3))]),
}


def vocabulary(*names: str) -> Blocks:
    """Blocks of SYMMETRIC; "CO:1" is attached by its site 1 alone, and by those that symmetries map to it."""
    kinds = [name.partition(":") for name in names]
    blocks = [SYMMETRIC[kind] for kind, *_ in kinds]
    joins = [list(map(int, sites)) or list(range(len(SYMMETRIC[kind][0]))) for kind, _, sites in kinds]
    return Blocks.of(names, [room for room, _ in blocks], [group for _, group in blocks], joins)


def tensor_of(trees: list[Tree], K: int) -> Tensor:
    return torch.tensor([tree + [(0, 0, 0, 0)] * (K - len(tree)) for tree in trees])


def trees_of(obs: Tensor) -> list[Tree]:
    return [[tuple(node) for node in tree if node[0]] for tree in obs.tolist()]  # type: ignore[misc]


def partners(blocks: Blocks, tree: Tree) -> list[list[list[tuple[int, int]]]]:
    """Of each site of each node: the (node, site) pairs bonded to it."""
    bonds: list[list[list[tuple[int, int]]]] = [[[] for _ in range(blocks.S)] for _ in tree]
    for i, (_, parent, own, theirs) in enumerate(tree):
        if i:
            bonds[i][own].append((parent, theirs))
            bonds[parent][theirs].append((i, own))
    return bonds


def word(blocks: Blocks, tree: Tree) -> str:
    """A text that two trees share if and only if they are isomorphic: the least over roots and symmetries, spelt out."""
    bonds = partners(blocks, tree)

    def seen(node: int, behind: int, towards: int) -> str:
        c = tree[node][0] - 1
        texts = []
        for g in {tuple(g) for g in blocks.symmetry[c].tolist()}:
            sites = [""] * blocks.S
            for s in range(blocks.S):
                hung = [seen(j, node, t) for j, t in bonds[node][s] if j != behind]
                mark = ["^"] if s == towards else []
                sites[g[s]] = "".join(sorted(hung) + mark)
            texts.append(f"({c}:{','.join(sites)})")
        return min(texts)

    return min(seen(root, -1, -1) for root in range(len(tree)))


def extensions(blocks: Blocks, tree: Tree) -> Iterator[Tree]:
    """Every way to attach one block more, sites and nodes taken one by one."""
    bonds = partners(blocks, tree)
    for node, (code, *_) in enumerate(tree):
        for s in range(blocks.S):
            if len(bonds[node][s]) < int(blocks.capacity[code - 1, s]):
                for c in range(blocks.C):
                    for t in range(blocks.S):
                        if bool(blocks.joins[c, t]):
                            yield [*tree, (c + 1, node, t, s)]


def random_tree(blocks: Blocks, size: int, draw: random.Random) -> Tree:
    while True:
        tree: Tree = [(draw.randrange(blocks.C) + 1, 0, 0, 0)]
        while len(tree) < size and (more := list(extensions(blocks, tree))):
            tree = draw.choice(more)
        if len(tree) == size:
            return tree


def disguised(blocks: Blocks, tree: Tree, draw: random.Random) -> Tree:
    """The same tree from another root, in another order, with sites renamed by symmetries."""
    G = blocks.symmetry.shape[1]
    rename = [blocks.symmetry[node[0] - 1, draw.randrange(G)].tolist() for node in tree]
    bonds = partners(blocks, tree)
    root = draw.randrange(len(tree))
    place, out = {root: 0}, [(tree[root][0], 0, 0, 0)]
    while len(out) < len(tree):
        ways = [(i, s, j, t) for i in place for s in range(blocks.S) for j, t in bonds[i][s] if j not in place]
        i, s, j, t = draw.choice(ways)
        out.append((tree[j][0], place[i], rename[j][t], rename[i][s]))
        place[j] = len(out) - 1
    return out
