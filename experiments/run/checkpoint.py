"""Checkpoints that are whole or absent, and that cannot run code.

    checkpoints/000000123/tensors.safetensors   every tensor, bit for bit
                          meta.json             everything else
                          manifest.json         format, and size and SHA-256 of the other two

    save: write all three into a hidden sibling, fsync, rename to the final name, fsync the parent, drop all but the last k
    load: manifest -> sizes -> hashes -> JSON and safetensors parsed strictly; the first thing that is wrong refuses it

A hash guards against accidents, not against a forger; against a forger guard the two formats, neither of which can hold code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor

from experiments.cli.errors import UserError
from experiments.run import safe
from experiments.run.folder import sync_folder

FORMAT = 1
TENSORS, META, MANIFEST = "tensors.safetensors", "meta.json", "manifest.json"
DTYPES = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
_MANIFEST_LIMIT = 1 << 16  # bytes; a real one has 300
_META_LIMIT = 1 << 26


class CheckpointError(UserError):
    """A checkpoint could not be written, or there is none."""

    exit_code = 1


class DamagedCheckpoint(CheckpointError):
    """A checkpoint was refused. `folder` is the one; `previous` the newest earlier one that is whole, or None."""

    exit_code = 3

    def __init__(self, folder: Path, what: str, previous: Path | None = None) -> None:
        self.folder, self.what, self.previous = folder, what, previous
        good = f"The previous one, {previous}, is whole: pass --checkpoint {previous}"
        offer = good if previous else "There is no earlier one that is whole"
        if previous and (record := best_of(previous)):
            offer += f"; the best of the run so far was at iteration {record['iteration']}: --checkpoint best"
        super().__init__(f"checkpoint {folder} is damaged: {what}. {offer}.")


def folder_of(checkpoints: Path, iteration: int) -> Path:
    return checkpoints / f"{iteration:09d}"


def saved(checkpoints: Path) -> list[Path]:
    """All checkpoint folders, oldest first, whole or damaged. Raises safe.Refused where there is a link or a file instead."""
    found = [p for p in safe.entries(checkpoints) if re.fullmatch(r"[0-9]{1,18}", p.name) and safe.folder(p)]
    return sorted(found, key=lambda p: int(p.name))


def latest(checkpoints: Path) -> Path:
    """The newest checkpoint folder. Raises CheckpointError when there is none."""
    if not (found := saved(checkpoints)):
        raise CheckpointError(f"there is no checkpoint in {checkpoints}: start the run again with `train`", exit_code=3)
    return found[-1]


def save(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int = 3) -> None:
    """Write checkpoint `folder` whole, then drop all but the `keep` newest of its siblings, and those that these call the best.

    tensors may be views, on any device; they come back contiguous on the CPU. meta: strict JSON, no NaN or infinity.
    Raises ValueError or TypeError before anything is written when these cannot be stored, and CheckpointError when the disk
    fails: earlier checkpoints are then as they were, and nothing half-written remains. One writer at a time.
    """
    files = {TENSORS: _packed(tensors), META: _to_json(meta)}
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    files[MANIFEST] = _to_json({"format": FORMAT, "files": entries})
    temporary, old = folder.parent / f".new-{folder.name}", folder.parent / f".old-{folder.name}"
    try:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        safe.folder(folder.parent, make=True)
        _sweep(folder.parent)
        temporary.mkdir()
        for name, data in files.items():
            safe.write_new(temporary / name, data)
        sync_folder(temporary)
        if folder.exists():  # a folder cannot be renamed onto a full one
            os.rename(folder, old)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise CheckpointError(f"could not write checkpoint {folder}: {reason}; earlier checkpoints are intact") from error
        raise
    stale = saved(folder.parent)[: -max(1, keep)]
    best = {record["iteration"] for kept in saved(folder.parent)[-max(1, keep) :] if (record := best_of(kept))}
    for old in stale:
        if int(old.name) not in best:
            _drop(old)
    _sweep(folder.parent)


def best_of(folder: Path) -> dict[str, Any] | None:
    """{"tag", "value", "step", "iteration"} of the best checkpoint of a run up to `folder`; None where none is known."""
    try:
        found = _parsed(META, _read(folder, META, _META_LIMIT)).get("best")
    except _Refused:
        return None
    fits = isinstance(found, dict) and type(found.get("iteration")) is int and isinstance(found.get("value"), int | float)
    return found if fits else None


def best(checkpoints: Path) -> Path | None:
    """The best checkpoint, by the newest one that is whole; None where none is known."""
    for newest in reversed(saved(checkpoints)):
        with contextlib.suppress(_Refused):
            _verified(newest)
            record = best_of(newest)
            return folder_of(checkpoints, record["iteration"]) if record else None
    return None


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, meta) of one checkpoint, every byte verified; runs no code from the files.

    Raises DamagedCheckpoint, naming the file, what is wrong with it, and the newest earlier checkpoint that is whole;
    CheckpointError when there is no such folder.
    """
    if not safe.folder(folder):
        raise CheckpointError(f"there is no checkpoint {folder}", exit_code=3)
    try:
        return _verified(folder)
    except _Refused as refused:
        raise DamagedCheckpoint(folder, str(refused), _whole_before(folder)) from refused


