"""`gflownet bench pmo`: the genetic algorithm, random search, jobs, tables, errors."""

import errno
import gzip
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem

from experiments.cli.errors import UserError
from experiments.cli.gflownet import main
from experiments.pmo import bench as bench_file
from experiments.pmo import genetic as ga
from experiments.pmo import gfn, jobs
from experiments.pmo.bench import bench
from experiments.pmo.jobs import BenchJob, Result, read, run
from experiments.pmo.score import Score
from experiments.pmo.source import canonical, lines, source
from experiments.pmo.table import COLUMNS, Published, auc, markdown, measures, published
from gflownet.rewards.calls import BudgetSpent
from gflownet.rewards.pmo import task

ROOT = Path(__file__).parents[2]
DRUGS = """CC(=O)Oc1ccccc1C(=O)O
Cn1cnc2c1c(=O)n(C)c(=O)n2C
CC(C)Cc1ccc(cc1)C(C)C(=O)O
CC(=O)Nc1ccc(O)cc1
CN1CCC[C@H]1c1cccnc1
CC(C)(C)NCC(O)c1ccc(O)c(CO)c1
CCOC(=O)c1ccc(N)cc1
O=C(O)c1ccccc1Nc1cccc(C(F)(F)F)c1
Clc1ccccc1C1=NCC(=O)Nc2ccc(Cl)cc21
CN(C)CCc1c[nH]c2ccc(O)cc12
"""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def kekule(smiles: str) -> Chem.Mol:
    return ga.kekule(Chem.MolFromSmiles(smiles))


@pytest.fixture
def drugs(tmp_path: Path) -> Path:
    path = tmp_path / "drugs.smi"
    path.write_text(DRUGS)
    return path


# -- the genetic algorithm


def outcomes(edit: Callable[..., Any], smiles: str, times: int = 300) -> set[str]:
    """What a mutation makes of a molecule, as canonical SMILES; "" for what RDKit refuses."""
    found, random = set(), rng()
    for _ in range(times):
        mol = edit(Chem.RWMol(kekule(smiles)), random)
        found.add("" if mol is None or Chem.SanitizeMol(mol, catchErrors=True) else canonical(Chem.MolToSmiles(mol)))
    return found


def test_mutations_of_small_molecules() -> None:
    assert outcomes(ga.append_atom, "CC") >= {"CCC", "CCN", "CCO", "CC=O", "C=CC", "CC#N", "CCBr"}
    assert outcomes(ga.insert_atom, "CC") == {"CCC", "CNC", "COC", "CSC"}
    assert outcomes(ga.change_bond_order, "CC") == {"C=C", "C#C"}
    assert outcomes(ga.delete_ring_bond, "C1CC1") == {"CCC"}
    assert outcomes(ga.delete_ring_bond, "CC") == {""}
    assert outcomes(ga.add_ring, "CCCCCC") == {"CCCC1CC1", "CCC1CC1C", "CCC1CCC1", "CC1CCC1C", "CC1CCCC1", "C1CCCCC1"}
    assert outcomes(ga.delete_atom, "CCO") == {"CO", "CC"}
    assert outcomes(ga.delete_atom, "C1CC1") == {""}  # its neighbours are bonded already
    assert outcomes(ga.change_atom, "CC") == {"CN", "CO", "CF", "CS", "CCl", "CBr"}


def test_a_hydrogen_of_an_aromatic_nitrogen_is_free_to_go() -> None:
    assert "Cn1cccc1" in outcomes(ga.append_atom, "c1cc[nH]c1")


def test_crossover_joins_a_piece_of_each_parent() -> None:
    random, found = rng(), set()
    for _ in range(400):
        mol = ga.crossover(kekule("CCO"), kekule("NS"), random)
        found.add(None if mol is None else canonical(Chem.MolToSmiles(mol)))
    # a piece of C|CO or CC|O with N or S; there are no rings to cross
    assert found == {None, "CN", "CS", "NCO", "OCS", "CCN", "CCS", "NO", "OS"}


