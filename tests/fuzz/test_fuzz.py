"""Damaged and hostile files: every loader ends in a sentence, executes nothing, and needs little time and memory.

FUZZ=100000 says how many inputs there are in all (`make fuzz`); each loader's number is printed.
"""

import copy
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.cli.errors import UserError
from experiments.run import checkpoint
from experiments.run.run import Run, read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

INPUTS = int(os.environ.get("FUZZ", "2400"))
LOADERS = 11
SECONDS, MEMORY = 2.0, 1 << 30
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**62,
    2**63,
    10**30,
    10**400,
    1e308,
    -0.5,
    "",
    "x",
    "\ud800",
    "\x1b[2J",
    "1e999",
)
ODD += ([], {}, [[]], [None], {"": 0}, "a" * 10_000, "../../etc/passwd", "/dev/zero:x", "evil.py:make", [1] * 1000, "NaN")
armed = False
seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if armed and event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
        seen.append(event)
    if armed and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = str(arguments[0])
        if not path.startswith((tempfile.gettempdir(), os.devnull)) and not isinstance(arguments[0], int):
            seen.append(f"{path} is opened for writing")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def evil(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """evil.py, which some inputs name, is where the process is; it is never executed."""
    here = tmp_path_factory.mktemp("evil")
    (here / "evil.py").write_text(f"open({str(here / 'ran')!r}, 'w').close()\ndef make(): pass\n")
    monkeypatch.chdir(here)
    yield
    assert not (here / "ran").exists()


def bytes_of(data: bytes, dice: random.Random) -> bytes:
    """Damaged bytes: a flipped bit, a cut, a part twice or missing, other letters, a number made large, deep nesting."""
    at, kind = dice.randrange(len(data) + 1), dice.randrange(8)
    end = min(len(data), at + dice.choice((1, 4, 16, 100)))
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:end] + data[at:]
    if kind == 3:
        return data[:at] + data[end:]
    if kind == 4:
        return data[:at] + dice.randbytes(end - at) + data[end:]
    if kind == 5:
        return data[:at] + b"9" * dice.choice((3, 20, 5000)) + data[end:]
    if kind == 6:
        return data[:at] + b"[" * 100_000 + data[at:]
    return data[:at] + dice.choice((b"NaN", b"1e999", b"\xff", b"\x00", b"\\ud800", b"null", b"{}", b"-", b'"')) + data[end:]


def value_of(value: Any, dice: random.Random) -> Any:
    """The same JSON with one value changed to another kind, left out, or doubled."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def note(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            note(part[key])

    note(value)
    part, key = dice.choice(places)
    if dice.random() < 0.1:
        del part[key]
    elif dice.random() < 0.1 and isinstance(part, dict):
        part[f"{key}x"] = part[key]
    else:
        part[key] = dice.choice(ODD)
    return value


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from experiments.cli.gflownet import run as gflownet
    from experiments.cli.pgrl import run as pgrl

    here = tmp_path_factory.mktemp("runs")
    few = ["--evaluations", "1", "--log-rows", "2", "--quiet"]
    words = ["reinforce", "--env-steps", "60", "--seeds", "2", "--step-size", "0.1", *few]
    pg = pgrl([*words, "--out", str(here / "pg")])
    grid = ["hypergrid", "--objective", "tb", "--ndim", "2", "--height", "3", "--states", "32", "--hidden", "4", *few]
    return {"pg": pg, "gfn": gflownet([*grid, "--out", str(here / "gfn")])}


def refused(work: Callable[[], Any], what: str) -> bool:
    """Whether it was refused by a sentence; it fails for any other exception, for code that runs, for time and memory."""
    global armed
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    armed, result = True, True
    try:
        work()
        result = False
    except UserError:
        pass
    except ValueError as error:  # of the packages below, with a sentence; callers make it a UserError
        if what not in ("npz", "pickle", "fragments", "formula", "smiles") or isinstance(error, UnicodeError):
            raise AssertionError(what) from error
    except Exception as error:
        raise AssertionError(what) from error
    finally:
        armed = False
    assert not seen, f"{what}: {seen}"
    assert time.perf_counter() - started < SECONDS * (3 if INPUTS < 10_000 else 1), what
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY, what
    return result


def each(share: int = 1) -> Iterator[random.Random]:
    """A die for each input of a loader."""
    for number in range(max(20, INPUTS // LOADERS // share)):
        yield random.Random(number)


def report(what: str, count: int, bad: int) -> None:
    print(f"fuzz: {what:12s} {count:7d} inputs, {bad:7d} refused", file=sys.stderr)


def reseal(folder: Path, name: str, data: bytes) -> None:
    """Put a file into a checkpoint, with a manifest that fits."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["pg", "gfn"])
