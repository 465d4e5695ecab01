"""--reward-command: every fault of a program gives each molecule one status and one sentence, and the next call works."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from experiments.cli.errors import UserError
from experiments.oracle.make import make_oracle
from experiments.oracle.runner import Runner
from experiments.oracle.settings import OracleSettings
from experiments.oracle.spec import command_spec

COMMANDS = Path(__file__).with_name("commands.py")


def runner(command: str, **settings: object) -> Runner:
    chosen = OracleSettings(**{"reward_command": command, "reward_cache": "none", "reward_timeout": 20.0, **settings})  # type: ignore[arg-type]
    return make_oracle("command", chosen)


def program(name: str, **settings: object) -> Runner:
    return runner(f"{sys.executable} {COMMANDS} {name}", **settings)


@pytest.mark.parametrize(
    ("name", "statuses", "said"),
    [
        ("dies", "error error error", "the command ended with exit code 3 after 0 of 1 lines"),
        ("ends_after_each", "ok ok ok", ""),
        ("killed", "ok error ok", "the command was killed by SIGKILL after 0 of 1 lines"),
        ("hangs", "ok timeout ok", "no answer within 0.5 s: a command must flush each line, and go on reading"),
        ("never_flushes", "timeout timeout timeout", "must flush each line"),
        ("two_lines", "error error error", "the command printed '7' beyond 1 lines for 1 molecules"),
        ("garbage", "error error error", "the command printed 'score: \\x1b[1m5', expected a finite number"),
        ("empty", "invalid invalid invalid", "the command printed '', expected a finite number"),
        ("nan", "invalid invalid invalid", "the command printed 'nan', expected a finite number"),
        ("says_error", "ok error ok", "the command said error: no pose"),
        ("no_line_end", "error error error", "a line of more than 1,048,576 characters"),
        ("prints_at_start", "error error error", "the command printed 'Welcome', expected a finite number"),
        ("two_flushes", "error error error", "the command printed '7' beyond 1 lines for 1 molecules"),
        ("noisy", "ok ok ok", ""),
    ],
)
def test_a_fault_is_a_status_and_a_sentence(name: str, statuses: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    limit = 0.5 if "timeout" in statuses else 20.0
    with program(name, reward_timeout=limit) as oracle:
        scored = [oracle([smiles])[0] for smiles in ("C", "CN", "CCC")]
    assert [s.status for s in scored] == statuses.split()
    assert all(said in s.message for s in scored if s.status != "ok")
    if name != "ends_after_each":
        assert all(s.value == n for s, n in zip(scored, (1, 2, 3), strict=True) if s.status == "ok")


def test_a_command_is_kept_running() -> None:
    with program("says_pid") as oracle:
        assert len({oracle([smiles])[0].value for smiles in ("C", "CC", "CCC")}) == 1


def test_many_molecules_in_one_call() -> None:
    smiles = ["C" * (1 + i % 60) + "N" * (i // 60) for i in range(6000)]  # more than a pipe holds, there and back
    with program("good", reward_batch=len(smiles)) as oracle:
        assert [s.value for s in oracle(smiles)] == [len(s) for s in smiles]
        assert oracle.counts.asked == 6000


def test_molecules_that_fail_one_by_one_are_not_asked_again() -> None:
    with program("says_error", reward_batch=2) as oracle:
        assert [s.status for s in oracle(["CN", "CCN"])] == ["error", "error"]
        assert oracle.counts.asked == 2


def test_a_program_of_the_shell() -> None:
    with runner("""sh -c 'while read s; do echo ${#s}; done'""") as oracle:
        assert [s.value for s in oracle(["C", "CC"])] == [1, 2]


def test_a_command_ends_with_its_runner() -> None:
    oracle = program("says_pid")
    pid = int(oracle(["C"])[0].value)
    oracle.close()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.02)
    raise AssertionError


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nowhere-at-all --x", "the command nowhere-at-all cannot be started: No such file"),
        ("/etc/passwd", "cannot be started: Permission denied"),
        ("'prog", "cannot be split into words: No closing quotation"),
        (" ", "--reward-command is empty"),
        ("", "give the program with --reward-command"),
    ],
)
def test_a_command_that_is_none(command: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as failed:
        runner(command)
    assert failed.value.exit_code == 2


def test_the_key_of_a_command_follows_its_files(tmp_path: Path) -> None:
    shutil.copy(COMMANDS, tmp_path / "prog.py")
    command = f"{sys.executable} {tmp_path / 'prog.py'}"
    first = command_spec(command).key
    assert command_spec(command).key == first
    assert command_spec(command, "2").key != first
    assert command_spec(f"{command} good").key != first
    os.utime(tmp_path / "prog.py", (1, 1))
    assert command_spec(command).key == first
    (tmp_path / "prog.py").write_text("other")
    assert command_spec(command).key != first
