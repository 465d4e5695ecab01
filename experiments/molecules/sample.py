"""Molecules of a trained run, batch after batch, without exploration.

    attempt j = 0, 1, 2, ...    one tree of blocks by the policy of training seed j mod S (each seed in turn)
                                random numbers from (that seed, the sampling seed, j) and nothing else
    keep it if RDKit takes it, and with `unique` if its canonical isomeric SMILES was not met before
    stop at n;  give up after 20 batches without anything new, or after max_attempts (100 for each one wanted)

So the same numbers make the same molecules on the same machine, fewer of them are the first of more, and the size of a batch
changes rounding only. Memory does not depend on n, but for 16 bytes a molecule with `unique`, and for the notes of a reward of
the user's, or of a run with --calls. Batches may be computed in other processes (sample_workers.py).

    for row in samples("runs/qed", 1000, unique=True):
        print(row["smiles"], row["reward"])
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np

from experiments.cli.errors import UserError
from experiments.molecules.sample_workers import SampleWorkers
from experiments.molecules.trained import IDLE, Draw, Kept, Row, Sample, Trained, Wanted, molecules_of, trained
from experiments.run.faults import faults_as_sentences

PENDING = 1 << 16  # hashes that wait to be sorted in


class Shortfall(UserError):
    """Fewer molecules than wanted; those found have been returned."""

    exit_code = 1

    def __init__(self, wanted: Wanted, found: int, attempts: int, invalid: int, idle: int) -> None:
        self.found, self.attempts = found, attempts
        kind = "unique molecules" if wanted.unique else "valid molecules"
        bad = f", {invalid:,} of which RDKit refuses" if invalid else ""
        stale = idle >= IDLE * wanted.batch
        why = f"the last {idle:,} brought nothing new" if stale else "more are not made (--max-attempts)"
        hint = "leave out --unique, or train with a smaller --beta" if wanted.unique else "or correct the fragments"
        super().__init__(f"found {found:,} {kind} of {wanted.n:,} in {attempts:,} attempts{bad}; {why}: lower --n, {hint}")


class Batches(Protocol):
    """Where batches are computed: in this process or in others.

    ahead  how many batches may be scored while the next ones are drawn
    """

    ahead: int

    def draw(self, coming: Iterator[Draw]) -> list[str | None]:
        """Canonical isomeric SMILES of the first of some batches, None where RDKit refuses it. The others may be begun."""
        ...

    def score(self, draw: Draw, kept: list[Kept]) -> Callable[[], list[Sample]]:
        """Samples of a batch that was drawn, when they are asked for."""
        ...

    def close(self) -> None:
        """Leave what was begun."""
        ...


def samples(
    run: Path | str,
    n: int,
    *,
    unique: bool = False,
    seed: int = 0,
    batch: int = 512,
    scores: bool = True,
    log_p: bool = True,
    max_attempts: int | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    trust: bool = False,
    workers: int = 0,
) -> Iterator[Row]:
    """n rows: smiles, reward (before tempering), its parts, log_reward, log_p, blocks, seed (whose policy made it).

    log_p is of the tree of blocks; a molecule that other trees make as well is likelier than that.
    workers: processes that compute batches; 0 or 1: this one. The rows are the same.
    Raises Shortfall after the last row where fewer are found, and UserError as `trained` and `Wanted`.
    """
    wanted = Wanted(n, unique, seed, batch, scores, log_p, max_attempts, mols=False)
    for some in batches(trained(Path(run), checkpoint, device, trust), wanted, workers):
        yield from (sample.row for sample in some)


def batches(source: Trained, wanted: Wanted, workers: int = 0) -> Generator[list[Sample]]:
    """The same, with molecules, as they are found; a list may be empty."""
    with closing(_batches_in(workers, source, wanted)) as where:
        chosen, scored = _chosen(len(source.problem.seeds), wanted, where), deque[Callable[[], list[Sample]]]()
        over: Exception | None = None
        while True:
            try:
                some = next(chosen, None)
            except Exception as error:  # what was found before comes first
                some, over = None, error
            if some is None:
                break
            scored.append(some)
            while len(scored) > where.ahead:
                yield scored.popleft()()
        while scored:
            yield scored.popleft()()
        if over is not None:
            raise over


def _chosen(S: int, wanted: Wanted, where: Batches) -> Iterator[Callable[[], list[Sample]]]:
    """Batch after batch, the samples of what is wanted of it. Raises Shortfall at the end."""
    limit, seen = wanted.limit, SeenSmiles()
    found = attempts = invalid = 0
    since = 0  # attempts up to the last that brought something
    while found < wanted.n:
        if attempts >= limit or attempts - since >= IDLE * wanted.batch:
            raise Shortfall(wanted, found, attempts, invalid, attempts - since)
        draw, faults = next(_draws(S, wanted, attempts, found)), f"attempt {attempts + 1:,} and those after it"
        with faults_as_sentences(faults):
            smiles = where.draw(_draws(S, wanted, attempts, found))
            valid = (Kept(i, one) for i, one in enumerate(smiles) if one is not None)
            fresh = [one for one in valid if not wanted.unique or seen.add(one.smiles)][: wanted.n - found]
            score = where.score(draw, fresh)
        attempts += len(smiles)
        invalid += smiles.count(None)
        found += len(fresh)
        since = attempts if fresh else since
        yield faults_as_sentences(faults)(score)


def _draws(S: int, wanted: Wanted, attempts: int, found: int) -> Iterator[Draw]:
    """The batches that come after some attempts, if RDKit takes all molecules."""
    while found < wanted.n and attempts < wanted.limit:
        size = min(wanted.batch, wanted.limit - attempts, wanted.limit if wanted.unique else wanted.n - found)
        draw = Draw(attempts // S, -(-size // S))
        yield draw
        attempts += draw.n * S
        found += 0 if wanted.unique else draw.n * S


def _batches_in(workers: int, source: Trained, wanted: Wanted) -> Batches:
    if workers < 2:
        return Here(source, wanted)
    return SampleWorkers(source, wanted, workers)


class Here:
    """Batches in this process, one after another."""

    ahead = 0

    def __init__(self, source: Trained, wanted: Wanted) -> None:
        self._source, self._wanted = source, wanted

    def draw(self, coming: Iterator[Draw]) -> list[str | None]:
        self._obs = self._source.draw(self._wanted.seed, *next(coming))
        self._mols = self._source.molecules(self._obs)
        return [smiles if mol else None for smiles, mol in self._mols]

    def score(self, draw: Draw, kept: list[Kept]) -> Callable[[], list[Sample]]:
        obs, mols = self._obs, molecules_of(kept, self._mols)
        return lambda: self._source.scored(obs, kept, mols, self._wanted)

    def close(self) -> None:
        pass


class SeenSmiles:
    """A set of texts, as 64-bit hashes: 8 bytes each, twice that while they are sorted in.

    Two texts share a hash with probability n²/2^65; the second is then taken for the first.
    """

    def __init__(self) -> None:
        self._sorted, self._new = np.empty(0, dtype=np.uint64), set[int]()

    def add(self, text: str) -> bool:
        """Was it new?"""
        code = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        at = int(np.searchsorted(self._sorted, np.uint64(code)))
        if code in self._new or (at < len(self._sorted) and int(self._sorted[at]) == code):
            return False
        self._new.add(code)
        if len(self._new) >= PENDING:
            more = np.fromiter(self._new, dtype=np.uint64, count=len(self._new))
            self._sorted, self._new = np.concatenate([self._sorted, more]), set()
            self._sorted.sort()
        return True
