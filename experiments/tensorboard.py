"""Scalars for TensorBoard: every seed a run, and the aggregate over seeds as runs of its own.

    seed-0 ... seed-9     one value per seed
    aggregate/iqm         interquartile mean over seeds
    aggregate/low, /high  the ends of its 95 % bootstrap interval
    all                   numbers that are not per seed

With more than 32 seeds only the first 8 have runs of their own; the aggregate is over all of them. With one seed there is no
aggregate. The x-axis is the step handed in (environment steps), the wall time is real time, and each tag carries a sentence
that says what it means (the i beside its title). A value that is None (not measured, or not finite) leaves no point, and the
aggregate is over the seeds that have one.

The files are written with TensorBoard's own record writer and protocol buffers, in the form that its plain and its fast loader
and `EventAccumulator.Scalars` all read: `simple_value` with the metadata of the scalar plugin. Not with its EventFileWriter:
that starts one thread a run, and a full disk shows as a traceback in a thread, not as an error in `add`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.statistics import bootstrap_interval, iqm

Number = float | None
Scalars = Mapping[str, Number | list[Number]]

MANY, SHOWN = 32, 8
FLUSH_SECONDS = 2.0
_counter = itertools.count()  # two writers in one second need two file names


class ScalarWriter:
    """Event files of one run folder, `folder/<sub-run>/events...`; OSError from `add`, `flush` and `close` when the disk fails.

    descriptions: tag -> one sentence; an unknown tag is described by its name.
    """

    def __init__(self, folder: Path, descriptions: Mapping[str, str] | None = None) -> None:
        self.folder, self._descriptions = folder, dict(descriptions or {})
        self._files: dict[str, Any] = {}
        self._told: set[tuple[str, str]] = set()
        self._flushed = time.monotonic()

    def add(self, step: int, scalars: Scalars, wall_time: float | None = None) -> None:
        """One point per tag and sub-run. scalars: tag -> number, or list of S numbers; wall_time: seconds since 1970.

        A seed stands at its own "env_steps" where that tag is there; everything else stands at `step`.
        """
        now = time.time() if wall_time is None else wall_time
        for name, values in _by_run(scalars).items():
            own = values.get("env_steps") if name.startswith("seed-") else None
            self._write(name, step if own is None else int(own), now, values)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        files, self._files = self._files, {}
        with contextlib.ExitStack() as stack:  # each is closed, also after one that fails
            for file in files.values():
                stack.callback(file.close)

    def _write(self, name: str, step: int, now: float, values: dict[str, float]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.scalar.metadata import create_summary_metadata

        if name not in self._files:
            self._files[name] = self._open(name, now)
        entries = []
        for tag, value in values.items():
            entry = summary_pb2.Summary.Value(tag=tag, simple_value=value)
            if (name, tag) not in self._told:
                self._told.add((name, tag))
                entry.metadata.CopyFrom(create_summary_metadata(tag, self._descriptions.get(tag, tag)))
                entry.metadata.data_class = summary_pb2.DATA_CLASS_SCALAR  # without it the fast loader drops the description
            entries.append(entry)
        event = event_pb2.Event(wall_time=now, step=step, summary=summary_pb2.Summary(value=entries))
        self._files[name].write(event.SerializeToString())

    def _open(self, name: str, now: float) -> Any:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        file = RecordWriter(open(folder / f"events.out.tfevents.{int(time.time()):010d}.{next(_counter)}", "xb"))  # noqa: SIM115
        file.write(event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        # an open TensorBoard forgets what it had read of an earlier file of this run
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        file.write(event_pb2.Event(wall_time=now, step=0, session_log=start).SerializeToString())
        return file


def _by_run(scalars: Scalars) -> dict[str, dict[str, float]]:
    """sub-run -> tag -> value."""
    runs: dict[str, dict[str, float]] = {}
    per_seed: dict[str, list[Number]] = {}
    for tag, value in scalars.items():
        if isinstance(value, list):
            per_seed[tag] = value
        elif value is not None:
            runs.setdefault("all", {})[tag] = value
    for tag, values in per_seed.items():
        shown = SHOWN if len(values) > MANY else len(values)
        for k, value in enumerate(values[:shown]):
            if value is not None:
                runs.setdefault(f"seed-{k}", {})[tag] = value
    for tag, end, value in _aggregate(per_seed):
        runs.setdefault(f"aggregate/{end}", {})[tag] = value
    return runs


def _aggregate(per_seed: Mapping[str, list[Number]]) -> Iterator[tuple[str, str, float]]:
    """(tag, "iqm" | "low" | "high", value); tags with the same number of values share one bootstrap."""
    groups: dict[int, dict[str, list[float]]] = {}
    for tag, values in per_seed.items():
        measured = [v for v in values if v is not None]
        if len(values) > 1 and measured:
            groups.setdefault(len(measured), {})[tag] = measured
    for group in groups.values():
        x = np.array(list(group.values()), dtype=np.float64).T
        low, high = bootstrap_interval(x, resamples=2000 if len(x) <= MANY else 400)
        for end, ends in (("iqm", iqm(x)), ("low", low), ("high", high)):
            yield from zip(group, itertools.repeat(end), ends.tolist(), strict=False)
