"""Helpers of the GFlowNet tests: small DAGs, exact flows in a table, random trajectories, a slow reference implementation."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.check import RandomAct
from envs.core import Trajectories
from envs.dag.bits import Bits
from envs.dag.enumeration import Enumeration, enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.dag.segments import segment_logsumexp
from envs.dag.sets import Sets
from envs.molecules.block_trees import BlockTrees
from envs.random import Rng
from envs.rollout import rollout
from gflownet.flows.flows import Flows
from gflownet.model import Model
from gflownet.networks import Tabular
from tests.block_vocabularies import vocabulary
from tests.dags import TableDag

torch.set_num_threads(1)  # small products: threads that wait for each other cost more than they save
S, N = 2, 24  # seeds side by side, trajectories of each


def detours() -> TableDag:
    """Objects 4 to 7. Two parents of 3 reach it by the same action, one of them by another too; paths to 4 have 2 or 3 steps.

    Action 2 keeps a state; at the source, and in state 3 as action 1 does in state 1, some moves are not valid.
    """
    no = [-1, -1, -1]
    env: Any = TableDag([[1, 2, -1], [3, -1, 4], [3, 3, 5], [6, 4, 7], no, no, no, no], [0, 0.3, -0.6, 1, 0.5, -1, 0.2, 1.3], 3)
    dag = enumerate_dag(env)
    paths = dag.log_paths()[dag.obs.argsort()]
    env.log_paths = lambda obs, terminated: paths[obs]
    env.log_reward_partial = env.log_reward
    return env


class Numbered:
    """Trees of blocks with numbers below n_states, so that they fit a table."""

    def __init__(self, trees: BlockTrees) -> None:
        self.trees, dag = trees, enumerate_dag(trees)
        self._keys = trees.index(dag.obs[~dag.terminated]).sort().values
        self.n_states = len(self._keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trees, name)

    def index(self, obs: Tensor) -> Tensor:
        return torch.searchsorted(self._keys, self.trees.index(obs))


def small_trees(K: int = 3, names: tuple[str, ...] = ("F", "CN", "triazine"), low: int = 2) -> Any:
    """A molecule space with symmetric blocks: 56 objects of two or three. Rewards differ by tree, without a pattern."""
    trees = BlockTrees(vocabulary(*names), max_blocks=K, min_blocks=low)
    return Numbered(trees.with_reward(lambda obs: ((trees.index(obs) >> 40) % 1000).double() / 500 - 1))


WORLDS: dict[str, Any] = {
    "stop": HyperGrid(2, 4),
    "paper2021": HyperGrid(2, 4, convention="paper2021"),
    "append": Bits(6, 2, 3, mode_blocks=("00", "11", "01")),
    "any": Bits(3, 1, 2, order="any"),
    "sets": Sets(5, 3),
    "detours": detours(),
    "trees": small_trees(),
}
DAGS = {name: enumerate_dag(env) for name, env in WORLDS.items()}


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model_for(env: Any, objective: Any, backward: str, heads: int = 1) -> Model:
    flow, back, A = "state_flow" in objective.uses, backward in ("learned", "tlm"), int(env.action_space.n)
    return Model(Tabular(env.n_states, A * (heads + back) + flow, env.index), A, heads, flow, back)


def log_pb_of(dag: Enumeration, backward: str, logits: Tensor) -> Tensor | None:
    """[E] of the edges; logits [N, A] at the children, for a learned one."""
    if backward == "uniform":
        return None
    if backward == "maxent":
        return dag.log_paths()[dag.parent] - dag.log_paths()[dag.child]
    at_edge = logits[dag.child, dag.action]
    return at_edge - segment_logsumexp(at_edge, dag.child, len(dag))[dag.child]


def exact_theta(env: Any, dag: Enumeration, model: Model, objective: Any, backward: str) -> Tensor:
    """[S, D] where every objective is zero: another P_B for each seed if it is learned, noise where nothing may look."""
    rows, going, thetas = env.index(dag.obs), ~dag.terminated, []
    for seed in range(S):
        table = draws(env.n_states, model.net.outputs, seed=seed)
        flow = dag.flow(log_pb_of(dag, backward, table[rows, -model.actions :]))
        edges = flow.log_pf + flow.log_flow[:, None]
        if "edges" not in kind(objective):  # a policy is a softmax: what it is shifted by means nothing
            edges = flow.log_pf + draws(len(dag), 1, seed=100 + seed)
        edges = edges - getattr(objective, "munchausen", 0.0) * flow.log_flow[:, None]  # Q/λ = log F(s, a) - α log F(s)
        state_flow = flow.log_flow.clone()
        if "forward-looking" in kind(objective):
            state_flow = state_flow - env.log_reward_partial(dag.obs)
        valid = torch.zeros(env.n_states, model.actions, dtype=torch.bool)
        valid[rows[going]] = dag.action_mask[going]
        values = torch.zeros(env.n_states, model.actions, dtype=torch.float64)
        values[rows[going]] = edges[going]
        table[:, : model.actions] = torch.where(valid, values, table[:, : model.actions])
        if model.state_flow:
            table[rows[going], model.actions] = state_flow[going]
        thetas.append(torch.cat([table.flatten(), torch.tensor([dag.log_z], dtype=torch.float64)]))
    return torch.stack(thetas)


def kind(objective: Any) -> str:
    """What the net's numbers are: log-flows of edges, flows relative to a reward of unfinished states, or neither."""
    name = type(objective).__name__
    return "edges" if name in ("FlowMatching", "SoftDQN") else "forward-looking" if name.startswith("ForwardLooking") else ""