def test_crossover_of_rings_makes_rings_of_both() -> None:
    random, found = rng(), set()
    for _ in range(600):
        mol = ga.crossover(kekule("C1CCCCC1"), kekule("N1NNNNN1"), random)
        if mol is not None and not Chem.SanitizeMol(mol, catchErrors=True):
            found.add(canonical(Chem.MolToSmiles(mol)))
    assert found >= {"C1NNNNN1", "C1CNNNN1", "C1CNNNC1"}
    assert all({"C", "N"} <= set(smiles.upper()) for smiles in found)


def test_children_are_molecules_within_the_limits() -> None:
    random = rng()
    parents = [kekule(smiles) for smiles in DRUGS.split()]
    found: dict[str, Chem.Mol] = {}
    for _ in range(200):
        a, b = random.integers(len(parents), size=2)
        found.update(ga.reproduced(parents[a], parents[b], random))
        found.update(ga.mutated(parents[a], random))
    assert len(found) > 150
    for smiles, mol in found.items():
        assert canonical(smiles) == smiles == Chem.MolToSmiles(mol)
        assert "." not in smiles
        assert ga.SMALLEST <= mol.GetNumAtoms() <= ga.SIZE + 6 * ga.SPREAD
        assert all(len(ring) <= ga.LARGEST_RING for ring in mol.GetRingInfo().AtomRings())


def asked(name: str, seed: int, calls: int = 400) -> tuple[list[str], list[float]]:
    score = Score(name, calls)
    with pytest.raises(BudgetSpent):
        ga.genetic(score, iter([canonical(s) for s in DRUGS.split()]), rng(seed))
    return score.ledger.smiles, score.ledger.table()["reward"].tolist()


def test_the_genetic_algorithm_repeats_by_its_seed_and_gets_better() -> None:
    smiles, scores = asked("albuterol_similarity", 1)
    assert (smiles, scores) == asked("albuterol_similarity", 1)
    assert smiles != asked("albuterol_similarity", 2)[0]
    assert len(smiles) == len(set(smiles)) == 400
    assert scores == [task("albuterol_similarity")(Chem.MolFromSmiles(s)) for s in smiles]
    assert np.mean(sorted(scores[300:])[-10:]) > np.mean(sorted(scores[10:110])[-10:])


def test_the_genetic_algorithm_lives_with_a_score_that_is_always_0() -> None:
    smiles, scores = asked("valsartan_smarts", 0, calls=200)
    assert len(smiles) == 200
    assert set(scores) == {0.0}


def test_the_genetic_algorithm_ends_where_nothing_new_is_found() -> None:
    score = Score("qed", 100)
    ga.genetic(score, iter(["C"]), rng())  # too small to have children
    assert score.ledger.smiles == ["C"]


# -- scores and sources


def test_a_molecule_is_counted_once_and_nothing_beyond_the_budget() -> None:
    score = Score("qed", 3)
    assert score(["CCO", "CCN", "CCO"]).tolist() == score(["CCO", "CCN", "CCO"]).tolist()
    assert len(score) == 2
    with pytest.raises(BudgetSpent):
        score(["CCF", "CCCl"])
    assert score.ledger.smiles == ["CCO", "CCN", "CCF"]
    assert len(score(["CCF"])) == 1  # still known
    assert Score("qed", 3)(["CCO", "C1CC"]).tolist() == [score(["CCO"])[0], 0]  # the second is no molecule


@pytest.mark.parametrize("name", ["x.smi", "x.txt", "x.smi.gz", "x.csv", "x.csv.gz"])
def test_molecules_come_from_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = "C1CC\n\nOCC\nCCO ethanol\nc1ccccc1\n"  # the first is no molecule, the third is the second
    text = "id,SMILES\n" + "".join(f"7,{line.split()[0]}\n" for line in rows.splitlines() if line) if "csv" in name else rows
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert sorted(source(str(path), 0, rng())) == ["CCO", "c1ccccc1"]
    assert lines(str(path))[-1] == "c1ccccc1"


