"""`GFlowNet`: trains a policy with an objective, exploration, replay and local search.

    in each iteration
        construct n objects with the exploring policy; evaluate their rewards
        (with `overlap`: construct those of the next iteration now, and wait for the rewards of these)
        improve them by local search;  add all trajectories to the buffer;  draw equally many from the buffer
        one step of Adam on objective.loss(flows of these trajectories)    (for tlm: + the loss of P_B)
        target <- (1 - τ) target + τ θ

With `heads` > 1 each trajectory is sampled from one of several policies on a common trunk, and each policy is trained on it
with probability 1/2: Thompson sampling (Rector-Brooks et al. 2023, 2306.17693). `tlm` trains P_B on -log P_B of the policy's
own trajectories (Gritsaev et al. 2024, 2410.15474). Differs from the paper: one step on the sum of both losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from envs.core import LearnerFault, Trajectories
from envs.random import Rng
from envs.ranges import Count, Fraction, Natural, Positive, Range, Weight, Widths, check_fields
from envs.rollout import Act
from gflownet.flows.flows import BACKWARD, Flows
from gflownet.model import Model
from gflownet.objectives import Objective, RestrictsBackward
from gflownet.objectives.trajectory_balance import trajectory_balance
from gflownet.optimiser import Adam
from gflownet.problem import INIT, ITERATION, DagProblem, Metrics, Outcome, skipped_batch
from gflownet.sampling.exploration import Exploration
from gflownet.sampling.local_search import LocalSearch, local_search
from gflownet.sampling.replay import Replay, replayed
from gflownet.sampling.sampler import sampler
from gflownet.sampling.tape import Tape
from gflownet.static.table import Static, TableSampler
from gflownet.trees.outputs import log_policy

SAMPLE, HEAD, SEARCH, DRAW, BOOTSTRAP = range(5)  # random streams of an iteration


class Waiting(NamedTuple):
    """Trajectories whose rewards are being computed: actions [S, n, T] int32. there: whether there are any."""

    actions: Tensor
    there: int


class Nothing(NamedTuple):
    """Rewards are waited for at once."""


class GFlowNetState(NamedTuple):
    """theta [S, D]; target [S, D] ([S, 0] without a target network); log_z [S], the objective's last estimate."""

    theta: Tensor
    adam: Adam
    target: Tensor
    log_z: Tensor
    replay: Replay
    waiting: Waiting | Nothing = Nothing()


