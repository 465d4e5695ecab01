"""Code of users fails, the run does not: a named error, its exit code, and a checkpoint of the last good iteration.

Faults are planted at once (the check at the start finds them) and after some hundred calls (training does).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import experiments.cli.gflownet
import experiments.cli.pgrl
from experiments.run import checkpoint as checkpoints
from experiments.run.log import read_metrics
from experiments.run.run import Run

HEAD = """
import sys
from dataclasses import dataclass
from typing import ClassVar, NamedTuple
import gymnasium
import numpy as np
import torch
from envs.core import State
"""
BATCHED = (
    HEAD
    + """
class World:
    backend = {backend!r}
    horizon = 5
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    calls = 0

    def reset(self, n, rng):
        made = State(torch.ones(n, 2), torch.zeros(n), torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool))
        return self.faulty(self.cast(made), {reset!r})

    def step(self, state, action, rng):
        World.calls += 1
        x = torch.as_tensor(state.obs) * 0.9
        flags = torch.as_tensor(state.terminated), torch.as_tensor(state.truncated)
        return self.faulty(self.cast(State(x, x[:, 0], *flags)), {step!r})

    def cast(self, s):
        if self.backend == "torch":
            return s
        return State(*(x.numpy() for x in (s.obs, s.reward, s.terminated, s.truncated)))

    def faulty(self, s, fault):
        if World.calls < {calls} or not fault:
            return s
        parts = dict(obs=s.obs, reward=s.reward, terminated=s.terminated, truncated=s.truncated)
        exec(fault, globals() | {{"parts": parts}})
        return parts["all"] if "all" in parts else State(**parts)

def make():
    return World()
"""
)
RAISES = ["raise ValueError('boom')", "sys.exit()", "sys.exit('over')", "assert False", "{}['key']", "raise BaseException"]
ANY = [f"parts['all'] = {x}" for x in ("None", "'text'", "3", "parts", "tuple(parts.values())")]
OBS = [
    f"parts['obs'] = {x}" for x in ("None", "'text'", "[1, 2]", "parts['obs'][:, :1]", "parts['obs'][:1]", "parts['reward']")
]
OBS += ["parts['obs'] = parts['obs'] * np.nan", "parts['obs'] = parts['obs'] * np.inf"]
REWARD = [
    f"parts['reward'] = {x}"
    for x in ("None", "'text'", "0.5", "parts['obs']", "parts['reward'][:1]", "parts['reward'] * np.inf")
]
FLAGS = [f"parts['terminated'] = {x}" for x in ("None", "False", "parts['reward']", "parts['obs'] > 9", "[False]")]
FLAGS += [f"parts['truncated'] = {x}" for x in ("None", "'no'", "parts['reward']", "parts['obs'] > 9")]
STEPS = [*RAISES, *ANY, *OBS, *REWARD, *FLAGS]
EARLY = ["parts['reward'] = parts['reward'] > 0", "parts['obs'] = np.asarray(parts['obs']).astype('float64')"]

GYMNASIUM = (
    HEAD
    + """
