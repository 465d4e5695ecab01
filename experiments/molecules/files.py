"""Molecules as text: CSV, JSON lines, SDF with coordinates in the plane, SMILES alone.

A row is a dict of column -> text or number, "smiles" first; every format writes rows one by one, so that a file may be as
long as the disk. Numbers have 8 significant digits. The same rows give the same bytes.

    .csv    names of the columns, then a row a line            .smi    a SMILES a line, nothing else
    .jsonl  an object a line                                   .sdf    title = number of the molecule, properties = the columns
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.errors import UserError
from experiments.cli.text import cell, json_line, sdf_name, sdf_value

if TYPE_CHECKING:
    from rdkit import Chem

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """head(row): what comes before the first row; text(number from 1, row, molecule).

    columns: whether it holds more than SMILES; mols: whether it needs the molecules.
    """

    head: Callable[[Row], str]
    text: Callable[[int, Row, Chem.Mol | None], str]
    columns: bool = True
    mols: bool = False


def format_of(path: Path, name: str | None) -> Format:
    """By the suffix; by `name` for standard output, "-" (csv where none is given). UserError where it is none of ours."""
    if str(path) == "-":
        if name not in (None, *FORMATS):
            raise UserError(f"--format is {name!r}, expected {', '.join(FORMATS)}")
        return FORMATS[name or "csv"]
    suffix = path.suffix.lower().removeprefix(".")
    known = ", ".join(f".{known}" for known in FORMATS)
    if suffix not in FORMATS:
        raise UserError(f"--out is {str(path)!r}, expected a name that ends in {known}, or - for standard output")
    if name not in (None, suffix):
        raise UserError(f"--format is {name} and --out {str(path)!r}: the suffix decides; leave out --format or name .{name}")
    return FORMATS[suffix]


def _line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([cell(x) for x in cells])
    return out.getvalue()


def _json(row: Row) -> str:
    return json_line({name: float(cell(x)) if isinstance(x, float) else x for name, x in row.items()}) + "\n"


def _sdf(number: int, row: Row, mol: Chem.Mol | None) -> str:
    from rdkit import Chem
    from rdkit.Chem import rdDepictor

    assert mol is not None
    flat = Chem.Mol(mol)
    Chem.FindPotentialStereoBonds(flat)  # drawn as open: a reader would take the drawing's side for the molecule's
    rdDepictor.Compute2DCoords(flat)
    flat.SetProp("_Name", str(number))
    for name, value in row.items():
        flat.SetProp(sdf_name(name), sdf_value(value))
    return Chem.SDWriter.GetText(flat)


def _nothing(row: Row) -> str:
    return ""


FORMATS = {
    "sdf": Format(_nothing, _sdf, mols=True),
    "csv": Format(lambda row: _line(list(row)), lambda number, row, mol: _line(list(row.values()))),
    "smi": Format(_nothing, lambda number, row, mol: f"{row['smiles']}\n", columns=False),
    "jsonl": Format(_nothing, lambda number, row, mol: _json(row)),
}
