"""Reads float arrays from untrusted files, `.npz` or gzipped pickle, without executing code.

The published weights of the sEH proxy are a pickle, and loading a pickle may run any code. This reader accepts three names,
those of a NumPy array, and replaces them by inert classes of its own; NumPy gets raw bytes only at the end.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 64 * 2**20  # bytes after unpacking
MEMO = 10_000  # the largest memo index of a pickle
FLOATS = ("f4", "f8")
RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}

Array = np.ndarray[Any, np.dtype[Any]]


class _Kind:
    """A placeholder for a dtype: its letter and byte order."""

    def __init__(self, letter: object, align: object = False, copy: object = True) -> None:
        self.letter, self.order = letter, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Raw:
    """A placeholder for an array: (shape, kind, Fortran order, bytes)."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = tuple(state[1:])

    def array(self) -> Array:
        shape, kind, fortran, raw = self.state
        if not isinstance(kind, _Kind) or kind.letter not in FLOATS or kind.order not in ("<", ">"):
            raise ValueError("its numbers are not floats of 4 or 8 bytes")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or not isinstance(raw, bytes):
            raise ValueError("its shape or its bytes are not what NumPy writes")
        if len(raw) != math.prod(shape) * int(kind.letter[1]):
            raise ValueError(f"{len(raw)} bytes do not make up its shape {shape}")
        numbers = np.frombuffer(raw, kind.order + kind.letter).reshape(shape, order="F" if fortran else "C")
        return np.array(numbers, kind.letter, order="C")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in RECONSTRUCT:
            return _Raw
        if (module, name) == ("numpy", "dtype"):
            return _Kind
        if (module, name) == ("numpy", "ndarray"):
            return None
        raise ValueError(f"it uses {module}.{name}, but only NumPy arrays are allowed")


def read_pickle(path: Path) -> list[Array]:
    """Read a gzipped pickle of a list of float arrays, without executing anything that the file names.

    Raises:
        ValueError: the file is truncated, has more than 64 MiB unpacked, or contains anything else.
        FileNotFoundError: there is no such file.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ValueError(f"it unpacks to more than {LIMIT} bytes")
        for code, argument, _ in pickletools.genops(data):
            if "PUT" in code.name and argument is not None and argument > MEMO:  # pickle would allocate that many
                raise ValueError(f"its memo index is {argument}")
        content = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(content, list) or not all(isinstance(item, _Raw) for item in content):
            raise ValueError("it is not a list of arrays")
        return [item.array() for item in content]
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, ValueError, EOFError, OSError, zlib.error) as fault:
        raise ValueError(f"cannot read {path}: {fault}; give the published weights or an .npz") from None
    except Exception as fault:  # a hostile pickle can raise any exception
        raise ValueError(f"cannot read {path}: no list of NumPy arrays ({type(fault).__name__}); give an .npz") from None


def read_npz(path: Path) -> dict[str, Array]:
    """Read the arrays of an `.npz` by name.

    Raises:
        ValueError: the file is damaged, has more than 64 MiB unpacked, or contains Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LIMIT:
                raise ValueError(f"it unpacks to more than {LIMIT} bytes")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except Exception as fault:  # a hostile archive can raise any exception
        raise ValueError(f"cannot read {path}: {type(fault).__name__}, {fault}; give an .npz of float arrays") from None


def read_weights(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Read float arrays from an `.npz` or a gzipped pickle.

    Args:
        path: the file.
        shapes: name and shape of each array; in a pickle the arrays are in this order.

    Raises:
        ValueError: an array is missing, superfluous, of another shape or not finite.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix == ".npz":
        arrays = read_npz(path)
    else:
        items = read_pickle(path)
        if len(items) != len(shapes):
            raise ValueError(f"{path} holds {len(items)} arrays, expected {len(shapes)}; give the published weights")
        arrays = dict(zip(shapes, items, strict=True))
    if odd := set(arrays) ^ set(shapes):
        raise ValueError(f"{path} should have the arrays {', '.join(shapes)}; missing or superfluous: {', '.join(sorted(odd))}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected floats {shape}; give the published weights"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has values that are not finite; give the published weights")
    return {name: arrays[name] for name in shapes}
