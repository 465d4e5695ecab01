"""The fault matrix: what a run promises, one test for each promise, through the command line.

Finer tests of each stand beside what they test; `docs/reproducibility.md` says the promises in words.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.cli import gflownet, pgrl
from experiments.run import log as metrics_log
from experiments.run.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

PG = ["train", "n-pg", "--env", "gridworld", "--seeds", "2", "--env-steps", "3000", "--checkpoints", "10", "--quiet"]
GFN = ["train", "hypergrid", "--objective", "tb", "--ndim", "2", "--states", "480", "--hidden", "8", "--window", "50"]
GFN += ["--replay", "prioritised", "--capacity", "50", "--checkpoints", "10", "--evaluations", "4", "--quiet"]
RUNS: dict[str, tuple[Any, list[str]]] = {"pgrl": (pgrl, PG), "gflownet": (gflownet, GFN)}
both = pytest.mark.parametrize("package", RUNS)


def process(package: str, *arguments: object, before: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, after a script."""
    script = (
        f"import sys, torch\ntorch.set_num_threads(1)\n{before}\nfrom experiments.cli.{package} import main\nmain(sys.argv[1:])"
    )
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], **pipes)


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < ends
        time.sleep(0.01)


def iterations(run: Path) -> list[int]:
    """Of the checkpoints that are whole or on their way."""
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdecimal())


def same(cut: Path, whole: Path) -> None:
    """Equal tensors, equal metrics without gap or repeat."""
    assert read_metrics(cut, timing=False) == read_metrics(whole, timing=False)
    last = f"checkpoints/{iterations(whole)[-1]:09d}/tensors.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], None], *arguments: object) -> tuple[int, str]:
    """Exit code and the sentence of a command that fails."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, error


def user_file(tmp_path: Path, text: str) -> Path:
    (file := tmp_path / "mine.py").write_text(textwrap.dedent(text))
    return file


ENVIRONMENT = """
    import gymnasium, numpy as np, os, time
    class Line(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)
        steps = 0
        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.x, self.t = 0.0, 0
            return np.array([self.x], np.float32), {{}}
        def step(self, action):
            type(self).steps += 1
            self.t += 1
            self.x += float(action) - 0.5
            reward = -abs(self.x)
            {fault}
            return np.array([self.x], np.float32), reward, self.t >= 5, False, {{}}
    def make():
        return Line()
"""
IN_A_WORKER = "os.environ['MAIN_PROCESS'] != str(os.getpid())"
REWARD = """
    import os, time
    calls = 0
    def score(smiles):
        global calls
        calls += 1
        {fault}
        return [0.1 + 0.01 * len(s) for s in smiles]
"""


def environment(tmp_path: Path, fault: str) -> list[str]:
    file = user_file(tmp_path, ENVIRONMENT.format(fault=fault))
    return ["train", "n-pg", "--env", f"{file}:make", "--horizon", "5", "--seeds", "2", "--step-size", "0.1", "--quiet"]


def molecules(tmp_path: Path, fault: str) -> list[str]:
    pytest.importorskip("rdkit")
    file = user_file(tmp_path, REWARD.format(fault=fault))
    small = ["--max-blocks", "2", "--states", "64", "--batch-size", "8", "--hidden", "8", "--evaluations", "2", "--quiet"]
    own = ["--reward-cache", str(tmp_path / "answers.sqlite"), "--reward-workers", "1"]
    return ["train", "molecules", "--objective", "tb", "--reward", f"{file}:score", *small, *own]


# 1


@both
def test_a_killed_run_goes_on_to_the_same_bytes(package: str, tmp_path: Path) -> None:
    """kill -9 at some moment; the same command again, as a scheduler would give it; once more says that all is done."""
    room, command = RUNS[package]
    room.main([*command, "--out", str(tmp_path / "whole")])
    before = files(tmp_path / "whole")
    requeued = [*command, "--out", tmp_path / "cut", "--resume", "auto"]
    running = process(package, *requeued)
    wait_for(lambda: len(iterations(tmp_path / "cut")) > 1, running)
    running.kill()
    running.communicate()
    room.main([str(a) for a in requeued])
    same(tmp_path / "cut", tmp_path / "whole")
    room.main([*command, "--out", str(tmp_path / "whole"), "--resume", "auto"])
    assert files(tmp_path / "whole") == before


def files(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


# 2


@both
def test_deterministic_is_a_setting_and_changes_nothing_on_the_cpu(package: str, tmp_path: Path) -> None:
    """On CUDA it is what makes a run exact (tests marked gpu)."""
    room, command = RUNS[package]
    for out, flags in (("one", []), ("other", ["--deterministic"])):
        room.main([*command, *flags, "--out", str(tmp_path / out)])
    same(tmp_path / "one", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["deterministic"] is True


# 3


@both
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_named(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room, command = RUNS[package]
    room.main([*command, "--out", str(run := tmp_path / "run")])
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    *_, earlier, last = sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdecimal())
    data = bytearray((last / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (last / "tensors.safetensors").write_bytes(data)
    code, sentence = refused(capsys, room.main, "resume", run)
    assert code == 3
    assert f"--checkpoint {earlier}" in sentence
    room.main(["resume", str(run), "--checkpoint", str(earlier), "--quiet"])
    same(run, whole)


# 4


@both
def test_a_full_disk_is_outlasted(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two writes of metrics fail, the run warns and loses no row; when they go on to fail it stops, its checkpoints whole."""
    room, command = RUNS[package]
    room.main([*command, "--out", str(tmp_path / "whole")])
    write, full = os.write, [False]

    def writing(file: int, data: Any) -> int:
        if full and full.pop(0):
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(metrics_log.os, "write", writing)
    full[:] = [False] * 4 + [True] * 2
    room.main([*command, "--out", str(tmp_path / "short")])
    assert "No space left on device" in capsys.readouterr().err
    same(tmp_path / "short", tmp_path / "whole")
    full[:] = [False] * 8 + [True] * 1000
    code, sentence = refused(capsys, room.main, *command, "--out", tmp_path / "long")
    assert code == 1
    assert "No space left on device" in sentence
    full.clear()
    room.main(["resume", str(tmp_path / "long"), "--quiet"])
    same(tmp_path / "long", tmp_path / "whole")


