"""Static shapes: the same numbers as with distinct states, nothing read back from the device, the iteration as a CUDA graph.

Without a GPU the second is shown on the device "meta", whose tensors have shapes and no numbers: whoever asks for a number, or
for a shape that depends on one, gets an error.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from envs.dag.bits import Bits
from envs.dag.hypergrid import HyperGrid
from envs.pytree import tensors_of
from envs.rollout import rollout
from experiments.cli.gflownet import main
from experiments.run.log import read_metrics
from gflownet.baselines.metropolis import Metropolis
from gflownet.flows.edges import edges_of
from gflownet.flows.flows import Flows
from gflownet.gflownet import GFlowNet
from gflownet.objectives.subtrajectory_balance import SubTrajectoryBalance
from gflownet.problem import DagProblem
from gflownet.static.capture import CapturedIteration, captured
from gflownet.static.table import Static, table_of
from tests.dags import torch_twin
from tests.exact_flows import WORLDS, N, S, draws, fitting, loss_and_gradient, model_for, wander
from tests.gflownet.test_objectives import OBJECTIVES, feasible

F64 = torch.float64
TABLES = {name: table_of(env) for name, env in WORLDS.items()}
NEEDS_TABLE = ("fm", "fm-smoothing")
each_objective = pytest.mark.parametrize("name", OBJECTIVES)
each_backward = pytest.mark.parametrize("backward", ["uniform", "maxent", "learned"])
each_world = pytest.mark.parametrize("world", ["stop", "paper2021", "any", "detours"])
each_way = pytest.mark.parametrize("way", ["table", "dense"])


class Rows(Static):
    """One that never looks a net up in its table."""

    def looks_up(self, places: int) -> bool:
        return False


def static(env: Any, table: Any, way: str) -> Static:
    return (Static if way == "table" else Rows)(env, table)


# -- the same numbers


@each_world
@each_backward
@each_objective
def test_loss_and_gradient_are_those_of_distinct_states(name: str, backward: str, world: str) -> None:
    if not feasible(name, world):
        pytest.skip("needs a stop action")
    env, objective = WORLDS[world], OBJECTIVES[name]
    model = model_for(env, objective, backward)
    for seeds in (1, S):
        (tau, log_reward), weight = wander(env, seeds=seeds), draws(seeds, N, seed=1).exp()
        theta, found = draws(seeds, model.size), list[tuple[Tensor, Tensor]]()
        for way in (None, static(env, TABLES[world], "table"), static(env, TABLES[world], "dense"), Static(env)):
            if name in NEEDS_TABLE and way is not None and way.table is None:
                continue
            target, leaf = theta + draws(*theta.shape, seed=2) / 10, theta.clone().requires_grad_()
            flows = Flows(env, model, leaf, tau, log_reward, backward=backward, weight=weight, theta_target=target, static=way)
            found.append(loss_and_gradient(objective, flows))
        for loss, gradient in found[1:]:
            assert torch.allclose(loss, found[0][0], rtol=1e-12, atol=1e-12)
            assert torch.allclose(gradient, found[0][1], rtol=1e-12, atol=1e-12)
        assert found[0][1].abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tb", lambda table: replace(table, counts=table.counts + 1)),
        ("tb", lambda table: replace(table, valid=table.valid.roll(1, 0))),
        ("fm", lambda table: replace(table, valid=table.valid.roll(1, 0))),
        ("fm", lambda table: replace(table, child=table.child.roll(1))),
        ("fm", lambda table: replace(table, action=table.action.roll(1))),
    ],
)
def test_a_wrong_table_is_noticed(name: str, wrong: Any) -> None:
    env, objective = WORLDS["stop"], OBJECTIVES[name]
    model, (tau, log_reward) = model_for(env, objective, "uniform"), wander(env)
    theta = draws(S, model.size)
    right, other = (
        objective.loss(Flows(env, model, theta, tau, log_reward, static=Static(env, table)))
        for table in (TABLES["stop"], wrong(TABLES["stop"]))
    )
    assert ((right - other).abs() > 1e-3).all()


KNOBS: list[dict[str, Any]] = [
    {},
    {"backward": "tlm", "temperature": 1.5, "final_rate": 0.1},
    {"epsilon": 0.3, "epsilon_until": 0.5, "backward": "maxent"},
    {"heads": 2, "epsilon": 0.2},
]


@pytest.mark.parametrize(("knobs", "way"), list(zip(KNOBS, ("table", "dense") * 2, strict=True)), ids=str)
@each_objective
def test_static_iterations_arrive_where_ordinary_ones_do(name: str, knobs: dict[str, Any], way: str) -> None:
    env: Any = torch_twin(HyperGrid(2, 4))
    problem = DagProblem(env, (3, 8), 6, 8, dtype=F64)
    method = GFlowNet(OBJECTIVES[name], hidden=(16,), learning_rate=0.01, **fitting(OBJECTIVES[name], knobs))
    state = method.init(problem)
    iteration = CapturedIteration(method, problem, state, static(env, TABLES["stop"], way))
    iteration.load(state, 1)
    for t in range(1, 5):
        state, ordinary = method.step(state, problem, t)
        outcome = iteration()
        assert torch.equal(outcome.objects, ordinary.objects)
        assert torch.equal(outcome.log_reward, ordinary.log_reward)
        for tag, value in ordinary.metrics.items():
            assert torch.allclose(torch.as_tensor(outcome.metrics[tag]), torch.as_tensor(value), rtol=1e-9), tag
    theirs, ours = tensors_of(state), tensors_of(iteration.state)
    for key in theirs.keys() - ({"log_z"} if name in NEEDS_TABLE else set()):
        assert torch.allclose(ours[key].double(), theirs[key].double(), rtol=1e-9, atol=1e-12), key


# -- nothing is read back

META: dict[str, Any] = {
    "stop": HyperGrid(2, 4, device="meta"),
    "paper2021": HyperGrid(2, 4, convention="paper2021", device="meta"),
    "any": Bits(3, 1, 2, order="any", device="meta"),
}
META_PROBLEM = DagProblem(META["stop"], (3, 8), 6, 8, device="meta")
COPIES = ("copy_", "where", "index", "index_put", "index_put_", "_index_put_impl_", "cat", "stack")


class NothingCrosses(TorchDispatchMode):
    """No tensor goes from one device to another; in arithmetic an operand without axes may be the host's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        hosts, name = [x for x in tensors if x.device.type == "cpu"], func.overloadpacket.__name__
        mixed = 0 < len(hosts) < len(tensors) and (name in COPIES or any(x.dim() for x in hosts))
        sent = name == "_to_copy" and kwargs.get("device", tensors[0].device) != tensors[0].device
        if mixed or sent:
            raise RuntimeError(f"{name} brings numbers from one device to another")
        return func(*args, **kwargs)


