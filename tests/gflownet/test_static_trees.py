"""Molecules in static shapes: an iteration on block trees, including the sEH proxy, never synchronises; same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("rdkit")

from envs.molecules.atom_tables import atom_tables
from envs.molecules.block_trees import BlockTrees
from envs.molecules.fragments import Fragment, blocks_of
from gflownet.flows.flows import Flows
from gflownet.gflownet import GFlowNet
from gflownet.model import Model
from gflownet.problem import DagProblem
from gflownet.rewards.combine import Tempering
from gflownet.rewards.seh import SHAPES, SehProxy
from gflownet.static.capture import CapturedIteration
from gflownet.static.table import Static
from tests.exact_flows import fitting, loss_and_gradient
from tests.gflownet.test_objectives import OBJECTIVES
from tests.gflownet.test_static import NothingCrosses, NothingIsSent

FRAGMENTS = (
    Fragment("benzene", "c1ccccc1", tuple((i, 1) for i in range(6))),
    Fragment("amine", "CN", ((0, 2), (1, 1))),
    Fragment("fluoro", "F", ((0, 1),)),
)
TREE_OBJECTIVES = [name for name in OBJECTIVES if name not in ("mdb", "fm", "fm-smoothing") and not name.startswith("fl-")]


def world(device: str) -> BlockTrees:
    generator = torch.Generator().manual_seed(0)
    weights = {name: (torch.randn(shape, generator=generator) / 8).numpy() for name, shape in SHAPES.items()}
    proxy = SehProxy(weights, atom_tables(FRAGMENTS), device=device)
    tempering = Tempering(beta=10.0, r_min=0.1 / 8)
    return BlockTrees(blocks_of(FRAGMENTS), lambda obs: tempering(proxy(obs) / 8), max_blocks=4, device=device)


META = world("meta")


@pytest.mark.parametrize("knobs", [{}, {"epsilon": 0.2, "epsilon_until": 0.5, "temperature": 1.5, "heads": 2}], ids=str)
@pytest.mark.parametrize("name", TREE_OBJECTIVES)
def test_an_iteration_on_trees_waits_for_no_number(name: str, knobs: dict[str, Any]) -> None:
    problem = DagProblem(META, (3, 8), 6, 8, device="meta")
    method = GFlowNet(OBJECTIVES[name], hidden=(16, 16), **fitting(OBJECTIVES[name], knobs))
    iteration = CapturedIteration(method, problem, method.init(problem), Static(META))
    with NothingCrosses(), NothingIsSent():
        outcome = iteration()
    assert outcome.objects.shape == (2, 6, 4, 4)
    assert outcome.log_reward.shape == (2, 6)


@pytest.mark.parametrize("name", TREE_OBJECTIVES)
def test_loss_and_gradient_in_static_shapes_and_by_points_are_the_same(name: str) -> None:
    """Dense numbers in static shapes (seeds 2 and 1), and valid points only (seed 1)."""
    env, objective = world("cpu"), OBJECTIVES[name]
    flow = "state_flow" in objective.uses
    for seeds in (1, 2):
        problem = DagProblem(env, tuple(range(seeds)), 12, dtype=torch.float64)
        model = Model.of(env, 2, flow, False, (16, 16), False)
        theta = model.init(problem.rng(0))
        method = GFlowNet(objective, hidden=(16, 16), heads=2)
        act_state = method.init(problem)
        tau = problem.play(method_actor(method, act_state, problem), problem.rng(1))
        log_reward = env.log_reward(tau.last)
        found = []
        for static in (None, Static(env)):
            leaf = theta.clone().requires_grad_()
            flows = Flows(env, model, leaf, tau, log_reward, head=1, theta_target=theta + 0.01, static=static)
            found.append(loss_and_gradient(objective, flows))
        assert torch.allclose(found[0][0], found[1][0], rtol=1e-10)
        assert torch.allclose(found[0][1], found[1][1], rtol=1e-8, atol=1e-10)
        assert float(found[0][1].abs().max()) > 1e-4


def method_actor(method: GFlowNet, state: Any, problem: DagProblem) -> Any:
    from gflownet.sampling.sampler import sampler

    return sampler(problem.env, method.model(problem), state.theta, problem.batch_size)
