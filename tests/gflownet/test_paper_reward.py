"""The sEH reward of trees: a function of the tree alone, and with the convention paper2021 the published one."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

from envs.core import State
from envs.molecules.atom_tables import atom_tables
from envs.molecules.block_trees import BlockTrees
from envs.molecules.canonical import Canoniser
from envs.molecules.fragments import CONVENTIONS, Fragment, blocks_of, load_fragments
from envs.random import Rng
from envs.rollout import rollout
from experiments.molecules.config import MoleculeSettings, molecules, tree_reward
from gflownet.baselines.uniform import UniformActions
from gflownet.rewards.seh import SehProxy, load_weights
from tests.block_vocabularies import Tree, disguised, extensions, tensor_of
from tests.gflownet.test_seh import SEH, TEMPERING, needs_data, random_weights

BLOCKS = SEH / "blocks_PDB_105.json"
PUBLISHED = {"A": "pred_orig", "B": "pred_tb2022"}
ORDERS = {
    "as it is": list(range(105)),
    "reversed": list(range(105))[::-1],
    "shuffled": random.Random(0).sample(range(105), 105),
}
SYMMETRIC = (  # equal blocks, images of atom 0, an atom 0 that is no site, sites that do not attach
    Fragment("ethane", "CC", ((0, 1), (1, 1))),
    Fragment("propane", "CCC", ((0, 1), (1, 1), (2, 1)), (0, 1)),
    Fragment("benzene", "c1ccccc1", ((0, 1), (2, 1), (4, 1))),
    Fragment("amine", "CN", ((1, 2),)),
    Fragment("alcohol", "CO", ((0, 1), (1, 1)), (1,)),
    Fragment("fluorine", "F", ((0, 1),)),
    Fragment("chlorine", "Cl", ((0, 1),)),
)


def in_order(folder: Path, order: str) -> Path:
    """The blocks file with its rows in another order."""
    tables = json.loads(BLOCKS.read_text())
    path = folder / "blocks.json"
    path.write_text(
        json.dumps({name: {str(i): table[str(row)] for i, row in enumerate(ORDERS[order])} for name, table in tables.items()})
    )
    return path


# -- a tree without open attachment points


def closed_trees(fragments: tuple[Fragment, ...], n: int, K: int) -> list[Tree]:
    """Trees without open points, of 2 to K blocks, which actions build."""
    blocks, draw, found = blocks_of(fragments), random.Random(0), list[Tree]()
    while len(found) < n:
        tree: Tree = [(draw.randrange(blocks.C) + 1, 0, 0, 0)]
        while len(tree) < K and (more := list(extensions(blocks, tree))):
            tree = draw.choice(more)
        if len(tree) > 1 and not list(extensions(blocks, tree)):
            found.append(tree)
    return found


@pytest.mark.parametrize("variant", ["A", "B"])
def test_the_mark_of_a_closed_tree_sees_the_tree_only(variant: str) -> None:
    """Not which node is which, not the order of the vocabulary, not the names; and not the vocabulary's other blocks."""
    trees, draw, weights = closed_trees(SYMMETRIC, 80, 6), random.Random(1), random_weights(1.0)
    obs, blocks = tensor_of(trees, 6), blocks_of(SYMMETRIC)
    assert len({len(t) for t in trees}) > 3
    usual = SehProxy(weights, atom_tables(SYMMETRIC), variant, torch.float64)
    truth = usual(obs)
    unmarked = SehProxy(weights, atom_tables(SYMMETRIC), "A0", torch.float64)
    assert variant != "A" or (truth - unmarked(obs)).abs().min() > 1e-6, "an atom is marked"
    assert torch.allclose(usual(Canoniser(blocks)(obs).obs), truth, atol=1e-11)
    for _ in range(2):
        other = tensor_of([disguised(blocks, tree, draw) for tree in trees], 6)
        assert torch.allclose(usual(other), truth, atol=1e-11)
        assert torch.allclose(usual(other, static=True), truth, atol=1e-11)
    more = [
        Fragment("nitrile", "C#N", ((0, 1),)),
        *(replace(f, name=f"{f.name}!") for f in SYMMETRIC),
        Fragment("water", "O", ((0, 2),)),
    ]
    draw.shuffle(more)
    number = {f.smiles: c for c, f in enumerate(more)}
    moved = torch.tensor([0, *(number[f.smiles] + 1 for f in SYMMETRIC)])
    obs = torch.cat([moved[obs[..., :1]], obs[..., 1:]], 2)
    found = SehProxy(weights, atom_tables(more), variant, torch.float64)(Canoniser(blocks_of(more))(obs).obs)
    assert torch.allclose(found, truth, atol=1e-11)


