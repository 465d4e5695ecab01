"""The training loop of `pgrl`.

until every seed has used its environment steps:
    iteration = what the problem shows in this iteration
    state, metrics = agent.step(state, iteration)     for the seeds that still have steps left
    count every step sampled; fit the baseline for the next iteration; a seed whose update is not finite stays as it was
    now and then: a row of metrics, an evaluation, a checkpoint
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.mdp.exact import Exact, gradient
from envs.pytree import numbers_of, rebuilt, tensors_of
from experiments.cli.errors import UserError
from experiments.cli.signals import Asked, Stopped, deferred_signals
from experiments.pg.build import exact_values
from experiments.pg.config import PGSettings, biases
from experiments.pg.faults import batch_of, begun, finite_rows, kept, stepped
from experiments.run.faults import FAULT, as_sentence, keep_fault
from experiments.run.log import is_counts
from experiments.run.run import Run
from experiments.run.schedule import EvenMarks
from pgrl.agent import Agent, Metrics, norm
from pgrl.baselines import Fitted
from pgrl.problem import Problem

DESCRIPTIONS = {
    "env_steps": "Environment steps of each seed so far: all episodes sampled for training, at whatever parameters.",
    "eval/gap": "J* - J(θ): exact distance of the expected discounted return from the best possible one.",
    "eval/J": "J(θ): exact expected discounted return of the policy, for all time.",
    "eval/gradient_norm": "‖∇J(θ)‖: exact norm of the gradient of the discounted return.",
    "eval/return": "Mean undiscounted return of the current policy on evaluation episodes, which are not used for training.",
    "eval/return_mean_action": "The same without exploration noise: the mean action, or the most probable discrete action.",
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
    "opt/correction_norm": "‖v_t‖: norm of the Hessian correction, before any clipping.",
    "opt/correction_clipped": "1 where the Hessian correction was shortened, 0 where not (--clip-correction; biased).",
    "train/biased": "Number of biased settings (no γ^t, GAE, clipping, Adam's steps); there only if there are any.",
    "train/skipped": "Updates skipped so far because they were not finite; their environment steps count.",
    "time/worker_restarts": "Worker processes that died and were replaced so far; their episodes were sampled again.",
    "time/env_steps_per_second": "Environment steps of all seeds together per second of training, evaluation included.",
}


@dataclass
class PGTraining:
    """Everything that changes during a run, and so everything that a checkpoint holds.

    state      the agent's              fitted      the baseline's          iteration   the next one
    env_steps  [S] used so far          eval_steps  [S] used for evaluation
    skipped    [S] updates left out because they were not finite, in total; failing: since the last one made
    restarts   of workers, before this process
    """

    state: Any
    fitted: Fitted
    env_steps: Tensor
    eval_steps: Tensor
    iteration: int = 0
    skipped: tuple[int, ...] = ()
    failing: tuple[int, ...] = ()
    restarts: int = 0

    def tensors(self) -> dict[str, Tensor]:
        fitted = {f"baseline/{name}": x for name, x in self.fitted.items()}
        return {**tensors_of(self.state, "state/"), **fitted, "env_steps": self.env_steps, "eval_steps": self.eval_steps}

    def numbers(self) -> dict[str, Any]:
        return numbers_of(self.state)

    def counts(self, problem: Problem) -> dict[str, Any]:
        """What a checkpoint counts beside the agent's numbers."""
        return {"skipped": self.skipped, "failing": self.failing, "restarts": self.all_restarts(problem)}

    def all_restarts(self, problem: Problem) -> int:
        """Workers restarted since the run began."""
        return self.restarts + (problem.workers.restarts if problem.workers else 0)

    @staticmethod
    def begin(agent: Agent, problem: Problem) -> PGTraining:
        """Before the first iteration; the steps that observations are normalised by are sampled here."""
        return PGTraining._of(agent, problem, *problem.start())

    @staticmethod
    def _of(agent: Agent, problem: Problem, theta: Tensor, steps: Tensor) -> PGTraining:
        none = (0,) * len(problem.seeds)
        fitted = problem.baseline.init(len(problem.seeds))
        return PGTraining(begun(agent, theta), fitted, steps, torch.zeros_like(steps), skipped=none, failing=none)

    @staticmethod
    def restored(agent: Agent, problem: Problem, tensors: dict[str, Tensor], meta: dict[str, Any]) -> PGTraining:
        """Raises UserError when the checkpoint belongs to another agent or problem."""
        fresh = PGTraining._of(agent, problem, problem.theta(), torch.zeros(len(problem.seeds), dtype=torch.int64))
        wanted = {name: (x.shape, x.dtype) for name, x in fresh.tensors().items()}
        held, own = meta.get("state"), fresh.numbers()
        counts = {name: meta.get(name, list(getattr(fresh, name))) for name in ("skipped", "failing")}
        restarts = meta.get("restarts", 0)
        fits = isinstance(held, dict) and set(held) == set(own) and all(isinstance(x, int | float) for x in held.values())
        fits = fits and all(is_counts(x, len(problem.seeds)) for x in counts.values()) and is_counts([restarts], 1)
        if not fits or wanted != {name: (x.shape, x.dtype) for name, x in tensors.items()}:
            raise UserError("the checkpoint does not fit this agent and problem: was a file changed since?", exit_code=3)
        numbers = {f"state/{name}": x for name, x in meta["state"].items()}
        state = rebuilt(fresh.state, tensors, numbers, "state/")
        fitted = {name: tensors[f"baseline/{name}"].to(problem.device) for name in fresh.fitted}
        return PGTraining(
            state,
            fitted,
            tensors["env_steps"],
            tensors["eval_steps"],
            meta["iteration"],
            tuple(counts["skipped"]),
            tuple(counts["failing"]),
            restarts,
        )


