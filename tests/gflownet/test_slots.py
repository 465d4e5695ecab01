"""Trees in static shapes: points in slots give the numbers, gradients and draws of valid points, and keep no logits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import State
from envs.molecules.block_trees import BlockTrees
from envs.random import Rng
from gflownet.gflownet import GFlowNet
from gflownet.model import Model
from gflownet.problem import DagProblem
from gflownet.registry import register
from gflownet.sampling.exploration import Exploration, first_reaching
from gflownet.trees.actions import SparseLogits
from gflownet.trees.network import BlockTreeNet
from gflownet.trees.outputs import DenseOutputs, SlotOutputs, SparseOutputs
from gflownet.trees.slots import SlotLogits
from tests.block_vocabularies import SYMMETRIC, partners, random_tree, vocabulary

VOCABULARY = vocabulary("F", "CO", "CN:1", "pyridine:10")


def played(env: BlockTrees, n: int, seed: int = 0) -> State:
    """States of all sizes, reached by uniform valid actions, one batch of n after another."""
    state, rng, seen = env.reset(n, Rng.of_seeds([0]).spawn(n)), random.Random(seed), []
    for _ in range(env.max_blocks + 1):
        seen.append(state)
        action = torch.tensor([rng.choice(row.nonzero()[:, 0].tolist() or [0]) for row in state.action_mask])  # type: ignore[union-attr]
        state = env.step(state, action, Rng.of_seeds([0]).spawn(n))
    mask, obs = (torch.cat([getattr(s, name) for s in seen]) for name in ("action_mask", "obs"))
    some = mask.any(1)
    return State(obs[some], *[torch.zeros(int(some.sum()))] * 3, None, mask[some])


def test_no_tree_has_more_open_points_than_the_bound() -> None:
    draw, reached = random.Random(0), 0
    for names in (("F", "CH2"), ("benzene", "F"), ("CO", "CN"), ("cyclopropane", "pyridine", "CO")):
        blocks = vocabulary(*names)
        for size in range(1, 6):
            bound = blocks.most_points(size)
            assert blocks.to("meta").most_points(size) == bound <= size * blocks.S
            for _ in range(20):
                tree = random_tree(blocks, draw.randrange(1, size + 1), draw)
                rooms = [SYMMETRIC[names[node[0] - 1]][0] for node in tree]
                taken = [[len(p) for p in sites] for sites in partners(blocks, tree)]
                full = [[t >= r for t, r in zip(ts, rs, strict=False)] for ts, rs in zip(taken, rooms, strict=True)]
                count = sum(not x for sites in full for x in sites)
                assert count <= bound
                reached += count == bound
    assert reached > 20  # the bound is not a loose one
    assert vocabulary("benzene").most_points(3) == 6 * 3 - 4  # each bond of sites with one partner closes two


@pytest.mark.parametrize("chunk", [1 << 26, 2000])
@pytest.mark.parametrize("padded", [False, True])
def test_slots_are_the_dense_numbers_and_gradients(padded: bool, chunk: int) -> None:
    env = BlockTrees(VOCABULARY, max_blocks=5)
    state = played(env, 12)
    M = len(state.obs) // 2
    obs, valid = state.obs[: 2 * M].view(2, M, 5, 4), state.action_mask[: 2 * M]  # type: ignore[index]
    net = BlockTreeNet(VOCABULARY, 5, ("policy", "policy", "flow"), width=8, layers=1, padded=padded)
    model, rng = Model(net, net.actions, heads=2, state_flow=True), Rng.of_seeds([3, 4])
    rng.dtype = torch.float64
    params = 3 * net.init(rng)
    where, action = valid.nonzero(as_tuple=True)
    found = []
    for kind in (DenseOutputs, SlotOutputs):
        leaf = params.clone().requires_grad_()
        if kind is DenseOutputs:
            answers: Any = DenseOutputs(model, net.forward(leaf, obs).flatten(0, 1), valid)
        else:
            answers = SlotOutputs(net, leaf, obs, valid)
        heads: list[Any] = [answers.action_logits(k) for k in range(2)]
        for head in heads:
            head.chunk = chunk
        numbers = torch.cat([x for head in heads for x in (head.total, head.at(where, action))] + [answers.log_flow])
        weight = torch.randn(len(numbers), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found.append((numbers.detach(), *torch.autograd.grad((numbers * weight).sum(), leaf)))
    for dense, slots in zip(*found, strict=True):
        assert torch.allclose(dense, slots, rtol=1e-11, atol=1e-12)
        assert float(dense.abs().max()) > 0.1


@pytest.mark.parametrize("explore", [Exploration(), Exploration(torch.tensor(0.3), 1.7)], ids=["policy", "explores"])
def test_draws_are_those_of_points(explore: Exploration) -> None:
    env = BlockTrees(VOCABULARY, max_blocks=5)
    state = played(env, 60)
    net = BlockTreeNet(VOCABULARY, 5, ("policy",), width=8, layers=1)
    rng = Rng.of_seeds([3])
    rng.dtype = torch.float64
    params, u = 3 * net.init(rng), torch.rand(len(state.obs), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        points = SparseOutputs(net, params[0], state.obs, state.action_mask).action_logits(0)  # type: ignore[arg-type]
        slots = SlotOutputs(net, params, state.obs[None], state.action_mask).action_logits(0)  # type: ignore[arg-type]
    assert isinstance(points, SparseLogits)
    assert isinstance(slots, SlotLogits)
    drawn = slots.draw(u, explore)
    assert torch.equal(drawn, points.draw(u, explore))
    assert bool(state.action_mask.gather(1, drawn[:, None]).all())  # type: ignore[union-attr]
    assert len(drawn.unique()) > 30
    for extreme in (0.0, 1.0):
        drawn = slots.draw(torch.full_like(u, extreme), explore)
        assert bool(state.action_mask.gather(1, drawn[:, None]).all())  # type: ignore[union-attr]


def test_rounding_draws_nothing_invalid() -> None:
    valid = torch.tensor([[False, True, False, True, False]] * 4)
    cdf = torch.tensor([[1e-9, 0.5, 0.5 + 1e-7, 1.0 - 1e-7, 1.0]] * 4)
    drawn = first_reaching(cdf, torch.tensor([[0.0], [0.4], [0.50000006], [1.0]]), valid)
    assert drawn.tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("name", ["tb", "subtb", "fm", "soft-dqn"])
def test_iterations_of_a_device_that_is_not_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, on the CPU: the same objects, losses and parameters."""
    entry = register()[name]
    method = GFlowNet(entry.make(**entry.preset), hidden=(8, 8), epsilon=0.1)
    found = []
    for slots in (False, True):
        if slots:
            monkeypatch.setattr("gflownet.trees.outputs.uses_slots", lambda model, static=False: True)
            monkeypatch.setattr("gflownet.sampling.sampler.uses_slots", lambda model: True)
            monkeypatch.setattr("gflownet.sampling.sampler.uses_sparse", lambda model, seeds: False)
        env = BlockTrees(VOCABULARY, lambda obs: obs[..., 0].sum(1).double() / 9, max_blocks=4)
        problem = DagProblem(env, (0, 1), 8, 100, dtype=torch.float64)
        state = method.init(problem)
        for t in range(3):
            state, outcome = method.step(state, problem, t)
        found.append((outcome.objects, outcome.metrics["train/loss"], state.theta))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-9)
    assert torch.allclose(found[0][2], found[1][2], rtol=1e-8, atol=1e-10)


