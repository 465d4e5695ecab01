"""The settings of a training run: what the command line takes, what config.json holds, and how both become a Problem."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from envs.core import Env
from envs.mdp.bounded import BoundedActions
from envs.mdp.mujoco_env import MujocoEnv
from envs.ranges import Count, Fraction, Natural, Positive, Range, Rows, Seed, Seeds, Steps, Weight, Widths, Workers
from experiments.cli.errors import UserError
from experiments.cli.load import absolute, load_object, short_name
from experiments.cli.ranges import check_config, check_flags
from experiments.cli.verbs import RESERVED, refuse_shared
from experiments.pg.build import make_env
from experiments.pg.environments import OWN
from experiments.pg.memory import HINTS, arrays
from experiments.recipes.pg.recipe import PGRecipe
from experiments.recipes.pg.registry import recipe_for
from experiments.run.device import Device, check_device, choose, use_deterministic
from experiments.run.memory import require
from pgrl.agent import Agent
from pgrl.baselines import Baseline, baseline_for
from pgrl.nets import TabularNet
from pgrl.policy import Policy, policy_for
from pgrl.problem import Problem
from pgrl.registry import AgentEntry, register
from pgrl.theory import suggest_horizon


@dataclass(frozen=True)
class PGSettings:
    """Settings shared by all algorithms. Defaults are those of the environment's recipe."""

    env: str = "gridworld"
    """environment: gridworld, garnet, lqr, a Gymnasium id, or file.py:make"""
    seeds: Seeds = 10
    """number of seeds, which train in parallel"""
    seed: Seed = 0
    """first seed; the others are seed + 1, seed + 2, ..."""
    env_steps: Steps = 100_000
    """environment steps of each seed; the steps of every sampled episode count"""
    preset: str = "recipe"
    """preset of hyperparameters: recipe, theorem (the exponents of the theorem, η_0 = 1) or constant (no decay, η = 0.3)"""
    discount: Weight = 0.99
    """discount factor; rewards are discounted from time 0"""
    horizon: Count | Literal["auto"] | None = None
    """steps after which a training episode is cut and begins anew; default: the environment's own. auto is log(T + 1)/(1 -
    discount) for the T batches of whole episodes that env_steps allow. Evaluation episodes are never cut"""
    batch_size: Count = 1
    """episodes of a seed at each parameter point that is sampled"""
    hidden: Widths = ()
    """widths of the policy's hidden layers; none: softmax over a table (finite MDPs) or a linear policy"""
    activation: str = "tanh"
    """activation of the hidden layers: tanh or softplus"""
    baseline: str = "none"
    """baseline of the gradient estimate: none, leave-one-out, time, value or value-net; all unbiased"""
    causal: bool = False
    """causal (DiCE) form of the Hessian estimate: same mean, less variance"""
    undiscounted_states: bool = False
    """biased: no factor γ^t of the gradient at time t, as in most libraries: its weight is Σ_{h≥t} γ^(h-t) r_h"""
    gae_lambda: Fraction = 1.0
    """biased: λ of generalised advantage estimation; needs the baseline time, value or value-net; 1 is off"""
    log_std: Annotated[float, Range(-50, 50)] = 0.0
    """initial log standard deviation of Gaussian policies"""
    learn_std: bool = True
    """learn the standard deviation"""
    bias: bool = True
    """biases in the policy's network"""
    output_scale: Positive = 1.0
    """factor of the initial weights of the policy's last layer"""
    normalise_steps: Natural = 0
    """steps of the initial policy whose observations give the mean and standard deviation that all observations are normalised
    by, for good; they count. 0: raw observations"""
    bounds: Literal["none", "clip", "tanh"] = "none"
    """how actions are brought within the environment's bounds; densities are those of the action before. Gymnasium
    environments that are not MuJoCo tasks always clip"""
    dtype: str = "float32"
    """precision of parameters and gradients: float32 or float64"""
    device: Device = "auto"
    deterministic: bool = False
    """on a GPU, take only algorithms that give the same bits every time (slower); the CPU's always do"""
    workers: Workers | None = None
    """worker processes that sample episodes; default: one for each further CPU with MuJoCo, none elsewhere"""
    max_faults: Count = 10
    """stop after this many consecutive updates of a seed that were skipped because they were not finite"""
    evaluations: Rows = 20
    """number of evaluations, on episodes that do not count as training"""
    eval_episodes: Count = 5
    """episodes of each seed in an evaluation (none where J is known exactly)"""
    log_rows: Rows = 200
    """number of rows of metrics"""
    checkpoints: Rows = 20
    """number of checkpoints, of which the last three are kept"""
    best: str = "none"
    """metric of evaluations, e.g. eval/return or eval/gap: the checkpoint of its best value in training is kept"""


