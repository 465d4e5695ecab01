"""`Ledger`: each molecule once, in order, within the budget; `Quantities` with oracles that fail; trees by their SMILES."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from hypothesis import given, settings
from hypothesis import strategies as st

from envs.molecules.block_trees import BlockTrees
from envs.molecules.fragments import blocks_of, default_fragments
from envs.random import Rng
from envs.rollout import rollout
from gflownet.baselines.uniform import UniformActions
from gflownet.rewards.cached import STATUS
from gflownet.rewards.calls import BudgetSpent
from gflownet.rewards.combine import MoleculeReward, Tempering
from gflownet.rewards.ledger import Ledger
from gflownet.rewards.oracle import STATUSES, Oracle, Scored
from gflownet.rewards.trees import TreeReward

NAMES = st.sampled_from(["C", "CC", "CCC", "CO", "CN", "CCO"])


class Moody:
    """An oracle that fails in every way, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.started: list[str] = []
        self.closed = False

    def submit(self, smiles):
        self.started += [one for one in smiles if one not in self.started]

    def __call__(self, smiles):
        self.submit(smiles)
        self.asked += smiles
        return [self.of(one) for one in smiles]

    def of(self, one):
        status = STATUSES[len(one) % 4]
        return Scored(1 / len(one)) if status == "ok" else Scored.failed(status, f"{one} is {status}")

    def close(self):
        self.closed = True


@settings(deadline=None)
@given(st.lists(st.lists(NAMES, max_size=8), max_size=8), st.integers(0, 7))
def test_the_budget_is_the_number_of_different_molecules(batches: list[list[str]], budget: int) -> None:
    ledger, wanted = Ledger(["reward"], budget), dict.fromkeys(one for batch in batches for one in batch)
    for batch in batches:
        assert ledger.reserve(batch) == ledger.pending(ledger.pending(batch))
        assert ledger.reserve(batch) == []
        new = ledger.pending(batch)
        ledger.add(new, {"reward": np.array([float(len(one)) for one in new])})
        if set(batch) <= set(ledger.smiles):
            assert ledger.rows(batch)["reward"].tolist() == [len(one) for one in batch]
        else:
            assert ledger.spent
            with pytest.raises(BudgetSpent):
                ledger.rows(batch)
    assert ledger.smiles == [*wanted][: len(ledger)]
    assert len(ledger) == min(budget, len(wanted))


@settings(deadline=None)
@given(st.lists(NAMES, unique=True), st.lists(NAMES, unique=True))
def test_what_is_reserved_counts(first: list[str], second: list[str]) -> None:
    ledger = Ledger(["reward"], budget=4)
    kept = ledger.reserve(first) + ledger.reserve(second)
    assert len(kept) == len(set(kept)) == min(4, len({*first, *second}))
    ledger.add(kept[1:], {"reward": np.ones(len(kept[1:]))})
    assert ledger.pending([*second, *first]) == kept[:1]
    assert ledger.reserve(["new"]) == (["new"] if len(kept) < 4 else [])


def test_checkpoints_hold_it_and_damage_is_refused() -> None:
    ledger = Ledger(["reward", "qed"])
    status = np.array([0.0, 1.0, 0.0])
    ledger.add(["C", "CO", "CCN"], {"reward": np.array([0.5, math.nan, 2.0]), "qed": np.ones(3), STATUS: status})
    held = ledger.tensors()
    other = Ledger(["reward", "qed"], 9)
    other.restore(held)
    assert other.smiles == ledger.smiles
    for name, column in ledger.table().items():
        assert np.array_equal(column, other.table()[name], equal_nan=True)
        assert np.array_equal(column, other.column(name), equal_nan=True)
    assert other.statuses() == {"ok": 2, "timeout": 1, "invalid": 0, "error": 0}
    assert other.column("reward", 1).tolist() == [2.0]
    assert other.column("reward", 0).tolist() == []
    values = held["values"]
    twice, bad = held["smiles"].clone(), values.clone()
    twice[:] = torch.tensor([*b"C\nC\nCCCC\n"][: len(twice)], dtype=torch.uint8)
    bad[0, 0] = math.nan
    for wrong in (
        {"smiles": held["smiles"][:-1], "values": values},
        {"smiles": held["smiles"], "values": values[1:]},
        {"smiles": held["smiles"], "values": values[:, 1:]},
        {"smiles": held["smiles"], "values": bad},
        {"smiles": held["smiles"], "values": torch.cat([values[:, :2], values[:, 2:] + 7], 1)},
        {"smiles": twice, "values": values},
        {"smiles": held["smiles"].long(), "values": values},
    ):
        with pytest.raises(ValueError, match="got"):
            Ledger(["reward", "qed"]).restore(wrong)