def saved_numbers(work: Any) -> int:
    """Floating-point numbers that are kept for a gradient, each storage once."""
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(x: Tensor) -> Tensor:
        if x.is_floating_point():
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = (storage.nbytes() // x.element_size(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        work()
    return sum(n for n, _ in seen.values())


def kept_by(copies: int) -> tuple[int, int]:
    """Numbers kept besides the parameters, dense and in slots, with a vocabulary of so many copies."""
    blocks = vocabulary(*["F", "CO", "CN", "pyridine"] * copies)
    state = played(BlockTrees(blocks, max_blocks=5), 10)
    net = BlockTreeNet(blocks, 5, ("policy",), width=8, layers=1, padded=True)
    theta, model, valid = net.init(Rng.of_seeds([0])).requires_grad_(), Model(net, net.actions), state.action_mask
    assert valid is not None
    where, action = (x[:50].clone() for x in valid.nonzero(as_tuple=True))

    def dense() -> None:
        use(DenseOutputs(model, net.forward(theta, state.obs[None])[0], valid).action_logits(0))

    def slots() -> None:
        moves = SlotOutputs(net, theta, state.obs[None], valid).action_logits(0)
        moves.chunk = 5000
        use(moves)

    def use(moves: Any) -> None:
        (moves.at(where, action) - moves.total[where]).sum()

    return saved_numbers(dense) - net.size, saved_numbers(slots) - net.size


def test_memory_does_not_grow_with_rows() -> None:
    (dense, slots), (more_dense, more_slots) = kept_by(10), kept_by(40)
    assert more_dense > 2.5 * dense
    assert more_slots < 1.1 * slots
    assert more_slots < more_dense / 6
