"""Breadth-first search of a small DAG: all states and edges, by `state_at` and `step` of the environment.

    new = {source}
    while new:   step every valid action of every new state, as one batch; new = the states reached for the first time

States met before are looked up by an int64 key in sorted runs of doubling size (the binary counter of Bentley and Saxe,
J. Algorithms 1980), so that deep and narrow DAGs cost no more than wide ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.core import Array, DagEnv, State, to_tensor
from envs.dag.protocols import WithDevice, offers
from envs.dag.segments import distinct_keys
from envs.random import GOLDEN, Rng, mix

KeyOf = Callable[[Tensor, Tensor], Tensor]  # (obs [M, *obs], terminated [M]) -> [M] int64, distinct for distinct states
PAIRS = 1 << 18  # (state, action) pairs stepped at once


class TooManyStates(ValueError):
    """The DAG has more states than the limit."""


class NotADag(ValueError):
    """There is a cycle, a path longer than the horizon, or an unfinished state without a valid action."""


@dataclass(frozen=True)
class Graph:
    """N states in the order of discovery, the source first, and E edges between them.

    obs [N, *obs], terminated [N] bool, action_mask [N, A] bool
    parent, action, child  [E]  rows of states, and actions
    level                  [N]  length of the longest path from the source
    """

    obs: Tensor
    terminated: Tensor
    action_mask: Tensor
    parent: Tensor
    action: Tensor
    child: Tensor
    level: Tensor


def search(env: DagEnv, limit: int, key_of: KeyOf) -> Graph:
    """Find all states that can be reached from the source, and all edges.

    Args:
        env: the environment.
        limit: the most states.
        key_of: identifies states.

    Returns:
        The graph, not sorted.

    Raises:
        TooManyStates: there are more than `limit` states.
        NotADag: there is a cycle, a path longer than the horizon, or an unfinished state without a valid action.
        ValueError: two states have the same key, or states have no mask.
    """
    device = env.device if offers(env, WithDevice) else "cpu"
    rng = Rng(torch.zeros(1, dtype=torch.int64, device=device)).drawn(1, env.backend == "numpy")
    start = as_tensors(env.reset(1, rng.at(0)))
    obs, ended, mask = start.obs, start.terminated, mask_of(start)
    known = _Known(key_of, obs, ended)
    masks, edges, depth = list[Tensor](), list[Tensor](), 0
    while len(obs):
        masks.append(mask)
        begin = known.count - len(obs)
        valid = mask & ~ended[:, None]
        dead = ~valid.any(1) & ~ended
        if bool(dead.any()):
            raise NotADag(f"no action is valid in the unfinished state {obs[dead][0].tolist()}: let every state lead to an end")
        if not bool(valid.any()):
            break
        if depth == env.horizon:
            raise NotADag(f"an episode goes on after {depth} steps, the horizon: correct the environment or its horizon")
        depth += 1
        source, action = valid.nonzero(as_tuple=True)
        pairs = zip(torch.split(source, PAIRS), torch.split(action, PAIRS), strict=True)
        steps = [step_from(env, obs[s], a) for s, a in pairs]
        after, over = torch.cat([s.obs for s in steps]), torch.cat([s.terminated for s in steps])
        child, new = known.meet(after, over)
        obs, ended, mask = after[new], over[new], torch.cat([mask_of(s) for s in steps])[new]
        if known.count > limit:
            raise TooManyStates(
                f"{known.count} states after {depth} steps, more than the limit of {limit}: "
                "use the sampled metrics, or raise `limit`"
            )
        edges.append(torch.stack([begin + source, action, child]))
    parent, action, child = torch.cat(edges, 1) if edges else torch.empty(3, 0, dtype=torch.int64)
    level = levels(parent, child, known.count)
    obs, ended = known.obs[: known.count], known.ended[: known.count]
    if bool((level < 0).any()):
        state = obs[level < 0][0].tolist()
        raise NotADag(f"the state {state} lies on or behind a cycle: every action must lead to a state not seen before")
    if int(level.max()) > env.horizon:
        raise NotADag(f"a path of {int(level.max())} steps, more than the horizon of {env.horizon}: correct one of them")
    return Graph(obs, ended, torch.cat(masks), parent, action, child, level)


class _Known:
    """The states met so far. `obs` and `ended` are longer than `count`: they grow by doubling."""

    def __init__(self, key_of: KeyOf, obs: Tensor, ended: Tensor) -> None:
        self.key_of, self.obs, self.ended, self.count = key_of, obs, ended, len(obs)
        self.runs = [(key_of(obs, ended), torch.zeros(1, dtype=torch.int64, device=obs.device))]

    def meet(self, obs: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of these states, [M], and the positions of the new ones among them."""
        keys, inverse, example = distinct_keys(self.key_of(obs, ended))
        rows = torch.full_like(keys, -1)
        for run, at in self.runs:
            place = torch.searchsorted(run, keys).clamp(max=len(run) - 1)
            rows = torch.where(run[place] == keys, at[place], rows)
        new = rows < 0
        rows = torch.where(new, self.count - 1 + new.cumsum(0), rows)
        self._add(keys[new], rows[new], obs[example[new]], ended[example[new]])
        child = rows[inverse]
        collision = differ(self.obs[child], obs) | (self.ended[child] != ended)
        if bool(collision.any()):
            i = int(collision.nonzero()[0])
            raise ValueError(
                f"the states {self.obs[child[i]].tolist()} and {obs[i].tolist()} have the same key: "
                "let `index` return a distinct number for each observation"
            )
        return child, example[new]

    def _add(self, keys: Tensor, rows: Tensor, obs: Tensor, ended: Tensor) -> None:
        if not len(keys):
            return
        end = self.count + len(keys)
        if end > len(self.obs):
            spare = 2 * end - self.count
            self.obs = torch.cat([self.obs[: self.count], obs.new_empty(spare, *obs.shape[1:])])
            self.ended = torch.cat([self.ended[: self.count], ended.new_empty(spare)])
        self.obs[self.count : end], self.ended[self.count : end] = obs, ended
        self.count = end
        self.runs.append((keys, rows))
        while len(self.runs) > 1 and len(self.runs[-1][0]) >= len(self.runs[-2][0]):
            (a, at_a), (b, at_b) = self.runs.pop(), self.runs.pop()
            merged, order = torch.cat([a, b]).sort()
            self.runs.append((merged, torch.cat([at_a, at_b])[order]))


