"""`gflownet score`: a file of molecules through the runner, its rows, its faults, its end by signals; and --check."""

import csv
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("rdkit")

from experiments.cli.gflownet import main

REWARDS = Path(__file__).with_name("rewards.py")
COMMAND = f"{sys.executable} {Path(__file__).with_name('commands.py')} good"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(REWARDS, tmp_path / "mine.py")
    return tmp_path


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def scored(here: Path, lines: str, *flags: str, name: str = "m.smi") -> list[dict[str, str]]:
    (here / name).write_text(lines)
    main(["score", name, "--out", "o.csv", "--quiet", *flags])
    return rows((here / "o.csv").read_text())


def refused(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert caught.value.code == code


def asked(here: Path) -> list[str]:
    return (here / "asked").read_text().split() if (here / "asked").exists() else []


def test_a_row_for_each_molecule_in_order(here: Path) -> None:
    found = scored(here, "smiles\nOCC ethanol\n\n# a comment\nCCO\nnot-a-molecule\nc1ccccc1\n", "--reward", "qed*mine.py:good")
    assert [r["smiles"] for r in found] == ["OCC", "CCO", "not-a-molecule", "c1ccccc1"]
    assert [r["canonical_smiles"] for r in found] == ["CCO", "CCO", "", "c1ccccc1"]
    assert [r["status"] for r in found] == ["ok", "ok", "invalid", "ok"]
    assert [r["mine.py:good"] for r in found] == ["3", "3", "", "8"]
    for r in found:
        if r["status"] == "ok":
            assert float(r["reward"]) == pytest.approx(float(r["qed"]) * float(r["mine.py:good"]), rel=1e-7)
    assert found[2]["message"] == "RDKit cannot read this as SMILES"
    assert (found[2]["reward"], found[2]["qed"]) == ("", "")
    assert asked(here) == ["CCO", "c1ccccc1"]


def test_failed_molecules_have_a_status_and_no_reward(here: Path) -> None:
    flags = ["--reward", "sa*mine.py:faulty", "--reward-timeout", "0.5"]
    found = scored(here, "".join(f"[{i}CH4]\n" for i in (1, 6, 11, 99)), *flags, "--max-failed", "0.8")
    assert [r["status"] for r in found] == ["timeout", "error", "invalid", "ok"]
    assert [bool(r["reward"]) for r in found] == [False, False, False, True]
    assert [bool(r["message"]) for r in found] == [True, True, True, False]
    assert all(r["sa"] for r in found)
    again = scored(here, "[6CH4]\n[11CH4]\n", *flags, "--max-failed", "1")  # a run that was finished asks again what failed
    assert [r["status"] for r in again] == ["error", "invalid"]
    assert Counter(asked(here)) == {"[1CH4]": 1, "[6CH4]": 2, "[11CH4]": 1, "[99CH4]": 1}


def test_the_function_that_failed_is_named_where_there_are_several(here: Path) -> None:
    (row,) = scored(here, "C\n", "--reward", "mine.py:good+mine.py:nan", "--max-failed", "1")
    assert (row["mine.py:good"], row["mine.py:nan"], row["status"]) == ("1", "", "invalid")
    assert row["message"] == "mine.py:nan: the function gave nan, expected a finite number"


def test_a_formula_of_rdkit_terms_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "m.smi").write_text("CCO\nCCN\n")
    main(["score", "m.smi", "--reward", "qed+sa"])
    out, err = capsys.readouterr()
    assert [r["status"] for r in rows(out)] == ["ok", "ok"]
    assert err == "2 molecules: 2 ok\n"
    assert not (here / "runs").exists()


