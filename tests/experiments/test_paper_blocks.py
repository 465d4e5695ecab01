"""The convention paper2021 from the command line: the preset, what a config holds, the verbs, and what is refused."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem

from envs.molecules.fragments import load_fragments
from experiments.cli.gflownet import main
from experiments.gfn.commands import opened
from experiments.run.log import read_metrics
from tests.gflownet.test_seh import random_weights

ROWS: list[tuple[str, list[int]]] = [
    ("CO", [0, 1]),
    ("CO", [1, 0, 0, 0]),
    ("c1ccncc1", [0, 1, 2, 4, 5]),
    ("c1ccncc1", [1, 0, 2, 4, 5]),
    ("F", [0]),
]
NAMES = ["CO{0,1}", "CO{0,0,0,1}", "c1ccncc1", "F"]
FEW = ["--evaluations", "2", "--log-rows", "4", "--checkpoints", "4", "--quiet", "--mode-threshold", "0.1"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A blocks file and weights of the proxy."""
    folder = tmp_path_factory.mktemp("paper")
    tables: dict[str, dict[str, Any]] = {"block_name": {}, "block_smi": {}, "block_r": {}}
    for i, (smiles, atoms) in enumerate(ROWS):
        tables["block_name"][str(i)], tables["block_smi"][str(i)], tables["block_r"][str(i)] = smiles, smiles, atoms
    (folder / "blocks.json").write_text(json.dumps(tables))
    weights: Any = random_weights()
    np.savez(folder / "weights.npz", **weights)
    return folder / "blocks.json", folder / "weights.npz"


def preset(files: tuple[Path, Path], out: Path, *more: object) -> list[str]:
    blocks, weights = files
    given = [
        "train",
        "molecules",
        "--preset",
        "paper",
        "--fragments",
        blocks,
        "--seh-weights",
        weights,
        *FEW,
        *more,
        "--out",
        out,
    ]
    return [str(a) for a in given]


def test_the_preset_trains_resumes_and_samples(files: tuple[Path, Path], tmp_path: Path) -> None:
    """With exact metrics, replay, MaxEnt P_B and local search. The run needs the blocks file no more."""
    blocks = shutil.copy(files[0], tmp_path / "blocks.json")
    search = ["--backward", "maxent", "--replay", "prioritised", "--search-rounds", 1, "--hidden", 16]
    asked = preset((blocks, files[1]), tmp_path / "run", "--objective", "tb", "--states", 64, "--max-blocks", 3, *search)
    main(asked)
    blocks.unlink()
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())["env_settings"]
    assert (config["convention"], config["reward"], config["beta"]) == ("paper2021", "seh", 10.0)
    kept = json.loads(config["vocabulary"])["fragments"]
    assert [f["name"] for f in kept] == NAMES
    assert [f["joins"] for f in kept] == [[0], [1], [0, 1], [0]]
    rows = read_metrics(run)
    assert "eval/l1" in rows[-1]
    shutil.copytree(run, tmp_path / "cut")
    last = sorted((run / "checkpoints").iterdir())[-1]
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / last.name)
    main(["resume", str(tmp_path / "cut"), "--quiet"])
    again = tmp_path / "cut" / "checkpoints" / last.name / "tensors.safetensors"
    assert again.read_bytes() == (last / "tensors.safetensors").read_bytes()
    main(["sample", str(run), "--n", "20", "--out", str(tmp_path / "drawn.sdf"), "--quiet"])
    assert sum(mol is not None for mol in Chem.SDMolSupplier(str(tmp_path / "drawn.sdf"))) == 20
    main(["sample", str(run), "--n", "20", "--out", str(tmp_path / "drawn.csv"), "--quiet"])
    with (tmp_path / "drawn.csv").open() as file:
        assert all(block.split()[-1] in NAMES for row in csv.DictReader(file) for block in row["blocks"].split(" | "))


@pytest.mark.parametrize("objective", ["fm", "mcmc"])
def test_other_methods_of_the_preset(files: tuple[Path, Path], tmp_path: Path, objective: str) -> None:
    main(preset(files, tmp_path / "run", "--objective", objective, "--states", 16, "--metrics", "sampled"))
    problem = opened(tmp_path / "run")[1].problem
    assert not problem.env.blocks.joins.all()  # type: ignore[attr-defined]


def test_fragments_shows_and_writes_the_rows_as_published(files: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    main(["fragments", "--fragments", str(files[0]), "--convention", "paper2021"])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == [
        ["CO{0,1}", "CO", "2", "1"],
        ["CO{0,0,0,1}", "CO", "4", "1"],
        ["c1ccncc1", "c1ccncc1", "5", "2"],
        ["F", "F", "1", "1"],
    ]
    out = tmp_path / "mine.json"
    main(["fragments", "--fragments", str(files[0]), "--convention", "paper2021", "--out", str(out)])
    assert load_fragments(out) == load_fragments(out, "paper2021") == load_fragments(files[0], "paper2021")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "molecules", "--objective", "tb", "--convention", "paper2021"], "give --fragments blocks_PDB_105.json"),
        (["train", "molecules", "--objective", "tb", "--preset", "paper"], "give --fragments blocks_PDB_105.json"),
        (["train", "molecules", "--objective", "tb", "--convention", "paper2021", "--fragments", "OWN"], "which atoms attach"),
        (["fragments", "--convention", "paper2021"], "give it with --fragments"),
        (["fragments", "--convention", "paper2021", "--fragments", "OWN"], "which atoms attach"),
        (["fragments", "--fragments", "WRONG"], "fragment CO: joins lists [2], expected one or more of its attachment atoms"),
        (["fragments", "--fragments", "TEXT"], 'fragment CO: expected "joins" as a list of atoms'),
    ],
)
def test_what_does_not_fit_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    entry: dict[str, Any] = {"name": "CO", "smiles": "CO", "attach": [[0, 1], [1, 1]]}
    for name, more in (("OWN", {}), ("WRONG", {"joins": [2]}), ("TEXT", {"joins": "0"})):
        (tmp_path / name).write_text(json.dumps({"format": "fragments-1", "fragments": [entry | more]}))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / a) if a.isupper() else a for a in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code in (2, 3)
    assert error.count("\n") == 1
    assert sentence in error
