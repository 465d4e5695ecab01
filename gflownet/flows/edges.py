"""`edges_of`: inflows and outflows of the states that a batch of trajectories entered, for flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.dag.segments import segment_logsumexp
from gflownet.flows.states import distinct, key_of
from gflownet.static.table import LIMIT, Static
from gflownet.trees.outputs import DenseOutputs

if TYPE_CHECKING:
    from gflownet.flows.flows import Flows


@dataclass(frozen=True)
class Edges:
    """Inflow and outflow of C distinct states s' other than the source.

    log_inflow   [S, C] log Σ_(s,a)->s' F(s, a)      log_outflow  [S, C] log Σ_a F(s', a), or log R where s' is finished
    terminal     [S, C] bool                          count        [S, C] visits by the trajectories, weighted (0: padding)
    """

    log_inflow: Tensor
    log_outflow: Tensor
    terminal: Tensor
    count: Tensor


def edges_of(flows: Flows) -> Edges:
    """Compute inflow and outflow of the distinct states that the trajectories entered.

    With static shapes the result has all states; those that were not entered have count 0.

    Raises:
        ValueError: shapes are static, and there is no table of states.
    """
    if flows.static is not None:
        return _of_all_states(flows, flows.static)
    (_, S, n), A, env = flows.mask.shape, flows.model.actions, flows.env
    obs, ended = flows.next
    taken = flows.tau.mask.flatten().nonzero()[:, 0]
    obs, ended = obs[taken], ended[taken]
    key, n_keys = key_of(env)
    seed = (taken // n) % S if S > 1 else None
    child_key = key(obs)
    child_key = child_key * 2 + ended if n_keys is not None else child_key ^ (ended * 0x5DEECE66D)
    groups = distinct(child_key, seed, S, None if n_keys is None else 2 * n_keys)
    C = len(groups.first) // S
    child, child_ended = obs[groups.first], ended[groups.first]
    parents = env.parents(child, child_ended)
    real = groups.real[parents.child]
    edge_child, edge_obs, edge_action = parents.child[real], parents.obs[real], parents.action[real]
    # states to evaluate: the parents, and the unfinished children
    going = (groups.real & ~child_ended).nonzero()[:, 0]
    both = torch.cat([edge_obs, child[going]])
    owner = torch.cat([edge_child, going]) // C if S > 1 else None
    states = distinct(key(both), owner, S, n_keys)
    # valid actions: of an unfinished child, the mask one step later in its trajectory; of a parent, the actions of its edges
    rows, onward = states.row[: len(edge_child)], states.row[len(edge_child) :]
    valid = torch.zeros(len(states.first), A, dtype=torch.bool, device=obs.device)
    assert flows.tau.action_mask is not None
    valid[onward] = flows.tau.action_mask.flatten(0, 1)[taken[groups.first[going]] + flows.tau.mask.shape[1]]
    valid[rows, edge_action] = True
    logits = flows.outputs_at(states.of(both), valid).action_logits(flows.head)
    log_inflow = segment_logsumexp(logits.at(rows, edge_action), edge_child, S * C)
    weight = flows.weight.expand(flows.mask.shape).flatten()[taken]
    count = weight.new_zeros(S * C).index_add_(0, groups.row, weight)
    visit_reward = flows.log_reward.expand(flows.mask.shape).flatten()[taken]
    log_outflow = visit_reward[groups.first].index_copy(0, going, logits.total.index_select(0, onward))
    shape = (S, C)
    return Edges(log_inflow.view(shape), log_outflow.view(shape), child_ended.view(shape), count.view(shape))


def _of_all_states(flows: Flows, static: Static) -> Edges:
    """`edges_of` with C = 2N: unfinished states by their index, then finished ones."""
    table, (T, S, n), A = static.table, flows.mask.shape, flows.model.actions
    if table is None:
        raise ValueError(
            f"flow matching in static shapes needs a table of all states: an environment with index(obs) and at most {LIMIT:,}"
            " states; without static shapes (--compile) it needs none"
        )
    seed = torch.arange(S, device=flows.theta.device)
    whole = static.looks_up(T * n)
    if whole:
        assert isinstance(flows.outputs, DenseOutputs)
        out = flows.outputs.out.view(S, len(table), -1)
    else:
        out = flows.evaluate(table.obs.expand(S, *table.obs.shape))
    out = flows.model.policy(out, flows.head)  # [S, N, A]
    flow = out.flatten(1).index_select(1, table.parent * A + table.action).flatten()
    C = 2 * len(table)
    log_inflow = segment_logsumexp(flow, (table.child + seed[:, None] * C).flatten(), S * C)
    onward = torch.logsumexp(torch.where(table.valid, out, -torch.inf), -1)
    owner = torch.arange(S * n, device=seed.device) // n
    row = static.number(*flows.next) + owner.repeat(T) * C
    visits = (flows.weight * flows.mask).flatten()
    count = visits.new_zeros(S * C).index_add_(0, row, visits)
    ends = row.view(flows.mask.shape)[-1].flatten()
    reward = visits.new_zeros(S * C).index_copy_(0, ends, flows.log_reward.flatten()).view(S, 2, -1)[:, 1]
    terminal = (torch.arange(C, device=row.device) >= len(table)).expand(S, C)
    return Edges(log_inflow.view(S, C), torch.cat([onward, reward], 1), terminal, count.view(S, C))
