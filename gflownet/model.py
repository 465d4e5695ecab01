"""What the outputs of a net mean to a GFlowNet, and where log Z is kept.

    θ [S, D] = [parameters of the net | log Z]
    outputs  = [A for each policy head | 1 for log F(s) | A for the backward policy]

The A numbers of a head are logits of P_F(·|s); to flow matching and soft Q-learning they are log-flows of the edges.
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
    """net: gives heads × "policy", then "flow" with state_flow, then "backward" (`columns`).

    heads: how many forward policies share the net (Thompson sampling); state_flow, backward: columns that are there.
    """

    net: Network
    actions: int
    heads: int = 1
    state_flow: bool = False
    backward: bool = False

    @property
    def size(self) -> int:
        """D."""
        return self.net.size + 1

    @staticmethod
    def of(env: DagEnv, heads: int, state_flow: bool, backward: bool, hidden: tuple[int, ...], tabular: bool) -> Model:
        """With the usual net; errors of `net_for`."""
        counts: dict[Column, int] = {"policy": heads, "flow": state_flow, "backward": backward}
        columns = [column for column, count in counts.items() for _ in range(count)]
        actions = int(env.action_space.n)
        return Model(net_for(env, columns, hidden, tabular), actions, heads, state_flow, backward)

    def init(self, rng: Rng, log_z: float = 0.0) -> Tensor:
        """[S, D]; log Z starts at `log_z`."""
        net = self.net.init(rng)
        return torch.cat([net, torch.full_like(net[:, :1], log_z)], 1)

    def outputs(self, theta: Tensor, obs: Tensor) -> Tensor:
        """[S, M, O] at states [S, M, *obs]."""
        return self.net.forward(theta[:, : self.net.size], obs)

    def policy(self, outputs: Tensor, head: int = 0) -> Tensor:
        return outputs[..., head * self.actions : (head + 1) * self.actions]

    def log_flow(self, outputs: Tensor) -> Tensor:
        return outputs[..., self.heads * self.actions]

    def backward_logits(self, outputs: Tensor) -> Tensor:
        return outputs[..., -self.actions :]

    def log_pf(self, theta: Tensor, obs: Tensor, action_mask: Tensor) -> Tensor:
        """[heads, S, M, A] log P_F(·|s) at states [S, M, *obs], -inf where a move is not valid."""
        out = self.outputs(theta, obs)
        return torch.stack([log_softmax(self.policy(out, k), action_mask) for k in range(self.heads)])


def log_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    return torch.log_softmax(torch.where(valid, logits, -torch.inf), -1)


def net_for(env: DagEnv, columns: Sequence[Column], hidden: tuple[int, ...], tabular: bool = False) -> Network:
    """The usual net for an environment's observations: a table of its states, a transformer over trees of blocks (a layer of
    that width for each of `hidden`), or an StackedMLP on one-hot coordinates.

    columns  what it gives, in order: "policy" and "backward" A numbers, "flow" one
    Raises ValueError for a space that no net fits, or a table of states that are not numbered or too many.
    """
    space, A = env.observation_space, int(env.action_space.n)
    outputs = sum(1 if column == "flow" else A for column in columns)
    if tabular:
        if not offers(env, Indexed):
            raise ValueError(
                "a table needs states with numbers: give the environment n_states and index(obs), or take a network"
            )
        if env.n_states > 10_000_000:
            raise ValueError(f"a table of {env.n_states:,} states is too large, expected at most 10,000,000: take a network")
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
    raise ValueError(f"no net for observation space {space}: expected MultiDiscrete, MultiBinary, Discrete or Box")
