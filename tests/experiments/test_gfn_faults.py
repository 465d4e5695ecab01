"""Objectives, environments and rewards of users that fail while a GFlowNet trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.run.log import read_metrics
from tests.experiments.test_faults import HEAD, RAISES, fails, run, saved

OBJECTIVE = (
    HEAD
    + """
@dataclass(frozen=True)
class objective:
    uses: ClassVar[frozenset] = frozenset({{"log_z"}})
    calls: ClassVar[list] = []

    def loss(self, flows):
        self.calls.append(1)
        delta = flows.log_z[:, None] + flows.log_pf.sum(0) - flows.log_reward - flows.log_pb.sum(0)
        out = flows.mean(delta**2)
        if len(self.calls) == 8:
            {loss}
        return out

    def log_z(self, flows):
        out = flows.log_z
        if len(self.calls) == 8:
            {log_z}
        return out
"""
)
LOSSES = [*RAISES, "self.absent", "flows.log_pf + torch.ones(77)"]
LOSSES += [f"out = {x}" for x in ("None", "{}", "'text'", "0.5", "out.sum()", "out[:1]", "out.detach()", "delta", "(out, out)")]
LOG_ZS = ["raise ValueError('boom')", "sys.exit(0)", "out = None", "out = 1.0", "out = out[:1]", "out = 'text'"]
GRID = ["hypergrid", "--ndim", 2, "--height", 8, "--batch-size", 8, "--log-rows", 6, "--quiet", "--device", "cpu"]
NET = ["--hidden", 8]


def grid(*more: object, net: bool = True) -> list[object]:
    return ["train", *GRID, *(NET if net else []), "--states", 160, "--evaluations", 4, *more]


def rows(out: Path) -> list[dict[str, object]]:
    """Without the calls of the reward, of which the failed iteration made some."""
    return [{tag: x for tag, x in row.items() if not tag.startswith("oracle/")} for row in read_metrics(out, timing=False)]


@pytest.mark.parametrize(("part", "fault"), [*(("loss", x) for x in LOSSES), *(("log_z", x) for x in LOG_ZS)])
def test_an_objective_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, fault: str) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "run"
    mine.write_text(OBJECTIVE.format(**{"loss": "pass", "log_z": "pass", part: fault}))
    error = fails(capsys, 5, "gflownet", *grid("--objective", f"{mine}:objective", "--seeds", 2, "--out", out))
    assert "objective" in error
    assert "iteration 7" in error
    assert saved(out)["state/adam/steps"].tolist() == [7, 7]  # the last good iteration, none half done


REWARD = (
    HEAD
    + """
import os, signal, time
from pathlib import Path
calls = []

def reward(cells):
    calls.append(len(cells))
    out = 1.0 + cells.sum(1).double()
    if {when}:
        {fault}
    return out
"""
)
REWARDS = [
    *RAISES,
    *(f"out = {x}" for x in ("None", "'text'", "{}", "out[:2]", "out * 0", "-out", "out / 0", "out * np.nan", "1.0")),
]


def outside_reward(path: Path, when: str, fault: str) -> Path:
    path.write_text(REWARD.format(when=when, fault=fault))
    return path


@pytest.mark.parametrize("fault", REWARDS)
def test_a_reward_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    file, out = outside_reward(tmp_path / "r.py", "len(calls) > 9", fault), tmp_path / "run"
    error = fails(capsys, 6, "gflownet", *grid("--objective", "tb", "--reward", f"{file}:reward", "--out", out))
    assert "continue with: gflownet resume" in error
    assert int(saved(out)["state/adam/steps"].min()) > 0
    at_once = outside_reward(tmp_path / "r.py", "True", fault)
    fails(capsys, 6, "gflownet", *grid("--objective", "tb", "--reward", f"{at_once}:reward", "--out", tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("method", ["tb", "ppo", "mcmc", "fm"])
def test_a_reward_that_fails_in_an_evaluation_costs_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    flag = tmp_path / "flag"
    when = f"Path({str(flag)!r}).exists() and calls.count(max(calls)) == 3 and len(cells) > 8 or len(calls) > 99"
    if method == "mcmc":  # without a policy its evaluations call no reward
        when = f"Path({str(flag)!r}).exists() and len(calls) == 9"
    file = outside_reward(tmp_path / "r.py", when, "raise RuntimeError('in an evaluation')")
    replay = ["--replay", "prioritised", "--capacity", 24] if method == "tb" else []
    settings = ["--objective", method, "--metrics", "sampled", "--reward", f"{file}:reward", *replay]
    arguments = grid(*settings, net=method != "mcmc")
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run("gflownet", *arguments, "--out", whole) == 0
    flag.touch()
    error = fails(capsys, 6, "gflownet", *arguments, "--out", part)
    assert "in an evaluation" in error
    flag.unlink()
    assert run("gflownet", "resume", part, "--quiet") == 0
    assert rows(part) == rows(whole)
    for name, x in saved(whole).items():
        assert torch.equal(x, saved(part)[name]), name


def test_a_reward_that_fails_in_the_last_evaluation_leaves_a_run_to_finish(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All objects are visited, and the last row is due: the same command with --resume auto writes it."""
    flag, part = tmp_path / "flag", tmp_path / "part"
    flag.touch()
    when = f"Path({str(flag)!r}).exists() and len(cells) > 8 and calls.count(8) >= 20"
    file = outside_reward(tmp_path / "r.py", when, "raise RuntimeError('in an evaluation')")
    command = grid("--objective", "tb", "--metrics", "sampled", "--reward", f"{file}:reward", "--resume", "auto", "--out", part)
    fails(capsys, 6, "gflownet", *command)
    before = rows(part)
    assert before[-1]["states"] < 160
    flag.unlink()
    assert run("gflownet", *command) == 0
    assert rows(part)[:-1] == before
    assert rows(part)[-1]["states"] == 160


