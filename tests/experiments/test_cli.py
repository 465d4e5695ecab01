"""End to end through the command line: train, resume after kill -9, evaluate, draw; and one clear sentence for bad input."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli.gflownet import main as gflownet
from experiments.cli.pgrl import main
from experiments.run.log import read_metrics
from pgrl.registry import register

OUTSIDE_AGENT = '''
"""A heavy ball, written outside the project."""
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    theta: Tensor
    d: Tensor
    t: int


@dataclass(frozen=True)
class agent:
    """Momentum by hand."""

    step_size: float = 0.05
    """step"""
    eta: float = 0.5
    """weight of the fresh gradient"""

    unbiased: ClassVar[bool] = {unbiased}

    def init(self, theta):
        return State(theta, torch.zeros_like(theta), 0)

    def step(self, state, world):
        (tau,) = world.sample(state.theta)
        eta = self.eta if state.t else 1.0
        d = (1 - eta) * state.d + eta * {gradient}
        return State(state.theta + self.step_size * d, d, state.t + 1), {{}}
'''
RIGHT = "world.gradient(state.theta, tau)"
# what public code does: discounts left out of the weights of the scores
UNDISCOUNTED = "undiscounted(world, state.theta, tau)"
HELPER = '''

def undiscounted(world, theta, tau):
    """Rewards-to-go discounted from each step, not from time 0."""
    t = torch.arange(len(tau.mask), dtype=torch.float64)[:, None]
    to_go = (world.discount**t * tau.reward * tau.mask).flip(0).cumsum(0).flip(0) / world.discount**t
    theta = theta.detach().requires_grad_()
    surrogate = (to_go * tau.mask * world.policy.log_prob(theta, tau)).sum() * len(theta) / tau.mask.shape[1]
    return torch.autograd.grad(surrogate, theta)[0]
'''
OUTSIDE_ENV = '''
"""A one-dimensional target, written outside the project."""
import gymnasium
import numpy as np
import torch

from envs.core import State


class Target:
    backend = "torch"
    horizon = 12
    terminates = False
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, n, rng):
        no = torch.zeros(n, dtype=torch.bool)
        return State(rng.normal(1).float(), torch.zeros(n), no, no)

    def step(self, state, action, rng):
        x = state.obs + 0.3 * action.float() + 0.1 * rng.normal(1).float()
        return State(x, -(x**2)[:, 0], state.terminated, state.truncated)


def make():
    return Target()


def poisoned():
    env = Target()
    step = env.step
    env.step = lambda state, action, rng: bad(step(state, action, rng))
    return env


def bad(state):
    reward = torch.where(state.obs[:, 0].abs() > 2.5, torch.nan, state.reward)
    return State(state.obs, reward, state.terminated, state.truncated)
'''


def pgrl(*arguments: object, code: int = 0) -> None:
    if code == 0:
        main([str(a) for a in arguments])
        return
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    assert stopped.value.code == code


def process(*arguments: object, **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.cli.pgrl", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload]


def rows(run: Path) -> list[dict[str, object]]:
    return read_metrics(run, timing=False)


def test_every_algorithm_trains_on_the_gridworld_from_its_recipe(tmp_path: Path) -> None:
    for algo in register():
        pgrl("train", algo, "--env", "gridworld", "--env-steps", 600, "--seeds", 3, "--out", tmp_path / algo, "--quiet")
        last = rows(tmp_path / algo)[-1]
        assert min(last["env_steps"]) >= 600
        assert all(0 < gap < 2 for gap in last["eval/gap"])
        assert {"eval/gradient_norm", "train/estimator_error", "rollout/return", "opt/step_size"} <= set(last)


def test_train_eval_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for algo, out in zip(("reinforce", "n-harpg"), folders, strict=True):
        pgrl("train", algo, "--env", "gridworld", "--env-steps", 2000, "--seeds", 3, "--out", out)
    pgrl("curves", *folders, "--out", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "figure.csv").read_text().startswith("algo,env_steps,iqm")
    capsys.readouterr()
    pgrl("eval", folders[1], "--episodes", 50)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seed,episodes,return")
    assert len(lines) == 4
    config = json.loads((folders[1] / "config.json").read_text())
    schedules = {"step_size", "step_power", "step_norm", "eta", "eta_power"}
    correction = {"hvp_batch_size", "q_per_episode", "clip_correction"}
    assert set(config["hyperparameters"]) == schedules | correction  # complete, whatever was typed
    assert config["discount"] == 0.95
    assert config["theory_slope"] == -0.5  # the gap falls
    assert config["workers"] == 0


def test_presets(tmp_path: Path) -> None:
    powers = {}
    for preset in ("theorem", "constant"):
        out = tmp_path / preset
        pgrl("train", "n-harpg", "--preset", preset, "--eta", 0.7, "--env-steps", 200, "--seeds", 1, "--out", out)
        knobs = json.loads((out / "config.json").read_text())["hyperparameters"]
        powers[preset] = knobs["step_power"], knobs["eta_power"]
        assert knobs["eta"] == 0.7
    assert powers == {"theorem": (1.0, 1.0), "constant": (0.0, 0.0)}


def test_seeds_alone_are_seeds_in_company(tmp_path: Path) -> None:
    for algo in ("n-pg-igt", "n-harpg"):  # with the recipe's fitted baseline
        ten, one = tmp_path / f"{algo}-ten", tmp_path / f"{algo}-one"
        pgrl("train", algo, "--env", "gridworld", "--env-steps", 1500, "--seeds", 10, "--out", ten)
        pgrl("train", algo, "--env", "gridworld", "--env-steps", 1500, "--seeds", 1, "--seed", 7, "--out", one)
        assert rows(one)[-1]["eval/gap"][0] == pytest.approx(rows(ten)[-1]["eval/gap"][7], rel=1e-9)
        assert rows(one)[-1]["env_steps"][0] == rows(ten)[-1]["env_steps"][7]


def test_seeds_alone_are_seeds_in_company_on_halfcheetah(tmp_path: Path) -> None:
    """Chaotic physics magnifies rounding: a few short iterations, in float64."""
    pytest.importorskip("mujoco")
    common = [
        "train",
        "n-harpg",
        "--env",
        "HalfCheetah-v5",
        "--horizon",
        8,
        "--env-steps",
        60,
        "--dtype",
        "float64",
        "--workers",
        0,
        "--batch-size",
        1,
        "--normalise-steps",
        20,
        "--evaluations",
        1,
        "--eval-episodes",
        1,
    ]
    pgrl(*common, "--seeds", 10, "--out", tmp_path / "ten")
    pgrl(*common, "--seeds", 1, "--seed", 7, "--out", tmp_path / "one")
    ten, one = rows(tmp_path / "ten")[-1], rows(tmp_path / "one")[-1]
    assert one["rollout/return"][0] == pytest.approx(ten["rollout/return"][7], rel=1e-4)
    assert one["train/direction_norm"][0] == pytest.approx(ten["train/direction_norm"][7], rel=1e-4)


@pytest.mark.parametrize("algo", sorted(register()))
@pytest.mark.parametrize("env", ["gridworld", "HalfCheetah-v5"])
def test_resume_after_kill_is_the_uninterrupted_run(tmp_path: Path, algo: str, env: str) -> None:
    """The same bytes, whatever the moment of the kill."""
    if env == "HalfCheetah-v5":
        pytest.importorskip("mujoco")
        workers = 1 if algo in ("n-pg-igt", "n-harpg") else 0
        size = [
            "--env-steps",
            240,
            "--horizon",
            12,
            "--hidden",
            8,
            "--workers",
            workers,
            "--evaluations",
            3,
            "--eval-episodes",
            1,
            "--batch-size",
            2,
            "--normalise-steps",
            20,
        ]
        size += ["--step-size", 1e-4]
    elif algo == "n-harpg":
        size = ["--env-steps", 4000, "--baseline", "leave-one-out", "--batch-size", 2]
    else:
        size = ["--env-steps", 2000]
    common = ["train", algo, "--env", env, "--seeds", 2, *size, "--quiet"]
    last = 4 if env == "HalfCheetah-v5" else 9  # of five iterations where two batches are sampled
    pgrl(*common, "--out", tmp_path / "whole")
    script = (
        "import os, signal, sys, experiments.pg.train as pg\n"
        "step = pg.step\n"
        "def dying(problem, agent, training, budget):\n"
        f"    if training.iteration == {last}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(problem, agent, training, budget)\n"
        "pg.step = dying\n"
        "from experiments.cli.pgrl import main\nmain(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *map(str, [*common, "--out", tmp_path / "cut"])])
    assert killed.returncode == -signal.SIGKILL
    assert len(rows(tmp_path / "cut")) < len(rows(tmp_path / "whole"))
    pgrl("resume", tmp_path / "cut", "--quiet")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1:]:
        twin = tmp_path / "cut" / "checkpoints" / path.name
        assert (path / "tensors.safetensors").read_bytes() == (twin / "tensors.safetensors").read_bytes()


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    pgrl("train", "n-pg", "--env-steps", 3000, "--seeds", 2, "--out", out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "algo": "n-harpg", "hyperparameters": {"step_size": 0.1}}))
    before = sorted(p.name for p in (out / "checkpoints").iterdir()), (out / "metrics.jsonl").read_bytes()
    assert "does not fit" in sentence(capsys, "resume", out, "--checkpoint", before[0][0], code=3)
    assert before == (sorted(p.name for p in (out / "checkpoints").iterdir()), (out / "metrics.jsonl").read_bytes())


def test_workers_play_gymnasium_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for workers in (0, 1):
        out = tmp_path / f"cartpole-{workers}"
        pgrl("train", "n-pg", "--env", "CartPole-v1", "--seeds", 2, "--env-steps", 600, "--workers", workers, "--out", out)
    assert rows(tmp_path / "cartpole-0") == rows(tmp_path / "cartpole-1")
    assert "tensor program" in sentence(capsys, "train", "n-pg", "--env", "lqr", "--workers", 1, "--out", tmp_path / "lqr")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals, code: int) -> None:
    run = process("train", "n-pg-igt", "--env", "gridworld", "--env-steps", 10_000_000, "--out", tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len((tmp_path / "run" / "metrics.jsonl").read_text()) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.5)
    run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == code, error
    assert "continue with: pgrl resume" in error
    assert "Traceback" not in error
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_an_agent_and_an_environment_from_outside(tmp_path: Path) -> None:
    agent, env = tmp_path / "mine.py", tmp_path / "world.py"
    agent.write_text(OUTSIDE_AGENT.format(unbiased="False", gradient=RIGHT))
    env.write_text(OUTSIDE_ENV)
    pgrl("train", f"{agent}:agent", "--env", "CartPole-v1", "--seeds", 2, "--env-steps", 1500, "--out", tmp_path / "cartpole")
    assert rows(tmp_path / "cartpole")[-1]["eval/return"]
    pgrl(
        "train",
        f"{agent}:agent",
        "--env",
        f"{env}:make",
        "--seeds",
        2,
        "--env-steps",
        500,
        "--eta",
        0.9,
        "--step-size",
        1e-5,
        "--out",
        tmp_path / "own",
    )
    assert json.loads((tmp_path / "own" / "config.json").read_text())["hyperparameters"]["eta"] == 0.9
    pgrl("check-env", f"{env}:make")
    pgrl("train", "n-harpg", "--env", f"{env}:make", "--seeds", 2, "--env-steps", 500, "--out", tmp_path / "ours")
    pgrl("eval", tmp_path / "ours", "--episodes", 3)


def test_the_examples_of_the_page_on_extending(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    agent, env, objective, dag = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:4]
    for name, text in (("mine", agent), ("world", env), ("balance", objective), ("stairs", dag)):
        (tmp_path / f"{name}.py").write_text(text)
    mine, world = f"{tmp_path / 'mine.py'}:agent", f"{tmp_path / 'world.py'}:make"
    pgrl("train", mine, "--env", "CartPole-v1", "--eta", 0.5, "--env-steps", 2000, "--seeds", 2, "--out", tmp_path / "cartpole")
    pgrl("check", mine, "--seeds", 500, "--iterations", 4)
    pgrl("check-env", world)
    pgrl("train", "n-harpg", "--env", world, "--env-steps", 500, "--seeds", 2, "--out", tmp_path / "target")
    balance, stairs = f"{tmp_path / 'balance.py'}:objective", f"{tmp_path / 'stairs.py'}:make"
    small = ["--states", "800", "--quiet"]
    gflownet(["train", "hypergrid", "--objective", balance, "--power", "1.2", *small, "--out", str(tmp_path / "balance")])
    gflownet(["check-env", stairs])
    gflownet(["train", stairs, "--objective", "fm", *small, "--out", str(tmp_path / "stairs")])


@pytest.mark.parametrize("env", ["lqr", "garnet:3"])
@pytest.mark.parametrize("algo", sorted(register()))
def test_recipes_of_exact_worlds_learn(tmp_path: Path, algo: str, env: str) -> None:
    pgrl("train", algo, "--env", env, "--env-steps", 4000, "--seeds", 4, "--quiet", "--out", tmp_path / "run")
    first, *_, last = rows(tmp_path / "run")
    assert sum(last["eval/gap"]) < sum(first["eval/gap"])


@pytest.mark.slow
def test_check_holds_agents_to_their_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong, false = tmp_path / "right.py", tmp_path / "wrong.py", tmp_path / "false.py"
    right.write_text(OUTSIDE_AGENT.format(unbiased="False", gradient=RIGHT))
    wrong.write_text(
        OUTSIDE_AGENT.format(unbiased="True", gradient=UNDISCOUNTED).replace("eta: float = 0.5", "eta: float = 1.0") + HELPER
    )
    false.write_text(
        OUTSIDE_AGENT.format(unbiased="True", gradient=RIGHT).replace("step_size: float = 0.05", "step_size: float = 3.0")
    )
    pgrl("check", "n-harpg")
    pgrl("check", f"{right}:agent")
    pgrl("check", f"{wrong}:agent", code=1)
    text = OUTSIDE_AGENT.format(unbiased="True", gradient=RIGHT + " * (float('nan') if state.t == 3 else 1.0)")
    (tmp_path / "nan.py").write_text(text)
    pgrl("check", f"{tmp_path / 'nan.py'}:agent", "--seeds", 64, code=1)
    pgrl("check", f"{false}:agent", "--step-size", 3, code=1)  # momentum is not unbiased
    assert "FAIL" in capsys.readouterr().out


def test_check_reports_an_error_of_an_agent_and_takes_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = tmp_path / "misspelt.py"
    agent.write_text(OUTSIDE_AGENT.format(unbiased="False", gradient="world.gradeint(theta, tau)"))
    pgrl("check", f"{agent}:agent", code=5)
    assert re.search(r"raised AttributeError: .*gradeint.* \(misspelt.py, line \d+\) in step 0", capsys.readouterr().err)
    tables = []
    for seed in (0, 0, 1):
        pgrl("check", "n-pg", "--seeds", 64, "--iterations", 3, "--batch-size", 4, "--seed", seed)
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] != tables[2]
    pgrl("check", "n-pg", "--seed", -1, code=2)
    assert "--seed is -1, expected" in capsys.readouterr().err


def sentence(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    pgrl(*arguments, code=code)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_bad_input_gets_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def says(*arguments: object, code: int = 2) -> str:
        return sentence(capsys, *arguments, code=code)

    assert "n-harpg" in says("train", "nharp", "--env", "gridworld")
    assert "gridworld" in says("train", "n-harpg", "--env", "gridwrld")
    assert "HalfCheetah-v5" in says("train", "n-harpg", "--env", "HalfCheetah-v4")
    assert "CartPole" in says("train", "n-harpg", "--env", "CartPol-v1")
    assert "(0, 1]" in says("train", "n-harpg", "--eta", 1.5)
    assert "--step-size is -1" in says("train", "n-harpg", "--step-size", -1)
    assert "--seeds is 0" in says("train", "n-harpg", "--seeds", 0)
    assert "--discount is 2" in says("train", "n-harpg", "--discount", 2)
    assert "batch-size" in says("train", "n-harpg", "--baseline", "leave-one-out")
    assert "baseline is 'vlue'" in says("train", "n-harpg", "--baseline", "vlue")
    assert "no CUDA" in says("train", "n-harpg", "--device", "cuda")
    assert "train" in says("trian", "n-harpg")
    assert "no run folder" in says("resume", tmp_path / "nothing")
    assert "expected widths" in says("train", "n-harpg", "--hidden", 4, -3)
    assert "from 0 to 2^62" in says("train", "n-harpg", "--seed", 10**20)
    assert "expected recipe" in says("train", "n-harpg", "--preset", "theory")
    (tmp_path / "raises.py").write_text("def make():\n    return 1 / 0\n")
    assert "ZeroDivisionError" in says("train", "n-harpg", "--env", f"{tmp_path / 'raises.py'}:make")
    assert "there is no file" in says("train", "nothing.py:agent")
    (tmp_path / "map.txt").write_text("..G\n.x.\n")
    assert "line 2, column 2" in says("train", "n-harpg", "--env", f"gridworld:{tmp_path / 'map.txt'}")
    (tmp_path / "broken.py").write_text("agent = 3\n")
    assert "not an agent" in says("train", f"{tmp_path / 'broken.py'}:agent")
    pgrl("train", "n-pg", "--env-steps", 100, "--seeds", 1, "--out", tmp_path / "run")
    assert "pgrl resume" in says("train", "n-pg", "--env-steps", 100, "--seeds", 1, "--out", tmp_path / "run")


def test_a_world_that_returns_nan_stops_with_its_last_state_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "world.py").write_text(OUTSIDE_ENV)
    out = tmp_path / "run"
    error = sentence(
        capsys,
        "train",
        "n-pg",
        "--env",
        f"{tmp_path / 'world.py'}:poisoned",
        "--seeds",
        3,
        "--env-steps",
        100_000,
        "--out",
        out,
        code=5,
    )
    assert "non-finite reward with seed" in error
    assert "step" in error
    assert "action" in error
    assert list((out / "checkpoints").iterdir())
    steps = [row["step"] for row in rows(out)]
    assert steps == sorted(set(steps))


def test_damaged_checkpoints_are_refused_and_the_one_before_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pgrl("train", "n-pg", "--env-steps", 3000, "--seeds", 2, "--out", tmp_path / "run")
    *_, before, last = sorted((tmp_path / "run" / "checkpoints").iterdir())
    data = bytearray((last / "tensors.safetensors").read_bytes())
    data[-3] ^= 1
    (last / "tensors.safetensors").write_bytes(data)
    error = sentence(capsys, "resume", tmp_path / "run", code=3)
    assert before.name in error
    pgrl("resume", tmp_path / "run", "--checkpoint", before)
    pgrl("eval", tmp_path / "run", "--episodes", 2)


def test_list_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    pgrl("list")
    out = capsys.readouterr().out
    assert "n-pg-igt" in out
    assert "HalfCheetah-v5" in out
    pgrl("--help")
    assert "check-env" in capsys.readouterr().out
    pgrl("--version")
    for verb in ("train", "resume", "eval", "curves", "snr", "check", "check-env", "list", "doctor"):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        assert verb in capsys.readouterr().out
