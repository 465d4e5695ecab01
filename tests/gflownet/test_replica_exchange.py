"""Replica exchange: every β's distribution on a whole space of molecules, and ratios of Z."""

from typing import Any

import pytest
import torch

from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.molecules.block_trees import BlockTrees
from envs.random import Rng
from gflownet.baselines.replica_exchange import Replicas, Swept, bennett, log_z_ratio, sweep
from gflownet.metrics import total_variation
from tests.envs.test_block_trees import vocabulary

F64 = torch.float64
BETAS = torch.tensor([0.5, 1.0, 2.5], dtype=F64)


def rough(obs: torch.Tensor) -> torch.Tensor:
    """log R of trees that differs between them by several units, and not by size alone."""
    return 1.5 * torch.sin(obs.double().flatten(1) @ torch.arange(1, obs[0].numel() + 1, dtype=F64))


def chains(env: Any, start: torch.Tensor, sweeps: int, seed: int = 0) -> list[Swept]:
    replicas, rng, found = Replicas(start, env.log_reward(start)), Rng.of_seeds([seed]), []
    for t in range(sweeps):
        found.append(sweep(env, BETAS, replicas, rng, t))
        replicas = found[-1].replicas
    return found


@pytest.mark.parametrize("names", [("F", "CO", "triazine"), ("F", "CO:1", "CN:0")], ids="-".join)
def test_each_beta_has_its_distribution_over_all_molecules(names: tuple[str, ...]) -> None:
    """n chains at one time are n independent draws: total variation is that of exact ones, within 4 standard deviations."""
    env = BlockTrees(vocabulary(*names), rough, max_blocks=3)
    dag = enumerate_dag(env)
    objects, n, sweeps = dag.obs[dag.objects], 2_000, 100
    start = objects[torch.arange(3 * n) % len(objects)]  # as many chains at each molecule
    found = chains(env, start, sweeps)
    last = found[-1].replicas
    assert torch.equal(last.log_reward, env.log_reward(last.objects))
    generator = torch.Generator().manual_seed(0)
    for k, beta in enumerate(BETAS):
        exact = (beta * dag.log_reward).softmax(0)
        counts = dag.object_of(last.objects.view(3, n, *objects.shape[1:])[k]).bincount(minlength=len(exact)).double()
        drawn = torch.stack(
            [exact.multinomial(n, True, generator=generator).bincount(minlength=len(exact)).double() for _ in range(200)]
        )
        distance, floor = (total_variation(x / n, exact.expand_as(x)) for x in (counts[None], drawn))
        assert abs(float(distance[0] - floor.mean())) < 4 * float(floor.std()), float(beta)
    exchanged = torch.stack([one.exchanged for one in found])
    assert exchanged[0::2, 0].isfinite().all()
    assert exchanged[1::2, 0].isnan().all()
    assert exchanged[1::2, 1].isfinite().all()
    assert (torch.stack([one.accepted for one in found]) > 0.05).all()


def test_an_exchange_without_its_ratio_is_found_out() -> None:
    """The negative control: chains that always exchange end in another distribution."""
    env = BlockTrees(vocabulary("F", "CO", "triazine"), rough, max_blocks=3)
    dag = enumerate_dag(env)
    objects, n = dag.obs[dag.objects], 2_000
    replicas, rng = (
        Replicas(objects[:1].expand(3 * n, *objects.shape[1:]), env.log_reward(objects[:1]).expand(3 * n)),
        Rng.of_seeds([0]),
    )
    for t in range(60):
        replicas = sweep(env, BETAS, replicas, rng, t).replicas
        both = replicas.objects.view(3, n, *objects.shape[1:])[[1, 0, 2] if t % 2 == 0 else [0, 2, 1]].flatten(0, 1)
        replicas = Replicas(both, env.log_reward(both))
    exact = (BETAS[2] * dag.log_reward).softmax(0)
    counts = dag.object_of(replicas.objects[2 * n :]).bincount(minlength=len(exact)).double()
    assert float(total_variation(counts[None] / n, exact[None])[0]) > 0.1


def test_ratios_of_z_by_bennett() -> None:
    env = HyperGrid(2, 8)
    dag = enumerate_dag(env)
    n, generator = 20_000, torch.Generator().manual_seed(1)
    drawn = [dag.log_reward[(beta * dag.log_reward).softmax(0).multinomial(n, True, generator=generator)] for beta in BETAS]
    log_z = torch.stack([(beta * dag.log_reward).logsumexp(0) for beta in BETAS])
    assert torch.allclose(log_z_ratio(torch.stack(drawn), BETAS), log_z[1:] - log_z[:-1], atol=0.05)
    few = bennett(0.5 * drawn[0][:500], 0.5 * drawn[1])  # numbers of draws may differ
    assert abs(float(few - (log_z[1] - log_z[0]))) < 0.15


def test_seeds_decide_the_bytes() -> None:
    env = HyperGrid(2, 8)
    start = enumerate_dag(env).obs[:30]
    one, two, other = (chains(env, start, 5, seed)[-1].replicas.objects for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
