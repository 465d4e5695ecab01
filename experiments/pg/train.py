"""The training loop of `pgrl`.

until every seed has used its environment steps:
    iteration = what the problem shows in this iteration
    state, metrics = agent.step(state, iteration)     for the seeds that still have steps left
    count every step sampled; fit the baseline for the next iteration
    now and then: a row of metrics, an evaluation, a checkpoint
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from envs.core import Diverged, EnvironmentFault
from envs.mdp.exact import Exact, gradient
from envs.pytree import numbers_of, rebuilt, tensors_of
from experiments.cli.errors import UserError
from experiments.cli.signals import deferred_signals
from experiments.pg.build import exact_values
from experiments.pg.config import PGSettings
from experiments.run.run import Run
from experiments.run.schedule import EvenMarks
from pgrl.agent import Agent, Metrics, norm
from pgrl.baselines import Fitted
from pgrl.problem import Iteration, Problem

DESCRIPTIONS = {
    "env_steps": "Environment steps of each seed so far: all episodes sampled for training, at whatever parameters.",
    "eval/gap": "J* - J(θ): exact distance of the expected discounted return from the best possible one.",
    "eval/J": "J(θ): exact expected discounted return of the policy, for all time.",
    "eval/gradient_norm": "‖∇J(θ)‖: exact norm of the gradient of the discounted return.",
    "eval/return": "Mean undiscounted return of the current policy on evaluation episodes, which are not used for training.",
    "eval/discounted_return": "Mean discounted return of the current policy on evaluation episodes.",
    "eval/env_steps": "Environment steps of each seed used for evaluation so far; not counted in env_steps.",
    "train/estimator_error": "‖d - ∇J_H(θ)‖: distance of the agent's direction from the exact gradient at the iterate.",
    "train/direction_norm": "‖d‖: norm of the agent's direction.",
    "train/update_norm": "‖θ_{t+1} - θ_t‖: length of the last step in parameter space.",
    "rollout/return": "Mean undiscounted return of the training episodes of the last iteration (first point sampled).",
    "rollout/length": "Mean length of these episodes.",
    "opt/step_size": "γ_t, the step size.",
    "opt/eta": "η_t, the weight of the new gradient.",
    "opt/look_ahead": "‖θ~_t - θ_t‖: distance between the iterate and the point at which N-PG-IGT samples.",
    "opt/correction_norm": "‖v_t‖: norm of the Hessian correction.",
    "time/env_steps_per_second": "Environment steps of all seeds together per second of training, evaluation included.",
}


@dataclass
class PGTraining:
    """Everything that changes during a run, and so everything that a checkpoint holds.

    state      the agent's          fitted      the baseline's          iteration   the next one
    env_steps  [S] used so far      eval_steps  [S] used for evaluation
    """

    state: Any
    fitted: Fitted
    env_steps: Tensor
    eval_steps: Tensor
    iteration: int = 0

    def tensors(self) -> dict[str, Tensor]:
        fitted = {f"baseline/{name}": x for name, x in self.fitted.items()}
        return {**tensors_of(self.state, "state/"), **fitted, "env_steps": self.env_steps, "eval_steps": self.eval_steps}

    def numbers(self) -> dict[str, Any]:
        return numbers_of(self.state)

    @staticmethod
    def begin(agent: Agent, problem: Problem) -> PGTraining:
        S = len(problem.seeds)
        steps = torch.zeros(S, dtype=torch.int64)
        return PGTraining(agent.init(problem.theta()), problem.baseline.init(S), steps, steps.clone())

    @staticmethod
    def restored(agent: Agent, problem: Problem, tensors: dict[str, Tensor], meta: dict[str, Any]) -> PGTraining:
        """Raises UserError when the checkpoint belongs to another agent or problem."""
        fresh = PGTraining.begin(agent, problem)
        wanted = {name: (x.shape, x.dtype) for name, x in fresh.tensors().items()}
        if wanted != {name: (x.shape, x.dtype) for name, x in tensors.items()} or set(meta["state"]) != set(fresh.numbers()):
            raise UserError("the checkpoint does not fit this agent and problem: was a file changed since?", exit_code=3)
        numbers = {f"state/{name}": x for name, x in meta["state"].items()}
        state = rebuilt(fresh.state, tensors, numbers, "state/")
        fitted = {name: tensors[f"baseline/{name}"].to(problem.device) for name in fresh.fitted}
        return PGTraining(state, fitted, tensors["env_steps"], tensors["eval_steps"], meta["iteration"])


def train(
    run: Run, problem: Problem, agent: Agent, settings: PGSettings, training: PGTraining, tick: Callable[[int], None]
) -> PGTraining:
    """Trains to the end. `tick(environment steps used, mean over seeds)` is called after every iteration.

    Raises UserError: exit code 5 when an environment or an update is not finite, 130 or 143 when asked to stop; in each case
    after a checkpoint of the last good iteration.
    """
    exact = exact_values(problem.env, problem.policy, problem.discount)
    rows, evaluations, checkpoints = (
        EvenMarks(settings.env_steps, count) for count in (settings.log_rows, settings.evaluations, settings.checkpoints)
    )

    def save() -> None:
        run.checkpoint(training.iteration, training.tensors(), {"state": training.numbers()})

    def go(asked: list[int]) -> None:
        nonlocal training
        if run.empty:
            save()  # before the first row: a run killed from here on is continued
            log(run, problem, exact, settings, training, {}, None, None, evaluate=True)
        while bool((training.env_steps < settings.env_steps).any()):
            used, theta = float(training.env_steps.double().mean()), training.state.theta
            training, metrics, iteration = step(problem, agent, training, settings.env_steps)
            now = float(training.env_steps.double().mean())
            last = not bool((training.env_steps < settings.env_steps).any())
            if last or rows.passed(used, now):
                evaluate = last or evaluations.passed(used, now)
                log(run, problem, exact, settings, training, metrics, iteration, theta, evaluate)
            if last or asked or checkpoints.passed(used, now):
                save()
            tick(int(now))
            if asked and not last:
                raise UserError(f"stopped; continue with: pgrl resume {run.folder}", 128 + asked[0])

    with deferred_signals() as asked:
        try:
            go(asked)
        except (EnvironmentFault, Diverged) as fault:
            save()
            where = f"iteration {training.iteration}; the state before it is saved in {run.checkpoints}"
            raise UserError(f"{fault}; {where}", exit_code=5) from fault
    return training


def step(problem: Problem, agent: Agent, training: PGTraining, budget: int) -> tuple[PGTraining, Metrics, Iteration]:
    """One iteration of the seeds that have not used up their budget; the others stay as they are."""
    S = len(problem.seeds)
    rows = (training.env_steps < budget).nonzero()[:, 0]
    everyone = len(rows) == S
    part = problem if everyone else replace(problem, seeds=tuple(problem.seeds[i] for i in rows.tolist()))

    def pick(x: Any) -> Any:
        return x[rows.to(x.device)] if isinstance(x, Tensor) and not everyone else x

    def put(old: Any, new: Any) -> Any:
        return old.index_copy(0, rows.to(old.device), new) if isinstance(old, Tensor) and not everyone else new

    state, fitted = training.state, training.fitted
    iteration = part.iteration(training.iteration, {name: pick(x) for name, x in fitted.items()})
    new, metrics = agent.step(type(state)(*map(pick, state)), iteration)
    _refuse_non_finite(new, part)
    baseline = iteration.fit_baseline()
    env_steps = training.env_steps.index_add(0, rows, iteration.env_steps().cpu())
    after = PGTraining(
        type(state)(*map(put, state, new)),
        {name: put(x, baseline[name]) for name, x in fitted.items()},
        env_steps,
        training.eval_steps,
        training.iteration + 1,
    )
    returns, lengths = iteration.episode_returns()
    norms = {"train/direction_norm": norm(new.d)[:, 0], "train/update_norm": norm(new.theta - pick(state.theta))[:, 0]}
    metrics = {**metrics, **norms, "rollout/return": returns, "rollout/length": lengths}
    for name, x in metrics.items():
        if isinstance(x, Tensor) and x.shape not in ((), (len(rows),)):
            raise UserError(f"metric {name!r} of the agent has shape {tuple(x.shape)}, expected a number or one for each seed")
    spread = {name: _spread(x, rows, S) if isinstance(x, Tensor) and x.dim() == 1 else x for name, x in metrics.items()}
    return after, spread, iteration


def _spread(x: Tensor, rows: Tensor, seeds: int) -> Tensor:
    """Values of the seeds in `rows` in a row of all seeds, NaN elsewhere."""
    full = torch.full((seeds,), torch.nan, dtype=torch.float64)
    full[rows] = x.double().cpu()
    return full


def _refuse_non_finite(state: Any, problem: Problem) -> None:
    for name, x in state._asdict().items():
        if isinstance(x, Tensor) and not bool(torch.isfinite(x).all()):
            row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0]) if x.dim() > 1 else 0
            raise Diverged(f"{name} of seed {problem.seeds[row]} is not finite: try a smaller --step-size")


def log(
    run: Run,
    problem: Problem,
    exact: Exact | None,
    settings: PGSettings,
    training: PGTraining,
    metrics: Metrics,
    iteration: Iteration | None,
    before: Tensor | None,
    evaluate: bool,
) -> None:
    """One row of metrics: the agent's own, exact ones where they exist, evaluation episodes where they do not.

    before  θ of the last iteration, where its direction was the agent's estimate; None before the first
    """
    theta, steps = training.state.theta, training.env_steps.double()
    row: dict[str, Any] = {"iteration": training.iteration, "env_steps": steps}
    row |= metrics
    if exact is not None:
        row["eval/J"], row["eval/gap"] = exact.J(theta), exact.gap(theta)
        row["eval/gradient_norm"] = norm(gradient(exact, theta))[:, 0]
        if before is not None:
            error = training.state.d.double() - gradient(exact, before, problem.horizon)
            taken = ~torch.as_tensor(metrics["train/direction_norm"]).isnan()
            row["train/estimator_error"] = torch.where(taken, norm(error)[:, 0].cpu(), torch.nan)
    elif evaluate:
        tau = problem.evaluate(theta, settings.eval_episodes, training.iteration)
        S = len(problem.seeds)
        row["eval/return"] = tau.returns().reshape(S, -1).double().mean(1)
        row["eval/discounted_return"] = tau.returns(problem.discount).reshape(S, -1).double().mean(1)
        training.eval_steps = training.eval_steps + tau.mask.sum(0).reshape(S, -1).sum(1).cpu()
        row["eval/env_steps"] = training.eval_steps.double()
    if iteration is not None and run.wall > 0:
        row["time/env_steps_per_second"] = float(steps.sum()) / run.wall
    run.log(int(steps.mean()), {tag: x.tolist() if isinstance(x, Tensor) else x for tag, x in row.items()})
