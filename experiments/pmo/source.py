"""Where first molecules come from: a file of SMILES in random order, or uniform actions that build them from our fragments."""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from experiments.cli.errors import UserError

LOOKED_AT = 1000  # lines in which a molecule is expected
BATCH = 256  # trees built at a time
IDLE = 40  # batches without a new molecule, after which the fragments are said to give no more


def source(molecules: str, seed: int, rng: np.random.Generator) -> Iterator[str]:
    """Canonical SMILES of different molecules, as many as there are.

    Args:
        molecules: a file; "": uniform actions build them from our fragments.
        seed: of those actions.
        rng: the order of the file.

    Raises:
        UserError: the file cannot be read, or has no molecules.
    """
    seen = set()
    for smiles in from_file(molecules, rng) if molecules else from_fragments(seed):
        if smiles not in seen:
            seen.add(smiles)
            yield smiles


def from_file(path: str, rng: np.random.Generator) -> Iterator[str]:
    texts = lines(path)
    for i in rng.permutation(len(texts)).tolist():
        if smiles := canonical(texts[i]):
            yield smiles


def from_fragments(seed: int) -> Iterator[str]:
    """Episodes of uniform valid actions, of 2 to 8 of our fragments."""
    from envs.molecules.block_trees import BlockTrees
    from envs.molecules.bridge import Builder
    from envs.molecules.fragments import blocks_of, default_fragments
    from envs.random import Rng
    from envs.rollout import rollout
    from gflownet.baselines.uniform import UniformActions

    fragments = default_fragments()
    env, builder, found = BlockTrees(blocks_of(fragments)), Builder(fragments), set[str]()
    idle = 0
    for batch in itertools.count():
        trees = rollout(env, UniformActions(), Rng.of_seeds([seed]).fold(batch).spawn(BATCH)).last
        assert trees is not None
        before = len(found)
        for mol in builder.molecules(trees):
            smiles = canonical(Chem.MolToSmiles(mol))
            if smiles and smiles not in found:
                found.add(smiles)
                yield smiles
        idle = 0 if len(found) > before else idle + 1
        if idle == IDLE:
            return


def canonical(text: str) -> str:
    """Canonical SMILES; "" for what RDKit cannot read."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text)
    return Chem.MolToSmiles(mol) if mol is not None else ""


@functools.lru_cache(2)
def lines(path: str) -> tuple[str, ...]:
    """The SMILES of a file as they stand there: a column of a CSV (`smiles`, or the first), or the first word of each line.

    Raises:
        UserError: it cannot be read, or RDKit reads none of the first of them.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--molecules {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"--molecules {path}: it is not text; give a file with a SMILES on each line") from error
    if ".csv" in file.suffixes:
        rows = [row for row in csv.reader(text.splitlines()) if row]
        head = [cell.strip().lower() for cell in rows[0]] if rows else []
        column = head.index("smiles") if "smiles" in head else 0
        found = [row[column].strip() for row in rows if len(row) > column]
    else:
        found = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not any(canonical(one) for one in found[:LOOKED_AT]):
        raise UserError(
            f"--molecules {path}: RDKit reads none of its first {min(len(found), LOOKED_AT):,} lines as a molecule; "
            "give a file with a SMILES on each line, or a CSV with a column smiles"
        )
    return tuple(found)


def digest(path: str) -> str:
    """SHA-256 of a file that `lines` can read; "" for no file."""
    if not path:
        return ""
    lines(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
