"""Lines of one figure: told apart by what differs, pooled where only seeds do, and curves of another library beside them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli import pgrl as command_line
from experiments.plots.curves import CurvesError, curves, gather, table
from experiments.run.run import Run

SETTINGS: dict[str, Any] = {
    "algo": "n-harpg",
    "hyperparameters": {"step_size": 0.1, "eta": 0.5},
    "env": "grid",
    "seeds": 2,
    "seed": 0,
    "batch_size": 1,
}


def run(folder: Path, level: float = 0.0, end: int = 100, **changes: Any) -> Path:
    """A run whose seeds are at `level`, `level` + 1, ... throughout."""
    config = {**SETTINGS, **{k: v for k, v in changes.items() if k not in ("step_size", "eta")}}
    config["hyperparameters"] = {k: changes.get(k, v) for k, v in SETTINGS["hyperparameters"].items()}
    with Run.create(folder, "", config, ["pgrl"], tensorboard=False) as made:
        for step in range(0, end + 1, 50):
            made.log(step, {"eval/return": [level + k for k in range(config["seeds"])]})
    return folder


def lines(runs: list[Path], **keywords: Any) -> dict[str, list[float]]:
    """Label -> last value of each seed."""
    return {curve.algo: curve.y[:, -1].tolist() for curve in gather(runs, None, "env_steps", **keywords)[1]}


def test_what_differs_tells_runs_apart_and_seeds_do_not(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a", 10),
        run(tmp_path / "b", 20, step_size=0.02),
        run(tmp_path / "c", 30, seed=2, seeds=3, workers=1, evaluations=7, log_rows=3),
        run(tmp_path / "d", 40, algo="reinforce"),
    ]
    expected = {"n-harpg step_size=0.1": [10, 11, 30, 31, 32], "n-harpg step_size=0.02": [20, 21], "reinforce": [40, 41]}
    assert lines(runs) == expected
    assert lines([runs[0], runs[2]]) == {"n-harpg": [10, 11, 30, 31, 32]}
    text = table(runs)
    assert [line.split("  ")[0] for line in text.splitlines()[3:]] == list(expected)
    pytest.importorskip("matplotlib")
    curves(runs, tmp_path / "f.png")
    with (tmp_path / "f.csv").open() as file:
        assert list(dict.fromkeys(row["algo"] for row in csv.DictReader(file))) == list(expected)


def test_named_settings_tell_apart_and_the_rest_is_pooled_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        run(tmp_path / f"{k}", k, step_size=step, eta=eta, batch_size=batch)
        for k, (step, eta, batch) in enumerate([(0.1, 0.5, 1), (0.1, 0.3, 1), (0.02, 0.3, 4)])
    ]
    assert lines(runs, by=["step-size"]) == {"n-harpg step_size=0.1": [0, 1, 1, 2], "n-harpg step_size=0.02": [2, 3]}
    several = ["n-harpg eta=0.5 batch_size=1", "n-harpg eta=0.3 batch_size=1", "n-harpg eta=0.3 batch_size=4"]
    assert list(lines(runs, by=["eta", "batch_size"])) == list(lines(runs, by=["eta,batch-size"])) == several
    curves(runs, tmp_path / "f.png", by=["step_size"])
    assert capsys.readouterr().err == "n-harpg step_size=0.1: runs that differ in eta are pooled into one line\n"
    curves(runs, tmp_path / "f.png")
    assert capsys.readouterr().err == ""
    assert lines(runs, by=["none"]) == {"n-harpg": [0, 1, 1, 2, 2, 3]}
    curves(runs, tmp_path / "f.png", by=["none"])
    assert "differ in step_size, eta, batch_size" in capsys.readouterr().err


def test_an_unknown_setting_is_a_sentence_with_close_names(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a")]
    for by, said in (
        (["stepsize"], "no setting 'stepsize'; close: step_size"),
        (["eta", str(runs[0])], "runs stand before it"),
        (["none", "eta"], "no setting 'none'; close: .*none alone"),
        ([""], "no setting ''"),
    ):
        with pytest.raises(CurvesError, match=said):
            gather(runs, None, "env_steps", by=by)


def test_a_setting_that_an_older_run_does_not_record_has_its_default(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old", 0), run(tmp_path / "new", 5, seed=2, causal=False, log_std=0.0)
    assert lines([old, new]) == {"n-harpg": [0, 1, 5, 6]}
    other = run(tmp_path / "other", 9, causal=True)
    assert lines([old, other]) == {"n-harpg causal=false": [0, 1], "n-harpg causal=true": [9, 10]}
    lacks = json.loads((old / "config.json").read_text())
    del lacks["hyperparameters"]["step_size"]  # a required hyperparameter: what it was is not known
    lacks["hyperparameters"]["eta"] = 1
    (old / "config.json").write_text(json.dumps(lacks))
    full = run(tmp_path / "full", seed=4, eta=1.0)
    assert list(lines([old, full])) == ["n-harpg step_size=none", "n-harpg step_size=0.1"]


def test_a_seed_that_two_runs_have_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    short, long = run(tmp_path / "a", 0, end=50, seeds=3), run(tmp_path / "b", 10, seed=1, seeds=3)
    assert lines([short, long]) == lines([short, long], by=["none"]) == {"n-harpg": [0, 10, 11, 12]}
    curves([short, long], tmp_path / "f.png")
    assert capsys.readouterr().err == "n-harpg: 2 left out of the seeds that several runs have\n"
    unlike = run(tmp_path / "c", 20, step_size=0.2, seeds=3)
    assert lines([short, unlike], by=["none"]) == {"n-harpg": [0, 1, 2, 20, 21, 22]}


def test_labels_stay_short_and_different(tmp_path: Path) -> None:
    changes = [{"batch_size": 1 + k, "horizon": k, "hidden": [8, 8 + k], "dtype": f"f{k}", "discount": k / 7} for k in range(2)]
    runs = [run(tmp_path / f"{k}", step_size=0.1 + k, **c) for k, c in enumerate(changes)]
    first, second = lines(runs)
    assert first == "n-harpg step_size=0.1 batch_size=1 horizon=0 hidden=8,8 and 2 more"
    assert second == "n-harpg step_size=1.1 batch_size=2 horizon=1 hidden=8,9 and 2 more"
    close = [run(tmp_path / f"close{k}", step_size=0.1 + k * 1e-9) for k in range(2)]
    assert list(lines(close)) == ["n-harpg step_size=0.1", "n-harpg step_size=0.100000001"]
    third = run(
        tmp_path / "third", step_size=0.1, **{**changes[0], "discount": 0.5}
    )  # only a later setting tells it from the first
    assert len(lines([*runs, third])) == 3


def test_a_biased_line_says_so(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", gae_lambda=0.95), run(tmp_path / "c", gae_lambda="x", hyperparameters=1)]
    assert list(lines(runs[:2])) == ["n-harpg gae_lambda=1", "n-harpg gae_lambda=0.95 (biased: GAE 0.95)"]
    assert list(lines(runs[1:2])) == ["n-harpg (biased: GAE 0.95)"]
    assert list(lines(runs[2:])) == ["n-harpg"]


def test_runs_of_gflownet_as_well(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "tb", "objective": {}, "env": "hypergrid", "title": "hypergrid 2-D"}
    made = []
    for k, rate in enumerate((0.001, 0.01)):
        with Run.create(
            tmp_path / f"{k}", "", {**settings, "hyperparameters": {"learning_rate": rate}}, ["gflownet"], tensorboard=False
        ) as r:
            for step in (0, 10):
                r.log(step, {"eval/l1": [float(k)]})
        made.append(tmp_path / f"{k}")
    _, found, series = gather(made, None, "states")
    assert [curve.algo for curve in found] == ["tb learning_rate=0.001", "tb learning_rate=0.01"]
    assert series[0].title == "hypergrid 2-D"


CURVES = """env,algo,seed,env_steps,value,library
grid,PPO,0,0,1,x 1.0
grid,PPO,0,100,5,x 1.0
grid,PPO,1,0,1,x 1.0
grid,PPO,1,60,7,x 1.0
maze,PPO,0,0,99,x 1.0
grid,n-harpg,0,100,3,x 1.0
grid,n-harpg,0,0,,x 1.0
"""


def test_curves_of_another_library(tmp_path: Path) -> None:
    ours, file = run(tmp_path / "a"), tmp_path / "peer.csv"
    file.write_text(CURVES)
    _, found, _ = gather([ours], None, "env_steps", others=file)
    assert [curve.algo for curve in found] == ["n-harpg", "PPO", "n-harpg (peer.csv)"]  # not pooled with ours
    assert found[1].x.tolist() == [0, 50, 60]  # to the end of the shortest seed
    np.testing.assert_allclose(found[1].y, [[1, 3, 3.4], [1, 6, 7]])
    low, high = found[1].interval()[1:]
    assert low[-1] < high[-1]
    assert found[2].y.tolist() == [[3.0]]
    pytest.importorskip("matplotlib")
    command_line.main(["curves", str(ours), "--csv", str(file), "--by", "step_size", "--out", str(tmp_path / "f.svg")])
    text = (tmp_path / "f.csv").read_text()
    assert "PPO,60," in text
    assert "n-harpg step_size=0.1,50," in text


def test_curves_of_another_library_alone_and_on_another_axis(tmp_path: Path) -> None:
    file = tmp_path / "peer.csv"
    file.write_text("algo,seed,states,value\nTB,0,1,0.5\nTB,0,9,0.25\n")
    metric, found, series = gather([], None, "states", others=file)
    assert (metric, found[0].algo, found[0].y.tolist(), series[0].title) == ("value", "TB", [[0.5, 0.25]], "?")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("algo,seed,value\n", "no column env_steps; expected algo, seed, env_steps and value, got algo, seed, value"),
        ("", "no column algo and no seed"),
        ("algo,seed,env_steps,value\n", "has no rows$"),
        ("env,algo,seed,env_steps,value\nmaze,PPO,0,0,1\n", "no rows of grid; it has maze"),
        ("algo,seed,env_steps,value\nPPO,0,0,1\nPPO,0,ten,1\n", "line 3: env_steps is 'ten', expected a number"),
        ("algo,seed,env_steps,value\nPPO,0,inf,1\n", "expected a finite number"),
        ("algo,seed,env_steps,value\nPPO,0,5,1\nPPO,0,5,2\n", "line 3: PPO, seed 0 has a second row at env_steps 5"),
        ("algo,seed,env_steps,value\nPPO,0,5\n", "PPO has no finite value"),
        ('algo,seed,env_steps,value\n"PPO,0,5\n', "is not a CSV file"),
        ("algo,seed,env_steps,value\n\x00\udcff", "is not a CSV file"),
    ],
)
def test_faults_of_such_a_file(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "peer.csv"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CurvesError, match=said):
        gather([run(tmp_path / "a")], None, "env_steps", others=file)
