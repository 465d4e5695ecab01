"""`AnswerCache`: answers of rewards in an SQLite file that runs share; a molecule is scored once.

    oracles   id, key (SHA-256 of what decides the values, see `spec`), name, for people
    answers   oracle, smiles, run -> value, status, message, seconds, time

A run finds its own answers, whatever their status, and of other runs those with the status ok or invalid: a timeout may not
happen again. `put` writes answers at once (20 µs of computing for one), together with those that other threads have put
meanwhile. Where the disk is full, or the file cannot be written any more, answers stay in memory, one line on stderr says so,
and writing is tried again. A file that is damaged or of another program is never changed.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from experiments.cli.errors import UserError
from experiments.oracle.settings import CACHE
from experiments.run.safe import KINDS
from gflownet.rewards.oracle import STATUSES, Scored

VERSION = 1  # PRAGMA user_version
APPLICATION = 0x6F7261  # PRAGMA application_id
PATIENCE = 10.0  # seconds to wait for a lock
AGAIN = 5.0  # seconds after which writing is tried again
CHUNK = 500  # SMILES in one query
TABLES = (  # another text is another VERSION
    "CREATE TABLE oracles (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL)",
    "CREATE TABLE answers (oracle INTEGER NOT NULL, smiles TEXT NOT NULL, run TEXT NOT NULL, value REAL, status TEXT NOT NULL, "
    "message TEXT NOT NULL, seconds REAL NOT NULL, time REAL NOT NULL, PRIMARY KEY (oracle, smiles, run)) WITHOUT ROWID",
)
Row = tuple[float | None, str, str, float, float]


class AnswerCache:
    """Answers of one reward for one run. It is a context manager.

    Args:
        path: the file, made where there is none; None: in memory.
        key: of the reward.
        name: of the reward.
        run: id of the run.

    Raises:
        UserError: the file cannot be used: exit code 3 where it is damaged or of another version, 1 where disk or lock fail.
    """

    def __init__(self, path: Path | None, key: str, name: str = "", run: str = "") -> None:
        self.path, self.run = path, run
        self._pending: dict[str, Row] = {}
        self._use, self._writing = threading.Lock(), threading.Lock()  # of _pending, of the connection
        self._closed, self._warned, self._next_try = False, False, 0.0
        with self._sentences():
            self._base = _opened(path)
            try:
                self._oracle = self._id_of(key, name)
            except BaseException:
                self._base.close()
                raise

    def get(self, smiles: Sequence[str]) -> dict[str, Scored]:
        """What is known of molecules. UserError where the file cannot be read."""
        with self._use:
            found = {s: row for s in smiles if (row := self._pending.get(s)) is not None}
        asked = [s for s in smiles if s not in found] if found else smiles
        with self._sentences(), self._writing:
            for i in range(0, len(asked), CHUNK):
                some = asked[i : i + CHUNK]
                marks = ",".join("?" * len(some))
                rows = self._base.execute(
                    f"SELECT smiles, run = ?, value, status, message FROM answers WHERE oracle = ? AND smiles IN ({marks})"
                    " AND (run = ? OR status IN ('ok', 'invalid')) ORDER BY run = ?",  # its own last
                    (self.run, self._oracle, *some, self.run, self.run),
                )
                for text, _, value, status, message in rows:
                    found[text] = (value, status, message, 0.0, 0.0)
        return {s: scored for s, row in found.items() if (scored := _scored(row)) is not None}

    def put(self, answers: Iterable[tuple[str, Scored]], seconds: float = 0.0) -> None:
        """Keep answers, on disk when this returns: of each molecule, with the seconds that it took."""
        if self._closed:
            return
        now = time.time()
        rows = {s: (None if math.isnan(x.value) else x.value, x.status, x.message, seconds, now) for s, x in answers}
        with self._use:
            self._pending |= rows
        self.flush()

    def flush(self) -> None:
        """Write what is in memory to the file; where that fails it stays in memory, for another try after AGAIN seconds."""
        if not self._pending or time.monotonic() < self._next_try:
            return
        with self._writing:
            with self._use:
                rows = dict(self._pending)
            if rows and self._written(rows):
                with self._use:
                    for s, row in rows.items():
                        if self._pending.get(s) is row:
                            del self._pending[s]

    def _written(self, rows: dict[str, Row]) -> bool:
        try:
            with self._base:
                self._base.executemany(
                    "INSERT OR REPLACE INTO answers (oracle, smiles, run, value, status, message, seconds, time)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(self._oracle, s, self.run, *row) for s, row in rows.items()],
                )
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            self._next_try = time.monotonic() + AGAIN
            if not self._warned:
                self._warned = True
                said = (
                    f"{self.path} could not be written ({error}): answers are kept in memory, and written when that is possible"
                )
                _say(said)
            return False
        return True

    def forget_failures(self) -> None:
        """Let this run ask again for what was a timeout or an error."""
        self.flush()
        with self._sentences(), self._writing, self._base:
            mine = "oracle = ? AND run = ? AND status NOT IN ('ok', 'invalid')"
            self._base.execute(f"DELETE FROM answers WHERE {mine}", (self._oracle, self.run))

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._closed:
            return
        self._next_try = 0.0
        self.flush()
        self._closed = True
        if self._pending:
            _say(f"{len(self._pending):,} answers could not be written to {self.path}: they will be asked again")
        with self._writing, contextlib.suppress(sqlite3.Error):
            self._base.close()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _id_of(self, key: str, name: str) -> int:
        query = "SELECT id FROM oracles WHERE key = ?"
        if (found := self._base.execute(query, (key,)).fetchone()) is None:
            with self._base:
                self._base.execute("INSERT OR IGNORE INTO oracles (key, name) VALUES (?, ?)", (key, name))
            found = self._base.execute(query, (key,)).fetchone()
        return int(found[0])

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        end = "move it away, or name another file with --reward-cache"
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                said = f"{self.path} has been locked by another process for {PATIENCE:g} s: wait for it, or name another file"
                raise UserError(f"{said} with --reward-cache", exit_code=1) from error
            raise UserError(f"the cache {self.path} cannot be used ({error}): {end}", exit_code=1) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter for a message with parts of the file
            raise UserError(f"the cache {self.path} is damaged or no SQLite file ({error}): {end}", exit_code=3) from error


def cache_path(name: str) -> Path | None:
    """The file that --reward-cache names; None for none."""
    return None if name in ("", "none") else Path(name)


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is None:
        base = sqlite3.connect(":memory:", check_same_thread=False, isolation_level="IMMEDIATE")
        for statement in TABLES:
            base.execute(statement)
        return base
    _check(path)
    base = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False, isolation_level="IMMEDIATE")
    try:
        _prepare(base, path)
    except BaseException:
        base.close()
        raise
    return base


def _prepare(base: sqlite3.Connection, path: Path) -> None:
    end = "move it away, or name another file with --reward-cache"
    tables = base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]  # first: another process may be at it
    version, application = (base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
    if tables and application != APPLICATION:
        raise UserError(f"{path} is a database of another program: {end}", exit_code=3)
    if tables and version != VERSION:
        raise UserError(f"{path} is a cache of version {version}, expected {VERSION}: {end}", exit_code=3)
    if tables and {sql for (sql,) in base.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")} != set(TABLES):
        raise UserError(f"the cache {path} has other tables than ours: {end}", exit_code=3)  # views and triggers are code
    with contextlib.suppress(sqlite3.OperationalError):  # another process is at it
        base.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once; where it is impossible another mode stays
    base.execute("PRAGMA synchronous = NORMAL")
    if not tables:
        base.execute("BEGIN IMMEDIATE")
        if not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # no other process came first
            for statement in TABLES:
                base.execute(statement)
            base.execute(f"PRAGMA application_id = {APPLICATION}")
            base.execute(f"PRAGMA user_version = {VERSION}")
        base.commit()


def _check(path: Path) -> None:
    """An ordinary file in a folder that is there, or nothing yet. UserError for anything else."""
    try:
        if path.parts[-2:] == Path(CACHE).parts:  # where runs are, unless somebody chose another place
            path.parent.mkdir(exist_ok=True)
        found = os.stat(path)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UserError(
                f"there is no folder {path.parent} for the cache: make it, or name another --reward-cache"
            ) from None
        return
    except (OSError, ValueError) as error:
        raise UserError(f"the cache {path} cannot be used: {getattr(error, 'strerror', None) or error}", exit_code=1) from error
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UserError(f"--reward-cache {path} is {kind}, expected a file or a name that is free")


def _scored(row: Row) -> Scored | None:
    """What a row says; None where it is none of ours."""
    value, status, message = row[:3]
    if status not in STATUSES or (status == "ok") != (isinstance(value, float) and math.isfinite(value)):
        return None
    return Scored(value, status) if status == "ok" and value is not None else Scored.failed(status, message)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