def levels(parent: Tensor, child: Tensor, n: int) -> Tensor:
    """Length of the longest path to each of n states (Kahn, Comm. ACM 1962), [n]; -1 for states on or after a cycle.

    `parent` and `child` are the edges, [E] each.
    """
    order, out = parent.argsort(), parent.bincount(minlength=n)
    begin, waiting = out.cumsum(0) - out, child.bincount(minlength=n)
    level, ready, depth = torch.full_like(waiting, -1), (waiting == 0).nonzero()[:, 0], 0
    while len(ready):
        level[ready], depth = depth, depth + 1
        last = out[ready].cumsum(0)
        edge = torch.arange(int(last[-1]), device=parent.device)
        owner = torch.searchsorted(last, edge, right=True)  # not repeat_interleave, which uses all threads even for ten numbers
        reached = child[order[begin[ready][owner] + edge - (last - out[ready])[owner]]]
        waiting.index_add_(0, reached, torch.full_like(reached, -1))
        reached = torch.unique(reached)
        ready = reached[waiting[reached] == 0]
    return level


def hash_key(obs: Tensor, terminated: Tensor | None = None) -> Tensor:
    """A 64-bit hash of the bytes of each state, [M] int64; two of a million states collide with probability 10^-7."""
    rows = obs[:, None] if obs.dim() == 1 else obs.flatten(1)
    rows = rows + 0.0 if rows.is_floating_point() else rows  # -0.0 is 0.0
    octets = rows.contiguous().view(torch.uint8)
    words = torch.nn.functional.pad(octets, (0, -octets.shape[1] % 8)).view(torch.int64)
    key = torch.zeros_like(words[:, 0]) if terminated is None else terminated.long()
    for word in words.T:
        key = mix((key + 1) * GOLDEN + word)
    return mix(key)


def states_at(env: DagEnv, obs: Tensor, terminated: Tensor) -> State:
    """`env.state_at`, with tensors in and out."""
    return as_tensors(env.state_at(_native(env, obs), _native(env, terminated)))


def step_from(env: DagEnv, obs: Tensor, action: Tensor) -> State:
    """The states that actions [M] lead to from unfinished states obs [M, *obs], as tensors."""
    going = torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
    rng = Rng(torch.zeros(len(obs), dtype=torch.int64, device=obs.device)).drawn(1, env.backend == "numpy")
    return as_tensors(env.step(env.state_at(_native(env, obs), _native(env, going)), _native(env, action), rng.at(0)))


def as_tensors(state: State) -> State:
    """A state with its arrays as tensors and `inner` unchanged.

    Raises:
        ValueError: the state has no mask.
    """
    obs, reward, terminated, truncated = map(to_tensor, (state.obs, state.reward, state.terminated, state.truncated))
    return State(obs, reward, terminated, truncated, state.inner, mask_of(state))


def mask_of(state: State) -> Tensor:
    """The mask of a state, [B, A] bool.

    Raises:
        ValueError: there is none.
    """
    if state.action_mask is None:
        raise ValueError("states have no action_mask, expected one [B, A]: set it to True if all actions are valid")
    return to_tensor(state.action_mask)


def differ(a: Tensor, b: Tensor) -> Tensor:
    """[M] bool: which of these observations [M, *obs] differ."""
    wrong = a != b
    return wrong if wrong.dim() == 1 else wrong.flatten(1).any(1)


def _native(env: DagEnv, x: Tensor) -> Array:
    return x.numpy() if env.backend == "numpy" else x
