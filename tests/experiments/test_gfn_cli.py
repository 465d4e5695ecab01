"""The command line of GFlowNets from end to end: every verb, an outsider's objective and environment, bad input, faults."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from experiments.cli.gflownet import main
from experiments.run.log import read_metrics
from gflownet.registry import register

SMALL = ["--ndim", 2, "--height", 8, "--batch-size", 8, "--evaluations", 4, "--log-rows", 6, "--quiet"]
NET = ["--hidden", 16]
OBJECTIVE = '''
"""Trajectory balance, written outside the project."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class objective:
    """A sum of powers."""

    power: float = 2.0
    """of the residual"""
    uses: ClassVar[frozenset[str]] = frozenset({"log_z"})

    def loss(self, flows):
        delta = flows.log_z[:, None] + flows.log_pf.sum(0) - flows.log_reward - flows.log_pb.sum(0)
        return flows.mean(delta.abs() ** self.power)

    def log_z(self, flows):
        return flows.log_z


class broken(objective):
    def loss(self, flows):
        return super().loss(flows) * float("nan")
'''
WORLD = '''
"""Stairs: up by one or by two to the top, written outside the project."""
import gymnasium
import torch

from envs.core import Parents, State


class Stairs:
    backend = "torch"
    horizon = 6
    masked = True
    observation_space = gymnasium.spaces.MultiDiscrete([7])
    action_space = gymnasium.spaces.Discrete(3)  # up by one, by two, stop
    allowed = 1

    def reset(self, n, rng):
        return self.state_at(torch.zeros(n, 1, dtype=torch.int64), torch.zeros(n, dtype=torch.bool))

    def state_at(self, obs, terminated):
        never = torch.zeros_like(terminated)
        left = 5 - obs[:, 0]
        mask = torch.stack([left >= 1, left >= 2, left >= 0], 1) & bool(self.allowed)
        return State(obs, torch.zeros(len(obs)), terminated, never, None, mask)

    def step(self, state, action, rng):
        stays = state.terminated | (action == 2)
        obs = torch.where(stays[:, None], state.obs, state.obs + action[:, None] + 1)
        return self.state_at(obs, stays)

    def parents(self, obs, terminated):
        edges = []
        for i, (x, ended) in enumerate(zip(obs[:, 0].tolist(), terminated.tolist())):
            edges += [(i, x, 2)] if ended else [(i, x - a - 1, a) for a in (0, 1) if x > a]
        child, before, action = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T
        return Parents(child, before[:, None], action)

    def log_reward(self, obs):
        return (1.0 + obs[:, 0].double()).log()

    def describe(self, obs):
        return [str(x) for x in obs[:, 0].tolist()]


def make():
    return Stairs()


def nothing_valid():
    env = Stairs()
    env.allowed = 0
    return env


def poisoned():
    env = Stairs()
    env.log_reward = lambda obs: torch.where(obs[:, 0] == 3, torch.nan, obs[:, 0].double())
    return env


def no_environment():
    return 3


def zero(cells):
    return (cells.sum(1) > 0).double()


def failing(cells):
    return cells / 0 if cells.nope else None
