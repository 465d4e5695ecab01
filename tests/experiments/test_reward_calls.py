"""Every object that is handed to a reward is counted: the reward of these tests keeps a count of its own, in a file."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit")

from experiments.cli.gflownet import main
from experiments.gfn import train as gfn
from experiments.run import checkpoint as checkpoints
from experiments.run.log import read_metrics

MOLECULES = """
import os
from pathlib import Path

HERE = Path(__file__).parent
print("loaded")

def note(lines):
    with (HERE / "asked").open("a") as file:
        file.write("".join(f"{line}\\n" for line in lines))
    print("python says so")
    os.write(1, b"and so does C\\n")
    late = len((HERE / "asked").read_text().split()) > 20
    if late and (HERE / "fail").exists():
        raise RuntimeError("no licence")
    if late and (HERE / "stop").exists():
        run = int((HERE / "stop").read_text())
        (HERE / "stop").unlink()
        os.kill(run, 15)

def score(smiles):
    note(smiles)
    return [1 / (1 + len(text)) for text in smiles]

def cells(x):
    note("cell" for _ in x)
    return 1 + x.double().sum(1)

def grid():
    from gflownet import HyperGrid
    return HyperGrid(2, 4, reward=cells)

def trees():
    import torch
    from envs.molecules.block_trees import BlockTrees
    from envs.molecules.fragments import blocks_of, load_fragments

    def log_reward(obs):
        note("tree" for _ in obs)
        return torch.zeros(len(obs))

    return BlockTrees(blocks_of(load_fragments(HERE / "few.json")), log_reward, max_blocks=3)
"""
FRAGMENTS = [("methyl", "C", [[0, 2]]), ("amine", "CN", [[0, 1], [1, 1]]), ("ring", "c1ccccc1", [[0, 1], [3, 1]])]
SMALL = ["--states", 32, "--batch-size", 4, "--evaluations", 3, "--log-rows", 6, "--checkpoints", 4, "--max-blocks", 3]
WITHOUT_NETWORK = ("mcmc", "uniform")
DRUGS = 5  # molecules of --references
METHODS = ("tb", "fm", "fl-db", "mcmc", "ppo", "soft-pg", "uniform")  # of every family

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MOLECULES)
    entries = [{"name": name, "smiles": smiles, "attach": attach} for name, smiles, attach in FRAGMENTS]
    (tmp_path / "few.json").write_text(json.dumps({"format": "fragments-1", "fragments": entries}))
    return tmp_path


def asked(here: Path) -> int:
    path = here / "asked"
    return len(path.read_text().splitlines()) if path.exists() else 0


def gflownet(*arguments: Any) -> None:
    main([str(a) for a in arguments])


def train(here: Path, out: str, *more: Any, name: str = "tb", seeds: int = 2, reward: str = "") -> Path:
    net = [] if name in WITHOUT_NETWORK else ["--hidden", 8, *(["--updates", 2] if name == "ppo" else [])]
    formula = reward or f"{here / 'mine.py'}:score"
    fixed = ["--objective", name, "--fragments", here / "few.json", "--reward", formula, *SMALL, *net, "--seeds", seeds]
    fixed += ["--reward-cache", here / f"{out}.sqlite", "--reward-workers", 1]
    gflownet("train", "molecules", *fixed, "--out", here / out, *more)
    return here / out


def counts(run: Path) -> list[int]:
    return [row["oracle/calls"] for row in read_metrics(run)]


def exact(here: Path, run: Path) -> None:
    """The last row and the last checkpoint have the reward's own count, and no row has less than the one before."""
    assert counts(run) == sorted(counts(run))
    _, meta = checkpoints.load_latest(run / "checkpoints")
    assert counts(run)[-1] == meta["reward"]["calls"] == asked(here) > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_s_calls_are_counted(here: Path, name: str) -> None:
    exact(here, train(here, "run", "--quiet", name=name))


def test_local_search_replay_workers_and_several_terms_are_counted(here: Path) -> None:
    more = ["--search-rounds", 1, "--replay", "fifo", "--reward-workers", 1]
    run = train(here, "run", *more, "--quiet", reward=f"qed*{here / 'mine.py'}:score")
    exact(here, run)
    last = read_metrics(run)[-1]
    assert last["oracle/cache_hits"] + last["oracle/calls"] == 2 * last["states"] + DRUGS


def test_evaluations_use_molecules_scored_before(here: Path) -> None:
    run = train(here, "run", "--quiet")
    rows = read_metrics(run)
    assert rows[0]["oracle/calls"] == DRUGS
    assert rows[-1]["oracle/calls"] + rows[-1]["oracle/cache_hits"] == 64 + DRUGS
    assert "mol/unique" in rows[-1]
    assert "mol/reward" not in rows[-1]
    assert len(rows[-1]["eval/correlation"]) == 2


