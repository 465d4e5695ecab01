"""The same command again: a run killed at any file operation is started or continued by `train --resume auto`."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import gflownet, pgrl
from experiments.run import run as run_module
from experiments.run.checkpoint import saved
from experiments.run.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

LQR = ["train", "n-pg", "--env", "lqr", "--horizon", 20, "--seeds", 1, "--env-steps", 60, "--log-rows", 3, "--checkpoints", 3]
TB = ["train", "hypergrid", "--objective", "tb", "--ndim", 2, "--height", 4, "--states", 48, "--hidden", 4, "--window", 10]
TB += ["--log-rows", 2, "--evaluations", 1, "--checkpoints", 3]
ACTIVE = ["active", "hypergrid", "--objective", "uniform", "--ndim", 2, "--height", 8, "--seeds", 1, "--rounds", 3]
ACTIVE += ["--initial", 10, "--queries", 2, "--states", 32, "--proxy", "oracle"]
AUTO = ["--quiet", "--resume", "auto", "--out"]
COMMANDS: dict[str, tuple[Any, list[Any], int]] = {
    "lqr": (pgrl, LQR, 2),
    "tb": (gflownet, TB, 9),
    "active": (gflownet, ACTIVE, 11),
}
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}


class Killed(BaseException):
    """In place of kill -9."""


class Death:
    """Counts the operations that change files in a folder, and kills at the n-th: from then on no operation takes place.

    A write of bytes or text counts twice, so that half of it may be on the disk.
    """

    def __init__(self) -> None:
        self.folder, self.left = "", 0
        sys.addaudithook(self._hook)  # which stays: an interpreter removes none

    @contextmanager
    def at(self, n: int, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
        write, write_text = os.write, Path.write_text

        def halves(handle: int, data: Any) -> int:
            done = write(handle, data[: len(data) // 2])
            self._count()
            return done + write(handle, data[done:])

        def text_halves(path: Path, text: str) -> int:
            write_text(path, text[: len(text) // 2])
            return write_text(path, text)

        self.folder, self.left = str(folder), n
        with patch.context() as both:
            both.setattr(os, "write", halves)
            both.setattr(Path, "write_text", text_halves)
            try:
                yield
            finally:
                self.folder = ""
                for handle in Path("/proc/self/fd").iterdir():  # which the system does for a process that is gone
                    if handle.exists() and handle.resolve() == folder / "lock":
                        os.close(int(handle.name))

    @property
    def came(self) -> bool:
        return self.left < 0

    def _count(self) -> None:
        self.left -= 1
        if self.came:
            raise Killed

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or (event not in CHANGES and event != "open"):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        path = Path() if event == "os.truncate" else Path(arguments[0])  # a truncated file is a number
        if not path.is_absolute() or path.is_relative_to(self.folder):  # or of shutil.rmtree
            self._count()


@pytest.fixture(scope="module")
def death() -> Death:
    return Death()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "provenance", lambda device: {})  # which asks git
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def train(program: Any, command: list[Any], out: Path) -> None:
    program.main([str(word) for word in [*command, *AUTO, out]])


def contents(out: Path) -> Any:
    last = sorted((out / "checkpoints").iterdir())[-1]
    return read_metrics(out, timing=False), last.name, (last / "tensors.safetensors").read_bytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_file_operation(name: str, tmp_path: Path, death: Death, monkeypatch: pytest.MonkeyPatch) -> None:
    program, command, stride = COMMANDS[name]
    train(program, command, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    n = 0
    while n == 0 or death.came:
        with contextlib.suppress(Killed), death.at(n, out := tmp_path / f"killed-{n}", monkeypatch):
            train(program, command, out)
        train(program, command, out)
        assert contents(out) == whole, n
        n += stride
    assert n > 40, "the operations were counted"


def test_killed_once_more_while_what_was_left_is_removed(tmp_path: Path, death: Death, monkeypatch: pytest.MonkeyPatch) -> None:
    train(pgrl, LQR, tmp_path / "whole")
    whole, begun = contents(tmp_path / "whole"), tmp_path / "begun"
    with pytest.raises(Killed), death.at(21, begun, monkeypatch):
        train(pgrl, LQR, begun)
    assert (begun / "metrics.jsonl").exists()
    assert not saved(begun / "checkpoints")
    for n in range(14):
        shutil.copytree(begun, out := tmp_path / f"killed-{n}")
        with pytest.raises(Killed), death.at(n, out, monkeypatch):
            train(pgrl, LQR, out)
        train(pgrl, LQR, out)
        assert contents(out) == whole, n


def test_killed_before_the_first_iteration_is_continued_by_both_commands(tmp_path: Path) -> None:
    config = ["--out", tmp_path / "run", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.pg.train.measured", lambda *x, **y: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            pgrl.main([str(word) for word in [*LQR, *config]])
    assert [x.name for x in saved(tmp_path / "run" / "checkpoints")] == ["000000000"]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    pgrl.main(["resume", str(tmp_path / "run"), "--quiet"])
    train(pgrl, LQR, tmp_path / "other")
    assert contents(tmp_path / "run") == contents(tmp_path / "other")