def test_formats_of_input(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--reward-command", COMMAND, "--reward-cache", "none"]
    assert [r["reward"] for r in scored(here, "C\nCC\n", *flags)] == ["1", "2"]
    assert [r["reward"] for r in scored(here, 'id,SMILES\n1,C\n"2, b",CC\n', *flags, name="m.csv")] == ["1", "2"]
    (here / "m.smi.gz").write_bytes(gzip.compress(b"C\nCCC\n"))
    main(["score", "m.smi.gz", "--out", "o.csv", "--quiet", *flags])
    assert [r["reward"] for r in rows((here / "o.csv").read_text())] == ["1", "3"]
    for text in ("C\tname\nCC\n", "id,smiles\n1,C\n2,CC\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        main(["score", "-", *flags, "--reward", "command^2"])
        assert [r["reward"] for r in rows(capsys.readouterr().out)] == ["1", "4"]


def test_many_windows_and_duplicates_among_them(here: Path) -> None:
    lines = [f"[{1 + i % 400}CH4]" for i in range(1000)]
    found = scored(here, "\n".join(lines), "--reward", "mine.py:good", "--reward-workers", "2", "--reward-cache", "none")
    assert [r["smiles"] for r in found] == lines
    assert Counter(asked(here)) == Counter(set(lines))


def test_answers_are_kept_for_other_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(here, "C\nCC\n", "--reward", "mine.py:good")
    assert [r["reward"] for r in scored(here, "CC\nCCC\n", "--reward", "mine.py:good^2", name="n.smi")] == ["4", "9"]
    assert asked(here) == ["C", "CC", "CCC"]
    scored(here, "C\n", "--reward", "mine.py:good", "--reward-version", "2")
    with (here / "mine.py").open("a") as file:
        file.write("# changed\n")
    main(["score", "m.smi", "--reward", "mine.py:good", "--out", "o.csv"])
    assert asked(here) == ["C", "CC", "CCC", "C", "C"]
    first, second = capsys.readouterr().err.splitlines()
    assert first == "1 molecules: 1 ok"
    assert second == "mine.py:good: 1 calls, 0 answers from runs/rewards.sqlite, 0.0 s in it"


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["m.smi"], 2, "got no reward"),
        (["--reward", "qed"], 2, "got no molecules"),
        (["none.smi", "--reward", "qed"], 2, "none.smi: No such file"),
        (["m.smi", "--reward", "qod"], 2, "expected a term, which is one of qed"),
        (["m.smi", "--reward", "command"], 2, "give the program with --reward-command"),
        (["m.smi", "--reward", "qed", "--reward-command", "cat"], 2, "has no term command"),
        (["m.smi", "--reward", "none.py:score"], 2, "there is no file none.py"),
        (["m.smi", "--reward", "mine.py:nothing_here"], 6, "with NAME one of"),
        (["m.smi", "--reward", "qed", "--out", "o.sdf"], 2, "expected a name that ends in .csv"),
        (["m.smi", "--reward", "mine.py:good", "--reward-timeout", "-1"], 2, "--reward-timeout is -1"),
        (["m.smi", "--reward", "mine.py:good", "--reward-cache", "m.smi"], 3, "is damaged or no SQLite file"),
        (
            ["m.smi", "--reward", "mine.py:nan"],
            6,
            "the reward failed at 1 of 1 molecules, more than --max-failed 0.5; the first: the",
        ),
        (["bad.smi", "--reward", "qed"], 2, "RDKit can read none of its 2 lines as SMILES"),
        (["bad.csv", "--reward", "qed"], 2, "the first line names the columns a, b, expected one named smiles"),
        (["bad.gz", "--reward", "qed"], 2, "bad.gz: Not a gzipped file"),
        (["bytes.smi", "--reward", "qed"], 2, "it is not text"),
        (["m.smi", "--check", "mine.py:good"], 2, "got --check and molecules"),
    ],
)
def test_one_sentence(here: Path, flags: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "m.smi").write_text("C\n")
    (here / "bad.smi").write_text("hello\nworld\n")
    (here / "bad.csv").write_text("a,b\n1,2\n")
    (here / "bad.gz").write_text("C\n")
    (here / "bytes.smi").write_bytes(b"C\n\xff\xfe\n")
    (here / "o.csv").write_text("before")
    out = [] if {"--check", "--out"} & set(flags) else ["--out", "o.csv"]
    refused(["score", *out, *flags], code, said, capsys)
    assert (here / "o.csv").read_text() == "before"
    assert not list(here.glob(".*"))


