"""TensorBoard's view of a run: every seed a sub-run, the aggregate over seeds, hyperparameters and config.

    seed-0 ... seed-9     one value per seed
    iqm                   interquartile mean over seeds
    iqm-low, iqm-high     the ends of its 95 % bootstrap interval
    all                   numbers that are not per seed, and pictures
    hparams               the HParams tab: settings, with the interquartile means of eval/... and mol/... as metrics; the config

The event files stand in the run folder itself, so that the names in TensorBoard are short. With more than 32 seeds only the
first 8 have sub-runs of their own; the aggregate is over all of them. With one seed there is no aggregate. The x-axis is the
step handed in (environment steps, objects visited), so the tag of that number has no curve. The wall time is real time. Each
tag carries a sentence that says what it means (the i beside its title). A value that is None (not measured, or not finite)
leaves no point, and the aggregate is over the seeds that have one.

The files are written with TensorBoard's own record writer and protocol buffers, in the form that its plain and its fast loader
and `EventAccumulator` all read: `simple_value` with the metadata of the scalar plugin, `histo` and `image`. Not with its
EventFileWriter: that starts one thread a run, and a full disk shows as a traceback in a thread, not as an error in `add`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.load import short_name
from experiments.cli.text import plain
from experiments.plots.statistics import bootstrap_interval, iqm
from experiments.run import safe
from experiments.run.folder import flat

Number = float | None
Histogram = Mapping[str, list[Any]]  # edges [n + 1], counts [S][n]
Values = Mapping[str, Number | list[Number] | Histogram | Path]

MANY, SHOWN = 32, 8
X_AXIS = ("env_steps", "states", "known")  # tags that are the step itself
METRICS = ("eval/", "mol/")  # of the HParams tab
SUB_RUNS = ("seed-*", "iqm", "iqm-low", "iqm-high", "all", "hparams")
LONGEST = 200  # letters of a text among the settings
FLUSH_SECONDS = 2.0
PNG = b"\x89PNG\r\n\x1a\n"
LAST = 1 << 62  # the largest step
_counter = itertools.count()  # two writers in one second need two file names


class ScalarWriter:
    """Event files of one run folder, `folder/<sub-run>/events...`; OSError from `add`, `flush` and `close` when the disk fails.

    descriptions: tag -> one sentence; an unknown tag is described by its name. config: written before the first row.
    """

    def __init__(
        self, folder: Path, descriptions: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self._descriptions, self._config = folder, dict(descriptions or {}), config
        self._files: dict[str, Any] = {}
        self._told: set[tuple[str, str]] = set()
        self._flushed = time.monotonic()

    def add(self, step: int, values: Values, wall_time: float | None = None) -> None:
        """One point per tag and sub-run. values: tag -> number, list of S numbers, histogram, or a PNG file that is there.

        wall_time: seconds since 1970.

        A seed stands at its own "env_steps" where that tag is there; everything else stands at `step`.
        """
        now = time.time() if wall_time is None else wall_time
        if self._config is not None:
            settings, text = _settings(self._config), _short(self._config)
            self._write("hparams", 0, now, {"_hparams_/session_start_info": settings, "config": text})
            self._config = None
        own: Any = values.get("env_steps")
        for name, points in _by_run({tag: value for tag, value in values.items() if tag not in X_AXIS}).items():
            at = own[k] if isinstance(own, list) and (k := _seed(name)) is not None and k < len(own) else None
            self._write(name, step if at is None else int(min(at, LAST)), now, points)
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

    def _write(self, name: str, step: int, now: float, points: dict[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        if name not in self._files:
            self._files[name] = self._open(name, now)
        entries = []
        for tag, value in points.items():
            entry, kind, data_class = _entry(tag, value)
            if (name, tag) not in self._told:
                self._told.add((name, tag))
                entry.metadata.plugin_data.plugin_name = kind
                entry.metadata.display_name, entry.metadata.summary_description = tag, self._descriptions.get(tag, tag)
                entry.metadata.data_class = data_class  # without it the fast loader drops the description
            entries.append(entry)
        event = event_pb2.Event(wall_time=now, step=step, summary=summary_pb2.Summary(value=entries))
        self._files[name].write(event.SerializeToString())

    def _open(self, name: str, now: float) -> Any:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        safe.folder(folder, make=True)
        file = RecordWriter(open(folder / f"events.out.tfevents.{int(time.time()):010d}.{next(_counter)}", "xb"))  # noqa: SIM115
        file.write(event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        # an open TensorBoard forgets what it had read of an earlier file of this run
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        file.write(event_pb2.Event(wall_time=now, step=0, session_log=start).SerializeToString())
        return file


def _entry(tag: str, value: Any) -> tuple[Any, str, Any]:
    """(a Summary.Value, the plugin that shows it, its data class).

    value: number, (edges, counts), a picture's file, text, or bytes of the HParams plugin.
    """
    from tensorboard.compat.proto import histogram_pb2, summary_pb2, tensor_pb2, types_pb2

    if isinstance(value, bytes):
        from tensorboard.plugins.hparams.metadata import NULL_TENSOR

        settings = summary_pb2.Summary.Value(tag=tag, tensor=NULL_TENSOR)
        settings.metadata.plugin_data.content = value
        return settings, "hparams", summary_pb2.DATA_CLASS_TENSOR
    if isinstance(value, str):
        text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[value.encode()])
        return summary_pb2.Summary.Value(tag=tag, tensor=text), "text", summary_pb2.DATA_CLASS_TENSOR
    if isinstance(value, Path):
        png = safe.read(value)
        if png[:8] != PNG or len(png) < 33:
            raise safe.Refused(f"{value} is not a PNG picture: remove it")
        width, height = (min(x, 1 << 30) for x in struct.unpack(">II", png[16:24]))  # where every PNG says it
        image = summary_pb2.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        return summary_pb2.Summary.Value(tag=tag, image=image), "images", summary_pb2.DATA_CLASS_BLOB_SEQUENCE
    if isinstance(value, tuple):
        edges, counts = np.array(value[0], dtype=np.float64), np.array(value[1], dtype=np.float64)
        middle = (edges[1:] + edges[:-1]) / 2
        histo = histogram_pb2.HistogramProto(
            min=edges[0], max=edges[-1], num=counts.sum(), sum=counts @ middle, sum_squares=counts @ middle**2
        )
        histo.bucket_limit.extend(edges[1:].tolist())
        histo.bucket.extend(counts.tolist())
        return summary_pb2.Summary.Value(tag=tag, histo=histo), "histograms", summary_pb2.DATA_CLASS_TENSOR
    return summary_pb2.Summary.Value(tag=tag, simple_value=value), "scalars", summary_pb2.DATA_CLASS_SCALAR


def _by_run(values: Values) -> dict[str, dict[str, Any]]:
    """sub-run -> tag -> number, (edges, counts) or file."""
    runs: dict[str, dict[str, Any]] = {}
    per_seed: dict[str, list[Number]] = {}
    for tag, value in values.items():
        if isinstance(value, list):
            per_seed[tag] = value
        elif isinstance(value, Mapping):
            for k, counts in enumerate(_shown(value["counts"])):
                runs.setdefault(f"seed-{k}", {})[tag] = value["edges"], counts
        elif value is not None:
            runs.setdefault("all", {})[tag] = value
    for tag, numbers in per_seed.items():
        for k, value in enumerate(_shown(numbers)):
            if value is not None:
                runs.setdefault(f"seed-{k}", {})[tag] = value
    for tag, end, value in _aggregate(per_seed):
        runs.setdefault(end, {})[tag] = value
    one = {**runs.get("all", {}), **(runs.get("iqm") or runs.get("seed-0", {}))}
    if metrics := {tag: value for tag, value in one.items() if tag.startswith(METRICS) and isinstance(value, float | int)}:
        runs["hparams"] = metrics
    return runs


def _seed(sub_run: str) -> int | None:
    return int(sub_run[5:]) if sub_run.startswith("seed-") else None


def _shown(per_seed: list[Any]) -> list[Any]:
    return per_seed[:SHOWN] if len(per_seed) > MANY else per_seed


def _aggregate(per_seed: Mapping[str, list[Number]]) -> Iterator[tuple[str, str, float]]:
    """(tag, "iqm" | "iqm-low" | "iqm-high", value); tags with the same number of values share one bootstrap."""
    groups: dict[int, dict[str, list[float]]] = {}
    for tag, values in per_seed.items():
        measured = [v for v in values if v is not None]
        if len(values) > 1 and measured:
            groups.setdefault(len(measured), {})[tag] = measured
    for group in groups.values():
        x = np.array(list(group.values()), dtype=np.float64).T
        low, high = bootstrap_interval(x, resamples=2000 if len(x) <= MANY else 400)
        for end, ends in (("iqm", iqm(x)), ("iqm-low", low), ("iqm-high", high)):
            yield from zip(group, itertools.repeat(end), ends.tolist(), strict=False)


def clear(folder: Path) -> None:
    """Remove the event files of a run folder, and nothing else."""
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # where runs before 0.4 have them
    for sub in (path for name in SUB_RUNS for path in folder.glob(name)):
        for file in safe.entries(sub, "events.out.tfevents.*"):
            file.unlink()
        with contextlib.suppress(OSError):
            sub.rmdir()


def _settings(config: Mapping[str, Any]) -> bytes:
    """The settings of a session of the HParams plugin: numbers, switches and short texts, each by its own name."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo()
    for name, value in flat(config).items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        elif value is not None and len(text := _text(value)) <= LONGEST:
            start.hparams[name].string_value = text
    data = plugin_data_pb2.HParamsPluginData(session_start_info=start, version=metadata.PLUGIN_DATA_VERSION)
    content: bytes = data.SerializeToString()
    return content


def _text(value: Any) -> str:
    return plain(" ".join(map(str, value)) if isinstance(value, list) else short_name(str(value)))


def _short(config: Mapping[str, Any]) -> str:
    """The config as Markdown, as it stands in config.json but for long texts (a vocabulary)."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(x) for key, x in value.items()}
        return f"{value[:LONGEST]}..." if isinstance(value, str) and len(value) > LONGEST else value

    return "\n".join(f"    {line}" for line in json.dumps(cut(config), indent=1, ensure_ascii=True).splitlines())
