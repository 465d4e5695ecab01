"""The Python interface: the bytes of the command line, results as arrays and records, one sentence for each mistake."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gflownet
import pgrl
from experiments.cli import gflownet as gflownet_cli
from experiments.cli import pgrl as pgrl_cli
from experiments.cli.errors import UserError

ROOT = Path(__file__).parents[2]


def newest(folder: Path) -> bytes:
    return sorted((folder / "checkpoints").glob("*/tensors.safetensors"))[-1].read_bytes()


def test_pgrl_trains_the_same_bytes_as_the_command_line(tmp_path: Path) -> None:
    run = pgrl.train("n-pg-igt", env="gridworld", seeds=2, env_steps=600, step_size=0.2, quiet=True)
    flags = ["--env", "gridworld", "--seeds", "2", "--env-steps", "600", "--step-size", "0.2", "--quiet"]
    pgrl_cli.main(["train", "n-pg-igt", *flags, "--out", str(tmp_path / "run")])
    assert newest(run.folder) == newest(tmp_path / "run")
    assert run.metrics["eval/gap"].shape == (len(run.steps("eval/gap")), 2)
    assert np.isfinite(run.metrics["eval/gap"]).all()
    assert run.theta.shape[0] == 2
    assert [row["seed"] for row in run.evaluate(episodes=3)] == [0, 1]
    again = pgrl.load(tmp_path / "run")
    assert bool((again.theta == run.theta).all())
    assert type(again) is type(run)


def test_gflownet_trains_the_same_bytes_as_the_command_line(tmp_path: Path) -> None:
    run = gflownet.train("hypergrid", objective="tb", states=160, ndim=2, hidden=(16, 16), seed=3, quiet=True)
    flags = ["--objective", "tb", "--states", "160", "--ndim", "2", "--hidden", "16", "16", "--seed", "3", "--quiet"]
    gflownet_cli.main(["train", "hypergrid", *flags, "--out", str(tmp_path / "run")])
    assert newest(run.folder) == newest(tmp_path / "run")
    (row,) = run.evaluate(samples=100)
    assert 0 < row["l1"] <= 2
    assert isinstance(gflownet.load(tmp_path / "run"), type(run))


def test_molecules_are_sampled_as_records() -> None:
    pytest.importorskip("rdkit")
    run = gflownet.train("molecules", objective="tb", reward="qed*sa", states=64, max_blocks=3, quiet=True)
    rows = run.sample(5, unique=True)
    assert len({row["smiles"] for row in rows}) == 5
    assert {"smiles", "reward", "qed", "sa", "log_p"} <= set(rows[0])


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = pgrl.train("n-pg", seeds=2, env_steps=400, quiet=True)
    assert run.curves(tmp_path / "gap.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got env_step, which is no setting here; close: env_steps"):
        pgrl.train("n-pg", env_step=100)
    with pytest.raises(UserError, match="got state, which is no setting here; close: states"):
        gflownet.train("hypergrid", objective="tb", state=100)
    with pytest.raises(UserError):
        pgrl.load(tmp_path)


@pytest.mark.parametrize(
    ("value", "said"),
    [(len, "the function len"), (Path, "the class Path"), (object(), "an object, object"), ({}, "an object, dict")],
)
def test_a_function_or_an_object_is_refused_with_the_way_to_give_it(value: object, said: str) -> None:
    with pytest.raises(UserError, match=rf"got reward as {said}, expected text or numbers: .* reward='my_file\.py:name'"):
        gflownet.train("hypergrid", objective="tb", reward=value)
    with pytest.raises(UserError, match=f"got env as {said}"):
        gflownet.train(value, objective="tb")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"got algo as {said}"):
        pgrl.train(value)  # type: ignore[arg-type]


def test_the_command_line_resumes_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "n-pg", "--env", "gridworld", "--env-steps", "200", "--quiet", "--resume"]
    pgrl_cli.main([*command, "--out", str(tmp_path / "run")])
    first = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    pgrl_cli.main([*command, "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == first
    for wrong, said in (
        (["--seed", "7", "--out", str(tmp_path / "run")], "holds a run with seed 0, got 7"),
        ([], "without --out"),
    ):
        with pytest.raises(SystemExit) as stopped:
            pgrl_cli.main([*command, *wrong])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("package", [pgrl, gflownet])
def test_every_exported_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", ["pgrl", "gflownet"])
@pytest.mark.parametrize("folder", ["envs", "experiments"])
def test_a_folder_that_shadows_ours_is_named(tmp_path: Path, package: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("")
    command = [sys.executable, "-c", f"import {package}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert f"{tmp_path / folder} shadows the package `{folder}` of {package}: rename that folder" in done.stderr


@pytest.mark.parametrize("package", ["pgrl", "gflownet"])
def test_import_does_not_load_torch(package: str) -> None:
    code = f"import sys, {package}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
