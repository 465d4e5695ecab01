"""A checkpoint is whole or absent, comes back bit for bit, and a damaged or hostile one is refused by name."""

import errno
import hashlib
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.run import checkpoint
from experiments.run.checkpoint import CheckpointError, DamagedCheckpoint, folder_of, latest, load, load_latest, save, saved

FILES = ("tensors.safetensors", "meta.json", "manifest.json")


def tensors(k: float = 0.0) -> dict[str, Tensor]:
    grid = torch.arange(12, dtype=torch.float32).reshape(3, 4) + k
    return {
        "theta": grid,
        "shared": grid,
        "turned": grid.T,
        "spread": grid[:1].expand(3, 4),
        "scalar": torch.tensor(0.1 + k, dtype=torch.float64),
        "count": torch.tensor([2**62 + 1, -1]),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    def bits(t: Tensor) -> bytes:
        return bytes(t.contiguous().flatten().view(torch.uint8).numpy()) if t.numel() else b""

    return a.keys() == b.keys() and all(
        (x.dtype, x.shape, bits(x)) == (b[k].dtype, b[k].shape, bits(b[k])) for k, x in a.items()
    )


def three(folder: Path) -> Path:
    for k in (1, 2, 3):
        save(folder_of(folder, k), tensors(k), {"k": k})
    return folder


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and make the manifest agree with it, as a forger would."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip_bit_for_bit(tmp_path: Path) -> None:
    meta = {"step": 2**60, "x": 0.1, "nested": {"list": [1, None, "é"]}}
    save(folder_of(tmp_path / "new" / "checkpoints", 123), tensors(), meta)
    got, got_meta = load_latest(tmp_path / "new" / "checkpoints")
    assert same(got, tensors())
    assert got_meta == meta
    assert sorted(p.name for p in (tmp_path / "new" / "checkpoints" / "000000123").iterdir()) == sorted(FILES)
    got["theta"] += 1  # writable
    save(folder_of(tmp_path, 1), {}, {})
    assert load_latest(tmp_path) == ({}, {})


def test_the_last_k_stay_and_one_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    for k in (1, 5, 20, 100, 1000):
        save(folder_of(tmp_path, k), tensors(k), {"k": k}, keep=2)
    assert [p.name for p in saved(tmp_path)] == ["000000100", "000001000"]
    save(folder_of(tmp_path, 1000), tensors(7), {"k": 7}, keep=2)
    assert load_latest(tmp_path)[1] == {"k": 7}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("bad", "meta"),
    [({"x": torch.zeros(2, dtype=torch.complex64)}, {}), ({}, {"x": float("nan")}), ({}, {"x": {1, 2}})],
)
def test_what_cannot_be_stored_is_said_before_anything_is_written(tmp_path: Path, bad: Any, meta: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        save(folder_of(tmp_path, 1), bad, meta)
    assert not list(tmp_path.iterdir())


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        latest(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "000000009")


@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_at_any_call_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    """Fail the n-th call that touches the disk, for n = 1, 2, ... until none is left to fail."""
    iteration = 3 if replace else 4
    for n in range(1, 100):
        folder = three(tmp_path / str(n))
        calls = 0

        def failing(real: Callable[..., Any], n: int = n) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == n:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*arguments, **keywords)

            return call

        with monkeypatch.context() as patch:
            for name in ("write", "fsync", "rename", "mkdir"):
                patch.setattr(os, name, failing(getattr(os, name)))
            message = ""
            try:
                save(folder_of(folder, iteration), tensors(9), {"k": 9})
            except CheckpointError as error:
                message = str(error)
        assert not message or "No space left on device; earlier checkpoints are intact" in message
        found = [load(p)[1]["k"] for p in saved(folder)]
        assert found in ([1, 2, 9], [1, 2, 3], [2, 3, 9], [1, 2, 3, 9])
        assert not list(folder.glob(".new-*"))
        if calls < n:
            assert found[-1] == 9
            assert n > 12
            return
    raise AssertionError("the disk was never touched for the last time")


def test_a_partial_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:7])))
    save(folder_of(tmp_path, 1), tensors(), {"k": 1})
    assert same(load_latest(tmp_path)[0], tensors())


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    code = """
import resource, sys, torch
from pathlib import Path
from experiments.run.checkpoint import *
folder = Path(sys.argv[1])
save(folder_of(folder, 1), {"x": torch.ones(10)}, {"k": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save(folder_of(folder, 2), {"x": torch.ones(10_000)}, {"k": 2})
except CheckpointError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "File too large; earlier checkpoints are intact" in result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]
    assert load_latest(tmp_path)[1] == {"k": 1}


def test_killed_at_any_moment_the_newest_is_whole(tmp_path: Path) -> None:
    code = """
import itertools, sys, torch
from pathlib import Path
from experiments.run.checkpoint import *
start = int(sys.argv[2])
for k in itertools.count(start):
    save(folder_of(Path(sys.argv[1]), k), {"x": torch.full((20_000,), k)}, {"k": k})
    print(k, flush=True)
