"""The network over block trees: derivatives, invariances (order, layout, batch), dependence on each input."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from envs.molecules.blocks import Blocks
from envs.random import Rng
from gflownet.networks import Network
from gflownet.trees.batches import relations
from gflownet.trees.network import BlockTreeNet

K = 6
BLOCKS = Blocks.of(
    list("abcde"),
    [[1], [1, 1], [1, 2, 1], [3, 1, 1, 1], [2, 1]],
    [[[0]], [[0, 1], [1, 0]], [[0, 1, 2], [2, 1, 0]], [[0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2]], [[0, 1]]],
)
NET = BlockTreeNet(BLOCKS, K, ("policy", "policy", "flow", "backward"), width=12, layers=2, heads=3)
A = NET.actions


def grown(sizes: list[int], seed: int = 0) -> Tensor:
    """[M, K, 4] random trees; parents come before children and no site takes more than it can."""
    rng, trees = random.Random(seed), []
    for n in sizes:
        rows: list[list[int]] = []
        while len(rows) < n:
            rows, free = [], []
            while len(rows) < n and (free or not rows):
                c, i = rng.randrange(BLOCKS.C), len(rows)
                sites = [s for s, room in enumerate(BLOCKS.capacity[c].tolist()) for _ in range(room)]
                if rows:
                    parent, up = free.pop(rng.randrange(len(free)))
                    own = sites.pop(rng.randrange(len(sites)))
                    rows.append([c + 1, parent, own, up])
                else:
                    rows.append([c + 1, 0, 0, 0])
                free += [(i, s) for s in sites]
        trees.append(rows + [[0] * 4] * (K - n))
    return torch.tensor(trees)


def params(net: BlockTreeNet, *seeds: int, scale: float = 1.0) -> Tensor:
    """[S, P] in float64, all of them away from zero."""
    rng = Rng.of_seeds(seeds or [0])
    rng.dtype = torch.float64
    theta = net.init(rng)
    return theta + 0.3 * scale * Rng.of_seeds(seeds or [0]).fold(1).normal(net.size).double()


def open_points(obs: Tensor) -> tuple[Tensor, Tensor]:
    """Counted by hand: every (state, node·S + site) with room left, in states that may go on."""
    points = []
    for m, tree in enumerate(obs.tolist()):
        real = [row for row in tree if row[0]]
        if not real:
            points.append((m, 0))
        elif len(real) < K:
            room = {(i, s): r for i, row in enumerate(real) for s, r in enumerate(BLOCKS.capacity[row[0] - 1].tolist())}
            for i, (_, parent, own, up) in enumerate(real[1:], 1):
                room[i, own] -= 1
                room[parent, up] -= 1
            points += [(m, i * BLOCKS.S + s) for (i, s), r in room.items() if r > 0]
    state, site = torch.tensor(points).unbind(1)
    return state, site


OBS = grown([3, 0, 6, 1, 5, 2, 4, 3, 6, 0, 2, 5])


def test_it_is_a_net_of_the_shape_it_says() -> None:
    assert isinstance(NET, Network)
    assert A == (K - 1) * BLOCKS.S * BLOCKS.R + 1
    theta = NET.init(Rng.of_seeds([3, 4]))
    assert theta.shape == (2, NET.size)
    assert theta.dtype == torch.float32
    assert torch.equal(theta[1:], NET.init(Rng.of_seeds([4])))
    out = NET.forward(theta, OBS.repeat(2, 1, 1, 1))
    assert out.shape == (2, len(OBS), 3 * A + 1) == (2, len(OBS), NET.outputs)
    assert out.dtype == torch.float32


def test_the_first_policy_is_nearly_uniform() -> None:
    net = BlockTreeNet(BLOCKS, K, ("policy", "flow"))
    out = net.forward(net.init(Rng.of_seeds([0])), OBS[None])
    assert 0.01 < out[out != 0].std() < 0.3
    assert out.abs().max() < 1


@pytest.mark.parametrize("padded", [False, True])
def test_derivatives_are_those_of_finite_differences(padded: bool) -> None:
    net = replace(NET, padded=padded)
    theta = params(net)
    weight = torch.randn(NET.outputs, generator=torch.Generator().manual_seed(0)).double()
    value = lambda x: (net.forward(x, OBS[None]) * weight).sum()  # noqa: E731
    leaf = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    parts = torch.split(slope[0], net._sizes)
    assert all(part.abs().max() > 0 for part in parts)  # no weight is idle
    at = 0
    for part in parts:  # along a random direction within each weight
        step = torch.zeros_like(theta)
        step[0, at : at + len(part)] = torch.randn(len(part), generator=torch.Generator().manual_seed(1)).double()
        at += len(part)
        numeric = (value(theta + 1e-5 * step) - value(theta - 1e-5 * step)) / 2e-5
        torch.testing.assert_close(numeric, (slope * step).sum(), rtol=1e-6, atol=1e-6)


def test_the_layouts_agree() -> None:
    theta, other = params(NET).requires_grad_(), params(NET).requires_grad_()
    ragged, padded = NET.forward(theta, OBS[None]), replace(NET, padded=True).forward(other, OBS[None])
    torch.testing.assert_close(ragged, padded, rtol=0, atol=1e-12)
    assert torch.equal(ragged == 0, padded == 0)
    ragged.sin().sum().backward()
    padded.sin().sum().backward()
    torch.testing.assert_close(theta.grad, other.grad, rtol=0, atol=1e-10)


def test_the_columns_are_the_scores_at_open_points_and_zero_elsewhere() -> None:
    theta, (state, site) = params(NET), open_points(OBS)
    out, scores = NET.forward(theta, OBS[None])[0], NET.at_sites(theta[0], OBS, state, site)
    for p in range(2):
        dense = torch.zeros(len(OBS), (K - 1) * BLOCKS.S, BLOCKS.R, dtype=torch.float64)
        dense[state, site] = scores.logits[p]
        torch.testing.assert_close(out[:, p * A : (p + 1) * A - 1], dense.flatten(1), rtol=0, atol=1e-12)
        torch.testing.assert_close(out[:, (p + 1) * A - 1], scores.stop[p], rtol=0, atol=1e-12)
    torch.testing.assert_close(out[:, 2 * A], scores.flow[0], rtol=0, atol=1e-12)
    back = out[:, 2 * A + 1 :]
    assert back.shape[1] == A
    rows = back[:, :-1].view(len(OBS), -1, BLOCKS.R)
    torch.testing.assert_close(rows, scores.backward[0][:, None, :-1].expand_as(rows), rtol=0, atol=1e-12)
    torch.testing.assert_close(back[:, -1], scores.backward[0][:, -1], rtol=0, atol=1e-12)
    assert (scores.logits[0] - scores.logits[1]).abs().min() > 0  # two policies, not one


def test_the_columns_come_in_the_order_asked_for() -> None:
    net = replace(NET, columns=("flow", "policy"))
    theta = params(net)
    state, site = open_points(OBS)
    out, scores = net.forward(theta, OBS[None])[0], net.at_sites(theta[0], OBS, state, site)
    torch.testing.assert_close(out[:, 0], scores.flow[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(out[:, -1], scores.stop[0], rtol=0, atol=1e-12)
    assert out.shape[1] == 1 + A


def test_another_order_of_the_nodes_permutes_the_logits() -> None:
    theta, rng, moved = params(NET)[0], random.Random(5), 0
    for tree in grown([6, 5, 5, 4, 5, 4], seed=2):
        n, order, waiting = int((tree[:, 0] > 0).sum()), [0], list(range(1, 6))
        while len(order) < n:
            i = rng.choice([i for i in waiting if i < n and int(tree[i, 1]) in order])
            order.append(i)
            waiting.remove(i)
        place = {old: new for new, old in enumerate(order)}
        other = torch.zeros_like(tree)
        for old, new in place.items():
            other[new] = tree[old]
            other[new, 1] = place[int(tree[old, 1])]
        moved += order != sorted(order)
        site = torch.tensor(
            [i * BLOCKS.S + s for i in range(n) for s in range(int((BLOCKS.capacity[tree[i, 0] - 1] > 0).sum()))]
        )
        there = torch.tensor([place[int(k) // BLOCKS.S] * BLOCKS.S + int(k) % BLOCKS.S for k in site])
        zero = torch.zeros_like(site)
        one, two = NET.at_sites(theta, tree[None], zero, site), NET.at_sites(theta, other[None], zero, there)
        for a, b in (
            (one.logits[0], two.logits[0]),
            (one.stop, two.stop),
            (one.flow, two.flow),
            (one.backward[0], two.backward[0]),
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert moved >= 3


def test_every_logit_depends_on_what_is_attached_to_any_node() -> None:
    """A chain of d-blocks; one more block at its first, middle or last node, even where a single layer must carry it."""
    net = replace(NET, layers=1, columns=("policy", "flow"))
    theta, chain = params(net)[0], torch.zeros(1, K, 4, dtype=torch.int64)
    for i in range(4):
        chain[0, i] = torch.tensor([4, i - 1, 1, 2] if i else [4, 0, 0, 0])
    site = torch.arange(4) * BLOCKS.S + 3
    zero = torch.zeros_like(site)
    before = net.at_sites(theta, chain, zero, site)
    for at in range(4):
        more, two = chain.clone(), chain.clone()
        more[0, 4] = two[0, 4] = two[0, 5] = torch.tensor([1, at, 0, 0])
        after, third = net.at_sites(theta, more, zero, site), net.at_sites(theta, two, zero, site)
        assert (after.logits[0] - before.logits[0]).abs().amin() > 1e-9
        assert (third.logits[0] - after.logits[0]).abs().amin() > 1e-9  # a second one alike counts
        elsewhere = chain.clone()
        elsewhere[0, 4] = torch.tensor([1, (at + 1) % 4, 0, 0])
        assert (after.logits[0] - net.at_sites(theta, elsewhere, zero, site).logits[0]).abs().amin() > 1e-9


def test_it_tells_by_which_sites_blocks_are_bonded() -> None:
    theta = params(NET)
    a = torch.tensor([[4, 0, 0, 0], [3, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4, [0] * 4])
    own, up = a.clone(), a.clone()
    own[1, 2], up[1, 3] = 1, 1
    out = NET.forward(theta, torch.stack([a, own, up])[None])[0]
    stop = out[:, A - 1]
    assert (stop[0] - stop[1:]).abs().min() > 1e-6
    assert (stop[1] - stop[2]).abs() > 1e-6


def test_seeds_side_by_side_are_as_each_alone() -> None:
    theta, obs = params(NET, 1, 2), torch.stack([OBS, grown([1, 6, 2, 0, 3, 3, 4, 5, 5, 2, 6, 1], seed=9)])
    both = NET.forward(theta, obs)
    for s in range(2):
        torch.testing.assert_close(both[s], NET.forward(theta[s : s + 1], obs[s : s + 1])[0], rtol=0, atol=1e-12)


def test_states_do_not_see_their_neighbours_in_the_batch() -> None:
    theta = params(NET)
    alone = torch.cat([NET.forward(theta, tree[None, None])[0] for tree in OBS])
    torch.testing.assert_close(NET.forward(theta, OBS[None])[0], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_the_empty_and_the_full_state(padded: bool) -> None:
    out = replace(NET, padded=padded).forward(params(NET), OBS[None])[0]
    empty, full = out[1], out[2]
    assert torch.equal(empty[:A].nonzero()[:, 0], torch.cat([torch.arange(BLOCKS.R), torch.tensor([A - 1])]))
    assert full[: A - 1].abs().max() == 0
    assert full[A - 1] != 0
    assert out.isfinite().all()


def test_relations_are_walks_up_and_down() -> None:
    trees = grown([6, 5, 6, 4], seed=3)
    found = relations(trees[:, :, 1])
    for tree, relation in zip(trees.tolist(), found.tolist(), strict=True):
        n = sum(row[0] > 0 for row in tree)
        up = []
        for i in range(n):
            up.append([i])
            while up[i][-1]:
                up[i].append(tree[up[i][-1]][1])
        for i in range(n):
            for j in range(n):
                distance = len(set(up[i]) ^ set(up[j]))
                assert relation[i][j] == 3 * distance + 1 + (j in up[i]) - (i in up[j])


@pytest.mark.parametrize(
    "wrong", [{"columns": ("policy", "value")}, {"columns": ()}, {"heads": 5}, {"layers": 0}, {"max_blocks": 1}]
)
def test_what_it_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(NET, **wrong)  # type: ignore[arg-type]


def test_the_padded_layout_reads_no_number_back() -> None:
    """On the meta device there are shapes and no numbers: whatever looked at one would raise, as the ragged layout does."""
    net = replace(NET, blocks=BLOCKS.to("meta"), padded=True)
    net.__dict__["_parts"] = NET._parts  # shapes of the weights, worked out once when the net is made
    theta = torch.zeros(1, NET.size, device="meta", requires_grad=True)
    out = net.forward(theta, OBS[None].to("meta"))
    assert out.shape == (1, len(OBS), NET.outputs)
    out.sum().backward()
    assert theta.grad is not None
    ragged = replace(net, padded=False)
    ragged.__dict__["_parts"] = NET._parts
    with pytest.raises((RuntimeError, NotImplementedError)):
        ragged.forward(theta, OBS[None].to("meta"))
