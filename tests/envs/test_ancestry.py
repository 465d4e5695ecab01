"""`ancestry`: p(x) from the ancestors of objects equals that from the whole DAG."""

from __future__ import annotations

import pytest
import torch

from envs.dag.ancestry import ancestry
from envs.dag.bits import Bits
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.molecules.block_trees import BlockTrees
from envs.random import Rng
from tests.block_vocabularies import vocabulary
from tests.dags import crossing

SPACES = {
    "trees": lambda: BlockTrees(vocabulary("F", "CN", "triazine"), max_blocks=4),
    "restricted trees": lambda: BlockTrees(vocabulary("F", "CN:0", "pyridine:1"), max_blocks=4),
    "grid": lambda: HyperGrid(2, 5),
    "paper": lambda: HyperGrid(3, 4, convention="paper2021"),
    "bits": lambda: Bits(6, 2, 3, order="any"),
    "crossing": crossing,
}


@pytest.mark.parametrize("name", SPACES)
def test_law_and_paths_of_some_objects(name):
    env = SPACES[name]()
    dag = enumerate_dag(env)
    u = Rng.of_seeds([1, 2], "cpu").uniform(len(dag), dag.action_mask.shape[1]).double()
    log_pf = torch.where(dag.action_mask, u.log(), -torch.inf).log_softmax(-1)
    chosen = dag.objects[torch.tensor([-1, 0, 1, 1])]
    past = ancestry(env, dag.obs[chosen])
    row = dag.find(past.obs, past.terminated)
    assert len(row.unique()) == len(row)
    law = past.probabilities(log_pf[:, row[past.parent], past.action])
    assert law.shape == (2, 4)
    torch.testing.assert_close(law, dag.visits_of(log_pf)[:, chosen], rtol=1e-12, atol=0)
    torch.testing.assert_close(past.log_paths(), dag.log_paths()[chosen])


def test_of_states_that_have_not_ended():
    env = HyperGrid(2, 5)
    dag = enumerate_dag(env)
    going = (~dag.terminated).nonzero()[:, 0]
    past = ancestry(env, dag.obs[going], dag.terminated[going])
    assert len(past.obs) == len(going)
    torch.testing.assert_close(past.log_paths(), dag.log_paths()[going])
