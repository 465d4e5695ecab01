"""Every fault of a user's function gives each molecule one status and one sentence, and the next call works."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli.errors import UserError
from experiments.oracle.make import make_oracle
from experiments.oracle.runner import Runner
from experiments.oracle.settings import OracleSettings

REWARDS = Path(__file__).with_name("rewards.py")
SMILES = ["C", "CC"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(REWARDS, tmp_path / "mine.py")
    return tmp_path


def runner(here: Path, function: str, workers: int = 1, **settings: object) -> Runner:
    chosen = OracleSettings(**{"reward_cache": "none", "reward_timeout": 30.0, **settings})  # type: ignore[arg-type]
    return make_oracle(f"{here / 'mine.py'}:{function}", chosen, workers)


def asked(here: Path) -> list[str]:
    path = here / "asked"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("function", "status", "said"),
    [
        ("nan", "invalid", "gave nan, expected a finite number"),
        ("infinite", "invalid", "gave inf, expected a finite number"),
        ("text", "invalid", "gave '0.5', expected a finite number"),
        ("none", "invalid", "gave None"),
        ("complex_numbers", "invalid", "gave 1j"),
        ("nested", "invalid", "gave [1.0, 2.0]"),
        ("too_many", "error", "returned 2 values, expected a list of 1 number"),
        ("too_few", "error", "returned 0 values, expected a list of 1 number"),
        ("huge", "error", "returned 3,000,000 values, expected"),
        ("endless", "error", "returned 2 values, expected"),
        ("nothing", "error", "returned None, expected a list of 1 number"),
        ("one_number", "error", "returned 1.0, expected a list"),
        ("a_dict", "error", "returned {'C': 1.0}, expected a list"),
        ("raises", "error", "raised ValueError: no licence for this (mine.py, line "),
        ("exits", "error", "called sys.exit(3)"),
        ("interrupted", "error", "raised KeyboardInterrupt"),
        ("leaves", "error", "ended with exit code 7"),
        ("killed", "error", "was killed by SIGKILL, as happens where memory runs out"),
        ("leaves_a_fork", "error", "ended with exit code 7"),
        ("closes", "error", "ended with exit code 1"),
        ("writes_to_pipes", "error", "wrote what is no answer"),
    ],
)
def test_a_fault_is_a_status_and_a_sentence(here: Path, function: str, status: str, said: str) -> None:
    with runner(here, function) as oracle:
        for scored, smiles in zip(oracle(SMILES), SMILES, strict=True):
            assert scored.status == status
            assert said.replace("'C'", f"'{smiles}'") in scored.message
            assert "\n" not in scored.message
            assert scored.value != scored.value
        assert oracle.counts.status == {status: 2}
        assert oracle.counts.asked == 2


@pytest.mark.parametrize("function", ["hangs", "spins", "closes_and_hangs"])
def test_what_hangs_is_ended_in_time(here: Path, function: str) -> None:
    with runner(here, function, reward_timeout=0.3) as oracle:
        begun = time.monotonic()
        (scored,) = oracle(["C"])
        assert time.monotonic() - begun < 3
        if function == "closes_and_hangs":
            assert scored.status == "error"
            assert "closed the pipe" in scored.message
        else:
            assert scored[1:] == ("timeout", "no answer within 0.3 s")


@pytest.mark.parametrize("function", ["prints", "forks", "starts", "numpy_floats"])
def test_what_harms_nothing(here: Path, function: str, capfd: pytest.CaptureFixture[str]) -> None:
    with runner(here, function) as oracle:
        for _ in range(3):
            assert [s.status for s in oracle(SMILES)] == ["ok", "ok"]
    out, err = capfd.readouterr()
    assert out == ""
    assert (err.count("from C"), err.count("from a shell")) == ((2, 2) if function == "prints" else (0, 0))


def test_a_process_that_is_ended_takes_what_it_started_with_it(here: Path) -> None:
    def sleepers() -> int:
        return sum(b"sleep\x003600" in command(pid) for pid in os.listdir("/proc") if pid.isdigit())

    def command(pid: str) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    def become(number: int) -> bool:
        return any(sleepers() == number or time.sleep(0.05) for _ in range(100))  # type: ignore[func-returns-value]

    before = sleepers()
    with runner(here, "starts") as oracle:
        assert oracle(["C"])[0].status == "ok"
        assert become(before + 1)
    assert become(before)


def test_a_batch_that_fails_is_asked_singly(here: Path) -> None:
    with runner(here, "bad_batches", reward_batch=3) as oracle:
        scored = oracle(["C", "N", "CC", "CCC"])
    assert [s.status for s in scored] == ["ok", "error", "ok", "ok"]
    assert sorted(asked(here)) == sorted(["C", "N", "CC", *("C", "N", "CC"), "CCC"])
    assert oracle.counts.asked == 7


def test_retries(here: Path) -> None:
    with runner(here, "raises", reward_retries=2) as oracle:
        assert oracle(["C"])[0].status == "error"
    assert asked(here) == ["C"] * 3
    assert oracle.counts.asked == 3


def test_processes_are_replaced_after_so_many_calls(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runner(here, "says_where", reward_recycle=2) as oracle:  # it took longer to load than it has lived
        assert len({oracle([smiles])[0].value for smiles in ("C", "CC", "CCC")}) == 1
    monkeypatch.setattr("experiments.oracle.host.WORTH", 0)
    with runner(here, "says_where", reward_recycle=2) as oracle:
        pids = [oracle([smiles])[0].value for smiles in ("C", "CC", "CCC", "CCCC", "N")]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_a_process_that_nobody_asks_ends_and_costs_no_molecule(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.oracle.host.IDLE", 0.2)
    with runner(here, "says_where") as oracle:
        first = oracle(["C"])[0].value
        for _ in range(200):
            if not Path(f"/proc/{first:.0f}").exists() or "Z" in Path(f"/proc/{first:.0f}/stat").read_text().split():
                break
            time.sleep(0.02)
        (scored,) = oracle(["CC"])
        assert scored.status == "ok"
        assert scored.value != first
        assert oracle.counts.asked == 2


def test_a_process_ends_with_its_parent_whatever_it_does(here: Path) -> None:
    """Compiled code that holds the interpreter, and a parent that is killed."""
    code = f"""
