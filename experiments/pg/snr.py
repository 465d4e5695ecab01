"""`pgrl snr`: the environment steps at which noise = signal, measured at one θ before a run is paid for.

The budget is split in three, on episodes that share no random numbers:

    1. a fifth     episodes for fitting the baselines; the agent's step from θ on episodes of its own is u of Bu
    2. the rest    groups of episodes for g and Bu, the same ones for every baseline and discount; as many steps for each
                   horizon, and the first steps of the longer episodes serve the shorter horizons too
    3. up to a third  replicas of the agent begun anew at θ, for its direction; all the rest where nothing else is asked for
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from envs.core import Trajectories
from envs.ranges import Count, Natural, Range, Weight
from experiments.cli.errors import UserError
from experiments.cli.progress import progress
from experiments.cli.stdout import stdout_to_stderr
from experiments.pg.build import check_user_env
from experiments.pg.commands import made
from experiments.pg.config import biases, from_config, make_problem, observation_size
from experiments.pg.faults import begun
from experiments.pg.memory import COPIES
from experiments.pg.memory import sampled as memory
from experiments.pg.train import PGTraining
from experiments.run.faults import BEFORE, faults_as_sentences
from experiments.run.memory import require
from experiments.run.run import Run
from pgrl.agent import Agent
from pgrl.baselines import Baseline, baseline_for
from pgrl.problem import Problem
from pgrl.snr import Estimate, NoiseToSignal, Sums, direction, episodes, fit

BUDGET = 200_000  # environment steps
GROUPS = 20  # of episodes, for the jackknife
REPLICAS = 4  # the fewest
FIT, DIRECTION = 0.2, 0.3  # parts of the budget
Row = dict[str, int | float | str]  # of the table


class Case(NamedTuple):
    """What a row of the table is about."""

    estimator: str
    baseline: str
    horizon: int
    discount: float


@dataclass(frozen=True)
class SnrSettings:
    """What `pgrl snr` measures."""

    horizons: tuple[Count, ...] = ()
    """horizons to compare; none: that of the settings"""
    discounts: tuple[Weight, ...] = ()
    """discount factors to compare; none: that of the settings"""
    baselines: tuple[Literal["none", "leave-one-out", "time", "value", "value-net"], ...] = (
        *("none", "leave-one-out", "time", "value", "value-net"),
    )
    """baselines to compare"""
    estimators: tuple[Literal["g", "Bu", "Bu-causal", "direction"], ...] = ("g", "Bu", "Bu-causal", "direction")
    """what is measured: g, both forms of Bu along a step of the agent, and the agent's direction (with the baseline, horizon
    and discount of the settings)"""
    replicas: Annotated[int, Range(4, 100_000)] = 16
    """independent replicas of the agent for its direction; fewer where --env-steps are too few for them"""
    iterations: Annotated[int, Range(1, 1_000_000)] = 8
    """iterations after which their directions are compared: at least as many as the agent has memory for"""


@dataclass(frozen=True)
class Measured:
    """What `measure` returns.

    rows   one for each estimator, baseline, horizon and discount: a record of numbers and names
    notes  sentences: how it was measured, and what it means for the run's batches
    """

    rows: list[Row]
    notes: list[str]


def at_start(config: Mapping[str, Any], asked: SnrSettings, quiet: bool) -> Measured:
    """Measure at the initial parameters of the first seed of a run that has not begun."""
    with faults_as_sentences(BEFORE, config):
        check_user_env(config["env"], config["horizon"], config["device"])
    return _measured(dict(config), asked, quiet, None)


def at_checkpoint(
    folder: Path, asked: SnrSettings, env_steps: int, row: Natural, checkpoint: Path | None, trust: bool, quiet: bool
) -> Measured:
    """Measure at the parameters of one seed of a run. row: which one, from 0."""
    run = Run.open(folder)
    tensors, meta = run.load(checkpoint)
    seeds = from_config(run.config)[1].seeds
    if row >= seeds:
        raise UserError(f"--row is {row}, expected at most {seeds - 1}: the run has {seeds} seeds, counted from 0")
    with run.user_code(trust):
        with made({**run.config, "workers": 0}) as (problem, agent), faults_as_sentences("checkpoint", run.config):
            theta = PGTraining.restored(agent, problem, tensors, meta).state.theta[row : row + 1]
        config = {**run.config, "env_steps": env_steps, "seed": run.config["seed"] + row}
        return _measured(config, asked, quiet, theta)


@stdout_to_stderr()
def _measured(config: dict[str, Any], asked: SnrSettings, quiet: bool, theta: Tensor | None) -> Measured:
    config["seeds"] = 1
    with faults_as_sentences("measurement", config):
        settings = from_config(config)[1]
        own = make_problem(settings, config["device"]).horizon
        if settings.gae_lambda < 1:
            asked = replace(asked, baselines=tuple(name for name in asked.baselines if name not in ("none", "leave-one-out")))
        config["horizon"] = max((own, *asked.horizons))
        with made(config) as (problem, agent), progress(settings.env_steps, "environment steps", quiet) as tick:
            work = Measurement(problem, agent, asked, own, settings.baseline, settings.env_steps, tick)
            if theta is None:
                theta, steps = replace(problem, horizon=own).start()
                work.used = int(steps.sum())
            found = work.run(theta)
    if some := biases(config, steps=False):
        found.notes.append(f"biased ({', '.join(some)}): the signal is the mean of the estimate, which is not the gradient")
    return found


@dataclass
class Measurement:
    """The work of `pgrl snr` at one θ.

    problem     with one seed, and the longest of all horizons
    agent       whose step and direction are measured
    asked       what to compare
    horizon     of the run
    baseline    of the run, by name
    budget      environment steps
    tick        called with the environment steps used so far
    """

    problem: Problem
    agent: Agent
    asked: SnrSettings
    horizon: int
    baseline: str
    budget: int
    tick: Callable[[int], None] = lambda used: None
    used: int = 0
    samples: int = 0
    batch: int = 0  # episodes of a batch with the leave-one-out baseline

    def run(self, theta: Tensor) -> Measured:
        """All rows, at theta [1, D]."""
        asked = self.asked
        longest = max(asked.horizons or (self.horizon,))
        own = replace(self.problem, horizon=self.horizon, baseline=self._baseline(self.baseline, self.horizon))
        fitting = [self._episodes(longest, theta, 4)]
        while (rest := self.budget * FIT - sum(tau.steps for tau in fitting)) > 0:
            fitting.append(self._episodes(longest, theta, math.ceil(rest / mean_length(fitting))))
        fitted = fit(own.baseline, fitting, self.horizon)
        u, costs = torch.zeros_like(theta), [1.0]
        if set(asked.estimators) - {"g"}:
            begun(self.agent, theta)
            costs.clear()
            _, u = direction(self.agent, own, theta, fitted, 1, 2, lambda steps: costs.append(float(steps.sum())))
            self._count(sum(costs))
        need = costs[-1] * asked.iterations  # environment steps of a replica
        share = DIRECTION if set(asked.estimators) - {"direction"} else 1 - FIT
        replicas = min(asked.replicas, int(self.budget * share / need)) if "direction" in asked.estimators else 0
        replicas = replicas if replicas >= REPLICAS else 0
        found = self._estimates(theta, self._cases(fitting, u), self.budget - self.used - replicas * need, fitting)
        if replicas:
            episodes_each = memory(self.problem.env, self.problem.batch_size, self.horizon)
            each = 2 * episodes_each + COPIES * theta.numel() * theta.element_size()  # an agent samples at two points at most
            require({"replicas": replicas * each}, {"replicas": "lower --replicas"}, self.problem.device)
            count = lambda steps: self._count(float(steps.sum()))  # noqa: E731
            sums, _ = direction(self.agent, own, theta, fitted, replicas, asked.iterations, count)
            found[Case("direction", self.baseline, self.horizon, self.problem.discount)] = sums.noise_to_signal()
        rows = [record(case, x, self._batch_steps(case, x)) for case, x in found.items()]
        return Measured(rows, self._notes(found, replicas, need / share))

    def _batch_steps(self, case: Case, x: NoiseToSignal) -> float:
        """Environment steps of a batch of the run; of an iteration, for the direction."""
        episodes = self.batch if case.baseline == "leave-one-out" else 1
        return x.steps if case.estimator == "direction" else x.steps / episodes * self.problem.batch_size

    def _estimates(
        self, theta: Tensor, cases: dict[Case, Estimate], budget: float, fitting: list[Trajectories]
    ) -> dict[Case, NoiseToSignal]:
        """g and Bu, from groups of episodes that all cases share."""
        if not cases:
            return {}
        horizons = sorted({case.horizon for case in cases}, reverse=True)
        lengths = [mean_length(fitting, h) for h in horizons]
        # as many steps for each horizon, the longer ones' prefixes serve the shorter ones too
        counts = [int(budget / GROUPS / len(horizons) / length) for length in lengths]
        if counts[0] < 2:
            least = math.ceil(self.budget + (2 * GROUPS * lengths[0] * len(horizons) - budget) / (1 - FIT - DIRECTION))
            raise UserError(
                f"--env-steps {self.budget:,} are too few for {2 * GROUPS} episodes of {lengths[0]:,.0f} steps: "
                f"expected about {least:,} or more"
            )
        self.batch = min(counts[0], self.problem.batch_size) if self.problem.batch_size > 1 else counts[0]
        if "leave-one-out" in self.asked.baselines:
            counts = [n - n % self.batch for n in counts]
        sizes = {
            "episodes": sum(memory(self.problem.env, n, math.ceil(x)) for n, x in zip(counts, lengths, strict=True)),
            "estimates": len(cases) * GROUPS * theta.numel() * 8,
        }
        require(sizes, {"episodes": "lower --env-steps", "estimates": "compare fewer baselines, horizons or discounts"})
        sums = {case: Sums() for case in cases}
        for _ in range(GROUPS):
            group = [self._episodes(h, theta, n) for h, n in zip(horizons, counts, strict=True)]
            for case, estimate in cases.items():
                long_enough = group[: horizons.index(case.horizon) + 1]
                estimate.add(sums[case], theta, long_enough, self.batch)
        return {case: s.noise_to_signal() for case, s in sums.items()}

    def _cases(self, fitting: list[Trajectories], u: Tensor) -> dict[Case, Estimate]:
        asked = self.asked
        cases = {}
        for case in itertools.starmap(
            Case,
            itertools.product(
                [name for name in ("g", "Bu", "Bu-causal") if name in asked.estimators],
                asked.baselines,
                asked.horizons or (self.horizon,),
                asked.discounts or (self.problem.discount,),
            ),
        ):
            baseline = self._baseline(case.baseline, case.horizon, case.discount)
            fitted = fit(baseline, fitting, case.horizon)
            estimator = replace(self.problem.estimator, discount=case.discount, causal=case.estimator == "Bu-causal")
            cases[case] = Estimate(estimator, baseline, fitted, case.horizon, None if case.estimator == "g" else u)
        return cases

    def _baseline(self, name: str, horizon: int, discount: float | None = None) -> Baseline:
        size, states = observation_size(self.problem.env)
        discount = self.problem.discount if discount is None else discount
        return baseline_for(
            name,
            discount=discount,
            horizon=horizon,
            observation_size=size,
            n_states=states,
            undiscounted_states=self.problem.undiscounted_states,
            dtype=self.problem.policy.dtype,
        )

    def _episodes(self, horizon: int, theta: Tensor, n: int) -> Trajectories:
        tau = episodes(replace(self.problem, horizon=horizon), theta, n, self.samples)
        self.samples += 1
        self._count(tau.steps)
        return tau

    def _count(self, steps: float) -> None:
        self.used += int(steps)
        self.tick(self.used)

    def _notes(self, found: dict[Case, NoiseToSignal], replicas: int, need: float) -> list[str]:
        notes = [f"measured with {self.used:,} environment steps"]
        if self.batch and "leave-one-out" in self.asked.baselines:
            notes.append(f"leave-one-out: the mean over a batch of {self.batch} episodes is one estimate")
        if "direction" in self.asked.estimators and not replicas:
            notes.append(
                f"direction: not measured; {REPLICAS} replicas of {self.asked.iterations} iterations need "
                f"--env-steps {math.ceil(REPLICAS * need):,}"
            )
        own, one = (self.baseline, self.horizon, self.problem.discount), self.problem.batch_size == 1
        told = f"(baseline {own[0]}, horizon {own[1]}, discount {own[2]:g})"
        g, Bu, causal, d = (found.get(Case(name, *own)) for name in ("g", "Bu", "Bu-causal", "direction"))
        if g:
            steps = self._batch_steps(Case("g", *own), g)
            batch = f"a batch of {self.problem.batch_size} {'episode' if one else 'episodes'} has {number(steps)} steps"
            notes.append(f"g {told}: {needs(g)}; {batch}: {compared(g, steps)}")
        if g and g.noise2 > 0 and (both := [(name, x) for name, x in (("Bu", Bu), ("Bu-causal", causal)) if x]):
            each = ", ".join(f"{name} {math.sqrt(x.noise2 / g.noise2):.2g}" for name, x in both)
            notes.append(f"noise along one step of the agent, times that of g: {each}")
        if d:
            told = f"direction after {self.asked.iterations} iterations {told}"
            notes.append(f"{told}: {needs(d)}; an iteration has {number(d.steps)} steps: {compared(d, d.steps)}")
        return notes


def mean_length(batches: list[Trajectories], horizon: int | None = None) -> float:
    """Mean length of the episodes, cut at `horizon`."""
    return sum(tau.mask[:horizon].sum().item() for tau in batches) / sum(tau.mask.shape[1] for tau in batches)


def record(case: Case, x: NoiseToSignal, batch: float) -> Row:
    """A row of the table.

    Args:
        case: what it is about.
        x: its estimates.
        batch: environment steps of a batch of the run.

    Returns:
        The case; steps `needed`, with the interval from `low` to `high`; steps of a `batch`; `signal` and `noise` of one
        estimate, which takes `steps`; the number of `estimates`.
    """
    return {
        **case._asdict(),
        "needed": x.needed,
        "low": x.low,
        "high": x.high,
        "batch": batch,
        "signal": math.sqrt(max(0.0, x.signal2)),
        "noise": math.sqrt(max(0.0, x.noise2)),
        "steps": x.steps,
        "estimates": x.estimates,
    }


def needs(x: NoiseToSignal) -> str:
    """How many environment steps are needed, in words."""
    if not x.bounded:
        return f"noise = signal at more than {number(x.low)} steps"
    return f"noise = signal at {number(x.needed)} steps ({number(x.low)} to {number(x.high)})"


def compared(x: NoiseToSignal, steps: float) -> str:
    """The noise of an estimate from so many environment steps, in words."""
    times = math.sqrt((x.needed if x.bounded else x.low) / steps)
    return f"its noise is {'' if x.bounded else 'more than '}{times:.2g} times the signal"


def number(x: float) -> str:
    """Three digits, with commas."""
    return f"{float(f'{x:.3g}'):,.0f}" if x >= 100 else f"{x:.3g}"


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    lines = [("estimator", "baseline", "horizon", "discount", "steps needed", "95 % interval", "batch", "noise/signal")]
    for row in rows:
        needed, low, high, batch = (float(row[name]) for name in ("needed", "low", "high", "batch"))
        bounded = high < math.inf
        times = math.sqrt((needed if bounded else low) / batch)
        lines.append(
            (
                str(row["estimator"]),
                str(row["baseline"]),
                str(row["horizon"]),
                f"{row['discount']:g}",
                number(needed) if bounded else f"> {number(low)}",
                f"{number(low)} - {number(high)}" if bounded else "",
                number(batch),
                f"{'' if bounded else '> '}{times:.2g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(w) if i < 2 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )
