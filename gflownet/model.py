"""`Model`: splits the outputs of a network into policy heads, state flow and backward policy, and stores log Z.

    θ [S, D] = [parameters of the network | log Z]
    outputs  = [A for each policy head | 1 for log F(s) | A for the backward policy]

The A outputs of a head are logits of P_F(·|s); flow matching and soft Q-learning use them as log-flows of the edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from envs.core import DagEnv
from envs.dag.protocols import Indexed, offers
from envs.molecules.block_trees import BlockTrees
from envs.random import Rng
from gflownet.networks import Network, StackedMLP, Tabular
from gflownet.trees.network import BlockTreeNet

Column = Literal["policy", "flow", "backward"]


@dataclass(frozen=True)
class Model:
    """A network and the meaning of its outputs.

    net         its outputs are heads × "policy", then "flow" with state_flow, then "backward" with backward
    actions     A
    heads       forward policies that share the network (Thompson sampling)
    state_flow  whether there is an output for log F(s)
    backward    whether there are outputs for a backward policy
    """

    net: Network
    actions: int
    heads: int = 1
    state_flow: bool = False
    backward: bool = False

    @property
    def size(self) -> int:
        """D, the number of parameters of a seed."""
        return self.net.size + 1

    @staticmethod
    def of(env: DagEnv, heads: int, state_flow: bool, backward: bool, hidden: tuple[int, ...], tabular: bool) -> Model:
        """Make a model with the network of `net_for`; same errors."""
        counts: dict[Column, int] = {"policy": heads, "flow": state_flow, "backward": backward}
        columns = [column for column, count in counts.items() for _ in range(count)]
        actions = int(env.action_space.n)
        return Model(net_for(env, columns, hidden, tabular), actions, heads, state_flow, backward)

    def init(self, rng: Rng, log_z: float = 0.0) -> Tensor:
        """Initial parameters from one key for each seed, [S, D]; log Z is `log_z`."""
        net = self.net.init(rng)
        return torch.cat([net, torch.full_like(net[:, :1], log_z)], 1)

    def outputs(self, theta: Tensor, obs: Tensor) -> Tensor:
        """The outputs at states obs [S, M, *obs], [S, M, O], for theta [S, D]."""
        return self.net.forward(theta[:, : self.net.size], obs)

    def policy(self, outputs: Tensor, head: int = 0) -> Tensor:
        """The logits of a policy head, [..., O] -> [..., A]."""
        return outputs[..., head * self.actions : (head + 1) * self.actions]

    def log_flow(self, outputs: Tensor) -> Tensor:
        """log F(s), [..., O] -> [...]."""
        return outputs[..., self.heads * self.actions]

    def backward_logits(self, outputs: Tensor) -> Tensor:
        """The logits of the backward policy, [..., O] -> [..., A]."""
        return outputs[..., -self.actions :]

    def log_pf(self, theta: Tensor, obs: Tensor, action_mask: Tensor) -> Tensor:
        """log P_F(·|s) at states obs [S, M, *obs], [heads, S, M, A]; -inf for invalid actions."""
        out = self.outputs(theta, obs)
        return torch.stack([log_softmax(self.policy(out, k), action_mask) for k in range(self.heads)])


def log_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    """Log-softmax over valid actions, [..., A]; -inf for the others."""
    return torch.log_softmax(torch.where(valid, logits, -torch.inf), -1)


def net_for(env: DagEnv, columns: Sequence[Column], hidden: tuple[int, ...], tabular: bool = False) -> Network:
    """Make the network that fits an environment.

    It is a table of states if `tabular`, a transformer for block trees, and an MLP on one-hot coordinates otherwise.

    Args:
        env: the environment.
        columns: the outputs, in order: A for "policy" and "backward", one for "flow".
        hidden: widths of the layers; all equal for the transformer.
        tabular: use a table of states.

    Raises:
        ValueError: the observation space is not supported, or a table is impossible: states are not indexed or too many.
    """
    space, A = env.observation_space, int(env.action_space.n)
    outputs = sum(1 if column == "flow" else A for column in columns)
    if tabular:
        if not offers(env, Indexed):
            raise ValueError("a table needs indexed states: give the environment n_states and index(obs), or use a network")
        if env.n_states > 10_000_000:
            raise ValueError(f"a table of {env.n_states:,} states is too large, expected at most 10,000,000: use a network")
        return Tabular(env.n_states, outputs, env.index)
    if isinstance(env, BlockTrees):
        if len(set(hidden)) != 1:
            raise ValueError(f"hidden is {hidden}: expected one width for all layers of the tree transformer, such as 96 96 96")
        return BlockTreeNet(env.blocks, env.max_blocks, tuple(columns), hidden[0], len(hidden))
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        levels = tuple(int(k) for k in space.nvec.flatten())
        return StackedMLP(len(levels), hidden, outputs, levels)
    if isinstance(space, gymnasium.spaces.Discrete):
        return StackedMLP(1, hidden, outputs, (int(space.n),))
    if isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.MultiBinary):
        return StackedMLP(int(np.prod(space.shape)), hidden, outputs)
    raise ValueError(f"no network for observation space {space}: expected MultiDiscrete, MultiBinary, Discrete or Box")
