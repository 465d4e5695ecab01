"""`pgrl snr`: at the start and at a checkpoint, as a table and as CSV, and what it refuses."""

import csv
import io
from pathlib import Path

import pytest

from experiments.cli import pgrl
from experiments.pg.snr import number, table
from tests.experiments.test_faults import fails, outside_agent

START = ["snr", "n-harpg", "--env=gridworld", "--env-steps=6000", "--batch-size=3", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snr") / "run"
    pgrl.main(["train", "n-harpg", "--env=gridworld", "--env-steps=400", "--seeds=2", "--quiet", f"--out={out}"])
    return out


def records(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[dict[str, str]], str]:
    """The rows of --csv, and standard error."""
    capsys.readouterr()
    pgrl.main([*arguments, "--csv"])
    said = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(said.out))), said.err


def test_a_table_for_people_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    pgrl.main([*START, "--horizons", "10", "50", "--iterations=2", "--baselines", "value", "leave-one-out"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split("  ")[0] == "estimator"
    assert len(lines) == 1 + 3 * 2 * 2 + 1
    assert "nan" not in said.out
    assert "leave-one-out: the mean over a batch of 3 episodes is one estimate" in said.err
    for words in (
        "a batch of 3 episodes has",
        "noise along one step of the agent, times that of g: Bu ",
        "direction after 2 iterations",
    ):
        assert words in said.err


def test_csv_has_every_number_and_other_budgets_other_precision(capsys: pytest.CaptureFixture[str]) -> None:
    few, _ = records(capsys, *START, "--estimators", "g", "--baselines", "value")
    (many,), _ = records(capsys, *START, "--env-steps=60000", "--estimators", "g", "--baselines", "value")
    assert list(few[0]) == [
        *("estimator", "baseline", "horizon", "discount", "needed", "low", "high", "batch"),
        *("signal", "noise", "steps", "estimates"),
    ]
    wide, narrow = (1 / float(x["low"]) - 1 / float(x["high"]) for x in (few[0], many))
    assert narrow < 0.6 * wide
    assert float(many["low"]) < float(many["needed"]) < float(many["high"])
    assert float(many["batch"]) == pytest.approx(3 * float(many["steps"]), rel=1e-4)


def test_a_run_is_measured_where_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--env-steps=6000", "--estimators", "g", "--baselines", "value", "--quiet")
    first, err = records(capsys, "snr", str(run), *asked)
    second, _ = records(capsys, "snr", str(run), *asked, "--row=1")
    again, _ = records(capsys, "snr", str(run), *asked)
    start, _ = records(capsys, "snr", str(run), *asked, f"--checkpoint={min((run / 'checkpoints').glob('0*'))}")
    assert first == again
    assert first != second
    assert first != start
    assert "measured with" in err
    assert "a batch of 1 episode has" in err


def test_what_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected about" in fails(capsys, 2, "pgrl", *START, "--env-steps=100")
    assert "--row is 2, expected at most 1" in fails(capsys, 2, "pgrl", "snr", str(run), "--row=2")
    assert "got no algorithm: pgrl snr ALGO" in fails(capsys, 2, "pgrl", "snr")
    assert "no algorithm is called 'nowhere'" in fails(capsys, 2, "pgrl", "snr", "nowhere")
    assert "--horizons is" in fails(capsys, 2, "pgrl", *START, "--horizons", "0")
    assert "--discounts is" in fails(capsys, 2, "pgrl", *START, "--discounts", "1.5")


def test_code_of_users_that_fails_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, words in (("raise ValueError('boo')", "boo"), ("return None", "unpack")):
        agent = outside_agent(tmp_path / "mine.py", step=step)
        agent.write_text(agent.read_text().replace("state.t == 7", "state.t == 1"))
        error = fails(capsys, 5, "pgrl", "snr", f"{agent}:agent", *START[2:])
        assert words in error
        assert "measurement" in error


def test_a_direction_that_is_too_expensive_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    rows, err = records(capsys, *START, "--iterations=100", "--baselines", "none")
    assert "direction: not measured; 4 replicas of 100 iterations need --env-steps" in err
    assert {x["estimator"] for x in rows} == {"g", "Bu", "Bu-causal"}


def test_without_a_signal_the_table_gives_a_bound() -> None:
    row = {"estimator": "g", "baseline": "none", "horizon": 5, "discount": 0.9, "batch": 100.0}
    line = table([{**row, "needed": float("inf"), "low": 40_000.0, "high": float("inf")}]).splitlines()[1]
    assert line.split() == ["g", "none", "5", "0.9", ">", "40,000", "100", ">", "20"]
    assert [number(x) for x in (0.5, 99.95, 128_449)] == ["0.5", "100", "128,000"]


@pytest.mark.slow
def test_what_half_cheetah_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """γ 0.95: H 500 takes some 10^5 steps for noise = signal, H 100 with small first actions a fifth of it or less."""
    pytest.importorskip("mujoco")
    raw = ["--normalise-steps=0", "--bounds=none", "--discount=0.95", "--workers=0", "--quiet", "--seed=1"]
    start = ["snr", "n-mpg", "--env=HalfCheetah-v5", "--estimators", "g", "--baselines", "value", *raw]
    (long,), _ = records(capsys, *start, "--horizon=500", "--log-std=0", "--output-scale=1", "--env-steps=400000")
    (short,), _ = records(capsys, *start, "--horizon=100", "--log-std=-.5", "--output-scale=.01", "--env-steps=200000")
    assert float(long["high"]) > 128_000 / 1.5
    assert 50_000 < float(long["low"]) < 1.5 * 128_000
    assert 10_000 < float(short["low"]) < float(short["needed"]) < float(short["high"]) < 60_000
