"""`pgrl train --dry-run`: what a run would be, from a few iterations of it."""

from __future__ import annotations

from typing import Any

from envs.mdp.exact import gradient
from experiments.pg.build import exact_values
from experiments.pg.commands import made
from experiments.pg.config import from_config, sizes
from experiments.pg.train import PGTraining, step
from experiments.run.dry_run import ITERATIONS, measured, report
from experiments.run.faults import faults_as_sentences


def dry_run(config: dict[str, Any]) -> str:
    """The resolved settings, sizes, memory and time of a run. UserError as for the run itself."""
    settings = from_config(config)[1]
    with made(config) as (problem, agent), faults_as_sentences("dry run", config):
        training, seconds, steps = PGTraining.begin(agent, problem), 0.0, 1.0

        def iteration() -> None:
            nonlocal training, steps
            before = training.env_steps
            training, _, _ = step(problem, agent, training, settings.env_steps)
            steps = max(1.0, float((training.env_steps - before).double().mean()))

        for _ in range(ITERATIONS):
            if bool((training.env_steps < settings.env_steps).any()):
                seconds = measured(iteration)
        exact, theta = exact_values(problem.env, problem.policy, problem.discount), training.state.theta
        if exact is None:
            row = measured(lambda: problem.evaluate(theta, settings.eval_episodes, -1))
        else:
            row = measured(lambda: (exact.J(theta), exact.gap(theta), gradient(exact, theta), gradient(exact, theta, 1)))
        correction = getattr(agent, "hvp_batch_size", None)
        parts = sizes(settings, problem.env, problem.policy, problem.baseline, problem.horizon, correction)
        rows = settings.evaluations if exact is None else settings.log_rows
        return report(config, problem.policy.size, parts, settings.env_steps / steps, seconds, row, rows)
