"""The Python interface behind `pgrl.train`, `gflownet.train` and `load`.

Keywords are the flags of the command line: the same parser reads them, so that
settings, recipes and bytes are the same.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import inspect
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from experiments.cli.errors import UserError
from experiments.run import checkpoint as checkpoints
from experiments.run.log import read_metrics

Array = NDArray[np.float64]


class TrainedRun:
    """A run folder that has been trained, in either tower.

    Attributes:
        folder: the run folder, which `resume`, `eval` and `curves` of the command line read too.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no run folder: it has no config.json")
        self.folder = folder

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
        return checkpoints.load_latest(self.folder / "checkpoints")[0]["state/theta"]

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

    def evaluate(self, episodes: int = 100) -> list[dict[str, float]]:
        """Sample fresh episodes with the trained policies, as `pgrl eval` does.

        Args:
            episodes: of each seed.

        Returns:
            For each seed: seed, episodes, return, return_std, discounted_return, length.
        """
        from experiments.pg.commands import evaluate

        return _records(lambda: evaluate(self.folder, episodes, None))


class GFlowNetRun(TrainedRun):
    """A run of `gflownet.train`."""

    def evaluate(self, samples: int = 10_000) -> list[dict[str, float]]:
        """Compare fresh samples and the policy with the target distribution, as `gflownet eval` does.

        Args:
            samples: fresh objects of each seed.

        Returns:
            For each seed the columns of `gflownet eval`.
        """
        from experiments.gfn.commands import evaluate

        return _records(lambda: evaluate(self.folder, samples, None))

    def sample(self, n: int, unique: bool = False, **options: Any) -> list[dict[str, Any]]:
        """Draw molecules from the trained policies, without exploration.

        Args:
            n: molecules.
            unique: no canonical SMILES twice.
            options: `seed`, `batch`, `scores`, `log_p`, `max_attempts`, `checkpoint`, `device`, as of `gflownet sample`.

        Returns:
            Records with smiles, reward, the terms of the reward, log_reward, log_p, blocks, seed.

        Raises:
            Shortfall: fewer than n were found within `max_attempts`.
        """
        from experiments.molecules.sample import samples

        return [dict(row) for row in samples(self.folder, n, unique=unique, **options)]


def train_policy_gradient(
    algo: str, env: str = "gridworld", out: Path | str | None = None, **settings: Any
) -> PolicyGradientRun:
    """See `pgrl.train`."""
    from experiments.cli.pgrl import run
    from experiments.pg.config import PGSettings, find_agent

    flags = _flags({"env": env, "out": _folder(out, "pgrl", settings), **settings})
    _, algo = _flags({"algo": algo})
    _refuse_unknown(settings, _names(PGSettings) | _names(find_agent(algo).make))
    return PolicyGradientRun(run([algo, *flags]))


def train_gflownet(env: str, objective: str, out: Path | str | None = None, **settings: Any) -> GFlowNetRun:
    """See `gflownet.train`."""
    from experiments.cli.gflownet import run
    from experiments.gfn.config import GFlowNetSettings, GFNSettings, find_method
    from experiments.gfn.environments import find_env

    flags = _flags({"objective": objective, "out": _folder(out, "gflownet", settings), **settings})
    _, env = _flags({"env": env})
    entry = find_method(objective)
    own = _names(entry.make) | (_names(GFlowNetSettings) - {"objective"} if entry.objective else set())
    _refuse_unknown(settings, _names(GFNSettings) | own | _names(find_env(env).settings))
    return GFlowNetRun(run([env, *flags]))


def load(folder: Path | str) -> PolicyGradientRun | GFlowNetRun:
    """Open any run folder.

    Args:
        folder: made by the command line or by `train`.

    Returns:
        The run.

    Raises:
        UserError: there is no run in the folder.
    """
    from experiments.run.run import Run

    kind = PolicyGradientRun if "algo" in Run.open(Path(folder)).config else GFlowNetRun
    return kind(Path(folder))


def _folder(out: Path | str | None, program: str, settings: Mapping[str, Any]) -> Path:
    if out is None and settings.get("resume"):
        raise UserError("got resume=True without out: name the run folder to continue")
    return Path(out) if out is not None else Path(tempfile.mkdtemp(prefix=f"{program}-")) / "run"


def _names(kind: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def _refuse_unknown(settings: Iterable[str], known: set[str]) -> None:
    for name in settings:
        if name not in known | {"quiet", "resume"}:
            close = difflib.get_close_matches(name, known, 3, 0.5)
            raise UserError(f"got {name}, which is no setting here; close: {', '.join(close or sorted(known))}")


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Keywords as the command line writes them."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple | list):
            flags += [f"--{flag}", *map(str, value)]
        elif not isinstance(value, str | int | float | Path | None):
            raise UserError(_not_plain(name, value))
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def _not_plain(name: str, value: Any) -> str:
    """Why a function or an object is refused: a run folder has to say how to make it again."""
    what = getattr(value, "__name__", type(value).__name__)
    kind = "the function" if inspect.isroutine(value) else "the class" if isinstance(value, type) else "an object,"
    return f"got {name} as {kind} {what}, expected text or numbers: put it into a file and give {name}='my_file.py:name'"


def _records(command: Callable[[], None]) -> list[dict[str, float]]:
    """The CSV that a command prints, as records."""
    text = io.StringIO()
    with redirect_stdout(text):
        command()
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text.getvalue()))]
