"""Settings of `pgrl train`: horizons, bounds, normalisation, their bad input, and runs that diverge."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.pgrl import main
from experiments.pg.config import auto_horizon, defaults
from experiments.recipes.pg import mujoco
from experiments.run.log import read_metrics
from pgrl.registry import register
from pgrl.theory import suggest_horizon

SMALL = ["--seeds", 2, "--evaluations", 1, "--eval-episodes", 1, "--workers", 0, "--quiet", "--hidden", 8]


def pgrl(*arguments: object) -> None:
    main([str(a) for a in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    with pytest.raises(SystemExit) as stopped:
        pgrl(*arguments)
    assert stopped.value.code == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pgrl: ")
    return error


def test_the_automatic_horizon_is_that_of_the_theorem() -> None:
    horizon = auto_horizon(1_000_000, 10, 0.95, own=1_000)
    assert horizon == suggest_horizon(1_000_000 // (10 * horizon), 0.95)
    assert 100 < horizon < 300
    assert auto_horizon(1_000_000, 10, 0.999, own=1_000) == 1_000
    assert auto_horizon(1_000_000, 10, 1.0, own=1_000) == 1_000
    assert auto_horizon(1, 10, 0.5, own=50) == 2  # one iteration: log 2 / 0.5


def test_a_resolved_horizon_is_in_the_config_and_evaluation_is_of_the_whole_task(tmp_path: Path) -> None:
    run = [
        "train",
        "n-pg",
        "--env",
        "Acrobot-v1",
        "--env-steps",
        400,
        "--batch-size",
        1,
        "--discount",
        0.9,
        "--horizon",
        "auto",
    ]
    pgrl(*run, *SMALL, "--out", tmp_path / "run")
    horizon = json.loads((tmp_path / "run" / "config.json").read_text())["horizon"]
    assert horizon == auto_horizon(400, 1, 0.9, 500)
    last = read_metrics(tmp_path / "run")[-1]
    assert all(length <= horizon for length in last["rollout/length"])
    assert all(-500.0 <= value < -horizon for value in last["eval/return"] + last["eval/return_mean_action"])


def test_eval_prints_the_return_without_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "n-pg", "--env", "CartPole-v1", "--env-steps", 400, "--output-scale", 1, "--step-size", 2]
    pgrl(*run, *SMALL, "--out", tmp_path / "run")
    capsys.readouterr()
    pgrl("eval", tmp_path / "run", "--episodes", 20)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2
    assert all(row["return"] != row["return_mean_action"] for row in rows)
    assert all(1 <= float(row["return_mean_action"]) <= 500 for row in rows)


def test_settings_that_do_not_fit_the_environment_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    out = ["--out", tmp_path / "run"]
    longer = refused(capsys, "train", "n-pg", "--env", "HalfCheetah-v5", "--horizon", 1001, *out)
    assert "--horizon is 1,001, but an episode of HalfCheetah-v5 has 1,000 steps" in longer
    assert "needs actions with finite bounds" in refused(capsys, "train", "n-pg", "--env", "lqr", "--bounds", "tanh", *out)
    by_number = refused(capsys, "train", "n-pg", "--env", "gridworld", "--normalise-steps", 10, *out)
    assert "cannot be normalised" in by_number
    assert "--output-scale" in refused(capsys, "train", "n-pg", "--env", "CartPole-v1", "--output-scale", 0, *out)
    assert not (tmp_path / "run").exists()


def test_steps_of_the_normalisation_count(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    run = ["train", "n-pg", "--env", "Hopper-v5", "--env-steps", 300, "--normalise-steps", 100, "--batch-size", 1]
    pgrl(*run, *SMALL, "--log-rows", 100, "--out", tmp_path / "run")
    first, last = read_metrics(tmp_path / "run")[0], read_metrics(tmp_path / "run")[-1]
    assert all(100 <= steps < 200 for steps in first["env_steps"])
    assert all(300 <= steps < 400 for steps in last["env_steps"])


@pytest.mark.parametrize("more", [["--step-size", 1e6], ["--step-size", 1e30, "--bounds", "none", "--step-norm", "euclidean"]])
def test_a_run_that_diverges_names_the_seed_and_keeps_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[Any]
) -> None:
    pytest.importorskip("mujoco")
    run = ["train", "n-mpg", "--env", "HalfCheetah-v5", "--env-steps", 2000, "--normalise-steps", 50, "--horizon", 20]
    error = refused(capsys, *run, "--batch-size", 1, *SMALL, *more, "--out", tmp_path / "run", code=5)
    assert "seed 0" in error
    assert "smaller" in error
    assert "iteration" in error
    assert any((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("task", mujoco.RECIPES)
def test_recipes_of_mujoco_share_what_sets_a_task_up(task: str) -> None:
    for algo in register():
        settings, hyperparameters, _ = defaults(algo, task)
        assert settings.bounds == "clip"
        assert settings.normalise_steps == 10_000
        assert hyperparameters["step_size"] > 0


def test_a_step_size_keeps_its_norm_in_every_preset() -> None:
    for preset in ("recipe", "theorem", "constant"):
        _, hyperparameters, _ = defaults("n-mpg", "CartPole-v1", preset)
        assert (hyperparameters["step_size"], hyperparameters["step_norm"]) == (0.2, "fisher")


def test_the_start_of_a_run_names_its_ingredients_and_says_when_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mujoco")
    run = ["train", "n-mpg", "--env", "InvertedPendulum-v5", "--env-steps", 40, "--normalise-steps", 50, *SMALL]
    pgrl(*[x for x in run if x != "--quiet"], "--out", tmp_path / "run")
    said = capsys.readouterr().err
    assert "step_norm fisher" in said
    assert "normalise_steps 50, bounds clip" in said
    assert "nothing is trained" in said


def test_normalised_observations_of_lqr_are_evaluated_on_episodes(tmp_path: Path) -> None:
    pgrl("train", "n-pg", "--env", "lqr", "--normalise-steps", 100, "--env-steps", 300, *SMALL[:-2], "--out", tmp_path / "run")
    row = read_metrics(tmp_path / "run")[-1]
    assert "eval/return_mean_action" in row
    assert "eval/gap" not in row
