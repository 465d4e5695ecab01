"""`gflownet sample`: formats read back, the same bytes again, the policy's law, exact counts or a sentence, whole files."""

import csv
import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit")

from rdkit import Chem, rdBase

from experiments.cli.gflownet import main
from experiments.molecules.files import FORMATS
from experiments.molecules.pictures import draw
from experiments.molecules.sample import SeenSmiles, Shortfall, batches, samples
from experiments.molecules.trained import Trained, Wanted, trained
from experiments.run.out_file import whole_file

TINY = [
    ("benzene", "c1ccccc1", [[0, 1], [2, 1], [3, 1]]),
    ("methyl", "C", [[0, 1]]),
    ("ethene", "C=C", [[0, 1], [1, 1]]),
    ("alanine", "C[C@H](N)C(=O)O", [[2, 1], [5, 1]]),
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(folder: Path, blocks: list[tuple[str, str, list[list[int]]]], *more: object, objective: str = "tb") -> Path:
    """A run of a few iterations."""
    folder.mkdir()
    entries = [{"name": name, "smiles": smiles, "attach": attach} for name, smiles, attach in blocks]
    (folder / "blocks.json").write_text(json.dumps({"format": "fragments-1", "fragments": entries}))
    asked = ["--objective", objective, "--states", 16, "--evaluations", 1, "--quiet", "--fragments", folder / "blocks.json"]
    asked += ["--reward", "qed*sa", *([] if objective == "mcmc" else ["--hidden", 16])]
    main(["train", "molecules", *map(str, (*asked, *more)), "--out", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, molecules of two to four blocks."""
    return train(tmp_path_factory.mktemp("sample") / "tiny", TINY, "--max-blocks", 4, "--seeds", 2)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three molecules: ethane, chloromethane, chlorine."""
    return train(tmp_path_factory.mktemp("sample") / "few", [("methyl", "C", [[0, 1]]), ("chloro", "Cl", [[0, 1]])])


def sample(*arguments: object, code: int = 0) -> None:
    if code == 0:
        main(["sample", *map(str, arguments)])
        return
    with pytest.raises(SystemExit) as stopped:
        main(["sample", *map(str, arguments)])
    assert stopped.value.code == code


def says(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    sample(*arguments, code=code)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def process(*arguments: object, stdout: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.cli.gflownet", "sample", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=stdout, stderr=subprocess.PIPE)


def test_a_run_trained_on_a_gpu_is_sampled_on_the_cpu(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(run, there)
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | {"device": "cuda", "matmul": "tf32"}))
    for name, folder in (("here", run), ("gpu", there)):
        sample(folder, "--n", 10, "--device", "cpu", "--out", tmp_path / f"{name}.smi")
    assert (tmp_path / "gpu.smi").read_bytes() == (tmp_path / "here.smi").read_bytes()


def test_every_format_holds_the_same_molecules_and_can_be_read(run: Path, tmp_path: Path) -> None:
    for suffix in FORMATS:
        sample(run, "--n", 40, "--seed", 3, "--unique", "--out", tmp_path / f"mols.{suffix}")
    with (tmp_path / "mols.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    smiles = [row["smiles"] for row in rows]
    assert len(set(smiles)) == 40
    assert smiles == [Chem.MolToSmiles(Chem.MolFromSmiles(text)) for text in smiles]
    assert list(rows[0]) == ["smiles", "reward", "qed", "sa", "sa_score", "log_reward", "log_p", "blocks", "seed"]
    assert {row["seed"] for row in rows} == {"0", "1"}
    for row in rows:
        assert float(row["reward"]) == pytest.approx(float(row["qed"]) * float(row["sa"]), rel=1e-6)
        assert float(row["log_reward"]) == pytest.approx(8 * math.log(max(float(row["reward"]), 0.01)), rel=1e-6)
    assert (tmp_path / "mols.smi").read_text().split() == smiles
    objects = [json.loads(line) for line in (tmp_path / "mols.jsonl").read_text().splitlines()]
    assert [{name: str(x) if isinstance(x, int | str) else f"{x:.8g}" for name, x in o.items()} for o in objects] == rows
    mols = list(Chem.SDMolSupplier(str(tmp_path / "mols.sdf")))
    assert [mol.GetPropsAsDict(autoConvertStrings=False) for mol in mols] == rows
    assert [mol.GetProp("_Name") for mol in mols] == [str(i) for i in range(1, 41)]
    assert [Chem.MolToSmiles(mol) for mol in mols] == smiles  # hands kept, double bonds left open
    assert any("@" in text for text in smiles)
    assert any("C=C" in text for text in smiles)
    assert all(mol.GetConformer().Is3D() is False for mol in mols)


def test_the_same_arguments_give_the_same_bytes_and_fewer_are_the_first_of_more(run: Path, tmp_path: Path) -> None:
    for suffix in FORMATS:
        one, two, other = (tmp_path / f"{name}.{suffix}" for name in ("one", "two", "other"))
        sample(run, "--n", 30, "--out", one)
        sample(run, "--n", 30, "--out", two)
        sample(run, "--n", 30, "--seed", 1, "--out", other)
        assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    sample(run, "--n", 11, "--batch", 4, "--out", tmp_path / "short.smi")
    assert (tmp_path / "short.smi").read_text().split() == (tmp_path / "one.smi").read_text().split()[:11]


def test_molecules_follow_the_policies_and_log_p_says_how(few: Path) -> None:
    n = 4000
    rows = list(samples(few, n, batch=1000))
    p = {row["blocks"]: math.exp(row["log_p"]) for row in rows}
    assert len(p) == 3
    assert sum(p.values()) == pytest.approx(1, abs=1e-5)
    count = Counter(row["blocks"] for row in rows)
    for blocks, share in p.items():
        assert abs(count[blocks] / n - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_seeds_take_turns_and_have_policies_of_their_own(run: Path) -> None:
    rows = list(samples(run, 400, scores=True, batch=100))
    assert [row["seed"] for row in rows] == [0, 1] * 200
    p: dict[str, set[tuple[int, float]]] = {}
    for row in rows:
        p.setdefault(row["blocks"], set()).add((row["seed"], round(row["log_p"], 4)))
    both = [found for found in p.values() if len({seed for seed, _ in found}) == 2]
    assert both
    assert all(len(found) == 2 for found in both)


def test_a_shortfall_is_said_and_what_was_found_is_written(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mols.csv"
    error = says(capsys, few, "--n", 5, "--unique", "--batch", 32, "--out", out, code=1)
    assert "found 3 unique molecules of 5 in" in error
    assert "brought nothing new" in error
    assert str(out) in error
    assert {row["smiles"] for row in csv.DictReader(out.open(newline=""))} == {"CC", "CCl", "ClCl"}
    error = says(capsys, few, "--n", 5, "--unique", "--max-attempts", 20, "--out", out, code=1)
    assert "in 20 attempts" in error
    with pytest.raises(Shortfall) as short:
        list(samples(few, 4, unique=True, batch=10))
    assert short.value.found == 3
    assert short.value.attempts <= 400


class Fussy:
    """Refuses every molecule with chlorine, or all."""

    def __init__(self, builder: Any, everything: bool) -> None:
        self.builder, self.everything = builder, everything

    def mol(self, row: Any) -> Chem.Mol:
        mol = self.builder.mol(row)
        if self.everything or "Cl" in Chem.MolToSmiles(mol):
            raise ValueError
        return mol


def test_molecules_that_rdkit_refuses_are_passed_over_and_counted(few: Path) -> None:
    source = trained(few)
    fussy: Any = replace(source, builder=Fussy(source.builder, False))  # type: ignore[arg-type]
    found = [sample for some in batches(fussy, Wanted(20, batch=16)) for sample in some]
    assert [sample.row["smiles"] for sample in found] == ["CC"] * 20
    fussy = replace(source, builder=Fussy(source.builder, True))  # type: ignore[arg-type]
    with pytest.raises(Shortfall, match="found 0 valid molecules of 20 in 320 attempts, 320 of which RDKit refuses"):
        list(batches(fussy, Wanted(20, batch=16)))


def test_a_set_of_hashes_is_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.molecules.sample.PENDING", 16)
    seen, truth = SeenSmiles(), set[str]()
    for i in range(1000):
        text = str(i * 7919 % 311)
        assert seen.add(text) == (text not in truth)
        truth.add(text)


def test_bad_input_gets_one_clear_sentence(
    run: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mols.csv"
    assert ".sdf, .csv, .smi, .jsonl" in says(capsys, run, "--out", tmp_path / "mols.xyz")
    assert "the suffix decides" in says(capsys, run, "--out", out, "--format", "smi")
    assert "--format is 'xyz', expected sdf, csv, smi, jsonl" in says(capsys, run, "--format", "xyz")
    assert "no folder" in says(capsys, run, "--out", tmp_path / "nowhere" / "mols.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in says(capsys, run, "--out", tmp_path / "folder.csv")
    assert "--n is 0" in says(capsys, run, "--n", 0, "--out", out)
    assert "--batch is 0" in says(capsys, run, "--batch", 0, "--out", out)
    assert "--seed is -1" in says(capsys, run, "--seed", -1, "--out", out)
    assert "no run folder" in says(capsys, tmp_path / "nothing", "--out", out)
    assert "there is no checkpoint" in says(capsys, run, "--checkpoint", "7", "--out", out, code=3)
    assert "expected auto" in says(capsys, run, "--device", "tpu", "--out", out)
    small = ["--ndim", "2", "--height", "4", "--states", "16", "--evaluations", "1", "--quiet"]
    main(["train", "hypergrid", "--objective", "tb", "--hidden", "8", *small, "--out", str(tmp_path / "grid")])
    assert "only molecules" in says(capsys, tmp_path / "grid", "--out", out)
    mcmc = train(tmp_path / "mcmc", TINY[:2], objective="mcmc")
    assert "has no policy" in says(capsys, mcmc, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("gflownet.rewards.trees.TreeReward.parts", _not_a_number)
        assert "attempt 1 and those after it: qed of CC is nan" in says(capsys, few, "--out", out)
    config = (run / "config.json").read_text()
    try:
        (run / "config.json").write_text(config.replace("c1ccccc1", "c1ccncc1"))
        assert "trained with other fragments" in says(capsys, run, "--out", out, code=3)
        (run / "config.json").write_text(config.replace("   16\n", "   8\n"))
        assert "does not fit" in says(capsys, run, "--out", out, code=3)
    finally:
        (run / "config.json").write_text(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "grid", "mcmc"]


def _not_a_number(*_: Any) -> Any:
    raise ValueError("qed of CC is nan, expected a finite number")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mols.sdf"
    out.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            error = says(capsys, run, "--n", 5, "--out", out, code=1)
        assert "No space left on device; nothing was changed there" in error
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert "could not write" in says(capsys, run, "--n", 200, "--out", out, "--batch", 20, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["mols.sdf"]


def test_a_signal_stops_and_leaves_the_old_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mols.csv"
    out.write_text("old")
    before = Trained.draw

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return before(*arguments)

    monkeypatch.setattr(Trained, "draw", interrupted)
    assert "stopped after 10 molecules" in says(capsys, run, "--n", 100, "--batch", 10, "--out", out, code=143)
    assert os.listdir(tmp_path) == ["mols.csv"]
    assert out.read_text() == "old"


def test_files_appear_whole_through_links_and_for_one_writer_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    with whole_file(tmp_path / "link.csv") as write:
        write(b"new")
        assert (tmp_path / "real.csv").read_text() == "old"
        with pytest.raises(Exception, match="is being written by another process"), whole_file(tmp_path / "real.csv"):
            pass
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "real.csv"]


def test_pipes_devices_and_a_kill(run: Path, tmp_path: Path) -> None:
    out, part = tmp_path / "mols.smi", tmp_path / ".mols.smi.part"
    out.write_text("old")
    killed = process(run, "--n", 10_000_000, "--out", out, "--workers", 0)
    piped = process(run, "--n", 10_000_000, "--format", "smi", "--batch", 64)
    with open("/dev/full", "wb") as device:
        full = process(run, "--n", 50, "--out", "-", stdout=device)
    assert piped.stdout is not None
    first = piped.stdout.readline()
    piped.stdout.close()
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    assert Chem.MolFromSmiles(first.decode()) is not None
    assert piped.wait(60) == 0
    assert piped.stderr is not None
    assert piped.stderr.read() == b""
    _, error = full.communicate(timeout=60)
    assert full.returncode == 1
    assert error.decode() == "gflownet: could not write to standard output: No space left on device\n"
    killed.communicate()
    assert out.read_text() == "old"
    sample(run, "--n", 3, "--out", out)  # takes over what was left
    assert len(out.read_text().split()) == 3
    assert not part.exists()


def test_standard_output_is_csv_or_what_is_asked_for(run: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    sample(run, "--n", 2, "--no-log-p")
    head, *rows = capsysbinary.readouterr().out.decode().splitlines()
    assert "log_p" not in head
    assert len(rows) == 2
    sample(run, "--n", 1, "--out", "-", "--format", "jsonl")
    assert json.loads(capsysbinary.readouterr().out)["smiles"] == rows[0].split(",")[0]


def test_pictures() -> None:
    smiles = ["CCO", "c1ccccc1", "CC(=O)O"]
    picture = draw(smiles, ["ethanol", "benzene", "x" * 100])
    assert picture.startswith(b"\x89PNG")
    assert picture == draw([Chem.MolFromSmiles(text) for text in smiles], ["ethanol", "benzene", "x" * 100])
    assert picture != draw(smiles, ["ethanol", "benzene", "x" * 100], [[0], [], [1]])
    assert int.from_bytes(picture[16:20], "big") == 3 * 240
    assert int.from_bytes(draw(smiles, columns=2)[20:24], "big") == 2 * 200
    for wrong, match in (([], "no molecules"), (["C("], "cannot read"), (["C"] * 100_000, "too large")):
        with rdBase.BlockLogs(), pytest.raises(ValueError, match=match):
            draw(wrong)
    with pytest.raises(ValueError, match="1 legends for 3"):
        draw(smiles, ["one"])
