"""Every study runs at a thousandth of its size or less, writes its figure or table, and a second call trains nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gflownet
import pgrl
from experiments import studies
from experiments.cli import gflownet as fragments_cli
from experiments.cli.errors import UserError
from experiments.studies import scaled

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "seh"
STUDIES: dict[str, dict[str, Any]] = {
    "gridworld": {"needs": ("matplotlib",)},
    "tuning": {"needs": (), "scale": 1e-3, "more": {"envs": ("CartPole-v1",), "algos": ("n-pg",), "jobs": 1}},
    "hypergrid": {"needs": ("matplotlib",), "scale": 1e-4},
    "ingredients": {"needs": ("mujoco",), "more": {"variants": ("the recipe",)}},
    "objectives": {"needs": ("matplotlib",), "scale": 1e-4},
    "molecules": {"needs": ("rdkit",)},
    "log_z": {"needs": ("rdkit",)},
    "seh": {
        "needs": ("rdkit", "matplotlib"),
        "files": {"blocks": DATA / "blocks_PDB_105.json", "weights": DATA / "proxy_best_params.pkl.gz"},
        "more": {"rows": ("tb-10", "mcmc-40", "exchange")},
    },
}


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of every run below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.glob("*/**/*")) if path.is_file()}


def test_every_script_is_tested() -> None:
    scripts = {path.stem for path in Path(studies.__file__).parent.glob("*.py")} - {"__init__"}
    assert scripts == set(STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_and_is_resumed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in STUDIES[name]["needs"]:
        pytest.importorskip(package)
    files: dict[str, Path] = STUDIES[name].get("files", {})
    if not all(path.is_file() for path in files.values()):
        pytest.skip("the published blocks and weights are not here")
    files = {**files, **STUDIES[name].get("more", {})}
    scale = STUDIES[name].get("scale", 5e-4)
    study = importlib.import_module(f"experiments.studies.{name}").study
    made = study(out=tmp_path / "runs", scale=scale, **files)
    assert made.stat().st_size > 0
    first = contents(tmp_path / "runs")
    assert any(path.name == "metrics.jsonl" for path in first)
    other = tmp_path / "figures" / made.name
    assert study(out=tmp_path / "runs", scale=scale, figure=other, **files) == other
    assert other.read_bytes() == made.read_bytes()
    assert contents(tmp_path / "runs") == first
    with pytest.raises(UserError, match=r"holds a run with (env_steps|states) \d+, got \d+"):
        study(out=tmp_path / "runs", scale=0.5, **files)


def test_resume_continues_a_stopped_run_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"env": "gridworld", "seeds": 2, "env_steps": 2000, "checkpoints": 4, "quiet": True}
    whole = pgrl.train("n-pg", out=tmp_path / "whole", **settings)
    stopped = pgrl.train("n-pg", out=tmp_path / "stopped", **settings)
    for later in sorted((stopped.folder / "checkpoints").iterdir())[1:]:  # as if it had been killed there
        later.rename(tmp_path / later.name)
    resumed = pgrl.train("n-pg", out=tmp_path / "stopped", resume=True, **settings)
    assert bool((resumed.theta == whole.theta).all())
    assert (resumed.metrics["eval/gap"] == whole.metrics["eval/gap"]).all()


def test_resume_starts_again_what_has_no_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"env": "gridworld", "env_steps": 200, "quiet": True}
    whole = pgrl.train("n-pg", out=tmp_path / "run", **settings)
    theta = whole.theta
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(UserError, match="has rows of metrics and no checkpoint"):  # rows are never thrown away
        pgrl.train("n-pg", out=tmp_path / "run", resume=True, **settings)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert bool((pgrl.train("n-pg", out=tmp_path / "run", resume=True, **settings).theta == theta).all())


def test_resume_starts_again_what_was_stopped_while_it_was_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "cmd.txt").write_text("pgrl train n-pg\n")
    assert pgrl.train("n-pg", env_steps=100, out=run, resume=True, quiet=True).metrics
    (other := tmp_path / "other").mkdir()
    (other / "cmd.txt").write_text("mine")
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; a run is never overwritten"):
        pgrl.train("n-pg", env_steps=100, out=other, resume=True, quiet=True)
    assert (other / "notes.txt").read_text() == "mine"


def test_resume_continues_a_stopped_gflownet_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ndim": 2, "states": 320, "checkpoints": 4, "replay": "fifo", "quiet": True}
    whole = gflownet.train("hypergrid", "tb", out=tmp_path / "whole", **settings)
    stopped = gflownet.train("hypergrid", "tb", out=tmp_path / "stopped", **settings)
    for later in sorted((stopped.folder / "checkpoints").iterdir())[1:]:
        later.rename(tmp_path / later.name)
    resumed = gflownet.train("hypergrid", "tb", out=tmp_path / "stopped", resume=True, **settings)
    assert bool((resumed.theta == whole.theta).all())
    assert (resumed.metrics["eval/l1"] == whole.metrics["eval/l1"]).all()


def test_a_run_with_other_settings_is_refused_in_a_short_sentence(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    settings: dict[str, Any] = {"objective": "tb", "states": 64, "out": tmp_path / "run", "resume": True, "quiet": True}
    gflownet.train("molecules", max_blocks=3, **settings)
    with pytest.raises(UserError, match=r"holds a run with max_blocks 3, got 2") as refused:
        gflownet.train("molecules", max_blocks=2, **settings)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
    own = tmp_path / "own.smi"
    own.write_text("CCOC(=O)c1ccccc1\nCC(=O)Nc1ccccc1\nCOc1ccccc1CN\n")
    fragments_cli.main(["fragments", "--from", str(own), "--out", str(tmp_path / "own.json")])
    with pytest.raises(UserError, match="holds a run with ") as refused:
        gflownet.train("molecules", max_blocks=3, fragments=tmp_path / "own.json", **settings)
    assert len(str(refused.value)) < 400 + 2 * len(str(tmp_path))


def test_a_device_left_to_choose_stays_what_it_was(tmp_path: Path) -> None:
    pgrl.train("n-pg", env_steps=100, out=tmp_path / "run", quiet=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["device"] == "cpu"
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "device": "cuda"}))
    assert pgrl.train("n-pg", env_steps=100, out=tmp_path / "run", quiet=True, resume=True).theta.shape[0] == 10
    with pytest.raises(UserError, match="holds a run with device 'cuda', got 'cpu'"):
        pgrl.train("n-pg", env_steps=100, out=tmp_path / "run", quiet=True, resume=True, device="cpu")


def test_resume_without_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match="got resume=True without out"):
        pgrl.train("n-pg", env_steps=100, resume=True, quiet=True, out=None)


def test_a_run_from_before_a_setting_is_resumed_with_its_default(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ndim": 2, "states": 64, "hidden": (8,), "quiet": True, "out": tmp_path / "run", "resume": True}
    gflownet.train("hypergrid", "tb", **settings)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["max_faults"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    gflownet.train("hypergrid", "tb", **settings)
    with pytest.raises(UserError, match="holds a run with max_faults 10, got 3"):
        gflownet.train("hypergrid", "tb", max_faults=3, **settings)


def test_files_of_others_and_checkpoints_without_a_config_are_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seeds": 1, "env_steps": 200, "quiet": True, "out": tmp_path / "run", "resume": True}
    run = pgrl.train("n-pg", **settings)
    config = (run.folder / "config.json").read_text()
    (run.folder / "config.json").unlink()
    for name in ("metrics.jsonl", "seed-0", "all", "hparams"):
        (run.folder / name).rename(tmp_path / name)
    with pytest.raises(UserError, match=r"has checkpoints and no config\.json"):
        pgrl.train("n-pg", **settings)
    assert any((run.folder / "checkpoints").iterdir())
    (run.folder / "config.json").write_text(config)
    (run.folder / "checkpoints").rename(tmp_path / "checkpoints")
    (run.folder / "checkpoints").mkdir()
    (run.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds notes\.txt, which is not the run's"):
        pgrl.train("n-pg", **settings)
    assert (run.folder / "notes.txt").read_text() == "mine"
    (run.folder / "notes.txt").unlink()
    assert bool((pgrl.train("n-pg", **settings).theta == pgrl.train("n-pg", seeds=1, env_steps=200, quiet=True).theta).all())


def test_a_run_of_flow_matching_from_before_is_read(tmp_path: Path) -> None:
    run = gflownet.train("hypergrid", "fm", ndim=2, states=32, hidden=(8,), quiet=True, out=tmp_path / "run")
    config = json.loads((run.folder / "config.json").read_text())
    config["objective"]["epsilon"] = config["objective"].pop("smoothing")
    (run.folder / "config.json").write_text(json.dumps(config))
    assert gflownet.load(run.folder).evaluate(50)[0]["l1"] > 0  # type: ignore[call-arg]
    (run.folder / "config.json").write_text(json.dumps(config | {"objective": None}))
    with pytest.raises(UserError, match="objective is None"):
        gflownet.load(run.folder).evaluate(50)  # type: ignore[call-arg]


def test_scale_is_positive() -> None:
    assert scaled(1000, 0.5) == 500
    assert scaled(10, 0.001) == 1
    with pytest.raises(UserError, match="got --scale 0"):
        scaled(10, 0)


@pytest.mark.slow
def test_the_demo_draws_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "experiments.demo", "--out", str(tmp_path), "--scale", "0.001"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    drawn = "gridworld/gridworld", "halfcheetah/return", "molecules/molecules", "hypergrid/l1", "hypergrid/distribution"
    for figure in (f"{name}.png" for name in drawn):
        assert f"figure: {tmp_path / figure}" in said
        assert (tmp_path / figure).read_bytes()[:4] == b"\x89PNG"
