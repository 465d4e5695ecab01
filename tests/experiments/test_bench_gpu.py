"""`make gpu` without a GPU: one sentence; every part runs on the CPU at a tiny scale; sections of other parts are kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit")

from experiments.bench import gpu
from experiments.bench.gpu import PARTS, Clock, Scale, measure, write_section

ROOT = Path(__file__).parents[2]
TINY = Scale(device="cpu", seconds=0.02, batches=(4,), states=400, seeds=(3,), limit=300.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "experiments.bench.gpu", "grid"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr == "gpu: this machine has no CUDA device: run `make gpu` where there is one\n"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("part", ["grid", "molecules", "cli"])
def test_a_part_runs_and_names_the_hardware(part: str, tmp_path: Path) -> None:
    assert measure(part, TINY, tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert f"## {part}\n\n*CPU, torch {torch.__version__}" in text
    assert text.count("Not run yet.") == len(PARTS) - 1
    for row in {"grid": ["| 4-D, H = 8 | fm | 4 | 1 | eager |", "kernels"], "molecules": ["| eager |"], "cli": []}[part]:
        assert row in text
    if part == "cli":
        rows = [text for text in text.splitlines() if text.startswith("| ")][1:]
        assert len(rows) == 7
        assert all(row.rstrip(" |").endswith(("ok", "before the kill")) for row in rows)


def test_a_command_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = gpu.command_row("gflownet", ["train", "nowhere", "--objective", "tb"], tmp_path / "run", Clock(60.0))
    assert "**failed**: gflownet: " in row
    monkeypatch.setitem(gpu.PARTS, "cli", lambda scale, clock: iter([row]))
    assert not measure("cli", TINY, tmp_path / "gpu.md")


def test_what_has_no_time_left_is_not_run(tmp_path: Path) -> None:
    assert "not run: out of time" in gpu.grid_row((4, 8), "tb", 4, "eager", 1, TINY, Clock(0.0))
    assert "not run: out of time" in gpu.command_row("gflownet", ["list"], None, Clock(0.0))


def test_sections_of_other_parts_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    write_section(out, "grid", ["*one GPU*", "", "| a |"])
    write_section(out, "cli", ["*another GPU*"])
    write_section(out, "grid", ["*a third*"])
    text = out.read_text()
    assert "## cli\n\n*another GPU*" in text
    assert "## grid\n\n*a third*" in text
    assert "one GPU" not in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(PARTS)


def test_a_part_that_stops_writes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(scale: Scale, clock: Clock) -> Iterator[str]:
        yield "| measured |"
        raise RuntimeError("")

    monkeypatch.setitem(gpu.PARTS, "grid", stops)
    assert not measure("grid", TINY, tmp_path / "gpu.md")
    assert "| measured |\n\nRuntimeError — **failed**: RuntimeError" in (tmp_path / "gpu.md").read_text()


def test_a_batch_that_does_not_fit_and_a_lack_of_time_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.reason(torch.OutOfMemoryError("CUDA out of memory")) == "out of memory"
    assert gpu.killed_and_resumed(tmp_path / "run", [], Clock(30.0)).count("not run: out of time") == 1
    late = gpu.run([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 1.0)
    assert (late.returncode, late.stdout) == (gpu.TIMED_OUT, "begun\n")
    monkeypatch.setitem(gpu.PARTS, "cli", lambda scale, clock: iter(["60 passed, 1 xfailed", "| out of memory |"]))
    assert measure("cli", TINY, tmp_path / "gpu.md")