def test_a_file_comes_in_an_order_of_its_seed(drugs: Path) -> None:
    first, again, other = (list(source(str(drugs), 0, rng(seed))) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other) == sorted(map(canonical, DRUGS.split()))


def test_without_a_file_uniform_actions_build_molecules() -> None:
    first = [smiles for smiles, _ in zip(source("", 3, rng()), range(20), strict=False)]
    assert first == [smiles for smiles, _ in zip(source("", 3, rng(9)), range(20), strict=False)]
    assert len(set(first)) == 20
    assert [canonical(smiles) for smiles in first] == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "RDKit reads none of its first 0 lines as a molecule"),
        (b"once upon\na time\n", "RDKit reads none of its first 2 lines"),
        (b"\xff\xfe\x00", "it is not text"),
    ],
)
def test_a_file_of_no_molecules_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.smi"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        lines(str(path))
    with pytest.raises(UserError, match=message):
        bench(["qed"], ["random"], 1, 100, tmp_path / "out", 0, path)
    assert not (tmp_path / "out").exists()


# -- jobs and the bench


def job(out: Path, molecules: Path, **changed: Any) -> BenchJob:
    fields = {"method": "random", "task": "qed", "seed": 0, "calls": 100, "molecules": str(molecules), "digest": "x"}
    return BenchJob(**{**fields, **changed}, out=str(out))


def test_a_result_is_read_as_it_was_written(tmp_path: Path, drugs: Path) -> None:
    wanted = job(tmp_path / "out", drugs)
    assert read(wanted) is None
    made = run(wanted)
    again = read(wanted)
    assert again is not None
    assert again.smiles == made.smiles
    assert again.scores.tolist() == made.scores.tolist()
    assert sorted(again.smiles) == sorted(map(canonical, DRUGS.split()))
    with pytest.raises(UserError, match="was made with calls 100, now it is 200: choose another --out"):
        read(job(tmp_path / "out", drugs, calls=200))
    jobs.write(wanted.path, Result(wanted.settings, ("C",), np.array([np.nan]), 0, 0))
    empty = read(wanted)
    assert empty is not None
    assert auc(empty) == 0
    assert measures(empty)["top10"] == 0
    wanted.path.write_text('{"job": {}, "smiles": ["C"], "scores": [], "seconds": 1, "scoring": 1}')
    with pytest.raises(UserError, match="is no result of a job"):
        read(wanted)


def test_the_bench_goes_on_where_it_stopped(tmp_path: Path, drugs: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    bench(["qed"], ["ga", "random"], 1, 150, out, 0, drugs, tell=said.append)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("qed-0.json")}
    assert [path.parent.name for path in sorted(first)] == ["ga", "random"]
    leaderboard = tmp_path / "leaderboard.csv"
    leaderboard.write_text("method,qed,median1,other\nthem,0.9,0.5,7\n")
    table = bench(["qed", "median1"], ["ga", "random"], 2, 150, out, 0, drugs, leaderboard, said.append)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert "2 of 8 jobs are done already" in said
    assert table == (out / "pmo.md").read_text()
    assert "| them (published) | 1.400 | 1.400 |" in table
    assert re.search(r"\| qed \| 0\.\d{3} ± 0\.\d{3} \| 0\.\d{3} ± 0\.\d{3} \| 0\.900 \(them\) \|", table)
    rows = (out / "pmo.csv").read_text().splitlines()
    assert rows[0] == ",".join(COLUMNS)
    assert len(rows) == 1 + 8
    pytest.importorskip("matplotlib")
    assert (out / "pmo.png").read_bytes()[:4] == b"\x89PNG"