def load_latest(checkpoints: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`load` of the newest one. Raises DamagedCheckpoint rather than silently going back to an earlier one."""
    return load(latest(checkpoints))


class _Refused(Exception):
    """What is wrong with one file of a checkpoint."""


def _whole_before(folder: Path) -> Path | None:
    if not folder.name.isdecimal():
        return None
    for earlier in reversed([p for p in saved(folder.parent) if int(p.name) < int(folder.name)]):
        try:
            _verified(earlier)
        except _Refused:
            continue
        return earlier
    return None


def _verified(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    manifest = _parsed(MANIFEST, _read(folder, MANIFEST, _MANIFEST_LIMIT))
    version = manifest.get("format")
    if type(version) is int and version > FORMAT:
        raise _Refused(f"{MANIFEST} has format {version}, written by a newer pgrl; this one reads up to {FORMAT}")
    entries = manifest.get("files")
    if set(manifest) != {"format", "files"} or type(version) is not int or version < 1 or not isinstance(entries, dict):
        raise _Refused(f"{MANIFEST} does not have the fields of a manifest")
    if strange := sorted(set(entries) - {TENSORS, META}):
        raise _Refused(f"{MANIFEST} names {strange[0]!r}, which is not a file of a checkpoint")
    data = {}
    for name, limit in ((TENSORS, None), (META, _META_LIMIT)):
        entry = entries.get(name)
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"} or type(entry["bytes"]) is not int:
            raise _Refused(f"{MANIFEST} does not give the size and SHA-256 of {name}")
        data[name] = _read(folder, name, limit, entry["bytes"])
        if hashlib.sha256(data[name]).hexdigest() != entry["sha256"]:
            raise _Refused(f"{name} does not have the SHA-256 that {MANIFEST} gives")
    meta = _parsed(META, data[META])
    try:
        tensors = unpack(data[TENSORS])
    except Exception as error:  # a forged header reaches torch with any dtype and shape
        raise _Refused(f"{TENSORS} is not a safetensors file ({error})") from error
    if strange := sorted(k for k, v in tensors.items() if v.dtype not in DTYPES):
        raise _Refused(f"{TENSORS} holds {strange[0]!r} of the unexpected type {tensors[strange[0]].dtype}")
    return tensors, meta


def _read(folder: Path, name: str, limit: int | None = None, size: int | None = None) -> bytes:
    """The bytes of an ordinary file of that size; a link, a pipe or anything outside the folder is refused unread."""
    try:
        handle = safe.open_file(folder / name)
        try:
            found = os.fstat(handle).st_size
            if size is not None and found != size:
                raise _Refused(f"{name} has {found} bytes and should have {size}")
            if limit is not None and found > limit:
                raise _Refused(f"{name} has {found} bytes, more than the {limit} allowed")
            with open(handle, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(handle)
    except safe.Refused as error:
        raise _Refused(f"{name} is not an ordinary file") from error
    except OSError as error:
        raise _Refused(f"{name} cannot be read ({error.strerror})") from error


def _parsed(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = safe.parse_json(data)
    except ValueError as error:
        raise _Refused(f"{name} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _Refused(f"{name} holds a {type(value).__name__}, not an object")
    return value


def _packed(tensors: dict[str, Tensor]) -> bytes:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} has type {tensor.dtype}, which a checkpoint does not hold")
    # cloned, because safetensors refuses two names for one storage
    return pack({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()})


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _drop(folder: Path) -> None:
    """Remove a checkpoint; hidden first, so that a half-removed one is never taken for one."""
    hidden = folder.parent / f".old-{folder.name}"
    try:
        os.rename(folder, hidden)
    except OSError:  # it stays one round longer
        return
    shutil.rmtree(hidden, ignore_errors=True)


def _sweep(checkpoints: Path) -> None:
    """Remove what a killed writer left."""
    for pattern in (".new-*", ".old-*"):
        for leftover in checkpoints.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
