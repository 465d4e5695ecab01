"""A run that was stopped or killed goes on to the same bytes: every objective and baseline, replay, search and heads on."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.gflownet import main
from experiments.gfn import train as gfn
from experiments.run.log import read_metrics
from gflownet.registry import register

GRID = ["--ndim", 2, "--height", 8, "--states", 144, "--batch-size", 4, "--seeds", 2, "--window", 50]
FEW = ["--evaluations", 4, "--log-rows", 8, "--checkpoints", 6, "--quiet"]
ALL_ON = ["--replay", "prioritised", "--capacity", 20, "--epsilon", 0.1, "--epsilon-until", 0.5, "--final-rate", 0.1]
KNOBS: dict[str, list[Any]] = {
    "tb": ["--backward", "tlm"],
    "db": ["--backward", "learned", "--heads", 3],
    "fm": ["--search-rounds", 1],
    "ppo": ["--updates", 2, "--minibatch", 4],
}


class Stopped(Exception):
    """In place of a power cut."""


pytestmark = pytest.mark.usefixtures("one_thread")


def command(name: str) -> list[str]:
    entry = register()[name]
    net = [] if name in ("mcmc", "uniform") else ["--hidden", 8]
    knobs = [*(ALL_ON if entry.objective else []), *net, *KNOBS.get(name, [])]
    return [str(a) for a in ["train", "hypergrid", "--objective", name, *GRID, *FEW, *knobs]]


def same(cut: Path, whole: Path) -> None:
    assert read_metrics(cut, timing=False) == read_metrics(whole, timing=False)
    last = sorted((whole / "checkpoints").iterdir())[-1]
    for file in ("tensors.safetensors",):
        assert (last / file).read_bytes() == (cut / "checkpoints" / last.name / file).read_bytes()


@pytest.mark.parametrize("name", sorted(register()))
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main([*command(name), "--out", str(tmp_path / "whole")])
    step = gfn._step

    def dying(method: Any, state: Any, problem: Any, t: int) -> Any:
        if t == 11:
            raise Stopped
        return step(method, state, problem, t)

    with monkeypatch.context() as patch:
        patch.setattr(gfn, "_step", dying)
        with pytest.raises(Stopped):
            main([*command(name), "--out", str(tmp_path / "cut")])
    assert len(read_metrics(tmp_path / "cut")) < len(read_metrics(tmp_path / "whole"))
    main(["resume", str(tmp_path / "cut"), "--quiet"])
    same(tmp_path / "cut", tmp_path / "whole")


def test_kill_9(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, torch, experiments.gfn.train as gfn\n"
        "torch.set_num_threads(1)\n"
        "step = gfn._step\n"
        "def dying(method, state, problem, t):\n"
        "    if t == 11: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(method, state, problem, t)\n"
        "gfn._step = dying\n"
        "from experiments.cli.gflownet import main\nmain(sys.argv[1:])\n"
    )
    main([*command("fm"), "--out", str(tmp_path / "whole")])
    killed = subprocess.run([sys.executable, "-c", script, *command("fm"), "--out", str(tmp_path / "cut")])
    assert killed.returncode == -signal.SIGKILL
    main(["resume", str(tmp_path / "cut"), "--quiet"])
    same(tmp_path / "cut", tmp_path / "whole")


def test_a_seed_alone_is_that_seed_in_company(tmp_path: Path) -> None:
    ends = []
    for out, seeds, seed in (("two", 2, 0), ("one", 1, 1)):
        main([*command("tb"), "--dtype", "float64", "--seeds", str(seeds), "--seed", str(seed), "--out", str(tmp_path / out)])
        ends.append(read_metrics(tmp_path / out)[-1])
    for tag in ("eval/exact_l1", "eval/l1", "train/loss", "eval/modes"):
        assert ends[0][tag][1] == pytest.approx(ends[1][tag][0], rel=1e-6)
