"""A run: one folder with settings, provenance, metrics and checkpoints, which can be continued bit for bit.

    config.json        the complete, resolved settings       environment.json   versions, device, threads, processor, commit
    cmd.txt            the command that made it              metrics.jsonl      one JSON line per log row
    checkpoints/       whole or absent, see checkpoint.py    seed-0/, iqm/, ... TensorBoard's view of metrics.jsonl
    lock               held by the one process that writes   best/              <step>.png, pictures that belong to rows
    run.json           the run's id, and the user's files    faults/            <iteration>.safetensors, batches of faults

A row of metrics.jsonl is {"step": environment steps per seed, "wall": training seconds, tag: number, list of S numbers, or
histogram {"edges": [n + 1], "counts": [S][n]}}; a number that is not finite is null. `wall` and `time/...` are the only entries
that differ between two equal runs. Nothing in the folder is trusted: see `safe` and `identity`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from experiments.cli.load import judged_by
from experiments.cli.text import plain
from experiments.run import checkpoint as checkpoints
from experiments.run import identity, safe
from experiments.run.folder import RunError, dump, flat, must_be_empty, new_folder, program_of, run_name
from experiments.run.identity import Identity
from experiments.run.log import LARGEST, MetricsError, MetricsLog, finite, read_metrics, rows_of
from experiments.run.provenance import provenance
from experiments.run.tensorboard import SUB_RUNS, ScalarWriter, clear

__all__ = ["MetricsError", "Run", "RunError", "read_metrics", "run_name"]

Tensors = dict[str, Tensor]
Meta = dict[str, Any]
T = TypeVar("T")
FREE = frozenset(  # settings that change no number
    {"workers", "title", "theory_slope", "best", "max_failed", "equal_rewards"}
    | {"reward_workers", "reward_cache", "reward_recycle", "executor"}
)
RENAMED = {"knobs": "hyperparameters", "world": "env_settings", "gallery": "top_k"}  # keys of configs before 0.4
PARTS = {".config.json.part", ".run.json.part"}  # of a writer that was killed
BEGUN = {"lock", "cmd.txt", "environment.json", "run.json", "checkpoints"} | PARTS  # what `create` writes before config.json
OWN = BEGUN | {"config.json", "metrics.jsonl", "best"}  # beside event files
DIGESTS = {"fragments": "digest", "seh_weights": "seh_digest"}  # files that settings name -> SHA-256 of what was read
OPENED = (*OWN, *SUB_RUNS, "tensorboard", "faults", "environment.*", ".environment.*", "active.png", "curves.png", "curves.csv")
LOWER = re.compile(r"(gap|gradient_norm|l1|l1_mean|tv|jsd|kl|error|all_modes_at)$")  # metrics that are better when lower
ASIDE = "discarded-"  # before the name of a checkpoint that a resume has gone back behind
FAILURES = 3  # of one kind in a row stop the run
OWN_TAGS = {"wall": "time/wall", "iteration": "time/iteration"}  # in TensorBoard, where tags are grouped by their first word
OWN_DESCRIPTIONS = {
    "time/wall": "Seconds of training so far, pauses between resumes not counted.",
    "time/iteration": "Iterations of the algorithm so far.",
}


class Run:
    """Made by `Run.create`, opened by `Run.open`; only a created or resumed run may be written. A context manager.

    descriptions: tag -> one sentence for TensorBoard. tensorboard=False writes no event files.
    """

    def __init__(self, folder: Path, config: dict[str, Any], descriptions: Mapping[str, str] | None, tensorboard: bool) -> None:
        self.folder, self.config = folder, config
        self.metrics, self.checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
        self._descriptions = {**OWN_DESCRIPTIONS, **(descriptions or {})}
        self._tensorboard = tensorboard
        self._lock: int | None = None
        self._log: MetricsLog | None = None
        self._writer: ScalarWriter | None = None
        self._identity: Identity | None = None
        self._wall, self._started = 0.0, 0.0
        self._failures: dict[str, int] = {}
        self._best: dict[str, Any] | None = None  # tag, value, step and iteration of the best checkpoint
        self._better: dict[str, Any] | None = None  # the same of the last evaluation, where its checkpoint would be better

    @classmethod
    def create(
        cls,
        out: Path | None,
        default_name: str,
        config: dict[str, Any],
        argv: Sequence[str],
        descriptions: Mapping[str, str] | None = None,
        tensorboard: bool = True,
    ) -> Run:
        """A new run in folder `out`, or in runs/`default_name` (see `run_name`; a number is appended when taken).

        config: strict JSON once tuples are lists and paths strings. Raises RunError when `out` exists and is not empty.
        """
        text = dump(config)
        folder = new_folder(Path(out) if out is not None else Path("runs", default_name), numbered=out is None)
        run = cls(folder, json.loads(text), descriptions, tensorboard)
        with run._locked("write the run folder"):
            must_be_empty(folder)  # again, now that nobody else can fill it
            (folder / "cmd.txt").write_text(plain(shlex.join(argv)) + "\n")
            (folder / "environment.json").write_text(dump(provenance(str(config.get("device", "cpu")))))
            run.checkpoints.mkdir()
            run._identity = Identity.new(run.config)
            run._identity.write(folder)
            safe.write(folder / "config.json", text.encode())
            run._start(0, 0.0)
        return run

    @classmethod
    def open(
        cls,
        path: Path,
        descriptions: Mapping[str, str] | None = None,
        tensorboard: bool = True,
        given: Mapping[str, Any] | None = None,
    ) -> Run:
        """An existing run, to read or to `resume`. Raises RunError when `path` is not a run folder or its config is damaged.

        given: settings; those that change no number replace the run's own in `config`, not in config.json.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"there is no run folder {folder}")
        if not os.path.lexists(folder / "config.json"):
            inside = sorted(p.parent for depth in (1, 2, 3) for p in folder.glob("*/" * depth + "config.json"))[:3]
            hint = f"; did you mean {' or '.join(map(str, inside))}?" if inside else ""
            raise RunError(f"{folder} is not a run folder, it has no config.json{hint}")
        try:
            config = safe.read_json(folder / "config.json")
        except safe.Refused as error:
            raise RunError(str(error), exit_code=3) from error
        except OSError as error:
            raise RunError(f"{folder / 'config.json'} cannot be read ({error.strerror})", exit_code=3) from error
        config = {RENAMED.get(key, key): value for key, value in config.items()}
        objective = config.get("objective")
        if config.get("method") == "fm" and isinstance(objective, dict) and "epsilon" in objective:  # before 0.4
            objective["smoothing"] = objective.pop("epsilon")
        if given is not None:
            config = _with(config, given, FREE | _same_files(flat(config), flat(given)))
        return cls(folder, config, descriptions, tensorboard)

    @classmethod
    def resumable(
        cls, out: Path, config: Mapping[str, Any], free: Collection[str] = FREE, defaults: Mapping[str, Any] | None = None
    ) -> bool:
        """Whether `out` holds a run of these settings with a checkpoint, which `resume` continues.

        A run that stopped before its first checkpoint, or while it was being made, has nothing to continue: its folder is
        emptied and it starts again. Rows without a checkpoint are refused.

        Args:
            out: the run folder, which need not be there.
            config: the complete, resolved settings.
            free: settings that may differ, since they change no number. Files are compared by their digests.
            defaults: of settings that the run may be too old to have.

        Returns:
            False where a new run is to be made in `out`.

        Raises:
            RunError: `out` holds a run with other settings or without its checkpoints, or another process writes it.
        """
        if not (out / "config.json").exists():
            if out.is_dir() and {"cmd.txt"} <= set(os.listdir(out)) <= BEGUN:
                run = cls(out, {}, None, False)
                if checkpoints.saved(run.checkpoints):
                    raise RunError(
                        f"{out} has checkpoints and no config.json: restore that file, or choose another --out", exit_code=3
                    )
                run._clear()
            return False
        run = cls.open(out)
        found, wanted = flat({**json.loads(dump(defaults or {})), **run.config}), flat(json.loads(dump(config)))
        free = {*free, *_same_files(found, wanted)}
        other = [key for key in {**wanted, **found} if key not in free and found.get(key) != wanted.get(key)]
        if other:
            differ = ", ".join(f"{key} {_short(found.get(key))}, got {_short(wanted.get(key))}" for key in other[:3])
            raise RunError(
                f"{out} holds a run with {differ}{', ...' if len(other) > 3 else ''}: "
                "choose another --out, or give the settings of that run"
            )
        if checkpoints.saved(run.checkpoints):
            return True
        if run.metrics.is_file() and run.metrics.stat().st_size:  # rows come after the first checkpoint: somebody removed it
            raise RunError(
                f"{out} has rows of metrics and no checkpoint: restore its checkpoints, or choose another --out", exit_code=3
            )
        run._clear()
        return False

    def _clear(self) -> None:
        """Remove what a run without a checkpoint wrote. RunError where another process writes it, or for files of others."""
        events = {path.name for pattern in SUB_RUNS for path in self.folder.glob(pattern)}
        if foreign := sorted(set(os.listdir(self.folder)) - OWN - events - {"tensorboard"}):
            raise RunError(f"{self.folder} also holds {foreign[0]}, which is not the run's: move it, or choose another --out")
        safe.check_tree(self.folder, OPENED)
        self._take_lock()
        try:
            clear(self.folder)
            last = ("config.json", "environment.json", "cmd.txt")  # what is left is at any moment a folder to clear, or to use
            for path in (
                self.folder / name for name in ("metrics.jsonl", *sorted(OWN - {"lock", "metrics.jsonl", *last}), *last)
            ):
                if path.exists():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            self.close()

    @property
    def wall(self) -> float:
        """Seconds of training, added up over resumes."""
        return self._wall + (time.monotonic() - self._started if self._started else 0.0)

    def log(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Append one row, flushed. step: environment steps per seed. scalars: tag -> number, list of S numbers, or histogram.

        A row that a full disk does not take is kept and written with the next one. RunError after 3 failures in a row.
        """
        log = self._writable()
        if clash := {"step", "wall"} & set(scalars):
            raise ValueError(f"a row has its own {sorted(clash)}")
        row = {"step": int(step), "wall": round(self.wall, 3), **{tag: finite(value) for tag, value in scalars.items()}}
        log.append(row)
        self._attempt("metrics.jsonl", log.flush)
        self._show(row, None)

    def picture(self, step: int, png: bytes | None) -> None:
        """Keep best/<step>.png, whole or not at all; it is shown with the row of that step. None: there is none."""
        path = self.folder / "best" / f"{step:012d}.png"

        def write() -> None:
            safe.folder(path.parent, make=True)
            safe.write(path, png or b"")

        if png:
            self._attempt("a picture", write)

    def checkpoint(self, iteration: int, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int = 3) -> Path | None:
        """Write checkpoints/<iteration> and drop all but the last `keep`. Its folder, or None when the disk failed.

        meta gains `run`, the run's id, `iteration`, `wall`, and `metrics_bytes`, the length of metrics.jsonl at this moment.
        RunError after 3 failures in a row; earlier checkpoints stay whole.
        """
        log, folder = self._writable(), checkpoints.folder_of(self.checkpoints, iteration)

        def write() -> None:
            log.sync()  # a checkpoint must not promise rows that are not on the disk
            own = {"run": self.identity.id, "iteration": iteration, "wall": self.wall, "metrics_bytes": log.length}
            checkpoints.save(folder, tensors, {**meta, **own, **({"best": best} if best else {})}, keep)

        better, self._better = self._better, None
        best = better if better and better["iteration"] == iteration else self._best
        written = self._attempt("a checkpoint", write)
        self._best = best if written else self._best
        if self._writer:
            self._try_writer(self._writer.flush)
        return folder if written else None

    def better(self, step: int, row: Mapping[str, Any]) -> bool:
        """Whether the row of an evaluation is the best so far by `--best`, its mean over seeds; then its checkpoint is due.

        UserError where the evaluation does not have that metric.
        """
        tag = self.config.get("best") or "none"
        if tag == "none":
            return False
        if tag not in row:
            known = ", ".join(other for other in row if other.startswith(("eval/", "mol/")))
            raise RunError(f"got --best {tag}, which evaluations of this run do not have: expected one of {known}")
        value = finite(row[tag])
        values = value if isinstance(value, list) else [value]
        if None in values or not values:
            return False
        mean = sum(values) / len(values)
        before = self._best["value"] if self._best else None
        if before is not None and not (mean < before if LOWER.search(tag) else mean > before):
            return False
        self._better = {"tag": tag, "value": mean, "step": step, "iteration": row["iteration"]}
        return True

    @property
    def way_back(self) -> str:
        """What to do when a run went wrong after its best checkpoint, or nothing."""
        if not (best := self._best):
            return ""
        command = f"{program_of(self.folder)} resume {self.folder} --checkpoint best"
        return f"; the best {best['tag']} was {best['value']:.4g} at iteration {best['iteration']}: to go back, {command}"

    @property
    def identity(self) -> Identity:
        """What run.json says."""
        if self._identity is None:
            self._identity = Identity.of(self.folder)
        return self._identity

    @contextlib.contextmanager
    def user_code(self, trust: bool = False) -> Iterator[None]:
        """Within the block the files that the config names are used if `identity` allows it, or with `trust` all of them."""
        with judged_by(None if trust else lambda name, content: self.identity.judge(self.folder, name, content)):
            yield

    def load(self, checkpoint: Path | None = None) -> tuple[Tensors, Meta]:
        """(tensors, meta) of the newest checkpoint, or of the one named, verified to be one of this run.

        Raises DamagedCheckpoint, CheckpointError, or RunError.
        """
        folder = self.named(checkpoint) if checkpoint else checkpoints.latest(self.checkpoints)
        tensors, meta = checkpoints.load(folder)
        number = folder.name.removeprefix(ASIDE).lstrip("0") or "0"
        length, iteration, wall = (meta.get(key) for key in ("metrics_bytes", "iteration", "wall"))
        counts = type(length) is int and length >= 0 and type(iteration) is int and str(iteration) == number
        if not counts or type(wall) not in (int, float) or not 0 <= wall < 1e12:  # type: ignore[operator]
            raise RunError(f"{folder} is not a checkpoint of a run: meta.json lacks the length of the metrics", exit_code=3)
        known, found = self.identity, meta.get("run")
        unmarked = found is None and (known.id is None or iteration <= known.unmarked)  # type: ignore[operator]
        if found != known.id and not unmarked:
            raise RunError(
                f"{folder} is a checkpoint of another run: {folder / checkpoints.META} has the id {found!r:.40}, "
                f"{self.folder / identity.NAME} has {self.identity.id!r}; put back the checkpoint that belongs here",
                exit_code=3,
            )
        return tensors, meta

    @property
    def empty(self) -> bool:
        """No row was logged yet."""
        return self._writable().length == 0

    def resume(self, restore: Callable[[Tensors, Meta], T], checkpoint: Path | None = None, trust: bool = False) -> T:
        """What `restore` makes of the newest checkpoint, or of the one named, the run being put back to that moment.

        restore  (tensors, meta) -> anything; when it raises, nothing has been changed
        trust    the user trusts the files that the config names as they are now: they are noted in run.json

        metrics.jsonl is cut to that length and TensorBoard rebuilt from it, so that no row is missing or comes twice. Later
        checkpoints are set aside as checkpoints/discarded-*. Raises DamagedCheckpoint, CheckpointError, or RunError.
        """
        if self._log:
            raise RuntimeError(f"{self.folder} is already being written")
        safe.check_tree(self.folder, OPENED)
        with self._locked("resume"):
            tensors, meta = self.load(checkpoint)
            restored = restore(tensors, meta)
            length, iteration, wall = (meta[key] for key in ("metrics_bytes", "iteration", "wall"))
            size = self.metrics.stat().st_size if self.metrics.exists() else 0
            if length > size:
                folder = checkpoints.folder_of(self.checkpoints, iteration)
                raise RunError(f"{self.metrics} has {size} bytes, {folder} needs {length}: restore the file", exit_code=3)
            if length:
                rows_of(safe.read(self.metrics, LARGEST)[:length], self.metrics)  # damaged ones, before anything is changed
            for later in checkpoints.saved(self.checkpoints):  # before the cut: each names a length that must be there
                if int(later.name) > iteration:
                    shutil.rmtree(aside := self.checkpoints / f"{ASIDE}{later.name}", ignore_errors=True)
                    later.rename(aside)
            record = checkpoints.best_of(checkpoints.folder_of(self.checkpoints, iteration))
            self._best = record if record and record.get("tag") == self.config.get("best") else None
            now = dump(provenance(str(self.config.get("device", "cpu"))))
            safe.write(self.folder / f"environment.{iteration:09d}.json", now.encode())
            if trust or self.identity.id is None:  # a run of an earlier version gets an id
                id, unmarked = self.identity.id, self.identity.unmarked if self.identity.id else iteration
                new = Identity.new(self.config, id, unmarked) if trust else Identity(secrets.token_hex(8), unmarked=unmarked)
                self._identity = new
                self._identity.write(self.folder)
            self._start(length, float(wall))
        return restored

    @contextlib.contextmanager
    def _locked(self, purpose: str) -> Iterator[None]:
        """Take the lock, and give it back when what follows fails. RunError (exit code 1) when the disk fails."""
        self._take_lock()
        try:
            yield
        except OSError as error:
            self.close()
            raise RunError(f"could not {purpose} {self.folder}: {error.strerror or error}", exit_code=1) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Write what is pending, close the files, give the lock back. Safe to call twice."""
        log, writer, lock = self._log, self._writer, self._lock
        self._log = self._writer = self._lock = None
        try:
            if log:
                self._attempt("metrics.jsonl", log.flush)
            if writer:
                self._attempt("tensorboard", writer.close)
        finally:
            if log:
                log.close()
            if lock is not None:
                os.close(lock)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _writable(self) -> MetricsLog:
        if self._log is None:
            raise RuntimeError(f"{self.folder} is open for reading; only a created or resumed run is written")
        return self._log

    def named(self, checkpoint: Path) -> Path:
        """One of this run's checkpoints, given by its path or its bare name, or as `best`."""
        if str(checkpoint) == "best":
            if found := checkpoints.best(self.checkpoints):
                return found
            raise RunError(f"{self.folder} has no best checkpoint: give a number, or train with --best METRIC", exit_code=3)
        inside = self.checkpoints / Path(checkpoint).name
        if Path(checkpoint).exists() and Path(checkpoint).resolve() != inside.resolve():
            raise RunError(f"{checkpoint} is not a checkpoint of the run {self.folder}")
        return inside

    def _take_lock(self) -> None:
        try:
            self._lock = safe.open_file(self.folder / "lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = "".join(c for c in safe.read(self.folder / "lock", 64).decode("ascii", "replace") if c.isdigit()) or "?"
            self.close()
            raise RunError(f"{self.folder} is being written by process {holder}: wait for it or stop it") from error
        except OSError as error:
            self.close()
            raise RunError(f"could not lock {self.folder}: {error.strerror}", exit_code=1) from error

    def _start(self, length: int, wall: float) -> None:
        """Open metrics.jsonl at `length` bytes, and event files made anew from it."""
        self._log = MetricsLog(self.metrics, length)
        self._wall, self._started = wall, time.monotonic()
        if not self._tensorboard:
            return
        rows = read_metrics(self.metrics)
        clear(self.folder)
        self._writer = ScalarWriter(self.folder, self._descriptions, self.config)
        zero = time.time() - wall
        for row in rows:
            self._show(row, zero + row["wall"])

    def _show(self, row: Mapping[str, Any], wall_time: float | None) -> None:
        if not (writer := self._writer):
            return
        values = {OWN_TAGS.get(tag, tag): value for tag, value in row.items() if tag != "step"}
        picture = self.folder / "best" / f"{row['step']:012d}.png"
        if os.path.lexists(picture):
            values["best/molecules"] = picture
        self._try_writer(lambda: writer.add(row["step"], values, wall_time))

    def _try_writer(self, write: Callable[[], None]) -> None:
        if not self._attempt("tensorboard", write) and (writer := self._writer):
            self._writer = None  # half a record may stand at the end of a file: no more until it is rebuilt
            with contextlib.suppress(OSError):
                writer.close()

    def _attempt(self, what: str, write: Callable[[], None]) -> bool:
        """Did it succeed? Warns at the first failure, raises RunError at the third in a row."""
        try:
            write()
        except (OSError, checkpoints.CheckpointError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._failures[what] = count = self._failures.get(what, 0) + 1
            if count == 1:
                end = "training goes on" if what != "tensorboard" else "it will be rebuilt from metrics.jsonl on resume"
                print(plain(f"WARNING: could not write {what} of {self.folder}: {reason}; {end}"), file=sys.stderr, flush=True)
            if count >= FAILURES:
                whole = checkpoints.saved(self.checkpoints)
                good = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
                raise RunError(f"could not write {what} {count} times in a row ({reason}); {good}", exit_code=1) from error
            return False
        self._failures[what] = 0
        return True


def _same_files(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """Settings that name a file of the same bytes, wherever it is."""
    return {name for name, digest in DIGESTS.items() if found.get(digest) and found[digest] == wanted.get(digest)}


def _with(config: Mapping[str, Any], given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The config with the settings called `names` as they are given."""
    return {
        key: _with(value, given.get(key) or {}, names)
        if isinstance(value, Mapping)
        else given.get(key, value)
        if key in names
        else value
        for key, value in config.items()
    }


def _short(value: Any) -> str:
    """For a sentence: a vocabulary has thousands of letters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