# 5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@both
def test_a_signal_ends_the_run_after_a_checkpoint(package: str, number: int, code: int, tmp_path: Path) -> None:
    _, command = RUNS[package]
    longer = [*command, "--env-steps" if package == "pgrl" else "--states", "100000000"]
    running = process(package, *longer, "--out", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(read_metrics(tmp_path / "run")) > 0, running)
    sent = time.monotonic()
    running.send_signal(number)
    _, error = running.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert running.returncode == code, error
    assert "Traceback" not in error
    assert f"{package} resume {tmp_path / 'run'}" in error
    assert iterations(tmp_path / "run")


def test_a_reward_that_hangs_does_not_hold_a_signal_up(tmp_path: Path) -> None:
    """One SIGTERM; what is saved is the state before the iteration, which goes on to the end once the reward answers."""
    command = molecules(tmp_path, f"while calls > 9 and not os.path.exists({str(tmp_path / 'fixed')!r}): time.sleep(0.1)")
    running = process("gflownet", *command, "--out", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), running)
    time.sleep(2)
    sent = time.monotonic()
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert running.returncode == 143, error
    (tmp_path / "fixed").touch()
    gflownet.main(["resume", str(tmp_path / "run"), "--quiet"])
    assert read_metrics(tmp_path / "run")[-1]["states"] == 64


def test_a_signal_while_known_drugs_are_scored(tmp_path: Path) -> None:
    command = molecules(tmp_path, f"while not os.path.exists({str(tmp_path / 'fixed')!r}): time.sleep(0.1)")
    running = process("gflownet", *command, "--out", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), running)
    time.sleep(1)
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 143, error
    assert "stopped while the known drugs were scored" in error
    (tmp_path / "fixed").touch()
    gflownet.main([*command, "--out", str(tmp_path / "run"), "--resume", "auto"])
    assert read_metrics(tmp_path / "run")[-1]["states"] == 64


# 6


def test_a_worker_that_dies_is_replaced_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step in one worker kills its process; the episodes are those of a run where nothing died."""
    monkeypatch.setenv("MAIN_PROCESS", str(os.getpid()))
    flag = str(tmp_path / "died")
    fault = f"if {IN_A_WORKER} and not os.path.exists({flag!r}): open({flag!r}, 'w').close(); os._exit(3)"
    command = [*environment(tmp_path, fault), "--env-steps", "300", "--workers", "1"]
    pgrl.main([*command, "--out", str(tmp_path / "died-once")])
    assert os.path.exists(flag)
    pgrl.main([*command, "--out", str(tmp_path / "whole")])
    same(tmp_path / "died-once", tmp_path / "whole")
    assert read_metrics(tmp_path / "died-once")[-1]["time/worker_restarts"] >= 1
    assert read_metrics(tmp_path / "whole")[-1]["time/worker_restarts"] == 0


def test_a_worker_that_always_dies_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAIN_PROCESS", str(os.getpid()))
    command = [*environment(tmp_path, f"if {IN_A_WORKER}: os._exit(3)"), "--env-steps", "3000", "--workers", "1"]
    code, sentence = refused(capsys, pgrl.main, *command, "--out", tmp_path / "run")
    assert code == 5
    assert "worker" in sentence
    assert iterations(tmp_path / "run")


# 7


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "'much'", "np.zeros(2)"])
def test_an_environment_s_fault_is_named(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What, where and when: the environment, the seed, the step, the action; the iterations before are saved."""
    command = [*environment(tmp_path, f"if self.steps == 400: reward = {value}"), "--env-steps", "3000"]
    code, sentence = refused(capsys, pgrl.main, *command, "--out", tmp_path / "run")
    assert code == 5
    for word in ("mine:make", "reward", "seed", "step", "action"):
        assert word in sentence, sentence
    assert iterations(tmp_path / "run")[-1] > 0