class NothingIsSent(TorchFunctionMode):
    """No tensor, and no index, is made of the host's numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and not any(isinstance(x, Tensor) for x in args)
        index = args[1] if func in (Tensor.__getitem__, Tensor.__setitem__) else ()
        if made or isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(i, list) for i in index)):
            raise RuntimeError(f"{func.__name__} brings numbers to a device")
        return func(*args, **(kwargs or {}))


def on_meta(world: str, name: str, way: str, **knobs: Any) -> CapturedIteration:
    problem, method = (
        DagProblem(META[world], (3, 8), 6, 8, device="meta"),
        GFlowNet(OBJECTIVES[name], hidden=(16,), **fitting(OBJECTIVES[name], knobs)),
    )
    table = TABLES[world]
    assert table is not None
    return CapturedIteration(method, problem, method.init(problem), static(META[world], table.to("meta"), way))


def run_on_meta(iteration: CapturedIteration) -> None:
    with NothingCrosses(), NothingIsSent():
        outcome = iteration()
    assert outcome.objects.shape[:2] == outcome.log_reward.shape == (2, 6)


@each_way
@each_objective
def test_an_iteration_waits_for_no_number(name: str, way: str) -> None:
    run_on_meta(on_meta("stop", name, way))


@pytest.mark.parametrize("knobs", [*KNOBS[1:], {"backward": "learned"}, {"tabular": True}], ids=str)
@pytest.mark.parametrize("name", ["fm", "db"])
def test_nor_does_it_whatever_the_knobs(name: str, knobs: dict[str, Any]) -> None:
    run_on_meta(on_meta("paper2021", name, "table" if name == "fm" else "dense", **knobs))


@pytest.mark.parametrize("name", ["fm", "fl-subtb"])
def test_nor_in_a_world_whose_edges_are_searched_for(name: str) -> None:
    run_on_meta(on_meta("any", name, "table"))
    iteration = on_meta("any", "tb", "table")
    iteration._static = Static(META["any"])  # no table: the environment is asked
    with pytest.raises(NotImplementedError, match="nonzero"):
        run_on_meta(iteration)


def test_nor_with_a_reward_that_reads_numbers_back() -> None:
    """Of finished objects it is looked up; a forward-looking objective asks the function itself."""

    def reward(cells: Tensor) -> Tensor:
        return torch.tensor([1.0 + sum(cell) for cell in cells.tolist()])

    table = table_of(HyperGrid(2, 4, reward=reward))
    assert table is not None
    assert torch.allclose(table.log_reward.exp(), 1 + table.obs.sum(1).double(), rtol=1e-14)
    env = HyperGrid(2, 4, reward=reward, device="meta")
    for name, refused in (("subtb", False), ("fl-subtb", True)):
        problem, method = DagProblem(env, (3, 8), 6, 8, device="meta"), GFlowNet(OBJECTIVES[name], hidden=(16,))
        iteration = CapturedIteration(method, problem, method.init(problem), Static(env, table.to("meta")))
        if refused:
            with pytest.raises((RuntimeError, NotImplementedError)):
                run_on_meta(iteration)
        else:
            run_on_meta(iteration)


@pytest.mark.parametrize("residual", ["huber", "shifted-cosh"])
def test_nor_with_another_residual(residual: Any) -> None:
    problem, method = META_PROBLEM, GFlowNet(SubTrajectoryBalance(residual=residual), hidden=(16,))
    run_on_meta(CapturedIteration(method, problem, method.init(problem), Static(META["stop"])))


class _Act:
    """The first action."""

    def __call__(self, obs: Tensor, action_mask: Tensor, rng: Any) -> Tensor:
        return torch.zeros(len(obs), dtype=torch.int64, device=obs.device)

    def rows(self, lo: int, hi: int) -> Any:
        raise NotImplementedError


@each_objective
def test_an_ordinary_iteration_does(name: str) -> None:
    method = GFlowNet(OBJECTIVES[name], hidden=(16,))
    problem = META_PROBLEM
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|Meta"):
        method.step(method.init(problem), problem, 0)
    tau = rollout(META["stop"], _Act(), problem.rng(1).spawn(6), checks=False)
    flows = Flows(META["stop"], method.model(problem), method.init(problem).theta, tau, torch.zeros(12, device="meta"))
    with pytest.raises(NotImplementedError, match=r"nonzero|Meta"):
        _ = flows.states


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.unique(x),
        lambda x: torch.bincount(x),
        lambda x: x.masked_select(x > 0),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: torch.arange(3).to(x.device),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: x[torch.arange(2)],
        lambda x: x[[0, 1]],
        lambda x: torch.where(x > 0, x, torch.ones(())),
    ],
)
def test_waiting_is_noticed(wait: Any) -> None:
    x = torch.zeros(3, dtype=torch.int64, device="meta")
    with NothingCrosses(), NothingIsSent(), pytest.raises((RuntimeError, NotImplementedError)):
        wait(x)


# -- what cannot be


def test_flow_matching_needs_a_table() -> None:
    env, (tau, log_reward) = WORLDS["stop"], wander(WORLDS["stop"])
    model = model_for(env, OBJECTIVES["fm"], "uniform")
    with pytest.raises(ValueError, match="needs a table of all states"):
        edges_of(Flows(env, model, draws(S, model.size), tau, log_reward, static=Static(env)))
    assert table_of(HyperGrid(2, 400)) is None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (GFlowNet(OBJECTIVES["tb"], replay="fifo"), "--replay fifo"),
        (GFlowNet(OBJECTIVES["tb"], search_rounds=2), "--search-rounds 2"),
        (Metropolis(), "Metropolis cannot be captured"),
    ],
)
def test_what_cannot_be_captured_is_refused(method: Any, message: str) -> None:
    problem = DagProblem(WORLDS["stop"], (0,), 4)
    with pytest.raises(ValueError, match=message):
        captured(method, problem, method.init(problem))


def test_on_the_cpu_the_flag_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "hypergrid", "--objective", "fm", "--ndim", "2", "--states", "400", "--hidden", "8", "--device", "cpu"]
    for name, more in (("without", []), ("with", ["--compile"])):
        main([*command, "--quiet", "--out", str(tmp_path / name), *more])
        assert ("--compile" in capsys.readouterr().err) == bool(more)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("without", "with"))
    assert [row["train/loss"] for row in one[1:]] == [row["train/loss"] for row in two[1:]]


# -- the graph


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("name", "knobs"),
    [(name, {}) for name in OBJECTIVES]
    + [(name, knobs) for name in ("fm", "db") for knobs in [*KNOBS[1:], {"backward": "learned"}, {"tabular": True}]],
    ids=str,
)
def test_the_captured_iteration_is_the_ordinary_one(name: str, knobs: dict[str, Any]) -> None:
    env = HyperGrid(2, 4, device="cuda")
    problem = DagProblem(env, (3, 8), 6, 12, device="cuda", dtype=F64)
    method = GFlowNet(OBJECTIVES[name], hidden=(16,), learning_rate=0.01, **fitting(OBJECTIVES[name], knobs))
    ours = theirs = method.init(problem)
    step = captured(method, problem, ours)
    for t in range(10):
        ours, outcome = step(ours, problem, t)
        theirs, ordinary = method.step(theirs, problem, t)
        assert torch.equal(outcome.objects, ordinary.objects)
        assert torch.allclose(outcome.metrics["train/loss"], ordinary.metrics["train/loss"], rtol=1e-9)  # type: ignore[arg-type]
        assert torch.allclose(ours.theta, theirs.theta, rtol=1e-9, atol=1e-11)
    before = ours.theta.clone()
    step(ours, problem, 3)  # any iteration, from any state
    assert not torch.equal(ours.theta, before)
    again, _ = step(method.init(problem), problem, 0)
    assert torch.allclose(again.theta, method.step(method.init(problem), problem, 0)[0].theta, rtol=1e-9, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_reward_that_reads_numbers_back() -> None:
    """Of finished objects it is looked up; a forward-looking objective asks the function itself."""
    env = HyperGrid(2, 4, device="cuda", reward=lambda cells: cells.sum(1) + 1.0)
    problem, method = DagProblem(env, (0,), 8, device="cuda"), GFlowNet(OBJECTIVES["tb"], hidden=(8,))
    _, outcome = captured(method, problem, method.init(problem))(method.init(problem), problem, 0)
    assert torch.equal(outcome.log_reward[0], env.log_reward(outcome.objects[0]))
    method = GFlowNet(OBJECTIVES["fl-db"], hidden=(8,))
    with pytest.raises(ValueError, match="cannot be captured"):
        captured(method, problem, method.init(problem))