# -- rewards of trees


def trees(n: int) -> tuple[BlockTrees, torch.Tensor]:
    env = BlockTrees(blocks_of(default_fragments()[:6]), max_blocks=3, min_blocks=2)
    last = rollout(env, UniformActions(), Rng.of_seeds([0]).spawn(n)).last
    assert last is not None
    return env, last


def reward_of(text: str, oracle: Oracle | None = None, beta: float = 2.0) -> tuple[TreeReward, torch.Tensor]:
    env, obs = trees(60)
    functions = {} if oracle is None else {"my.py:f": oracle}
    made = MoleculeReward.of(text, Tempering(beta, r_min=0.01), (), functions)
    return TreeReward(default_fragments()[:6], made, env.index), obs


def test_molecules_that_fail_have_the_lowest_reward_and_a_status() -> None:
    oracle = Moody()
    reward, obs = reward_of("my.py:f*qed", oracle)
    reward.note()
    parts, smiles = reward.parts(obs), reward.smiles(obs)
    log_r = reward(obs)
    for i, one in enumerate(smiles):
        said = oracle.of(one)
        assert STATUSES[int(parts[STATUS][i])] == said.status
        if said.status == "ok":
            assert float(parts["reward"][i]) == pytest.approx(float(parts["qed"][i]) / len(one))
            assert float(log_r[i]) == pytest.approx(2 * math.log(max(0.01, float(parts["reward"][i]))))
        else:
            assert math.isnan(parts["reward"][i])
            assert float(log_r[i]) == pytest.approx(2 * math.log(0.01))
    assert sorted(oracle.asked) == sorted(set(smiles))
    assert any(reward.calls.failure.startswith(f"my.py:f of {one}: {one} is ") for one in smiles)
    assert reward.calls.calls == len(set(smiles))
    assert reward.calls.calls + reward.calls.cache_hits == 2 * len(obs)
    reward.reward.quantities.close()
    assert oracle.closed


def test_a_budget_asks_exactly_so_many_and_what_was_asked_is_kept() -> None:
    oracle = Moody()
    reward, obs = reward_of("my.py:f", oracle)
    ledger, distinct = reward.note(), [*dict.fromkeys(reward.smiles(obs))]
    ledger.budget = len(distinct) - 3
    with pytest.raises(BudgetSpent):
        reward(obs)
    assert oracle.asked == ledger.smiles == distinct[:-3]
    known = torch.tensor([one in ledger.smiles for one in reward.smiles(obs)])
    assert torch.isfinite(reward(obs[known])).all()
    assert oracle.asked == distinct[:-3]


def test_what_was_started_is_not_asked_beyond_the_budget() -> None:
    oracle = Moody()
    reward, obs = reward_of("my.py:f", oracle)
    distinct = [*dict.fromkeys(reward.smiles(obs))]
    reward.note().budget = 5
    reward.start(obs[:3])
    reward.start(obs)
    assert oracle.started == distinct[:5]
    assert oracle.asked == []
    reward(obs[:1])
    assert oracle.asked == distinct[:1]


def test_with_and_without_a_ledger_the_numbers_are_the_same() -> None:
    plain, obs = reward_of("qed*sa")
    noted, _ = reward_of("qed*sa")
    noted.note()
    assert torch.allclose(plain(obs), noted(obs), rtol=1e-12)
    assert noted.of_smiles(["CCO"])["qed"][0] == pytest.approx(0.4068, abs=1e-4)
    assert noted.ledger is not None
    assert noted.ledger.smiles[-1] == "CCO"
    assert set(noted.parts(obs)) == {*plain.parts(obs), STATUS}


def test_trees_of_one_molecule_are_one_call() -> None:
    reward, obs = reward_of("qed")
    ledger, smiles = reward.note(), reward.smiles(obs)
    reward(obs)
    assert ledger.smiles == [*dict.fromkeys(smiles)]
    assert reward.calls.calls == len(set(smiles)) <= len(set(reward._index(obs).tolist()))
