"""`sampler`: the forward policy with exploration, as an `Act` of `envs.rollout`.

    p of `exploration.py`;  a = number of entries of cumsum(p) below u·total

On the CPU the matrix products are numpy's. If states are indexed and the batch is large, the network is evaluated once at each
visited state, and later visits look up the distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.core import Array, DagEnv, Diverged
from envs.dag.protocols import Indexed, offers
from envs.random import Rng
from envs.rollout import Act
from gflownet.model import Model
from gflownet.networks import StackedMLP
from gflownet.sampling.exploration import Exploration, first_reaching
from gflownet.sampling.tape import Tape
from gflownet.trees.actions import SparseLogits
from gflownet.trees.outputs import SlotOutputs, evaluate, uses_slots, uses_sparse

MEMO_ROWS = 64  # the fewest episodes of a seed for which caching states is faster
MEMO_STATES = 1 << 20


def sampler(
    env: DagEnv, model: Model, theta: Tensor, n: int, explore: Exploration | None = None, head: Tensor | None = None
) -> Sampler | NumpySampler:
    """Make the Act of a policy for S·n episodes.

    Args:
        env: the environment.
        model: the network and its heads.
        theta: [S, D].
        n: episodes of each seed; episodes are grouped by seed.
        explore: the exploration; None: none.
        head: [S·n], the policy head of each episode; None: the first.

    Returns:
        The Act; its `tape` is the recorded forward pass for the loss, or None.
    """
    explore = explore or Exploration()
    if env.backend == "numpy" and isinstance(model.net, StackedMLP):
        return NumpySampler(env, model, theta, n, explore, head)
    return Sampler(env, model, theta, n, explore, head)


def cumulative(logits: Tensor, valid: Tensor, explore: Exploration) -> Tensor:
    """cumsum(p) of the exploration policy, [..., A], from logits and valid [..., A]."""
    p = torch.softmax(torch.where(valid, logits / explore.temperature, -torch.inf), -1)
    return explore.mixed(p, valid, valid.sum(-1, keepdim=True)).cumsum(-1)


class Sampler(Act):
    """A sampler in torch, on any device, without reading values back to the host."""

    tape = None

    def __init__(self, env: DagEnv, model: Model, theta: Tensor, n: int, explore: Exploration, head: Tensor | None) -> None:
        self.env, self.model, self.theta, self.n, self.explore, self.head = env, model, theta.detach(), n, explore, head
        self._numpy = env.backend == "numpy"
        self._going: Tensor | None = None

    def watch(self, ended: Array) -> None:
        """With one seed on the CPU, skip the network for ended episodes."""
        alone = len(self.theta) == 1 and self.theta.device.type == "cpu" and self.head is None
        self._going = (~torch.as_tensor(ended)).nonzero()[:, 0] if alone and bool(ended.any()) else None

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        if self._going is None:
            return self._chosen(obs, action_mask, rng.uniform(1))
        going = self._going.numpy() if self._numpy else self._going
        assert action_mask is not None
        action = torch.zeros(len(obs), dtype=torch.int64)
        action[self._going] = torch.as_tensor(self._chosen(obs[going], action_mask[going], rng.uniform(1)[going]))
        return action.numpy() if self._numpy else action

    def _chosen(self, obs: Array, action_mask: Array | None, uniform: Array) -> Array:
        if uses_sparse(self.model, len(self.theta)) and self.head is None:
            valid = torch.as_tensor(action_mask)
            with torch.no_grad():
                sparse = evaluate(self.model, self.theta[:, :-1], torch.as_tensor(obs)[None], valid).action_logits(0)
            assert isinstance(sparse, SparseLogits)
            return sparse.draw(torch.as_tensor(uniform)[:, 0], self.explore)
        u, seen, valid = (torch.as_tensor(x, device=self.theta.device) for x in (uniform, obs, action_mask))
        S, A = len(self.theta), self.model.actions
        if uses_slots(self.model):
            with torch.no_grad():
                outputs = evaluate(self.model, self.theta[:, :-1], seen.view(S, -1, *seen.shape[1:]), valid)
                assert isinstance(outputs, SlotOutputs)
                if self.head is None:
                    return outputs.action_logits(0).draw(u[:, 0], self.explore)
                drawn = torch.stack([outputs.action_logits(k).draw(u[:, 0], self.explore) for k in range(self.model.heads)])
                return drawn.gather(0, self.head[None])[0]
        out = self.model.outputs(self.theta, seen.view(S, -1, *seen.shape[1:])).flatten(0, 1)
        if self.head is None:
            logits = out[:, :A]
        else:
            columns = self.head[:, None] * A + torch.arange(A, device=out.device)
            logits = out.gather(1, columns)
        cdf = cumulative(logits, valid, self.explore)
        if cdf.device.type == "cpu" and not bool(cdf[:, -1].isfinite().all()):
            raise Diverged("the policy's logits are not finite: try a smaller learning rate")
        if cdf.device.type != "cpu":
            return first_reaching(cdf, u * cdf[:, -1:], valid)
        action = (cdf < u * cdf[:, -1:]).sum(-1)  # strictly less: an action of probability 0 is never sampled
        return action.numpy() if self._numpy else action


class NumpySampler(Act):
    """A sampler in numpy, with a cache of states."""

    def __init__(self, env: DagEnv, model: Model, theta: Tensor, n: int, explore: Exploration, head: Tensor | None) -> None:
        assert isinstance(model.net, StackedMLP)
        together = model.net.actor(theta[:, : model.net.size])
        self._alone = len(theta) == 1
        self._forward = together[0] if self._alone else together
        self._shape, self._explore, self._actions = (len(theta), n), explore, model.actions
        self._columns = None if head is None else head.numpy()[:, None] * model.actions + np.arange(model.actions)
        states = env.n_states if offers(env, Indexed) else MEMO_STATES + 1
        remember = n >= MEMO_ROWS and len(theta) * states <= MEMO_STATES and head is None
        self._going: Any = None
        self.tape = Tape(model.net, theta, n * env.horizon) if self._alone else None
        nets = [together[seed] for seed in range(len(theta))]
        self._memo = _Memo(env, nets, n, states, model.actions, self.tape) if remember else None

    def watch(self, ended: Array) -> None:
        """Skip the network for ended episodes; a tape has a row for each step taken only."""
        self._going = (~ended).nonzero()[0] if (self._alone or self._memo) and ended.any() else None

    def __call__(self, obs: Array, action_mask: Array, rng: Rng) -> Array:
        u, going = rng.uniform(1), self._going
        if going is None:
            return self._chosen(obs, action_mask, u, slice(None))
        action = np.zeros(len(obs), dtype=np.int64)
        action[going] = self._chosen(obs[going], action_mask[going], u[going], going)
        return action

    def _chosen(self, obs: Any, valid: Any, u: Any, rows: Any) -> Any:
        if self._memo is not None:
            cdf = self._memo.lookup(obs, valid, rows, self._cdf)
        elif self._alone:
            cdf = self._cdf(self._forward(obs, self.tape), valid, rows)
        else:
            out = self._forward(obs.reshape(self._shape + obs.shape[1:]))
            cdf = self._cdf(out.reshape(-1, out.shape[-1]), valid, rows)
        return np.add.reduce(cdf < u * cdf[:, -1:], 1)

    def _cdf(self, out: Any, valid: Any, rows: Any) -> Any:
        logits = out[:, : self._actions] if self._columns is None else np.take_along_axis(out, self._columns[rows], 1)
        p = np.where(valid, logits, -np.inf)
        p -= np.maximum.reduce(p, 1, keepdims=True)
        if self._explore.temperature != 1:
            p /= self._explore.temperature
        np.exp(p, out=p)
        self._explore.mix_in(p, valid)
        cdf = np.add.accumulate(p, 1, out=p)
        if not np.isfinite(cdf[:, -1]).all():
            raise Diverged("the policy's logits are not finite: try a smaller learning rate")
        return cdf


class _Memo:
    """A cache of the distributions at visited states, for S seeds."""

    def __init__(self, env: Any, nets: list[Any], n: int, states: int, actions: int, tape: Tape | None) -> None:
        self._index, self._nets, self._states = env.index, nets, states
        self._known = np.zeros(len(nets) * states, dtype=bool)
        self._cdf = np.empty((len(nets) * states, actions), dtype=np.float32)
        self._offset = np.repeat(np.arange(len(nets)), n) * states
        self._tape = tape
        if tape is not None:
            tape.slot = np.empty(states, dtype=np.int64)

    def lookup(self, obs: Any, valid: Any, rows: Any, cdf: Callable[[Any, Any, Any], Any]) -> Any:
        """cumsum(p) [B, A] at observations obs [B, *obs] of the given rows of the batch."""
        key = self._index(torch.from_numpy(obs)).numpy() + self._offset[rows]
        fresh = (~self._known[key]).nonzero()[0]
        if len(fresh):
            where, first = np.unique(key[fresh], return_index=True)  # sorted, so grouped by seed
            some, cuts = fresh[first], np.searchsorted(where, np.arange(len(self._nets) + 1) * self._states)
            for net, lo, hi in zip(self._nets, cuts, cuts[1:], strict=False):
                if lo < hi:
                    if self._tape is not None:
                        self._tape.slot[where] = np.arange(self._tape.rows, self._tape.rows + len(where))
                    self._cdf[where[lo:hi]] = cdf(net(obs[some[lo:hi]], self._tape), valid[some[lo:hi]], None)
            self._known[where] = True
        return self._cdf[key]
