"""A GPU gives the same results as the CPU: random bits, grids, trees, the sEH proxy; runs sample and resume there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.dag.hypergrid import HyperGrid
from envs.random import Rng
from experiments.cli.gflownet import main
from experiments.run.checkpoint import load_latest
from gflownet.gflownet import GFlowNet
from gflownet.problem import ITERATION, DagProblem
from gflownet.registry import register
from gflownet.sampling.sampler import sampler
from gflownet.static.capture import captured
from tests.devices import each_device, on_cuda

F64 = torch.float64
OBJECTIVES = [name for name, entry in register().items() if entry.objective]


def method_of(name: str, hidden: tuple[int, ...] = (32, 32)) -> GFlowNet:
    entry = register()[name]
    return GFlowNet(entry.make(**entry.preset), hidden=hidden)


@each_device
def test_random_numbers_are_the_same_bits(device: str) -> None:
    cpu, other = (Rng.of_seeds(range(5), d).fold(3).spawn(1000) for d in ("cpu", device))
    assert torch.equal(torch.as_tensor(cpu.key), torch.as_tensor(other.key).cpu())
    assert torch.equal(torch.as_tensor(cpu.uniform(3)), torch.as_tensor(other.uniform(3)).cpu())
    assert torch.allclose(cpu.normal(2), other.normal(2).cpu(), rtol=1e-6, atol=1e-7)


@each_device
@pytest.mark.parametrize("name", OBJECTIVES)
def test_iterations_on_the_grid(name: str, device: str) -> None:
    found = []
    for d in ("cpu", device):
        problem, method = DagProblem(HyperGrid(3, 5, 0.01, device=d), (0, 1), 16, 100, d, F64), method_of(name)
        state, outcomes = method.init(problem), []
        for t in range(4):
            state, outcome = method.step(state, problem, t)
            outcomes.append(outcome)
        found.append((state.theta.cpu(), [o.objects.cpu() for o in outcomes]))
    assert all(map(torch.equal, found[0][1], found[1][1]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-7, atol=1e-9)


def trees(device: str, tmp_path: Path) -> Any:
    pytest.importorskip("rdkit")
    from experiments.molecules.config import MoleculeSettings, molecules
    from gflownet.rewards.seh import SHAPES

    rng, path = np.random.default_rng(0), tmp_path / "weights.npz"
    weights: Any = {name: rng.normal(0, 0.3 / shape[-1] ** 0.5, shape).astype("f4") for name, shape in SHAPES.items()}
    np.savez(path, **weights)
    return molecules(MoleculeSettings("seh", beta=2.0, r_min=0.1, seh_weights=str(path), max_blocks=5), device)


@each_device
def test_trees_masks_and_proxy(device: str, tmp_path: Path) -> None:
    cpu, other = trees("cpu", tmp_path), trees(device, tmp_path)
    method, drawn = method_of("tb", (32,)), []
    for env, d in ((cpu, "cpu"), (other, device)):
        problem = DagProblem(env, (0,), 128, 100, d, F64)
        theta = method.init(problem).theta
        drawn.append(problem.play(sampler(env, method.model(problem), theta, 128), problem.rng(ITERATION, 1)))
    last, there = drawn[0].last, drawn[1].last
    assert float((last == there.cpu()).flatten(1).all(1).float().mean()) >= 0.99  # products are added up in another order
    ended = torch.zeros(len(last), dtype=torch.bool)
    masks = [env.state_at(last.to(d), ended.to(d)).action_mask for env, d in ((cpu, "cpu"), (other, device))]
    assert torch.equal(masks[0], masks[1].cpu())
    assert torch.allclose(cpu.log_reward(last), other.log_reward(last.to(device)).cpu(), atol=1e-3)


@each_device
def test_no_invalid_action_is_drawn(device: str, tmp_path: Path) -> None:
    """Cumulative sums of a GPU are added up in another order; what has no mass must still never be drawn."""
    env = trees(device, tmp_path)
    problem, method = DagProblem(env, (0,), 512 if device == "cpu" else 16_384, 1, device), method_of("tb", (32,))
    for t in range(4):
        theta = method.init(problem).theta * (1 + t)
        tau = problem.play(sampler(env, method.model(problem), theta, problem.batch_size), problem.rng(ITERATION, t))
        assert tau.action_mask is not None
        valid = tau.action_mask.gather(2, tau.action[..., None])[..., 0]
        assert bool((valid | ~tau.mask).all())


@each_device
@pytest.mark.parametrize("name", ["tb", "subtb", "fm"])
def test_iterations_on_trees(name: str, device: str, tmp_path: Path) -> None:
    losses = []
    for d in ("cpu", device):
        problem, method = DagProblem(trees(d, tmp_path), (0,), 16, 100, d, F64), method_of(name, (32,))
        _, outcome = method.step(method.init(problem), problem, 0)
        losses.append(torch.as_tensor(outcome.metrics["train/loss"]).cpu().double())
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)


@on_cuda
def test_the_captured_iteration_on_trees_is_the_ordinary_one(device: str, tmp_path: Path) -> None:
    problem, method = DagProblem(trees(device, tmp_path), (0,), 16, 100, device, F64), method_of("tb", (32,))
    ours = theirs = method.init(problem)
    step = captured(method, problem, ours)
    for t in range(3):
        ours, outcome = step(ours, problem, t)
        theirs, ordinary = method.step(theirs, problem, t)
        assert torch.equal(outcome.objects, ordinary.objects)
        assert torch.allclose(ours.theta, theirs.theta, rtol=1e-7, atol=1e-9)


@on_cuda
def test_the_graph_runs_on_the_problems_device(device: str) -> None:
    last = f"{device}:{torch.cuda.device_count() - 1}"
    problem, method = DagProblem(HyperGrid(2, 4, device=last), (0,), 8, 100, last), method_of("tb")
    state, _ = captured(method, problem, method.init(problem))(method.init(problem), problem, 0)
    assert str(state.theta.device) == last


@each_device
@pytest.mark.usefixtures("one_thread")
def test_molecules_are_sampled(device: str, tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    run, out = str(tmp_path / "run"), tmp_path / "drawn.csv"
    train = ["train", "molecules", "--objective", "tb", "--reward", "qed", "--states", "128", "--max-blocks", "3", "--quiet"]
    main([*train, "--device", device, "--out", run])
    main(["sample", run, "--n", "20", "--unique", "--device", device, "--out", str(out), "--quiet"])
    assert len({line.split(",")[0] for line in out.read_text().splitlines()[1:]}) == 20


@each_device
@pytest.mark.usefixtures("one_thread")
def test_a_run_is_resumed_on_its_device(device: str, tmp_path: Path) -> None:
    compiled = ["--compile"] if device == "cuda" else []
    command = ["train", "hypergrid", "--objective", "tb", "--ndim", "2", "--states", "640", "--dtype", "float64", "--quiet"]
    for name in ("whole", "stopped"):
        main([*command, *compiled, "--device", device, "--checkpoints", "4", "--out", str(tmp_path / name)])
    for later in sorted((tmp_path / "stopped" / "checkpoints").iterdir())[1:]:  # as if it had been killed there
        later.rename(tmp_path / later.name)
    main(["resume", str(tmp_path / "stopped"), "--quiet"])
    whole, resumed = (load_latest(tmp_path / name / "checkpoints")[0]["state/theta"] for name in ("whole", "stopped"))
    assert torch.equal(whole, resumed) if device == "cpu" else torch.allclose(whole, resumed, rtol=1e-9, atol=1e-11)


def test_the_checks_notice_another_number() -> None:
    """A negative control: another seed gives other objects."""
    method = method_of("tb")
    problem = DagProblem(HyperGrid(3, 5, 0.01), (0, 1), 16, 100, "cpu", F64)
    objects = [method.step(method.init(p), p, 0)[1].objects for p in (problem, replace(problem, seeds=(0, 2)))]
    assert not torch.equal(*objects)
