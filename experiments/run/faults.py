"""What goes wrong while a run trains: faults as sentences with an exit code, and batches of updates that were skipped.

Code of users is an environment, an agent, an objective or a reward, in a file of theirs that the run's config names.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from envs.core import Diverged, EnvironmentFault, LearnerFault, RewardFault
from envs.raised import raised
from experiments.cli.errors import UserError
from experiments.cli.load import short_name
from experiments.run import safe

KEPT = 3
FAULT, REWARD_FAULT = 5, 6  # exit codes
BEFORE = "before the first iteration"
KINDS = {"algo": "agent", "method": "objective", "env": "environment"}


def keep_fault(folder: Path, iteration: int, batch: Mapping[str, Tensor]) -> None:
    """Writes faults/<iteration>.safetensors of a run folder and drops all but the last few; a full disk stops nothing."""
    faults = folder / "faults"
    with contextlib.suppress(OSError):
        safe.folder(faults, make=True)
        packed = save({name: x.detach().cpu().contiguous().clone() for name, x in batch.items()})
        safe.write(faults / f"{iteration:09d}.safetensors", packed)
        for old in list(safe.entries(faults, "*.safetensors"))[:-KEPT]:
            old.unlink()


def users_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Files of users that a config names, with what is in them, for a sentence."""
    found: dict[str, str] = {}

    def note(value: Any, kind: str) -> None:
        file, colon, _ = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon and file.endswith(".py"):
            known = found.get(file)
            found[file] = f"{known} or the {kind} {short_name(value)}" if known else f"the {kind} {short_name(value)}"

    for key, kind in KINDS.items():
        note(config.get(key), kind)
    settings = config.get("env_settings")
    settings = settings if isinstance(settings, dict) else {}
    functions: Any = {}  # of a formula for molecules
    with contextlib.suppress(ValueError, TypeError):  # a forged config is refused elsewhere
        functions = json.loads(settings.get("files") or "{}")
    for value in functions.values() if functions and isinstance(functions, dict) else (settings.get("reward"),):
        note(value, "reward")
    return found


@contextlib.contextmanager
def faults_as_sentences(where: str, config: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Whatever goes wrong in the code of users as UserError; errors of this project stay as they are.

    Args:
        where: the iteration or the round, for the message.
        config: of the run, which names the code of users.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        told = as_sentence(error, where, config or {})
        if told is error:
            raise
        raise told from error


def as_sentence(error: BaseException, where: str, config: Mapping[str, Any]) -> BaseException:
    """The UserError for a fault: exit code 6 for a reward, 5 for other code of users and for numbers; or the error itself."""
    if isinstance(error, UserError | ImportError):
        return error
    if isinstance(error, EnvironmentFault):
        name = config.get("env")
        text = str(error).replace("the environment", f"the environment {short_name(str(name))}", 1) if name else str(error)
        return UserError(f"{text}; {where}", FAULT)
    if isinstance(error, RewardFault):
        return UserError(f"{error}; {where}", REWARD_FAULT)
    if isinstance(error, Diverged | LearnerFault):
        return UserError(f"{error}; {where}", FAULT)
    theirs = users_code(config)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if name := theirs.get(frame.filename):
            return UserError(f"{name} {raised(error)}; {where}", REWARD_FAULT if " reward " in name else FAULT)
    if theirs or isinstance(error, SystemExit):
        blamed = ", ".join(theirs.values()) or "code of this process"
        return UserError(f"{blamed}: {where} {raised(error)}; is what it returned right? --debug shows more", FAULT)
    return UserError(f"{where}: {error}") if isinstance(error, ValueError) else error
