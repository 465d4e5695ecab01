"""Active learning in rounds, as a run folder: after every round a row of metrics and a checkpoint of what is known.

until all rounds are over:
    known = one_round(...) of every seed, one after the other
    a row of metrics, its x-axis being the cells whose reward is known;  a checkpoint
a table on stdout, and active.png in the run folder where matplotlib is installed
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.core import RewardFault
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.dag.search import TooManyStates
from experiments.cli.errors import MissingPackage, UserError
from experiments.cli.progress import progress
from experiments.cli.ranges import check_flags
from experiments.cli.signals import Stopped, deferred_signals
from experiments.cli.stdout import stdout_to_stderr
from experiments.cli.text import plain
from experiments.cli.threads import fit
from experiments.gfn import rewards
from experiments.gfn.build import make_dag_env, refuse_bad_reward
from experiments.gfn.config import Choice, GFNSettings, as_config, defaults, from_config, make_method
from experiments.gfn.environments import find_env
from experiments.run.faults import faults_as_sentences
from experiments.run.log import read_metrics
from experiments.run.memory import require
from experiments.run.run import Run, run_name
from gflownet.active.gaussian_process import GaussianProcess
from gflownet.active.rounds import Measures, Pool, Proxy, Round, Settings, TrueReward, begin, measures, one_round
from gflownet.problem import Method
from gflownet.rewards.calls import RewardCalls

LIMIT = 100_000  # states of a grid, whose cells the proxy all evaluates in every round
DESCRIPTIONS = {
    **rewards.DESCRIPTIONS,
    "known": "Number of cells whose true reward is known.",
    "eval/top_return": "Mean reward of the k best cells known, minus that of the cells known at the start.",
    "eval/top_gain": "The same, minus that of the round before: the top-k return of Bengio et al. 2021.",
    "eval/top_mean": "Mean reward of the k best cells known.",
    "eval/top_distance": "Mean Euclidean distance between the k best cells known, coordinates from 0 to 1.",
    "eval/modes": "Modes among the cells known, counted as regions.",
    "eval/proxy_error": "Root mean square error of the proxy's mean at the cells whose reward is unknown.",
    "eval/generator_l1": "Σ|p - A/ΣA| between the generator's distribution p and the proxy's acquisition A: 0 to 2.",
    "rollout/queried": "Mean true reward of the cells queried in the round.",
    "rollout/unlikely": "Number of queried cells with probability 0 under the generator, which had no others left.",
    "train/loss": "The generator's loss at the end of the round.",
    "train/skipped": "Updates of the generator skipped in the round because loss or gradient were not finite.",
}
COLUMNS = ("eval/top_return", "eval/top_gain", "eval/modes", "eval/top_distance", "rollout/queried")
HEADS = ("round", "known", "top-k return", "gain", "modes", "distance", "queried")


@dataclass(frozen=True)
class ActiveRun:
    """What a config describes, and what is known so far [S, m]."""

    settings: Settings
    pool: Pool
    proxy: Proxy
    method: Method
    known: Tensor
    calls: RewardCalls

    @property
    def round(self) -> int:
        return (self.known.shape[1] - self.settings.initial) // self.settings.queries

    def restored(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> ActiveRun:
        """This one as the checkpoint has it, with its count of calls. Raises UserError when it belongs to another run."""
        known, settings = tensors.get("known"), self.settings
        asked = settings.queries * int(meta.get("iteration", 0))
        if known is None or known.dtype != torch.int64 or known.shape != (settings.seeds, settings.initial + asked):
            raise UserError("the checkpoint does not fit these settings: was a file changed since?", exit_code=3)
        if not torch.equal(known[:, : settings.initial], self.known):
            raise UserError("the checkpoint began with other cells: was a file changed since?", exit_code=3)
        if rewards.META in meta:  # versions before 0.4 did not count
            rewards.restore_count(self.calls, meta[rewards.META])
        return replace(self, known=known)

    def save(self, run: Run, i: int, known: Tensor) -> None:
        """A checkpoint after i rounds; it holds what code of the user's said of all cells."""
        held = {rewards.TRUTH + "log_reward": self.pool.dag.log_reward} if self.calls.of_user else {}
        run.checkpoint(i, {"known": known, **held}, {rewards.META: self.calls.numbers()})


def settings_for(method: str, env: str, preset: str) -> tuple[Settings, Choice, str]:
    """What a bare command uses, and the recipe's note."""
    if env != "hypergrid":
        find_env(env)
        raise UserError(f"active learning is on the hypergrid, not on {env}: gflownet active hypergrid --objective NAME")
    train, choice, recipe = defaults(method, env, preset)
    return Settings(batch_size=train.batch_size), choice, recipe.note


