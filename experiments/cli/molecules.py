"""The verbs of `gflownet` that have to do with molecules alone: sample and fragments."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from envs.ranges import Batch, Count, Seed, Steps, Workers
from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.signals import Asked, Stopped, deferred_signals
from experiments.cli.text import plain
from experiments.cli.verbs import call

if TYPE_CHECKING:
    from envs.molecules.fragments import Fragment
    from experiments.molecules.files import Format
    from experiments.molecules.sample import Shortfall
    from experiments.molecules.trained import Trained, Wanted
    from experiments.run.out_file import Write

STDOUT = Path("-")


def sample(arguments: list[str]) -> None:
    def command(
        run: Positional[Path],
        n: Count = 1000,
        out: Path = STDOUT,
        format: str | None = None,
        unique: bool = False,
        seed: Seed = 0,
        checkpoint: Path | None = None,
        batch: Batch = 512,
        log_p: bool = True,
        max_attempts: Steps | None = None,
        device: str = "auto",
        workers: Workers | None = None,
        quiet: bool = False,
        trust: bool = False,
    ) -> None:
        """Sample molecules from the policies of a trained run, without exploration, from each seed in turn.

        Columns: smiles (canonical, isomeric), reward before tempering, its terms, log_reward, log_p (exact, of this tree of
        blocks), blocks, seed (the training seed). The same arguments give the same bytes on the same machine. Where fewer than
        n are found, these are written, one sentence says why, and the exit code is 1.

        Args:
            run: the run folder
            n: number of molecules
            out: .sdf, .csv, .smi or .jsonl, replaced only when the new file is complete; - is standard output
            format: format of standard output: a suffix of --out without its dot; default: csv. smi holds SMILES alone
            unique: no duplicates, compared by canonical isomeric SMILES
            seed: random seed of sampling
            checkpoint: checkpoint folder, or best (see --best of train); default: the latest
            batch: number of molecules sampled at once
            log_p: compute the column log_p, the slowest one
            max_attempts: samples drawn before giving up; default: 100 n, at least 40 batches. 20 batches in a row without a new
                molecule end it as well
            device: auto (where it was trained, or the CPU), cpu or cuda
            workers: processes that compute batches; 0 or 1: this one; default: one for each 5,000 molecules, at most 8 and
                as many as CPUs, on a GPU this one. The file does not depend on it. A reward of yours has processes of its own
            quiet: hide the progress bar
            trust: execute the files that the run names even if they changed or are not yours
        """
        from experiments.gfn.rewards import closing as closing_reward
        from experiments.gfn.rewards import summary
        from experiments.molecules.files import format_of
        from experiments.molecules.sample_workers import default_workers
        from experiments.molecules.trained import Wanted, trained
        from experiments.run.out_file import output

        written = format_of(out, format)
        wanted = Wanted(n, unique, seed, batch, written.columns, log_p, max_attempts, written.mols)
        short: Shortfall | None = None
        # standard output has nothing to clear away: there a signal ends the process as it ends any other
        with nullcontext(Asked()) if out == STDOUT else deferred_signals() as asked, output(out) as write:
            silent = quiet or (out == STDOUT and sys.stdout.isatty())
            source = trained(run, checkpoint, device, trust)
            with closing_reward(source.problem):
                processes = default_workers(n, str(source.problem.device)) if workers is None else workers
                short = _write(source, wanted, processes, written, write, asked, silent)
        if not quiet and not short and source.problem.calls.calls:
            print(plain(summary(source.problem), keep="\n"), file=sys.stderr)
        if short:
            raise UserError(f"{short}" + ("" if out == STDOUT else f"; those found are in {out}"), short.exit_code)

    call(command, "gflownet sample", arguments)


def _write(
    source: Trained, wanted: Wanted, workers: int, written: Format, write: Write, asked: Asked, quiet: bool
) -> Shortfall | None:
    """Writes batch by batch; why they are fewer than wanted, if they are. UserError where none was found, or a signal came."""
    from experiments.cli.progress import progress
    from experiments.cli.threads import fit
    from experiments.molecules.sample import Shortfall, batches

    fit(wanted.batch, trees=True)
    number = 0
    with progress(wanted.n, "molecules", quiet) as tick, closing(batches(source, wanted, workers)) as found:
        try:
            while True:
                with asked.interruptible():
                    some = next(found, None)
                if some is None:
                    break
                text = []
                for row, mol in some:
                    text += [] if number else [written.head(row)]
                    number += 1
                    text.append(written.text(number, row, mol))
                if text:
                    write("".join(text).encode())
                tick(number)
                if asked and number < wanted.n:
                    raise Stopped
        except Stopped:
            raise UserError(f"stopped after {number:,} molecules; no file was written", asked.code) from None
        except Shortfall as short:
            if not number:
                raise
            return short
    return None


def fragments(arguments: list[str]) -> None:
    def command(
        source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
        fragments: Path | None = None,
        convention: Literal["merged", "paper2021"] = "merged",
        out: Path | None = None,
        image: Path | None = None,
        min_count: Count = 2,
        max_atoms: Count = 20,
        limit: Count = 200,
    ) -> None:
        """Make a vocabulary of building blocks from molecules, or show one.

        With --from, the molecules are cut at their BRICS bonds and the most frequent pieces become the fragments. Without, the
        fragments are those of --fragments, or our own. They are written to --out, drawn to --image, and printed as a table
        where neither is given: name, SMILES, points (number of attachment points) and orbits (atoms that attach it, up to
        symmetry).

        Args:
            source: a file of molecules with one SMILES a line; - is standard input
            fragments: a file of fragments, or the blocks file of Bengio et al. 2021
            convention: for that file, as in `gflownet train molecules`
            out: .json file for `gflownet train molecules --fragments`, replaced only when the new one is complete
            image: .png file that shows the fragments with their attachment atoms coloured
            min_count: with --from, smallest number of occurrences of a fragment
            max_atoms: with --from, largest number of heavy atoms in a fragment
            limit: with --from, how many of the most frequent fragments are kept
        """
        _vocabulary(source, fragments, convention, out, image, (min_count, max_atoms, limit))

    call(command, "gflownet fragments", arguments)


def _vocabulary(
    source: Path | None,
    named: Path | None,
    convention: str,
    out: Path | None,
    image: Path | None,
    bounds: tuple[int, int, int],
) -> None:
    from experiments.run.out_file import standard_output, whole_file

    if source and named:
        raise UserError("got --from and --fragments: give molecules to cut, or fragments to look at")
    if convention != "merged" and not named:
        raise UserError("--convention paper2021 reads the blocks file of 2021: give it with --fragments")
    for path, suffix in ((out, ".json"), (image, ".png")):
        if path and path.suffix.lower() != suffix:
            raise UserError(f"expected a name that ends in {suffix}, got {str(path)!r}")
    try:
        from envs.molecules.fragments import as_json, blocks_of, default_fragments
    except ImportError as error:
        raise MissingPackage("RDKit", "molecules", "gflownet fragments") from error

    found = _cut(source, bounds) if source else _loaded(named, convention) if named else default_fragments()
    try:
        blocks = blocks_of(found)
    except ValueError as error:
        raise UserError(f"{source or named}: {error}", exit_code=2 if source else 3) from error
    if out:
        with whole_file(out) as write:
            write(as_json(found).encode())
        print(
            plain(f"{len(found)} fragments: {out}   train with: gflownet train molecules --fragments {out} ..."),
            file=sys.stderr,
        )
    if image:
        picture = _drawn(found)
        with whole_file(image) as write:
            write(picture)
        print(plain(f"{len(found)} fragments drawn: {image}"), file=sys.stderr)
    if not out and not image:
        orbits = blocks.row_block.bincount(minlength=len(found)).tolist()
        rows = [
            (plain(f.name), plain(f.smiles), sum(count for _, count in f.attach), n) for f, n in zip(found, orbits, strict=True)
        ]
        with standard_output() as write:
            write(_table(("name", "smiles", "points", "orbits"), rows).encode())
        print(f"{len(found)} fragments", file=sys.stderr)


def _cut(source: Path, bounds: tuple[int, int, int]) -> tuple[Fragment, ...]:
    from envs.molecules.brics import fragments_from

    min_count, max_atoms, limit = bounds
    try:
        with _lines(source) as lines:
            return fragments_from(lines, min_count, max_atoms, limit)
    except OSError as error:
        raise UserError(f"--from {source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--from {source}: it is not text; give a file with a SMILES on each line") from error
    except ValueError as error:
        raise UserError(f"--from {source}: {error}") from error


@contextmanager
def _lines(source: Path) -> Iterator[Iterator[str]]:
    if source == STDOUT:
        yield iter(sys.stdin)
    else:
        with source.open(encoding="utf-8-sig") as file:
            yield iter(file)


def _loaded(path: Path, convention: str) -> tuple[Fragment, ...]:
    from envs.molecules.fragments import load_fragments

    try:
        return load_fragments(path, convention)
    except OSError as error:
        raise UserError(f"--fragments {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--fragments {error}", exit_code=3) from error


def _drawn(found: Sequence[Fragment]) -> bytes:
    from experiments.molecules.pictures import draw

    try:
        return draw([f.smiles for f in found], [plain(f.name) for f in found], [[atom for atom, _ in f.attach] for f in found])
    except ValueError as error:
        raise UserError(f"--image: {error}") from error


def _table(head: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    """Columns as wide as their widest cell, numbers to the right."""
    lines = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [isinstance(cell, int) for cell in rows[0]]
    padded = ([c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)] for line in lines)
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)
