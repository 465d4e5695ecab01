"""The settings of a GFlowNet run: what the command line takes, what config.json holds, and how both become a problem."""

from __future__ import annotations

import dataclasses
import inspect
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tyro.conf import Fixed, Suppress

from envs.core import EnvironmentFault, RewardFault
from envs.ranges import Calls, Count, Fraction, Rows, Seed, Seeds, Steps
from experiments.cli.errors import UserError
from experiments.cli.load import absolute, load_object
from experiments.cli.ranges import check_config, check_flags
from experiments.cli.verbs import RESERVED, close_to, refuse_shared
from experiments.gfn.build import make_dag_env
from experiments.gfn.environments import find_env
from experiments.gfn.memory import HINTS, arrays
from experiments.gfn.rewards import counted
from experiments.recipes.gfn.recipe import GFNRecipe
from experiments.recipes.gfn.registry import recipe_for
from experiments.run.device import Device, Matmul, check_device, choose, matmul_on, use_deterministic, use_matmul
from experiments.run.memory import require
from gflownet.gflownet import GFlowNet
from gflownet.problem import DagProblem, Method, objects_per_iteration
from gflownet.registry import MethodEntry, register
from gflownet.static.capture import Step, captured


@dataclass(frozen=True)
class GFNSettings:
    """Settings shared by all methods. Defaults are those of the environment's recipe."""

    seeds: Seeds = 1
    """number of seeds, which train in parallel"""
    seed: Seed = 0
    """first seed; the others are seed + 1, seed + 2, ..."""
    states: Steps = 1_000_000
    """reward evaluations in training, i.e. finished objects visited, of each seed"""
    calls: Count | None = None
    """budget: the number of different molecules, by canonical SMILES, that the reward is asked for, by all seeds together and
    for whatever purpose. The run ends when it is spent, or after --states. None: no budget"""
    batch_size: Count = 16
    """objects that a seed constructs in an iteration"""
    preset: str = "recipe"
    """default settings: recipe (tuned here) or paper (those of the environment's paper)"""
    metrics: Literal["auto", "exact", "sampled"] = "auto"
    """distance to the target distribution: auto (where states can be enumerated), exact (or an error), sampled (never)"""
    window: Count = 200_000
    """how many of the last objects of each seed are compared with the target distribution"""
    top_k: Count = 10_000
    """size of the top-K buffer: the best distinct molecules of each seed, which evaluations report on"""
    dtype: Literal["float32", "float64"] = "float32"
    """precision of parameters and gradients"""
    device: Device = "auto"
    deterministic: bool = False
    """on a GPU, take only algorithms that give the same bits every time (slower); the CPU's always do"""
    matmul: Matmul = "auto"
    """products of float32 matrices: float32, or tf32 (CUDA only: faster, but rounded to 10 bits, so that a seed gives other
    numbers than in float32); auto: tf32 on CUDA, float32 on the CPU"""
    compile: bool = False
    """capture the whole iteration as a CUDA graph (GPU only, without replay and local search)"""
    max_faults: Count = 10
    """stop after this many consecutive updates that were skipped because the loss was not finite"""
    evaluations: Rows = 40
    """number of evaluations, half of them evenly spaced and half evenly on a logarithmic axis"""
    log_rows: Rows = 200
    """number of rows of metrics, spaced like the evaluations"""
    evaluation_calls: Calls | None = None
    """calls of the reward that evaluations may make in the whole run, spread evenly; None: without limit, but none where a
    function of yours scores molecules, and evaluations use those scored in training"""
    references: bool = True
    """score five known drugs before training and show them; where --calls is given or a reward of yours is asked, they count"""
    max_failed: Fraction = 0.5
    """stop when more than this fraction of the last 100 molecules failed, i.e. had no finite reward"""
    equal_rewards: Literal["auto", "stop", "warn"] = "auto"
    """what to do when all molecules of the first iteration have the same reward; auto: stop where it is a reward of yours"""
    checkpoints: Rows = 20
    """number of checkpoints, of which the last three are kept"""
    best: str = "none"
    """metric of evaluations, e.g. eval/exact_l1, eval/correlation: the checkpoint of its best value in training is kept"""


@dataclass(frozen=True)
class GFlowNetSettings(GFlowNet):
    """Hyperparameters of every GFlowNet."""

    objective: Suppress[Fixed[Any]] = None


@dataclass(frozen=True)
class Choice:
    """A method and an environment with all their hyperparameters: with `GFNSettings`, everything that decides the numbers.

    method, env  names, or file.py:name      objective  hyperparameters of the objective, none for a baseline
    """

    method: str
    objective: dict[str, Any]
    hyperparameters: dict[str, Any]
    env: str
    env_settings: dict[str, Any]


