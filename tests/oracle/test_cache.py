"""The file of answers: what runs find there, several processes at once, faults of the file and of the disk."""

import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from experiments.cli.errors import UserError
from experiments.oracle import cache as caches
from experiments.oracle.cache import AnswerCache
from gflownet.rewards.oracle import Scored

OK, INVALID = Scored(0.1 + 0.2), Scored.failed("invalid", "nan")
LATE, FAILED = Scored.failed("timeout", "late"), Scored.failed("error", "no")
ALL = {"C": OK, "CC": INVALID, "CCC": LATE, "CCCC": FAILED}


def same(a: dict[str, Scored], b: dict[str, Scored]) -> bool:
    return {s: (x[1:], "nan" if math.isnan(x.value) else x.value) for s, x in a.items()} == {
        s: (x[1:], "nan" if math.isnan(x.value) else x.value) for s, x in b.items()
    }


def filled(path: Path, run: str = "one") -> None:
    with AnswerCache(path, "key", "name", run) as cache:
        cache.put(ALL.items(), 0.5)


def test_a_run_finds_all_its_answers_and_others_those_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    filled(path)
    for key, run, expected in (("key", "one", ALL), ("key", "two", {"C": OK, "CC": INVALID}), ("other", "one", {})):
        with AnswerCache(path, key, "name", run) as cache:
            assert same(cache.get([*ALL, "N"]), expected)
    with AnswerCache(path, "key", "name", "two") as cache:  # its own fault hides nobody's
        cache.put([("CCC", OK), ("CCCC", LATE)])
        assert same(cache.get([*ALL]), {**ALL, "CCC": OK, "CCCC": LATE})
    with AnswerCache(path, "key", "name", "one") as cache:
        assert same(cache.get([*ALL]), ALL)
    row = sqlite3.connect(path).execute("SELECT smiles, run, value, status, message, seconds FROM answers").fetchone()
    assert row == ("C", "one", 0.1 + 0.2, "ok", "", 0.5)


def test_answers_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with AnswerCache(path, "key") as cache, AnswerCache(path, "key") as other:
        cache.put([("C", OK)])
        assert other.get(["C"]) == {"C": OK}


def test_nothing_is_written_where_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert caches.cache_path("none") is None
    with AnswerCache(None, "key") as cache:
        cache.put(ALL.items())
        assert same(cache.get([*ALL]), ALL)
    assert not list(tmp_path.iterdir())


def test_the_default_makes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    filled(caches.cache_path(caches.CACHE))  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["rewards.sqlite"]


def fill(path: str, start: int, n: int) -> None:
    with AnswerCache(Path(path), "key", "name", str(start)) as cache:
        for i in range(start, start + n):
            cache.put([(str(i), Scored(float(i)))])