def test_one_failed_job_does_not_stop_the_others(tmp_path: Path, drugs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, result: Result) -> None:
        if result.job["task"] == "qed":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, result)

    write = jobs.write
    monkeypatch.setattr(jobs, "write", full)
    said = list[str]()
    with pytest.raises(
        UserError, match=r"1 of 2 jobs failed, the first being random qed seed 0: .*No space left on dev"
    ) as error:
        bench(["qed", "median1"], ["random"], 1, 100, tmp_path / "out", 0, drugs, tell=said.append)
    assert error.value.exit_code == 1
    assert "the same command tries again" in str(error.value)
    assert [path.name for path in (tmp_path / "out" / "random").iterdir()] == ["median1-0.json"]
    assert (tmp_path / "out" / "pmo.csv").exists()


def test_a_fault_of_a_method_is_said_with_its_place(tmp_path: Path, drugs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(wanted: BenchJob) -> Any:
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(jobs.METHODS, "random", jobs.Optimiser("", broken, 1))  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"raised ZeroDivisionError: by zero \(test_pmo.py, line \d+\)") as error:
        bench(["qed"], ["random"], 1, 100, tmp_path / "out", 0, drugs)
    assert error.value.exit_code == 5


@pytest.mark.slow
def test_gflownets_run_to_the_end_of_the_budget(tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = bench(["celecoxib_rediscovery"], ["gfn", "vargrad"], 1, 200, out, 0)
    assert "| **gfn** |" in table
    score = task("celecoxib_rediscovery")
    for method in ("gfn", "vargrad"):
        found = read(job(out, tmp_path, method=method, task="celecoxib_rediscovery", calls=200))
        assert found is not None
        assert len(set(found.smiles)) == len(found.smiles) == 200
        assert found.scores == pytest.approx([score(Chem.MolFromSmiles(smiles)) for smiles in found.smiles], abs=1e-12)
        assert 0 < found.scoring < found.seconds
        config = json.loads((out / method / "celecoxib_rediscovery-0" / "config.json").read_text())
        assert config["calls"] == 200
        assert config["env_settings"]["beta"] == (8.0 if method == "gfn" else 32.0)


@pytest.mark.slow
def test_a_gflownet_that_was_killed_goes_on(tmp_path: Path) -> None:
    """As if the process had been killed after the run had ended, before its result was written."""
    wanted = job(tmp_path / "out", tmp_path, method="gfn", calls=200)
    made = run(wanted)
    wanted.path.unlink()
    again = run(wanted)
    assert (again.smiles, again.scores.tolist()) == (made.smiles, made.scores.tolist())


@pytest.mark.slow
def test_a_bench_that_was_killed_goes_on_and_asks_the_same(tmp_path: Path) -> None:
    """kill -9 of everything while a GFlowNet trains: the same command continues its run, and its molecules are as uncut."""

    def command(out: Path) -> list[str]:
        words = ["bench", "pmo", "--tasks=median1", "--methods=vargrad", "--seeds=1", "--calls=600", "--workers=0"]
        return [sys.executable, "-m", "experiments.cli.gflownet", *words, f"--out={out}"]

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(command(cut), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(cut.glob("vargrad/median1-0/checkpoints/*"))) < 2:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not (cut / "vargrad" / "median1-0.json").exists()
    for out in (cut, whole):
        subprocess.run(command(out), cwd=ROOT, check=True, capture_output=True)
    first, second = (json.loads((out / "vargrad" / "median1-0.json").read_text()) for out in (cut, whole))
    assert (first["smiles"], first["scores"]) == (second["smiles"], second["scores"])
    assert len(set(first["smiles"])) == 600


def test_calls_of_a_run_are_read(tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_text("call,smiles,status,reward,pmo:qed\n1,CCO,ok,0.25,0.25\n2,C,error,,\n")
    smiles, scores = gfn.asked(path)
    assert smiles == ["CCO", "C"]
    assert scores[0] == 0.25
    assert np.isnan(scores[1])
    for text in ("call,reward\n1,0.5\n", "call,smiles,reward\n1,C,much\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not what a run writes"):
            gfn.asked(path)


@pytest.mark.slow
def test_processes_are_replaced_and_a_job_whose_process_is_killed_is_tried_again(
    tmp_path: Path, drugs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_file, "JOBS", 2)

    def kill_once(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    said = list[str]()
    bench(["qed", "median1", "median2"], ["random"], 1, 100, tmp_path / "out", 1, drugs, tell=kill_once)
    assert len(said) == 3
    assert not any("failed" in line for line in said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got no benchmark: gflownet bench pmo"),
        (["guacamol"], "there is no benchmark 'guacamol'; there is pmo"),
        (["pmo", "--tasks", "celecoxib"], "there is no PMO task 'celecoxib'; close: celecoxib_rediscovery"),
        (["pmo", "--tasks", "qed,valsartan"], "there is no PMO task 'valsartan'; close: valsartan_smarts"),
        (["pmo", "--tasks", ","], "got --tasks ',', which names nothing"),
        (["pmo", "--methods", "rando"], "there is no method 'rando'; close: random"),
        (["pmo", "--methods", "ga", "--calls", "50"], "got --calls 50, fewer than the 120 that ga asks at first"),
        (["pmo", "--seeds", "0"], "--seeds is 0, expected"),
        (["pmo", "--molecules", "nowhere.smi"], "--molecules .*nowhere.smi: No such file"),
        (["pmo", "--published", "nowhere.csv"], "--published nowhere.csv: No such file"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_unknown_task_in_a_reward_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "molecules", "--objective", "tb", "--reward", "qed*pmo:zaleplon", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "there is no PMO task 'zaleplon'; close: zaleplon_mpo" in said
    assert said.count("\n") == 1


def test_published_results_must_be_a_leaderboard(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for text in ("", "name,qed\na,1\n", "method,qed\na,much\n", "method,drd2\na,1\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="expected a CSV with the column method"):
            published(path)


# -- the table


def test_tasks_with_a_formula_are_left_out_of_the_second_sum() -> None:
    rows: list[dict[str, Any]] = [
        {**dict.fromkeys(COLUMNS, 0.0), "method": "a", "task": t, "seed": 0, "auc_top10": x, "calls": 100}
        for t, x in (("qed", 0.5), ("zaleplon_mpo", 0.25))
    ]
    table = markdown(rows, Published({"they": {"qed": 0.75, "zaleplon_mpo": 0.125}}))
    assert "| method | sum of 2 | of 1 without formulas |" in table
    assert "| **a** | 0.750 | 0.500 |" in table
    assert "| they (published) | 0.875 | 0.750 |" in table


def test_the_table_has_means_over_seeds() -> None:
    rows: list[dict[str, Any]] = [
        {**dict.fromkeys(COLUMNS, 0.0), "method": m, "task": t, "seed": s, "auc_top10": x, "calls": 100}
        for m, t, s, x in (("a", "x", 0, 0.1), ("a", "x", 1, 0.3), ("a", "y", 0, 0.5), ("a", "y", 1, 0.5), ("b", "x", 0, 0.9))
    ]
    table = markdown(rows, Published({"they": {"x": 0.2, "y": 0.7}, "part": {"x": 1.0}}))
    ranked = [line.split("|")[1:5] for line in table.splitlines()[2:5]]
    assert ranked == [
        [" they (published) ", " 0.900 ", " 0.900 ", "  "],
        [" **a** ", " 0.700 ± 0.141 ", " 0.700 ± 0.141 ", " 2 "],
        [" **b** ", " – ", " – ", " 0 "],  # y is missing
    ]
    assert "| x | 0.200 ± 0.141 | 0.900 | 1.000 (part) |" in table
    assert "| y | 0.500 ± 0.000 | – | 0.700 (they) |" in table
    assert "part (published)" not in table