"""
    last = 0
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(last + 1)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.05 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        reported = [int(line) for line in process.communicate()[0].split()]
        for folder in saved(tmp_path):
            got, meta = load(folder)
            assert bool((got["x"] == meta["k"]).all())
            assert int(folder.name) == meta["k"]
        last = meta["k"]
        assert last >= max(reported, default=0)
        assert len(saved(tmp_path)) in (3, 4) or last < 3
    save(folder_of(tmp_path, last + 1), {}, {})
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = three(tmp_path) / "000000003"
    good = (folder / name).read_bytes()
    for at in range(0, len(good), 1 if name == "meta.json" else 17):
        for bit in (1, 32):
            (folder / name).write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            with pytest.raises(DamagedCheckpoint, match=r"The previous one, .*, is whole: pass --checkpoint ") as caught:
                load_latest(tmp_path)
            assert caught.value.previous == tmp_path / "000000002"
            assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["half", "empty", "absent", "longer", "folder", "link", "pipe"])
def test_wrong_files_are_named(tmp_path: Path, name: str, kind: str) -> None:
    folder = three(tmp_path) / "000000003"
    good = (folder / name).read_bytes()
    (folder / name).unlink()
    if kind in ("half", "empty", "longer"):
        (folder / name).write_bytes({"half": good[: len(good) // 2], "empty": b"", "longer": good + b"\0"}[kind])
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "link":
        (tmp_path / "elsewhere").write_bytes(good)
        (folder / name).symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(folder / name)
    with pytest.raises(DamagedCheckpoint, match=name) as caught:
        load_latest(tmp_path)
    assert caught.value.previous == tmp_path / "000000002"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("/tmp/this-must-never-exist",))


def hostile() -> dict[str, tuple[str, bytes]]:
    def headed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + data

    def one(dtype: str, shape: list[int], ends: list[int], data: bytes) -> bytes:
        return headed(json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": ends}}).encode(), data)

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return {
        "pickle": (FILES[0], pickle.dumps(Bomb())),
        "zip": (FILES[0], archive.getvalue()),
        "huge header": (FILES[0], headed(b"{}", length=2**63)),
        "header beyond the file": (FILES[0], headed(b"{}", length=10**6)),
        "offsets outside": (FILES[0], one("F32", [4], [0, 16], b"\0" * 8)),
        "shape too large": (FILES[0], one("F32", [2**40, 2**40], [0, 8], b"\0" * 8)),
        "negative shape": (FILES[0], one("F32", [-1], [0, 8], b"\0" * 8)),
        "unknown type": (FILES[0], one("X9", [2], [0, 8], b"\0" * 8)),
        "unexpected type": (FILES[0], one("F8_E4M3", [8], [0, 8], b"\0" * 8)),
        "hole": (FILES[0], one("F32", [1], [4, 8], b"\0" * 8)),
        "nested header": (FILES[0], headed(b'{"x":' + b"[" * 100_000)),
        "text": (FILES[1], b"\xff\xfe"),
        "not JSON": (FILES[1], b"{'k': 1}"),
        "NaN": (FILES[1], b'{"k": NaN}'),
        "list": (FILES[1], b"[1]"),
        "twice": (FILES[1], b'{"k": 1, "k": 2}'),
        "deep": (FILES[1], b'{"k": ' + b"[" * 200_000),
        "long number": (FILES[1], b'{"k": ' + b"9" * 10_000 + b"}"),
    }


@pytest.mark.parametrize("kind", hostile())
def test_a_forged_file_with_the_right_hash_is_refused(tmp_path: Path, kind: str) -> None:
    name, data = hostile()[kind]
    forge(three(tmp_path) / "000000003", name, data)
    with pytest.raises(DamagedCheckpoint, match=name):
        load_latest(tmp_path)
    assert not Path("/tmp/this-must-never-exist").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["files"].update({"../../meta.json": m["files"]["meta.json"]}), "'../../meta.json', which is not a file"),
        (lambda m: m["files"].update({"/etc/passwd": {}}), "/etc/passwd"),
        (lambda m: m["files"].pop("meta.json"), "does not give the size"),
        (lambda m: m["files"]["meta.json"].update(bytes=True), "does not give the size"),
        (lambda m: m["files"]["meta.json"].update(sha256=7), "does not have the SHA-256"),
        (lambda m: m.update(format=2), "written by a newer pgrl"),
        (lambda m: m.update(format="1"), "fields of a manifest"),
        (lambda m: m.update(format=0), "fields of a manifest"),
        (lambda m: m.update(files=[]), "fields of a manifest"),
        (lambda m: m.update(more=1), "fields of a manifest"),
        (lambda m: m.update(more="x" * checkpoint._MANIFEST_LIMIT), "more than the"),
    ],
)
def test_a_forged_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    path = three(tmp_path) / "000000003" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match=said):
        load_latest(tmp_path)


def test_the_previous_one_offered_is_whole_or_none(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "000000002" / "meta.json").write_text("{}")
    (tmp_path / "000000003" / "meta.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint) as caught:
        load_latest(tmp_path)
    assert caught.value.previous == tmp_path / "000000001"
    (tmp_path / "000000001" / "meta.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match="There is no earlier one that is whole") as caught:
        load_latest(tmp_path)
    assert caught.value.previous is None
