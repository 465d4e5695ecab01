"""What a method may not return, updates that it skipped, and whether a failed iteration has changed its state.

A method counts skipped updates in its state, in tensors called `skipped` (in all) and `failing` (in a row), [S].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.core import LearnerFault
from envs.pytree import numbers_of, tensors_of
from gflownet.problem import DagProblem, Outcome
from gflownet.static.capture import Step


def skipped(state: Any) -> dict[str, Tensor]:
    """The row's entry train/skipped, [S]; none for a method that does not count."""
    counts = [x for name, x in tensors_of(state).items() if name.rpartition("/")[2] == "skipped"]
    return {"train/skipped": counts[0]} if counts else {}


def failing(state: Any) -> int:
    """Updates skipped in a row, of the seed where they are most."""
    return max((int(x.max()) for name, x in tensors_of(state).items() if name.rpartition("/")[2] == "failing"), default=0)


def versions(state: Any) -> list[int]:
    """How often each tensor of a state was changed in place, as torch counts it.

    Not those of a replay buffer: the iteration that is repeated writes the same trajectories to the same rows.
    """
    return [x._version for name, x in tensors_of(state).items() if not name.startswith("replay/")]


def stepped(step: Step, state: Any, problem: DagProblem, t: int) -> tuple[Any, Outcome]:
    """(state, outcome) of `step`. LearnerFault where they do not fit the state before."""
    made: Any = step(state, problem, t)
    if wrong := _wrong(state, made, len(problem.seeds)):
        raise LearnerFault(f"the method returned {wrong}")
    return made[0], made[1]


def _wrong(state: Any, made: Any, seeds: int) -> str:
    """What is wrong with the result of a step; "" where nothing is."""
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], Outcome):
        return f"a {type(made).__name__}, expected (state, Outcome)"
    new, outcome = made
    if type(new) is not type(state):
        return f"a state of type {type(new).__name__}, expected {type(state).__name__}"
    old, now = ({name: (x.shape, x.dtype) for name, x in tensors_of(part).items()} for part in (state, new))
    if old != now or set(numbers_of(state)) != set(numbers_of(new)):
        name = next((name for name in old if old[name] != now.get(name)), "a number")
        return f"a state with another {name}: {now.get(name)}, expected {old.get(name)}"
    objects, log_reward = outcome.objects, outcome.log_reward
    if not isinstance(objects, Tensor) or not isinstance(log_reward, Tensor):
        return f"objects and rewards of types {type(objects).__name__} and {type(log_reward).__name__}, expected tensors"
    if log_reward.dim() != 2 or len(log_reward) != seeds or objects.shape[:2] != log_reward.shape:
        shapes = f"rewards of shape {list(log_reward.shape)} for objects of shape {list(objects.shape)}"
        return f"{shapes}, expected [{seeds}, n] for both"
    for tag, x in outcome.metrics.items():
        if not isinstance(x, int | float) and not (isinstance(x, Tensor) and x.shape in ((), (seeds,))):
            got = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else f"of type {type(x).__name__}"
            return f"metric {tag!r} {got}, expected a number or one for each seed, [{seeds}]"
    return ""


def begun(state: Any) -> Any:
    """The state that `init` returned. LearnerFault where it is not one."""
    if not hasattr(state, "_asdict"):
        raise LearnerFault(f"init of the method returned a {type(state).__name__}, expected a NamedTuple")
    for name, x in tensors_of(state).items():
        if x.is_floating_point() and bool(torch.isnan(x).any()):
            raise LearnerFault(f"init of the method returned {name} with NaN")
    return state
