"""`bench`: every method on every task with every seed, in processes of one thread each; then a table, a CSV and a figure.

A job that fails does not stop the others. A process that dies (killed, out of memory) takes its job with it; the job is tried
once more, and the others go on. Repeating the command runs what is missing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from envs.child_process import follow_parent, kill
from envs.raised import raised
from experiments.cli.errors import UserError
from experiments.cli.verbs import close_to
from experiments.pmo.jobs import METHODS, BenchJob, Result, read, run
from experiments.pmo.source import digest
from experiments.pmo.table import Published, auc, markdown, measures, published, write_csv
from experiments.run.out_file import whole_file
from gflownet.rewards.pmo import TASKS

Outcome = Result | UserError
Tell = Callable[[str], None]
ATTEMPTS = 2  # of a job whose process dies
JOBS = 10  # of a process, whose memory grows, until a fresh one takes its place
DISK, FAULT = 1, 5  # exit codes of a job that failed without one of its own


def bench(
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    calls: int,
    out: Path,
    workers: int = 1,
    molecules: Path | None = None,
    others: Path | None = None,
    tell: Tell = lambda line: None,
) -> str:
    """Run what is missing, then write OUT/pmo.csv, OUT/pmo.md and OUT/pmo.png.

    Args:
        tasks: names of tasks.
        methods: names of methods.
        seeds: seeds 0 to seeds - 1.
        calls: the budget of each job.
        out: the folder of results.
        workers: processes; 0: this one.
        molecules: a file of molecules for the first ones; None: our fragments.
        others: published results, the CSV of a leaderboard.
        tell: is told how far it is.

    Returns:
        The table.

    Raises:
        UserError: a name is unknown, a number does not fit, a file cannot be read, or a job failed.
    """
    for name in tasks:
        if name not in TASKS:
            raise UserError(f"there is no PMO task {name!r}; close: {close_to(name, TASKS)}; all: {', '.join(TASKS)}")
    for name in methods:
        if name not in METHODS:
            raise UserError(f"there is no method {name!r}; close: {close_to(name, METHODS)}; all: {', '.join(METHODS)}")
        if calls < METHODS[name].least:
            raise UserError(f"got --calls {calls}, fewer than the {METHODS[name].least} that {name} asks at first: allow more")
    file = str(molecules.resolve()) if molecules else ""
    sha, known = digest(file), published(others) if others else Published({})
    jobs = [BenchJob(m, t, s, calls, file, sha, str(out.resolve())) for s in range(seeds) for t in tasks for m in methods]
    found = {job: result for job in jobs if (result := read(job)) is not None}
    missing = [job for job in jobs if job not in found]
    if found:
        tell(f"{len(found)} of {len(jobs)} jobs are done already")
    failed: dict[BenchJob, UserError] = {}
    out.mkdir(parents=True, exist_ok=True)
    for job, outcome in _outcomes(missing, workers):
        if isinstance(outcome, Result):
            found[job] = outcome
            what = f"AUC top-10 {auc(outcome):.3f}, {len(outcome.smiles):,} calls, {outcome.seconds:.0f} s of CPU"
        else:
            failed[job] = outcome
            what = f"failed: {outcome}"
        tell(f"{len(found) + len(failed)}/{len(jobs)}  {job.name}: {what}")
    table = ""
    if found:
        results = [found[job] for job in jobs if job in found]
        rows = [measures(result) for result in results]
        write_csv(out / "pmo.csv", rows)
        table = markdown(rows, known)
        with whole_file(out / "pmo.md") as write:
            write(table.encode())
        _figure(out / "pmo.png", results, tell)
    if failed:
        job, error = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, the first being {job.name}: {error}; "
            f"the others are in {out}, and the same command tries again",
            exit_code=error.exit_code,
        )
    return table


def _figure(path: Path, results: Sequence[Result], tell: Tell) -> None:
    from experiments.cli.errors import MissingPackage
    from experiments.pmo.figure import figure

    try:
        figure(path, results)
    except MissingPackage as error:
        tell(f"no figure: {error}")


def _outcomes(jobs: Sequence[BenchJob], workers: int) -> Iterator[tuple[BenchJob, Outcome]]:
    """Results in the order in which they come; an exception for a job that failed."""
    if not workers:
        for job in jobs:
            yield job, _tried(job)
        return
    waiting, attempts = list(jobs), dict.fromkeys(jobs, 0)
    while waiting:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_settle)
        running: dict[Future[Outcome], BenchJob] = {}
        left = JOBS * workers
        try:
            while running or (waiting and left):
                while waiting and left and len(running) < workers:  # no more: what a pool holds dies with it
                    future = pool.submit(_tried, waiting[0])
                    running[future] = job = waiting.pop(0)
                    attempts[job] += 1
                    left -= 1
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    yield running.pop(future), outcome
        except BrokenProcessPool:
            for job in running.values():
                if attempts[job] < ATTEMPTS:
                    waiting.append(job)
                else:
                    yield job, UserError("its process died twice; is there enough memory?", exit_code=DISK)
        finally:
            kill(pool)


def _tried(job: BenchJob) -> Outcome:
    try:
        return run(job)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{error.filename or job.path}: {error.strerror or error}", exit_code=DISK)
    except Exception as error:
        return UserError(raised(error), exit_code=FAULT)


def _settle() -> None:
    """In a worker: end with the parent, one thread."""
    follow_parent()
    import torch

    torch.set_num_threads(1)
