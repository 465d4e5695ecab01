"""`gflownet sample --workers N`: the same bytes, whoever computes what, whoever dies; faults and signals as in one process."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit")

from envs.molecules.bridge import Builder
from experiments.cli.errors import UserError
from experiments.molecules import sample_workers
from experiments.molecules.files import FORMATS
from experiments.molecules.sample import Shortfall, batches
from experiments.molecules.sample_workers import SampleWorkers, default_workers
from experiments.molecules.trained import Origin, Trained, Wanted, trained
from gflownet.rewards.trees import TreeReward
from tests.experiments.test_sample import TINY, Fussy, sample, train


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, molecules of two to four blocks, none of them enumerated."""
    return train(tmp_path_factory.mktemp("workers") / "tiny", TINY, "--max-blocks", 4, "--seeds", 2, "--metrics", "sampled")


class Inline:
    """An executor that works at once, in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._processes: dict[int, Any] = {}

    def submit(self, work: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        pass


class Dead(Inline):
    def submit(self, work: Any, *arguments: Any) -> Future[Any]:
        raise BrokenProcessPool


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_workers, "ProcessPoolExecutor", Inline)


def text(source: Trained, wanted: Wanted, workers: int, form: str = "sdf") -> str:
    found = [one for some in batches(source, wanted, workers) for one in some]
    return "".join(FORMATS[form].text(i, row, mol) for i, (row, mol) in enumerate(found))


@pytest.mark.usefixtures("inline")
def test_rows_do_not_depend_on_the_number_of_workers(run: Path) -> None:
    for wanted in (Wanted(30, batch=7), Wanted(30, unique=True, batch=7), Wanted(3, batch=64, log_p=False)):
        one, other = trained(run), trained(run)
        assert text(one, wanted, 0) == text(other, wanted, 3)
        assert other.problem.calls.calls > 0
    assert text(one, wanted, 0) == text(other, wanted, 1)


@pytest.mark.usefixtures("inline")
def test_refused_molecules_and_shortfalls_are_those_of_one_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that were begun as if all molecules were wanted are begun again where they were not."""
    before = Origin.made

    def refusing(self: Origin) -> Trained:
        source = before(self)
        return replace(source, builder=Fussier(source.builder))  # type: ignore[arg-type]

    monkeypatch.setattr(Origin, "made", refusing)
    for wanted in (Wanted(24, batch=6), Wanted(8, unique=True, batch=6)):
        assert text(trained(run), wanted, 0) == text(trained(run), wanted, 3)
    told = []
    for workers in (0, 3):
        with pytest.raises(Shortfall) as short:
            text(trained(run), Wanted(10_000, unique=True, batch=8, log_p=False, max_attempts=40), workers)
        told.append(str(short.value))
    assert told[0] == told[1]


class Fussier(Fussy):
    """Refuses every molecule with oxygen."""

    def __init__(self, builder: Any) -> None:
        super().__init__(builder, False)

    def mol(self, row: Any) -> Any:
        mol = self.builder.mol(row)
        if any(atom.GetAtomicNum() == 8 for atom in mol.GetAtoms()):
            raise ValueError
        return mol


@pytest.mark.usefixtures("inline")
def test_what_was_found_before_a_fault_comes_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = TreeReward.parts, list[int]()

    def failing(self: TreeReward, obs: torch.Tensor, *more: Any) -> Any:
        seen.append(len(obs))
        if len(seen) == 3:
            raise ValueError("qed of CC is nan, expected a finite number")
        return before(self, obs, *more)

    monkeypatch.setattr(TreeReward, "parts", failing)
    for workers in (0, 3):
        seen.clear()
        found = batches(trained(run), Wanted(60, batch=10), workers)
        assert [len(next(found)) for _ in range(2)] == [10, 10]
        with pytest.raises(UserError, match="attempt 21 and those after it: qed of CC is nan"):
            next(found)


@pytest.mark.usefixtures("inline")
def test_a_reward_that_is_noted_stays_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--max-blocks", 4, "--calls", 8, "--batch-size", 4, "--no-references"]
    noted, before = train(tmp_path / "noted", TINY, *more), Origin.made
    rewards = []

    def made(self: Origin) -> Trained:
        source = before(self)
        rewards.append(source.reward)
        return source

    monkeypatch.setattr(Origin, "made", made)
    one, other = trained(noted), trained(noted)
    assert text(one, Wanted(20, batch=6), 0) == text(other, Wanted(20, batch=6), 2)
    assert one.problem.calls.calls == other.problem.calls.calls > 0
    assert len(rewards) == 3
    assert rewards[2].ledger is None
    assert rewards[2].calls.calls == 0


def test_a_molecule_is_built_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, built = Builder.mol, list[int]()

    def counted(self: Builder, row: Any) -> Any:
        built.append(1)
        return before(self, row)

    source = trained(run)
    monkeypatch.setattr(Builder, "mol", counted)
    assert len(text(source, Wanted(20, batch=20), 0))
    assert len(built) == 20


def test_a_process_that_dies_again_and_again_is_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_workers, "ProcessPoolExecutor", Dead)
    with pytest.raises(UserError, match=r"died 3 times in a row.*--workers 0") as told:
        text(trained(run), Wanted(20, batch=5), 2)
    assert told.value.exit_code == 1


def test_how_many_there_are_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert [default_workers(n, "cpu") for n in (1000, 9_999, 10_000, 10**9)] == [0, 1, 2, 8]
    assert default_workers(10**9, "cuda") == 0


def test_processes_give_the_same_bytes_when_one_is_killed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, killed = SampleWorkers._received, list[int]()

    def and_kills(self: SampleWorkers, *arguments: Any) -> Any:
        if not killed:
            pool: Any = self._processes[0]._pool
            (process,) = pool._processes.values()
            killed.append(process.pid)
            process.kill()
            process.join()
        return before(self, *arguments)

    monkeypatch.setattr(SampleWorkers, "_received", and_kills)
    asked = ["--n", 60, "--unique", "--batch", 20, "--seed", 3, "--quiet"]
    sample(run, *asked, "--workers", 0, "--out", tmp_path / "one.sdf")
    assert not killed
    sample(run, *asked, "--workers", 2, "--out", tmp_path / "two.sdf")
    assert killed
    assert (tmp_path / "one.sdf").read_bytes() == (tmp_path / "two.sdf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_a_signal(run: Path, tmp_path: Path, how: signal.Signals) -> None:
    out, part = tmp_path / "mols.csv", tmp_path / ".mols.csv.part"
    out.write_text("old")
    command = [sys.executable, "-m", "experiments.cli.gflownet", "sample", run, "--n", 10**7, "--out", out, "--workers", 2]
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does it
    else:
        process.kill()
    _, error = process.communicate(timeout=60)  # its children hold stderr as well
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped after" in error.decode()
        assert "Traceback" not in error.decode()
    while _alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert out.read_text() == "old"


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