'''


pytestmark = pytest.mark.usefixtures("one_thread")


def gflownet(*arguments: object, code: int = 0) -> None:
    if code == 0:
        main([str(a) for a in arguments])
        return
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == code


def process(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.cli.gflownet", *map(str, arguments)]
    where = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=where, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    gflownet(*arguments, code=code)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def grid(*arguments: object, states: int = 64, net: bool = True) -> list[object]:
    return ["train", "hypergrid", *SMALL, "--states", states, *(NET if net else []), *arguments]


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, str]]:
    capsys.readouterr()
    gflownet(*arguments)
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


@pytest.mark.parametrize("name", sorted(register()))
def test_every_method_trains_and_is_evaluated(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, net = tmp_path / "run", name not in ("mcmc", "uniform")
    gflownet(*grid("--objective", name, "--seeds", 2, "--out", out, net=net))
    first, *_, last = read_metrics(out)
    assert last["states"] == 64
    assert len(last["eval/l1"]) == 2
    assert last["eval/l1_floor"] > 0.3
    assert {"eval/modes", "rollout/log_reward"} <= set(last)
    assert name == "mcmc" or first["eval/exact_tv"][0] > last["eval/l1_floor"] / 50
    rows = table(capsys, "eval", out, "--samples", 400)
    assert [row["seed"] for row in rows] == ["0", "1"]
    for row in rows:
        assert 0.15 < float(row["l1_floor"]) < 0.4
        assert float(row["l1"]) > 0.5 * float(row["l1_floor"])


def test_flow_matching_learns_and_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    fm, mc = tmp_path / "fm", tmp_path / "mc"
    rates = ("--learning-rate", 0.01, "--final-rate", 1)
    gflownet(*grid("--objective", "fm", *rates, "--hidden", 32, "--out", fm, states=2400, net=False))
    gflownet(*grid("--objective", "mcmc", "--out", mc, states=2400, net=False))
    first, *_, last = read_metrics(fm)
    assert last["eval/exact_l1"][0] < 0.1 * first["eval/exact_l1"][0]
    assert last["eval/modes"] == [4]
    assert 0 < last["eval/all_modes_at"][0] <= 2400
    assert last["eval/log_z_error"][0] < 0.1
    (row,) = table(capsys, "eval", fm, "--samples", 20_000)
    assert float(row["l1"]) < 4 * float(row["l1_floor"])
    gflownet("curves", fm, mc, "--out", tmp_path / "l1.png")
    assert "eval/l1" in capsys.readouterr().out
    assert (tmp_path / "l1.csv").read_text().startswith("algo,states,iqm")
    gflownet("curves", fm, mc, "--metric", "eval/modes", "--out", tmp_path / "modes.svg")
    gflownet("distribution", fm, "--out", tmp_path / "distribution.png")
    gflownet("distribution", mc, "--out", tmp_path / "visited.png")
    from experiments.plots.gflownet import figure2

    figure2((fm, mc), tmp_path / "both.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("l1", "distribution", "visited", "both"))
    assert ".png or .svg" in says(capsys, "distribution", fm, "--out", tmp_path / "distribution.gif")


def test_other_worlds_and_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--states", 32, "--batch-size", 8, "--evaluations", 2, "--quiet", *NET]
    gflownet("train", "bits", "--objective", "tb", "--length", 8, "--n-modes", 4, *few, "--out", tmp_path / "bits")
    gflownet("train", "sets", "--objective", "fl-db", "--items", 5, "--size", 3, *few, "--out", tmp_path / "sets")
    for name in ("bits", "sets"):
        assert read_metrics(tmp_path / name)[-1]["eval/exact_l1"][0] > 0
    large = ["--metrics", "sampled", "--seeds", 2, "--length", 40]
    gflownet("train", "bits", "--objective", "tb", *large, *few, "--out", tmp_path / "large")
    last = read_metrics(tmp_path / "large")[-1]
    assert all(-1 <= r <= 1 for r in last["eval/correlation"])
    assert "eval/l1" not in last
    assert "correlation" in table(capsys, "eval", tmp_path / "large", "--samples", 20)[0]
    gflownet(*grid("--objective", "fm", "--preset", "paper", "--out", tmp_path / "paper"))
    assert '"convention": "paper2021"' in (tmp_path / "paper" / "config.json").read_text()


def test_an_objective_and_an_environment_from_outside(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    (tmp_path / "world.py").write_text(WORLD)
    few = ["--states", 800, "--batch-size", 8, "--learning-rate", 0.01, *NET, "--evaluations", 2, "--quiet"]
    runs = [
        process(tmp_path, "train", "world.py:make", "--objective", "mine.py:objective", "--power", 2, *few, "--out", "both"),
        process(tmp_path, "train", "world.py:make", "--objective", "fm", *few, "--out", "fm"),
        process(tmp_path, "check-env", "world.py:make"),
    ]
    for run in runs:
        out, error = run.communicate(timeout=100)
        assert run.returncode == 0, error
    assert "ok  " in out
    for name in ("both", "fm"):
        first, *_, last = read_metrics(tmp_path / name)
        assert last["eval/exact_l1"][0] < 0.5 * first["eval/exact_l1"][0]
    assert f'"{tmp_path.resolve() / "mine.py"}:objective"' in (tmp_path / "both" / "config.json").read_text()
    gflownet("eval", tmp_path / "both")  # from another folder


def test_bad_input_gets_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    (tmp_path / "world.py").write_text(WORLD)
    world, out = tmp_path / "world.py", ["--out", tmp_path / "run"]

    def wrong(*arguments: object, code: int = 2, net: bool = True) -> str:
        error = says(capsys, *grid(*arguments, *out, net=net), code=code)
        assert not (tmp_path / "run").exists()
        return error

    assert "subtb" in wrong("--objective", "subtbb")
    assert "got no objective" in wrong()
    assert "hypergrid" in says(capsys, "train", "hypergird", "--objective", "fm")
    assert "got no environment" in says(capsys, "train")
    assert "train" in says(capsys, "trian")
    assert "ndim is 0" in wrong("--objective", "fm", "--ndim", 0)
    assert "height is 1" in wrong("--objective", "fm", "--height", 1)
    assert "--r0 is 0" in wrong("--objective", "fm", "--r0", 0)
    assert "--seeds is 0" in wrong("--objective", "fm", "--seeds", 0)
    assert "epsilon is 2" in wrong("--objective", "fm", "--epsilon", 2)
    assert "no CUDA" in wrong("--objective", "fm", "--device", "cuda")
    assert "expected recipe or paper" in wrong("--objective", "fm", "--preset", "theorem")
    large = wrong("--objective", "fm", "--ndim", 8, "--metrics", "exact")
    assert "16,777,216 states" in large
    assert "--metrics sampled" in large
    assert "R is 0.0 at cell [0, 0]" in wrong("--objective", "fm", "--reward", f"{world}:zero", code=6)
    assert "AttributeError" in wrong("--objective", "fm", "--reward", f"{world}:failing", code=6)
    assert "at least 2" in wrong("--objective", "soft-pg", "--batch-size", 1)
    assert "there is no file" in wrong("--objective", "nothing.py:objective")
    assert "not an objective" in wrong("--objective", f"{tmp_path / 'world.py'}:make")
    elsewhere = ["--objective", "tb", "--states", 64, *NET, *out]
    assert "valid action" in says(capsys, "train", f"{world}:nothing_valid", *elsewhere)
    assert "log R is nan at the object 3" in says(capsys, "train", f"{world}:poisoned", *elsewhere, code=5)
    assert "returned a int, which lacks" in says(capsys, "train", f"{world}:no_environment", *elsewhere)
    assert "no proposals between objects" in says(capsys, "train", f"{world}:make", "--objective", "mcmc", *out)
    assert "valid action" in says(capsys, "check-env", f"{world}:nothing_valid", code=1)
    assert "stop" in says(capsys, "train", "sets", "--objective", "mdb", "--items", 4, "--size", 2, *NET, *out)
    gflownet(*grid("--objective", "fm", "--out", tmp_path / "done"))
    assert "gflownet resume" in says(capsys, *grid("--objective", "fm", "--out", tmp_path / "done"))
    assert "no run folder" in says(capsys, "resume", tmp_path / "nothing")


def test_a_reward_that_is_nan_where_it_cannot_be_enumerated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "world.py").write_text(WORLD)
    few = ["--metrics", "sampled", "--states", 64, *NET, "--out", tmp_path / "run"]
    error = says(capsys, "train", f"{tmp_path / 'world.py'}:poisoned", "--objective", "tb", *few, code=5)
    assert "log R is nan at the object 3" in error


def test_losses_that_are_not_finite_are_kept_and_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(OBJECTIVE + "\n\nbroken = dataclass(frozen=True)(broken)\n")
    out = tmp_path / "run"
    error = says(capsys, *grid("--objective", f"{tmp_path / 'mine.py'}:broken", "--max-faults", 5, "--out", out), code=5)
    assert "5 updates in a row" in error
    kept = sorted((out / "faults").iterdir())
    assert [f.name for f in kept] == ["000000002.safetensors", "000000003.safetensors", "000000004.safetensors"]
    assert {"action", "log_reward", "loss"} <= set(load_file(kept[0]))
    assert max(p.name for p in (out / "checkpoints").iterdir()) == "000000005"


def test_damaged_checkpoints_are_refused_and_the_one_before_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    gflownet(*grid("--objective", "tb", "--out", out))
    *_, before, last = sorted((out / "checkpoints").iterdir())
    data = bytearray((last / "tensors.safetensors").read_bytes())
    data[-3] ^= 1
    (last / "tensors.safetensors").write_bytes(data)
    assert before.name in says(capsys, "resume", out, code=3)
    gflownet("eval", out, "--checkpoint", before, "--samples", 10)
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace('"hidden": [\n   16\n  ]', '"hidden": [\n   8\n  ]'))
    assert "does not fit" in says(capsys, "resume", out, "--checkpoint", before, code=3)
    (out / "config.json").write_text(config)
    gflownet("resume", out, "--checkpoint", before, "--quiet")
    assert read_metrics(out)[-1]["states"] == 64


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    run = process(tmp_path, *grid("--objective", "fm", "--out", "run", states=50_000_000))
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len((tmp_path / "run" / "metrics.jsonl").read_text()) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.3)
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 143, error
    assert "continue with: gflownet resume" in error
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_list_help_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    gflownet("list")
    out = capsys.readouterr().out
    assert all(name in out for name in (*register(), "hypergrid", "bits", "sets"))
    gflownet("--help")
    assert "check-env" in capsys.readouterr().out
    for verb in ("train", "resume", "eval", "curves", "distribution", "check-env", "list", "doctor"):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        assert verb in capsys.readouterr().out
    for env in ("hypergrid", "bits", "sets"):
        for name in register():  # no two knobs of one name
            with pytest.raises(SystemExit) as stopped:
                main(["train", env, "--objective", name, "--help"])
            assert stopped.value.code == 0


def test_every_hyperparameter_is_one_flag_without_a_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.cli.gflownet import main
    from experiments.gfn.config import refuse_clashes
    from experiments.gfn.environments import ENVIRONMENTS
    from gflownet.registry import register

    for name, entry in register().items():
        for env in ENVIRONMENTS:
            refuse_clashes(name, entry, env)
    flags = ["--residual", "huber", "--smoothing", "0.001", "--epsilon", "0.1", "--states", "32", "--quiet"]
    main(["train", "hypergrid", "--objective", "fm", *flags, "--out", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["objective"]["residual"] == "huber"
    assert config["objective"]["smoothing"] == 0.001
    assert config["hyperparameters"]["epsilon"] == 0.1


def test_an_objective_with_the_name_of_another_flag_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.cli.gflownet import main

    own = tmp_path / "own.py"
    own.write_text(
        "from dataclasses import dataclass\nfrom gflownet.objectives.trajectory_balance import TrajectoryBalance\n"
        "@dataclass(frozen=True)\nclass Mine(TrajectoryBalance):\n    epsilon: float = 0.5\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", "hypergrid", "--objective", f"{own}:Mine", "--states", "32"])
    assert stop.value.code == 2
    assert "has epsilon among its hyperparameters, as the hyperparameters of every GFlowNet do" in capsys.readouterr().err


def test_the_objective_is_required_and_a_misspelt_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.cli.gflownet import main

    with pytest.raises(SystemExit) as stop:
        main(["train", "hypergrid", "--objetive", "tb"])
    assert stop.value.code == 2
    assert "got --objetive, which is not a flag: did you mean --objective?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["train", "hypergrid", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "(required)" in shown[shown.index("--objective") :][:300]
