"""Settings of the estimators from the command line to the run: what is biased is named, older runs go on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.pg.config import as_config, biases, defaults, from_config, make_problem, sizes
from experiments.plots.curves import gather
from experiments.run.checkpoint import latest, load
from tests.experiments.test_cli import pgrl

SHORT = ("--env", "gridworld", "--seeds", 2, "--env-steps", 600)
BIASED = ("--undiscounted-states", "--baseline", "value", "--gae-lambda", 0.9, "--clip-correction", 2)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def config_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "config.json").read_text()))


def test_a_biased_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pgrl("train", "n-harpg", *SHORT, *BIASED, "--out", tmp_path / "biased")
    assert "biased: no γ^t, GAE 0.9, correction clipped at 2" in capsys.readouterr().err
    assert biases(config_of(tmp_path / "biased")) == ["no γ^t", "GAE 0.9", "correction clipped at 2"]
    assert all(row["train/biased"] == 3.0 for row in rows(tmp_path / "biased"))
    pgrl("train", "n-harpg", *SHORT, "--out", tmp_path / "plain")
    assert "biased:" not in capsys.readouterr().err
    assert biases(config_of(tmp_path / "plain")) == []
    assert not any("train/biased" in row for row in rows(tmp_path / "plain"))


def test_the_help_of_a_biased_setting_begins_with_the_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pgrl("train", "n-harpg", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("--no-undiscounted-states", "--gae-lambda FLOAT", "--clip-correction {None}|FLOAT"):
        assert f"{flag} biased: " in text


def test_steps_that_are_not_along_the_direction_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pgrl("train", "adam-pg", *SHORT, "--out", tmp_path / "adam")
    assert "biased: Adam's steps" in capsys.readouterr().err
    assert all(row["train/biased"] == 1.0 for row in rows(tmp_path / "adam"))
    config = config_of(tmp_path / "adam")
    assert biases(config, steps=False) == []  # the estimates are unbiased
    assert biases({**config, "undiscounted_states": True}) == ["no γ^t", "Adam's steps"]
    _, (line,), _ = gather([tmp_path / "adam"], "eval/gap", "env_steps")
    assert line.algo == "adam-pg (biased: Adam's steps)"
    with pytest.raises(SystemExit):
        pgrl("train", "adam-pg", "--help")
    assert "--square-weight FLOAT biased: " in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--baseline", "none", "--gae-lambda", 0.9), "--gae-lambda needs a baseline of values, got none"),
        (("--baseline", "leave-one-out", "--batch-size", 2, "--gae-lambda", 0.9), "baseline of values, got leave-one-out"),
        (("--gae-lambda", 1.1), "--gae-lambda is 1.1"),
        (
            ("--baseline", "leave-one-out", "--batch-size", 2, "--hvp-batch-size", 1),
            "the leave-one-out baseline needs --hvp-batch-size 2 or more",
        ),
        (("--hvp-batch-size", 0), "--hvp-batch-size is 0, expected at least 1"),
        (("--clip-correction", 0), "--clip-correction is 0.0, expected a finite number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    flags: tuple[object, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pgrl("train", "n-harpg", *SHORT, *flags, "--out", tmp_path / "run", code=2)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_without_the_new_settings_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config.json of an earlier version: the settings that it lacks are those that change nothing."""
    command = ("train", "n-harpg", *SHORT, "--quiet", "--out", tmp_path / "run", "--resume", "auto")
    pgrl(*command)
    config, end = config_of(tmp_path / "run"), load(latest(tmp_path / "run" / "checkpoints"))[0]
    for name in ("undiscounted_states", "gae_lambda"):
        del config[name]
    for name in ("hvp_batch_size", "q_per_episode", "clip_correction"):
        del config["hyperparameters"][name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    _, settings, hyperparameters = from_config(config)
    assert (settings.undiscounted_states, settings.gae_lambda) == (False, 1.0)
    assert "q_per_episode" not in hyperparameters
    pgrl(*command)
    assert load(latest(tmp_path / "run" / "checkpoints"))[0].keys() == end.keys()
    pgrl(*command, "--q-per-episode", code=2)
    assert "holds a run with q_per_episode False, got True" in capsys.readouterr().err


def test_memory_of_the_correction_is_counted() -> None:
    settings, hyperparameters, _ = defaults("n-harpg", "HalfCheetah-v5")
    settings = replace(settings, batch_size=1)
    problem = make_problem(settings, "cpu")
    parts = [
        sizes(settings, problem.env, problem.policy, problem.baseline, problem.horizon, n)["episodes"] for n in (None, 1, 9)
    ]
    assert parts[0] == parts[1]
    assert parts[2] == parts[1] * 5
    assert as_config("n-harpg", settings, hyperparameters, "cpu")["hyperparameters"]["hvp_batch_size"] is None
