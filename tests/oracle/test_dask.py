"""The same on a Dask cluster of this machine, with a worker killed."""

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.errors import UserError
from experiments.oracle.make import make_oracle
from experiments.oracle.settings import OracleSettings

distributed = pytest.importorskip("distributed")
REWARDS = Path(__file__).with_name("rewards.py")
WORKERS = 2


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_worker_that_is_killed_costs_no_molecule(client: Any, tmp_path: Path) -> None:
    scores(client, tmp_path, 100, 0.3)


@pytest.mark.slow
def test_many_molecules_with_faults_and_a_worker_killed(client: Any, tmp_path: Path) -> None:
    """MOLECULES=10000 for as many."""
    scores(client, tmp_path, int(os.environ.get("MOLECULES", "1000")), 0.5)


def scores(client: Any, tmp_path: Path, n: int, timeout: float) -> None:
    shutil.copy(REWARDS, tmp_path / "mine.py")
    smiles = [f"[{i}CH4]" for i in range(n)]
    settings = OracleSettings(reward_cache=str(tmp_path / "a.sqlite"), reward_timeout=timeout)
    asked = tmp_path / "asked"

    def kill_one() -> None:
        while not asked.exists() or len(asked.read_text().split()) < n // 4:
            time.sleep(0.02)
        os.kill(client.submit(os.getpid, pure=False).result(), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with make_oracle(f"{tmp_path / 'mine.py'}:faulty", settings, run="one", executor=client.get_executor()) as oracle:
        scored = oracle(smiles)
        assert sum(oracle.counts.status.values()) == n
    killer.join()
    status = Counter(x.status for x in scored)
    assert status == {"ok": n * 17 // 20, "timeout": n // 20, "error": n // 20, "invalid": n // 20}
    times = Counter(asked.read_text().split())
    assert set(times) == set(smiles)
    # a job under way on the worker that died, and answers that it had not handed over yet, are asked again
    assert sum(times.values()) - n <= max(20, n // 100)
    with make_oracle(f"{tmp_path / 'mine.py'}:faulty", settings, run="one") as again:
        assert [x.status for x in again(smiles)] == [x.status for x in scored]
        assert again.counts.asked == 0


def test_no_cluster_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REWARDS, tmp_path / "mine.py")
    monkeypatch.setattr("experiments.oracle.executors.PATIENCE", 1.0)
    settings = OracleSettings(reward_cache="none", executor="dask:tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="no scheduler answers there"):
        make_oracle(f"{tmp_path / 'mine.py'}:good", settings)


def test_a_scheduler_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.oracle.executors.PATIENCE", 3.0)
    shutil.copy(REWARDS, tmp_path / "mine.py")
    from dask import config

    with (
        config.set({"distributed.comm.timeouts.connect": "1s"}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", processes=False
        ) as cluster,
    ):
        settings = OracleSettings(reward_cache="none", executor=f"dask:{cluster.scheduler.address}")
        with make_oracle(f"{tmp_path / 'mine.py'}:hangs", settings) as oracle:
            oracle.submit(["C"])
            cluster.close()
            with pytest.raises(UserError, match="is gone: start it, and go on"):
                oracle(["C"])


def test_a_cluster_by_its_address(client: Any, tmp_path: Path) -> None:
    shutil.copy(REWARDS, tmp_path / "mine.py")
    settings = OracleSettings(reward_cache="none", executor=f"dask:{client.scheduler.address}")
    with make_oracle(f"{tmp_path / 'mine.py'}:good", settings) as oracle:
        assert [x.value for x in oracle(["C", "CC"])] == [1, 2]
