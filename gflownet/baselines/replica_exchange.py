"""Replica exchange Monte Carlo (Swendsen and Wang 1986, Geyer 1991): samples of R^β for several β at once, to stationarity.

n chains, each with a replica x_k for every inverse temperature β_1 < .. < β_K; in each sweep of each chain:
    x' ~ q(·|x_k),  a single-site proposal of the environment
    x_k <- x' with probability min(1, (R(x') / R(x_k))^β_k q(x_k|x') / q(x'|x_k))
    x_k <-> x_k+1 with probability min(1, (R(x_k) / R(x_k+1))^(β_k+1 - β_k)),  even k in even sweeps, odd k in odd ones

Every step leaves Π_k R(x_k)^β_k / Z(β_k) as it is. A replica wanders up and down the ladder, and forgets at small β where it
came from. With one β it is the Metropolis-Hastings of `metropolis.py`. Objects are those of the environment, so that of block
trees is the terminal distribution of a GFlowNet: over trees up to isomorphism, of which several can be the same molecule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.random import Rng
from gflownet.baselines.metropolis import log_acceptance

PROPOSE, ACCEPT, EXCHANGE = range(3)  # random streams of a sweep


class Replicas(NamedTuple):
    """objects [K·n, *obs], by β; log_reward [K·n] at β = 1."""

    objects: Tensor
    log_reward: Tensor


class Swept(NamedTuple):
    """After a sweep: the replicas; accepted [K] and exchanged [K - 1], fractions of the n chains, NaN where none was tried."""

    replicas: Replicas
    accepted: Tensor
    exchanged: Tensor


def sweep(env: Any, betas: Tensor, replicas: Replicas, rng: Rng, t: int) -> Swept:
    """One sweep.

    Args:
        env: the environment at β = 1, with propose(obs, rng) -> (x', log q(x|x') - log q(x'|x)) and log_reward(obs).
        betas: the inverse temperatures, increasing, [K] float64.
        replicas: before the sweep.
        rng: one random key, the same in all sweeps.
        t: number of the sweep.
    """
    K, n = len(betas), len(replicas.objects) // len(betas)
    rng = rng.fold(t)
    rng.dtype = torch.float64
    keys = rng.spawn(K * n)
    proposed, log_ratio = env.propose(replicas.objects, keys.fold(PROPOSE))
    log_reward, beta = env.log_reward(proposed), betas.repeat_interleave(n)
    accept = keys.fold(ACCEPT).uniform().log() < log_acceptance(beta * replicas.log_reward, beta * log_reward, log_ratio)
    source = torch.where(accept, torch.arange(K * n) + K * n, torch.arange(K * n))
    objects, rewards = torch.cat([replicas.objects, proposed]), torch.cat([replicas.log_reward, log_reward])

    source, tried = source.view(K, n), torch.arange(K - 1) % 2 == t % 2
    gain = (betas[1:] - betas[:-1])[:, None] * (rewards[source[:-1]] - rewards[source[1:]])
    exchange = (keys.fold(EXCHANGE).uniform().view(K, n)[:-1].log() < gain) & tried[:, None]
    lower, upper = source[:-1].clone(), source[1:].clone()
    source[:-1] = torch.where(exchange, upper, source[:-1])
    source[1:] = torch.where(exchange, lower, source[1:])
    after = Replicas(objects[source.flatten()], rewards[source.flatten()])
    return Swept(after, accept.view(K, n).double().mean(1), torch.where(tried, exchange.double().mean(1), torch.nan))


def log_z_ratio(log_reward: Tensor, betas: Tensor) -> Tensor:
    """log Z(β_k+1) / Z(β_k) from draws of both, by Bennett's acceptance ratio (1976).

    Args:
        log_reward: at β = 1, of equally many draws of each β, [K, m].
        betas: [K].

    Returns:
        [K - 1].
    """
    found = []
    for k in range(len(betas) - 1):
        step = float(betas[k + 1] - betas[k])
        found.append(bennett(step * log_reward[k], step * log_reward[k + 1]))
    return torch.stack(found) if found else betas[:0]


def bennett(forward: Tensor, reverse: Tensor, steps: int = 100) -> Tensor:
    """log Z_q / Z_p from w = log q(x) - log p(x), both not normalised.

    Args:
        forward: w of draws of p, [m].
        reverse: w of draws of q, [n].
        steps: bisections.
    """
    offset = torch.tensor(len(forward) / len(reverse), dtype=torch.float64).log()
    lo, hi = torch.minimum(forward.min(), reverse.min()), torch.maximum(forward.max(), reverse.max())
    lo, hi = lo - offset.abs() - 1, hi + offset.abs() + 1
    for _ in range(steps):
        log_z = (lo + hi) / 2
        excess = torch.sigmoid(forward - log_z - offset).sum() - torch.sigmoid(log_z + offset - reverse).sum()
        lo, hi = (log_z, hi) if excess > 0 else (lo, log_z)
    return (lo + hi) / 2
