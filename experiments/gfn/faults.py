"""What goes wrong while a method runs: faults as sentences, and updates that were skipped because they were not finite.

A method counts them in its state, in tensors called `skipped` (in all) and `failing` (in a row), [S].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from envs.core import Diverged, EnvironmentFault, RewardFault
from envs.pytree import tensors_of
from experiments.cli.errors import UserError

KEPT = 3
REWARD_FAULT = 6  # exit code


def skipped(state: Any) -> dict[str, Tensor]:
    """The row's entry train/skipped, [S]; none for a method that does not count."""
    counts = [x for name, x in tensors_of(state).items() if name.rpartition("/")[2] == "skipped"]
    return {"train/skipped": counts[0]} if counts else {}


def failing(state: Any) -> int:
    """Updates skipped in a row, of the seed where they are most."""
    return max((int(x.max()) for name, x in tensors_of(state).items() if name.rpartition("/")[2] == "failing"), default=0)


def keep_fault(folder: Path, iteration: int, batch: dict[str, Tensor]) -> None:
    """Writes faults/<iteration>.safetensors of a run folder and drops all but the last few; a full disk stops nothing."""
    faults = folder / "faults"
    with contextlib.suppress(OSError):
        faults.mkdir(exist_ok=True)
        save_file(
            {name: x.detach().cpu().contiguous().clone() for name, x in batch.items()}, faults / f"{iteration:09d}.safetensors"
        )
        for old in sorted(faults.glob("*.safetensors"))[:-KEPT]:
            old.unlink()


@contextlib.contextmanager
def faults_as_sentences(where: str) -> Iterator[None]:
    """Faults of environment, reward and objective as UserError; `where` names the iteration or the round."""
    try:
        yield
    except (EnvironmentFault, Diverged) as error:
        raise UserError(f"{error}; {where}", exit_code=5) from error
    except RewardFault as error:
        raise UserError(f"{error}; {where}", exit_code=REWARD_FAULT) from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
