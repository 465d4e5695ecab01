"""The Python interface: the bytes of the command line, results as arrays and records, one sentence for each mistake."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    with pytest.raises(UserError, match="got a value that its setting does not take"):
        pgrl.train("n-pg", seeds="abc")
    (tmp_path / "clash.py").write_text(
        "import dataclasses\nfrom pgrl.agents.n_pg import NPG\n"
        "agent = dataclasses.make_dataclass('agent', [('resume', float, 1.0)], bases=(NPG,), frozen=True)\n"
    )
    with pytest.raises(UserError, match="has resume among its hyperparameters, as the shared settings do"):
        pgrl.train(f"{tmp_path / 'clash.py'}:agent", env_steps=10)
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


MINE = """
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from envs.dag.hypergrid import HyperGrid
from gflownet import TrajectoryBalance
from pgrl import NPG


@dataclass(frozen=True)
class Mine(NPG):
    extra: float = 1.0


@dataclass(frozen=True)
class MyBalance(TrajectoryBalance):
    extra: float = 1.0


def slope(cells):
    return 1.0 + cells.sum(1)


def make():
    return HyperGrid(2, 4, 0.1)


def inner():
    def hidden(cells):
        return 1.0 + cells.sum(1)
    return hidden
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's, imported from a file."""
    (tmp_path / "mine_of_a_user.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("mine_of_a_user")
    del sys.modules["mine_of_a_user"]


def config_of(run: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run.folder / "config.json").read_text())
    return config


def test_functions_and_classes_of_a_module_are_their_file_and_name(mine: Any, tmp_path: Path) -> None:
    small: dict[str, Any] = {"states": 32, "quiet": True}
    run = gflownet.train("hypergrid", objective=mine.MyBalance(extra=2.0), ndim=2, height=4, reward=mine.slope, **small)
    file = str(tmp_path / "mine_of_a_user.py")
    assert config_of(run)["env_settings"]["reward"] == f"{file}:slope"
    assert config_of(run)["method"] == f"{file}:MyBalance"
    assert config_of(run)["objective"]["extra"] == 2.0
    gflownet_cli.main(["resume", str(run.folder), "--quiet"])
    named = gflownet.train(
        "hypergrid", objective=f"{file}:MyBalance", extra=2.0, ndim=2, height=4, reward=f"{file}:slope", **small
    )
    assert newest(run.folder) == newest(named.folder)
    assert config_of(gflownet.train(mine.make, objective="tb", **small))["env"] == f"{file}:make"
    assert isinstance(gflownet.make_env(mine.make), gflownet.HyperGrid)
    agent = pgrl.train(mine.Mine(step_size=0.25), env_steps=100, quiet=True)
    assert config_of(agent)["algo"] == f"{file}:Mine"
    assert config_of(agent)["hyperparameters"]["step_size"] == 0.25


def test_our_own_agents_and_objectives_go_by_their_names() -> None:
    run = pgrl.train(pgrl.NPGIGT(step_size=0.3), seeds=1, env_steps=100, quiet=True)
    assert config_of(run)["algo"] == "n-pg-igt"
    assert config_of(run)["hyperparameters"]["step_size"] == 0.3
    assert config_of(pgrl.train(pgrl.NPG, env_steps=100, quiet=True))["algo"] == "n-pg"
    soft = gflownet.train("hypergrid", objective=gflownet.SoftDQN(), ndim=2, states=32, quiet=True)
    assert config_of(soft)["method"] == "soft-dqn"
    with pytest.raises(UserError, match=r"got step_size twice, in NPG\("):
        pgrl.train(pgrl.NPG(step_size=0.3), step_size=0.1)


