"""Draws of R^β from molecules by replica exchange, in a folder from which it goes on: what a perfect sampler finds.

sweeps before 0    half of the chains (cold) sweep at the largest β alone: they start among the best, the others (hot) at
                   objects that uniform actions construct
first half         not recorded: the chains forget their starts
second half        log R of every replica after each sweep, the replica itself after every THIN-th
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.random import Rng
from envs.rollout import rollout
from experiments.cli.errors import UserError
from experiments.run import checkpoint
from gflownet.baselines.replica_exchange import Replicas, log_z_ratio, sweep
from gflownet.baselines.uniform import UniformActions

THIN = 10  # sweeps from one recorded object of a replica to the next
EVERY = 100  # sweeps between checkpoints
START, COLD, SWEEP = range(3)  # random streams


@dataclass(frozen=True)
class Plan:
    """What decides the draws, beside the environment."""

    betas: tuple[float, ...]
    """increasing"""
    chains: int
    """an even number: half start hot, half cold"""
    sweeps: int
    """of which the second half is recorded"""
    cold: int
    """sweeps at the largest beta before the start, of the cold half"""
    seed: int = 0


class Draws(NamedTuple):
    """log_reward [T, K, n] at β = 1, float64; objects [m, K, n, *obs]; accepted [K], exchanged [K - 1] over the recorded
    sweeps; the first n / 2 chains started hot. cpu: seconds."""

    betas: tuple[float, ...]
    log_reward: Tensor
    objects: Tensor
    accepted: Tensor
    exchanged: Tensor
    cpu: float

    def weights(self, beta: float) -> Tensor:
        """[T, K, n] w, sum 1: Σ w f(x) estimates the mean of f under R^β from the draws of all β together (MBAR, Shirts and
        Chodera 2008, with log Z by Bennett). So draws of a large β describe what is rare at a small one."""
        log_z = torch.cat([torch.zeros(1).double(), self.log_z_ratios().cumsum(0)])
        mixture = torch.stack([b * self.log_reward - z for b, z in zip(self.betas, log_z, strict=True)]).logsumexp(0)
        return (beta * self.log_reward - mixture).flatten().softmax(0).view(self.log_reward.shape)

    def log_z_ratios(self) -> Tensor:
        """[K - 1] log Z(β_k+1) / Z(β_k), by Bennett."""
        return log_z_ratio(self.log_reward.transpose(0, 1).flatten(1), torch.tensor(self.betas).double())

    def autocorrelation_time(self) -> Tensor:
        """[K] sweeps for one independent draw: T · variance of the chains' means / variance of log R."""
        means, values = self.log_reward.mean(0), self.log_reward.transpose(0, 1).flatten(1)
        return len(self.log_reward) * means.var(1) / values.var(1)


def best_share(values: Tensor, weights: Tensor, share: float) -> float:
    """Mean of the highest `share` (0 to 1) of a distribution, of values [m] with weights [m] of any sum."""
    values, order = values.flatten().sort(descending=True)
    weights = weights.flatten()[order] / weights.sum()
    taken = (weights.cumsum(0) - weights).lt(share) * weights
    taken[-1 + int((taken > 0).sum())] -= max(0.0, float(taken.sum()) - share)
    return float((values * taken).sum() / taken.sum())


def stationary(env: Any, plan: Plan, folder: Path) -> Draws:
    """Sweep to the end, from where the folder's checkpoint stands.

    Args:
        env: block trees, with their reward at β = 1.
        plan: what decides the draws.
        folder: of the checkpoint.

    Raises:
        UserError: the folder holds draws of another plan.
    """
    wanted = {**dataclasses.asdict(plan), "betas": list(plan.betas)}
    if checkpoint.saved(folder):
        tensors, meta = checkpoint.load_latest(folder)
        other = [key for key in wanted if meta["plan"].get(key) != wanted[key]]
        if other:
            differ = ", ".join(f"{key} {meta['plan'].get(key)}, got {wanted[key]}" for key in other)
            raise UserError(f"{folder} holds draws with {differ}: choose another folder, or give the settings of those draws")
    else:
        tensors, meta = _begun(env, plan), {"plan": wanted, "sweeps": 0, "cpu": 0.0}
    while meta["sweeps"] < plan.sweeps:
        started = time.process_time()
        tensors, done = _swept(env, plan, tensors, meta["sweeps"])
        meta = {**meta, "sweeps": done, "cpu": meta["cpu"] + time.process_time() - started}
        checkpoint.save(checkpoint.folder_of(folder, done), tensors, meta, keep=1)
    recorded = len(tensors["log_reward"])
    rates = (tensors["accepted"] / recorded, tensors["exchanged"] / tensors["tried"])
    return Draws(plan.betas, tensors["log_reward"].double(), tensors["drawn"].long(), *rates, meta["cpu"])


def finished(folder: Path, plan: Plan) -> bool:
    """Does the folder hold all sweeps?"""
    return folder.is_dir() and any(int(one.name) == plan.sweeps for one in checkpoint.saved(folder))


def _begun(env: Any, plan: Plan) -> dict[str, Tensor]:
    K, n = len(plan.betas), plan.chains
    rng = Rng.of_seeds([plan.seed])
    last = rollout(env, UniformActions(), rng.fold(START).spawn(K * n)).last
    assert last is not None
    cold = (torch.arange(K * n) % n) >= n // 2
    some = Replicas(last[cold], env.log_reward(last[cold]))
    for t in range(plan.cold):
        some = sweep(env, torch.tensor(plan.betas[-1:]).double(), some, rng.fold(COLD), t).replicas
    last[cold] = some.objects
    none = torch.zeros(0, K, n)
    return {
        "objects": last,
        "rewards": env.log_reward(last),
        "log_reward": none,
        "drawn": none.to(torch.int16).view(0, K, n, *(1,) * (last.dim() - 1)).expand(0, K, n, *last.shape[1:]),
        "accepted": torch.zeros(K).double(),
        "exchanged": torch.zeros(K - 1).double(),
        "tried": torch.zeros(K - 1).double(),
    }


def _swept(env: Any, plan: Plan, tensors: dict[str, Tensor], t: int) -> tuple[dict[str, Tensor], int]:
    """Up to EVERY sweeps more; the number of sweeps then."""
    betas, rng = torch.tensor(plan.betas).double(), Rng.of_seeds([plan.seed]).fold(SWEEP)
    replicas, end = Replicas(tensors["objects"], tensors["rewards"]), min(t + EVERY, plan.sweeps)
    rewards, objects = [tensors["log_reward"]], [tensors["drawn"]]
    rates = {name: tensors[name].clone() for name in ("accepted", "exchanged", "tried")}
    for i in range(t, end):
        replicas, accepted, exchanged = sweep(env, betas, replicas, rng, i)
        if i < plan.sweeps // 2:
            continue
        rates["accepted"] += accepted
        rates["exchanged"] += exchanged.nan_to_num()
        rates["tried"] += exchanged.isfinite()
        rewards.append(replicas.log_reward.float().view(1, len(betas), -1))
        if i % THIN == 0:
            objects.append(replicas.objects.to(torch.int16).view(1, len(betas), -1, *replicas.objects.shape[1:]))
    after = {"objects": replicas.objects, "rewards": replicas.log_reward}
    return {**after, "log_reward": torch.cat(rewards), "drawn": torch.cat(objects), **rates}, end
