"""Text of files and of people made safe to show: in terminals, tables, spreadsheets, JSON lines and SDF.

escape sequences, control and invisible characters are shown as text     ESC [ 2 J is \\x1b[2J
no cell begins as a formula of a spreadsheet                             =1+1 is '=1+1
no line of an SDF property ends the record or begins another property    $$$$ is \\$$$$
"""

from __future__ import annotations

import json
import re
from typing import Any

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def plain(text: str, keep: str = "") -> str:
    """The text with everything that is not printable, but `keep`, as escapes of Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def cell(value: Any) -> str:
    """A cell of CSV: a float with 8 significant digits, a whole number, text that no spreadsheet computes, or none: empty."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.8g}"
    if isinstance(value, int):
        return str(value)
    text = plain(str(value))
    return f"'{text}" if text.startswith(FORMULA) else text


def json_line(value: Any) -> str:
    """Strict JSON on one line whose characters are all printable; a reader gets the value itself."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def sdf_value(value: Any) -> str:
    """The value of a property of an SDF record, one line."""
    text = f"{value:.8g}" if isinstance(value, float) else plain(" ".join(("" if value is None else str(value)).split()))
    return f"\\{text}" if text.startswith(("$$$$", ">")) else text


def sdf_name(name: str) -> str:
    """The name of a property of an SDF record; RDKit keeps those that begin with _ to itself."""
    return re.sub(r"[<>]", "-", plain(name)).lstrip("_") or "-"
