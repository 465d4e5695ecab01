"""What the verbs of `pgrl` do: make or open a run folder, train in it, evaluate it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

from envs.core import LearnerFault
from envs.ranges import Count
from envs.workers import Workers
from experiments.cli.errors import UserError
from experiments.cli.load import short_name
from experiments.cli.progress import progress
from experiments.cli.ranges import check_flags
from experiments.cli.stdout import stdout_to_stderr
from experiments.cli.text import plain
from experiments.cli.verbs import Record
from experiments.pg.build import check_user_env
from experiments.pg.config import (
    as_config,
    biases,
    defaults,
    find_agent,
    from_config,
    make_agent,
    make_problem,
    tabular,
    worker_count,
)
from experiments.pg.memory import sampled
from experiments.pg.train import DESCRIPTIONS, PGTraining
from experiments.pg.train import train as run_loop
from experiments.run.device import use_deterministic
from experiments.run.faults import BEFORE, faults_as_sentences
from experiments.run.memory import require
from experiments.run.provenance import examine
from experiments.run.run import Run, run_name
from pgrl.agent import Agent
from pgrl.check import LIMIT, CheckProblem, Claim, bias, check_problems, decay, exact_bias, verdict
from pgrl.problem import Problem


def start(config: dict[str, Any], out: Path | None, argv: Sequence[str], quiet: bool = False) -> Path:
    """A new run, trained to the end. The run folder."""
    name = run_name(short_name(config["env"]), short_name(config["algo"]), config["seed"], config)
    with faults_as_sentences(BEFORE, config):
        check_user_env(config["env"], config["horizon"], config["device"])
    with made(config) as (problem, agent):
        with faults_as_sentences(BEFORE, config):
            training = PGTraining.begin(agent, problem)
        with Run.create(out, name, config, argv, DESCRIPTIONS) as run:
            if not quiet:
                print(plain(f"{config['algo']} on {config['env']} -> {run.folder}"), file=sys.stderr)
                print(_settings(config, problem), file=sys.stderr)
            _to_the_end(run, problem, agent, training, quiet)
            return run.folder


def resume(
    folder: Path, checkpoint: Path | None, quiet: bool, given: Mapping[str, Any] | None = None, trust: bool = False
) -> None:
    """Continue a run to its end. given: settings, of which those that change no number are taken."""
    with Run.open(folder, DESCRIPTIONS, given=given) as run, run.user_code(trust), made(run.config) as (problem, agent):
        with faults_as_sentences(BEFORE, run.config):
            training = run.resume(lambda tensors, meta: PGTraining.restored(agent, problem, tensors, meta), checkpoint, trust)
        if run.way_back and not (quiet or checkpoint):
            print(f"continues from the newest checkpoint{run.way_back}", file=sys.stderr)
        _to_the_end(run, problem, agent, training, quiet)


def finished(folder: Path) -> bool:
    """Whether every seed of a run has used its environment steps, by the newest checkpoint."""
    run = Run.open(folder)
    tensors, _ = run.load()
    return bool((tensors["env_steps"] >= from_config(run.config)[1].env_steps).all())


@contextmanager
def made(config: dict[str, Any]) -> Iterator[tuple[Problem, Agent]]:
    """The problem, with its workers while they are needed, and the agent."""
    algo, settings, hyperparameters = from_config(config)
    use_deterministic(config.get("device", "cpu"), settings.deterministic)
    with faults_as_sentences(BEFORE, config):
        agent = make_agent(algo, hyperparameters)
        problem = make_problem(settings, config.get("device", "cpu"), getattr(agent, "hvp_batch_size", None))
    if tabular(problem):
        torch.set_num_threads(1)  # the arrays are small: a second thread costs more than it brings
    count = worker_count(settings, problem.env)
    if count == 0:
        yield problem, agent
        return
    try:
        ForkingPickler.dumps(problem.env)  # as it travels to another process of this run; nothing is written
    except Exception as error:
        raise UserError(f"--workers {count}: {settings.env} cannot be copied to another process ({error}); use 0") from error
    with Workers(problem.env, count) as workers:
        yield replace(problem, workers=workers), agent


def _to_the_end(run: Run, problem: Problem, agent: Agent, training: PGTraining, quiet: bool) -> None:
    settings = from_config(run.config)[1]
    with progress(settings.env_steps, "steps a seed", quiet) as tick:
        run_loop(run, problem, agent, settings, training, tick)
    if not quiet:
        print(plain(f"done: {run.folder}   curves: tensorboard --logdir {run.folder}"), file=sys.stderr)


def _settings(config: dict[str, Any], problem: Problem) -> str:
    hyperparameters = ", ".join(
        f"{name} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in config["hyperparameters"].items()
        if isinstance(value, int | float | str)
    )
    used = tuple(name for name, off in (("normalise_steps", 0), ("bounds", "none")) if config[name] != off)
    shared = ("discount", "batch_size", "hidden", "baseline", *used, "dtype", "device")
    rest = ", ".join(f"{name} {config[name]}" for name in shared)
    if config["normalise_steps"] >= config["env_steps"]:
        rest += "\n  nothing is trained: --normalise-steps takes all --env-steps; lower it"
    if found := biases(config):
        rest += f"\n  biased: {', '.join(found)}"
    return (
        f"  {config['seeds']} seeds × {config['env_steps']:,} environment steps, horizon {problem.horizon}, "
        f"{problem.policy.size} parameters\n  {hyperparameters}\n  {rest}"
    )


@stdout_to_stderr()
def evaluate(folder: Path, episodes: Count, checkpoint: Path | None = None, trust: bool = False) -> list[Record]:
    """For each seed: seed, episodes, mean and standard deviation of the return, without noise, discounted return, length."""
    check_flags(evaluate, {"episodes": episodes})
    run = Run.open(folder)
    tensors, meta = run.load(checkpoint)
    sentences = faults_as_sentences(f"iteration {meta['iteration']}", run.config)
    with run.user_code(trust), made(run.config) as (problem, agent), sentences:
        require({"episodes": sampled(problem.env, len(problem.seeds) * episodes)}, {"episodes": "lower --episodes"})
        theta = PGTraining.restored(agent, problem, tensors, meta).state.theta
        tau, quiet = (problem.evaluate(theta, episodes, -1, mean) for mean in (False, True))  # a stream of its own
    S = len(problem.seeds)
    plain, discounted = (tau.returns(c).reshape(S, -1).double() for c in (1.0, problem.discount))
    without_noise = quiet.returns().reshape(S, -1).double()
    lengths = tau.mask.sum(0).reshape(S, -1).double()
    return [
        {
            "seed": seed,
            "episodes": episodes,
            "return": plain[i].mean().item(),
            "return_std": plain[i].std().item() if episodes > 1 else 0.0,
            "return_mean_action": without_noise[i].mean().item(),
            "discounted_return": discounted[i].mean().item(),
            "length": lengths[i].mean().item(),
        }
        for i, seed in enumerate(problem.seeds)
    ]


def check_agent(algo: str, seeds: int, iterations: int, batch_size: int, step_size: float, seed: int) -> bool:
    """Print the biases and the verdicts; True when every claim holds."""
    entry: Any = find_agent(algo)
    hyperparameters = dict(entry.preset)
    if "step_size" in {f.name for f in dataclasses.fields(entry.make)} and "step_size" not in hyperparameters:
        hyperparameters["step_size"] = step_size
    agent = make_agent(algo, hyperparameters)
    try:
        claims = _check(algo, agent, iterations, check_problems(seeds, batch_size, seed))
    except LearnerFault as fault:
        raise UserError(f"{algo} {fault}", exit_code=5) from fault
    for claim in claims:
        print(f"{ {True: 'ok  ', False: 'FAIL', None: '--  '}[claim.holds] } {algo} {claim.sentence}")
    return all(claim.holds is not False for claim in claims)


def _check(algo: str, agent: Agent, iterations: int, problems: list[CheckProblem]) -> list[Claim]:
    replicas, batch_size = len(problems[0].problem.seeds), problems[0].problem.batch_size
    print(f"{algo}: bias of the direction, E[d_t - ∇J_H(θ_t)], as a fraction of the gradient")
    print("over all outcomes in tiny MDPs, from t = 0:")
    for exact in exact_bias(agent):
        more = f"   no more: {exact.stopped}" if exact.stopped else ""
        print(f"  {exact.name:8s} {'  '.join(f'{b:.1e}' for b in exact.biases)}{more}")
    print(f"by sampling, {replicas} replicas, batches of {batch_size}:")
    print(f"  {'env':8s} {'t':>4s} {'‖mean‖/‖∇J‖':>12s} {'visible from':>13s} {'max |z|':>8s} {'rms':>8s}")
    marks = sorted({0, *(round((iterations - 1) ** (k / 4)) for k in range(5))})
    found = {}
    for case in problems:
        found[case.name] = bias(agent, case, marks)
        for f in found[case.name]:
            flag = " *" if f.z >= LIMIT else ""
            print(f"  {case.name:8s} {f.t:4d} {f.fraction:12.2%} {f.visible:13.2%} {f.z:8.1f} {f.rms:8.3f}{flag}")
        print(f"  {case.name:8s} rms ~ t^{decay(found[case.name]):.2f}")
    return verdict(agent, found)


def doctor() -> None:
    """Print versions and device, then train for a moment and say how fast."""

    def short(out: Path) -> None:
        settings, hyperparameters, _ = defaults("n-harpg", "gridworld")
        settings = replace(settings, env_steps=5_000)
        start(as_config("n-harpg", settings, hyperparameters, "cpu"), out, ["pgrl", "doctor"], quiet=True)

    examine(short, "ten seeds of n-harpg on gridworld", 50_000, "environment steps")
