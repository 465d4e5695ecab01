"""The work that `make bench-molecules` times: networks, training, sampling, and the matrix products that are in them."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.molecules.config import MoleculeSettings, molecules
from experiments.recipes.gfn.registry import recipe_for
from gflownet.gflownet import GFlowNet
from gflownet.model import Model
from gflownet.problem import ITERATION, DagProblem
from gflownet.registry import register
from gflownet.rewards.seh import SHAPES
from gflownet.sampling.sampler import sampler
from gflownet.static.capture import captured
from gflownet.trees.network import BlockTreeNet

Run = Callable[[int], float]  # so many iterations -> mean steps of an episode, the stop included
SEH = Path(__file__).resolve().parents[3] / "shared/data/seh"
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}  # where the factors stand among the arguments


@dataclass(frozen=True)
class FourHeads(GFlowNet):
    """With a network of four heads and hidden units of four times the width."""

    def model(self, problem: DagProblem) -> Model:
        model = super().model(problem)
        assert isinstance(model.net, BlockTreeNet)
        return replace(model, net=replace(model.net, heads=4, ratio=4))


def small(objective: str = "tb") -> GFlowNet:
    return GFlowNet(register()[objective].make(), hidden=(64,) * 3)


def recipe() -> GFlowNet:
    """What a bare `gflownet train molecules --objective tb` does: half of what it learns from is drawn from a buffer."""
    return GFlowNet(register()["tb"].make(), **recipe_for("molecules").common)


def large() -> GFlowNet:
    """The peer's depth and width, 4 × 128, but 913,389 parameters on the blocks of 2021 where the peer's has 2,241,879."""
    return FourHeads(register()["tb"].make(), hidden=(128,) * 4)


def equal() -> GFlowNet:
    """As many parameters as the peer's network, to half a percent: 2,230,621."""
    return FourHeads(register()["tb"].make(), hidden=(204,) * 4)


def environment(device: str = "cpu") -> tuple[Any, str]:
    """The environment, and what it is made of."""
    settings = MoleculeSettings("seh", beta=10.0, r_min=0.1 / 8)
    if SEH.exists():
        settings = replace(settings, fragments=str(SEH / "blocks_PDB_105.json"), seh_weights=str(SEH / "proxy_best_params.npz"))
        return molecules(settings, device), "blocks of 2021 (merged), sEH proxy A"
    with tempfile.TemporaryDirectory() as folder:
        path = str(random_weights(Path(folder) / "random.npz"))
        return molecules(replace(settings, seh_weights=path), device), "our own fragments, sEH proxy A with *random weights*"


def random_weights(path: Path) -> Path:
    """Write a file of random weights of the sEH proxy, which costs as much time as the published one; returns its path."""
    rng = np.random.default_rng(0)
    weights: Any = {name: rng.normal(0, 0.3 / shape[-1] ** 0.5, shape) for name, shape in SHAPES.items()}
    np.savez(path, **{name: x.astype("f4") for name, x in weights.items()})
    return path


def problem_of(env: Any, batch: int) -> DagProblem:
    return DagProblem(env, (0,), batch, 1_000_000, str(env.device))


def training(method: GFlowNet, problem: DagProblem, compiled: bool = False) -> Run:
    state, t = method.init(problem), 0
    step = captured(method, problem, state) if compiled else method.step

    def run(n: int) -> float:
        nonlocal state, t
        lengths = []
        for _ in range(n):
            state, outcome = step(state, problem, t)
            lengths.append(torch.as_tensor(outcome.metrics["rollout/length"]).mean())
            t += 1
        return float(torch.stack(lengths).mean())

    return run


def drawing(method: GFlowNet, problem: DagProblem, scored: bool = False) -> Run:
    """With the policy as it is at the start, whose molecules are as large as they may be."""
    model, theta, t = method.model(problem), method.init(problem).theta, 0

    def run(n: int) -> float:
        nonlocal t
        for _ in range(n):
            tau = problem.play(sampler(problem.env, model, theta, problem.batch_size), problem.rng(ITERATION, t))
            t += 1
            if scored:
                problem.env.log_reward(tau.last)  # type: ignore[arg-type]
        return float(tau.mask.sum(0).float().mean())

    return run


def drawing_graph(method: GFlowNet, problem: DagProblem) -> Run:
    """The same as a CUDA graph."""
    model, theta = method.model(problem), method.init(problem).theta
    t = torch.zeros((), dtype=torch.int64, device=problem.device)

    def play() -> Tensor:
        act = sampler(problem.env, model, theta, problem.batch_size)
        tau = problem.play(act, problem.rng(ITERATION, t), checks=False)
        t.add_(1)
        return tau.mask.sum(0).float().mean()

    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        play()
        play()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        length = play()

    def run(n: int) -> float:
        for _ in range(n):
            graph.replay()
        return float(length)

    return run


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts products [b, m, k] × [b, k, n] by their shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[tuple[int, int, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (at := PRODUCTS.get(func.overloadpacket.__name__)) is not None:
            a, b = args[at].shape, args[at + 1].shape
            self.seen[(a[0] if len(a) == 3 else 1, a[-2], a[-1], b[-1])] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flop(self) -> float:
        return float(sum(2 * math.prod(shape) * count for shape, count in self.seen.items()))

    def seconds(self, device: str, passes: int = 5) -> float:
        """Of these products alone: CPU time on the CPU, elapsed time elsewhere."""
        clock = time.process_time if device == "cpu" else time.perf_counter
        factors: list[tuple[Tensor, Tensor, Tensor, int]] = []
        for (b, m, k, n), count in self.seen.items():
            x, y, out = (torch.randn(shape, device=device) for shape in ((b, m, k), (b, k, n), (b, m, n)))
            factors.append((x, y, out, count))
        taken = []
        for _ in range(passes + 1):
            begun = clock()
            for x, y, out, count in factors:
                for _ in range(count):
                    torch.mm(x[0], y[0], out=out[0]) if len(x) == 1 else torch.bmm(x, y, out=out)
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(clock() - begun)
        return statistics.median(taken[1:])