class World(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    calls = 0

    def __init__(self):
        self.t = 0
        {init}

    def reset(self, seed=None, options=None):
        self.t = 0
        out = np.ones(2, np.float32), {{}}
        if World.calls >= {calls}:
            {reset}
        return out

    def step(self, action):
        World.calls += 1
        self.t += 1
        obs, reward, terminated, truncated, info = np.ones(2, np.float32), 1.0, False, self.t > 4, {{}}
        out = None
        if World.calls >= {calls}:
            {step}
        return out or (obs, reward, terminated, truncated, info)

    def close(self):
        {close}

def make():
    return World()
"""
)
SINGLE = [
    *RAISES,
    *(f"obs = {x}" for x in ("None", "'text'", "np.ones(3)", "np.ones((1, 2))", "np.array(['a', 'b'])", "obs * np.nan")),
    *(f"reward = {x}" for x in ("None", "'1.0'", "np.nan", "-np.inf", "np.ones(1)", "[1.0]", "{}")),
    *(f"terminated = {x}" for x in ("None", "'False'", "[]", "np.zeros(2, bool)", "2.5")),
    *(f"truncated = {x}" for x in ("None", "{}", "obs")),
    *("info = None", "out = (obs, reward, terminated, info)", "out = 7", "out = (obs, reward, terminated, truncated, info, 1)"),
]
LATE = 120


def run(program: str, *arguments: object) -> int:
    main = {"pgrl": experiments.cli.pgrl.main, "gflownet": experiments.cli.gflownet.main}[program]
    try:
        main([str(x) for x in arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def fails(capsys: pytest.CaptureFixture[str], code: int, program: str, *arguments: object) -> str:
    capsys.readouterr()
    assert run(program, *arguments) == code, capsys.readouterr().err
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()[-1]) > 20
    return error


def saved(out: Path) -> dict[str, torch.Tensor]:
    tensors, _ = checkpoints.load_latest(out / "checkpoints")
    for name, x in tensors.items():
        failed = name == "scored/values"  # molecules that failed have no number
        assert failed or not x.is_floating_point() or not torch.isnan(x).any(), name
    return tensors


def train(env: Path, out: Path, *more: object) -> list[object]:
    few = ["--seeds", 2, "--env-steps", 600, "--horizon", 5, "--evaluations", 1, "--log-rows", 4, "--quiet", "--device", "cpu"]
    return ["train", "n-pg", "--env", f"{env}:make", "--step-size", 0.01, *few, "--out", out, *more]


def batched(path: Path, *, backend: str = "numpy", step: str = "", reset: str = "", calls: int = 0) -> Path:
    path.write_text(BATCHED.format(backend=backend, step=step, reset=reset, calls=calls))
    return path


def single(path: Path, *, calls: int = 0, **faults: str) -> Path:
    parts = {name: faults.get(name, "pass") for name in ("init", "reset", "step", "close")}
    path.write_text(GYMNASIUM.format(calls=calls, **parts))
    return path


@pytest.mark.parametrize("fault", STEPS[::2])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_batched_environment_that_fails_while_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, fault: str
) -> None:
    env, out = batched(tmp_path / "world.py", backend=backend, step=fault, calls=LATE), tmp_path / "run"
    error = fails(capsys, 5, "pgrl", *train(env, out))
    assert "the environment world:make" in error
    assert " at step " in error
    assert "after action" in error
    assert "seed" in error or "nan" not in fault
    assert int(saved(out)["env_steps"].min()) > 0
    assert "continue with: pgrl resume" in error


@pytest.mark.parametrize("fault", [*STEPS[1::2], *EARLY])
def test_a_batched_environment_that_fails_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    finite = "nan" in fault or "inf" in fault  # found in training, where the step is named
    for part in ("step",) if finite else ("step", "reset"):
        backend = "torch" if part == "step" and "float64" not in fault else "numpy"
        env = batched(tmp_path / "world.py", backend=backend, **{part: fault})
        error = fails(capsys, 5, "pgrl", *train(env, tmp_path / part))
        assert "the environment world:make" in error
        assert finite or not (tmp_path / part).exists()


@pytest.mark.parametrize("fault", SINGLE)
def test_a_gymnasium_environment_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    out = tmp_path / "run"
    error = fails(capsys, 5, "pgrl", *train(single(tmp_path / "world.py", step=fault, calls=LATE), out))
    assert "the environment world:make" in error
    assert "with seed" in error
    assert " at step " in error
    assert "after action" in error
    assert int(saved(out)["env_steps"].min()) > 0
    fails(capsys, 5, "pgrl", *train(single(tmp_path / "world.py", step=fault), tmp_path / "at-once"))


@pytest.mark.parametrize("fault", [*RAISES, "out = None", "out = np.ones(2)", "out = np.ones(3), {}", "out = np.ones(2), None"])
def test_a_gymnasium_environment_that_fails_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    error = fails(capsys, 5, "pgrl", *train(single(tmp_path / "world.py", reset=fault, calls=LATE), tmp_path / "run"))
    assert "at reset" in error
    assert saved(tmp_path / "run")
    fails(capsys, 5, "pgrl", *train(single(tmp_path / "world.py", reset=fault), tmp_path / "at-once"))


@pytest.mark.parametrize("fault", RAISES)
def test_environments_that_cannot_be_made_or_closed_or_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    for part in ("init", "close"):
        error = fails(capsys, 2, "pgrl", *train(single(tmp_path / "world.py", **{part: fault}), tmp_path / "run"))
        assert "could not make an environment" in error
    (tmp_path / "broken.py").write_text(f"import sys\n{fault}\n")
    assert "could not be loaded" in fails(capsys, 2, "pgrl", *train(tmp_path / "broken.py", tmp_path / "run"))
    assert "could not be loaded" in fails(capsys, 2, "gflownet", "train", f"{tmp_path / 'broken.py'}:make", "--objective", "tb")


def test_an_environment_that_ignores_its_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = single(tmp_path / "world.py", step="obs = np.random.rand(2).astype(np.float32)")
    assert "the same keys and actions give the same states" in fails(capsys, 5, "pgrl", *train(env, tmp_path / "run"))


def test_a_slow_environment_is_checked_by_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from envs.check import check_briefly
    from experiments.pg.build import make_env

    env = batched(tmp_path / "world.py", step="import time; time.sleep(0.05)")
    assert not check_briefly(make_env(f"{env}:make"), seconds=0.1)
    assert check_briefly(make_env(f"{batched(tmp_path / 'fast.py')}:make"))


AGENT = (
    HEAD
    + """
class S(NamedTuple):
    theta: torch.Tensor
    d: torch.Tensor
    t: int

@dataclass(frozen=True)
class agent:
    unbiased: ClassVar[bool] = True
    order: ClassVar[None] = None

    def init(self, theta):
        out = S(theta, torch.zeros_like(theta), 0)
        {init}
        return out

    def step(self, state, world):
        (tau,) = world.sample(state.theta)
        d = world.gradient(state.theta, tau)
        theta, t, metrics, out = state.theta + 0.01 * d, state.t + 1, {{}}, None
        if state.t == 7:
            {step}
        return out or (S(theta, d, t), metrics)
"""
)
AGENT_STEPS = [
    *RAISES,
    "self.absent",
    "d = world.gradient(theta[:1], tau)",
    "world.sample(theta[:, :1])",
    *(f"theta = {x}" for x in ("None", "theta[:1]", "theta[0]", "theta.float()", "'text'", "theta.tolist()")),
    *(f"d = {x}" for x in ("None", "d[:, :1]", "d.long()", "0.0")),
    *(f"t = {x}" for x in ("None", "'8'", "torch.ones(2)")),
    *(f"metrics = {x}" for x in ("None", "[]", "{'a': 'text'}", "{'a': torch.ones(3)}", "{3: 1.0}", "{'a': None}")),
    *("return None", "return S(theta, d, t)", "return {}, {}", "return (theta, d, t), {}"),
]
INITS = [*RAISES, "out = None", "out = {}", "out = theta", "out = S(theta, None, 0)", "out = S(theta[:1], theta, 0)"]
INITS += ["out = S(theta, theta[:, :1], 0)", "out = S(theta * np.nan, theta, 0)", "out = S(theta, theta, 'text')"]


def outside_agent(path: Path, **faults: str) -> Path:
    path.write_text(AGENT.format(**{"init": "pass", "step": "pass", **faults}))
    return path


def train_agent(agent: Path, out: Path, *more: object) -> list[object]:
    few = ["--seeds", 2, "--env-steps", 2000, "--evaluations", 1, "--quiet", "--device", "cpu"]
    return ["train", f"{agent}:agent", "--env", "gridworld", "--horizon", 20, *few, "--out", out, *more]


@pytest.mark.parametrize("fault", AGENT_STEPS)
def test_an_agent_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    out = tmp_path / "run"
    error = fails(capsys, 5, "pgrl", *train_agent(outside_agent(tmp_path / "mine.py", step=fault), out))
    assert "agent" in error
    assert "iteration 7" in error
    assert int(saved(out)["env_steps"].min()) > 0


@pytest.mark.parametrize("fault", INITS)
def test_an_agent_that_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    error = fails(capsys, 5, "pgrl", *train_agent(outside_agent(tmp_path / "mine.py", init=fault), tmp_path / "run"))
    assert "before the first iteration" in error
    assert not (tmp_path / "run").exists()


def test_an_update_that_is_not_finite_is_skipped_for_its_seed_alone(tmp_path: Path) -> None:
    few = ["--log-rows", 200, "--env-steps", 400]
    assert run("pgrl", *train_agent(outside_agent(tmp_path / "good.py"), tmp_path / "good", *few)) == 0
    bad = outside_agent(tmp_path / "bad.py", step="theta = torch.where(torch.tensor([[True], [False]]), theta, torch.nan)")
    assert run("pgrl", *train_agent(bad, tmp_path / "bad", *few)) == 0
    good, rows = read_metrics(tmp_path / "good", timing=False), read_metrics(tmp_path / "bad", timing=False)
    assert rows[-1]["train/skipped"] == [0, 1]
    assert good[-1]["train/skipped"] == [0, 0]
    assert [row["eval/J"][0] for row in rows][:20] == [row["eval/J"][0] for row in good][:20]
    at = {row["iteration"]: row for row in rows}
    assert at[8]["eval/J"][1] == at[7]["eval/J"][1]  # after the skipped update
    assert at[8]["env_steps"][1] > at[7]["env_steps"][1]
    assert at[9]["eval/J"][1] != at[8]["eval/J"][1]
    saved(tmp_path / "bad")
    (dump,) = sorted((tmp_path / "bad" / "faults").iterdir())
    batch = load_file(dump)
    assert dump.name == "000000007.safetensors"
    assert batch["seed"].tolist() == [1]
    assert batch["new/theta"].isnan().all()
    assert {"theta", "0/obs", "0/action", "0/reward", "0/mask"} <= set(batch)


def test_too_many_updates_that_are_not_finite_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = tmp_path / "mine.py"
    agent.write_text(AGENT.format(init="pass", step="d = d / 0 * 0").replace("state.t == 7", "state.t > 6"))
    out = tmp_path / "run"
    error = fails(capsys, 5, "pgrl", *train_agent(agent, out, "--max-faults", 4))
    assert "4 updates of seed 0 in a row were skipped" in error
    assert "--step-size" in error
    saved(out)
    _, meta = checkpoints.load_latest(out / "checkpoints")
    assert meta["skipped"] == meta["failing"] == [4, 4]
    assert len(list((out / "faults").iterdir())) == 3


def test_a_seed_that_is_done_does_not_stop_the_others(tmp_path: Path) -> None:
    """Seed 1 has used its steps, and its last updates were skipped."""
    out = tmp_path / "run"
    assert run("pgrl", *train_agent(outside_agent(tmp_path / "mine.py"), out, "--max-faults", 2)) == 0
    opened = Run.open(out)
    first, *_ = checkpoints.saved(opened.checkpoints)
    tensors, meta = checkpoints.load(first)
    tensors["env_steps"][1] = 2000
    checkpoints.save(first, tensors, {**meta, "failing": [0, 2]}, keep=9)
    assert run("pgrl", "resume", out, "--checkpoint", first.name, "--quiet") == 0