@dataclass(frozen=True)
class GFlowNet:
    """A GFlowNet; the module docstring has the algorithm. Fields are flags of the command line."""

    objective: Objective
    """objective to minimise"""
    learning_rate: Positive = 1e-3
    """learning rate of Adam"""
    log_z_rate: Positive = 0.1
    """learning rate of log Z, where the objective has that parameter"""
    final_rate: Weight = 1.0
    """factor to which both learning rates decay by the end of training, geometrically"""
    log_z_start: Annotated[float, Range(-1e6, 1e6)] | Literal["auto"] = "auto"
    """initial log Z, where the objective has it; auto: the mean of log R + Σ log P_B - Σ log P_F of the first batch"""
    hidden: Widths = (256, 256)
    """widths of the network's hidden layers"""
    tabular: bool = False
    """a table of states instead of a network"""
    backward: Literal["uniform", "learned", "maxent", "tlm"] = "uniform"
    """backward policy: uniform, learned, maxent or tlm"""
    epsilon: Fraction = 0.0
    """probability of a uniform action while exploring"""
    epsilon_until: Weight = 1.0
    """fraction of training over which epsilon is annealed to 0; 1: constant"""
    temperature: Positive = 1.0
    """logits are divided by it while exploring"""
    replay: Literal["none", "fifo", "prioritised"] = "none"
    """replay buffer: none, fifo or prioritised by reward; half of each training batch is drawn from it"""
    capacity: Count = 10_000
    """trajectories in the replay buffer"""
    search_rounds: Natural = 0
    """rounds of local search in each iteration; every object constructed counts as visited"""
    search_depth: Weight = 0.5
    """fraction of a trajectory that local search destroys and reconstructs"""
    search_accept: Literal["better", "metropolis"] = "better"
    """acceptance rule of local search: better, or metropolis"""
    heads: Annotated[int, Range(1, 1_024)] = 1
    """number of forward policies that share one network (Thompson sampling)"""
    target_rate: Weight = 0.05
    """τ, the rate of the target network's moving average, where there is one"""
    overlap: Literal["auto", "yes", "no"] = "auto"
    """construct the next batch while the rewards of this one are computed, by a policy that is one update older; auto: where a
    function or program of yours computes them, unless there is local search"""

    def __post_init__(self) -> None:
        check_fields(self)
        able = self.objective.backwards if isinstance(self.objective, RestrictsBackward) else BACKWARD
        if self.backward not in able:
            raise ValueError(f"backward is {self.backward}, expected one that this objective supports: {', '.join(able)}")
        if self.overlap == "yes" and self.search_rounds:
            raise ValueError(
                f"overlap is yes with {self.search_rounds} search_rounds, which wait for rewards: choose one of them"
            )

    @property
    def _search(self) -> LocalSearch:
        return LocalSearch(self.search_rounds, self.search_depth, self.search_accept)

    def model(self, problem: DagProblem) -> Model:
        flow, back = "state_flow" in self.objective.uses, self.backward in ("learned", "tlm")
        return Model.of(problem.env, self.heads, flow, back, self.hidden, self.tabular)

    def init(self, problem: DagProblem) -> GFlowNetState:
        theta = self.model(problem).init(problem.rng(INIT), 0.0 if self.log_z_start == "auto" else self.log_z_start)
        target = theta.clone() if "target" in self.objective.uses else theta[:, :0]
        held = self.capacity if self.replay != "none" else 0
        log_z, waiting = torch.zeros_like(theta[:, 0]), self._no_batch(problem)
        return GFlowNetState(theta, Adam.begin(theta), target, log_z, Replay.begin(problem, held), waiting)

    def _no_batch(self, problem: DagProblem) -> Waiting | Nothing:
        ahead = problem.scores_elsewhere and not self.search_rounds if self.overlap == "auto" else self.overlap == "yes"
        shape = (len(problem.seeds), problem.batch_size, problem.env.horizon)
        return Waiting(torch.zeros(shape, dtype=torch.int32, device=problem.device), 0) if ahead else Nothing()

    def step(self, state: GFlowNetState, problem: DagProblem, t: int) -> tuple[GFlowNetState, Outcome]:
        return self.iteration(state, problem, t)

    def iteration(
        self, state: GFlowNetState, problem: DagProblem, t: int | Tensor, static: Static | None = None
    ) -> tuple[GFlowNetState, Outcome]:
        """`step`, with optional static shapes.

        With `static`, and t a tensor on the device, it is a fixed sequence of operations and nothing is read back to the host.
        The tensors of the state are then changed in place, except log_z; replay must be "none".
        """
        model, rng, theta = self.model(problem), problem.rng(ITERATION, t), state.theta
        tau, log_reward, objects, rewards, tape, waiting = self._build(model, state, problem, t, rng, static)
        length = problem.by_seed(tau.mask.sum(0)).float().mean(1)
        replay = state.replay
        if self.replay != "none":
            replay = replay.add(tau, log_reward)
            drawn = replay.draw(problem, problem.batch_size, self.replay == "prioritised", rng.fold(DRAW))
            tau, log_reward = _together(len(theta), (tau, log_reward), drawn)
            tape = None
        leaf = theta.detach().requires_grad_()
        known: dict[str, Any] = {"theta_target": state.target, "tape": tape, "static": static}
        flows = Flows(problem.env, model, leaf, tau, log_reward, backward=self.backward, **known)
        offset = self._log_z_offset(flows, problem, state.adam, look=static is None and problem.device == "cpu")
        if offset is not None:
            flows.log_z = flows.log_z + offset
        loss = self._loss(flows, rng)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        metrics: Metrics = {"train/loss": loss.detach(), "train/skipped": state.adam.skipped, "rollout/length": length}
        with torch.no_grad():  # before θ is updated in place: flows are computed on demand
            if "log_z" in self.objective.uses:
                metrics["train/residual"] = self._residual(flows, problem.batch_size)
            fine = torch.isfinite(loss.detach() + gradient.sum(1))
            log_z = torch.where(fine, self._of_each_seed("log_z", self.objective.log_z(flows), len(theta)), state.log_z)
            if offset is not None:
                theta[:, -1].add_(torch.where(fine, offset, 0.0))
        decay = self.final_rate ** _at_most_1(_real(t) / max(problem.iterations - 1, 1))
        state.adam.step(theta, gradient, self.learning_rate * decay, self.log_z_rate * decay, fine)
        if state.target.shape[1]:
            state.target.lerp_(theta, self.target_rate)
        fault = (
            {} if static or problem.device != "cpu" or bool(fine.all()) else skipped_batch(tau, log_reward, loss.detach(), fine)
        )
        state = GFlowNetState(theta, state.adam, state.target, log_z, replay, waiting)
        return state, Outcome(objects, rewards, metrics, fault)

    def _build(
        self, model: Model, state: GFlowNetState, problem: DagProblem, t: int | Tensor, rng: Rng, static: Static | None
    ) -> tuple[Trajectories, Tensor, Tensor, Tensor, Tape | None, Waiting | Nothing]:
        """(training trajectories, their log-rewards, all constructed objects [S, m, *obs], their log-rewards [S, m], tape,
        what waits for the next iteration)."""
        theta, waiting = state.theta, state.waiting
        if isinstance(waiting, Waiting):
            assert isinstance(t, int)
            tau, waiting = self._exchanged(model, theta, waiting, problem, t, rng)
            tape: Tape | None = None
        else:
            tau, tape = self._constructed(model, theta, problem, t, rng, static)
        assert tau.last is not None
        log_reward = (problem if static is None else static).log_reward(tau.last)
        objects, rewards = problem.by_seed(tau.last), problem.by_seed(log_reward)
        if self.search_rounds:
            found, reward, built, built_reward = local_search(
                problem, model, theta, tau, log_reward, self._search, self.backward, rng.fold(SEARCH)
            )
            tau, log_reward = _together(len(theta), (tau, log_reward), (found, reward))
            tape = None
            objects = torch.cat([objects, *(problem.by_seed(x) for x in built)], 1)
            rewards = torch.cat([rewards, *(problem.by_seed(x) for x in built_reward)], 1)
        return tau, log_reward, objects, rewards, tape, waiting

    def _exchanged(
        self, model: Model, theta: Tensor, waiting: Waiting, problem: DagProblem, t: int, rng: Rng
    ) -> tuple[Trajectories, Waiting]:
        """The batch of iteration t, and that of the next one, just constructed. The rewards of both are being computed."""
        if waiting.there:
            tau = replayed(problem, waiting.actions.flatten(0, 1).long().T.contiguous())
        else:
            tau, _ = self._constructed(model, theta, problem, t, rng, None)
        assert tau.last is not None
        problem.start_reward(tau.last)  # of a run that is resumed; otherwise it has started
        actions = torch.zeros_like(waiting.actions)
        if t + 1 >= (problem.last or problem.iterations):
            return tau, Waiting(actions, 0)
        ahead, _ = self._constructed(model, theta, problem, t + 1, problem.rng(ITERATION, t + 1), None)
        assert ahead.last is not None
        problem.start_reward(ahead.last)
        taken = torch.where(ahead.mask, ahead.action, 0).T.to(torch.int32)
        actions[..., : len(ahead.mask)] = problem.by_seed(taken)
        return tau, Waiting(actions, 1)

    def _constructed(
        self, model: Model, theta: Tensor, problem: DagProblem, t: int | Tensor, rng: Rng, static: Static | None
    ) -> tuple[Trajectories, Tape | None]:
        """Trajectories of the exploring policy, and the forward pass kept for the loss."""
        n, head = problem.batch_size, None
        if self.heads > 1:
            head = (rng.fold(HEAD).spawn(n).uniform() * self.heads).long()
        explore = Exploration(self._epsilon(problem, t), self.temperature)
        if static is not None and static.looks_up(n * problem.env.horizon):
            act: Any = TableSampler(static, model, theta, n, explore, head)
        else:
            act = sampler(problem.env, model, theta, n, explore, head)
        return problem.play(act, rng.fold(SAMPLE), n, checks=static is None), None if static else act.tape

    def _log_z_offset(self, flows: Flows, problem: DagProblem, adam: Adam, look: bool) -> Tensor | None:
        """[S], what to add to log Z: with log_z_start "auto", the residual of a seed's first update; None: 0 for all.

        look: whether the number of updates may be read back from the device.
        """
        if self.log_z_start != "auto" or "log_z" not in self.objective.uses or (look and bool(adam.steps.all())):
            return None
        return torch.where(adam.steps == 0, -self._residual(flows, problem.batch_size), 0.0)

    def _residual(self, flows: Flows, n: int) -> Tensor:
        """Mean of log Z + Σ log P_F - log R - Σ log P_B over the first n trajectories of each seed, those just built, [S]."""
        delta = trajectory_balance(flows.log_z[:, None], flows.log_pf, flows.log_pb, flows.log_reward)
        return delta[:, :n].mean(1).detach()

    def _epsilon(self, problem: DagProblem, t: int | Tensor) -> float | Tensor:
        if not self.epsilon or self.epsilon_until == 1:
            return self.epsilon
        left = 1 - _real(t) / (self.epsilon_until * problem.iterations)
        return self.epsilon * (left.clamp_min(0) if isinstance(left, Tensor) else max(0.0, left))

    def _loss(self, flows: Flows, rng: Rng) -> Tensor:
        """The loss of each seed, [S]."""
        if self.heads == 1:
            loss = self._of_each_seed("loss", self.objective.loss(flows), len(flows.theta))
        else:
            n = flows.log_reward.shape[1]
            weight = (rng.fold(BOOTSTRAP).spawn(n).uniform(self.heads) < 0.5).to(flows.log_reward.dtype).view(-1, n, self.heads)
            every = [
                self._of_each_seed("loss", self.objective.loss(flows.with_head(k, weight[..., k])), len(flows.theta))
                for k in range(self.heads)
            ]
            loss = torch.stack(every).mean(0)
        if self.backward == "tlm":
            loss = loss - flows.mean(flows.log_pb_learned.sum(0) / flows.mask.sum(0))
        return loss

    def _of_each_seed(self, name: str, x: Any, seeds: int) -> Tensor:
        """What the objective returned. LearnerFault where it is not one real number for each seed, the loss a function of θ."""
        got = f"type {type(x).__name__}"
        if isinstance(x, Tensor):
            if x.shape == (seeds,) and x.is_floating_point() and (name == "log_z" or x.requires_grad):
                return x
            got = f"shape {list(x.shape)} and type {x.dtype}{'' if x.requires_grad else ', which does not depend on θ'}"
        kind = type(self.objective).__name__
        raise LearnerFault(f"{name} of the objective {kind} returned {got}, expected one number for each seed, [{seeds}]")

    def log_pf(self, state: GFlowNetState, problem: DagProblem, obs: Tensor, valid: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(problem).log_pf(state.theta, obs.expand(len(state.theta), *obs.shape), valid)

    def log_pf_of(
        self, state: GFlowNetState, problem: DagProblem, obs: Tensor, valid: Tensor, row: Tensor, action: Tensor
    ) -> Tensor:
        """log P_F of action [E] at state row [E] of obs [M, *obs], with valid actions valid [M, A]; [heads, S, E]."""
        return log_policy(self.model(problem), state.theta, obs, row, action, valid)

    def actor(self, state: GFlowNetState, problem: DagProblem, n: int) -> Act | None:
        """The `Act` of the policies without exploration for S·n episodes; None with several heads."""
        return sampler(problem.env, self.model(problem), state.theta, n) if self.heads == 1 else None

    def log_z(self, state: GFlowNetState) -> Tensor:
        return state.log_z


def _real(t: int | Tensor) -> float | Tensor:
    return t.double() if isinstance(t, Tensor) else t


def _at_most_1(x: float | Tensor) -> float | Tensor:
    return x.clamp_max(1.0) if isinstance(x, Tensor) else min(1.0, x)


def _together(seeds: int, one: tuple[Trajectories, Tensor], other: tuple[Trajectories, Tensor]) -> tuple[Trajectories, Tensor]:
    """Two batches as one, the trajectories of a seed still in a row."""
    both = Trajectories.cat([one[0], other[0]])
    n, m = len(one[1]) // seeds, len(other[1]) // seeds
    place = torch.arange(seeds * (n + m), device=one[1].device)
    order = torch.cat([place[: seeds * n].view(seeds, n), place[seeds * n :].view(seeds, m)], 1).flatten()
    return both.columns(order), torch.cat([one[1], other[1]])[order]
