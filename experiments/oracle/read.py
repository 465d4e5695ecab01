"""Molecules of a file or of standard input, as text, one SMILES each.

.smi, .txt, -    the first word of each line; a first line that begins with "smiles", empty lines and lines of # are passed over
.csv             the column smiles; standard input is CSV where its first line names such a column beside others
.gz              any of these, compressed
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from experiments.cli.errors import UserError


def smiles_of(source: Path) -> Iterator[str]:
    """The SMILES of a file, or of standard input ("-"), in order. UserError where it cannot be read."""
    try:
        with _opened(source) as file:
            yield from _smiles(file, source)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source}: it is not text with a SMILES on each line ({error})") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{source}: the compressed file is damaged ({error})", exit_code=3) from error
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[TextIO]:
    if str(source) == "-":
        yield sys.stdin
    elif source.suffix == ".gz":
        with gzip.open(source, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    else:
        with source.open(encoding="utf-8-sig", newline="") as file:
            yield file


def _smiles(file: TextIO, source: Path) -> Iterator[str]:
    first = next(file, "")
    head = [cell.strip().lower() for cell in next(csv.reader([first]), [])]
    named = ".csv" in source.suffixes
    if named and "smiles" not in head:
        raise UserError(f"{source}: the first line names the columns {', '.join(head) or 'none'}, expected one named smiles")
    lines = itertools.chain([first], file)
    if named or ("smiles" in head and len(head) > 1):
        column = head.index("smiles")
        rows = csv.reader(lines)
        next(rows)
        yield from (row[column].strip() if column < len(row) else "" for row in rows if row)
        return
    words = (line.split(None, 1) for line in lines)
    found = (word[0] for word in words if word and not word[0].startswith("#"))
    yield from (word for i, word in enumerate(found) if i or word.lower() != "smiles")
