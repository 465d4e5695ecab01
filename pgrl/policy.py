"""`Policy`: a distribution over actions as a function of one flat parameter vector, and its actors for `rollout`.

    Policy(net, head)     theta [S, D] = [parameters of the net | parameters of the head | statistics of observations]
      net   TabularNet, MLP    observation -> parameters of the distribution; an MLP without hidden layers is linear
      head  Categorical, MultiCategorical, Gaussian

S parameter vectors are evaluated together by batched matrix products; each has n consecutive episodes of a batch. Networks are
smooth (tanh, softplus), because Assumptions 1 and 2 of Fatkhullin et al. 2023 exclude ReLU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import Array, Trajectories
from envs.random import Rng
from envs.rollout import Act
from pgrl.heads import Categorical, Gaussian, MultiCategorical
from pgrl.nets import MLP, TabularNet
from pgrl.normalise import identity, normalised_observations, normaliser, statistics


class PolicyNet(Protocol):
    """A network as a function of flat parameters; see `pgrl.nets`."""

    @property
    def size(self) -> int: ...

    def init(self, rng: Rng) -> Tensor: ...

    def unpack(self, params: Tensor) -> Any: ...

    def forward(self, weights: Any, obs: Array) -> Array: ...


class Head(Protocol):
    """A distribution over actions; see `pgrl.heads`. It has `outputs` inputs from the network and `size` parameters."""

    @property
    def outputs(self) -> int: ...

    @property
    def size(self) -> int: ...

    def init(self, like: Tensor) -> Tensor: ...

    def log_prob(self, out: Tensor, params: Tensor, action: Tensor, action_mask: Tensor | None) -> Tensor: ...

    def sampler(self, params: Tensor) -> Any: ...

    def fisher(
        self, out: Tensor, params: Tensor, v_out: Tensor, v_params: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...

    def mode(self, out: Array, action_mask: Array | None) -> Array: ...


@dataclass(frozen=True)
class Policy:
    """A stochastic policy π_θ(a | s); theta is [S, D] with D = `size`.

    net         maps observations to the inputs of the head
    head        the distribution over actions
    dtype       of theta and of all results
    normalised  entries of an observation, which are normalised by statistics at the end of theta; 0: raw observations
    """

    net: PolicyNet
    head: Head
    dtype: torch.dtype = torch.float32
    normalised: int = 0

    @property
    def size(self) -> int:
        """D, the length of theta."""
        return self.net.size + self.head.size + 2 * self.normalised

    def init(self, rng: Rng) -> Tensor:
        """Initial parameters of each of the S rows of `rng`, [S, D]; a row depends on its own key only."""
        net = self.net.init(rng).to(self.dtype)
        return torch.cat([net, self.head.init(net), identity(net, self.normalised)], 1)

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters of the net and of the head, and the statistics of observations, which have no gradient."""
        net, head = self.net.size, self.net.size + self.head.size
        return theta[:, :net], theta[:, net:head], theta[:, head:].detach()

    def outputs(self, theta: Tensor, obs: Tensor) -> Tensor:
        """The inputs of the head at observations [S, M, *obs], [S, M, O], differentiable in theta."""
        net, _, stats = self.parts(theta)
        return self.net.forward(self.net.unpack(net), normalised_observations(obs, stats) if self.normalised else obs)

    def normalised_by(self, theta: Tensor, observations: list[Tensor]) -> Tensor:
        """theta with the statistics of each seed's observations, a list of S tensors [M, *obs]."""
        stats = torch.stack([statistics(obs) for obs in observations]).to(theta)
        return torch.cat([theta[:, : self.size - 2 * self.normalised], stats], 1)

    def log_prob(self, theta: Tensor, tau: Trajectories) -> Tensor:
        """log π_θ(a_t | s_t) of every step, differentiable in theta.

        Args:
            theta: [S, D].
            tau: B = S·n episodes, grouped by seed.

        Returns:
            [T, B]; finite and without meaning where `tau.mask` is False.

        Raises:
            ValueError: theta has a wrong shape, or B is not a multiple of S.
        """
        self.check(theta)
        S, (T, B) = len(theta), tau.mask.shape
        if B % S:
            raise ValueError(f"{B} episodes cannot be divided among {S} parameter vectors: expected a multiple of {S}")
        if self._tabular and tau.action_mask is None:  # a softmax for each state, not for each step
            table = torch.log_softmax(self.net.unpack(theta)[0], -1)
            index = by_seed(tau.obs, S) * table.shape[-1] + by_seed(tau.action, S)
            log_p = table.flatten(1).gather(1, index)
        else:
            out = self.outputs(theta, by_seed(tau.obs, S))
            mask = None if tau.action_mask is None else by_seed(tau.action_mask, S)
            log_p = self.head.log_prob(out, self.parts(theta)[1], by_seed(tau.action, S), mask)
        return log_p.reshape(S, T, B // S).transpose(0, 1).reshape(T, B)

    def log_probs_at(self, theta: Tensor, obs: Tensor) -> Tensor:
        """log π_θ(a | s) of all A actions at observations obs [M, *obs], [S, M, A], differentiable; Categorical heads only."""
        return torch.log_softmax(self.outputs(theta, obs.expand(len(theta), *obs.shape)), -1)

    def gain(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """K [S, m, n] and σ [S, m] of a linear Gaussian policy without bias, a ~ N(K s, σ²), differentiable.

        Raises:
            ValueError: the policy is another.
        """
        net, head = self.net, self.head
        if not (isinstance(net, MLP) and isinstance(head, Gaussian)) or net.hidden or net.bias or self.normalised:
            raise ValueError("only a linear Gaussian policy of raw observations without bias has a gain")
        weights, std, _ = self.parts(theta)
        return net.unpack(weights)[0].mT, head.std(std)

    @property
    def _tabular(self) -> bool:
        return isinstance(self.net, TabularNet) and isinstance(self.head, Categorical)

    def actor(self, theta: Tensor, n: int, backend: str = "torch", masked: bool = False, mode: bool = False) -> Act:
        """Make the `Act` of `rollout` for S·n episodes, grouped by seed.

        Args:
            theta: [S, D].
            n: episodes of each seed.
            backend: of the environment, torch or numpy.
            masked: whether states have an action_mask.
            mode: take the mean action (of discrete actions: the most probable one) instead of a sample.

        Raises:
            ValueError: theta has a wrong shape.
        """
        self.check(theta)
        if self._tabular and not (masked or mode):
            return TableActor.of(self.net.unpack(theta.detach())[0], n, backend)
        return Actor(self, theta.detach(), n, backend, mode)

    def check(self, theta: Tensor) -> None:
        """Check the shape of theta.

        Raises:
            ValueError: theta is not [S, D].
        """
        if theta.dim() != 2 or theta.shape[1] != self.size:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected [S, {self.size}]: one row of parameters per seed")


def by_seed(x: Tensor, seeds: int) -> Tensor:
    """Reshape a batch grouped by seed, [T, S·n, ...] -> [S, T·n, ...]."""
    T, B = x.shape[:2]
    if seeds == 1:
        return x.reshape(1, T * B, *x.shape[2:])
    return x.reshape(T, seeds, B // seeds, *x.shape[2:]).transpose(0, 1).reshape(seeds, T * B // seeds, *x.shape[2:])


class Actor:
    """The `Act` of a policy, with its weights unpacked once.

    For numpy environments the matrix products are numpy's, which take half the time of torch's for a few rows.
    """

    def __init__(self, policy: Policy, theta: Tensor, n: int, backend: str, mode: bool = False) -> None:
        self.policy, self.theta, self.n, self.backend, self.mode = policy, theta, n, backend, mode
        net, head = policy.net, policy.head
        params, of_head, of_observations = policy.parts(theta)
        weights: Any = net.unpack(params)
        self._head: Array = of_head.repeat_interleave(n, 0)
        stats: Array = of_observations
        if backend == "numpy":
            weights, self._head = [w.cpu().numpy() for w in weights], self._head.cpu().numpy()
            stats = stats.cpu().numpy()
        alone = backend == "numpy" and len(theta) == 1 and isinstance(net, MLP)  # then without an axis of seeds
        if alone:
            weights, stats = [np.ascontiguousarray(w[0]) for w in weights], stats[0]
        self._shape = None if alone else (len(theta), n)
        self._normalise = normaliser(stats) if policy.normalised else None
        self._forward: Any = functools.partial(net.forward, weights)
        if backend == "numpy" and isinstance(net, MLP):
            self._forward = net.of_numpy(weights)
        self._sample = (lambda out, action_mask, rng: head.mode(out, action_mask)) if mode else head.sampler(self._head)

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        shape = self._shape
        if shape is not None:
            obs = obs.reshape(shape + obs.shape[1:])
        if self._normalise is not None:
            obs = self._normalise(obs)
        out = self._forward(obs)
        return self._sample(out if shape is None else out.reshape(-1, out.shape[-1]), action_mask, rng)

    def __reduce__(self) -> Any:  # to another process, as numpy: torch would send shared memory and a file descriptor
        return _actor_from_numpy, (self.policy, self.theta.cpu().numpy(), self.n, self.backend, self.mode)

    def rows(self, lo: int, hi: int) -> Actor:
        n = self.n
        if lo % n == 0 and hi % n == 0:
            return Actor(self.policy, self.theta[lo // n : hi // n], n, self.backend, self.mode)
        return Actor(self.policy, self.theta.repeat_interleave(n, 0)[lo:hi], 1, self.backend, self.mode)


def _actor_from_numpy(policy: Policy, theta: Any, n: int, backend: str, mode: bool) -> Actor:
    return Actor(policy, torch.from_numpy(theta), n, backend, mode)


@dataclass(frozen=True)
class TableActor:
    """The `Act` of a softmax table: the action is the number of cumulative probabilities below a uniform number.

    cdf    A - 1 arrays [S·states], the cumulative probabilities of each action but the last
    first  [B] index of the first entry of each episode's table
    """

    cdf: list[Array]
    first: Array

    @staticmethod
    def of(logits: Tensor, n: int, backend: str) -> TableActor:
        """From logits [S, states, A], for n episodes of each seed."""
        seeds, states, actions = logits.shape
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        cdf = weights.cumsum(-1)
        columns = list((cdf / cdf[..., -1:]).reshape(-1, actions).T[:-1].contiguous())
        first = torch.arange(seeds, device=logits.device).repeat_interleave(n) * states
        if backend == "numpy":
            return TableActor([c.cpu().numpy() for c in columns], first.cpu().numpy())
        return TableActor(columns, first)

    def __call__(self, obs: Array, action_mask: Array | None, rng: Rng) -> Array:
        index, u = self.first + obs, rng.uniform()
        action = index * 0
        for column in self.cdf:  # strictly less: an action of probability 0 is never sampled
            action = action + (column.take(index) < u)
        return action

    def rows(self, lo: int, hi: int) -> TableActor:
        return TableActor(self.cdf, self.first[lo:hi])


def policy_for(
    env: Any,
    *,
    hidden: tuple[int, ...] = (),
    activation: str = "tanh",
    log_std: float = 0.0,
    learn_std: bool = True,
    reduced: bool = False,
    bias: bool = True,
    output_scale: float = 1.0,
    normalise: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Make the policy that fits the spaces of an environment.

    The head follows the action space: Discrete, MultiDiscrete or Box. The network is a table for Discrete observations without
    hidden layers, and an MLP otherwise.

    Args:
        env: the environment.
        hidden: widths of hidden layers.
        activation: tanh or softplus.
        log_std: initial log standard deviation of Gaussian policies.
        learn_std: train the standard deviation; False: it is constant.
        reduced: of tables: fix the last logit of each state at 0, which removes the redundant parameter.
        bias: whether MLPs have biases; LQR needs a linear policy without.
        output_scale: factor of the last layer's initial weights; below 1 the first actions hardly depend on the state.
        normalise: normalise observations by statistics that are part of theta.
        dtype: of the parameters and of all results.

    Raises:
        ValueError: a space is not supported.
    """
    space, actions = env.observation_space, env.action_space
    head: Head
    if isinstance(actions, gymnasium.spaces.Discrete):
        head = Categorical(int(actions.n))
    elif isinstance(actions, gymnasium.spaces.MultiDiscrete) and actions.nvec.ndim == 1:
        head = MultiCategorical(tuple(int(k) for k in actions.nvec))
    elif isinstance(actions, gymnasium.spaces.Box):
        head = Gaussian(int(np.prod(actions.shape)), log_std, learn_std, actions.shape)
    else:
        raise ValueError(f"no policy for action space {actions}: expected Discrete, MultiDiscrete (one axis) or Box")
    if isinstance(space, gymnasium.spaces.Discrete):
        if normalise:
            raise ValueError(f"observations {space} are states by number, which cannot be normalised")
        if not hidden:
            return Policy(TabularNet(int(space.n), head.outputs, reduced), head, dtype)
        return Policy(MLP(int(space.n), hidden, head.outputs, activation, True, bias, output_scale), head, dtype)
    if isinstance(space, gymnasium.spaces.Box):
        size = int(np.prod(space.shape))
        net = MLP(size, hidden, head.outputs, activation, False, bias, output_scale)
        return Policy(net, head, dtype, size if normalise else 0)
    raise ValueError(
        f"no policy for observation space {space}: expected Discrete or Box; try gymnasium.wrappers.FlattenObservation"
    )
