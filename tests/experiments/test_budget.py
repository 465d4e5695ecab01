"""`--calls`: exactly so many different molecules, and what was asked; known drugs; rewards that cannot be meant; overlap."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit")

from envs.core import RewardFault
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from experiments.cli.gflownet import main
from experiments.gfn import train as gfn
from experiments.oracle.check import DRUGS
from experiments.oracle.settings import OracleSettings
from experiments.run import checkpoint as checkpoints
from experiments.run.log import read_metrics
from gflownet.evaluation import exact_distribution
from gflownet.gflownet import GFlowNet, Waiting
from gflownet.molecules.sample_efficiency import auc_top
from gflownet.objectives.trajectory_balance import TrajectoryBalance
from gflownet.problem import DagProblem
from gflownet.rewards.trees import TreeReward

FRAGMENTS = [("methyl", "C", [[0, 2]]), ("amine", "CN", [[0, 1], [1, 1]]), ("ring", "c1ccccc1", [[0, 1], [3, 1]])]
SCORE = """
from pathlib import Path
def score(smiles):
    with (Path(__file__).parent / "asked").open("a") as file:
        file.write("".join(f"{one}\\n" for one in smiles))
    return [1 / (1 + len(one)) for one in smiles]
def same(smiles):
    return [0.5] * len(smiles)
def external(smiles):
    assert (Path(__file__).parent / "model").exists(), "no model"
    return score(smiles)
def docking(smiles):
    return [-5 - len(one) / 10 for one in smiles]
def broken(smiles):
    raise RuntimeError("no licence")
def late(smiles):
    return [float("nan") if len(one) % 2 else len(one) for one in smiles]