def find_agent(algo: str) -> AgentEntry:
    """The registered entry for a name, or one for `file.py:agent` (a dataclass of hyperparameters, or an instance of one)."""
    if algo.partition(":")[0].endswith(".py"):
        found: Any = load_object(algo)
        if not dataclasses.is_dataclass(found) or not (hasattr(found, "init") and hasattr(found, "step")):
            raise UserError(f"{algo} is not an agent: expected a dataclass with methods init(theta) and step(state, world)")
        preset = {} if isinstance(found, type) else {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        make: Any = found if isinstance(found, type) else type(found)
        shared = {f.name for f in dataclasses.fields(PGSettings)} | RESERVED
        refuse_shared(algo, {f.name for f in dataclasses.fields(make)}, {"shared settings": shared})
        return AgentEntry(make, preset=preset)
    agents = register()
    if algo not in agents:
        close = difflib.get_close_matches(algo, agents, 3, 0.4)
        raise UserError(
            f"no algorithm is called {algo!r}; close: {', '.join(close) or ', '.join(agents)}. `pgrl list` shows all"
        )
    return agents[algo]


def defaults(algo: str, env: str, preset: str = "recipe") -> tuple[PGSettings, dict[str, Any], PGRecipe]:
    """What a bare command uses: settings and hyperparameters of the recipe, schedules as `preset` says."""
    recipe, entry = recipe_for(env), find_agent(algo)
    names = {f.name for f in dataclasses.fields(PGSettings)} & {f.name for f in dataclasses.fields(PGRecipe)}
    chosen = {name: getattr(recipe, name) for name in names} | recipe.settings.get(algo, {})
    settings = PGSettings(env=env, preset=preset, **chosen)
    hyperparameters = {f.name for f in dataclasses.fields(entry.make)}  # type: ignore[arg-type]
    tuned = recipe.hyperparameters.get(algo, {})
    step = {name: value for name, value in tuned.items() if name in ("step_size", "step_norm")}  # a length, and its norm
    presets = {"recipe": tuned, "theorem": step, "constant": {**step, "step_power": 0.0, "eta": 0.3, "eta_power": 0.0}}
    if preset not in presets:
        raise UserError(f"--preset is {preset!r}, expected {', '.join(presets)}")
    chosen = {**presets[preset], **entry.preset}  # what a name fixes is what sets it apart
    return settings, {name: value for name, value in chosen.items() if name in hyperparameters}, recipe


def make_agent(algo: str, hyperparameters: dict[str, Any]) -> Agent:
    try:
        return find_agent(algo).make(**hyperparameters)
    except (ValueError, TypeError) as error:
        raise UserError(f"{algo}: {error}") from error


def make_problem(train: PGSettings, device: str, hvp_batch_size: int | None = None) -> Problem:
    """UserError for a setting outside its range. hvp_batch_size: of the agent."""
    check_flags(train)
    if train.dtype not in ("float32", "float64"):
        raise UserError(f"--dtype is {train.dtype!r}, expected float32 or float64")
    if train.baseline == "leave-one-out" and train.batch_size < 2:
        raise UserError("the leave-one-out baseline needs --batch-size 2 or more")
    if train.gae_lambda < 1 and train.baseline in ("none", "leave-one-out"):
        raise UserError(f"--gae-lambda needs a baseline of values, got {train.baseline}: use --baseline value")
    env = make_env(train.env, own_horizon(train), device)
    horizon = training_horizon(train, env)
    try:
        if train.bounds != "none":
            env = BoundedActions(env, train.bounds)
        policy = policy_for(
            env,
            hidden=train.hidden,
            activation=train.activation,
            log_std=train.log_std,
            learn_std=train.learn_std,
            bias=train.bias,
            output_scale=train.output_scale,
            normalise=train.normalise_steps > 0,
            dtype=getattr(torch, train.dtype),
        )
        size, states = observation_size(env)
        baseline = baseline_for(
            train.baseline,
            discount=train.discount,
            horizon=horizon,
            observation_size=size,
            n_states=states,
            undiscounted_states=train.undiscounted_states,
            dtype=getattr(torch, train.dtype),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    require(sizes(train, env, policy, baseline, horizon, hvp_batch_size), HINTS, device)
    return Problem(
        env,
        policy,
        train.discount,
        tuple(range(train.seed, train.seed + train.seeds)),
        horizon,
        train.batch_size,
        train.causal,
        baseline,
        device,
        undiscounted_states=train.undiscounted_states,
        gae_lambda=train.gae_lambda,
        normalise_steps=train.normalise_steps,
    )


def biases(config: Mapping[str, Any], steps: bool = True) -> list[str]:
    """What is biased in a run, for people: `no γ^t`, `GAE 0.95`, and with `steps` also `Adam's steps`; empty if nothing is."""
    found = ["no γ^t"] if config.get("undiscounted_states") else []
    if config.get("gae_lambda", 1.0) < 1:
        found.append(f"GAE {config['gae_lambda']:g}")
    if (clip := config.get("hyperparameters", {}).get("clip_correction")) is not None:
        found.append(f"correction clipped at {clip:g}")
    entry = register().get(str(config.get("algo")))
    if steps and entry and entry.biased:
        found.append(entry.biased)
    return found


def own_horizon(train: PGSettings) -> int | None:
    """The length of an episode for an environment that has none of its own."""
    return train.horizon if isinstance(train.horizon, int) else None


def training_horizon(train: PGSettings, env: Env) -> int:
    """Steps of a training episode."""
    if train.horizon == "auto":
        return auto_horizon(train.env_steps, train.batch_size, train.discount, env.horizon)
    return train.horizon or env.horizon


def auto_horizon(env_steps: int, batch_size: int, discount: float, own: int) -> int:
    """⌈log(T + 1)/(1 - discount)⌉ for the T iterations that `env_steps` allow, at most `own`."""
    horizon = own
    for _ in range(10 if discount < 1 else 0):  # T depends on the horizon, by its logarithm
        horizon = min(own, suggest_horizon(max(1, env_steps // (batch_size * horizon)), discount))
    return horizon


def sizes(
    train: PGSettings, env: Env, policy: Policy, baseline: Baseline, horizon: int, hvp_batch_size: int | None = None
) -> dict[str, int]:
    """Estimated bytes of the arrays of a run, by what they are for."""
    names = ("seeds", "batch_size", "env_steps", "discount", "eval_episodes")
    shared = {name: getattr(train, name) for name in names}
    return arrays(env, policy, baseline, observation_size(env)[0], horizon=horizon, hvp_batch_size=hvp_batch_size, **shared)


def observation_size(env: Env) -> tuple[int, int]:
    """(numbers in an observation, number of states where an observation is a state)."""
    import gymnasium
    import numpy as np

    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return 1, int(space.n)
    return int(np.prod(space.shape or ())), 0


def choose_device(train: PGSettings) -> str:
    """The device of a new run; see `experiments.run.device.choose`."""

    def on_tensors() -> bool:
        return train.env.partition(":")[0] in OWN or make_env(train.env, own_horizon(train)).backend == "torch"

    use_deterministic(train.device, train.deterministic)
    device = choose(train.device, on_tensors, lambda device: _iteration_seconds(make_problem(train, device)))
    if device.startswith("cuda") and not on_tensors():
        raise UserError(f"--device {train.device}: {train.env} runs on the CPU, episode by episode; use --device cpu")
    return device


def _iteration_seconds(problem: Problem) -> float:
    import time

    theta, _ = problem.start()
    for t in range(3):
        started = time.perf_counter()
        iteration = problem.iteration(t)
        iteration.gradient(theta, *iteration.sample(theta)).sum().item()
    return time.perf_counter() - started


def as_config(algo: str, train: PGSettings, hyperparameters: dict[str, Any], device: str) -> dict[str, Any]:
    """What config.json holds: enough to make the same problem and agent again."""
    slope, agent = find_agent(algo).slope, make_agent(algo, hyperparameters)
    if train.baseline == "leave-one-out" and getattr(agent, "hvp_batch_size", None) == 1:
        raise UserError("the leave-one-out baseline needs --hvp-batch-size 2 or more")
    hyperparameters = {f.name: getattr(agent, f.name) for f in dataclasses.fields(type(agent))}  # type: ignore[arg-type]
    rest = {**dataclasses.asdict(train), "env": _absolute(train.env)}
    env = make_env(train.env, own_horizon(train), device)
    if isinstance(train.horizon, int) and train.horizon > env.horizon:  # of new runs: older ones keep what they have
        raise UserError(
            f"--horizon is {train.horizon:,}, but an episode of {short_name(train.env)} has {env.horizon:,} steps: leave it out"
        )
    rest["workers"] = worker_count(train, env)
    if train.horizon == "auto":
        rest["horizon"] = training_horizon(train, env)
    return {
        "algo": _absolute(algo),
        "hyperparameters": hyperparameters,
        **rest,
        "device": device,
        "theory_slope": slope and -slope,
    }


def _absolute(name: str) -> str:
    """A name whose files are found from any folder: file.py:name, gridworld:FILE."""
    head, _, tail = name.partition(":")
    return f"{head}:{Path(tail).resolve()}" if head == "gridworld" and tail else absolute(name)


def from_config(config: dict[str, Any]) -> tuple[str, PGSettings, dict[str, Any]]:
    """UserError (exit code 3) when a setting is missing or unknown."""
    rest = {key: value for key, value in config.items() if key not in ("algo", "hyperparameters", "theory_slope")}
    check_config(PGSettings, rest)
    check_device(config)
    try:
        rest["hidden"] = tuple(rest["hidden"])
        if not isinstance(config["algo"], str) or not isinstance(config["hyperparameters"], dict):
            raise TypeError("algo is no text, or hyperparameters is no table")
        return config["algo"], PGSettings(**rest), config["hyperparameters"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json does not fit this version: {error}", exit_code=3) from error


def worker_count(train: PGSettings, env: Env) -> int:
    """How many workers a run gets."""
    if train.workers is not None:
        if train.workers and env.backend != "numpy":
            raise UserError(f"--workers is for environments outside torch; {train.env} is a tensor program: leave it out")
        return train.workers
    return cpus() - 1 if isinstance(getattr(env, "env", env), MujocoEnv) else 0


def cpus() -> int:
    return len(os.sched_getaffinity(0))


def tabular(problem: Problem) -> bool:
    return isinstance(problem.policy.net, TabularNet)