def config_of(choice: Choice, settings: Settings) -> dict[str, Any]:
    """What config.json holds."""
    described = as_config(choice, GFNSettings(), "cpu")
    names = [f.name for f in fields(Choice)]
    return {**{name: described[name] for name in (*names, "title")}, **asdict(settings), "device": "cpu"}


def is_active(folder: Path) -> bool:
    """Was this run folder made here?"""
    return {"rounds", "queries"} <= set(Run.open(folder).config)


def made(config: dict[str, Any], held: Tensor | None = None) -> ActiveRun:
    """Everything as it is before the first round. UserError where something does not fit.

    held: log R of all cells, where a checkpoint has them.
    """
    choice, _ = from_config({f.name: config.get(f.name) for f in fields(Choice)})
    try:
        settings = Settings(**{f.name: config[f.name] for f in fields(Settings)})
    except KeyError as error:
        raise UserError(f"config.json does not fit this version: it has no {error}", exit_code=3) from error
    check(settings)
    if settings.proxy == "gp" and importlib.util.find_spec("sklearn") is None:
        raise MissingPackage("scikit-learn", "active", "a Gaussian process (--proxy gp)")
    pool, calls = pool_of(choice, held)
    wanted, there = settings.initial + settings.rounds * settings.queries, len(pool.cells)
    if wanted > there:
        raise UserError(
            f"--initial {settings.initial} and {settings.rounds} --rounds of {settings.queries} --queries are "
            f"{wanted:,} cells, the grid has {there:,}: lower --rounds or --queries, or take a larger grid"
        )
    if settings.proxy == "gp":
        part = "Gaussian process"
        require(
            {part: 8 * wanted * (3 * wanted + 2 * there)},
            {part: "lower --initial, --queries or --rounds, or take a smaller grid"},
        )
    proxy: Proxy = GaussianProcess() if settings.proxy == "gp" else TrueReward(pool.reward)
    known = torch.stack([begin(pool, settings, settings.seed + s) for s in range(settings.seeds)])
    return ActiveRun(settings, pool, proxy, make_method(choice), known, calls)


def check(settings: Settings) -> None:
    """UserError for a setting outside its range."""
    check_flags(settings)
    if settings.initial < settings.top_k:
        raise UserError(f"--initial is {settings.initial}, expected at least --top-k, {settings.top_k}")
    if settings.proxy not in ("gp", "oracle"):
        raise UserError(f"--proxy is {settings.proxy!r}, expected gp or oracle")


def pool_of(choice: Choice, held: Tensor | None = None) -> tuple[Pool, RewardCalls]:
    """The grid with the rewards of all cells, which the metrics need, and the count of what was asked.

    held: log R of all cells, where a checkpoint has them.
    """
    calls = RewardCalls()
    if ".py" in str(choice.env_settings.get("reward", "")):
        calls.of_user, calls.around = True, stdout_to_stderr
    env = make_dag_env(choice.env, find_env(choice.env).settings(**choice.env_settings), "cpu")
    assert isinstance(env, HyperGrid)
    try:
        dag = enumerate_dag(
            env, LIMIT, partial(calls, env.log_reward) if held is None else partial(rewards.of_checkpoint, held)
        )
    except TooManyStates as error:
        raise UserError(
            f"the grid has {env.n_states:,} cells, the proxy evaluates all of them in every round and at most {LIMIT:,}: "
            "take a smaller --ndim or --height"
        ) from error
    except RewardFault:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    refuse_bad_reward(env, dag.obs[dag.objects], dag.log_reward)
    return Pool(env, dag), calls


def start(config: dict[str, Any], out: Path | None, argv: Sequence[str], quiet: bool = False) -> Path:
    """A new run, to its last round. The run folder."""
    begun = _begun(config)
    name = run_name(config["env"] + "-active", config["method"], config["seed"], config)
    with Run.create(out, name, config, argv, DESCRIPTIONS) as run:
        if not quiet:
            print(plain(f"{config['method']} on {config['title']}, active learning -> {run.folder}"), file=sys.stderr)
        return _to_the_end(run, begun, quiet)


def resume(
    folder: Path, checkpoint: Path | None, quiet: bool, given: Mapping[str, Any] | None = None, trust: bool = False
) -> Path:
    """Continue a run to its last round. given: settings, of which those that change no number are taken."""
    with Run.open(folder, DESCRIPTIONS, given=given) as run, run.user_code(trust):
        begun = _begun(run.config, rewards.known(run.load(checkpoint)[0]))
        return _to_the_end(run, run.resume(begun.restored, checkpoint, trust), quiet)


