"""torchgfn on the hypergrid, as its examples train it: `python experiments/bench/peers/torchgfn_bench.py --objective tb`.

One-hot input, MLP of 2 × 256 with LeakyReLU, uniform P_B; in DB and SubTB the state flow is a network of its own, as in the
examples unless they are told to tie it. The log-probabilities of sampling are kept, so that the loss need not compute them
again; FM, which cannot use them, samples without gradients. Adam is fused, debug checks are off, and so is
`try_compile_gflownet`, because it was slower. The row counts the parameters of all networks that are trained.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator  # type: ignore[import-not-found]
from gfn.gflownet import DBGFlowNet, FMGFlowNet, SubTBGFlowNet, TBGFlowNet  # type: ignore[import-not-found]
from gfn.gym import HyperGrid  # type: ignore[import-not-found]
from gfn.preprocessors import IdentityPreprocessor, KHotPreprocessor  # type: ignore[import-not-found]
from gfn.samplers import Sampler  # type: ignore[import-not-found]
from gfn.utils.modules import MLP, DiscreteUniform  # type: ignore[import-not-found]
from measure import arguments, check_rewards, distance_of, emit, header, load, log_z, per_second, race  # type: ignore[import-not-found]


def make_env(args: argparse.Namespace) -> Any:
    """Their grid, its rewards checked against the formula where all cells can be listed."""
    constants = {"R0": args.r0, "R1": 0.5, "R2": 2.0}
    env = HyperGrid(args.ndim, args.height, reward_fn_str="original", reward_fn_kwargs=constants, validate_modes=False)
    if args.height**args.ndim <= 1_000_000:
        check_rewards(env.reward_fn(cells(args)).numpy(), args.ndim, args.height, args.r0)
    return env


def cells(args: argparse.Namespace) -> torch.Tensor:
    """Every cell of the grid, int64 [H^n, n], last axis fastest."""
    return torch.from_numpy(np.indices((args.height,) * args.ndim).reshape(args.ndim, -1).T.copy())


def make_gflownet(args: argparse.Namespace, env: Any) -> Any:
    """The GFlowNet; with `--weights` the network of the forward policy, or of FM's edge flows, begins there."""
    preprocessor = KHotPreprocessor(height=args.height, ndim=args.ndim)

    def mlp(outputs: int) -> Any:
        return MLP(preprocessor.output_dim, outputs, hidden_dim=256, n_hidden_layers=2, activation_fn="leaky_relu")

    net = mlp(env.n_actions)
    if args.weights:
        with torch.no_grad():
            for layer, (w, b) in zip(linears(net), load(args.weights), strict=True):
                layer.weight.copy_(torch.from_numpy(w.T))
                layer.bias.copy_(torch.from_numpy(b))
    pf = DiscretePolicyEstimator(net, env.n_actions, preprocessor=preprocessor)
    if args.objective == "fm":
        return FMGFlowNet(pf)
    uniform = DiscreteUniform(env.n_actions - 1)
    pb = DiscretePolicyEstimator(uniform, env.n_actions, preprocessor=IdentityPreprocessor(args.ndim), is_backward=True)
    if args.objective == "tb":
        return TBGFlowNet(pf, pb, init_logZ=log_z(args.ndim, args.height, args.r0) if args.weights else 0.0)
    flow = ScalarEstimator(mlp(1), preprocessor=preprocessor)
    if args.objective == "db":
        return DBGFlowNet(pf, pb, flow)
    return SubTBGFlowNet(pf, pb, flow, weighting="geometric_within", lamda=0.9)


def linears(net: Any) -> list[torch.nn.Linear]:
    return [module for module in net.modules() if isinstance(module, torch.nn.Linear)]


def make_iteration(args: argparse.Namespace, env: Any, gflownet: Any) -> Any:
    """A function of nothing: one on-policy iteration (sample, loss, backward, Adam); it returns the trajectories."""
    named = dict(gflownet.named_parameters())
    groups = [{"params": [p for name, p in named.items() if name != "logZ"], "lr": args.lr}]
    if "logZ" in named:
        groups.append({"params": [named["logZ"]], "lr": args.lr_z})
    optimizer = torch.optim.Adam(groups, fused=True)
    on_policy, reduction = args.objective != "fm", "sum" if args.objective == "subtb" else "mean"

    def iteration() -> Any:
        with torch.set_grad_enabled(on_policy):
            trajectories = gflownet.sample_trajectories(env, n=args.batch, save_logprobs=on_policy)
        samples = gflownet.to_training_samples(trajectories)
        optimizer.zero_grad()
        gflownet.loss(env, samples, recalculate_all_logprobs=False, reduction=reduction).backward()
        optimizer.step()
        return trajectories

    return iteration


def main() -> None:
    args = arguments("torchgfn")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    row = header("torchgfn", version("torchgfn"), args) | {"compile_s": 0.0}
    env = make_env(args)
    gflownet = make_gflownet(args, env)
    row["parameters"] = sum(p.numel() for name, p in gflownet.named_parameters() if name != "logZ")
    iteration = make_iteration(args, env, gflownet)
    estimator = gflownet.logF if args.objective == "fm" else gflownet.pf
    sampler = Sampler(estimator)

    def train(n: int) -> float:
        return float(torch.stack([iteration().terminating_idx.double().mean() for _ in range(n)]).mean())

    def sample(n: int) -> float:
        with torch.no_grad():
            lengths = [sampler.sample_trajectories(env, n=args.batch).terminating_idx.double().mean() for _ in range(n)]
        return float(torch.stack(lengths).mean())

    def policy() -> Any:
        with torch.no_grad():
            states = env.states_from_tensor(cells(args))
            return estimator.to_probability_distribution(states, estimator(states)).probs.numpy()

    if args.mode == "race":
        for reached in race(train, distance_of(policy, args), args.seconds):
            emit(row | reached)
        emit(row)
    elif args.mode == "speed":
        emit(row | per_second(train, args.seconds, "iterations_per_s"))
    else:
        emit(row | per_second(sample, args.seconds, "trajectories_per_s", each=args.batch))


if __name__ == "__main__":
    main()
