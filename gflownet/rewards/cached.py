"""`Quantities`: quantities of molecules with a cache, because RDKit takes about a millisecond for QED alone.

    quantities(keys, molecules):
        missing   = distinct keys that are not in the cache, in order of appearance
        values    = every measure of molecules(missing), here or in worker processes; every function of their SMILES
        add them to the cache; evict the least recently used keys

A key names a molecule: its canonical SMILES, which is then what functions are given, or the key of its tree. `molecules` must
make the same RDKit molecule for the same key whatever the batch, including the order of atoms, because a sum over atoms depends
on their order in the last bit. Then the values depend neither on the cache nor on the number of workers.

Time for one drug-like molecule of 26 atoms (one core): QED 1.0 ms, SA score 0.20, logP 0.22, rotors 0.06, similarity 0.04,
SMILES to molecule 0.12 ms, a cached molecule 0.3 µs. Serialising a molecule for another process takes 0.05 ms.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from envs.child_process import follow_parent, kill
from envs.raised import raised
from gflownet.rewards.calls import RewardCalls
from gflownet.rewards.chemistry import Floats, Measure
from gflownet.rewards.lru import LRUCache
from gflownet.rewards.oracle import STATUSES, Oracle, Scored

Molecules = Callable[[list[int]], Sequence[Chem.Mol]]
"""Makes the molecules at the given indices of the batch."""
Function = Callable[[list[str]], Sequence[float]]
"""From a list of SMILES to as many numbers."""
STATUS = "status"
"""The quantity that says whether an oracle failed: an index of `oracle.STATUSES`, the largest of several oracles."""

RESTARTS = 3  # the most for one batch; after that one of its molecules is assumed to be faulty
FEWEST = 8  # the fewest molecules for each worker; smaller batches are computed in this process


class Quantities:
    """Computes quantities of molecules, with an LRU cache. It is a context manager; `close` ends the workers.

    Args:
        measures: quantities of one molecule, by name.
        functions: functions of a list of SMILES, or oracles, by name.
        size: molecules in the cache.
        workers: processes; 0: this process only.
        calls: counts the molecules that are not in the cache.

    Raises:
        ValueError: `size` is below 1 or `workers` below 0.
    """

    def __init__(
        self,
        measures: Mapping[str, Measure],
        functions: Mapping[str, Function | Oracle],
        size: int = 100_000,
        workers: int = 0,
        calls: RewardCalls | None = None,
    ) -> None:
        if size < 1 or workers < 0:
            raise ValueError(f"got room for {size} molecules and {workers} workers, expected at least 1 and at least 0")
        self.names = (*measures, *functions, *([STATUS] if functions else []))
        self._measures, self._workers = dict(measures), workers
        self._oracles: dict[str, Oracle] = {
            name: f if isinstance(f, Oracle) else Direct(name, f) for name, f in functions.items()
        }
        self.calls = calls or RewardCalls()
        self._kept: LRUCache[tuple[float, ...]] = LRUCache(size)
        self._pool: ProcessPoolExecutor | None = None

    @property
    def computed(self) -> int:
        """Number of molecules that were not in the cache."""
        return self._kept.computed

    def __call__(self, keys: Sequence[Hashable], molecules: Molecules) -> dict[str, Floats]:
        """Compute all quantities of B molecules.

        Args:
            keys: B keys.
            molecules: makes the molecules of keys that are not in the cache.

        Returns:
            name -> [B] float64. What an oracle failed at is NaN; the quantity STATUS says why.

        Raises:
            ValueError: a quantity raises or is not finite (the message names molecule and quantity), or a function does not
                return one number for each molecule.
            RuntimeError: workers die repeatedly.
        """
        before = self.calls.calls

        def compute(places: list[int]) -> list[tuple[float, ...]]:
            mols = molecules(places)
            if not self._oracles:
                return self._measured(mols)
            named = (keys[i] for i in places)
            smiles = [key if isinstance(key, str) else Chem.MolToSmiles(m) for key, m in zip(named, mols, strict=True)]
            return self._scored(mols, smiles)

        rows = self._kept(keys, lambda places: self.calls(compute, places))
        self.calls.cache_hits += len(keys) - (self.calls.calls - before)
        table = np.array(rows, dtype=np.float64).reshape(len(keys), len(self.names))
        return {name: np.ascontiguousarray(table[:, j]) for j, name in enumerate(self.names)}

    def kept(self) -> tuple[list[Hashable], Floats]:
        """The keys in the cache, the least recently used first, and their quantities [M, names]."""
        entries = self._kept.entries()
        return list(entries), np.array(list(entries.values()), dtype=np.float64).reshape(len(entries), len(self.names))

    def keep(self, keys: Sequence[Hashable], values: Floats) -> None:
        """Put what `kept` gave into the cache, in place of what is there.

        Raises:
            ValueError: a shape is wrong, or a value is not finite.
        """
        fits = values.shape == (len(keys), len(self.names))
        fine = values[values[:, -1] == 0] if fits and self._oracles else values  # the last is the status
        if not fits or not np.isfinite(fine).all():
            raise ValueError(f"got values of shape {list(values.shape)}, expected finite ones, {[len(keys), len(self.names)]}")
        self._kept.replace(dict(zip(keys, map(tuple, values.tolist()), strict=True)))

    def _scored(self, mols: Sequence[Chem.Mol], smiles: list[str]) -> list[tuple[float, ...]]:
        self.submit(smiles)  # so that the terms are computed meanwhile
        measured = self._measured(mols)
        distinct = list(dict.fromkeys(smiles))
        scored = [dict(zip(distinct, oracle(distinct), strict=True)) for oracle in self._oracles.values()]
        rows = []
        for row, one in zip(measured, smiles, strict=True):
            said = [of[one] for of in scored]
            rows.append((*row, *(x.value for x in said), max(float(STATUSES.index(x.status)) for x in said)))
            for name, x in zip(self._oracles, said, strict=True):
                self.calls.failure = f"{name} of {one}: {x.message}" if x.message else self.calls.failure
        return rows

    @property
    def oracles(self) -> list[Oracle]:
        """The functions, each as an oracle."""
        return list(self._oracles.values())

    @property
    def elsewhere(self) -> bool:
        """Whether there is an oracle that is not a function called in this process."""
        return any(not isinstance(oracle, Direct) for oracle in self._oracles.values())

    def submit(self, smiles: Sequence[str]) -> None:
        """Start to score distinct molecules, where there are oracles, and return at once.

        Args:
            smiles: canonical SMILES.
        """
        for oracle in self._oracles.values():
            oracle.submit(smiles)

    def _measured(self, mols: Sequence[Chem.Mol]) -> list[tuple[float, ...]]:
        if not self._measures or not self._workers or len(mols) < FEWEST * self._workers:
            return [measured(self._measures, mol) for mol in mols]
        step = math.ceil(len(mols) / (2 * self._workers))  # two parts for each, as molecules differ in size
        parts = [[mol.ToBinary() for mol in mols[i : i + step]] for i in range(0, len(mols), step)]
        for _ in range(RESTARTS):
            try:
                self._pool = self._pool or self._started()
                return [row for rows in self._pool.map(_measure_part, parts) for row in rows]
            except BrokenProcessPool:
                self.close()
            except KeyboardInterrupt:  # a worker may hang
                if self._pool is not None:
                    kill(self._pool)
                    self._pool = None
                raise
        raise RuntimeError(
            f"a worker process died {RESTARTS} times scoring the same {len(mols)} molecules: run with 0 workers to see why; "
            'a script that starts workers must do so under `if __name__ == "__main__":`'
        )

    def _started(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in whatever state they are
        return ProcessPoolExecutor(self._workers, context, initializer=_settle, initargs=(self._measures,))

    def close(self) -> None:
        """End the workers and the processes of the oracles; a later call starts them again."""
        for oracle in self._oracles.values():
            oracle.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Quantities:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def from_smiles(smiles: Sequence[str]) -> tuple[list[str], Molecules]:
    """Make keys and molecules of SMILES, both from the canonical form, so that equivalent SMILES give equal results.

    Raises:
        ValueError: RDKit cannot read one; the message has its position.
    """
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(text) for text in smiles]
    keys = []
    for i, (text, mol) in enumerate(zip(smiles, mols, strict=True)):
        if mol is None or not mol.GetNumAtoms():
            raise ValueError(f"molecule {i + 1} of {len(smiles)} is {text!r}, which RDKit cannot read; expected SMILES")
        keys.append(Chem.MolToSmiles(mol))
    return keys, lambda places: [Chem.MolFromSmiles(keys[i]) for i in places]


def measured(measures: Mapping[str, Measure], mol: Chem.Mol) -> tuple[float, ...]:
    """All measures of one molecule.

    Raises:
        ValueError: a measure raises or is not finite; the message names molecule and measure.
    """
    row = []
    for name, measure in measures.items():
        try:
            value = measure(mol)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise ValueError(f"{name} of {_name(mol)} {raised(error)}") from error
        if not math.isfinite(value):
            raise ValueError(f"{name} of {_name(mol)} is {value}, expected a finite number")
        row.append(value)
    return tuple(row)


class Direct:
    """A function of a list of SMILES as an oracle: called in this process, and not allowed to fail.

    Args:
        name: for messages.
        function: the function.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._name, self._function = name, function

    def submit(self, smiles: Sequence[str]) -> None:
        """Nothing: a function is called where its values are needed."""

    def __call__(self, smiles: Sequence[str]) -> list[Scored]:
        """Call the function.

        Raises:
            ValueError: it raises, or does not return one finite number for each molecule.
        """
        return [Scored(x) for x in _evaluated(self._name, self._function, list(smiles))]

    def close(self) -> None:
        """Nothing."""