@pytest.mark.parametrize("of", ["a function in a function", "a lambda", "the script that runs", "a tuple of objects"])
def test_what_a_run_folder_cannot_make_again_is_refused(of: str, mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "/home/me/script.py", raising=False)  # a process of pytest-xdist has none
    monkeypatch.setattr(main, "slope", mine.slope, raising=False)
    monkeypatch.setattr(mine.slope, "__module__", "__main__" if of == "the script that runs" else mine.__name__)
    value = {
        "a function in a function": mine.inner(),
        "a lambda": lambda cells: cells,
        "the script that runs": mine.slope,
        "a tuple of objects": (object(),),
    }[of]
    with pytest.raises(UserError, match=r"got reward as .*, expected text or numbers: .* reward='my_file\.py:name'"):
        gflownet.train("hypergrid", objective="tb", reward=value)


def test_numbers_of_numpy_and_awkward_numbers_are_numbers() -> None:
    run = pgrl.train(
        "n-pg", env="lqr", seeds=np.int64(2), env_steps=100, log_std=-1e-7, learn_std=np.bool_(False), hidden=(), quiet=True
    )
    config = config_of(run)
    assert (config["seeds"], config["log_std"], config["learn_std"], config["hidden"]) == (2, -1e-7, False, [])


def test_environments_are_made_by_name() -> None:
    env = gflownet.make_env("hypergrid", ndim=2, height=3)
    assert gflownet.check_dag(env)
    assert len(gflownet.enumerate_dag(env).objects) == 9
    assert {type(gflownet.make_env(name)) for name in ("bits", "sets")} == {gflownet.Bits, gflownet.Sets}
    assert pgrl.check_env(pgrl.make_env("gridworld"))
    with pytest.raises(UserError, match="got heigth, which is no setting here; close: height"):
        gflownet.make_env("hypergrid", heigth=3)
    with pytest.raises(UserError, match="got quiet, which is no setting here"):
        gflownet.make_env("hypergrid", quiet=True)


def test_checks_of_an_agent_are_at_hand() -> None:
    code = "import pgrl; print(pgrl.check.order(pgrl.NMPG(step_size=0.1)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1, abs=0.01)


TYPED = """
from pathlib import Path
from typing import assert_type

import gflownet
import pgrl
from experiments.api import GFlowNetRun, PolicyGradientRun
from gflownet.objectives.trajectory_balance import TrajectoryBalance
from pgrl.agents.n_pg import NPG

run = pgrl.train("n-pg", seeds=2, out=Path("runs"))
assert_type(run, PolicyGradientRun)
assert_type(pgrl.NPG(step_size=0.1), NPG)
assert_type(pgrl.train(pgrl.NPG(step_size=0.1)), PolicyGradientRun)
assert_type(gflownet.TrajectoryBalance(), TrajectoryBalance)
flow = gflownet.train("molecules", objective=gflownet.TrajectoryBalance())
assert_type(flow, GFlowNetRun)
assert_type(gflownet.make_env("bits"), gflownet.DagEnv)
assert_type(pgrl.check.LIMIT, float)
"""
WRONG = TYPED + "pgrl.train(3)\npgrl.Agnt\ngflownet.TrajectoryBalance(colour=1)\nrun.sample(3)\n"


@pytest.mark.slow
def test_a_type_checker_sees_the_real_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for text in (TYPED, WRONG):
        (tmp_path / "notebook.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(tmp_path / "notebook.py")]
        command += ["--cache-dir", str(tmp_path / "cache"), "--config-file", os.devnull, "--no-error-summary"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        wrong = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line]
        assert wrong == ([] if text == TYPED else [20, 21, 22, 23]), done.stdout


@pytest.mark.parametrize("package", ["pgrl", "gflownet"])
def test_names_for_type_checkers_are_the_names_that_are_loaded(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    module = importlib.import_module(package)
    loaded = {name: seen[name] for name in module._EXPORTS}
    assert loaded == module._EXPORTS
    assert set(module.__all__) == {*loaded, "load", "make_env", "train", *(["check"] if package == "pgrl" else [])}


def test_the_command_line_resumes_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "n-pg", "--env", "gridworld", "--env-steps", "200", "--resume", "auto"]
    pgrl_cli.main([*command, "--out", str(tmp_path / "run")])
    first = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "already done" not in capsys.readouterr().err
    pgrl_cli.main([*command, "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == first
    assert f"{tmp_path / 'run'} is already done" in capsys.readouterr().err
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