# 8


def test_an_update_that_is_not_finite_is_skipped_counted_and_dumped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One reward overflows in float32 at one iteration; no checkpoint has a number that is not finite."""
    command = [*environment(tmp_path, "if 100 <= self.steps < 130: reward = 3e38"), "--env-steps", "600"]
    pgrl.main([*command, "--discount", "1.0", "--out", str(tmp_path / "run")])
    assert sum(read_metrics(tmp_path / "run")[-1]["train/skipped"]) >= 1
    assert list((tmp_path / "run" / "faults").glob("*.safetensors"))
    for file in (tmp_path / "run" / "checkpoints").glob("*/tensors.safetensors"):
        assert all(bool(torch.isfinite(x).all()) for x in load_file(file).values())
    command = [*environment(tmp_path, "if self.steps >= 100: reward = 3e38"), "--env-steps", "3000", "--max-faults", "3"]
    code, sentence = refused(capsys, pgrl.main, *command, "--discount", "1.0", "--out", tmp_path / "stopped")
    assert code == 5
    assert "3 updates of seed 0 in a row were skipped" in sentence


# 9


@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('no licence')", "raise SystemExit", "return [float('nan')] * len(smiles)"]
)
def test_a_reward_s_fault_ends_the_run_after_a_checkpoint(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = molecules(tmp_path, f"if calls > 3 and not os.path.exists({str(tmp_path / 'fixed')!r}): {fault}")
    code, sentence = refused(capsys, gflownet.main, *command, "--out", tmp_path / "run")
    assert code == 6
    assert "mine.py:score" in sentence
    assert f"gflownet resume {tmp_path / 'run'}" in sentence
    (tmp_path / "fixed").touch()
    gflownet.main(["resume", str(tmp_path / "run"), "--quiet"])
    assert read_metrics(tmp_path / "run")[-1]["states"] == 64


def test_equal_rewards_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = molecules(tmp_path, "return [0.5] * len(smiles)")
    code, sentence = refused(capsys, gflownet.main, *command, "--out", tmp_path / "run")
    assert code == 6
    assert "is the reward what you meant?" in sentence
    gflownet.main([*command, "--equal-rewards", "warn", "--out", str(tmp_path / "other")])
    assert "is the reward what you meant?" in capsys.readouterr().err


# 10


@pytest.mark.parametrize("verb", ["resume", "eval"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_stranger_s_run_runs_no_code(verb: str, inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pgrl.main([*environment(tmp_path, "pass"), "--env-steps", "60", "--out", str(run := tmp_path / "run")])
    evil = (run if inside else tmp_path) / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + (tmp_path / "mine.py").read_text())
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "env": f"{evil}:make"}))
    code, sentence = refused(capsys, pgrl.main, verb, run)
    assert code == 3
    assert "evil.py" in sentence
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "lock", "checkpoints"])
def test_links_out_of_a_run_are_not_followed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pgrl.main([*PG, "--out", str(run := tmp_path / "run")])
    outside = tmp_path / "outside"
    shutil.move(str(run / name), outside)
    (run / name).symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else files(outside)
    code, sentence = refused(capsys, pgrl.main, "resume", run)
    assert code == 3
    assert name in sentence
    assert (outside.read_bytes() if outside.is_file() else files(outside)) == before


# 11 is test_old_runs.py: a fixture for each released version


# 12


@both
def test_no_gpu_no_display_no_network_no_terminal(package: str, tmp_path: Path) -> None:
    """A process without DISPLAY and HOME, whose sockets fail, with closed input; progress is not drawn, figures are."""
    nothing = (
        "import os, socket\nfor name in ('DISPLAY', 'HOME', 'TERM', 'MUJOCO_GL'): os.environ.pop(name, None)\n"
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "def no(*a, **k): raise OSError('network')\nsocket.socket.connect = socket.create_connection = no\n"
    )
    _, command = RUNS[package]
    running = process(package, *command[:-1], "--out", tmp_path / "run", before=nothing)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    assert "\r" not in error
    assert "\x1b" not in error
    pytest.importorskip("matplotlib")
    running = process(package, "curves", tmp_path / "run", "--out", tmp_path / "figure.png", before=nothing)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    assert (tmp_path / "figure.png").stat().st_size > 0