@needs_data
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_values_do_not_depend_on_the_order_of_the_blocks_file(convention: str, tmp_path: Path) -> None:
    """A quarter of these molecules have no open point; atom 0 of node 0 was marked there, and node 0 is an accident."""
    fragments, weights = load_fragments(BLOCKS, convention), load_weights(SEH / "proxy_best_params.npz")
    trees = rollout(BlockTrees(blocks_of(fragments)), UniformActions(), Rng.of_seeds([0]).spawn(120)).last
    found: dict[tuple[str, torch.dtype], list[Tensor]] = {}
    for order in ORDERS:
        theirs = load_fragments(in_order(tmp_path, order), convention)
        number = {(f.smiles, f.attach): c for c, f in enumerate(theirs)}
        moved = torch.tensor([0, *(number[f.smiles, f.attach] + 1 for f in fragments)])
        obs = Canoniser(blocks_of(theirs))(torch.cat([moved[trees[..., :1]], trees[..., 1:]], 2)).obs
        tables = atom_tables(theirs)
        for variant in "AB":
            for dtype in (torch.float32, torch.float64):
                found.setdefault((variant, dtype), []).append(SehProxy(weights, tables, variant, dtype)(obs) / 8)
    for (_, dtype), values in found.items():
        for other in values[1:]:
            assert (other - values[0]).abs().max() < (1e-6 if dtype == torch.float32 else 1e-12)


# -- the vocabulary as published


@needs_data
def test_states_are_as_many_as_in_the_code_of_2021() -> None:
    """81 labelled states of one block; 9,240 of two, 7,245 up to automorphism."""
    fragments = load_fragments(BLOCKS, "paper2021")
    blocks = blocks_of(fragments)
    env = BlockTrees(blocks, max_blocks=2, min_blocks=2)
    ones = torch.zeros(blocks.C, 2, 4, dtype=torch.int64)
    ones[:, 0, 0] = torch.arange(blocks.C) + 1
    parent, action = env.valid_actions(env.canonical(ones)).nonzero(as_tuple=True)
    twos = env.canonical(env.attached(ones[parent], action)).obs
    assert (blocks.C, blocks.R, len(twos.unique(dim=0))) == (81, 105, 7245)
    rows = [(c, atom) for c, f in enumerate(fragments) for atom in f.joins or ()]
    points = [(c, atom) for c, f in enumerate(fragments) for atom, _ in f.attach]
    assert len({tuple(sorted((end, row))) for end in points for row in rows}) == 9240


@needs_data
def test_fragments_are_those_of_the_file() -> None:
    """A row's atoms, equally often; attached by what begins a row."""
    tables = json.loads(BLOCKS.read_text())
    rows = [(tables["block_smi"][i], tables["block_r"][i]) for i in tables["block_smi"]]
    fragments = load_fragments(BLOCKS, "paper2021")
    assert len({f.name for f in fragments}) == len(fragments) == len({(s, tuple(sorted(r))) for s, r in rows}) == 81
    for f in fragments:
        own = [r for s, r in rows if s == f.smiles and Counter(r) == dict(f.attach)]
        assert own
        assert f.joins is not None
        assert set(f.joins) == {r[0] for r in own}


# -- from the recorded actions to log R


def through(env: Any, fragments: tuple[Fragment, ...], actions: list[list[int]]) -> tuple[Tensor, Tree]:
    """The state that the environment is in after the actions of the code of 2021, [1, K, 4]; and the tree as they built it.

    Its open points are a list: a new block's, without the one that attaches, come behind those that were there; of the first
    block the one that attaches comes last.
    """
    tables = json.loads(BLOCKS.read_text())
    block = {(f.smiles, f.attach): c for c, f in enumerate(fragments)}
    rng = Rng.of_seeds([0]).spawn(1)
    state: State = env.reset(1, rng)
    tree, stems = Tree(), list[tuple[int, int]]()
    for row, stem in actions:
        smiles, (begin, *rest) = tables["block_smi"][str(row)], tables["block_r"][str(row)]
        c = block[smiles, tuple(sorted(Counter([begin, *rest]).items()))]
        site = {atom: s for s, (atom, _) in enumerate(fragments[c].attach)}
        before = env.canonical(tensor_of([tree], env.max_blocks))
        assert torch.equal(before.obs, state.obs)
        place, (row_of, n) = 0, (int(env.blocks.first_row[c]), len(tree))
        if tree:
            node, point = stems.pop(stem)
            now, called = int(before.node[0, node]), int(before.site[0, node, point])
            place = int(before.first[0, now]) * env.blocks.S + int(before.least[0, now, called])
            row_of = int(env.blocks.row[c, site[begin]])
            tree = [*tree, (c + 1, node, site[begin], point)]
        else:
            tree, rest = [(c + 1, 0, 0, 0)], [*rest, begin]
        stems += [(n, site[atom]) for atom in rest]
        action = torch.tensor([place * env.blocks.R + row_of])
        assert state.action_mask is not None
        assert bool(state.action_mask[0, action]), "the environment allows it"
        state = env.step(state, action, rng)
    assert bool(state.action_mask[0, :-1].any()) == (bool(stems) and len(tree) < env.max_blocks)  # type: ignore[index]
    return state.obs, tree