import os
from experiments.oracle.make import make_oracle
from experiments.oracle.settings import OracleSettings
oracle = make_oracle({str(here / "mine.py")!r} + ":spins", OracleSettings(reward_cache="none"))
oracle.submit(["C"])
print(*[p for p in os.listdir("/proc") if p.isdigit() and parent(p) == os.getpid()], flush=True)
os.kill(os.getpid(), 9)
""".replace("oracle = ", "parent = lambda p: int(open(f'/proc/{p}/stat').read().rpartition(')')[2].split()[1])\noracle = ", 1)
    pids = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert len(pids) == 1
    for _ in range(200):
        path = Path(f"/proc/{pids[0]}/stat")
        if not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    raise AssertionError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "could not be loaded: ModuleNotFoundError"),
        ("1 +", "could not be loaded: SyntaxError"),
        ("import sys; sys.exit(4)", "could not be loaded: SystemExit: 4"),
        ("import os; os._exit(4)", "could not be loaded: its process ended with exit code 4"),
        ("other = 1", "with NAME one of other"),
        ("score = 1", "is 1, expected a function"),
    ],
)
def test_a_reward_that_cannot_be_loaded(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        runner(tmp_path, "score")
    assert "\n" not in str(caught.value)


def test_molecules_under_way_are_left_alone(here: Path) -> None:
    with runner(here, "slow", workers=2) as oracle:
        oracle.submit(["C", "CC"])
        oracle.submit(["CC", "CCC"])
        assert [s.value for s in oracle(["CCC", "C", "CC", "C"])] == [3, 1, 2, 1]
        assert [s.value for s in oracle(["C"])] == [1]
    assert sorted(asked(here)) == ["C", "CC", "CCC"]
    assert oracle.counts.seconds >= 0.15
    assert oracle.counts.idle > 0.05


def test_a_closed_runner_ends_at_once_and_records_nothing(here: Path) -> None:
    oracle = runner(here, "hangs", reward_timeout=0.0)
    oracle.submit(["C", "CC"])
    while not asked(here):
        time.sleep(0.01)
    begun = time.monotonic()
    oracle.close()
    assert time.monotonic() - begun < 1
    assert oracle.counts.status == {}
