"""Molecules drawn in a grid, as PNG. The same molecules give the same picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from gflownet.molecules.fingerprints import parsed

PANEL = (240, 200)  # pixels
WIDEST = 32_000  # pixels that Cairo draws in a row or a column
LEGEND = 32  # letters of a legend's line
LETTER = 14  # pixels of its height
BOND = 28.0  # pixels, where the molecule then fits


def draw(
    molecules: Sequence[Chem.Mol | str],
    legends: Sequence[str] = (),
    marked: Sequence[Sequence[int]] = (),
    columns: int | None = None,
    panel: tuple[int, int] = PANEL,
) -> bytes:
    """PNG of a grid, row by row.

    molecules  RDKit's or SMILES                      legends  a text below each, or none at all
    marked     atoms of each with a coloured disc     columns  default: about as many as rows
    panel      pixels of one molecule, (width, height)
    Raises ValueError for no molecules, SMILES that cannot be read, lists of different lengths, and grids that are too large.
    """
    if not molecules:
        raise ValueError("there are no molecules to draw; give at least one")
    mols = [parsed(molecule) for molecule in molecules]
    for name, given in (("legends", legends), ("marked", marked)):
        if given and len(given) != len(mols):
            raise ValueError(f"got {len(given)} {name} for {len(mols)} molecules, expected one for each")
    columns = columns or min(len(mols), max(4, math.ceil(math.sqrt(len(mols)))))
    width, height = panel[0] * columns, panel[1] * math.ceil(len(mols) / columns)
    if columns < 1 or max(width, height) > WIDEST:
        raise ValueError(f"a grid of {width} x {height} pixels is too large to draw; give fewer molecules or smaller panels")
    canvas = rdMolDraw2D.MolDraw2DCairo(width, height, *panel)
    options: Any = canvas.drawOptions()
    options.drawMolsSameScale, options.fixedBondLength, options.includeMetadata = False, BOND, False
    lines = max((len(text.splitlines()) for text in legends), default=0)
    options.legendFontSize, options.legendFraction = LETTER, 1.5 * LETTER * max(lines, 1) / panel[1]
    atoms = {"highlightAtoms": [list(some) for some in marked], "highlightBonds": [[] for _ in mols]} if marked else {}
    canvas.DrawMolecules(mols, legends=[_short(text) for text in legends] or None, **atoms)
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


def _short(text: str) -> str:
    return "\n".join(line if len(line) <= LEGEND else line[: LEGEND - 2] + ".." for line in text.splitlines())
