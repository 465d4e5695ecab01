"""The training loop of `gflownet`.

until every seed has visited its states, or the budget of reward calls is spent:
    state, outcome = method.step(state, problem, iteration)
    note the objects built; keep the batch of an update that was skipped, stop after too many of them
    now and then: a row of metrics, an evaluation, a checkpoint
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from envs.core import to_tensor
from envs.dag.enumeration import Enumeration
from envs.dag.protocols import WithModes, offers
from envs.pytree import numbers_of, rebuilt, tensors_of
from experiments.cli.errors import UserError
from experiments.cli.signals import Stopped, deferred_signals
from experiments.gfn import rewards
from experiments.gfn.build import refuse_bad_reward
from experiments.gfn.config import GFNSettings, step_of
from experiments.gfn.faults import begun, failing, skipped, versions
from experiments.gfn.faults import stepped as _step
from experiments.gfn.metrics import DESCRIPTIONS, TESTS, Scored, evaluation, modes
from experiments.gfn.warn import Warnings, equal_rewards
from experiments.run.faults import FAULT, REWARD_FAULT, as_sentence, keep_fault
from experiments.run.log import finite, is_counts, is_row, read_metrics
from experiments.run.run import Run
from experiments.run.schedule import Marks
from gflownet.flows.states import key_of
from gflownet.metrics import SlidingWindow
from gflownet.molecules.top_k import TopK
from gflownet.problem import EVALUATION, DagProblem, Method, Outcome
from gflownet.rewards.calls import BudgetSpent

if TYPE_CHECKING:
    from experiments.molecules.metrics import Molecules

__all__ = ["DESCRIPTIONS", "GFNTraining", "train"]

REPLAYED = "state/replay/actions"
PENDING = 1 << 18  # objects of a seed that wait to be noted


@dataclass(frozen=True)
class GFNTraining:
    """Everything that changes during a run, and so everything that a checkpoint holds.

    state     the method's            window     the last objects of each seed, where all objects are known
    states    objects visited by each seed      iteration  the next one
    found_at  [S, modes] how many objects a seed had visited when it first met each mode, -1 for not yet
    top_k   the best molecules of each seed
    pending   objects [S, m, *obs] and log-rewards [S, m] not yet in the three above, none of them in a checkpoint
    due     a row of metrics that was not written because its evaluation failed: its numbers without those of the evaluation
    """

    state: Any
    window: SlidingWindow | None
    found_at: Tensor
    top_k: TopK | None = None
    states: int = 0
    iteration: int = 0
    pending: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)
    due: dict[str, Any] | None = None

    def tensors(self) -> dict[str, Tensor]:
        window = tensors_of(self.window, "window/") if self.window else {}
        top_k = tensors_of(self.top_k, "gallery/") if self.top_k else {}
        return {**tensors_of(self.state, "state/"), **window, **top_k, "found_at": self.found_at}

    def numbers(self) -> dict[str, Any]:
        window = numbers_of(self.window, "window/") if self.window else {}
        return {**numbers_of(self.state, "state/"), **window, "states": self.states}

    @staticmethod
    def begin(method: Method, problem: DagProblem, truth: Enumeration | None, window: int, top_k: int = 0) -> GFNTraining:
        """top_k: best objects to remember. UserError where the method cannot work on this environment."""
        try:
            state = begun(method.init(problem))
        except ValueError as error:
            raise UserError(str(error)) from error
        S, modes = len(problem.seeds), problem.env.n_modes if offers(problem.env, WithModes) else 0
        ring = None if truth is None else SlidingWindow.begin(S, window, len(truth.objects), problem.device)
        found_at = torch.full((S, modes), -1, dtype=torch.int64, device=problem.device)
        return GFNTraining(state, ring, found_at, _empty(problem, top_k) if top_k else None)

    def restored(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> GFNTraining:
        """This one as the checkpoint has it. Raises UserError when it belongs to another method or problem."""
        wanted, tensors = {name: (x.shape, x.dtype) for name, x in self.tensors().items()}, rewards.without(tensors)
        if (actions := tensors.get(REPLAYED)) is not None and actions.dtype == torch.int16:  # before 0.3
            tensors = {**tensors, REPLAYED: actions.int()}
        numbers, due = {name: x for name, x in meta.items() if name in self.numbers()}, meta.get("due")
        fits = set(numbers) == set(self.numbers()) and all(isinstance(x, int | float) for x in numbers.values())
        fits = fits and is_counts([numbers["states"]], 1)
        if due is not None:
            fits = fits and is_row(due) and (due.get("iteration"), due.get("states")) == (meta["iteration"], numbers["states"])
        if not fits or wanted != {name: (x.shape, x.dtype) for name, x in tensors.items()}:
            raise UserError("the checkpoint does not fit this method and problem: was a file changed since?", exit_code=3)
        return GFNTraining(
            rebuilt(self.state, tensors, numbers, "state/"),
            None if self.window is None else rebuilt(self.window, tensors, numbers, "window/"),
            tensors["found_at"].to(self.found_at.device),
            None if self.top_k is None else rebuilt(self.top_k, tensors, numbers, "gallery/"),
            numbers["states"],
            meta["iteration"],
            due=due,
        )

    def after(self, state: Any, outcome: Outcome) -> GFNTraining:
        """The iteration counted, its objects pending."""
        pending = (*self.pending, (outcome.objects, outcome.log_reward))
        states = self.states + outcome.log_reward.shape[1]
        return replace(self, state=state, states=states, iteration=self.iteration + 1, pending=pending)

    def settled(self, problem: DagProblem, truth: Enumeration | None) -> GFNTraining:
        """What is pending noted. UserError (exit code 5) where a log-reward is not finite."""
        if not self.pending:
            return self
        objects, log_reward = (torch.cat(parts, 1) for parts in zip(*self.pending, strict=True))
        refuse_bad_reward(problem.env, objects.flatten(0, 1), log_reward.flatten())
        window, found_at, top_k = self.window, self.found_at, self.top_k
        before = self.states - log_reward.shape[1]
        if window is not None:
            assert truth is not None
            window = window.add(truth.object_of(objects.flatten(0, 1)).view(log_reward.shape))
        if found_at.shape[1]:
            env: Any = problem.env
            met = env.modes(objects.flatten(0, 1)).view(log_reward.shape)
            found_at = _first_met(found_at, met, before)
        if top_k is not None:
            key = key_of(problem.env)[0](objects.flatten(0, 1)).view(log_reward.shape)
            top_k = top_k.add(objects, log_reward, key, before)
        return replace(self, window=window, found_at=found_at, top_k=top_k, pending=())


def _scored(molecules: Molecules | None, top_k: TopK | None, outcome: Outcome | None) -> Scored:
    """Objects whose reward is known: of the top-K buffer, or those of the last iteration."""
    if molecules is not None and top_k is not None:
        return molecules.scored(top_k)
    if outcome is None:
        return torch.zeros(0), torch.zeros(0)
    return outcome.objects.flatten(0, 1)[:TESTS], outcome.log_reward.flatten()[:TESTS]


def _empty(problem: DagProblem, size: int) -> TopK:
    rng = problem.rng(EVALUATION).rows(0, 1).drawn(1, problem.env.backend == "numpy")
    return TopK.begin(len(problem.seeds), size, to_tensor(problem.env.reset(1, rng).obs))


def _first_met(found_at: Tensor, met: Tensor, before: int) -> Tensor:
    """found_at with the modes met [S, m] (-1: none) of objects before+1, before+2, ..."""
    n, never = found_at.shape[1], torch.iinfo(torch.int64).max
    number = torch.arange(before + 1, before + 1 + met.shape[1], device=met.device).expand(met.shape)
    first = torch.full((len(met), n + 1), never, device=met.device)
    first.scatter_reduce_(1, torch.where(met < 0, n, met), number, "amin")
    new = torch.where(first[:, :n] == never, -1, first[:, :n])
    return torch.where(found_at >= 0, found_at, new)


def train(
    run: Run,
    problem: DagProblem,
    method: Method,
    truth: Enumeration | None,
    settings: GFNSettings,
    training: GFNTraining,
    tick: Callable[[int], None],
    molecules: Molecules | None = None,
) -> GFNTraining:
    """Trains to the end. `tick(objects visited by each seed)` is called after every iteration.

    molecules  what evaluations say of them, where there are any

    Raises UserError: exit code 5 when a reward or too many losses in a row are not finite, 130 or 143 when asked to stop (after
    a checkpoint), 2 when the method does not fit the environment.
    """
    account = rewards.account(problem)
    if account is not None:
        account.ledger.budget = settings.calls
    S, total, first = len(problem.seeds), settings.states, problem.batch_size
    if settings.calls is not None:  # of all seeds together
        total, first = settings.calls, first * S
    rows, evaluations, checkpoints = (
        Marks(total, first, count) for count in (settings.log_rows, settings.evaluations, settings.checkpoints)
    )
    on_cpu = problem.device == "cpu"
    calls = rewards.budget(problem, settings.evaluation_calls)
    if calls is not None:  # of each seed in each evaluation, the first and the last included
        calls = calls // (settings.evaluations + 2) // S
    visits = settings.states if settings.calls is None else min(settings.states, settings.calls // S)
    warnings = Warnings(visits, [] if run.empty else read_metrics(run.metrics))
    before = versions(training.state)  # of the iteration under way
    stepping = False

    def unchanged() -> bool:
        """Whether a checkpoint may be written. A captured iteration changes its state unseen."""
        return versions(training.state) == before and not (stepping and settings.compile and not on_cpu)

    def save() -> None:
        nonlocal training
        training = training.settled(problem, truth)
        tensors, count = rewards.tensors(problem, truth), {rewards.META: problem.calls.numbers()}
        if account is not None:
            with contextlib.suppress(OSError):  # a full disk is told of with the checkpoint
                account.write(run.folder)
        due = {} if training.due is None else {"due": {tag: finite(x) for tag, x in training.due.items()}}
        run.checkpoint(training.iteration, {**training.tensors(), **tensors}, {**training.numbers(), **count, **due})

    def saved() -> str:
        """For a sentence: what a resume begins with, after a failure."""
        if not unchanged():
            return f"its state is lost: continue from the last checkpoint with: gflownet resume {run.folder}"
        save()
        return f"the state before it is saved; continue with: gflownet resume {run.folder}"

    def counts(diversity: bool) -> dict[str, int | float]:
        return {**rewards.row(problem.calls), **({} if account is None else account.row(diversity))}

    def log(outcome: Outcome | None, evaluate: bool) -> dict[str, Any]:
        nonlocal training
        row: dict[str, Any] = {"iteration": training.iteration, "states": training.states}
        if outcome is not None:
            row |= {**outcome.metrics, **skipped(training.state), "rollout/log_reward": outcome.log_reward.mean(1)}
            row["time/states_per_second"] = training.states * len(problem.seeds) / max(run.wall, 1e-9)
        row |= modes(training.found_at)
        row = {tag: x.tolist() if isinstance(x, Tensor) else x for tag, x in row.items()}
        if evaluate:
            training = replace(training, due=row)
            row = {**row, **evaluated(outcome)}
        row |= counts(diversity=evaluate)
        run.log(training.states, row)
        training = replace(training, due=None)
        say(warnings.of(row))
        return row

    def evaluated(outcome: Outcome | None) -> dict[str, Any]:
        picture, more = None, dict[str, Any]()
        with asked.interruptible():
            known = None if calls is None else _scored(molecules, training.top_k, outcome)
            more = evaluation(method, training.state, problem, truth, training.window, training.iteration, known)
            if molecules is not None and training.top_k is not None:
                more |= molecules.row(training.top_k, method, training.state, problem, training.iteration, calls)
                picture = molecules.picture(training.top_k)
        if picture is not None:
            run.picture(training.states, picture)
        return {tag: x.tolist() if isinstance(x, Tensor) else x for tag, x in more.items()}

    def say(sentences: list[str]) -> None:
        for sentence in sentences:
            print(sentence, file=sys.stderr)

    def done() -> int:
        return training.states if settings.calls is None or account is None else len(account.ledger)

    def refuse_reward(stop_equal: bool) -> None:
        """Of the molecules just scored. UserError (exit code 6) where the reward cannot be meant."""
        if account is None:
            return
        wrong, way_out = account.fault(settings.max_failed), "correct the reward, or raise --max-failed"
        if not wrong and stop_equal and training.iteration <= 1:
            wrong, way_out = account.equal(), "correct it, or go on with --equal-rewards warn"
        if wrong:
            raise UserError(f"{wrong} {way_out}; {saved()}", REWARD_FAULT)

    def go() -> None:
        nonlocal training, before, stepping
        step = step_of(settings, method, problem, training.state, training.iteration)
        if training.due is not None:
            run.log(training.states, row := {**training.due, **evaluated(None), **counts(diversity=True)})
            training = replace(training, due=None)
            run.better(training.states, row)
            save()
            say(warnings.of(row))
        elif run.empty:
            save()  # before the first row: a run killed from here on is continued
            log(None, evaluate=True)
        stop_equal = settings.equal_rewards == "stop" or (settings.equal_rewards == "auto" and problem.calls.of_user)
        while training.states < settings.states and not (account is not None and account.spent):
            start, before, stepping = done(), versions(training.state), True
            outcome: Outcome | None = None
            try:
                with asked.interruptible(unchanged):
                    state, outcome = _step(step, training.state, problem, training.iteration)
                training = training.after(state, outcome)
            except BudgetSpent:  # the iteration has not happened, but what it asked for is noted
                with asked.interruptible():
                    rewards.finish(problem)
            before, stepping = versions(training.state), False
            if training.iteration == 1 and outcome is not None and training.top_k is not None and not stop_equal:
                say(equal_rewards(outcome.log_reward))
            refuse_reward(stop_equal)
            now = done()
            last = outcome is None or training.states >= settings.states or (account is not None and account.spent)
            show = last or rows.passed(start, now) or evaluations.passed(start, now)
            keep = last or bool(asked) or checkpoints.passed(start, now)
            waiting = 0 if outcome is None else len(training.pending) * outcome.log_reward.shape[1]
            if show or keep or (outcome and outcome.fault) or waiting > PENDING:
                training = training.settled(problem, truth)
            if outcome and outcome.fault:
                keep_fault(run.folder, training.iteration - 1, outcome.fault)
            faulty = (outcome and outcome.fault) or (show and not on_cpu)
            stop = faulty and failing(training.state) >= settings.max_faults
            evaluate = last or evaluations.passed(start, now)
            row = log(outcome, evaluate) if show else {}
            if (evaluate and run.better(training.states, row)) or keep or stop:
                save()
            tick(now)
            if stop:
                raise UserError(
                    f"{settings.max_faults} updates in a row were skipped, because the loss or its gradient was not finite; "
                    f"iteration {training.iteration}; batches in {run.folder / 'faults'}: try a smaller --learning-rate"
                    f"{run.way_back}",
                    FAULT,
                )
            if asked and keep and not last:  # a signal during the evaluation waits for the next iteration, which is saved
                raise UserError(f"stopped; continue with: gflownet resume {run.folder}", asked.code)

    with deferred_signals() as asked:
        try:
            go()
        except Stopped:
            raise UserError(f"stopped within iteration {training.iteration}; {saved()}", asked.code) from None
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise as_sentence(error, f"iteration {training.iteration}; {saved()}", run.config) from error
    return training
