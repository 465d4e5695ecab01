"""Draws of a perfect sampler in a folder, and policies held against them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import gflownet
from envs.dag.enumeration import enumerate_dag
from envs.molecules.block_trees import BlockTrees
from experiments.cli.errors import UserError
from experiments.molecules import stationary as module
from experiments.molecules.stationary import THIN, Plan, best_share, finished, stationary
from tests.envs.test_block_trees import vocabulary

PLAN = Plan((0.5, 1.0, 3.0), chains=10, sweeps=4 * THIN, cold=5)


def env() -> Any:
    return BlockTrees(vocabulary("F", "CO", "triazine"), lambda obs: obs.double().flatten(1).sum(1).sin(), max_blocks=3)


def test_a_stopped_sampler_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 15)
    whole = stationary(env(), PLAN, tmp_path / "whole")
    assert whole.log_reward.shape == (2 * THIN, 3, 10)
    assert whole.objects.shape == (2, 3, 10, 3, 4)
    assert torch.equal(env().log_reward(whole.objects[-1].flatten(0, 1)).float(), whole.log_reward[THIN].flatten().float())
    saved, saves = module.checkpoint.save, []

    def twice(*args: Any, **options: Any) -> None:
        saved(*args, **options)
        saves.append(args[0])
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.checkpoint, "save", twice)
    with pytest.raises(KeyboardInterrupt):
        stationary(env(), PLAN, tmp_path / "stopped")
    assert not finished(tmp_path / "stopped", PLAN)
    resumed = stationary(env(), PLAN, tmp_path / "stopped")
    assert finished(tmp_path / "stopped", PLAN)
    for name in ("log_reward", "objects", "accepted", "exchanged"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    with pytest.raises(UserError, match=r"holds draws with sweeps 40, got 80: choose another folder"):
        stationary(env(), Plan(PLAN.betas, 10, 80, 5), tmp_path / "stopped")


def test_chains_that_stand_still_count_as_one_draw() -> None:
    """T sweeps of constant chains are one draw each; independent values need one sweep each."""
    torch.manual_seed(0)
    n, T = 2_000, 50
    still, fresh = torch.randn(1, 1, n).expand(T, 1, n).double(), torch.randn(T, 1, n).double()
    draws = module.Draws((1.0,), torch.cat([still, fresh], 1), torch.zeros(0), torch.zeros(2), torch.zeros(1), 0.0)
    assert draws.autocorrelation_time().tolist() == pytest.approx([T, 1.0], rel=0.1)


def test_log_z_lies_between_the_bounds_of_a_policy_and_of_exact_draws(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    from envs.molecules.fragments import as_json, default_fragments
    from experiments.gfn.commands import opened
    from experiments.molecules.fidelity import of_policy

    (tmp_path / "few.json").write_text(as_json(default_fragments()[:12]))
    settings: dict[str, Any] = {
        "fragments": tmp_path / "few.json",
        "max_blocks": 2,
        "reward": "qed",
        "beta": 2.0,
        "evaluations": 1,
        "quiet": True,
    }
    run = gflownet.train("molecules", "tb", out=tmp_path / "run", states=640, seeds=2, metrics="sampled", **settings)
    dag = enumerate_dag(opened(run.folder)[1].problem.env)
    exact = dag.obs[dag.objects][dag.target.multinomial(300, True, generator=torch.Generator().manual_seed(0))]
    found = of_policy(run.folder, 300, exact)
    for seed in range(2):
        assert found["elbo"][seed] < float(dag.log_z) < found["eubo"][seed]
        assert found["log_z"][seed] == pytest.approx(float(dag.log_z), abs=0.3)
        assert -1 <= found["correlation"][seed] <= 1
        assert sorted(found["quantiles"][seed]) == found["quantiles"][seed]
    assert of_policy(run.folder, 300, exact) == found
    chains = gflownet.train("molecules", "mcmc", out=tmp_path / "mcmc", states=64, metrics="sampled", **settings)
    assert of_policy(chains.folder, 10) == {}


def test_draws_of_all_beta_describe_each() -> None:
    """Weights give the means under every R^β; draws of the largest β tell of the best under the smallest."""
    log_r = torch.linspace(-6, 0, 61).double()
    betas, generator = (0.5, 1.0, 2.0), torch.Generator().manual_seed(0)
    exact = [(beta * log_r).softmax(0) for beta in betas]
    drawn = torch.stack([log_r[p.multinomial(40_000, True, generator=generator)].view(200, 200) for p in exact], 1)
    draws = module.Draws(betas, drawn, torch.zeros(0), torch.zeros(3), torch.zeros(2), 0.0)
    for beta, p in zip(betas, exact, strict=True):
        w = draws.weights(beta)
        assert float(w.sum()) == pytest.approx(1.0)
        assert float((w * drawn).sum()) == pytest.approx(float((p * log_r).sum()), abs=0.02)
        for share in (0.5, 0.01):
            assert best_share(drawn, w, share) == pytest.approx(best_share(log_r, p, share), abs=0.03)
    alone = module.Draws((1.0,), drawn[:, 1:2], torch.zeros(0), torch.zeros(1), torch.zeros(0), 0.0)
    assert torch.allclose(alone.weights(1.0), torch.full((200, 1, 200), 1 / 40_000).double())


def test_the_best_share_of_a_few_numbers() -> None:
    values, equal = torch.tensor([1.0, 4.0, 3.0, 2.0]), torch.ones(4)
    assert best_share(values, equal, 0.25) == pytest.approx(4.0)
    assert best_share(values, equal, 0.5) == pytest.approx(3.5)
    assert best_share(values, equal, 0.375) == pytest.approx((4 + 3 / 2) / 1.5)  # half of the second
    assert best_share(values, torch.tensor([0.0, 1.0, 0.0, 3.0]), 1.0) == pytest.approx(2.5)