def histories(tree: Tree, fragments: tuple[Fragment, ...], env: Any) -> list[Tree]:
    """The same tree from each block that can come first, with each image of its sites under its symmetries."""
    found = list[Tree]()
    for start in range(len(tree)):
        bonds: list[list[tuple[int, int, int]]] = [[] for _ in tree]
        for i, (_, parent, own, theirs) in enumerate(tree[1:], 1):
            bonds[i].append((parent, own, theirs))
            bonds[parent].append((i, theirs, own))
        place, out, order = {start: 0}, [(tree[start][0], 0, 0, 0)], [start]
        for node in order:
            for other, mine, its in bonds[node]:
                if other not in place:
                    place[other] = len(out)
                    out.append((tree[other][0], place[node], its, mine))
                    order.append(other)
        if all(bool(env.blocks.joins[code - 1, own]) for code, _, own, _ in out[1:]):
            for g in {tuple(g) for g in env.blocks.symmetry[out[0][0] - 1].tolist()}:
                found.append([out[0], *((c, p, own, theirs if p else g[theirs]) for c, p, own, theirs in out[1:])])
    return found


@cache
def recorded(
    path: Path, step: int
) -> tuple[list[dict[str, str]], dict[str, Any], tuple[Fragment, ...], list[tuple[Tensor, Tree]]]:
    """Rows of parity.csv; by variant the environment that `--preset paper` makes; its fragments; where the actions lead."""
    with (SEH / "parity.csv").open() as file:
        rows = list(csv.DictReader(file))[::step]
    settings = MoleculeSettings(
        "seh",
        beta=10.0,
        r_min=0.1 / 8,
        fragments=str(path),
        convention="paper2021",
        seh_weights=str(SEH / "proxy_best_params.npz"),
    )
    envs = {variant: molecules(replace(settings, seh_variant=variant), "cpu") for variant in PUBLISHED}  # type: ignore[arg-type]
    fragments = load_fragments(path, "paper2021")
    return rows, envs, fragments, [through(envs["A"], fragments, json.loads(row["actions"])) for row in rows]


@needs_data
@pytest.mark.parametrize("order", ORDERS)
def test_the_published_rewards_from_the_recorded_actions(order: str, tmp_path: Path) -> None:
    """All recorded molecules with open points, 213 of 320, have the recorded values."""
    path, step = (BLOCKS, 1) if order == "as it is" else (in_order(tmp_path, order), 5)
    rows, envs, _, mapped = recorded(path, step)
    is_open = torch.tensor([row["stems"] != "[]" for row in rows])
    obs = torch.cat([state for state, _ in mapped])[is_open]
    for variant, column in PUBLISHED.items():
        truth = torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)[is_open] / 8
        reward = tree_reward(envs[variant])
        assert reward is not None
        off = (reward.parts(obs)["seh"] - truth).abs()
        assert off.max() < 2e-6
        assert (off < 1e-6).double().mean() > 0.99  # one molecule is off by 1.3e-6 in B: the rounding of float32
        off = (envs[variant].log_reward(obs) - TEMPERING(truth)).abs()
        assert off.max() < 1e-3  # log R = 10 log r, and r may be 0.02
        assert off.median() < 1e-5


@needs_data
def test_a_closed_tree_has_one_of_its_published_values() -> None:
    """A function of the tree cannot have all 107 recorded ones: the code of 2021 has one for each block that may come first."""
    rows, envs, fragments, mapped = recorded(BLOCKS, 1)
    blocks, tables = envs["A"].blocks, atom_tables(fragments)
    closed = [n for n, row in enumerate(rows) if row["stems"] == "[]"]
    ways = [(n, way) for n in closed for way in histories(mapped[n][1], fragments, envs["A"])]
    no_site = torch.zeros(len(ways), 8, blocks.S, dtype=torch.bool)
    for variant, column in PUBLISHED.items():
        exact = SehProxy(load_weights(SEH / "proxy_best_params.npz"), tables, variant, torch.float64)
        possible = exact(tensor_of([way for _, way in ways], 8), no_site).tolist()
        ours = exact(torch.cat([mapped[n][0] for n in closed])).tolist()
        same = 0
        for n, p in zip(closed, ours, strict=True):
            values = []
            for (m, way), value in zip(ways, possible, strict=True):
                if n == m:
                    f = fragments[way[0][0] - 1]
                    values.append(((-sum(room for _, room in f.attach), f.smiles, f.attach), value))
            assert min(abs(value - float(rows[n][column])) for _, value in values) < 1e-9
            assert min(abs(value - p) for key, value in values if key == min(values)[0]) < 1e-9
            same += abs(p - float(rows[n][column])) < 1e-9
        assert same == 56
