"""What the verbs of `gflownet` do: make or open a run folder, train in it, evaluate it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from envs.dag.enumeration import Enumeration
from envs.molecules.block_trees import BlockTrees
from envs.ranges import Calls, Count
from experiments.cli.errors import UserError
from experiments.cli.load import short_name
from experiments.cli.progress import progress
from experiments.cli.ranges import check_flags
from experiments.cli.signals import Stopped, deferred_signals
from experiments.cli.stdout import stdout_to_stderr
from experiments.cli.text import plain
from experiments.cli.threads import fit
from experiments.cli.verbs import Record
from experiments.gfn import rewards
from experiments.gfn.build import check_user_env, truth
from experiments.gfn.config import GFNSettings, as_config, defaults, from_config, make_method, make_problem
from experiments.gfn.memory import sampled
from experiments.gfn.metrics import against, fresh, has_policy, of_the_policy
from experiments.gfn.train import DESCRIPTIONS, GFNTraining
from experiments.gfn.train import train as run_loop
from experiments.molecules.config import tree_reward
from experiments.run.device import use_deterministic, use_matmul
from experiments.run.faults import BEFORE, faults_as_sentences
from experiments.run.memory import require
from experiments.run.provenance import examine
from experiments.run.run import Run, run_name
from gflownet.metrics import empirical, noise_floor
from gflownet.problem import DagProblem, Method

if TYPE_CHECKING:
    from experiments.molecules.metrics import Molecules

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # a checkpoint
ROOM = 1 << 25  # numbers of a policy over the objects that are sampled at once


class GFNRun(NamedTuple):
    """What a config describes. truth: all states with the target distribution, or None; molecules: their metrics, or None."""

    settings: GFNSettings
    method: Method
    problem: DagProblem
    truth: Enumeration | None
    training: GFNTraining
    molecules: Molecules | None = None

    @property
    def descriptions(self) -> dict[str, str]:
        """tag -> one sentence."""
        if self.molecules is None:
            return DESCRIPTIONS
        from experiments.gfn import budget

        return {**DESCRIPTIONS, **self.molecules.descriptions, **budget.DESCRIPTIONS}


@stdout_to_stderr()
def made(config: dict[str, Any], saved: Saved | None = None) -> GFNRun:
    """Everything as it is before the first iteration. UserError where something does not fit.

    saved: a checkpoint, so that no reward is asked for again that it holds.
    """
    choice, settings = from_config(config)
    if str(config.get("device", "cpu")).startswith("cuda") and not torch.cuda.is_available():
        raise UserError("the run was made on a GPU, and this machine has none: go on where there is one")
    use_deterministic(config.get("device", "cpu"), settings.deterministic, settings.compile)
    use_matmul(config.get("device", "cpu"), settings.matmul)
    with faults_as_sentences(BEFORE, config):
        method = make_method(choice)
        problem = make_problem(choice, settings, method, config.get("device", "cpu"))
        held = saved[0] if saved else {}
        rewards.restore_cache(problem, held)
        metrics = settings.metrics if settings.calls is None else "sampled"
        exact = truth(choice.env, problem.env, metrics, rewards.known(held))
        molecules = _molecules(problem, choice.env_settings, settings.top_k)
        training = GFNTraining.begin(method, problem, exact, settings.window, settings.top_k if molecules else 0)
    return GFNRun(settings, method, problem, exact, training, molecules)


def _molecules(problem: DagProblem, env_settings: dict[str, Any], top_k: int) -> Molecules | None:
    """Where objects have SMILES."""
    if tree_reward(problem.env) is None:
        return None
    from experiments.molecules.metrics import THRESHOLD, Molecules

    return Molecules(problem.env, env_settings.get("mode_threshold", THRESHOLD), 4 * top_k * len(problem.seeds))


def start(config: dict[str, Any], out: Path | None, argv: Sequence[str], quiet: bool = False) -> Path:
    """A new run, trained to the end. The run folder."""
    with faults_as_sentences(BEFORE, config):
        checked = check_user_env(config["env"], config["device"])
    begun = made(config)
    begun.problem.calls.calls += checked
    name = run_name(short_name(config["env"]), short_name(config["method"]), config["seed"], config)
    with Run.create(out, name, config, argv, begun.descriptions) as run:
        if not quiet:
            print(plain(f"{config['method']} on {config['title']} -> {run.folder}"), file=sys.stderr)
            print(_summary(config, begun), file=sys.stderr)
        rewards.begin_run(begun.problem, run.identity.id)
        if begun.settings.references:
            _score_known_drugs(run, begun.problem, quiet)
        _to_the_end(run, begun, quiet)
        return run.folder


def _score_known_drugs(run: Run, problem: DagProblem, quiet: bool) -> None:
    """And show them. UserError as for training."""
    if problem.calls.of_user and not quiet:
        print("scoring five known drugs (--no-references leaves them out)", file=sys.stderr)
    with deferred_signals() as asked:
        try:
            with asked.interruptible(), faults_as_sentences(BEFORE, run.config):
                known = rewards.references(problem, quiet)
        except Stopped:
            with rewards.closing(problem):
                raise UserError(
                    "stopped while the known drugs were scored; the same command begins again", asked.code
                ) from None
    if known and not quiet:
        print(plain(known, keep="\n"), file=sys.stderr)


def resume(
    folder: Path, checkpoint: Path | None, quiet: bool, given: Mapping[str, Any] | None = None, trust: bool = False
) -> None:
    """Continue a run to its end. given: settings, of which those that change no number are taken."""
    run = Run.open(folder, given=given)
    saved = run.load(checkpoint)
    with run.user_code(trust):
        begun = made(run.config, saved)

        def restored(tensors: dict[str, Tensor], meta: dict[str, Any]) -> GFNTraining:
            rewards.begin_run(begun.problem, run.identity.id)
            training = begun.training.restored(tensors, meta)
            rewards.restore(begun.problem, tensors, meta)  # of this checkpoint: another process may have saved since
            return training

        with Run.open(folder, begun.descriptions, given=given) as run:
            training = run.resume(restored, checkpoint, trust)
            if run.way_back and not (quiet or checkpoint):
                print(f"continues from the newest checkpoint{run.way_back}", file=sys.stderr)
            _to_the_end(run, begun._replace(training=training), quiet)


def finished(folder: Path) -> bool:
    """Whether every seed of a run has visited its objects and no row is due, by the newest checkpoint."""
    run = Run.open(folder)
    held, meta = run.load()
    settings = from_config(run.config)[1]
    return bool(meta["states"] >= settings.states or rewards.spent(held, settings.calls)) and meta.get("due") is None


def _to_the_end(run: Run, begun: GFNRun, quiet: bool) -> None:
    settings, method, problem, exact, training, molecules = begun
    fit(problem.batch_size * len(problem.seeds), trees=isinstance(problem.env, BlockTrees))
    if settings.compile and problem.device == "cpu":
        print("--compile: nothing is compiled on the CPU, where the ordinary iteration is the faster one", file=sys.stderr)
    total, unit = (settings.states, "objects a seed") if settings.calls is None else (settings.calls, "reward calls")
    with rewards.closing(problem), progress(total, unit, quiet) as tick:
        run_loop(run, problem, method, exact, settings, training, tick, molecules)
    if not quiet:
        print(plain(rewards.summary(problem, run.wall), keep="\n"), file=sys.stderr)
        print(plain(f"done: {run.folder}   curves: tensorboard --logdir {run.folder}"), file=sys.stderr)


def _summary(config: dict[str, Any], begun: GFNRun) -> str:
    values = ", ".join(f"{name} {value}" for name, value in {**config["objective"], **config["hyperparameters"]}.items())
    known = "target distribution not enumerated" if begun.truth is None else f"{len(begun.truth.objects):,} objects, enumerated"
    shared = ", ".join(f"{name} {config[name]}" for name in ("batch_size", "dtype", "device"))
    budget = "" if config["calls"] is None else f", at most {config['calls']:,} reward calls"
    size = f"{config['seeds']} seeds × {config['states']:,} objects{budget}"
    return f"  {size}; {known}\n  {values or 'no hyperparameters'}\n  {shared}"


def opened(folder: Path, checkpoint: Path | None = None, trust: bool = False) -> tuple[Run, GFNRun]:
    """A run as its newest checkpoint has it, or another. trust: execute whatever files its config names."""
    run = Run.open(folder)
    saved = run.load(checkpoint)
    with run.user_code(trust):
        begun = made(run.config, saved)
    rewards.begin_run(begun.problem, run.identity.id)
    return run, begun._replace(training=begun.training.restored(*saved))


@stdout_to_stderr()
def evaluate(
    folder: Path,
    samples: Count,
    checkpoint: Path | None = None,
    evaluation_calls: Calls | None = None,
    tell: Callable[[str], None] = lambda line: None,
    trust: bool = False,
) -> list[Record]:
    """For each seed: metrics of its policy and of fresh samples.

    evaluation_calls: as in training, for these samples; tell: is told what was asked of the reward.
    """
    check_flags(evaluate, {"samples": samples, "evaluation_calls": evaluation_calls})
    run, begun = opened(folder, checkpoint, trust)
    require({"samples": sampled(begun.problem, samples)}, {"samples": "lower --samples"})
    with faults_as_sentences(f"iteration {begun.training.iteration}", run.config), rewards.closing(begun.problem):
        columns = _known(begun, samples, rewards.budget(begun.problem, evaluation_calls))
    tell(rewards.summary(begun.problem))
    table = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in columns.items()}
    return [
        {"seed": seed, **{name: x[i] if isinstance(x, list) else x for name, x in table.items()}}
        for i, seed in enumerate(begun.problem.seeds)
    ]


def _known(begun: GFNRun, samples: int, calls: int | None) -> dict[str, Any]:
    """The columns of `evaluate`. calls: the most that may be asked of the reward; None: no limit."""
    _, method, problem, exact, training, molecules = begun
    state = training.state
    each = None if calls is None else calls // len(problem.seeds)
    if each is not None and each < samples and not has_policy(method, state, problem):
        raise UserError(
            f"without a policy each of {samples:,} --samples of each seed is a call of your reward: allow them with "
            f"--evaluation-calls {samples * len(problem.seeds)}, or lower --samples"
        )
    each = each if exact is None else 0
    objects, log_reward = samples_of(method, state, problem, training.iteration, samples, each)
    columns: dict[str, Any] = {"states": training.states, "samples": objects.shape[1]}
    if exact is not None:
        ids = exact.object_of(objects.flatten(0, 1)).view(objects.shape[:2])
        log_reward = exact.log_reward[ids]
    if log_reward.shape[1]:
        columns["log_reward"] = log_reward.mean(1)
    if exact is not None:
        counts = torch.zeros(len(ids), len(exact.objects), dtype=torch.int64, device=ids.device)
        visited = empirical(counts.scatter_add_(1, ids, torch.ones_like(ids)))
        distances = against(exact, visited, "")
        floor = noise_floor(exact.target, objects.shape[1])
        columns |= {"l1": distances["l1"], "l1_floor": floor, **distances}
    if training.found_at.shape[1]:
        columns["modes"] = (training.found_at >= 0).sum(1)
    with torch.no_grad():
        scored = None if calls is None or molecules is None or training.top_k is None else molecules.scored(training.top_k)
        known = of_the_policy(method, state, problem, exact, -1, scored)  # a stream that training never used
    if molecules is not None and training.top_k is not None:
        known |= molecules.of_top_k(training.top_k) | molecules.of_fresh(objects, log_reward)
    return columns | {tag.partition("/")[2]: value for tag, value in known.items() if not tag.startswith("hist/")}


def samples_of(
    method: Method, state: Any, problem: DagProblem, t: int, samples: int, scored: int | None = None
) -> tuple[Tensor, Tensor]:
    """`samples` objects of each seed [S, n, *obs] with log-rewards: of the policies, or of chains that go on.

    scored: how many of each seed, the first ones, have log-rewards [S, scored]; None: all. Chains need all.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    if has_policy(method, state, problem):
        actions = int(problem.env.action_space.n)
        most = max(1, ROOM // (actions * len(problem.seeds)))
        for part, done in enumerate(range(0, samples, most)):
            left = None if scored is None else max(0, scored - done)
            parts.append(fresh(method, state, problem, min(most, samples - done), -1 - part, left))
        return torch.cat([x for x, _ in parts], 1), torch.cat([r for _, r in parts], 1)
    while sum(log_reward.shape[1] for _, log_reward in parts) < samples:
        state, outcome = method.step(state, problem, t + len(parts))
        parts.append((outcome.objects, outcome.log_reward))
    return torch.cat([x for x, _ in parts], 1)[:, :samples], torch.cat([r for _, r in parts], 1)[:, :samples]


def doctor() -> None:
    """Print versions and device, then train for a moment and say how fast."""

    def short(out: Path) -> None:
        settings, choice, _ = defaults("fm", "hypergrid")
        settings = replace(settings, states=8_000, evaluations=2)
        start(as_config(choice, settings, "cpu"), out, ["gflownet", "doctor"], quiet=True)

    examine(short, "fm on the 4-D hypergrid", 8_000, "objects")
