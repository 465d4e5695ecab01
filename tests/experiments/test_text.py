"""Names that attack: of fragments, files, folders and settings. Nothing that is shown or written acts on its reader."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit")

from rdkit import Chem

from envs.molecules.fragments import load_fragments
from experiments.cli.errors import UserError
from experiments.cli.gflownet import main
from experiments.cli.text import FORMULA, cell, json_line, plain, sdf_name, sdf_value
from experiments.molecules.files import FORMATS
from experiments.run.tensorboard import ScalarWriter
from gflownet.rewards.expression import Expression

NASTY = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r\n=1",
    "$$$$",
    "> <reward>",
    "a\n$$$$\n",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b2J",
    "\u202egnp",
    "\u2028",
    "\x00",
    "\x7f",
    "a|b",
    "$\\frac$",
    "＝1",
]
MINE = "def score(smiles):\n    return [0.5 + len(text) / 100 for text in smiles]\n"

pytestmark = pytest.mark.usefixtures("one_thread")


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("text", NASTY)
def test_nothing_is_left_that_acts(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
    assert cell(text).isprintable()
    assert not cell(text).startswith((*FORMULA, "\t", "\r"))
    assert json.loads(json_line({text: text})) == {text: text}
    assert json_line({text: text}).isprintable()
    assert sdf_value(text).isprintable()
    assert not sdf_value(text).startswith(("$$$$", ">"))
    assert not set(sdf_name(text)) & set("<>")


def test_what_is_harmless_stays_as_it_is() -> None:
    for text in ("benzene | 0:0-1 amide", "β-lactam", "C1=CC=CC=C1", "a-b", "", "日本"):
        assert plain(text) == cell(text) == sdf_value(text) == text
    assert [cell(x) for x in (-1.5, -1, 1e-9, 3)] == ["-1.5", "-1", "1e-09", "3"]
    assert sdf_value(-1.5) == "-1.5"
    assert sdf_name("_mine.py:score") == "mine.py:score"


@pytest.mark.parametrize("text", NASTY)
def test_an_sdf_has_as_many_records_and_properties(text: str, tmp_path: Path) -> None:
    rows = [{"smiles": "CO", text or "x": 1.5, "blocks": text, "seed": 0}] * 3
    (tmp_path / "m.sdf").write_text(
        "".join(FORMATS["sdf"].text(i, row, Chem.MolFromSmiles("CO")) for i, row in enumerate(rows))
    )
    found = list(Chem.SDMolSupplier(str(tmp_path / "m.sdf")))
    assert len(found) == 3
    for mol in found:
        assert mol.GetProp("blocks") == sdf_value(text)
        assert mol.GetProp("seed") == "0"
        assert len(list(mol.GetPropNames())) == 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose fragments, reward function and folder have nasty names."""
    here = tmp_path_factory.mktemp("nasty")
    (here / "=1.py").write_text(MINE)
    smiles = [
        "C",
        "CN",
        "c1ccccc1",
        "CC",
        "CO",
        "CCC",
        "CCO",
        "CCN",
        "CCCC",
        "COC",
        "CNC",
        "CCCO",
        "CCS",
        "CS",
        "CF",
        "CCl",
        "CBr",
        "CI",
    ]
    entries = [{"name": name, "smiles": text, "attach": [[0, 1]]} for name, text in zip(NASTY, smiles, strict=True)]
    (here / "nasty.json").write_text(json.dumps({"format": "fragments-1", "fragments": entries}))
    out = here / "=\x1b[31m|"
    settings = ["--max-blocks", 2, "--states", 32, "--batch-size", 8, "--hidden", 8, "--evaluations", 2, "--quiet"]
    given = ["--fragments", "nasty.json", "--reward", "qed*=1.py:score", *settings, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        main([str(a) for a in ["train", "molecules", "--objective", "tb", *given]])
    return out


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "sdf", "smi"])
def test_files_of_molecules(run: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"m.{suffix}"
    main(["sample", str(run), "--n", "40", "--out", str(out), "--quiet"])
    text = out.read_bytes().decode()
    assert clean(text)
    if suffix == "csv":
        table = list(csv.reader(out.open(newline="")))
        assert len(table) == 41
        numbers = [i for i, name in enumerate(table[0]) if name in ("reward", "qed", "log_reward", "log_p", "seed")]
        for line in table:
            assert not any(x.startswith(FORMULA) for i, x in enumerate(line) if i not in numbers)
        assert any(name.endswith("=1.py:score") for name in table[0])
        assert all(float(line[table[0].index("log_reward")]) < 0 for line in table[1:])
    elif suffix == "jsonl":
        names = {row["blocks"].split(" | ")[0] for row in map(json.loads, text.splitlines())}
        assert names & set(NASTY)
    elif suffix == "sdf":
        assert len(list(Chem.SDMolSupplier(str(out)))) == 40
    else:
        assert len(text.splitlines()) == 40


def test_tables_figures_and_terminals(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    from experiments.molecules.table import table

    config = json.loads((run / "config.json").read_text())
    for name, value in (("title", "=\x1b[2J $\\frac$"), ("method", "=\x1b[2J $x")):  # as a file of somebody's may have them
        (run / "config.json").write_text(json.dumps({**config, name: value}))
        for suffix in ("png", "svg"):
            main(["curves", str(run), "--out", str(tmp_path / f"c.{suffix}"), "--metric", "mol/top_10"])
        out, err = capfd.readouterr()
        assert clean(out + err)
        lines = list(csv.reader((tmp_path / "c.csv").open(newline="")))
        assert not any(line[0].startswith(FORMULA) for line in lines)
        assert clean((tmp_path / "c.csv").read_text())
        assert "\x1b" not in (tmp_path / "c.svg").read_text()
    (run / "config.json").write_text(json.dumps(config))
    assert clean(table([run], (), 1.0))
    assert "\\|" in table([run], (), 1.0)
    main(["fragments", "--fragments", str(run.parent / "nasty.json")])
    out, err = capfd.readouterr()
    assert clean(out)
    assert len(out.splitlines()) == len(NASTY) + 1
    with pytest.raises(SystemExit):
        main(["eval", str(run.parent / "no\x1b[2Jthing")])
    assert clean(capfd.readouterr().err)


def test_names_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {"reward": "\x1b[2J", "fragments": "\u202egnp", "blocks": ["\x9b", "b"]}
    ScalarWriter(tmp_path, {}, config).add(0, {"eval/x": 1.0})
    events = EventAccumulator(str(tmp_path / "hparams")).Reload()
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert not set(data.decode(errors="replace")) & set("\x1b\u202e\x9b")
    text: Any = events.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert clean(text)


@pytest.mark.parametrize("where", ["name", "smiles"])
def test_half_a_surrogate_pair_is_refused_when_it_is_read(tmp_path: Path, where: str) -> None:
    entry = {"name": "a", "smiles": "CC", "attach": [[0, 1]], where: "C\ud800"}
    (tmp_path / "f.json").write_text(json.dumps({"format": "fragments-1", "fragments": [entry]}))
    with pytest.raises(ValueError, match="expected texts") as error:
        load_fragments(tmp_path / "f.json")
    assert clean(str(UserError(str(error.value))))
    tables = {"block_name": {"0": "a"}, "block_smi": {"0": "C\ud800"}, "block_r": {"0": [0]}}
    (tmp_path / "2021.json").write_text(json.dumps(tables))
    with pytest.raises(ValueError, match="expected a SMILES"):
        load_fragments(tmp_path / "2021.json")


@pytest.mark.parametrize("text", ["qed*\x1b[2J", "a\ud800.py:f", "qed\x00", "\u202eqed"])
def test_a_formula_is_printable(text: str) -> None:
    with pytest.raises(ValueError, match="expected printable characters"):
        Expression.parse(text)


@pytest.mark.parametrize("line", [b"C\xff\n", b"\x1b[2J\n", b"C\xed\xa0\x80\n"])
def test_files_of_smiles_and_maps(tmp_path: Path, line: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    from experiments.cli.pgrl import main as pgrl

    (tmp_path / "m.smi").write_bytes(line)
    with pytest.raises(SystemExit):
        main(["fragments", "--from", str(tmp_path / "m.smi")])
    with pytest.raises(SystemExit):
        pgrl(["train", "n-pg", "--env", f"gridworld:{tmp_path / 'm.smi'}", "--out", str(tmp_path / "run"), "--quiet"])
    err = capfd.readouterr().err
    assert clean(err)
    assert "Traceback" not in err


def test_a_folder_whose_name_is_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/x\xff\x1b[2J")
    grid = ["hypergrid", "--ndim", "2", "--objective", "tb", "--hidden", "8", "--states", "32", "--evaluations", "1"]
    main(["train", *grid, "--out", out])
    assert clean((Path(out) / "cmd.txt").read_text())
    main(["resume", out])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert clean(captured.err)