def test_a_reward_of_molecules_that_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit")
    file = tmp_path / "r.py"
    late = "len(calls) < 20 else exit()"
    file.write_text(f"calls = []\ndef f(smiles):\n    calls.append(1)\n    return [len(calls)] * len(smiles) if {late}\n")
    few = ["--objective", "tb", "--states", 640, "--batch-size", 8, "--evaluations", 1, "--quiet", "--device", "cpu"]
    few += ["--reward-cache", "none", "--reward-workers", 1]
    error = fails(capsys, 6, "gflownet", "train", "molecules", "--reward", f"{file}:f", *few, "--out", tmp_path / "run")
    assert "called sys.exit" in error
    assert saved(tmp_path / "run")


STAIRS = (
    HEAD
    + """
from envs.core import Parents

class Stairs:
    backend = "torch"
    horizon = 6
    masked = True
    observation_space = gymnasium.spaces.MultiDiscrete([7])
    action_space = gymnasium.spaces.Discrete(3)
    calls = 0

    def reset(self, n, rng):
        return self.state_at(torch.zeros(n, 1, dtype=torch.int64), torch.zeros(n, dtype=torch.bool))

    def state_at(self, obs, terminated):
        left = 5 - obs[:, 0]
        mask = torch.stack([left >= 1, left >= 2, left >= 0], 1)
        return State(obs, torch.zeros(len(obs)), terminated, torch.zeros_like(terminated), None, mask)

    def step(self, state, action, rng):
        Stairs.calls += 1
        stays = state.terminated | (action == 2)
        out = self.state_at(torch.where(stays[:, None], state.obs, state.obs + action[:, None] + 1), stays)
        if Stairs.calls > {calls}:
            {step}
        return out

    def parents(self, obs, terminated):
        edges = []
        for i, (x, ended) in enumerate(zip(obs[:, 0].tolist(), terminated.tolist())):
            edges += [(i, x, 2)] if ended else [(i, x - a - 1, a) for a in (0, 1) if x > a]
        child, before, action = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T
        out = Parents(child, before[:, None], action)
        if Stairs.calls > {calls}:
            {parents}
        return out

    def log_reward(self, obs):
        out = (1.0 + obs[:, 0].double()).log()
        if Stairs.calls > {calls}:
            {log_reward}
        return out

    def describe(self, obs):
        return [str(x) for x in obs[:, 0].tolist()]

def make():
    return Stairs()
"""
)
DAG_FAULTS = [
    *(("step", x) for x in (*RAISES, "out = None", "out = 'text'", "out = out.obs")),
    *(
        ("parents", x)
        for x in (
            *RAISES,
            "out = None",
            "out = Parents(child[:1], before, action)",
            "out = Parents(child + 99, before[:, None], action)",
        )
    ),
    *(
        ("log_reward", x)
        for x in (*RAISES, "out = None", "out = out[:1]", "out = out * np.nan", "out = out.tolist()", "out = out.sum()")
    ),
]


@pytest.mark.parametrize(("part", "fault"), DAG_FAULTS)
def test_an_environment_of_a_gflownet_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, fault: str
) -> None:
    file, none = tmp_path / "stairs.py", {"step": "pass", "parents": "pass", "log_reward": "pass"}
    few = [
        "--objective",
        "fm",
        "--states",
        640,
        "--batch-size",
        8,
        "--hidden",
        8,
        "--evaluations",
        2,
        "--quiet",
        "--device",
        "cpu",
    ]
    arguments = ["train", f"{file}:make", *few, "--metrics", "sampled", "--out"]
    file.write_text(STAIRS.format(calls=150, **{**none, part: fault}))
    error = fails(capsys, 5, "gflownet", *arguments, tmp_path / "run")
    assert "the environment stairs:make" in error
    assert part != "step" or (" at step " in error and "with seed 0" in error)
    assert int(saved(tmp_path / "run")["state/adam/steps"].min()) > 0
    file.write_text(STAIRS.format(calls=-1, **{**none, part: fault}))
    assert "the environment stairs:make" in fails(capsys, 5, "gflownet", *arguments, tmp_path / "at-once")


def test_active_learning_keeps_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "run"
    mine.write_text(OBJECTIVE.format(loss="sys.exit(0)", log_z="pass"))
    few = ["--proxy", "oracle", "--rounds", 3, "--initial", 10, "--queries", 4, "--states", 40, "--seeds", 1, "--hidden", 8]
    arguments = ["active", "hypergrid", "--objective", f"{mine}:objective", "--ndim", 2, "--height", 8, "--batch-size", 8]
    error = fails(capsys, 5, "gflownet", *arguments, *few, "--quiet", "--out", out)
    assert "objective" in error
    assert "called sys.exit(0)" in error
    assert "round 2" in error
    assert saved(out)["known"].shape == (1, 14)
    mine.write_text(OBJECTIVE.format(loss="pass", log_z="pass"))
    assert run("gflownet", "resume", out, "--quiet", "--trust") == 0
    assert saved(out)["known"].shape == (1, 22)