def test_processes_share_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    context = multiprocessing.get_context("spawn")
    several = [context.Process(target=fill, args=(str(path), 1000 * i, 1000)) for i in range(2)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    with AnswerCache(path, "key") as cache:
        assert cache.get([str(i) for i in range(2000)]) == {str(i): Scored(float(i)) for i in range(2000)}


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    code = f"""
import os
from pathlib import Path
from experiments.oracle.cache import AnswerCache
from gflownet.rewards.oracle import Scored
cache = AnswerCache(Path({str(path)!r}), "key")
cache.put((str(i), Scored(float(i))) for i in range(1000))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with AnswerCache(path, "key") as cache:
        assert len(cache.get([str(i) for i in range(1000)])) == 1000


def damage(path: Path, text: bytes) -> None:
    path.write_bytes(text)


def other_version(path: Path) -> None:
    filled(path)
    base = sqlite3.connect(path)
    base.execute("PRAGMA user_version = 7")
    base.close()


def other_program(path: Path) -> None:
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE bookmarks (url TEXT)")
    base.commit()
    base.close()


def trigger(path: Path) -> None:
    filled(path)
    base = sqlite3.connect(path)
    base.execute("CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END")
    base.commit()
    base.close()


def broken_page(path: Path) -> None:
    with AnswerCache(path, "key") as cache:
        cache.put((f"C{i}", OK) for i in range(2000))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "said", "code"),
    [
        (lambda path: damage(path, b"smiles,value\n" * 100), "is damaged or no SQLite file", 3),
        (lambda path: damage(path, b"SQLite format 3\0" + b"\xff" * 4000), "is damaged or no SQLite file", 3),
        (broken_page, "is damaged or no SQLite file", 3),
        (other_version, "is a cache of version 7, expected 1: move it away", 3),
        (trigger, "has other tables than ours: move it away", 3),
        (other_program, "is a database of another program: move it away", 3),
        (lambda path: path.mkdir(), "is a folder, expected a file", 2),
        (lambda path: os.mkfifo(path), "is a named pipe, expected a file", 2),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file", 2),
    ],
)
def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path, make: object, said: str, code: int) -> None:
    path = tmp_path / "a.sqlite"
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=said) as caught, AnswerCache(path, "key") as cache:
        cache.get(["C"])
    assert caught.value.exit_code == code
    assert "--reward-cache" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before is None or path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.sqlite"]


@pytest.mark.parametrize(("place", "said"), [("/sys/a.sqlite", "unable to open"), ("/nowhere/a.sqlite", "there is no folder")])
def test_a_place_where_no_file_can_be_made(place: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        AnswerCache(Path(place), "key")


def test_a_cache_that_stays_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sqlite"
    filled(path)
    monkeypatch.setattr(caches, "PATIENCE", 0.2)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"locked by another process for 0.2 s: wait for it, or name another file"):
        AnswerCache(path, "a new key")
    with AnswerCache(path, "key", "name", "one") as cache:  # which is only read
        assert same(cache.get([*ALL]), ALL)
    other.close()


def test_a_full_disk_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"C{i}": Scored(float(i)) for i in range(3000)}
    path = tmp_path / "a.sqlite"
    with AnswerCache(path, "key") as cache:
        pages = cache._base.execute("PRAGMA page_count").fetchone()[0]
        cache._base.execute(f"PRAGMA max_page_count = {pages + 2}")
        cache.put(many.items())
        cache.put([("N", OK)])
        assert cache.get([*many, "N"]) == {**many, "N": OK}
        assert capsys.readouterr().err.count("could not be written (database or disk is full)") == 1
        cache._base.execute("PRAGMA max_page_count = 100000")  # there is room again
    assert "could not" not in capsys.readouterr().err
    with AnswerCache(path, "key") as cache:
        assert cache.get([*many, "N"]) == {**many, "N": OK}


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with AnswerCache(tmp_path / "a.sqlite", "key") as cache:
        cache._base.execute("PRAGMA max_page_count = 1")
        cache.put((f"C{i}", OK) for i in range(3000))
    assert "3,000 answers could not be written" in capsys.readouterr().err


def test_rows_that_no_run_has_written_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    filled(path)
    base = sqlite3.connect(path)
    base.execute("UPDATE answers SET value = 'text' WHERE smiles = 'C'")
    base.execute("UPDATE answers SET status = 'fine' WHERE smiles = 'CC'")
    base.execute("UPDATE answers SET value = 9e999, status = 'ok' WHERE smiles = 'CCC'")
    base.commit()
    base.close()
    with AnswerCache(path, "key", "name", "one") as cache:
        assert same(cache.get([*ALL]), {"CCCC": FAILED})


def test_threads_may_put_at_once(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a.sqlite", "key") as cache:

        def work(j: int) -> None:
            for i in range(200):
                cache.put([(f"{j} {i}", Scored(float(i)))])

        threads = [threading.Thread(target=work, args=(j,)) for j in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(cache.get([f"{j} {i}" for j in range(4) for i in range(200)])) == 800
