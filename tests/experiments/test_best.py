"""`--best`: the best checkpoint by a metric stays, is the same in a resumed run, and is offered but never taken silently."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import gflownet, pgrl
from experiments.run import checkpoint as checkpoints
from experiments.run.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = ["train", "n-pg", "--env", "gridworld", "--env-steps", 2000, "--seeds", 2, "--checkpoints", 8, "--log-rows", 40]
GRID += ["--step-size", 3.0, "--step-power", 0.0, "--quiet"]
TB = ["train", "hypergrid", "--objective", "tb", "--ndim", 2, "--height", 4, "--states", 320, "--hidden", 8, "--quiet"]


def train(program: Any, *words: Any) -> None:
    program.main([str(word) for word in words])


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints.saved(run / "checkpoints")]


def test_the_best_is_kept_and_changes_no_number(tmp_path: Path) -> None:
    train(pgrl, *GRID, "--out", tmp_path / "plain")
    train(pgrl, *GRID, "--out", tmp_path / "run", "--best", "eval/gap", "--evaluations", 40)
    plain, run = tmp_path / "plain", tmp_path / "run"
    assert read_metrics(run, timing=False) == read_metrics(plain, timing=False)
    last = names(plain)[-1]
    assert checkpoints.load(run / "checkpoints" / last)[0].keys() == checkpoints.load(plain / "checkpoints" / last)[0].keys()
    record = checkpoints.best_of(run / "checkpoints" / last)
    assert record is not None
    gaps = [sum(row["eval/gap"]) / 2 for row in read_metrics(run)[1:]]
    assert record["value"] == pytest.approx(min(gaps))
    assert checkpoints.best(run / "checkpoints") == run / "checkpoints" / f"{record['iteration']:09d}"
    assert len(names(run)) <= 6


def test_a_resumed_run_keeps_the_same_best(tmp_path: Path) -> None:
    command = [*TB, "--best", "eval/exact_l1", "--evaluations", 10, "--checkpoints", 5]
    train(gflownet, *command, "--out", tmp_path / "whole")
    train(gflownet, *command, "--out", tmp_path / "cut")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for later in names(cut)[2:]:
        shutil.rmtree(cut / "checkpoints" / later)
    train(gflownet, *command, "--resume", "auto", "--out", cut)
    ends = [checkpoints.best_of(run / "checkpoints" / names(whole)[-1]) for run in (whole, cut)]
    assert ends[0] == ends[1] is not None
    file = f"{ends[0]['iteration']:09d}/tensors.safetensors"
    assert (whole / "checkpoints" / file).read_bytes() == (cut / "checkpoints" / file).read_bytes()
    train(gflownet, "eval", cut, "--samples", 50, "--checkpoint", "best")


def test_going_back_is_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(pgrl, *GRID, "--out", run, "--best", "eval/gap")
    newest = run / "checkpoints" / names(run)[-1]
    text = (newest / "tensors.safetensors").read_bytes()
    (newest / "tensors.safetensors").write_bytes(text[:-1])
    with pytest.raises(SystemExit) as stopped:
        train(pgrl, "resume", run)
    assert stopped.value.code == 3
    assert "the best of the run so far was at iteration" in capsys.readouterr().err
    (newest / "tensors.safetensors").write_bytes(text)
    train(pgrl, "resume", run)
    assert f"to go back, pgrl resume {run} --checkpoint best" in capsys.readouterr().err
    train(pgrl, "resume", run, "--checkpoint", "best", "--quiet")
    assert json.loads((run / "checkpoints" / names(run)[-1] / "meta.json").read_text())["iteration"] > 0


def test_a_metric_that_is_not_evaluated_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for program, command in ((pgrl, GRID), (gflownet, TB)):
        with pytest.raises(SystemExit):
            train(program, *command, "--best", "eval/nothing", "--out", tmp_path / program.__name__)
        assert (
            "got --best eval/nothing, which evaluations of this run do not have: expected one of eval/"
            in capsys.readouterr().err
        )
    train(pgrl, *GRID, "--out", tmp_path / "run")
    with pytest.raises(SystemExit):
        train(pgrl, "eval", tmp_path / "run", "--checkpoint", "best")
    assert "has no best checkpoint" in capsys.readouterr().err