def test_evaluation_calls_are_a_budget(here: Path) -> None:
    run = train(here, "run", "--quiet", "--evaluation-calls", 40)
    exact(here, run)
    row = read_metrics(run)[-1]
    assert len(row["mol/reward"]) == 2
    own = row["oracle/calls"] + row["oracle/cache_hits"] - 64 - DRUGS
    assert 0 < own <= 40


def test_all_is_enumerated_where_that_is_asked_for(here: Path) -> None:
    run = train(here, "run", "--quiet", "--metrics", "exact")
    exact(here, run)
    assert len(set(counts(run))) == 1
    gflownet("eval", run, "--samples", 20)
    assert asked(here) == counts(run)[0]


def test_a_stopped_run_goes_on_counting(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, other = here / "whole", here / "other"
    for folder in (whole, other):
        folder.mkdir()
        for file in ("mine.py", "few.json"):
            (folder / file).write_text((here / file).read_text())
    train(whole, "run", "--quiet")
    (other / "stop").write_text(str(os.getpid()))
    with pytest.raises(SystemExit) as stopped:
        train(other, "run", "--quiet")
    assert stopped.value.code == 128 + signal.SIGTERM
    gflownet("resume", other / "run", "--quiet")
    exact(other, other / "run")
    cut, uncut = read_metrics(other / "run", timing=False), read_metrics(whole / "run", timing=False)
    assert cut == uncut


def test_a_killed_run_goes_on_counting(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(here, "whole", "--quiet")
    alone = asked(here)
    step = gfn._step

    def dying(method: Any, state: Any, problem: Any, t: int) -> Any:
        if t == 5:
            raise KeyboardInterrupt
        return step(method, state, problem, t)

    with monkeypatch.context() as patch:
        patch.setattr(gfn, "_step", dying)
        with pytest.raises(SystemExit):
            train(here, "cut", "--quiet")
    gflownet("resume", here / "cut", "--quiet")
    assert counts(here / "cut") == counts(here / "whole")
    assert counts(here / "cut")[-1] == alone == asked(here) - alone  # what was lost since the checkpoint was not asked again


def test_a_reward_that_fails_was_called(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "fail").touch()
    with pytest.raises(SystemExit) as failed:
        train(here, "run", "--quiet", "--max-failed", 0.1)
    assert failed.value.code == 6
    assert "RuntimeError: no licence" in capfd.readouterr().err
    _, meta = checkpoints.load_latest(here / "run" / "checkpoints")
    assert meta["reward"]["calls"] <= asked(here) <= meta["reward"]["calls"] + 8  # the next batch was asked for already
    (here / "fail").unlink()
    gflownet("resume", here / "run", "--quiet")
    exact(here, here / "run")


def test_eval_and_sample_say_what_they_asked_and_stdout_is_data(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(here, "run", seeds=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("python says so") == err.count("and so does C") > 0
    assert f"reward: {asked(here)} calls, {read_metrics(run)[-1]['oracle/cache_hits']} cache hits" in err
    before = asked(here)

    def own() -> int:
        nonlocal before
        before, new = asked(here), asked(here) - before
        return new

    gflownet("eval", run, "--samples", 30)
    out, err = capfd.readouterr()
    (row,) = csv.DictReader(out.splitlines())
    assert own() == 0
    assert "reward: 0 calls, 0 cache hits" in err
    assert "log_reward" not in row
    assert -1 <= float(row["correlation"]) <= 1
    gflownet("eval", run, "--samples", 30, "--evaluation-calls", 20)
    out, err = capfd.readouterr()
    (row,) = csv.DictReader(out.splitlines())
    assert f"reward: {own()} calls" in err
    assert float(row["log_reward"]) < 0
    gflownet("sample", run, "--n", 60, "--seed", 5)
    out, err = capfd.readouterr()
    assert len(list(csv.DictReader(out.splitlines()))) == 60
    new = own()
    assert new > 0
    assert f"{new} asked" in err
    assert "python says so" in err


def test_chains_have_no_policy_to_evaluate_for_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(here, "run", "--quiet", name="mcmc")
    with pytest.raises(SystemExit):
        gflownet("eval", run, "--samples", 30)
    assert "--evaluation-calls 60" in capfd.readouterr().err
    gflownet("eval", run, "--samples", 30, "--evaluation-calls", 60)


GRID = ["hypergrid", "--ndim", 2, "--height", 4, "--states", 64, "--batch-size", 4, "--seeds", 2, "--evaluations", 3]
SHORT = ["--log-rows", 6, "--checkpoints", 4, "--quiet", "--hidden", 8]


@pytest.mark.parametrize("name", ["tb", "fl-db"])
@pytest.mark.parametrize("metrics", ["auto", "sampled"])
def test_cells_are_counted_and_enumerated_once(here: Path, name: str, metrics: str, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "stop").write_text(str(os.getpid()))
    grid = [*GRID, "--objective", name, "--reward", f"{here / 'mine.py'}:cells", "--metrics", metrics, *SHORT]
    with pytest.raises(SystemExit):
        gflownet("train", *grid, "--out", here / "run")
    gflownet("resume", here / "run", "--quiet")
    exact(here, here / "run")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["grid", "trees"])
@pytest.mark.parametrize("metrics", ["auto", "sampled"])
def test_environments_of_the_user_are_counted(here: Path, name: str, metrics: str, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["--states", 32, "--batch-size", 4, "--evaluations", 2, "--checkpoints", 4, "--hidden", 8, "--quiet"]
    env = f"{here / 'mine.py'}:{name}"
    gflownet("train", env, "--objective", "fl-db", *few, "--metrics", metrics, "--out", here / "run")
    exact(here, here / "run")
    assert capfd.readouterr().out == ""
    first = checkpoints.saved(here / "run" / "checkpoints")[0]
    repeated = counts(here / "run")[-1] - checkpoints.load(first)[1]["reward"]["calls"]
    before = asked(here)
    gflownet("resume", here / "run", "--checkpoint", first, "--quiet")
    assert asked(here) == before + repeated  # nothing is enumerated again


def test_a_limit_without_molecules_takes_objects_of_the_last_iteration(here: Path) -> None:
    grid = [*GRID, "--objective", "tb", "--reward", f"{here / 'mine.py'}:cells", "--metrics", "sampled", *SHORT]
    gflownet("train", *grid, "--evaluation-calls", 0, "--out", here / "run")
    exact(here, here / "run")
    assert asked(here) == 128
    assert "eval/correlation" in read_metrics(here / "run")[-1]


def test_active_learning_counts_and_its_table_is_data(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    budget = ["--rounds", 1, "--initial", 4, "--queries", 2, "--top-k", 3, "--states", 32, "--proxy", "oracle", "--seeds", 1]
    grid = ["--ndim", 2, "--height", 4, "--objective", "tb", "--hidden", 8, "--reward", f"{here / 'mine.py'}:cells"]
    gflownet("active", "hypergrid", *grid, *budget, "--out", here / "run", "--quiet")
    assert counts(here / "run") == [16, 16]
    assert asked(here) == 16
    assert "python says so" not in capfd.readouterr().out
    before, count = asked(here), read_metrics(here / "run")[-1]["oracle/calls"]
    shutil.rmtree(checkpoints.saved(here / "run" / "checkpoints")[-1])
    gflownet("resume", here / "run", "--quiet")
    assert (asked(here), read_metrics(here / "run")[-1]["oracle/calls"]) == (before, count)  # no cell is asked for twice


def test_curves_against_reward_calls(here: Path) -> None:
    pytest.importorskip("matplotlib")
    run = train(here, "run", "--quiet")
    gflownet("curves", run, "--out", here / "c.png", "--metric", "mol/top_10", "--x", "oracle/calls")
    rows = list(csv.DictReader((here / "c.csv").open()))
    assert float(rows[-1]["oracle/calls"]) == asked(here) / 2  # of each of two seeds
    for row, wanted in zip(rows[-1:], read_metrics(run)[-1:], strict=True):
        assert float(row["iqm"]) == pytest.approx(sum(wanted["mol/top_10"]) / 2)


def test_a_count_that_was_tampered_with_is_a_sentence(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(here, "run", "--quiet")
    newest = checkpoints.latest(run / "checkpoints")
    held, meta = checkpoints.load(newest)
    for wrong in ({"calls": -1, "cache_hits": 0, "seconds": 0.0}, {"calls": "1"}, 7, None):
        checkpoints.save(newest, held, {**meta, "reward": wrong})
        with pytest.raises(SystemExit) as failed:
            gflownet("resume", run, "--quiet")
        assert failed.value.code == 3
        assert "count of reward calls" in capfd.readouterr().err
    for name in ("scored/smiles", "scored/values"):
        checkpoints.save(newest, {**held, name: held[name][:-1]}, meta)
        with pytest.raises(SystemExit) as failed:
            gflownet("resume", run, "--quiet")
        assert failed.value.code == 3
        assert "does not fit" in capfd.readouterr().err
    checkpoints.save(newest, held, {name: x for name, x in meta.items() if name != "reward"})  # of a version without counts
    gflownet("resume", run, "--quiet")
    assert os.path.exists(run)
