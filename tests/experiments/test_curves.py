"""The sample-complexity figure and table: numbers by hand, pictures that are pictures, faults in one sentence."""

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli.errors import MissingPackage
from experiments.plots import curves as module
from experiments.plots.curves import CurvesError, curves, table
from experiments.plots.statistics import bootstrap_interval, iqm
from experiments.run.run import Run


def make(folder: Path, rows: list[tuple[int, dict[str, Any]]], **config: Any) -> Path:
    with Run.create(folder, "", {"algo": "reinforce", "env": "grid", **config}, ["pgrl"], tensorboard=False) as run:
        for step, row in rows:
            run.log(step, row)
    return folder


def power(folder: Path, algo: str, exponent: float, seeds: int = 6, **config: Any) -> Path:
    rng = np.random.default_rng(len(algo))
    scale = np.exp(0.1 * rng.standard_normal(seeds))
    steps = np.unique(np.geomspace(10, 10_000, 40).astype(int))
    return make(folder, [(int(s), {"eval/gap": (scale * s**exponent).tolist()}) for s in steps], algo=algo, **config)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_by_hand_pooled_and_interpolated_without_extrapolation(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a = make(
        tmp_path / "a", [(0, {"eval/return": [0.0, 2.0]}), (10, {"eval/return": [1.0, 4.0]}), (20, {"eval/return": [3.0, 5.0]})]
    )
    b = make(tmp_path / "b", [(5, {"eval/return": [7.0]}), (15, {"eval/return": [9.0]}), (40, {"eval/return": [9.0]})], seed=1)
    out = tmp_path / "deep" / "figure.png"
    assert curves([a, b, a], out) == out
    assert out.read_bytes().startswith(b"\x89PNG")
    rows = read(out.with_suffix(".csv"))
    assert list(rows[0]) == ["algo", "env_steps", "iqm", "low", "high", "seeds"]
    expected = {5: [0.5, 3.0, 7.0], 10: [1.0, 4.0, 8.0], 15: [2.0, 4.5, 9.0], 20: [3.0, 5.0, 9 + 0.0]}
    assert [int(r["env_steps"]) for r in rows] == list(expected)  # from the last start to the first end
    for row in rows:
        values = expected[int(row["env_steps"])]
        assert (row["algo"], row["seeds"]) == ("reinforce", "3")  # the run given twice counts once
        np.testing.assert_allclose(float(row["iqm"]), iqm(values), rtol=1e-12)
        np.testing.assert_allclose([float(row["low"]), float(row["high"])], bootstrap_interval(values), rtol=1e-12)


def test_gap_is_the_default_and_the_exponent_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    runs = [power(tmp_path / "x", "n-harpg", -1 / 3, theory_slope=-1 / 3), power(tmp_path / "y", "reinforce", -0.25)]
    drawn: list[Any] = []
    real = module.draw
    monkeypatch.setattr(module, "draw", lambda *arguments: (drawn.append(arguments), real(*arguments)))
    curves(runs, tmp_path / "f.svg")
    found, _, metric, _, env, log = drawn[0]
    assert (metric, env, log) == ("eval/gap", "grid", True)
    assert found[0].exponent() == pytest.approx((-1 / 3,) * 3)
    assert found[1].exponent() == pytest.approx((-0.25,) * 3)
    text = (tmp_path / "f.svg").read_text()
    assert "<svg" in text
    curves(runs, tmp_path / "g.svg")
    assert (tmp_path / "g.svg").read_text() == text  # the same numbers give the same file


def test_gaps_at_zero_nulls_and_one_seed_do_not_break_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [(s, {"eval/gap": [1.0 / (s + 1), np.nan if s == 20 else 0.0]}) for s in range(0, 100, 10)]
    two, one = (
        make(tmp_path / "two", rows),
        make(tmp_path / "one", [(s, {"eval/gap": 1.0 / (s + 1)}) for s in (0, 10)], algo="b"),
    )
    curves([two, one], tmp_path / "f.png")
    assert {r["seeds"] for r in read(tmp_path / "f.csv")} == {"1", "2"}
    curves([two], tmp_path / "g.png", x="wall", log=False)


def test_long_runs_are_thinned_to_logged_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = make(tmp_path / "r", [(s, {"rollout/return": [float(s)] * 4}) for s in range(0, 3000, 2)])
    curves([run], tmp_path / "f.png")
    rows = read(tmp_path / "f.csv")
    assert 150 < len(rows) <= module.GRID
    assert all(float(r["iqm"]) == int(r["env_steps"]) for r in rows)
    assert [int(rows[0]["env_steps"]), int(rows[-1]["env_steps"])] == [0, 2998]


def test_pooling_unlike_runs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = [power(tmp_path / str(k), "a", -0.3, seed=k, hyperparameters={"step_size": 0.1 * k, "eta": 1}) for k in range(2)]
    _, found, _ = module.gather(runs, None, "env_steps", by=("none",))
    assert found[0].mixed == ("step_size",)
    curves(runs, tmp_path / "f.png", by=("none",))
    assert capsys.readouterr().err == "a: runs that differ in step_size are pooled into one line\n"


def test_table_at_shares_of_the_common_budget(tmp_path: Path) -> None:
    a = make(tmp_path / "a", [(s, {"eval/gap": [8.0 - s / 50]}) for s in range(0, 401, 50)], algo="long")
    b = make(tmp_path / "b", [(s, {"eval/gap": [4.0, 4.0, 4.0, 4.0]}) for s in (150, 200)], algo="short")
    lines = table([a, b]).splitlines()
    assert lines[0].startswith("eval/gap")
    assert lines[1].split("  ")[0] == "method"
    assert "25% (50)" in lines[1]
    assert "100% (200)" in lines[1]
    assert lines[3].split()[:3] == ["long", "1", "7"]
    assert lines[3].split()[5] == "6"
    assert lines[3].split()[-3:] == ["4", "[4,", "4]"]
    assert lines[4].split() == ["short", "4", "-", "-", "4", "[4,", "4]"]


def test_faults_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = power(tmp_path / "a", "x", -0.3), power(tmp_path / "b", "x", -0.3, env="maze")
    empty = make(tmp_path / "empty", [])
    late = make(tmp_path / "late", [(10**6, {"eval/gap": [1.0]}), (2 * 10**6, {"eval/gap": [1.0]})], algo="x")
    odd = make(tmp_path / "odd", [(1, {"eval/gap": [1.0]}), (2, {"eval/gap": [1.0, 2.0]})])
    lost = make(tmp_path / "lost", [(1, {"eval/gap": [np.nan]})])
    for runs, keywords, said in (
        ([a], {"out": tmp_path / "f.pdf"}, "should end in .png or .svg"),
        ([], {}, "no run given"),
        ([a, b], {}, "different environments, grid and maze"),
        ([a], {"metric": "eval/gab"}, "it has eval/gap"),
        ([a], {"metric": "zzz"}, "it has eval/gap"),
        ([a, empty], {}, "none of"),
        ([a], {"x": "time"}, "env_steps, iteration, wall"),
        ([a], {"x": "iteration"}, "logs no 'iteration'"),
        ([a, late], {}, "no step in common"),
        ([odd], {}, "different numbers of seeds"),
        ([lost], {}, "no finite value"),
    ):
        with pytest.raises(CurvesError, match=said):
            curves(runs, **{"out": tmp_path / "f.png", **keywords})  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(CurvesError, match="could not write") as caught:
        curves([a], tmp_path / "file" / "f.png")
    assert caught.value.exit_code == 1
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install 'pgrl\[plots\]'") as missing:
        curves([a], tmp_path / "f.png")
    assert missing.value.exit_code == 4


def test_importing_does_not_import_matplotlib() -> None:
    import subprocess

    code = (
        "import sys, experiments.plots.curves; print([m for m in ('matplotlib', 'tensorboard', 'mujoco') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_files_are_named_without_their_folders(tmp_path: Path) -> None:
    one, two = power(tmp_path / "1", "/home/me/mine.py:agent", -0.3), power(tmp_path / "2", "/home/you/mine.py:agent", -0.3)
    three = power(tmp_path / "3", "n-pg", -0.3)
    _, found, series = module.gather([one, three], None, "env_steps")
    assert [curve.algo for curve in found] == ["mine:agent", "n-pg"]
    _, found, _ = module.gather([one, two], None, "env_steps")  # which of the two would be unclear
    assert [curve.algo for curve in found] == ["/home/me/mine.py:agent", "/home/you/mine.py:agent"]
    series = [replace(s, env="/home/me/world.py:make") for s in series]
    assert series[0].title == "world:make"
    assert replace(series[0], config={"title": "hypergrid 4-D, R0 = 0.1"}).title == "hypergrid 4-D, R0 = 0.1"
