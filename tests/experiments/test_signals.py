"""Signals: what hangs is left after a grace period with the last good state saved; workers that hang or die end the run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from experiments.cli.signals import deferred_signals
from experiments.run import checkpoint as checkpoints
from tests.experiments.test_faults import LATE, batched, fails, run, saved, single, train
from tests.experiments.test_gfn_faults import OBJECTIVE, grid, outside_reward, rows

HANG = "os.kill(os.getpid(), signal.{name})\n        while True: time.sleep(9)"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.cli.signals.GRACE", 0.1)
    monkeypatch.setattr("experiments.cli.signals.AGAIN", 0.05)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.usefixtures("impatient")
def test_a_reward_that_hangs_is_left_with_its_state_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, evaluates: bool
) -> None:
    flag = tmp_path / "flag"
    when = f"Path({str(flag)!r}).exists() and len(calls) > 4 and (len(cells) > 8) is {evaluates}"
    file = outside_reward(tmp_path / "r.py", when, HANG.format(name=name))
    arguments = grid("--objective", "tb", "--metrics", "sampled", "--reward", f"{file}:reward")
    assert run("gflownet", *arguments, "--out", tmp_path / "whole") == 0
    flag.touch()
    started = time.monotonic()
    error = fails(capsys, code, "gflownet", *arguments, "--out", tmp_path / "part")
    assert time.monotonic() - started < 5
    assert "stopped within iteration" in error
    flag.unlink()
    assert run("gflownet", "resume", tmp_path / "part", "--quiet") == 0
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    for key, x in saved(tmp_path / "whole").items():
        assert torch.equal(x, saved(tmp_path / "part")[key]), key


@pytest.mark.usefixtures("impatient")
def test_an_environment_that_hangs_and_catches_everything_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hang = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\n"
    hang += "try:\n    time.sleep(9)\nexcept BaseException:\n    time.sleep(9)"
    env, out = batched(tmp_path / "world.py", step=hang, calls=LATE), tmp_path / "run"
    error = fails(capsys, 143, "pgrl", *train(env, out))
    assert "stopped within iteration" in error
    assert int(saved(out)["env_steps"].min()) > 0


def test_the_third_interrupt_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hang = "import os, signal, time\nfor _ in range(3): os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)"
    started = time.monotonic()
    assert run("pgrl", *train(batched(tmp_path / "world.py", step=hang, calls=LATE), tmp_path / "run")) == 130
    assert time.monotonic() - started < 5


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_hangs_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = "import multiprocessing, os, signal, time; child = multiprocessing.parent_process()"
    hang = f"{child}; child and (os.kill(os.getppid(), signal.SIGTERM), time.sleep(60))"
    env, out = single(tmp_path / "world.py", step=hang), tmp_path / "run"
    started = time.monotonic()
    error = fails(capsys, 143, "pgrl", *train(env, out, "--workers", 1))
    assert "stopped within iteration 0" in error
    assert time.monotonic() - started < 40


def test_a_worker_that_always_dies_ends_the_run_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.workers.RESTARTS", 1)
    die = "import multiprocessing, os; multiprocessing.parent_process() and os._exit(3)"
    env, out = single(tmp_path / "world.py", step=die), tmp_path / "run"
    error = fails(capsys, 5, "pgrl", *train(env, out, "--workers", 1))
    assert "the environment world:make ended its worker process 1 times" in error
    assert saved(out)
    assert checkpoints.load_latest(out / "checkpoints")[1]["restarts"] == 1


@pytest.mark.usefixtures("impatient")
def test_active_learning_that_hangs_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "run"
    hang = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"
    mine.write_text(OBJECTIVE.format(loss=hang, log_z="pass"))
    few = ["--proxy", "oracle", "--rounds", 3, "--initial", 10, "--queries", 4, "--states", 40, "--seeds", 1, "--hidden", 8]
    arguments = ["active", "hypergrid", "--objective", f"{mine}:objective", "--ndim", 2, "--height", 8, "--batch-size", 8]
    assert "stopped within round 2" in fails(capsys, 143, "gflownet", *arguments, *few, "--quiet", "--out", out)
    assert saved(out)["known"].shape == (1, 14)


@pytest.mark.usefixtures("impatient")
def test_a_sample_whose_reward_hangs_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit")
    file, flag = tmp_path / "r.py", tmp_path / "flag"
    file.write_text(
        "import os, signal, time\n"
        "def f(smiles):\n"
        f"    if os.path.exists({str(flag)!r}):\n"
        f"        os.kill({os.getpid()}, signal.SIGTERM)\n"  # the command, not the process of the reward
        "        time.sleep(99)\n"
        "    return [1.0 + len(s) for s in smiles]\n"
    )
    few = ["--states", 16, "--batch-size", 8, "--evaluations", 1, "--quiet", "--device", "cpu", "--out", tmp_path / "run"]
    few += ["--reward-cache", "none"]
    assert run("gflownet", "train", "molecules", "--objective", "tb", "--reward", f"{file}:f", *few) == 0
    flag.touch()
    started = time.monotonic()
    sample = ["sample", tmp_path / "run", "--n", 4, "--seed", 77, "--out", tmp_path / "found.csv", "--quiet"]
    assert "stopped" in fails(capsys, 143, "gflownet", *sample)
    assert time.monotonic() - started < 8
    assert not (tmp_path / "found.csv").exists()