def test_a_reward_that_fails_too_often_ends_the_command_early(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "m.smi").write_text("".join(f"[{1 + i}CH4]\n" for i in range(1000)))
    refused(["score", "m.smi", "--reward", "mine.py:raises"], 6, "raised ValueError: no licence for this", capsys)
    assert len(asked(here)) < 1000


def start(here: Path, *flags: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "experiments.cli.gflownet", "score", "m.smi", "--reward", "mine.py:waits", "--out", "o.csv"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([*words, *flags], cwd=here, env=environment, stderr=subprocess.PIPE, text=True)
    while len(asked(here)) < 9:
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_loses_nothing(here: Path, number: signal.Signals, code: int) -> None:
    smiles = [f"[{1 + i}CH4]" for i in range(14)]
    (here / "m.smi").write_text("\n".join(smiles))
    process = start(here)
    process.send_signal(number)  # while the reward hangs
    _, err = process.communicate(timeout=100)
    assert process.returncode == code
    assert "stopped: answers so far are in runs/rewards.sqlite; the same command goes on from there" in err
    assert not (here / "o.csv").exists()
    assert not list(here.glob(".*"))
    finish(here, smiles)


def test_kill_9_asks_nothing_again(here: Path) -> None:
    smiles = [f"[{1 + i}CH4]" for i in range(14)]
    (here / "m.smi").write_text("\n".join(smiles))
    process = start(here)
    process.kill()
    process.wait()
    time.sleep(0.3)  # its child ends too
    finish(here, smiles)


def finish(here: Path, smiles: list[str]) -> None:
    before = asked(here)
    (here / "go").touch()
    time.sleep(0.2)
    assert asked(here) == before == smiles[:9]  # nobody goes on
    main(["score", "m.smi", "--reward", "mine.py:waits", "--out", "o.csv", "--quiet"])
    assert [r["smiles"] for r in rows((here / "o.csv").read_text())] == smiles
    assert asked(here) == [*smiles[:9], *smiles[8:]]  # the one that was under way is asked again


# -- check

CHECKED = [["mine.py:good"], ["command", "--reward-command", COMMAND], ["mine.py:prints"], ["mine.py:forks"]]


@pytest.mark.parametrize("words", CHECKED)
def test_a_reward_that_keeps_its_contract(here: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    main(["score", "--check", *words])
    lines = capfd.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert len(lines) == (8 if "command" in words else 9)
    assert "for one molecule" in lines[-1]


CONTRACT = """
import os, random
calls = 0
def random_values(smiles): return [random.random() for _ in smiles]
def counts(smiles):
    global calls
    calls += bool(smiles)
    return [calls for _ in smiles]
def ranks(smiles): return [sorted(smiles).index(s) + 1 for s in smiles]
def places(smiles): return list(range(len(smiles))) if len(smiles) > 1 else [len(s) for s in smiles]
def no_empty(smiles): return [float(len(s)) for s in [smiles[0], *smiles[1:]]]
def by_process(smiles): return [os.getpid() for _ in smiles]
def late(smiles):
    import time
    time.sleep(3600 if smiles else 0)
    return []
"""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("random_values", "each alone"),
        ("counts", "a molecule's value must not depend on the others of its call"),
        ("ranks", "a molecule's value must not depend on the others of its call"),
        ("places", "each alone"),
        ("no_empty", "for an empty list the function raised IndexError"),
        ("by_process", "in a new process: fix its random seed; a cache would mix the two"),
        ("late", "no answer within 0.3 s for CC(=O)Oc1ccccc1C(=O)O: allow more with --reward-timeout"),
    ],
)
def test_a_reward_that_breaks_its_contract(here: Path, function: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.py").write_text(CONTRACT)
    with pytest.raises(SystemExit) as caught:
        main(["score", "--check", f"c.py:{function}", "--reward-timeout", "0.3"])
    assert caught.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("gflownet: failed check: ")
    assert said in err


@pytest.mark.parametrize("function", ["nan", "too_many", "raises", "leaves", "closes"])
def test_a_check_names_the_fault(here: Path, function: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["score", "--check", f"mine.py:{function}"], 1, "failed check: ", capsys)


def test_scoring_loads_no_torch() -> None:
    code = "import sys, experiments.oracle.score; print('torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert out.stdout == "False\n"
