"""metrics.jsonl: one JSON line per log row, whole lines only, nothing lost while the disk is full."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cli.errors import UserError
from experiments.run import safe

LARGEST = 1 << 30  # bytes of a file that is read


class MetricsError(UserError):
    """A metrics file is absent or damaged."""

    exit_code = 3


def read_metrics(path: Path, timing: bool = True) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, or of the one in run folder `path`; a number that was not finite is None.

    timing=False leaves out `wall` and `time/...`: what remains is equal for equal runs. A half-written last line is left out;
    any other damage raises MetricsError with the line number.
    """
    path = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    try:
        rows = rows_of(safe.read(path, LARGEST), path)
    except OSError as error:
        raise MetricsError(f"{path} cannot be read ({error.strerror})") from error
    if timing:
        return rows
    return [{tag: x for tag, x in row.items() if tag != "wall" and not tag.startswith("time/")} for row in rows]


def rows_of(data: bytes, path: Path) -> list[dict[str, Any]]:
    """The rows in the bytes of the file `path`; errors as `read_metrics`."""
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # what follows the last line end is half a line, or nothing
        try:
            row = safe.parse_json(line)
        except ValueError as error:
            raise MetricsError(f"{path}, line {number} is not JSON ({error})") from error
        if wrong := _wrong(row):
            raise MetricsError(f"{path}, line {number} is not a log row: {wrong}")
        rows.append(row)
    return rows


class MetricsLog:
    """The file, open for appending after its first `length` bytes; what follows them is cut off. OSError when the disk fails.

    `length` is always the end of the last whole line on the disk; rows that did not get there wait for the next `flush`.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self._file = safe.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.ftruncate(self._file, length)
        os.fsync(self._file)
        self.length, self._pending = length, b""

    def append(self, row: Mapping[str, Any]) -> None:
        """Take one row; `flush` writes it."""
        self._pending += (json.dumps(row, allow_nan=False) + "\n").encode()

    def flush(self) -> None:
        view = memoryview(self._pending)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, self.length)  # no half line
            raise
        self.length, self._pending = self.length + len(self._pending), b""

    def sync(self) -> None:
        """`flush`, and make sure that the bytes are on the disk."""
        self.flush()
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _wrong(row: Any) -> str:
    """What a log row lacks; empty where it is one."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return "it has no integer 'step'"
    if row.get("wall") is None or not _number(row["wall"]):
        return "it has no number 'wall'"
    odd = next((tag for tag, value in row.items() if not _entry(value)), None)
    return "" if odd is None else f"{odd[:40]!r} is neither a number, nor a list of numbers, nor a histogram"


def _number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _entry(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_number, value))
    if not isinstance(value, dict):
        return _number(value)
    edges, counts = value.get("edges"), value.get("counts")
    if set(value) != {"edges", "counts"} or not isinstance(edges, list) or not isinstance(counts, list):
        return False
    rows = [edges, *counts]
    return all(isinstance(x, list) and all(_number(v) and v is not None for v in x) for x in rows) and all(
        len(x) == len(edges) - 1 for x in counts
    )


def is_row(value: Any) -> bool:
    """Whether it is tag -> number, list of numbers, or histogram."""
    return isinstance(value, dict) and all(map(_entry, value.values()))


def is_counts(value: Any, n: int) -> bool:
    """Whether it is a list of n whole numbers from 0 on."""
    return isinstance(value, list) and len(value) == n and all(type(x) is int and x >= 0 for x in value)


def finite(value: Any) -> Any:
    """A number, or a list of numbers, as JSON has them: NaN and infinities become None; tensors and arrays become lists.

    Of a histogram {"edges": [...], "counts": [[...], ...]} both.
    """
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if value is None or isinstance(value, float):
        return value if value is not None and math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"expected a number or a list of numbers, got {value!r}")
