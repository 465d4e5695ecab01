"""The Python interface behind `pgrl.train`, `gflownet.train` and `load`.

Keywords are the flags of the command line: the same parser reads them, so that
settings, recipes and bytes are the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.core import DagEnv
from experiments.cli.errors import UserError
from experiments.cli.verbs import Record
from experiments.run.log import read_metrics

Array = NDArray[np.float64]


class TrainedRun:
    """A run folder that has been trained, by either package.

    Attributes:
        folder: the run folder, which `resume`, `eval` and `curves` of the command line read too.
    """

    def __init__(self, folder: Path, trust: bool = False) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no run folder: it has no config.json")
        self.folder = folder
        self._trust = trust

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder)

    @cached_property
    def metrics(self) -> Mapping[str, Array]:
        """Every logged tag: an array [rows, seeds], or [rows] for one number a row; NaN where a value was not finite."""
        tags = {tag: None for row in self._rows for tag in row if not tag.startswith("hist/")}
        return {tag: np.array([row[tag] for row in self._rows if tag in row], dtype=np.float64) for tag in tags}

    def steps(self, tag: str) -> Array:
        """The x-axis of `metrics[tag]`, [rows]: environment steps of a seed, or objects that a seed visited."""
        return np.array([row["step"] for row in self._rows if tag in row], dtype=np.float64)

    @cached_property
    def theta(self) -> Tensor:
        """Parameters of the last checkpoint, [S, D]."""
        from experiments.run.run import Run, RunError

        tensors, _ = Run.open(self.folder).load()
        if "state/theta" not in tensors:
            raise RunError(f"the last checkpoint of {self.folder} has no parameters", exit_code=3)
        return tensors["state/theta"]

    def curves(self, out: Path | str | None = None, metric: str | None = None) -> Path:
        """Draw a metric over training, with the interquartile mean over seeds and its 95 % interval.

        Args:
            out: the figure, .png or .svg; None: `curves.png` in the run folder.
            metric: a tag; None: eval/gap where it is exact, else the first that is logged.

        Returns:
            The figure's path; the numbers are beside it as CSV.
        """
        from experiments.plots.curves import curves

        return curves([self.folder], Path(out) if out else self.folder / "curves.png", metric)


class PolicyGradientRun(TrainedRun):
    """A run of `pgrl.train`."""

    def evaluate(self, episodes: int = 100) -> list[Record]:
        """Sample fresh episodes with the trained policies, as `pgrl eval` does.

        Args:
            episodes: of each seed.

        Returns:
            For each seed: seed, episodes, return, return_std, discounted_return, length.
        """
        from experiments.pg.commands import evaluate

        return evaluate(self.folder, episodes, trust=self._trust)


class GFlowNetRun(TrainedRun):
    """A run of `gflownet.train`."""

    def evaluate(self, samples: int = 10_000, evaluation_calls: int | None = None) -> list[Record]:
        """Compare fresh samples and the policy with the target distribution, as `gflownet eval` does.

        Args:
            samples: fresh objects of each seed.
            evaluation_calls: most calls of the reward for them; None: without limit, but none where a function of yours scores
                molecules.

        Returns:
            A record for each seed, with the columns of `gflownet eval`. `l1` is the distance of fresh samples, `l1_floor` the
            expected distance of as many independent draws from the target, `exact_l1` that of the policy's own distribution.
        """
        from experiments.gfn.commands import evaluate

        return evaluate(self.folder, samples, None, evaluation_calls, trust=self._trust)

    def sample(self, n: int, unique: bool = False, **options: Any) -> list[dict[str, Any]]:
        """Draw molecules from the trained policies, without exploration.

        Args:
            n: molecules.
            unique: no canonical SMILES twice.
            options: `seed`, `batch`, `scores`, `log_p`, `max_attempts`, `checkpoint`, `device`, `workers` (default: 0), as of
                `gflownet sample`.

        Returns:
            Records with smiles, reward, the terms of the reward, log_reward, log_p, blocks, seed.

        Raises:
            Shortfall: fewer than n were found within `max_attempts`.
        """
        from experiments.molecules.sample import samples

        return [dict(row) for row in samples(self.folder, n, unique=unique, **{"trust": self._trust, **options})]


def train_policy_gradient(
    algo: Any, env: Any = "gridworld", out: Path | str | None = None, **settings: Any
) -> PolicyGradientRun:
    """See `pgrl.train`."""
    from experiments.cli.pgrl import run
    from experiments.pg.config import PGSettings, find_agent
    from pgrl.registry import register

    name, fields = _named("algo", algo, register())
    _refuse_unknown(settings, _names(PGSettings) | _names(find_agent(name).make))
    settings = {"env": env, "out": _folder(out, "pgrl", settings), **_together(algo, fields, settings)}
    return PolicyGradientRun(_trained(run, [name, *_flags(settings)]))


def train_gflownet(env: Any, objective: Any, out: Path | str | None = None, **settings: Any) -> GFlowNetRun:
    """See `gflownet.train`."""
    from experiments.cli.gflownet import run
    from experiments.gfn.config import GFlowNetSettings, GFNSettings, find_method
    from experiments.gfn.environments import find_env
    from gflownet.registry import register

    env = _text("env", env)
    name, fields = _named("objective", objective, register())
    entry = find_method(name)
    own = _names(entry.make) | (_names(GFlowNetSettings) - {"objective"} if entry.objective else set())
    _refuse_unknown(settings, _names(GFNSettings) | own | _names(find_env(env).settings))
    settings = {"objective": name, "out": _folder(out, "gflownet", settings), **_together(objective, fields, settings)}
    return GFlowNetRun(_trained(run, [env, *_flags(settings)]))


def make_dag_env(name: Any, device: str = "cpu", **settings: Any) -> DagEnv:
    """See `gflownet.make_env`."""
    from experiments.gfn.build import make_dag_env as make
    from experiments.gfn.environments import find_env

    name = _text("name", name)
    kind = find_env(name).settings
    _refuse_unknown(settings, _names(kind), own=())
    return make(name, kind(**{key: _text(key, x) if callable(x) else x for key, x in settings.items()}), device)


def load(folder: Path | str, trust: bool = False) -> PolicyGradientRun | GFlowNetRun:
    """Open any run folder.

    Args:
        folder: made by the command line or by `train`.
        trust: execute the files that the run names (rewards, environments) even if they changed or are not yours.

    Returns:
        The run.

    Raises:
        UserError: there is no run in the folder.
    """
    from experiments.run.run import Run

    kind = PolicyGradientRun if "algo" in Run.open(Path(folder)).config else GFlowNetRun
    return kind(Path(folder), trust)


def _trained(run: Callable[[list[str]], Path], arguments: list[str]) -> Path:
    """The folder that `run` gives; UserError where the parser of the command line refuses a value."""
    try:
        return run(arguments)
    except SystemExit as stopped:
        raise UserError(
            f"got a value that its setting does not take, see the message above: {' '.join(arguments)}"
        ) from stopped


def _folder(out: Path | str | None, program: str, settings: Mapping[str, Any]) -> Path:
    if out is None and settings.get("resume") in (True, "auto"):
        raise UserError("got resume=True without out: name the run folder to continue")
    return Path(out) if out is not None else Path(tempfile.mkdtemp(prefix=f"{program}-")) / "run"


def _names(kind: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def _refuse_unknown(settings: Iterable[str], known: set[str], own: Collection[str] = ("quiet", "resume", "trust")) -> None:
    for name in settings:
        if name not in known and name not in own:
            close = difflib.get_close_matches(name, known, 3, 0.5)
            raise UserError(f"got {name}, which is no setting here; close: {', '.join(close or sorted(known))}")


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Keywords as the command line writes them; resume=True is --resume auto."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "resume" and isinstance(value, bool | np.bool_):
            value = "auto" if value else "never"
        if isinstance(value, bool | np.bool_):
            flags.append(flag if value else f"--no{flag[1:]}")
        elif isinstance(value, tuple | list):
            flags += [flag, *(_text(name, x) for x in value)]
        else:
            flags.append(f"{flag}={_text(name, value)}")
    return flags


def _text(name: str, value: Any) -> str:
    """A value as the command line writes it. UserError for an object that a run folder could not make again."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) >= 10**1000:
        raise UserError(f"{name} has more than 1,000 digits, expected a smaller number")
    if isinstance(value, str | int | float | Path | None):
        return str(value)
    found = _in_file(value) if inspect.isfunction(value) else None
    if found is None:
        raise UserError(_not_plain(name, value))
    return found