def test_config_values(kind: str, runs: dict[str, Path]) -> None:
    from experiments.gfn.commands import evaluate as of_gfn
    from experiments.pg.commands import evaluate as of_pg

    run, evaluate = runs[kind], of_pg if kind == "pg" else of_gfn
    path = run / "config.json"
    whole = path.read_text()
    config, count, bad = json.loads(whole), 0, 0
    for dice in each(8):
        changed = value_of(config, dice)
        path.write_text(json.dumps(changed))
        try:
            bad += refused(lambda: evaluate(run, 1), f"config {kind} {json.dumps(changed)[:3000]}")
        finally:
            path.write_text(whole)
        count += 1
    report(f"config {kind}", count, bad)


def test_json_of_a_run(runs: dict[str, Path]) -> None:
    for name in ("config.json", "run.json"):
        path = runs["pg"] / name
        whole, count, bad = path.read_bytes(), 0, 0
        for dice in each(2):
            path.write_bytes(bytes_of(whole, dice))
            bad += refused(lambda: Run.open(runs["pg"]).load(), name)
            count += 1
        path.write_bytes(whole)
        report(name, count, bad)


@pytest.mark.parametrize("name", ["manifest.json", "meta.json", "tensors.safetensors"])
def test_checkpoints(name: str, runs: dict[str, Path]) -> None:
    run = Run.open(runs["gfn"])
    folder = checkpoint.latest(run.checkpoints)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    whole, count, bad = (folder / name).read_bytes(), 0, 0
    for dice in each(2):
        if name == "manifest.json":
            (folder / name).write_bytes(bytes_of(whole, dice))
        elif name == "meta.json" and dice.random() < 0.5:
            reseal(folder, name, json.dumps(value_of(json.loads(whole), dice)).encode())
        else:
            reseal(folder, name, bytes_of(whole, dice))
        bad += refused(lambda: run.load(), name)
        for path, data in files.items():
            path.write_bytes(data)
        count += 1
    report(name, count, bad)


def test_metrics(runs: dict[str, Path], tmp_path: Path) -> None:
    from experiments.run.tensorboard import ScalarWriter

    path = tmp_path / "metrics.jsonl"
    rows = (runs["gfn"] / "metrics.jsonl").read_bytes().splitlines()
    count = bad = 0
    for number, dice in enumerate(each()):
        row = rows[dice.randrange(len(rows))]
        changed = bytes_of(row, dice) if dice.random() < 0.5 else json.dumps(value_of(json.loads(row), dice)).encode()
        path.write_bytes(changed + b"\n")

        def rebuild(drawn: bool = number % 20 == 0) -> None:
            found = read_metrics(path)
            if drawn:
                writer = ScalarWriter(tmp_path / "events")
                for one in found:
                    writer.add(one["step"], {tag: x for tag, x in one.items() if tag != "step"})
                writer.close()

        bad += refused(rebuild, f"metrics {changed[:2000]!r}")
        count += 1
    report("metrics", count, bad)


