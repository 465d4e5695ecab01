"""`gflownet fragments`: a vocabulary out of molecules, looked at as a table and as a picture, used in training."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit")

from envs.molecules.fragments import default_fragments, load_fragments
from experiments.cli.gflownet import main

MOLECULES = """CC(=O)Nc1ccc(OCc2ccccc2)cc1 first

# a comment
CC(=O)Nc1ccc(Cl)cc1
O=C(NCc1ccccc1)c1ccncc1
CC(=O)NCc1ccccc1
"""


def fragments(*arguments: object, code: int = 0) -> None:
    if code == 0:
        main(["fragments", *map(str, arguments)])
        return
    with pytest.raises(SystemExit) as stopped:
        main(["fragments", *map(str, arguments)])
    assert stopped.value.code == code


def says(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    fragments(*arguments, code=code)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_from_molecules_to_a_file_that_can_be_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mols.smi").write_text(MOLECULES)
    out, again = tmp_path / "fragments.json", tmp_path / "again.json"
    fragments("--from", tmp_path / "mols.smi", "--out", out, "--image", tmp_path / "fragments.png")
    found = load_fragments(out)
    assert f"{len(found)} fragments" in capsys.readouterr().err
    assert {"c1ccccc1", "N"} <= {f.smiles for f in found}
    assert (tmp_path / "fragments.png").read_bytes().startswith(b"\x89PNG")
    fragments("--fragments", out, "--out", again)
    assert again.read_bytes() == out.read_bytes()
    fragments("--from", tmp_path / "mols.smi", "--out", again, "--min-count", 1, "--limit", 3)
    assert len(load_fragments(again)) == 3
    fragments("--from", tmp_path / "mols.smi", "--out", again, "--min-count", 1, "--max-atoms", 4)
    assert not {"c1ccccc1"} & {f.smiles for f in load_fragments(again)}
    settings = ["--states", "16", "--hidden", "8", "--evaluations", "1", "--metrics", "sampled", "--quiet"]
    run = ["--fragments", str(out), "--max-blocks", "3", *settings, "--out", str(tmp_path / "run")]
    main(["train", "molecules", "--objective", "tb", *run])
    assert sorted(os.listdir(tmp_path)) == ["again.json", "fragments.json", "fragments.png", "mols.smi", "run"]


def test_a_table_of_our_own_and_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fragments()
    head, *rows = capsys.readouterr().out.splitlines()
    ours = default_fragments()
    assert head.split() == ["name", "smiles", "points", "orbits"]
    assert len(rows) == len(ours)
    assert all(row.startswith(f.name) for row, f in zip(rows, ours, strict=True))
    assert len({row.rindex(" ") for row in rows if row[-2] == " "}) == 1  # aligned
    entries = [{"name": "phenyl", "smiles": "c1ccccc1", "attach": [[0, 1], [2, 1], [4, 1]]}]
    entries += [{"name": "CO", "smiles": "CO", "attach": [[0, 3], [1, 1]]}]
    (tmp_path / "two.json").write_text(json.dumps({"format": "fragments-1", "fragments": entries}))
    fragments("--fragments", tmp_path / "two.json")
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split() for row in rows] == [["phenyl", "c1ccccc1", "3", "1"], ["CO", "CO", "4", "2"]]
    table_2021 = {"block_name": {"0": "a"}, "block_smi": {"0": "CCO"}, "block_r": {"0": [0, 2]}}
    (tmp_path / "2021.json").write_text(json.dumps(table_2021))
    fragments("--fragments", tmp_path / "2021.json")
    assert capsys.readouterr().out.splitlines()[1].split() == ["CCO", "CCO", "2", "2"]


def test_the_picture_is_always_the_same(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        fragments("--image", tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_molecules_from_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", iter(MOLECULES.splitlines()))
    fragments("--from", "-")
    assert "c1ccccc1" in capsys.readouterr().out


def test_bad_input_gets_one_clear_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mols, out = tmp_path / "mols.smi", tmp_path / "out.json"

    def wrong(text: str | bytes, *arguments: object) -> str:
        mols.write_bytes(text if isinstance(text, bytes) else text.encode())
        return says(capsys, "--from", mols, "--out", out, *arguments)

    assert "line 2: RDKit cannot read" in wrong("CCO\nC(\n")
    assert "no SMILES" in wrong("# nothing\n")
    assert "bond that BRICS cuts" in wrong("CCO\n")
    assert "relax them" in wrong("CC(=O)NCc1ccccc1\n")
    assert "not text" in wrong(b"CCO\n\xff\xfe")
    assert "--limit is 0" in wrong(MOLECULES, "--limit", 0)
    assert "No such file" in says(capsys, "--from", tmp_path / "nothing.smi")
    assert "--from and --fragments" in says(capsys, "--from", mols, "--fragments", out)
    assert "ends in .json" in says(capsys, "--out", tmp_path / "out.txt")
    assert "ends in .png" in says(capsys, "--image", tmp_path / "out.gif")
    assert "no folder" in says(capsys, "--out", tmp_path / "nowhere" / "out.json")
    (tmp_path / "broken.json").write_text("{")
    assert "it is not JSON" in says(capsys, "--fragments", tmp_path / "broken.json", code=3)
    assert "No such file" in says(capsys, "--fragments", tmp_path / "nothing.json")
    out.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in says(capsys, "--out", out, code=1)
    assert out.read_text() == "old"