def _evaluated(name: str, function: Function, smiles: list[str]) -> list[float]:
    many = f"a batch of {len(smiles)} molecules, the first being {smiles[0]}"
    try:
        result = function(list(smiles))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{name} {raised(error)}; it was given {many}") from error
    try:
        values = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} gave {result!r:.100}, expected a list of {len(smiles)} numbers for {many}") from None
    if values.shape != (len(smiles),):
        raise ValueError(f"{name} gave numbers of shape {list(values.shape)}, expected {[len(smiles)]}: one for each of {many}")
    require_finite(name, values, smiles.__getitem__)
    return values.tolist()


def require_finite(name: str, values: Floats, smiles: Callable[[int], str]) -> None:
    """Check values.

    Raises:
        ValueError: a value is not finite; the message names the first such molecule.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{name} of {smiles(first)} is {values[first]}, expected a finite number ({len(bad)} of {len(values)} are not)"
        )


def _name(mol: Chem.Mol) -> str:
    return Chem.MolToSmiles(mol) or "a molecule without atoms"


# -- in a worker process

_measures: dict[str, Measure] = {}


def _settle(measures: Mapping[str, Measure]) -> None:
    follow_parent()
    _measures.update(measures)


def _measure_part(mols: list[Any]) -> list[tuple[float, ...]]:
    return [measured(_measures, Chem.Mol(mol)) for mol in mols]
