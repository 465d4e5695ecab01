"""`gflownet score`: the reward of molecules in a file, without training; with --check, whether a reward keeps its contract."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from envs.ranges import Fraction, Workers
from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.ranges import check_flags
from experiments.cli.signals import Stopped, deferred_signals
from experiments.cli.text import cell, plain
from experiments.cli.verbs import call
from experiments.oracle.settings import OracleSettings

if TYPE_CHECKING:
    from experiments.oracle.score import Molecule, Scorer
    from experiments.run.out_file import Write

PLAIN: Any = OmitArgPrefixes
STDOUT = Path("-")
WINDOW = 256  # molecules that are scored together; the next ones are under way meanwhile
EARLY = 200  # molecules after which a reward that fails too often ends the command


def score(arguments: list[str]) -> None:
    def command(
        molecules: Positional[Path | None] = None,
        reward: str = "",
        out: Path = STDOUT,
        check: Annotated[str | None, tyro.conf.arg(metavar="FILE.PY:FUNCTION")] = None,
        reward_workers: Workers = 0,
        max_failed: Fraction = 0.5,
        oracle: PLAIN[OracleSettings] = OracleSettings(),  # noqa: B008
        quiet: bool = False,
    ) -> None:
        """Score the molecules of a file by a reward, without training, or check a reward with --check.

        Columns: smiles as given, canonical_smiles, reward, each term of the formula, status (ok, timeout, invalid, error),
        message (why it failed). One row a molecule, in order, duplicates too, which are scored once; a line that RDKit cannot
        read is invalid. Answers are kept in --reward-cache. Where the command is stopped, the same command goes on from there.

        Args:
            molecules: a file with a SMILES on each line, or .csv with a column smiles, also .gz; - is standard input
            reward: formula as in `gflownet train molecules`, file.py:function among its terms; default: command
            out: .csv file, replaced only when the new one is complete; - is standard output
            check: check the contract of this function, or of --reward-command with `--check command`, with five known drugs
            reward_workers: processes for RDKit terms, and for your reward (at least one)
            max_failed: end with exit code 6 where your reward fails at more than this fraction of the molecules
            oracle: how your reward is run
            quiet: hide the progress bar and the summary
        """
        check_flags(oracle)
        if check is not None:
            if molecules is not None or reward:
                raise UserError("got --check and molecules or --reward: a check needs the function alone")
            from experiments.oracle.check import check_reward

            check_reward(check, oracle, print)
            return
        if molecules is None:
            raise UserError("got no molecules: gflownet score FILE.smi --reward FORMULA, or - for standard input")
        if not reward and not oracle.reward_command:
            raise UserError("got no reward: give --reward FORMULA, as in --reward mine.py:score, or --reward-command")
        if str(out) != "-" and out.suffix.lower() != ".csv":
            raise UserError(f"--out is {str(out)!r}, expected a name that ends in .csv, or - for standard output")
        _score(molecules, reward, out, reward_workers, max_failed, oracle, quiet)

    call(command, "gflownet score", arguments)


def _score(
    source: Path, formula: str, out: Path, workers: int, max_failed: float, settings: OracleSettings, quiet: bool
) -> None:
    from experiments.run.out_file import output

    try:
        from experiments.oracle.score import Scorer
    except ImportError as error:
        raise MissingPackage("RDKit", "molecules", "gflownet score") from error
    run = "score " + hashlib.sha256(f"{source.resolve()}\0{out.resolve()}".encode()).hexdigest()[:16]
    silent = quiet or (out == STDOUT and sys.stdout.isatty())
    with deferred_signals(grace=0.0) as asked:
        try:
            with asked.interruptible(), output(out) as write, Scorer(formula, settings, workers, run) as scorer:
                _write(scorer, source, write, max_failed, silent)
                scorer.forget_failures()
                if not quiet:
                    _summary(scorer)
        except Stopped:
            kept = "" if settings.reward_cache == "none" else f": answers so far are in {settings.reward_cache}"
            raise UserError(f"stopped{kept}; the same command goes on from there", asked.code) from None


def _write(scorer: Scorer, source: Path, write: Write, max_failed: float, quiet: bool) -> None:
    """Write window by window. UserError where too many molecules fail, or none can be read."""
    from experiments.cli.progress import progress

    total, done = _count(source), 0
    with progress(total, "molecules", quiet or not total) as tick:
        write(_line(scorer.columns).encode())
        for window in _ahead(scorer, source):
            rows = scorer.rows(window)
            write("".join(_line(tuple(row.values())) for row in rows).encode())
            done += len(rows)
            tick(done)
            _refuse(scorer, max_failed, EARLY)
        _refuse(scorer, max_failed, 1)
        if done and scorer.unreadable == done:
            raise UserError(f"{source}: RDKit can read none of its {done:,} lines as SMILES; expected a SMILES on each line")


def _ahead(scorer: Scorer, source: Path) -> Iterator[list[Molecule]]:
    """Windows of molecules; while the caller waits for one, the next is submitted."""
    from experiments.oracle.read import smiles_of
    from experiments.oracle.score import molecule

    lines = smiles_of(source)
    before: list[Molecule] = []
    while window := [molecule(text) for text in itertools.islice(lines, WINDOW)]:
        scorer.submit(window)
        if before:
            yield before
        before = window
    if before:
        yield before


def _refuse(scorer: Scorer, max_failed: float, least: int) -> None:
    asked = sum(scorer.status.values())
    failed = asked - scorer.status["ok"]
    if asked >= least and failed > max_failed * asked:
        scorer.forget_failures()
        raise UserError(
            f"the reward failed at {failed:,} of {asked:,} molecules, more than --max-failed {max_failed:g}; "
            f"the first: {scorer.first_failure}",
            exit_code=6,
        )


def _count(source: Path) -> int:
    """Molecules in a file; 0 for what can be read only once."""
    from experiments.oracle.read import smiles_of

    return sum(1 for _ in smiles_of(source)) if source.is_file() else 0


def _summary(scorer: Scorer) -> None:
    done = sum(scorer.status.values()) + scorer.unreadable
    said = ", ".join(f"{n:,} {status}" for status, n in scorer.status.items())
    unread = f", {scorer.unreadable:,} not readable as SMILES" if scorer.unreadable else ""
    print(f"{done:,} molecules: {said or 'none scored'}{unread}", file=sys.stderr)
    for name, oracle in scorer.oracles.items():
        counts = oracle.counts
        where = oracle.cache.path or "memory"
        print(
            plain(f"{name}: {counts.asked:,} calls, {counts.cached:,} answers from {where}, {counts.seconds:.1f} s in it"),
            file=sys.stderr,
        )


def _line(cells: tuple[Any, ...]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([cell(x) for x in cells])
    return out.getvalue()