def _in_file(value: Any) -> str | None:
    """`/path/file.py:name` of a function or class at the top level of a module that was imported from a file, else None.

    Not for the script or notebook that runs: to load it again would be to run it again.
    """
    module = sys.modules.get(value.__module__)
    file = getattr(module, "__file__", None) or ""
    outermost = getattr(module, value.__name__, None) is value
    return f"{file}:{value.__name__}" if outermost and file.endswith(".py") and value.__module__ != "__main__" else None


def _named(name: str, value: Any, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An agent, an objective or its class as (the name that the command line knows, its hyperparameters)."""
    if isinstance(value, str):
        return value, {}
    kind = value if isinstance(value, type) else type(value)
    ours = next((other for other, entry in known.items() if entry.make is kind and not entry.preset), None)
    found = ours or (_in_file(kind) if dataclasses.is_dataclass(kind) else None)
    if found is None:
        raise UserError(_not_plain(name, value))
    return found, {} if value is kind else {f.name: getattr(value, f.name) for f in dataclasses.fields(kind) if f.init}


def _together(given: Any, fields: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of an object and other settings; UserError where one is given in both."""
    if both := sorted(set(fields) & set(settings)):
        raise UserError(f"got {both[0]} twice, in {given!r} and as a setting: leave one of them out")
    return {**fields, **settings}


def _not_plain(name: str, value: Any) -> str:
    """Why a function or an object is refused: a run folder has to say how to make it again."""
    what = getattr(value, "__name__", type(value).__name__)
    kind = "the function" if inspect.isroutine(value) else "the class" if isinstance(value, type) else "an object,"
    return f"got {name} as {kind} {what}, expected text or numbers: put it into a file and give {name}='my_file.py:name'"