def test_arrays(tmp_path: Path) -> None:
    import gzip

    from gflownet.rewards.restricted import read_npz, read_pickle

    np.savez(tmp_path / "a.npz", x=np.ones((3, 2), np.float32), y=np.zeros(4))
    np.savez_compressed(tmp_path / "b.npz", x=np.ones((30, 2)))
    wholes = [(tmp_path / name).read_bytes() for name in ("a.npz", "b.npz")]
    packed = pickle.dumps([np.ones((3, 2), np.float32), np.zeros(4)], protocol=2)
    count = bad = 0
    for dice in each():
        (tmp_path / "x.npz").write_bytes(bytes_of(dice.choice(wholes), dice))
        bad += refused(lambda: read_npz(tmp_path / "x.npz"), "npz")
        (tmp_path / "x.pkl.gz").write_bytes(gzip.compress(bytes_of(packed, dice), 1))
        bad += refused(lambda: read_pickle(tmp_path / "x.pkl.gz"), "pickle")
        count += 2
    report("npz, pickle", count, bad)


def test_texts(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    from envs.molecules.brics import fragments_from
    from envs.molecules.fragments import load_fragments
    from gflownet.rewards.expression import Expression

    entries = [
        {"name": "phenol", "smiles": "Oc1ccccc1", "attach": [[0, 1], [4, 1]]},
        {"name": "c", "smiles": "CC", "attach": [[0, 2]]},
    ]
    text = {"format": "fragments-1", "fragments": entries}
    formula = b"2*qed+mean(sa,logp[1,3])^2*similar[c1ccccc1]"
    smiles = b"CC(=O)Oc1ccccc1C(=O)O aspirin"
    count = bad = 0
    for dice in each():
        plain = dice.random() < 0.5
        data = json.dumps(value_of(text, dice)).encode() if plain else bytes_of(json.dumps(text).encode(), dice)
        (tmp_path / "f.json").write_bytes(data)
        bad += refused(lambda: load_fragments(tmp_path / "f.json"), "fragments")
        word = bytes_of(formula, dice).decode("utf-8", "replace")
        bad += refused(partial(Expression.parse, word), "formula")
        line = bytes_of(smiles, dice).decode("utf-8", "replace")[:2000]
        bad += refused(partial(fragments_from, [line]), "smiles")
        count += 3
    report("texts", count, bad)


def test_caches_of_rewards(tmp_path: Path) -> None:
    from experiments.oracle.cache import AnswerCache
    from gflownet.rewards.oracle import Scored

    path = tmp_path / "a.sqlite"
    smiles = [f"C{'C' * i}" for i in range(60)]
    with AnswerCache(path, "key", "name", "run") as cache:
        cache.put((s, Scored(1.0)) for s in smiles)
    whole, count, bad = path.read_bytes(), 0, 0

    def use() -> None:
        with AnswerCache(path, "key", "name", "run") as cache:
            assert all(x == Scored(1.0) or x.value == x.value or x.status != "ok" for x in cache.get(smiles).values())
            cache.put([("N", Scored(1.0))])

    for dice in each(4):
        path.write_bytes(bytes_of(whole, dice))
        bad += refused(use, "cache of rewards")
        for beside in ("-wal", "-shm"):
            path.with_name(f"{path.name}{beside}").unlink(missing_ok=True)
        count += 1
    report("cache", count, bad)


def test_maps_and_pictures(tmp_path: Path, runs: dict[str, Path]) -> None:
    from experiments.pg.build import make_env
    from experiments.run.tensorboard import ScalarWriter

    count = bad = 0
    picture = b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\0\0\0\1\0\0\0\1" + bytes(20)
    for dice in each():
        (tmp_path / "map.txt").write_bytes(bytes_of(b"S.#..\n..O..\n....G\n", dice))
        bad += refused(lambda: make_env(f"gridworld:{tmp_path / 'map.txt'}"), "map")
        (tmp_path / "x.png").write_bytes(bytes_of(picture, dice))
        if count % 40 == 0:
            writer = ScalarWriter(tmp_path / "events")
            bad += refused(partial(writer.add, 1, {"best/molecules": tmp_path / "x.png"}), "picture")
            writer.close()
        count += 2
    report("map, picture", count, bad)
    assert torch.get_num_threads() == 1