def find_method(name: str) -> MethodEntry:
    """The registered entry, or one for file.py:objective (or a whole method): a dataclass, or an instance of one."""
    if name.partition(":")[0].endswith(".py"):
        found: Any = load_object(name)
        whole = all(hasattr(found, part) for part in ("init", "step", "log_pf", "log_z"))
        if not dataclasses.is_dataclass(found) or not (whole or all(hasattr(found, p) for p in ("uses", "loss", "log_z"))):
            raise UserError(
                f"{name} is not an objective: expected a dataclass with `uses`, loss(flows) -> [S] and log_z(flows)"
            )
        preset = {} if isinstance(found, type) else {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        make: Any = found if isinstance(found, type) else type(found)
        entry = MethodEntry(make, (make.__doc__ or "").split("\n")[0], not whole, preset)
        refuse_clashes(name, entry)
        return entry
    known = register()
    if name not in known:
        close = close_to(name, known, ", ".join(known))
        raise UserError(f"no objective is called {name!r}; close: {close}. `gflownet list` shows all, or file.py:objective")
    return known[name]


def refuse_clashes(name: str, entry: MethodEntry, env: str | None = None) -> None:
    """Check that each hyperparameter of an objective or method has a name of its own, because each is one flag.

    Args:
        name: the name under which the entry is known.
        entry: the objective or method.
        env: an environment whose hyperparameters are flags of the same command.

    Raises:
        UserError: a hyperparameter has the name of a shared setting, of the GFlowNet's or of an environment's hyperparameter.
    """
    others = {"settings that all methods share": _names(GFNSettings) | RESERVED}
    if entry.objective:
        others["hyperparameters of every GFlowNet"] = _names(GFlowNetSettings)
    if env is not None:
        others[f"hyperparameters of {env}"] = _names(find_env(env).settings)
    refuse_shared(name, _names(entry.make), others)


def defaults(method: str, env: str, preset: str = "recipe") -> tuple[GFNSettings, Choice, GFNRecipe]:
    """What a bare command uses."""
    recipe, entry, env_entry = recipe_for(env, preset), find_method(method), find_env(env)
    tuned = {**(recipe.common if entry.objective else {}), **recipe.hyperparameters.get(method, {})}
    shared = {name: value for name, value in tuned.items() if name in _names(GFNSettings)}
    train = dataclasses.replace(GFNSettings(states=recipe.states, batch_size=recipe.batch_size, preset=preset), **shared)
    tuned |= entry.preset  # what a name fixes is what sets it apart
    own = {name: value for name, value in tuned.items() if name in _names(entry.make)}
    common = {name: value for name, value in tuned.items() if name in _names(GFlowNetSettings)}
    objective, hyperparameters = (own, common) if entry.objective else ({}, own)
    unknown = set(recipe.env_settings) - _names(env_entry.settings)
    assert not unknown, unknown
    return train, Choice(method, objective, hyperparameters, env, dict(recipe.env_settings)), recipe


def _names(kind: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def make_method(choice: Choice) -> Method:
    entry = find_method(choice.method)
    try:
        if entry.objective:
            return GFlowNet(entry.make(**choice.objective), **choice.hyperparameters)
        return entry.make(**choice.hyperparameters)
    except (ValueError, TypeError) as error:
        raise UserError(f"{choice.method}: {error}") from error


def make_problem(choice: Choice, train: GFNSettings, method: Method, device: str) -> DagProblem:
    """UserError for a setting outside its range."""
    check_flags(train)
    try:
        env_settings = find_env(choice.env).settings(**choice.env_settings)
    except TypeError as error:
        raise UserError(f"{choice.env}: {error}") from error
    built = objects_per_iteration(method, train.batch_size)
    iterations = last = -(-train.states // built)
    if train.calls is not None:
        refuse_budget(choice.env, train, built * train.seeds)
        iterations = min(iterations, -(-train.calls // (built * train.seeds)))
    of_user = ".py" in choice.env or ".py" in str(choice.env_settings.get("reward", ""))
    env, calls = counted(make_dag_env(choice.env, env_settings, device), of_user, noted=train.calls is not None)
    problem = DagProblem(
        env,
        tuple(range(train.seed, train.seed + train.seeds)),
        train.batch_size,
        iterations,
        device,
        getattr(torch, train.dtype),
        calls,
        last,
    )
    try:
        needed = arrays(method, problem, metrics=train.metrics, window=train.window, top_k=train.top_k)
    except ValueError as error:
        raise UserError(str(error)) from error
    require(needed, HINTS, device)
    return problem


def refuse_budget(env: str, train: GFNSettings, batch: int) -> None:
    """UserError where --calls cannot be kept. batch: objects of all seeds in an iteration."""
    assert train.calls is not None
    if env != "molecules":
        raise UserError(f"--calls counts different molecules, and {env} has none: limit it by --states")
    if train.calls < batch:
        raise UserError(
            f"--calls is {train.calls:,}, less than one iteration of {batch:,} molecules: raise it, or lower --batch-size or "
            "--seeds"
        )
    if train.evaluation_calls:
        raise UserError("--calls counts all, and evaluations get none of them: leave out --evaluation-calls")
    if train.compile:
        raise UserError("--compile computes rewards in a CUDA graph, where --calls cannot be kept: leave out one of them")
    if train.metrics == "exact":
        raise UserError("--metrics exact asks for the reward of all molecules, --calls allows some: leave out one of them")


def choose_device(choice: Choice, train: GFNSettings) -> str:
    """The device of a new run; see `experiments.run.device.choose`."""
    use_deterministic(train.device, train.deterministic, train.compile)
    return choose(train.device, lambda: not _only_cpu(choice.env), lambda device: _iteration_seconds(choice, train, device))


def _only_cpu(env: str) -> bool:
    return ".py" in env and "device" not in inspect.signature(load_object(env)).parameters


def _iteration_seconds(choice: Choice, train: GFNSettings, device: str) -> float:
    use_matmul(device, "auto" if device == "cpu" else train.matmul)
    of_user = ".py" in str(choice.env_settings.get("reward", "")) or choice.env_settings.get("reward_command")
    if of_user or train.calls is not None:  # a trial calls no reward of the user's, and none that is counted
        plain = {"molecules": {"reward": "qed", "reward_command": ""}, "hypergrid": {"reward": "corners"}}[choice.env]
        choice = dataclasses.replace(choice, env_settings={**choice.env_settings, **plain})
        train = dataclasses.replace(train, calls=None)
    method = make_method(choice)
    problem = make_problem(choice, train, method, device)
    state = method.init(problem)
    step = step_of(train, method, problem, state, 0)
    for t in range(4):
        started = time.perf_counter()
        state, outcome = step(state, problem, t)
        outcome.log_reward.sum().item()
    return time.perf_counter() - started


def step_of(train: GFNSettings, method: Method, problem: DagProblem, state: Any, t: int) -> Step:
    """`method.step`; on a GPU with --compile captured from this state and iteration on. UserError where it cannot be."""
    if not train.compile or problem.device == "cpu":
        return method.step
    try:
        return captured(method, problem, state, t)
    except RewardFault:
        raise
    except (EnvironmentFault, ValueError) as error:
        raise UserError(f"--compile: {error}") from error


def as_config(choice: Choice, train: GFNSettings, device: str) -> dict[str, Any]:
    """What config.json holds: enough to make the same problem and method again, whatever the defaults will be."""
    method, entry = make_method(choice), find_method(choice.method)
    env_entry = find_env(choice.env)
    hyperparameters = {name: getattr(method, name) for name in sorted(_names(type(method)) - {"objective"})}
    objective = dataclasses.asdict(method.objective) if entry.objective else {}  # type: ignore[attr-defined]
    env_settings = env_entry.resolved(env_entry.settings(**choice.env_settings))
    return {
        "method": absolute(choice.method),
        "objective": objective,
        "hyperparameters": hyperparameters,
        "env": absolute(choice.env),
        "env_settings": dataclasses.asdict(env_settings),
        "title": env_entry.title(env_settings),
        **dataclasses.asdict(train),
        "device": device,
        "matmul": matmul_on(device, train.matmul),
    }


def from_config(config: dict[str, Any]) -> tuple[Choice, GFNSettings]:
    """UserError (exit code 3) when a setting is missing or unknown."""
    check_config(GFNSettings, config)
    check_device(config)
    try:
        parts = {f.name: _tuples(config[f.name]) for f in dataclasses.fields(Choice)}
        for f in dataclasses.fields(Choice):
            if not isinstance(parts[f.name], str if f.name in ("method", "env") else dict):
                raise TypeError(f"{f.name} is {parts[f.name]!r:.40}")
        check_config(find_env(parts["env"]).settings, parts["env_settings"])
        rest = {name: value for name, value in config.items() if name not in parts and name != "title"}
        if "log_z_rate" in parts["hyperparameters"]:  # of a GFlowNet; before 0.4 it could not be chosen
            parts["hyperparameters"] = {"overlap": "no", **parts["hyperparameters"]}
        return Choice(**parts), GFNSettings(**{"matmul": "float32", **rest})  # before 0.4 it could not be chosen
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"config.json does not fit this version: {error}", exit_code=3) from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(x) for name, x in value.items()}
    return tuple(value) if isinstance(value, list) else value
