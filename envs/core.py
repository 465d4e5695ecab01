"""The vocabulary of the house: State, Env, Trajectories, and the fault an environment can have.

A batch of B episodes goes in, a batch comes out. Arrays are torch tensors, or numpy arrays where the world behind
them is not a tensor program (MuJoCo, Gymnasium) or numpy is faster (tables on the CPU); `Env.backend` says which.
`Trajectories` are always torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.random import Rng

Array = Any  # Tensor or np.ndarray, as Env.backend says


@dataclass(frozen=True)
class State:
    """B episodes at one moment.

    obs          [B, *obs] what an agent may see
    reward       [B]       for the step that led here (0 after reset and for an episode that had already ended)
    terminated   [B] bool  the episode ended by itself; stays True
    truncated    [B] bool  the world's own time limit cut it; stays True
    inner        the environment's own encoding; agents do not look
    action_mask  [B, A] bool, True = legal (discrete actions only), or None when all are
    """

    obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    inner: Any = None
    action_mask: Array | None = None


@runtime_checkable
class Env(Protocol):
    """What `rollout` needs. Finished episodes are not stepped: their rows come back as they were, with reward 0.

    Optional members: `terminates = False` says that no episode ends before the horizon (`rollout` then never asks);
    `masked = True` that states carry an action_mask.
    """

    @property
    def backend(self) -> Literal["torch", "numpy"]: ...

    @property
    def observation_space(self) -> gymnasium.Space[Any]: ...

    @property
    def action_space(self) -> gymnasium.Space[Any]: ...

    @property
    def horizon(self) -> int: ...

    def reset(self, n: int, rng: Rng) -> State: ...

    def step(self, state: State, action: Array, rng: Rng) -> State: ...


@dataclass(frozen=True)
class Trajectories:
    """What happened in B episodes of at most T steps, time first, and nothing else.

    obs          [T, B, *obs]  what was seen before each step
    action       [T, B, *act]  what was done
    reward       [T, B]        what it brought (0 where mask is False)
    mask         [T, B] bool   True = a step really taken
    terminated   [B] bool      the episode ended by itself
    truncated    [B] bool      the world's own limit cut it (neither: the horizon of the rollout did)
    action_mask  [T, B, A] bool or None
    last         [B, *obs]     what was seen at the end, or None where nobody wrote it down
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    terminated: Tensor
    truncated: Tensor
    action_mask: Tensor | None = None
    last: Tensor | None = None

    @property
    def steps(self) -> int:
        """Environment steps really taken."""
        return int(self.mask.sum())

    def returns(self, discount: float = 1.0) -> Tensor:
        """Σ_t discount^t r_t of each episode, [B]."""
        if discount == 1.0:
            return self.reward.sum(0)
        weights = discount ** torch.arange(len(self.reward), device=self.reward.device, dtype=self.reward.dtype)
        return (weights[:, None] * self.reward).sum(0)

    def rows(self, lo: int, hi: int) -> Trajectories:
        """Episodes lo..hi-1, their common padding cut off (on a GPU it stays: to find it out, the host would wait)."""
        length = len(self.mask) if self.mask.is_cuda else max(1, int(self.mask[:, lo:hi].any(1).sum()))
        cut = {
            f.name: value[lo:hi] if f.name in TIMELESS else value[:length, lo:hi]
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **cut)

    def columns(self, order: Tensor) -> Trajectories:
        """These episodes, in this order."""
        given = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return replace(self, **{name: x[order] if name in TIMELESS else x[:, order] for name, x in given.items()})

    @staticmethod
    def cat(parts: list[Trajectories]) -> Trajectories:
        """Side by side along B; shorter parts are padded with steps not taken."""
        if len(parts) == 1:
            return parts[0]
        length = max(len(p.mask) for p in parts)

        def join(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            if values[0] is None:
                return None
            if name in TIMELESS:
                return torch.cat(values)
            if name == "obs" and all(p.last is not None for p in parts):  # beyond its end an episode shows its last state
                return torch.cat([torch.cat([p.obs, p.last.expand(length - len(p.obs), *p.last.shape)]) for p in parts], 1)  # type: ignore[union-attr]
            return torch.cat([torch.cat([v, v.new_zeros(length - len(v), *v.shape[1:])]) for v in values], 1)

        return Trajectories(**{f.name: join(f.name) for f in fields(Trajectories)})  # type: ignore[arg-type]


TIMELESS = ("terminated", "truncated", "last")  # fields of Trajectories without an axis of time


@dataclass(frozen=True)
class Parents:
    """All edges into M states of a DAG, as a list of E edges: action[e] leads from the state obs[e] to state child[e].

    child   [E]        which of the M states, in any order
    obs     [E, *obs]  where the edge begins (never a state that has ended)
    action  [E]        each pair (obs, action) comes once
    """

    child: Tensor
    obs: Tensor
    action: Tensor


@runtime_checkable
class DagEnv(Env, Protocol):
    """What a GFlowNet needs in addition: a deterministic world whose states are a DAG with one source.

    The observation is the whole state: (obs, terminated) decides what is legal and what follows, and an episode that has ended
    shows the finished object x. Actions are Discrete, states carry an action_mask, every episode ends by itself within
    `horizon` steps. Rewards of `step` are 0: what finished objects are worth is asked once, of a whole batch.

    `reset`, `step` and `state_at` speak `backend`; the others torch, like Trajectories.

    state_at(obs, terminated)  episodes that stand at these states
    parents(obs, terminated)   all edges into these states; the source has none
    log_reward(obs)            [M] float64, log R(x) of finished objects. Raises ValueError for R <= 0 or NaN
    describe(obs)              [M] texts, for people and files

    What an environment may offer beyond this are the protocols of `envs.dag.protocols`.
    """

    @property
    def action_space(self) -> gymnasium.spaces.Discrete: ...

    def state_at(self, obs: Array, terminated: Array) -> State: ...

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents: ...

    def log_reward(self, obs: Tensor) -> Tensor: ...

    def describe(self, obs: Tensor) -> list[str]: ...


class EnvironmentFault(RuntimeError):
    """An environment returned NaN or infinity; `row`, `step` and `action` say where."""

    def __init__(self, what: str, row: int, step: int, action: Any) -> None:
        super().__init__(f"the environment returned a non-finite {what} in episode {row} at step {step} after action {action}")
        self.what, self.row, self.step, self.action = what, row, step, action

    def __reduce__(self) -> Any:
        return EnvironmentFault, (self.what, self.row, self.step, self.action)


class Diverged(ValueError):
    """A learner's numbers left the range in which anything can be computed: an action or an update that is not finite."""


class RewardFault(ValueError):
    """What objects are worth could not be worked out: a reward that failed, or returned what is no finite number."""


def any_last(x: Tensor) -> Tensor:
    """x.any(-1) of bools; on the CPU numpy's, which is ten times faster."""
    return torch.from_numpy(x.numpy().any(-1)) if x.device.type == "cpu" else x.any(-1)


def to_numpy(x: Array) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def to_tensor(x: Array) -> Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x
