"""A GFlowNet's whole iteration as one CUDA graph: rollout, log-rewards, flows, loss, gradient, Adam, target network.

    buffers     θ, Adam's moments, the target, the number of the iteration: tensors that are changed in place
    warm up     one ordinary iteration, which checks the environment, and two in static shapes, on a separate stream
    capture     the iteration once more, without computation
    replay      one launch for each iteration; its results are copied out

Shapes are static (`static.table`). Random numbers and schedules are functions of the iteration's number, which is data, so that
the same kernels on the same buffers compute the next iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.pytree import numbers_of, rebuilt, tensors_of
from gflownet.gflownet import GFlowNet
from gflownet.problem import DagProblem, Method, Outcome
from gflownet.static.table import Static, table_of

Step = Callable[[Any, DagProblem, int], tuple[Any, Outcome]]


class CapturedIteration:
    """An iteration of a GFlowNet without arguments. `state`, and `t` (int64 on the device), are buffers changed in place.

    Args:
        method: the GFlowNet.
        problem: the problem.
        state: the initial state; it is copied.
        static: static shapes; None: with a table of the environment's states, if possible.

    Raises:
        ValueError: the method cannot be captured.
    """

    def __init__(self, method: Method, problem: DagProblem, state: Any, static: Static | None = None) -> None:
        if not isinstance(method, GFlowNet):
            raise ValueError(f"{type(method).__name__} cannot be captured, only GFlowNets can: leave out --compile")
        for name, plain in (("replay", "none"), ("search_rounds", 0)):
            if (value := getattr(method, name)) != plain:
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} {value} cannot be captured, it looks at what was found: leave out --compile, or --{flag}"
                )
        if method.overlap == "yes" or problem.scores_elsewhere:
            raise ValueError("rewards that are computed elsewhere cannot be captured: leave out --compile")
        self._method, self._problem = method, problem
        self._static = Static(problem.env, table_of(problem.env)) if static is None else static
        self.state = _copy(state)
        self.t = torch.zeros((), dtype=torch.int64, device=problem.device)

    def load(self, state: Any, t: int) -> None:
        """Set the state and the number t of the next iteration."""
        with torch.no_grad():
            for name, buffer in tensors_of(self.state).items():
                if buffer is not (given := tensors_of(state)[name]):
                    buffer.copy_(given)
        self.t.fill_(t)

    def count(self, n: int) -> None:
        """Count n rewards, which a graph computes without Python: those in a table of all states were known."""
        calls = self._problem.calls
        if self._static.table is None:
            calls.calls += n
        else:
            calls.cache_hits += n

    def __call__(self) -> Outcome:
        state, outcome = self._method.iteration(self.state, self._problem, self.t, self._static)
        self.state.log_z.copy_(state.log_z)
        self.t.add_(1)  # last: keys of random numbers are computed from it at first use
        return outcome


def captured(method: Method, problem: DagProblem, state: Any, t: int = 0) -> Step:
    """Capture `method.step` as a CUDA graph.

    Args:
        method: the GFlowNet.
        problem: the problem, on a CUDA device.
        state: the initial state.
        t: number of the first iteration.

    Returns:
        A function with the arguments of `method.step`. The state that it returns is in the buffers of the graph, which the next
        call overwrites: copy it to keep it.

    Raises:
        ValueError: the method is no GFlowNet, has replay or local search, is flow matching without a table of states, or the
            environment or objective reads values back (the reward of finished objects may do so if there is a table).
    """
    before = problem.calls.numbers()
    iteration = CapturedIteration(method, problem, state)
    with torch.cuda.device(problem.device):  # streams, graph and replay are those of the current device
        method.step(_copy(state), problem, t)
        graph, outcome = _capture(iteration, state, t)
    problem.calls.restore(before)  # of the warm-up no run keeps anything
    now = -1  # the number in iteration.t, where that is known

    def step(state: Any, problem: DagProblem, t: int) -> tuple[Any, Outcome]:
        nonlocal now
        if state is not iteration.state or t != now:
            iteration.load(state, t)
        with torch.cuda.device(problem.device):
            graph.replay()
        now = t + 1
        iteration.count(outcome.log_reward.numel())
        metrics = {tag: x.clone() if isinstance(x, Tensor) else x for tag, x in outcome.metrics.items()}
        return iteration.state, Outcome(outcome.objects.clone(), outcome.log_reward.clone(), metrics)

    return step


def _capture(iteration: CapturedIteration, state: Any, t: int) -> tuple[torch.cuda.CUDAGraph, Outcome]:
    torch.cuda.empty_cache()  # the warm-up and the graph keep blocks of their own
    aside, stream = (torch.cuda.Stream() for _ in range(2))  # type: ignore[no-untyped-call]
    graph, mode = torch.cuda.CUDAGraph(), torch.cuda.get_sync_debug_mode()
    aside.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(aside):
            iteration.load(state, t)
            iteration()  # fills caches
            torch.cuda.set_sync_debug_mode("error")
            iteration()
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, stream=stream):
            outcome = iteration()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"an iteration cannot be captured: {error}; leave out --compile") from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return graph, outcome


def _copy(state: Any) -> Any:
    return rebuilt(state, {name: x.clone() for name, x in tensors_of(state).items()}, numbers_of(state))
