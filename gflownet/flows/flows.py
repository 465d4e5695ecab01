"""`Flows`: the quantities of a batch of trajectories that objectives use, computed on demand and cached.

    T steps, S seeds, n trajectories of each; s_0 .. s_n = x
    log_pf[t] = log P_F(a_t | s_t)    log_pb[t] = log P_B(s_t | s_t+1)    log_flow[t] = log F(s_t), log R(x) at the end

States are deduplicated before the forward pass (with `static`, shapes are fixed instead). Values at steps that were not taken
are 0, and `mask` is False there.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from envs.core import DagEnv, Trajectories
from envs.dag.backward import edges_in
from envs.dag.protocols import CountsParents, CountsPaths, PartialReward, WithStop, offers
from gflownet.flows.states import distinct, key_of, states_after
from gflownet.model import Model
from gflownet.sampling.tape import Tape
from gflownet.static.table import Static
from gflownet.trees.actions import ActionLogits
from gflownet.trees.outputs import DenseOutputs, Outputs, evaluate

BACKWARD = ("uniform", "learned", "maxent", "tlm")


class Flows:
    """A batch of finished trajectories, evaluated at parameters theta.

    Args:
        env: the environment.
        model: the network and its heads.
        theta: [S, D].
        tau: [T, S·n], grouped by seed.
        log_reward: [S·n].
        backward: P_B: "uniform" over edges; "maxent", n(s)/n(s') with n the number of paths; "learned"; "tlm", learned
            by a loss of its own.
        head: index of the forward policy.
        weight: [S, n], the weights of trajectories in means; None: 1.
        theta_target: [S, D], parameters of the target network, for objectives that bootstrap.
        tape: the forward pass recorded while exactly these trajectories were sampled with theta.
        static: static shapes, for GPUs; None: distinct states.
    """

    def __init__(
        self,
        env: DagEnv,
        model: Model,
        theta: Tensor,
        tau: Trajectories,
        log_reward: Tensor,
        *,
        backward: str = "uniform",
        head: int = 0,
        weight: Tensor | None = None,
        theta_target: Tensor | None = None,
        tape: Tape | None = None,
        static: Static | None = None,
    ) -> None:
        self.env: Any = env
        self.model, self.theta, self.tau, self.backward, self.head = model, theta, tau, backward, head
        self.tape = None if self._learned else tape  # a learned P_B is evaluated at finished states too
        self.static, self.theta_target = static, theta_target
        self._shape = (len(tau.mask), len(theta), tau.mask.shape[1] // len(theta))
        self.mask = tau.mask.view(self._shape)
        self.log_reward = log_reward.to(theta.dtype).view(self._shape[1:])
        self._alike, self.weight = weight is None, torch.ones_like(self.log_reward) if weight is None else weight

    def with_head(self, head: int, weight: Tensor) -> Flows:
        """The same trajectories for another head, with weights [S, n]."""
        other = self._with(self.theta, head, weight)
        other.outputs, other.log_z = self.outputs, self.log_z
        return other

    @cached_property
    def target(self) -> Flows:
        """The same trajectories under the target network, without gradients."""
        assert self.theta_target is not None
        return self._with(self.theta_target.detach(), self.head, self.weight)

    def _with(self, theta: Tensor, head: int, weight: Tensor) -> Flows:
        """The same trajectories under other parameters or another head: their states and what P_B needs are computed once."""
        known = {"backward": self.backward, "weight": weight, "theta_target": self.theta_target, "static": self.static}
        other = Flows(self.env, self.model, theta, self.tau, self.log_reward, head=head, **known)  # type: ignore[arg-type]
        other.states, other.next = self.states, self.next
        if self._learned:
            other._counts = self._counts
        else:
            other.log_pb = self.log_pb
        return other

    # -- distinct states

    @cached_property
    def next(self) -> tuple[Tensor, Tensor]:
        """s_t+1, [T·B, *obs], and whether it is finished, [T·B] bool."""
        return states_after(self.tau)

    @cached_property
    def states(self) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct states: (obs [S, M, *obs], valid [S, M, A], row [T + 1, B] of s_t among the S·M).

        Finished states are included only for a learned P_B; otherwise their rows are 0.
        """
        tau, (T, S, n) = self.tau, self._shape
        assert tau.action_mask is not None
        assert tau.last is not None
        if self.static is not None:
            return self.static.states(tau, S, self._learned)
        real, obs, valid = tau.mask.flatten(), tau.obs.flatten(0, 1), tau.action_mask.flatten(0, 1)
        steps = real.nonzero()[:, 0]
        if self.tape is not None:
            return self.tape.states(tau, steps, self.env)
        if self._learned:
            real, obs = torch.cat([real, torch.ones_like(tau.mask[0])]), torch.cat([obs, tau.last])
        visits = real.nonzero()[:, 0] if self._learned else steps
        key, n_keys = key_of(self.env)
        seed = (visits // n) % S if S > 1 else None
        groups = distinct(key(obs[visits]), seed, S, n_keys)
        row = groups.row.new_zeros((T + 1) * S * n).index_copy_(0, visits, groups.row)
        some = groups.of(visits).flatten()
        if self._learned:  # a finished state may share its row with an unfinished one, which has the mask
            every = torch.ones(len(some), valid.shape[1], dtype=torch.bool, device=valid.device)
            valid = every.index_put_((row[steps],), valid[steps])
        else:
            valid = valid[some] | ~groups.real[:, None]
        return obs[some].view(S, -1, *obs.shape[1:]), valid.view(S, -1, valid.shape[1]), row.view(T + 1, S * n)

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        """Network parameters [S, P] and log Z [S, 1], by one split, whose gradient is one concatenation."""
        return torch.split(self.theta, [self.model.net.size, 1], 1)

    def evaluate(self, obs: Tensor) -> Tensor:
        """The outputs of the network at states obs [S, M, *obs], [S, M, O]."""
        return self.model.net.forward(self._parts[0], obs)

    def outputs_at(self, obs: Tensor, valid: Tensor) -> Outputs:
        """The outputs at states obs [S, M, *obs] with valid actions valid [S·M, A]."""
        return evaluate(self.model, self._parts[0], obs, valid, static=self.static is not None)

    @cached_property
    def outputs(self) -> Outputs:
        """The outputs of the network, for all heads, at the distinct states."""
        obs, valid, _ = self.states
        if self.tape is not None:
            return DenseOutputs(self.model, self.tape.outputs(self._parts[0]), valid.flatten(0, 1))
        return self.outputs_at(obs, valid.flatten(0, 1))

    @cached_property
    def action_logits(self) -> ActionLogits:
        """The logits of the head at the distinct states."""
        return self.outputs.action_logits(self.head)

    def at(self, x: Tensor) -> Tensor:
        """Map values [S·M] at the distinct states to [T, S, n] at s_t; without meaning where no step was taken."""
        return x.index_select(0, self.states[2][:-1].flatten()).view(self._shape)

    @cached_property
    def edge_flow(self) -> Tensor:
        """log F(s_t, a_t), or the logit of a_t, [T, S, n]; 0 where no step was taken."""
        rows, real = self.states[2][:-1].flatten(), self.mask.flatten()
        numbers = self.action_logits.at(torch.where(real, rows, 0), torch.where(real, self.tau.action.flatten(), 0))
        return torch.where(self.mask, numbers.view(self._shape), 0.0)

    # -- quantities of the objectives

    @cached_property
    def log_pf(self) -> Tensor:
        """log P_F(a_t | s_t), [T, S, n]; 0 where no step was taken."""
        return torch.where(self.mask, self.edge_flow - self.log_sum_edges, 0.0)

    @cached_property
    def log_z(self) -> Tensor:
        """The parameter log Z, [S]."""
        return self._parts[1][:, 0]

    @cached_property
    def visited(self) -> Tensor:
        """Whether s_t belongs to the trajectory, [T + 1, S, n] bool."""
        return torch.cat([torch.ones_like(self.mask[:1]), self.mask])

    @cached_property
    def log_state_flow(self) -> Tensor:
        """The learned log F(s_t), [T + 1, S, n]; log R(x) after the end."""
        return self.end_with_reward(self.at(self.outputs.log_flow))

    @cached_property
    def log_sum_edges(self) -> Tensor:
        """log Σ_a exp F(s_t, a), [T, S, n]: log F(s_t) if the outputs are edge flows."""
        return self.at(self.action_logits.total)

    @property
    def log_source_flow(self) -> Tensor:
        """`log_sum_edges` at the source, [S], by one evaluation of the network."""
        S = self._shape[1]
        assert self.tau.action_mask is not None
        source, valid = (x[0].view(S, -1, *x.shape[2:])[:, :1] for x in (self.tau.obs, self.tau.action_mask))
        return self.outputs_at(source, valid.flatten(0, 1)).action_logits(self.head).total

    @cached_property
    def log_reward_at(self) -> Tensor:
        """log R(s_t), the log-reward extended to unfinished states, [T + 1, S, n]; log R(x) after the end.

        Raises:
            ValueError: the environment has no reward of unfinished states.
        """
        if not offers(self.env, PartialReward):
            raise ValueError(
                "this objective needs the reward of unfinished states: give the environment log_reward_partial(obs)"
            )
        return self.end_with_reward(self.at(self.env.log_reward_partial(self.states[0].flatten(0, 1)).to(self.theta.dtype)))

    def end_with_reward(self, x: Tensor) -> Tensor:
        """Extend values [T, S, n] at s_t to [T + 1, S, n], with log R(x) after the end."""
        return torch.cat([torch.where(self.mask, x, self.log_reward), self.log_reward[None]])

    @cached_property
    def stops(self) -> Tensor:
        """Whether a_t is the stop action, [T, S, n] bool.

        Raises:
            ValueError: the environment has no stop action.
        """
        return self.mask & (self.tau.action.view(self._shape) == self._stop)

    @property
    def _stop(self) -> int:
        if not offers(self.env, WithStop):
            raise ValueError("this objective needs an environment with a `stop` action that is valid in every state")
        return self.env.stop

    @cached_property
    def log_stop(self) -> Tensor:
        """log P_F(stop | s_t), [T + 1, S, n]; 0 after the end."""
        everywhere = torch.arange(self.states[1].flatten(0, 1).shape[0], device=self.theta.device)
        stop = self.action_logits.at(everywhere, torch.full_like(everywhere, self._stop)) - self.action_logits.total
        at = torch.where(self.mask, self.at(stop), 0.0)
        return torch.cat([at, torch.zeros_like(at[:1])])

    # -- the backward policy

    @property
    def _learned(self) -> bool:
        return self.backward in ("learned", "tlm")

    @cached_property
    def _counts(self) -> Tensor:
        """Number of edges into s_t+1 by action, [T·B, A]."""
        if self.static is not None and self.static.table is not None:
            return self.static.table.counts[self.static.number(*self.next)]
        return edges_in(self.env, *self.next)

    @cached_property
    def log_pb(self) -> Tensor:
        """log P_B(s_t | s_t+1), [T, S, n]; without gradient unless `backward` is "learned"."""
        if self._learned:
            return self.log_pb_learned.detach() if self.backward == "tlm" else self.log_pb_learned
        if self.backward == "maxent":
            there, here = self._log_paths(*self.next), self._log_paths(self.tau.obs.flatten(0, 1), ~self.tau.mask.flatten())
            return self._steps(here - there)
        counts = self.env.edge_count(*self.next) if offers(self.env, CountsParents) else self._counts.sum(-1)
        return self._steps(-counts.clamp_min(1).to(self.theta.dtype).log())

    @cached_property
    def log_pb_learned(self) -> Tensor:
        """log P_B of the network, [T, S, n], with gradient."""
        assert isinstance(self.outputs, DenseOutputs)
        every = self.model.backward_logits(self.outputs.out)
        logits = every.index_select(0, self.states[2][1:].flatten())
        at_ends = every.index_select(0, self.states[2][-1].repeat(self._shape[0]))
        ended = self.next[1][:, None]
        logits = torch.where(ended, at_ends, logits)  # after the end of a trajectory `next` is its last state
        real = self._counts > 0
        weights = torch.where(real, logits + self._counts.clamp_min(1).to(logits.dtype).log(), -torch.inf)
        weights = torch.where(real.any(1, keepdim=True), weights, 0.0)
        chosen = logits.gather(1, self.tau.action.flatten()[:, None])[:, 0]
        return self._steps(chosen - torch.logsumexp(weights, 1))

    def _log_paths(self, obs: Tensor, ended: Tensor) -> Tensor:
        if not offers(self.env, CountsPaths):
            raise ValueError(
                "backward maxent needs the number of paths to a state: give the environment log_paths(obs, terminated)"
            )
        return self.env.log_paths(obs, ended).to(self.theta.dtype)

    def _steps(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x.view(self._shape), 0.0)

    # -- means

    def mean(self, x: Tensor) -> Tensor:
        """Weighted mean of x, [S, n] over trajectories or [T, S, n] over steps taken; [S]."""
        if self._alike and x.dim() == 2:
            return x.mean(1)
        weight = self.weight if x.dim() == 2 else self.weight * self.mask
        axes = (1,) if x.dim() == 2 else (0, 2)
        return (x * weight).sum(axes) / weight.sum(axes).clamp_min(1e-30)
