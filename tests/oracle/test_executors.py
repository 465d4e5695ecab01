"""Any executor: what is lost with a worker is handed over again, and in the end it is an error."""

import os
import shutil
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.load import judged_by
from experiments.oracle.cache import AnswerCache
from experiments.oracle.executors import executor_of
from experiments.oracle.make import make_oracle
from experiments.oracle.runner import RESENDS, Runner
from experiments.oracle.settings import OracleSettings
from experiments.oracle.spec import function_spec
from experiments.oracle.threads import Threads
from experiments.run.identity import Identity, Untrusted

REWARDS = Path(__file__).with_name("rewards.py")
SETTINGS = OracleSettings(reward_cache="none", reward_timeout=20.0)


@pytest.fixture
def name(tmp_path: Path) -> str:
    shutil.copy(REWARDS, tmp_path / "mine.py")
    return f"{tmp_path / 'mine.py'}:good"


class Losing(Threads):
    """Loses every job of a molecule so many times."""

    def __init__(self, times: int, how: type[BaseException] = OSError) -> None:
        super().__init__(2)
        self.left: dict[Any, int] = {}
        self.times, self.how = times, how

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.left.setdefault(args[0].smiles, self.times)
        if not args[0].smiles or not self.left[args[0].smiles]:
            return super().submit(fn, *args, **kwargs)
        self.left[args[0].smiles] -= 1
        return super().submit(self.lose)

    def lose(self) -> None:
        raise self.how("gone")


@pytest.mark.parametrize("times", [1, RESENDS])
def test_a_job_that_is_lost_is_handed_over_again(name: str, times: int) -> None:
    with make_oracle(name, SETTINGS, executor=Losing(times)) as oracle:
        assert [x.value for x in oracle(["C", "CC", "CCC"])] == [1, 2, 3]
        assert oracle.counts.status == {"ok": 3}


def test_a_job_that_is_always_lost_is_an_error(name: str) -> None:
    with make_oracle(name, SETTINGS, executor=Losing(1000)) as oracle:
        (scored,) = oracle(["C"])
    assert scored.status == "error"
    assert scored.message == f"its worker was lost {RESENDS + 1} times: OSError: gone"


def test_an_executor_that_takes_nothing_any_more(name: str) -> None:
    pool = ThreadPoolExecutor(1)
    with make_oracle(name, SETTINGS, executor=pool) as oracle:
        assert oracle(["C"])[0].value == 1
        pool.shutdown()
        assert "cannot schedule new futures" in oracle(["CC"])[0].message
    with pytest.raises(UserError, match="the executor could not load the reward: RuntimeError"):
        make_oracle(name, SETTINGS, executor=pool)


def test_a_pool_of_processes_that_breaks_is_made_anew(name: str) -> None:
    made: list[ProcessPoolExecutor] = []

    def pool() -> Executor:
        made.append(ProcessPoolExecutor(1, get_context("spawn")))
        return made[-1]

    spec = function_spec(name)
    with AnswerCache(None, spec.key) as cache, Runner(spec, pool, cache) as oracle:
        oracle.load()
        assert oracle(["C"])[0].value == 1
        oracle._executor.submit(os._exit, 1)
        assert [x.value for x in oracle(["CC", "CCC", "N"])] == [2, 3, 1]
    assert len(made) == 2


@pytest.mark.parametrize("name", ["threads", "dask", "dask:", "ray:local"])
def test_an_executor_that_there_is_none_of(name: str) -> None:
    with pytest.raises(UserError, match="expected processes, dask:local or dask:tcp://HOST:PORT"):
        executor_of(name, 1)


def test_dask_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingPackage, match=r"pip install 'pgrl\[dask\]'"):
        executor_of("dask:local", 1)


def faulty(tmp_path: Path, n: int, workers: int, timeout: float) -> None:
    shutil.copy(REWARDS, tmp_path / "mine.py")
    smiles = [f"[{i}CH4]" for i in range(n)]
    settings = OracleSettings(reward_cache=str(tmp_path / "a.sqlite"), reward_timeout=timeout)
    name = f"{tmp_path / 'mine.py'}:faulty"
    with make_oracle(name, settings, workers, run="one") as oracle:
        scored = oracle(smiles)
        assert oracle.counts.asked == sum(oracle.counts.status.values()) == n
    expected = {0: "timeout", 1: "error", 2: "invalid"}
    assert [x.status for x in scored] == [expected.get(i % 100 // 5, "ok") for i in range(n)]
    asked = Counter((tmp_path / "asked").read_text().split())
    assert asked == Counter(smiles)  # each once
    with make_oracle(name, settings, workers, run="one") as again:
        assert [x.status for x in again(smiles)] == [x.status for x in scored]
        assert again.counts.asked == 0


def test_molecules_that_hang_crash_and_give_nan(tmp_path: Path) -> None:
    faulty(tmp_path, 100, 4, 0.3)


@pytest.mark.slow
def test_many_molecules_with_faults(tmp_path: Path) -> None:
    """MOLECULES=10000 for as many."""
    faulty(tmp_path, int(os.environ.get("MOLECULES", "1000")), 4, 0.5)


def test_an_opened_run_connects_to_the_scheduler_it_was_trained_with_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("experiments.oracle.executors._dask", lambda address, workers: address)
    run = Identity.new({"env_settings": {"executor": "dask:tcp://here:1"}})
    stranger = Identity(run.id, run.files, "0" * 64)
    for of, name, trusted in ((run, "here", True), (run, "there", False), (stranger, "here", False)):
        with judged_by(lambda *file, of=of: of.judge(tmp_path, *file)):  # type: ignore[misc]
            if trusted:
                executor_of(f"dask:tcp://{name}:1", 1)
                continue
            with pytest.raises(Untrusted, match="pass --trust"):
                executor_of(f"dask:tcp://{name}:1", 1)
