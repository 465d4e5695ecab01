"""What an agent may not return, and updates that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from envs.core import LearnerFault
from pgrl.agent import Agent, Metrics
from pgrl.problem import Iteration


def begun(agent: Agent, theta: Tensor) -> Any:
    """The state that `agent.init` returns. LearnerFault where it is not one."""
    state = agent.init(theta)
    wrong = ""
    if not hasattr(state, "_asdict") or not {"theta", "d"} <= set(state._fields):
        wrong = f"a {type(state).__name__}, expected a NamedTuple with theta and d"
    else:
        for name, x in state._asdict().items():
            wrong = wrong or _wrong_at_first(name, x, theta)
    if wrong:
        raise LearnerFault(f"init of the agent {type(agent).__name__} returned {wrong}")
    return type(state)(*(x.detach() if isinstance(x, Tensor) else x for x in state))


def _wrong_at_first(name: str, x: Any, theta: Tensor) -> str:
    """What is wrong with a part of the first state; "" where nothing is."""
    like = name in ("theta", "d")
    if not isinstance(x, Tensor):
        fits = isinstance(x, int | float) and not like
        return "" if fits else f"{name} of type {type(x).__name__}, expected a {'tensor' if like else 'tensor or a number'}"
    if x.shape != theta.shape if like else x.shape[:1] != theta.shape[:1]:
        return f"{name} of shape {list(x.shape)}, expected {list(theta.shape) if like else [len(theta), '...']}"
    if like and x.dtype != theta.dtype:
        return f"{name} of type {x.dtype}, expected {theta.dtype}"
    return "" if bool(x.isfinite().all()) else f"{name} with NaN or infinity, expected finite numbers"


def stepped(agent: Agent, state: Any, world: Iteration, rows: int) -> tuple[Any, Metrics]:
    """(state, metrics) that `agent.step` returns. LearnerFault where they do not fit the state before, of `rows` seeds."""
    made: Any = agent.step(state, world)
    if wrong := _wrong(state, made, rows) or (
        "" if world.sampled else "a state, but it sampled no episode: it would never end"
    ):
        raise LearnerFault(f"step of the agent {type(agent).__name__} returned {wrong}")
    new, metrics = made
    return type(state)(*(x.detach() if isinstance(x, Tensor) else x for x in new)), metrics


def _wrong(state: Any, made: Any, rows: int) -> str:
    """What is wrong with the result of a step; "" where nothing is."""
    if not isinstance(made, tuple) or len(made) != 2 or hasattr(made, "_asdict"):
        return f"a {type(made).__name__}, expected (state, metrics)"
    new, metrics = made
    if type(new) is not type(state):
        return f"a state of type {type(new).__name__}, expected {type(state).__name__}"
    for name, old in state._asdict().items():
        x = getattr(new, name)
        if isinstance(old, Tensor):
            if not isinstance(x, Tensor):
                return f"{name} of type {type(x).__name__}, expected a tensor"
            if (x.shape, x.dtype, x.device) != (old.shape, old.dtype, old.device):
                return f"{name} {_form(x)}, expected {_form(old)}"
        elif not isinstance(x, int | float):
            return f"{name} of type {type(x).__name__}, expected {type(old).__name__}"
    if not isinstance(metrics, dict):
        return f"metrics of type {type(metrics).__name__}, expected a dict"
    for tag, x in metrics.items():
        number = isinstance(x, int | float) or (isinstance(x, Tensor) and x.shape in ((), (rows,)) and not x.is_complex())
        if not isinstance(tag, str) or not number:
            got = _form(x) if isinstance(x, Tensor) else f"of type {type(x).__name__}"
            return f"metric {tag!r} {got}, expected a number or one for each seed, [{rows}]"
    return ""


def _form(x: Tensor) -> str:
    return f"of shape {list(x.shape)} and type {x.dtype} on {x.device}"


def finite_rows(values: Sequence[Any], rows: int) -> Tensor:
    """[rows] bool on the CPU: the seeds for which all tensors [rows, ...] among the values are finite."""
    fine = torch.ones(rows, dtype=torch.bool)
    for x in values:
        if isinstance(x, Tensor) and not bool((good := torch.isfinite(x)).all()):
            fine &= good.reshape(rows, -1).all(1).cpu()
    return fine


def kept(fine: Tensor, old: Any, new: Any) -> Any:
    """The new rows of the seeds that are fine, and the old ones of the others; numbers are shared by all, and new."""
    if not isinstance(new, Tensor):
        return new
    return torch.where(fine.to(new.device).view(-1, *(1,) * (new.dim() - 1)), new, old)


def batch_of(iteration: Iteration, theta: Tensor, new: Any, fine: Tensor) -> dict[str, Tensor]:
    """What the seeds that are not fine sampled, from which parameters, and what came of it."""
    bad = ~fine
    batch = {"seed": torch.tensor(iteration.problem.seeds)[bad], "theta": theta[bad.to(theta.device)]}
    batch |= {f"new/{name}": x[bad.to(x.device)] for name, x in new._asdict().items() if isinstance(x, Tensor)}
    for k, tau in enumerate(iteration.sampled):
        some = bad.repeat_interleave(tau.mask.shape[1] // len(fine)).to(tau.mask.device)
        batch |= {f"{k}/{name}": getattr(tau, name)[:, some] for name in ("obs", "action", "reward", "mask")}
    return batch
