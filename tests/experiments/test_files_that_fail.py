"""Files that cannot be read or written, and a full disk: one sentence and an exit code, from every verb."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.errors import guarded
from tests.experiments.test_numbers_of_flags import SMALL, _ends

LONG = "x" * 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert _ends("gflownet", [*SMALL["gflownet"], f"--out={out}"])[0] == 0
    return out


@pytest.mark.parametrize("verb", ["distribution", "curves", "sample", "fragments"])
def test_an_output_that_cannot_be_written_is_a_sentence(verb: str, run: Path, tmp_path: Path) -> None:
    suffix = {"sample": "smi", "fragments": "json"}.get(verb, "png")
    (tmp_path / f"folder.{suffix}").mkdir()
    (tmp_path / "file").write_text("")
    for name in (f"folder.{suffix}", f"file/x.{suffix}", f"{LONG}.{suffix}", f"/proc/x.{suffix}", "/dev/full", ""):
        words = [] if verb == "fragments" else [str(run)]
        code, said, _ = _ends("gflownet", [verb, *words, f"--out={tmp_path / name if name else ''}"])
        assert code in (1, 2), name
        assert said.startswith("gflownet: "), said
        assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize("name", [LONG, "/proc/self/mem", "/dev/full", f"{LONG}/{LONG}"])
def test_an_input_that_cannot_be_read_is_a_sentence(name: str, run: Path) -> None:
    for tool, *words in (
        ("pgrl", "eval", name),
        ("pgrl", "resume", name),
        ("gflownet", "curves", name, "--out=x.png"),
        ("gflownet", "eval", str(run), f"--checkpoint={name}"),
        ("gflownet", "distribution", name, "--out=x.png"),
        ("pgrl", "train", f"{name}.py:agent"),
        ("pgrl", "train", "n-pg", f"--env=gridworld:{name}/map"),
    ):
        code, said, _ = _ends(tool, words)
        assert code in (1, 2, 3), words
        assert said.startswith(f"{tool}: "), said
        assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    ("tool", "verb"), [("pgrl", "list"), ("gflownet", "list"), ("pgrl", "--help"), ("gflownet", "fragments")]
)
def test_a_full_disk_behind_standard_output_is_a_sentence(tool: str, verb: str) -> None:
    code = f"from experiments.cli.{tool} import main; main(['{verb}'])"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "a.png"), "pgrl: a.png: Permission denied\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "pgrl: could not write: No space left on device\n"),
        (MemoryError("8 GB"), "pgrl: there is not enough memory: 8 GB\n"),
        (MemoryError(), "pgrl: there is not enough memory\n"),
    ],
)
def test_faults_of_the_system_are_a_sentence(fault: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise fault

    with pytest.raises(SystemExit) as stopped:
        guarded(work)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == said
    with pytest.raises(type(fault)):
        guarded(work, debug=True)


def test_closed_standard_output_is_no_fault() -> None:
    for tool in ("pgrl", "gflownet"):
        code = f"from experiments.cli.{tool} import main; main(['list'])"
        words = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert (done.returncode, done.stderr) == (0, "")