def train(
    run: Run, problem: Problem, agent: Agent, settings: PGSettings, training: PGTraining, tick: Callable[[int], None]
) -> PGTraining:
    """Trains to the end. `tick(environment steps used, mean over seeds)` is called after every iteration.

    Raises UserError: exit code 5 when an environment or the agent fails, or too many updates in a row are not finite; 129, 130
    or 143 when asked to stop; in each case after a checkpoint of the last good iteration.
    """
    exact = exact_values(problem.env, problem.policy, problem.discount)
    rows, evaluations, checkpoints = (
        EvenMarks(settings.env_steps, count) for count in (settings.log_rows, settings.evaluations, settings.checkpoints)
    )

    def save() -> str:
        meta = {"state": training.numbers(), **training.counts(problem)}
        run.checkpoint(training.iteration, training.tensors(), meta)
        return f"the state before it is saved; continue with: pgrl resume {run.folder}"

    biased = {"train/biased": float(len(found))} if (found := biases(run.config)) else {}

    def note(row: dict[str, Any]) -> None:
        row |= biased
        run.log(
            int(training.env_steps.double().mean()), {tag: x.tolist() if isinstance(x, Tensor) else x for tag, x in row.items()}
        )

    def go(asked: Asked) -> None:
        nonlocal training
        if run.empty:
            save()  # before the first row: a run killed from here on is continued
            first = replace(training)
            with asked.interruptible():
                row = measured(problem, exact, settings, first, {}, None, evaluate=True)
            training = first
            note(row)
            run.better(0, row)  # or a metric that is not there is refused
        while bool((training.env_steps < settings.env_steps).any()):
            before, row, evaluate = training, dict[str, Any](), False
            used = float(before.env_steps.double().mean())
            with asked.interruptible():  # until its row is written, an iteration counts as not begun
                made = step(problem, agent, before, settings.env_steps)
                now = float(made.training.env_steps.double().mean())
                last = not bool((made.training.env_steps < settings.env_steps).any())
                if last or rows.passed(used, now):
                    evaluate, theta = last or evaluations.passed(used, now), before.state.theta
                    row = measured(problem, exact, settings, made.training, made.metrics, theta, evaluate)
            training = made.training
            if row:
                if run.wall > 0:
                    row["time/env_steps_per_second"] = float(training.env_steps.sum()) / run.wall
                note(row)
            if made.fault:
                keep_fault(run.folder, before.iteration, made.fault)
            counts = zip(problem.seeds, before.failing, training.failing, strict=True)  # a seed that is done keeps its count
            stop = [seed for seed, was, failing in counts if failing > was and failing >= settings.max_faults]
            if (evaluate and run.better(int(now), row)) or last or asked or stop or checkpoints.passed(used, now):
                save()
            tick(int(now))
            if stop:
                raise UserError(
                    f"{settings.max_faults} updates of seed {stop[0]} in a row were skipped, because they were not finite; "
                    f"iteration {training.iteration}; batches in {run.folder / 'faults'}: try a smaller --step-size"
                    f"{run.way_back}",
                    exit_code=FAULT,
                )
            if asked and not last:
                raise UserError(f"stopped; continue with: pgrl resume {run.folder}", asked.code)

    with deferred_signals() as asked:
        try:
            go(asked)
        except Stopped:
            raise UserError(f"stopped within iteration {training.iteration}; {save()}", asked.code) from None
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:
            where = f"iteration {training.iteration}; {save()}"
            raise as_sentence(error, where, run.config) from error
    return training


class Stepped(NamedTuple):
    """One iteration: what a checkpoint holds after it, its metrics, and the batch of seeds whose update was skipped."""

    training: PGTraining
    metrics: Metrics
    fault: dict[str, Tensor]


