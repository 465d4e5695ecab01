"""Block trees against trees counted by hand: canonical forms, valid actions, parents, rewards."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch

from envs.dag.check_dag import check_dag
from envs.dag.enumeration import enumerate_dag
from envs.molecules.block_trees import BlockTrees
from envs.molecules.blocks import Blocks
from envs.molecules.canonical import Canoniser
from envs.random import Rng
from envs.rollout import rollout
from gflownet.baselines.uniform import UniformActions
from tests.block_vocabularies import disguised, extensions, random_tree, tensor_of, trees_of, vocabulary, word

ALL = ("F", "CH2", "benzene", "CO", "CN", "pyridine", "triazine", "cyclopropane")
SMALL = [("F", "benzene", "CO"), ("CN", "CO", "CH2"), ("triazine", "F", "CH2"), ("cyclopropane", "pyridine", "F"), ALL]
RESTRICTED = [
    ("CO:1", "pyridine:0", "F"),
    ("CN:0", "CH2", "F"),
    ("pyridine:31", "triazine:2", "CO:0"),
    ("CO:1", "CN:1", "CO:0"),
]


def tree_space(blocks: Blocks, K: int) -> list[dict[str, list]]:
    """By number of blocks: word -> a tree, by brute force."""
    levels = [{word(blocks, [(c + 1, 0, 0, 0)]): [(c + 1, 0, 0, 0)] for c in range(blocks.C)}]
    while len(levels) < K:
        levels.append({word(blocks, more): more for tree in levels[-1].values() for more in extensions(blocks, tree)})
    return levels


@pytest.mark.parametrize("K", [1, 5, 8, 12])
def test_one_form_for_every_disguise_of_a_tree(K):
    blocks, draw = vocabulary(*ALL), random.Random(K)
    canonical = Canoniser(blocks)
    trees = [random_tree(blocks, draw.randint(1, K), draw) for _ in range(150)]
    obs = canonical(tensor_of(trees, K)).obs
    for _ in range(3):
        assert torch.equal(canonical(tensor_of([disguised(blocks, t, draw) for t in trees], K)).obs, obs)
    assert torch.equal(canonical(obs).obs, obs)
    if K <= 5:  # and another form for another tree
        words = [word(blocks, t) for t in trees]
        same = (obs[:, None] == obs[None]).flatten(2).all(2)
        assert torch.equal(same, torch.tensor([[a == b for b in words] for a in words]))
        assert [word(blocks, t) for t in trees_of(obs)] == words


def test_where_nodes_and_sites_went():
    blocks, draw = vocabulary(*ALL), random.Random(1)
    trees = [random_tree(blocks, 6, draw) for _ in range(200)]
    given = tensor_of(trees, 8)
    found = Canoniser(blocks)(given)
    for b, tree in enumerate(trees):
        now = trees_of(found.obs[b : b + 1])[0]
        bonds = {(i, p[2], p[1], p[3]) for i, p in enumerate(now) if i}
        bonds |= {(parent, theirs, i, own) for i, own, parent, theirs in bonds}
        for i, (code, parent, own, theirs) in enumerate(tree):
            here = int(found.node[b, i])
            assert now[here][0] == code
            if i:
                there = int(found.node[b, parent])
                assert (here, int(found.site[b, i, own]), there, int(found.site[b, parent, theirs])) in bonds
    assert (found.node[:, 6:] == 8).all()


@pytest.mark.parametrize("names", SMALL + RESTRICTED, ids="-".join)
def test_states_and_edges_are_those_of_brute_force(names):
    """Every state of at most three blocks, every edge: orbits of moves, orbits of leaves."""
    blocks = vocabulary(*names)
    K = 3 if len(names) < 8 else 2
    env, levels = BlockTrees(blocks, max_blocks=max(K, 2), min_blocks=1), tree_space(blocks, K)
    dag = enumerate_dag(env)
    going = (~dag.terminated & (env.size(dag.obs) > 0)).nonzero()[:, 0]
    words = [word(blocks, t) for t in trees_of(dag.obs[going])]
    assert len(set(words)) == len(words)
    assert set(words) == {w for level in levels for w in level}
    name = dict(zip(going.tolist(), words, strict=True))
    edges = defaultdict(set)
    for parent, action, child in zip(dag.parent.tolist(), dag.action.tolist(), dag.child.tolist(), strict=True):
        if parent in name and child in name:
            edges[name[child]].add((name[parent], action))
    listed = env.parents(dag.obs, dag.terminated)
    found = dag.find(listed.obs, torch.zeros_like(listed.child, dtype=torch.bool))
    ours = set(zip(listed.child.tolist(), found.tolist(), listed.action.tolist(), strict=True))
    assert ours == set(zip(dag.child.tolist(), dag.parent.tolist(), dag.action.tolist(), strict=True))
    assert len(ours) == len(listed.child)
    # every way to attach a block leads along one of these edges, and every edge is one of these ways
    for level in levels[:-1]:
        for w, tree in level.items():
            reached = {word(blocks, more) for more in extensions(blocks, tree)}
            assert reached == {child for child, into in edges.items() if any(p == w for p, _ in into)}


def test_leaves_that_look_alike_only_in_smaller_trees_are_two_edges():
    """Two leaves may leave the same tree behind without an automorphism between them (pseudo-similar): both edges count."""
    blocks = vocabulary("CH2", "F", "triazine", "CO")
    env = BlockTrees(blocks, max_blocks=4, min_blocks=1)
    dag = enumerate_dag(env)
    pairs = torch.stack([dag.parent, dag.child], 1)[~dag.terminated[dag.child]]
    _, count = torch.unique(pairs, dim=0, return_counts=True)
    assert (count > 1).any()
    check_dag(env)


@pytest.mark.parametrize(
    ("names", "K", "low"),
    [
        (SMALL[0], 3, 2),
        (SMALL[1], 3, 3),
        (SMALL[2], 4, 4),
        (ALL, 8, 2),
        (ALL, 7, 6),
        (RESTRICTED[0], 4, 2),
        (RESTRICTED[2], 3, 3),
        (RESTRICTED[1], 7, 5),
    ],
)
def test_contract(names, K, low):
    env = BlockTrees(vocabulary(*names), lambda obs: (obs.double() * 0.1).sum((1, 2)), max_blocks=K, min_blocks=low)
    kept = check_dag(env, states=6000)
    assert len(kept) > 30


@pytest.mark.parametrize("names", [("F", "CH2"), ("F", "CH2", "CO:0")])
def test_no_dead_ends_below_min_blocks(names):
    env = BlockTrees(vocabulary(*names), max_blocks=5, min_blocks=5)
    tau = rollout(env, UniformActions(), Rng.of_seeds([0]).spawn(500))
    assert (env.size(tau.last) == 5).all()
    sizes = env.size(enumerate_dag(env).obs)
    assert int(sizes.max()) == 5


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="one attachment point"):
        BlockTrees(vocabulary("F"), min_blocks=3)
    with pytest.raises(ValueError, match="attached by the sites"):
        Blocks.of(["F"], [[1]], [[[0]]], [[]])
    with pytest.raises(ValueError, match="max_blocks"):
        BlockTrees(vocabulary("F"), max_blocks=40)
    with pytest.raises(ValueError, match="min_blocks"):
        BlockTrees(vocabulary("F"), min_blocks=0)
    env = BlockTrees(vocabulary("F", "CH2"), lambda obs: torch.full((len(obs),), torch.nan))
    with pytest.raises(ValueError, match=r"CH2 .* not a number"):
        env.log_reward(tensor_of([[(2, 0, 0, 0), (1, 0, 0, 0)]], 8))
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(1,\)"):
        BlockTrees(vocabulary("F"), lambda obs: torch.zeros(3)).log_reward(tensor_of([[(1, 0, 0, 0)]], 8))


@pytest.mark.parametrize(
    ("capacities", "symmetries", "sentence"),
    [
        ([[]], [[[]]], "at least one"),
        ([[1, 0]], [[[0, 1]]], "capacities of at least 1"),
        ([[1, 2]], [[[0, 1], [1, 0]]], "of another capacity"),
        ([[1, 1]], [[[1, 0]]], "identity"),
        ([[1, 1, 1]], [[[0, 1, 2], [1, 2, 0]]], "do not form a group"),
    ],
)
def test_blocks_that_are_none(capacities, symmetries, sentence):
    with pytest.raises(ValueError, match=sentence):
        Blocks.of(["x"], capacities, symmetries)


@pytest.mark.parametrize("names", [("F", "CO", "triazine"), ("F", "CO:1", "CN:0")], ids="-".join)
def test_moves_between_objects_leave_the_law_as_it_is(names):
    """Metropolis' proposal: q(x'|x)/q(x|x') by counting what was proposed, on a whole space."""
    env = BlockTrees(vocabulary(*names), max_blocks=3)
    dag = enumerate_dag(env)
    objects, n = dag.obs[dag.objects], 4000
    proposed, log_ratio = env.propose(objects.repeat_interleave(n, 0), Rng.of_seeds([3]).spawn(len(objects) * n))
    to = dag.object_of(proposed).view(-1, n)
    count = torch.zeros(len(objects), len(objects)).scatter_add_(1, to, torch.ones(to.shape))
    said = torch.zeros(len(objects), len(objects)).scatter_(1, to, log_ratio.float().view(-1, n))
    off = ~torch.eye(len(objects), dtype=torch.bool) & (count > 0)
    assert (count.T[off] > 0).all()
    p, back = count[off] / n, count.T[off] / n
    spread = (1 / count[off] + 1 / count.T[off]).sqrt()
    z = ((back / p).log() - said[off]) / spread
    assert z.abs().max() < 5
    assert abs(float(z.pow(2).mean()) - 1) < 0.2


@pytest.mark.parametrize(("K", "low"), [(3, 2), (3, 3), (2, 2)])
@pytest.mark.parametrize("names", [("F", "CO", "CN"), ("F", "CO:1", "CN:0")], ids="-".join)
def test_every_object_can_be_reached_from_every_other(names, K, low):
    """By Metropolis' moves; trees without open points too, and where all trees have one size."""
    env = BlockTrees(vocabulary(*names), max_blocks=K, min_blocks=low)
    dag = enumerate_dag(env)
    objects = dag.obs[dag.objects]
    proposed, _ = env.propose(objects.repeat_interleave(3000, 0), Rng.of_seeds([4]).spawn(3000 * len(objects)))
    to = dag.object_of(proposed).view(len(objects), -1)
    reach = torch.eye(len(objects)).scatter_(1, to, 1.0)
    for _ in range(len(objects).bit_length()):
        reach = (reach @ reach).clamp_max(1)
    assert reach.all()
