"""Executors by name: `processes` of this machine, or those of a Dask cluster."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.load import refuse_command
from experiments.oracle.threads import Threads

PATIENCE = 10.0  # seconds for a scheduler to answer


class Place(NamedTuple):
    """An executor; what raises UserError where it will never answer again; what ends it."""

    executor: Executor
    check: Callable[[], None]
    end: Callable[[], None]


def executor_of(name: str, workers: int) -> Place:
    """The executor that --executor names.

    Args:
        name: processes, dask:local or dask:ADDRESS.
        workers: how many rewards run at once on this machine; a cluster that is there already has workers of its own.

    Raises:
        UserError: there is no such executor, no cluster answers, or an opened run may not connect to it.
        MissingPackage: Dask is not installed.
    """
    if name == "processes":
        pool = Threads(workers)
        return Place(pool, lambda: None, lambda: pool.shutdown(wait=False, cancel_futures=True))
    kind, _, address = name.partition(":")
    if kind != "dask" or not address:
        raise UserError(f"--executor {name!r} is not known, expected processes, dask:local or dask:tcp://HOST:PORT")
    if address != "local":
        refuse_command(f"--executor {name}")  # a scheduler sends pickles
    return _dask(address, workers)


def _dask(address: str, workers: int) -> Place:
    try:
        dask: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise MissingPackage("Dask", "dask", "--executor dask") from error
    cluster: Any = None
    if address == "local":
        cluster = dask.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    try:
        client = dask.Client(cluster or address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--executor dask:{address}: no scheduler answers there ({error}): start one, or use dask:local"
        ) from error

    def end() -> None:
        client.close()
        if cluster is not None:
            cluster.close()

    def check() -> None:
        if client.status == "closed":  # after it has tried to connect again
            raise UserError(f"the scheduler of --executor dask:{address} is gone: start it, and go on", exit_code=1)

    return Place(client.get_executor(pure=False), check, end)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