def step(problem: Problem, agent: Agent, training: PGTraining, budget: int) -> Stepped:
    """One iteration of the seeds that have not used up their budget; the others stay as they are.

    A seed whose update is not finite stays as it was too, but for its count of environment steps.
    """
    S = len(problem.seeds)
    rows = (training.env_steps < budget).nonzero()[:, 0]
    everyone = len(rows) == S
    part = problem if everyone else replace(problem, seeds=tuple(problem.seeds[i] for i in rows.tolist()))

    def pick(x: Any) -> Any:
        return x[rows.to(x.device)] if isinstance(x, Tensor) and not everyone else x

    def put(old: Any, new: Any) -> Any:
        return old.index_copy(0, rows.to(old.device), new) if isinstance(old, Tensor) and not everyone else new

    fitted = {name: pick(x) for name, x in training.fitted.items()}
    state = type(training.state)(*map(pick, training.state))
    iteration = part.iteration(training.iteration, fitted)
    new, metrics = stepped(agent, state, iteration, len(rows))
    baseline = iteration.fit_baseline()
    norms = {"train/direction_norm": norm(new.d)[:, 0], "train/update_norm": norm(new.theta - state.theta)[:, 0]}
    fine, fault = finite_rows([*new, *baseline.values()], len(rows)), dict[str, Tensor]()
    if not bool(fine.all()):
        fault = batch_of(iteration, state.theta, new, fine)
        new = type(new)(*(kept(fine, old, x) for old, x in zip(state, new, strict=True)))
        baseline = {name: kept(fine, fitted[name], x) for name, x in baseline.items()}
    skipped, failing = list(training.skipped), list(training.failing)
    for row, good in zip(rows.tolist(), fine.tolist(), strict=True):
        skipped[row] += not good
        failing[row] = 0 if good else failing[row] + 1
    after = replace(
        training,
        state=type(new)(*map(put, training.state, new)),
        fitted={name: put(x, baseline[name]) for name, x in training.fitted.items()},
        env_steps=training.env_steps.index_add(0, rows, iteration.env_steps().cpu()),
        iteration=training.iteration + 1,
        skipped=tuple(skipped),
        failing=tuple(failing),
    )
    returns, lengths = iteration.episode_returns()
    metrics = {**metrics, **norms, "rollout/return": returns, "rollout/length": lengths}
    spread = {name: _spread(x, rows, S) if isinstance(x, Tensor) and x.dim() == 1 else x for name, x in metrics.items()}
    return Stepped(after, spread, fault)


def _spread(x: Tensor, rows: Tensor, seeds: int) -> Tensor:
    """Values of the seeds in `rows` in a row of all seeds, NaN elsewhere."""
    full = torch.full((seeds,), torch.nan, dtype=torch.float64)
    full[rows] = x.double().cpu()
    return full


def measured(
    problem: Problem,
    exact: Exact | None,
    settings: PGSettings,
    training: PGTraining,
    metrics: Metrics,
    before: Tensor | None,
    evaluate: bool,
) -> dict[str, Any]:
    """One row of metrics: the agent's own, exact ones where they exist, evaluation episodes where they do not.

    before  θ of the last iteration, where its direction was the agent's estimate; None before the first
    """
    theta, S = training.state.theta, len(problem.seeds)
    row: dict[str, Any] = {"iteration": training.iteration, "env_steps": training.env_steps.double()}
    row |= metrics
    if before is not None:
        row["train/skipped"] = torch.tensor(training.skipped)
    if problem.workers:
        row["time/worker_restarts"] = training.all_restarts(problem)
    if exact is not None:
        row["eval/J"], row["eval/gap"] = exact.J(theta), exact.gap(theta)
        row["eval/gradient_norm"] = norm(gradient(exact, theta))[:, 0]
        if before is not None:
            error = training.state.d.double() - gradient(exact, before, problem.horizon)
            taken = torch.as_tensor(metrics["train/direction_norm"]).isfinite()
            row["train/estimator_error"] = torch.where(taken, norm(error)[:, 0].cpu(), torch.nan)
    elif evaluate:
        tau, quiet = (problem.evaluate(theta, settings.eval_episodes, training.iteration, mean) for mean in (False, True))
        row["eval/return"] = tau.returns().reshape(S, -1).double().mean(1)
        row["eval/return_mean_action"] = quiet.returns().reshape(S, -1).double().mean(1)
        row["eval/discounted_return"] = tau.returns(problem.discount).reshape(S, -1).double().mean(1)
        for sampled in (tau, quiet):
            training.eval_steps = training.eval_steps + sampled.mask.sum(0).reshape(S, -1).sum(1).cpu()
        row["eval/env_steps"] = training.eval_steps.double()
    return row
