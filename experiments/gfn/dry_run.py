"""`gflownet train --dry-run`: what a run would be, from a few iterations of it."""

from __future__ import annotations

from typing import Any

from experiments.gfn import rewards
from experiments.gfn.commands import made
from experiments.gfn.config import step_of
from experiments.gfn.memory import arrays
from experiments.gfn.metrics import evaluation
from experiments.run.dry_run import ITERATIONS, measured, report
from experiments.run.faults import faults_as_sentences


def dry_run(config: dict[str, Any]) -> str:
    """The resolved settings, rewards of known drugs, sizes, memory and time of a run. UserError as for the run itself.

    A few batches are constructed, and their rewards evaluated; a user's reward is not asked for more than these.
    """
    settings, method, problem, exact, training, _ = made(config)
    state, seconds, built, t = training.state, 0.0, 1, 0

    def iteration() -> None:
        nonlocal state, built, t
        state, outcome = step(state, problem, t)
        built, t = outcome.log_reward.shape[1], t + 1

    drugs = ""
    with faults_as_sentences("dry run"), rewards.closing(problem):
        if settings.references:
            drugs = rewards.references(problem, quiet=False)
        step = step_of(settings, method, problem, state, 0)
        for _ in range(ITERATIONS):
            seconds = measured(iteration)
        row = 0.0
        if rewards.budget(problem, settings.evaluation_calls) is None:
            row = measured(lambda: evaluation(method, state, problem, exact, training.window, ITERATIONS))
    own: Any = method
    parameters = own.model(problem).size if hasattr(own, "model") else 0
    parts = arrays(method, problem, metrics=settings.metrics, window=settings.window, top_k=settings.top_k)
    iterations = settings.states / built
    if settings.calls is not None:
        iterations = min(iterations, settings.calls / built / settings.seeds)
    told = report(config, parameters, parts, iterations, seconds, row, settings.evaluations)
    return f"{told}\n{drugs}" if drugs else told