def _begun(config: dict[str, Any], held: Tensor | None = None) -> ActiveRun:
    """`made`, its faults as sentences."""
    with faults_as_sentences("before the first round", config):
        return made(config, held)


def finished(folder: Path) -> bool:
    """Whether the newest checkpoint of a run is that of its last round."""
    run = Run.open(folder)
    return bool(run.load()[1]["iteration"] >= run.config["rounds"])


def _to_the_end(run: Run, begun: ActiveRun, quiet: bool) -> Path:
    settings = begun.settings
    fit(settings.batch_size)
    with progress(settings.states * settings.rounds, "objects a seed", quiet) as tick:
        play(run, begun, tick, quiet)
    if not quiet:
        print(rewards.count(begun.calls), file=sys.stderr)
    print(table(run.folder))
    if importlib.util.find_spec("matplotlib") is not None:
        from experiments.plots.active import figure

        print(plain(f"figure: {figure((run.folder,), run.folder / 'active.png')}"))
    return run.folder


def play(run: Run, begun: ActiveRun, tick: Callable[[int], None], quiet: bool) -> None:
    """All rounds that are left. Raises UserError, 130 or 143 when asked to stop (after the round, and a checkpoint)."""
    settings, known = begun.settings, begun.known
    if run.empty:
        begun.save(run, 0, known)
        run.log(known.shape[1], _row(begun, known, 0, []))
    with deferred_signals() as asked:
        for i in range(begun.round, settings.rounds):
            where = f"round {i + 1}; the state before it is saved; continue with: gflownet resume {run.folder}"
            try:
                with asked.interruptible(), faults_as_sentences(where, run.config):
                    done = [_round(begun, known[s], s, i, tick) for s in range(settings.seeds)]
            except Stopped:
                raise UserError(f"stopped within {where}", asked.code) from None
            known = torch.stack([x.known for x in done])
            row = _row(begun, known, i + 1, done)
            run.log(known.shape[1], row)
            begun.save(run, i + 1, known)
            if not quiet:
                gain, modes = (sum(row[tag]) / settings.seeds for tag in ("eval/top_return", "eval/modes"))
                print(f"round {i + 1} of {settings.rounds}: top-k return {gain:.3f}, modes {modes:.1f}", file=sys.stderr)
            if asked and i + 1 < settings.rounds:
                raise UserError(f"stopped; continue with: gflownet resume {run.folder}", asked.code)


def _round(begun: ActiveRun, known: Tensor, s: int, i: int, tick: Callable[[int], None]) -> Round:
    settings = begun.settings

    def seen(visited: int) -> None:
        tick(settings.states * i + (settings.states * s + min(visited, settings.states)) // settings.seeds)

    return one_round(begun.pool, begun.proxy, begun.method, settings, settings.seed + s, i, known, seen)


def _row(begun: ActiveRun, known: Tensor, i: int, done: list[Round]) -> dict[str, Any]:
    """Round i; before the first, `done` is empty."""
    settings = begun.settings

    def of(m: int) -> list[Measures]:
        return [measures(begun.pool, x[:m], settings.top_k) for x in known]

    now = of(known.shape[1])
    first, last = of(settings.initial), of(max(settings.initial, known.shape[1] - settings.queries))
    row: dict[str, Any] = {
        "iteration": i,
        "known": known.shape[1],
        "eval/top_return": [x.top - y.top for x, y in zip(now, first, strict=True)],
        "eval/top_gain": [x.top - y.top for x, y in zip(now, last, strict=True)],
        "eval/top_mean": [x.top for x in now],
        "eval/top_distance": [x.distance for x in now],
        "eval/modes": [x.modes for x in now],
    }
    row |= rewards.row(begun.calls)
    if done:
        row["eval/proxy_error"] = [x.error for x in done]
        row["eval/generator_l1"] = [x.l1 for x in done]
        row["rollout/queried"] = [x.queried for x in done]
        row["rollout/unlikely"] = [x.unlikely for x in done]
        for tag in ("train/loss", "train/skipped"):
            if tag in done[0].metrics:
                row[tag] = [float(x.metrics[tag]) for x in done]
    return row


def table(folder: Path) -> str:
    """A line for each round: means over seeds, with their standard deviation where there are several."""
    lines = [list(HEADS)]
    for row in read_metrics(folder):
        lines.append([str(row["iteration"]), str(row["known"]), *(_cell(row.get(tag)) for tag in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "-"
    x = torch.tensor(values, dtype=torch.float64)
    return f"{float(x.mean()):.3f}" + (f" ± {float(x.std()):.3f}" if len(x) > 1 else "")