"""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SCORE)
    entries = [{"name": name, "smiles": smiles, "attach": attach} for name, smiles, attach in FRAGMENTS]
    (tmp_path / "few.json").write_text(json.dumps({"format": "fragments-1", "fragments": entries}))
    return tmp_path


def gflownet(*arguments: Any) -> None:
    main([str(a) for a in arguments])


def train(here: Path, out: str, *more: Any, reward: str = "qed", cache: str = "none", objective: str = "tb") -> Path:
    own = ["--reward-workers", 1, "--reward-cache", here / cache if cache != "none" else cache]
    net = [
        "--objective",
        objective,
        "--hidden",
        8,
        "--batch-size",
        4,
        "--evaluations",
        1,
        "--log-rows",
        6,
        "--checkpoints",
        6,
        "--top-k",
        50,
    ]
    formula = f"{here / 'mine.py'}:{reward}" if reward in ("score", "same", "docking", "external", "broken", "late") else reward
    fixed = [
        "--fragments",
        here / "few.json",
        "--max-blocks",
        5,
        "--reward",
        formula,
        *net,
        *(own if formula != reward else []),
    ]
    gflownet("train", "molecules", *fixed, "--out", here / out, "--quiet", *more)
    return here / out


def fails(capfd: pytest.CaptureFixture[str], code: int, *arguments: Any, **reward: str) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as failed:
        train(*arguments, **reward)
    assert failed.value.code == code
    return capfd.readouterr().err


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "calls.csv").open()))


def asked(here: Path) -> list[str]:
    return (here / "asked").read_text().split()


@pytest.mark.parametrize("more", [[], ["--overlap", "yes"], ["--seeds", 2], ["--no-references"]])
@pytest.mark.parametrize("reward", ["qed", "score"])
def test_exactly_so_many_molecules_are_asked(here: Path, reward: str, more: list[Any]) -> None:
    run = train(here, "run", "--calls", 50, *more, reward=reward)
    called, last = rows(run), read_metrics(run)[-1]
    assert [int(row["call"]) for row in called] == [*range(1, 51)]
    assert len({row["smiles"] for row in called}) == 50 == last["oracle/calls"] == last["oracle/ok"]
    if reward == "score":
        assert sorted(asked(here)) == sorted(row["smiles"] for row in called)
    mine = called if "--no-references" in more else called[len(DRUGS) :]
    best = sorted((float(row["reward"]) for row in mine), reverse=True)
    assert last["oracle/top_1"] == best[0]
    assert last["oracle/top_10"] == pytest.approx(sum(best[:10]) / 10)
    assert last["oracle/top_100"] is None
    known = [math.nan] * (50 - len(mine)) + [float(row["reward"]) for row in mine]
    assert last["oracle/auc_top_10"] == pytest.approx(auc_top(known, 50))
    assert 0 < last["oracle/diversity"] < 1


@pytest.mark.parametrize("overlap", ["yes", "no"])
def test_a_run_that_is_killed_asks_nothing_again(here: Path, overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same = ["--calls", 60, "--overlap", overlap]
    whole, before = train(here, "whole", *same, reward="score", cache="one.sqlite"), len(asked(here))
    step = gfn._step

    def dying(method: Any, state: Any, problem: Any, t: int) -> Any:
        if t == 7:
            raise KeyboardInterrupt
        return step(method, state, problem, t)

    with monkeypatch.context() as patch:
        patch.setattr(gfn, "_step", dying)
        with pytest.raises(SystemExit):
            train(here, "cut", *same, reward="score", cache="other.sqlite")
    some = len(asked(here)) - before
    assert 5 < some < before
    gflownet("resume", here / "cut", "--quiet")
    assert read_metrics(here / "cut", timing=False) == read_metrics(whole, timing=False)
    assert rows(here / "cut") == rows(whole)
    assert sorted(asked(here)[before:]) == sorted(asked(here)[:before])
    one, other = (checkpoints.load_latest(run / "checkpoints")[0] for run in (whole, here / "cut"))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    gflownet("resume", here / "cut", "--quiet")
    assert len(asked(here)) == 2 * before


def test_a_run_that_shares_the_cache_has_the_same_curve_and_asks_nothing(here: Path) -> None:
    first = train(here, "first", "--calls", 40, reward="score", cache="one.sqlite")
    before = asked(here)
    second = train(here, "second", "--calls", 40, reward="score", cache="one.sqlite")
    assert asked(here) == before
    assert read_metrics(second, timing=False) == read_metrics(first, timing=False)


def test_a_policy_that_makes_nothing_new_ends_with_its_states(here: Path) -> None:
    run = train(here, "run", "--calls", 5000, "--states", 100, "--max-blocks", 2)
    last = read_metrics(run)[-1]
    assert last["states"] == 100
    assert last["oracle/calls"] == len(rows(run)) < 100


def test_a_budget_that_cannot_be_kept_is_a_sentence(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "less than one iteration of 8" in fails(capfd, 2, here, "a", "--calls", 7, "--seeds", 2)
    assert "leave out --evaluation-calls" in fails(capfd, 2, here, "a", "--calls", 40, "--evaluation-calls", 5)
    assert "--metrics exact" in fails(capfd, 2, here, "a", "--calls", 40, "--metrics", "exact")
    with pytest.raises(SystemExit):
        gflownet("train", "hypergrid", "--objective", "tb", "--calls", 100, "--out", here / "a")
    assert "hypergrid has none" in capfd.readouterr().err
    assert not (here / "a").exists()


def test_a_budget_spent_on_unfinished_molecules_ends_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = gfn._step, []

    def limited(*arguments: Any) -> Any:
        steps.append(1)
        assert len(steps) < 40, "it does not end"
        return step(*arguments)

    monkeypatch.setattr(gfn, "_step", limited)
    run = train(here, "run", "--calls", 18, "--overlap", "yes", "--batch-size", 8, reward="score", objective="fl-db")
    assert len(rows(run)) == len(set(asked(here))) == len(asked(here)) == 18


def test_what_was_asked_in_an_iteration_that_was_stopped_is_counted_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more, reward = ["--calls", 40, "--overlap", "no"], TreeReward._noted

    def stopped(self: TreeReward, smiles: list[str], *arguments: Any) -> Any:
        if len(self.ledger or ()) > 20:
            self.calls.calls += len(smiles)  # counted before the call
            raise RewardFault("stopped")
        return reward(self, smiles, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TreeReward, "_noted", stopped)
        with pytest.raises(SystemExit):
            train(here, "run", *more, reward="score")
    gflownet("resume", here / "run", "--quiet")
    assert read_metrics(here / "run")[-1]["oracle/calls"] == len(rows(here / "run")) == 40


def test_a_dry_run_asks_again_what_failed_in_another(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no model" in fails(capfd, 6, here, "run", "--dry-run", reward="external", cache="one.sqlite")
    (here / "model").touch()
    train(here, "run", "--dry-run", reward="external", cache="one.sqlite")


def test_a_run_that_is_too_old_for_these_settings_is_continued_by_its_command(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = ["--states", 16, "--resume", "auto"]
    config = train(here, "run", *few) / "config.json"
    whole = json.loads(config.read_text())
    old = {name: x for name, x in whole.items() if name not in ("calls", "references", "max_failed", "equal_rewards")}
    new = {field.name for field in dataclasses.fields(OracleSettings)}
    old["env_settings"] = {name: x for name, x in whole["env_settings"].items() if name not in new}
    old["hyperparameters"] = {name: x for name, x in whole["hyperparameters"].items() if name != "overlap"}
    config.write_text(json.dumps(old))
    before = read_metrics(here / "run")
    train(here, "run", *few)
    gflownet("resume", here / "run", "--quiet")
    assert read_metrics(here / "run") == before
    error = fails(capfd, 2, here, "run", *few, "--calls", 40)
    assert "holds a run with calls None, got 40" in error


# -- a reward that is not what was meant


def test_known_drugs_come_first_with_each_transform(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--objective", "tb", "--states", 8, "--batch-size", 8, "--evaluations", 1, "--log-rows", 1, "--hidden", 8]
    gflownet("train", "molecules", *few, "--reward", "qed*sa", "--out", here / "run", "--beta", 2)
    table = [
        line.split() for line in capfd.readouterr().err.splitlines() if line.split() and line.split()[0] in (*DRUGS, "qed")
    ]
    assert table[0] == ["qed", "sa", "sa_score", "reward", "log", "R"]
    name, qed, sa, sa_score, reward, log_r = table[1]
    assert name == "aspirin"
    assert (10 - float(sa_score)) / 9 == pytest.approx(float(sa), abs=1e-3)
    assert float(reward) == pytest.approx(float(qed) * float(sa), abs=1e-3)
    assert float(log_r) == pytest.approx(2 * math.log(float(reward)), abs=1e-3)
    assert len(table) == 6


def test_a_reward_that_fails_for_known_drugs_stops_before_training(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = fails(capfd, 6, here, "run", reward="broken")
    assert "failed for all of aspirin" in error
    assert "RuntimeError: no licence" in error


def test_equal_rewards_stop_a_reward_of_the_user_s_and_warn_of_others(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--states", 64, "--batch-size", 16]
    assert "have the reward 0.5: is the reward what you meant?" in fails(capfd, 6, here, "a", *few, reward="same")
    clipped = fails(capfd, 6, here, "e", *few, reward="docking")
    assert "which all count as --r-min 0.01 (larger must be better): correct it, or go on with" in clipped
    train(here, "b", *few, "--equal-rewards", "warn", reward="same")
    assert "all 16 molecules of the first iteration" in capfd.readouterr().err
    train(here, "c", "--calls", 40, reward="pmo:valsartan_smarts")
    assert "is the reward what you meant?" in capfd.readouterr().err
    fails(capfd, 6, here, "d", "--calls", 40, "--batch-size", 16, "--equal-rewards", "stop", reward="pmo:valsartan_smarts")


def test_more_failures_than_allowed_stop_a_run_and_fewer_do_not(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(here, "a", "--calls", 60, "--max-failed", 1, reward="late")
    last = read_metrics(run)[-1]
    assert last["oracle/invalid"] > 10
    assert last["oracle/invalid"] + last["oracle/ok"] == 60
    for row in rows(run):
        n = len(row["smiles"])
        assert (row["status"], row["reward"]) == (("invalid", "") if n % 2 else ("ok", str(float(n))))
    error = fails(capfd, 6, here, "b", "--calls", 60, "--max-failed", 0.2, reward="late")
    assert "invalid), more than --max-failed 0.2 allows; the last:" in error
    assert "gflownet resume" in error
    assert rows(here / "b")


# -- overlap


def test_the_next_batch_is_of_the_policy_before_the_update() -> None:
    env = HyperGrid(2, 8)
    problem = DagProblem(env, (0, 1), 8, iterations=10)
    ahead, plain = (GFlowNet(TrajectoryBalance(), hidden=(16,), overlap=x) for x in ("yes", "no"))
    state = ahead.init(problem)
    theta = state.theta.clone()
    state, first = ahead.step(state, problem, 0)
    _, second = ahead.step(state, problem, 1)
    start = plain.init(problem)
    assert torch.equal(start.theta, theta)
    for t, outcome in enumerate((first, second)):
        fresh = start._replace(theta=theta.clone())
        assert torch.equal(plain._build(plain.model(problem), fresh, problem, t, problem.rng(1, t), None)[2], outcome.objects)


@pytest.mark.parametrize("last", [None, 4])
def test_the_last_iteration_builds_no_batch_in_vain(last: int | None) -> None:
    """A budget with molecules met again goes on after the iterations that it was planned for."""
    problem = DagProblem(HyperGrid(2, 4), (0,), 4, iterations=2, last=last)
    method = GFlowNet(TrajectoryBalance(), hidden=(8,), overlap="yes", final_rate=0.5)
    state, there = method.init(problem), []
    for t in range(last or 2):
        state, _ = method.step(state, problem, t)
        assert isinstance(state.waiting, Waiting)
        there.append(state.waiting.there)
    assert there == [1] * ((last or 2) - 1) + [0]


def test_a_policy_one_update_older_learns_the_target() -> None:
    env = HyperGrid(2, 4)
    problem, dag = DagProblem(env, (0,), 16, iterations=300, dtype=torch.float64), enumerate_dag(env)
    rates = {"learning_rate": 0.05, "log_z_rate": 0.2, "final_rate": 0.002}
    method = GFlowNet(TrajectoryBalance(), tabular=True, epsilon=0.2, overlap="yes", **rates)
    state = method.init(problem)
    for t in range(problem.iterations):
        state, _ = method.step(state, problem, t)
    assert float((exact_distribution(method, state, problem, dag) - dag.target).abs().sum()) < 0.02
