"""From trajectories to what an objective asks for. Everything is computed when asked, once.

    T steps, S seeds, n trajectories of each; s_0 .. s_n = x
    log_pf[t] = log P_F(a_t | s_t)    log_pb[t] = log P_B(s_t | s_t+1)    log_flow[t] = log F(s_t), log R(x) at the end

The net sees each distinct state once (or whatever `static` says). Numbers at steps that were not taken are 0, and `mask` is
False there.
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
    """A batch of finished trajectories as an objective sees it, under parameters theta [S, D].

    tau         [T, S·n], the n trajectories of a seed in a row      log_reward  [S·n]
    backward    P_B: uniform over edges; maxent, n(s)/n(s') with n the number of paths; learned; tlm, learned by its own loss
    head        which forward policy       weight  [S, n] of each trajectory in means, default 1
    theta_target  parameters of the target network, for objectives that bootstrap
    tape        what the net did while these trajectories, and no others, were sampled with theta
    static      shapes that do not depend on what was visited, for GPUs; default: distinct states
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
        self.tape = None if self._learned else tape  # a learned P_B asks the net about finished states too
        self.static, self.theta_target = static, theta_target
        self._shape = (len(tau.mask), len(theta), tau.mask.shape[1] // len(theta))
        self.mask = tau.mask.view(self._shape)
        self.log_reward = log_reward.to(theta.dtype).view(self._shape[1:])
        self._alike, self.weight = weight is None, torch.ones_like(self.log_reward) if weight is None else weight

    def with_head(self, head: int, weight: Tensor) -> Flows:
        """The same trajectories for another head."""
        other = self._with(self.theta, head, weight)
        other.outputs = self.outputs
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

    # -- states, each once

    @cached_property
    def next(self) -> tuple[Tensor, Tensor]:
        """s_t+1 [T·B, *obs] and whether it is finished [T·B]."""
        return states_after(self.tau)

    @cached_property
    def states(self) -> tuple[Tensor, Tensor, Tensor]:
        """(obs [S, M, *obs], valid [S, M, A], row [T + 1, B] of s_t among the S·M).

        Finished states are among them only where a learned P_B asks for them; their rows are 0 otherwise.
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
        if self._learned:  # a finished state may share its row with one that goes on: what is valid is known from the latter
            moves = torch.ones(len(some), valid.shape[1], dtype=torch.bool, device=valid.device)
            valid = moves.index_put_((row[steps],), valid[steps])
        else:
            valid = valid[some] | ~groups.real[:, None]
        return obs[some].view(S, -1, *obs.shape[1:]), valid.view(S, -1, valid.shape[1]), row.view(T + 1, S * n)

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        """[S, P] and [S, 1], by one split, whose gradient is one concatenation."""
        return torch.split(self.theta, [self.model.net.size, 1], 1)

    def evaluate(self, obs: Tensor) -> Tensor:
        """[S, M, O] at states [S, M, *obs]."""
        return self.model.net.forward(self._parts[0], obs)

    def outputs_at(self, obs: Tensor, valid: Tensor) -> Outputs:
        """What the net says of states [S, M, *obs] where the moves valid [S·M, A] are."""
        return evaluate(self.model, self._parts[0], obs, valid, dense=self.static is not None)

    @cached_property
    def outputs(self) -> Outputs:
        """What the net, all heads of it, says of the distinct states."""
        obs, valid, _ = self.states
        if self.tape is not None:
            return DenseOutputs(self.model, self.tape.outputs(self._parts[0]), valid.flatten(0, 1))
        return self.outputs_at(obs, valid.flatten(0, 1))

    @cached_property
    def action_logits(self) -> ActionLogits:
        """The head's numbers at the distinct states."""
        return self.outputs.action_logits(self.head)

    def at(self, x: Tensor) -> Tensor:
        """[S·M] at the distinct states -> [T, S, n] at s_t (of the first state where no step was taken)."""
        return x.index_select(0, self.states[2][:-1].flatten()).view(self._shape)

    @cached_property
    def edge_flow(self) -> Tensor:
        """[T, S, n] the head's numbers for the moves made, 0 where there was none: log F(s_t, a_t), or logits."""
        rows, real = self.states[2][:-1].flatten(), self.mask.flatten()
        numbers = self.action_logits.at(torch.where(real, rows, 0), torch.where(real, self.tau.action.flatten(), 0))
        return torch.where(self.mask, numbers.view(self._shape), 0.0)

    # -- what formulas speak of

    @cached_property
    def log_pf(self) -> Tensor:
        """[T, S, n] log P_F(a_t | s_t), 0 where no step was taken."""
        return torch.where(self.mask, self.edge_flow - self.log_sum_edges, 0.0)

    @cached_property
    def log_z(self) -> Tensor:
        """[S], the parameter."""
        return self._parts[1][:, 0]

    @cached_property
    def visited(self) -> Tensor:
        """[T + 1, S, n] bool: s_t belongs to the trajectory."""
        return torch.cat([torch.ones_like(self.mask[:1]), self.mask])

    @cached_property
    def log_state_flow(self) -> Tensor:
        """[T + 1, S, n] log F(s_t), learned; log R(x) from the end on."""
        return self.end_with_reward(self.at(self.outputs.log_flow))

    @cached_property
    def log_sum_edges(self) -> Tensor:
        """[T, S, n] log Σ_a exp F(s_t, a): log F(s_t) where the net gives edge flows."""
        return self.at(self.action_logits.total)

    @property
    def log_source_flow(self) -> Tensor:
        """[S] the same at the source alone, [0, :, 0] of it, with one evaluation of the net."""
        S = self._shape[1]
        assert self.tau.action_mask is not None
        source, valid = (x[0].view(S, -1, *x.shape[2:])[:, :1] for x in (self.tau.obs, self.tau.action_mask))
        return self.outputs_at(source, valid.flatten(0, 1)).action_logits(self.head).total

    @cached_property
    def log_reward_at(self) -> Tensor:
        """[T + 1, S, n] log R(s_t), the log-reward extended to states that have not ended; log R(x) from the end on.

        Raises ValueError where the environment extends none.
        """
        if not offers(self.env, PartialReward):
            raise ValueError(
                "this objective needs the reward of unfinished states: give the environment log_reward_partial(obs)"
            )
        return self.end_with_reward(self.at(self.env.log_reward_partial(self.states[0].flatten(0, 1)).to(self.theta.dtype)))

    def end_with_reward(self, x: Tensor) -> Tensor:
        """[T, S, n] at s_t -> [T + 1, S, n], log R(x) from the end on."""
        return torch.cat([torch.where(self.mask, x, self.log_reward), self.log_reward[None]])

    @cached_property
    def stops(self) -> Tensor:
        """[T, S, n] bool: this step kept a state that could have gone on (the stop action). ValueError where there is none."""
        return self.mask & (self.tau.action.view(self._shape) == self._stop)

    @property
    def _stop(self) -> int:
        if not offers(self.env, WithStop):
            raise ValueError("this objective needs an environment where every state can be kept: one with a `stop` action")
        return self.env.stop

    @cached_property
    def log_stop(self) -> Tensor:
        """[T + 1, S, n] log P_F(stop | s_t); 0 from the end on, where an object that cannot go on is kept for certain."""
        everywhere = torch.arange(self.states[1].flatten(0, 1).shape[0], device=self.theta.device)
        stop = self.action_logits.at(everywhere, torch.full_like(everywhere, self._stop)) - self.action_logits.total
        at = torch.where(self.mask, self.at(stop), 0.0)
        return torch.cat([at, torch.zeros_like(at[:1])])

    # -- the way back

    @property
    def _learned(self) -> bool:
        return self.backward in ("learned", "tlm")

    @cached_property
    def _counts(self) -> Tensor:
        """[T·B, A] how many edges each action has into s_t+1."""
        if self.static is not None and self.static.table is not None:
            return self.static.table.counts[self.static.number(*self.next)]
        return edges_in(self.env, *self.next)

    @cached_property
    def log_pb(self) -> Tensor:
        """[T, S, n]; to the objective a constant where it is uniform, maxent, or learned by a loss of its own."""
        if self._learned:
            return self.log_pb_learned.detach() if self.backward == "tlm" else self.log_pb_learned
        if self.backward == "maxent":
            there, here = self._log_paths(*self.next), self._log_paths(self.tau.obs.flatten(0, 1), ~self.tau.mask.flatten())
            return self._steps(here - there)
        counts = self.env.edge_count(*self.next) if offers(self.env, CountsParents) else self._counts.sum(-1)
        return self._steps(-counts.clamp_min(1).to(self.theta.dtype).log())

    @cached_property
    def log_pb_learned(self) -> Tensor:
        assert isinstance(self.outputs, DenseOutputs)
        every = self.model.backward_logits(self.outputs.out)
        logits = every.index_select(0, self.states[2][1:].flatten())
        at_ends = every.index_select(0, self.states[2][-1].repeat(self._shape[0]))
        ended = self.next[1][:, None]
        logits = torch.where(ended, at_ends, logits)  # rows of a trajectory beyond its end show its last state
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
        """[S]: weighted mean of [S, n] over trajectories, or of [T, S, n] over steps taken."""
        if self._alike and x.dim() == 2:
            return x.mean(1)
        weight = self.weight if x.dim() == 2 else self.weight * self.mask
        axes = (1,) if x.dim() == 2 else (0, 2)
        return (x * weight).sum(axes) / weight.sum(axes).clamp_min(1e-30)