def wander(env: Any, seeds: int = S, n: int = N, seed: int = 5) -> tuple[Trajectories, Tensor]:
    """n uniform random journeys for each seed, and their log-rewards."""
    tau = rollout(env, RandomAct(env.action_space, env.backend == "numpy"), Rng.of_seeds(range(seed, seed + seeds)).spawn(n))
    assert tau.last is not None
    return tau, env.log_reward(tau.last)


def loss_and_gradient(objective: Any, flows: Flows) -> tuple[Tensor, Tensor]:
    """[S] and [S, D] (zero where the loss does not depend on θ)."""
    loss = objective.loss(flows)
    (gradient,) = torch.autograd.grad(loss.sum(), flows.theta, allow_unused=True)
    return loss.detach(), torch.zeros_like(flows.theta) if gradient is None else gradient


@dataclass
class Slow:
    """One seed's numbers, a state and a step at a time, from the edges of the enumeration. out [N, O] at its states."""

    dag: Enumeration
    model: Model
    out: Tensor
    backward: str

    def __post_init__(self) -> None:
        self.edges = list(zip(self.dag.parent.tolist(), self.dag.action.tolist(), self.dag.child.tolist(), strict=True))
        self.paths = self.dag.log_paths().tolist()
        self.into = {s: [e for e in self.edges if e[2] == s] for s in range(len(self.dag))}
        self.out_of = {s: [e for e in self.edges if e[0] == s] for s in range(len(self.dag))}

    def walk(self, tau: Trajectories, column: int) -> list[tuple[int, int, int]]:
        """The edges of a trajectory."""
        length = int(tau.mask[:, column].sum())
        assert tau.last is not None
        obs = [*tau.obs[:length, column], tau.last[column]]
        ended = torch.tensor([False] * length + [True])
        states = self.dag.find(torch.stack(obs), ended).tolist()
        return [(states[t], int(tau.action[t, column]), states[t + 1]) for t in range(length)]

    def edge_flow(self, state: int, action: int) -> float:
        return float(self.out[state, action])

    def log_sum(self, state: int) -> float:
        return math.log(sum(math.exp(self.edge_flow(s, a)) for s, a, _ in self.out_of[state]))

    def log_pf(self, edge: tuple[int, int, int]) -> float:
        return self.edge_flow(edge[0], edge[1]) - self.log_sum(edge[0])

    def log_pb(self, edge: tuple[int, int, int]) -> float:
        if self.backward == "uniform":
            return -math.log(len(self.into[edge[2]]))
        if self.backward == "maxent":
            return self.paths[edge[0]] - self.paths[edge[2]]
        logits = self.out[edge[2], -self.model.actions :].tolist()
        return logits[edge[1]] - math.log(sum(math.exp(logits[a]) for _, a, _ in self.into[edge[2]]))

    def log_reward(self, state: int) -> float:
        return float(self.dag.log_reward[self.dag.objects.tolist().index(state)])

    def log_flow(self, state: int) -> float:
        return self.log_reward(state) if self.dag.terminated[state] else float(self.out[state, self.model.actions])


def fitting(objective: Any, knobs: dict[str, Any]) -> dict[str, Any]:
    """The knobs, with the uniform P_B where the objective takes no other."""
    able = getattr(objective, "backwards", ("uniform", "maxent", "learned", "tlm"))
    return knobs if knobs.get("backward", "uniform") in able else knobs | {"backward": "uniform"}
