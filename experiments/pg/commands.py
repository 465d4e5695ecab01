"""What the verbs do: make or open a run folder, train in it, look at what came out."""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

from envs.workers import Workers
from experiments.cli.errors import UserError
from experiments.cli.progress import progress
from experiments.pg.build import OWN
from experiments.pg.config import from_config, make_agent, make_problem, tabular, worker_count
from experiments.pg.train import DESCRIPTIONS, PGTraining
from experiments.pg.train import train as run_loop
from experiments.run import checkpoint as checkpoints
from experiments.run.run import Run, run_name
from pgrl.agent import Agent
from pgrl.problem import Problem
from pgrl.registry import register


def start(config: dict[str, Any], out: Path | None, argv: Sequence[str], quiet: bool = False) -> Path:
    """A new run, trained to the end. The run folder."""
    name = run_name(_plain(config["env"]), _plain(config["algo"]), config["seed"], config)
    with _made(config) as (problem, agent), Run.create(out, name, config, argv, DESCRIPTIONS) as run:
        training = PGTraining.begin(agent, problem)
        if not quiet:
            print(f"{config['algo']} on {config['env']} -> {run.folder}", file=sys.stderr)
            print(_settings(config, problem), file=sys.stderr)
        _to_the_end(run, problem, agent, training, quiet)
        return run.folder


def resume(folder: Path, checkpoint: Path | None, quiet: bool) -> None:
    with Run.open(folder, DESCRIPTIONS) as run, _made(run.config) as (problem, agent):
        training = run.resume(lambda tensors, meta: PGTraining.restored(agent, problem, tensors, meta), checkpoint)
        _to_the_end(run, problem, agent, training, quiet)


def finished(folder: Path) -> bool:
    """Whether every seed of a run has used its environment steps, by the newest checkpoint."""
    run = Run.open(folder)
    tensors, _ = checkpoints.load_latest(run.checkpoints)
    return bool((tensors["env_steps"] >= run.config["env_steps"]).all())


@contextmanager
def _made(config: dict[str, Any]) -> Iterator[tuple[Problem, Agent]]:
    """The problem, with its workers while they are needed, and the agent."""
    algo, settings, hyperparameters = from_config(config)
    agent, problem = make_agent(algo, hyperparameters), make_problem(settings, config["device"])
    if tabular(problem):
        torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
    count = worker_count(settings, problem.env)
    if count == 0:
        yield problem, agent
        return
    try:
        ForkingPickler.dumps(problem.env)  # as it travels to another process of this run; nothing is written
    except Exception as error:
        raise UserError(f"--workers {count}: {config['env']} cannot be copied to another process ({error}); use 0") from error
    with Workers(problem.env, count) as workers:
        yield replace(problem, workers=workers), agent


def _to_the_end(run: Run, problem: Problem, agent: Agent, training: PGTraining, quiet: bool) -> None:
    settings = from_config(run.config)[1]
    with progress(settings.env_steps, "steps a seed", quiet) as tick:
        run_loop(run, problem, agent, settings, training, tick)
    if not quiet:
        print(f"done: {run.folder}   curves: tensorboard --logdir {run.folder / 'tensorboard'}", file=sys.stderr)


def _plain(name: str) -> str:
    """A file's or a map's name without its folders, for a run folder's name."""
    return "-".join(Path(part).stem if "." in part else part for part in name.split(":"))


def _settings(config: dict[str, Any], problem: Problem) -> str:
    hyperparameters = ", ".join(
        f"{name} {value:g}" for name, value in config["hyperparameters"].items() if isinstance(value, int | float)
    )
    shared = ("discount", "batch_size", "hidden", "baseline", "dtype", "device")
    rest = ", ".join(f"{name} {config[name]}" for name in shared)
    return (
        f"  {config['seeds']} seeds × {config['env_steps']:,} environment steps, horizon {problem.horizon}, "
        f"{problem.policy.size} parameters\n  {hyperparameters}\n  {rest}"
    )


def evaluate(folder: Path, episodes: int, checkpoint: Path | None) -> None:
    """Prints seed, mean and standard deviation of the return, discounted return, and length, as CSV."""
    if episodes < 1:
        raise UserError(f"--episodes is {episodes}, expected at least 1")
    run = Run.open(folder)
    tensors, meta = checkpoints.load(run.named(checkpoint)) if checkpoint else checkpoints.load_latest(run.checkpoints)
    with _made(run.config) as (problem, agent):
        theta = PGTraining.restored(agent, problem, tensors, meta).state.theta
        tau = problem.evaluate(theta, episodes, -1)  # a stream that training never used
    S = len(problem.seeds)
    plain, discounted = (tau.returns(c).reshape(S, -1).double() for c in (1.0, problem.discount))
    lengths = tau.mask.sum(0).reshape(S, -1).double()
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["seed", "episodes", "return", "return_std", "discounted_return", "length"])
    for i, seed in enumerate(problem.seeds):
        spread = plain[i].std().item() if episodes > 1 else 0.0
        numbers = (plain[i].mean().item(), spread, discounted[i].mean().item(), lengths[i].mean().item())
        out.writerow([seed, episodes, *(f"{x:.6g}" for x in numbers)])


def listing() -> str:
    from envs.mdp.mujoco_tasks import TASKS

    lines = ["algorithms"]
    for name, entry in register().items():
        what = (entry.make.__doc__ or "").strip().split("\n")[0]
        lines.append(f"  {name:12s} {what}" + (f" ({entry.preset})" if entry.preset else ""))
    lines += ["", "environments"] + [f"  {name:12s} {what}" for name, what in OWN.items()]
    lines += ["  " + ", ".join(f"{task}-v5" for task in TASKS) + ": batched MuJoCo"]
    lines += ["  any other Gymnasium id (CartPole-v1, ...), or file.py:make"]
    return "\n".join(lines)


def doctor() -> None:
    """Prints versions and device, then trains for a moment and says how fast."""
    from experiments.pg.config import as_config, defaults
    from experiments.run.provenance import surroundings

    for name, value in surroundings("cuda" if torch.cuda.is_available() else "cpu").items():
        print(f"{name:12s} {value}")
    settings, hyperparameters, _ = defaults("n-harpg", "gridworld")
    folder = Path(tempfile.mkdtemp())
    try:
        begun = time.perf_counter()
        short = replace(settings, env_steps=5_000)
        start(as_config("n-harpg", short, hyperparameters, "cpu"), folder / "run", ["pgrl", "doctor"], quiet=True)
        seconds = time.perf_counter() - begun
        print(f"{'training':12s} ok: ten seeds of n-harpg on gridworld, {50_000 / seconds:,.0f} environment steps/s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
