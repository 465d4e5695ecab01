"""The types that all packages share: State, Env, Trajectories, DagEnv, and the errors of environments and learners.

Every function takes and returns a batch of B episodes. Arrays are torch tensors, or numpy arrays if the environment is not a
tensor program (MuJoCo, Gymnasium) or numpy is faster (tables on the CPU); see `Env.backend`. `Trajectories` are always torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.random import Rng

Array = Any  # Tensor or np.ndarray, according to Env.backend


@dataclass(frozen=True)
class State:
    """The states of B episodes.

    obs          [B, *obs] what an agent may see
    reward       [B]       of the step that led to this state (0 after reset and for an episode that had already ended)
    terminated   [B] bool  the episode ended by itself; stays True
    truncated    [B] bool  the environment's own time limit cut it; stays True
    inner        the environment's own encoding, not for agents
    action_mask  [B, A] bool, True = valid (Discrete actions only), or None if all actions are valid

    A subclass may compute `reward` when it is read, and have a method `rewards(states)` that returns the rewards of the states
    after each step since `reset` at once, [T, B], or None if it was given others.
    """

    obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    inner: Any = None
    action_mask: Array | None = None


@runtime_checkable
class Env(Protocol):
    """A batched environment. Ended episodes are not stepped: their rows do not change, with reward 0.

    backend            "torch" or "numpy": the kind of arrays of states and actions
    observation_space  Box, Discrete, MultiDiscrete or MultiBinary, of one episode
    action_space       Box, Discrete or MultiDiscrete
    horizon            the default limit of steps
    reset(n, rng)      the initial states of n episodes; `rng` has n keys
    step(state, action, rng)  the next states; `action` is [B, *act]

    Optional members: `terminates = False` means that no episode ends before the horizon, so that `rollout` does not check;
    `masked = True` means that states have an action_mask.
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
    """B episodes of at most T steps, time first. Log-probabilities and advantages are not stored.

    obs          [T, B, *obs]  the observation before each step
    action       [T, B, *act]
    reward       [T, B]        0 where mask is False
    mask         [T, B] bool   True = a step really taken
    terminated   [B] bool      the episode ended by itself
    truncated    [B] bool      the environment's own limit cut it (if neither: the horizon of the rollout)
    action_mask  [T, B, A] bool or None
    last         [B, *obs]     the last observation, or None if it was not recorded
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
        """Number of environment steps, over all episodes."""
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
        """The episodes with the indices `order` [M], in this order."""
        given = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return replace(self, **{name: x[order] if name in TIMELESS else x[:, order] for name, x in given.items()})

    @staticmethod
    def cat(parts: list[Trajectories]) -> Trajectories:
        """Concatenate along B; shorter parts are padded with steps not taken."""
        if len(parts) == 1:
            return parts[0]
        length = max(len(p.mask) for p in parts)

        def join(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            if values[0] is None:
                return None
            if name in TIMELESS:
                return torch.cat(values)
            if name == "obs" and all(p.last is not None for p in parts):  # padding repeats the last observation
                return torch.cat([torch.cat([p.obs, p.last.expand(length - len(p.obs), *p.last.shape)]) for p in parts], 1)  # type: ignore[union-attr]
            return torch.cat([torch.cat([v, v.new_zeros(length - len(v), *v.shape[1:])]) for v in values], 1)

        return Trajectories(**{f.name: join(f.name) for f in fields(Trajectories)})  # type: ignore[arg-type]


TIMELESS = ("terminated", "truncated", "last")  # fields of Trajectories without an axis of time


@dataclass(frozen=True)
class Parents:
    """All edges into M states of a DAG, as a list of E edges: action[e] leads from the state obs[e] to state child[e].

    child   [E]        index of the child among the M states, in any order
    obs     [E, *obs]  the parent (never a state that has ended)
    action  [E]        for each child, a pair (obs, action) occurs once
    """

    child: Tensor
    obs: Tensor
    action: Tensor


@runtime_checkable
class DagEnv(Env, Protocol):
    """An environment for GFlowNets: deterministic, and its states form a DAG with one source.

    The observation is the whole state: (obs, terminated) determines the valid actions and the next state. The observation of an
    ended episode is the finished object x. Actions are Discrete, states have an action_mask, and every episode ends by itself
    within `horizon` steps. Rewards of `step` are 0; `log_reward` evaluates finished objects, a whole batch at once.

    Arrays of `reset`, `step` and `state_at` are those of `backend`; the other methods take and return torch tensors.

    state_at(obs, terminated)  the State with these observations [M, *obs] and flags [M]
    parents(obs, terminated)   all edges into these states; the source has none
    log_reward(obs)            [M] float64, log R(x) of finished objects. Raises ValueError for R <= 0 or NaN
    describe(obs)              [M] texts, for people and files

    The protocols in `envs.dag.protocols` are optional members.
    """

    @property
    def action_space(self) -> gymnasium.spaces.Discrete: ...

    def state_at(self, obs: Array, terminated: Array) -> State: ...

    def parents(self, obs: Tensor, terminated: Tensor) -> Parents: ...

    def log_reward(self, obs: Tensor) -> Tensor: ...

    def describe(self, obs: Tensor) -> list[str]: ...


class EnvironmentFault(RuntimeError, ValueError):
    """An environment raised, or returned NaN, infinity, or a wrong type or shape.

    what               the part that is wrong: reward, observation, ...
    row, step, action  episode of the batch, step, and the action before; None where it is not known
    how                what happened, for a sentence; default: it returned a non-finite `what`
    seed               of the run, where it is known
    """

    def __init__(
        self,
        what: str,
        row: int | None = None,
        step: int | None = None,
        action: Any = None,
        how: str = "",
        seed: int | None = None,
    ) -> None:
        self.what, self.row, self.step, self.action, self.how, self.seed = what, row, step, action, how, seed
        seed_, row_, step_ = (
            "" if x is None else f" {word} {x}" for word, x in (("with seed", seed), ("in episode", row), ("at step", step))
        )
        if action == "reset":
            step_, after = "", " at reset"
        else:
            after = "" if action is None else f" after {action if isinstance(action, str) else f'action {action}'}"
        super().__init__(f"the environment {how or f'returned a non-finite {what}'}{seed_}{row_}{step_}{after}")

    def at(self, **known: Any) -> EnvironmentFault:
        """The same fault with more, or other, attributes."""
        names = ("what", "row", "step", "action", "how", "seed")
        return EnvironmentFault(**{**{name: getattr(self, name) for name in names}, **known})

    def of_seed(self, seeds: tuple[int, ...], n: int) -> EnvironmentFault:
        """The same fault in one of the n episodes of each of these seeds: with the seed, and the episode counted within it."""
        if self.row is None:
            return self.at(seed=seeds[0]) if len(seeds) == 1 else self
        return self.at(seed=seeds[self.row // n % len(seeds)], row=self.row % n)

    def __reduce__(self) -> Any:
        return EnvironmentFault, (self.what, self.row, self.step, self.action, self.how, self.seed)


class LearnerFault(RuntimeError):
    """An agent, an objective or a method raised, or returned what does not fit."""


class Diverged(ValueError):
    """Training diverged: an action or an update is not finite."""


class RewardFault(ValueError):
    """The reward of an object could not be computed, or is not a finite number."""


def any_last(x: Tensor) -> Tensor:
    """x.any(-1) of a bool tensor; on the CPU by numpy, which is ten times faster."""
    return torch.from_numpy(x.numpy().any(-1)) if x.device.type == "cpu" else x.any(-1)


def to_numpy(x: Array) -> Any:
    """x as a numpy array on the CPU, without gradients."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def to_tensor(x: Array) -> Tensor:
    """x as a tensor that shares its memory."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x
