"""A GFlowNet's whole iteration as one CUDA graph: rollout, log-rewards, flows, loss, gradient, Adam, target network.

    buffers     θ, Adam's moments, the target, the number of the iteration: tensors that are changed where they lie
    warm up     one ordinary iteration, which checks what the environment says, and two in static shapes, on a stream aside
    capture     the iteration once more, nothing is computed
    replay      one launch for each iteration; what it built is copied out

Shapes are static (`static.table`) and random numbers are a function of the iteration's number, which is data: so the same
kernels on the same buffers are the next iteration. Schedules are functions of that number too.
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
    """An iteration of `method` without arguments: `state` and `t`, int64 on the device, are buffers, changed in place.

    static  default: with the table of the environment's states, where it has one
    Raises ValueError for a method that cannot be captured.
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
        self._method, self._problem = method, problem
        self._static = Static(problem.env, table_of(problem.env)) if static is None else static
        self.state = _copy(state)
        self.t = torch.zeros((), dtype=torch.int64, device=problem.device)

    def load(self, state: Any, t: int) -> None:
        """The next iteration is number t, from this state."""
        with torch.no_grad():
            for name, buffer in tensors_of(self.state).items():
                if buffer is not (given := tensors_of(state)[name]):
                    buffer.copy_(given)
        self.t.fill_(t)

    def __call__(self) -> Outcome:
        state, outcome = self._method.iteration(self.state, self._problem, self.t, self._static)
        self.state.log_z.copy_(state.log_z)
        self.t.add_(1)  # last: keys of random numbers are worked out from it when they are first used
        return outcome


def captured(method: Method, problem: DagProblem, state: Any, t: int = 0) -> Step:
    """`method.step` from this state and iteration on, as a graph. `problem.device` is a CUDA device.

    The state that it returns lies in the graph's own buffers, which the next call overwrites: copy what is to be kept.
    Raises ValueError for what cannot be captured: other methods than GFlowNets, replay, local search, flow matching without a
    table of states, an environment or objective that reads numbers back (the reward of finished objects may, with a table).
    """
    iteration = CapturedIteration(method, problem, state)
    with torch.cuda.device(problem.device):  # streams, graph and replay are those of the current device
        method.step(_copy(state), problem, t)
        graph, outcome = _capture(iteration, state, t)
    now = -1  # the number in iteration.t, where that is known

    def step(state: Any, problem: DagProblem, t: int) -> tuple[Any, Outcome]:
        nonlocal now
        if state is not iteration.state or t != now:
            iteration.load(state, t)
        with torch.cuda.device(problem.device):
            graph.replay()
        now = t + 1
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
    except RuntimeError as error:
        raise ValueError(f"an iteration cannot be captured: {error}; leave out --compile") from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return graph, outcome


def _copy(state: Any) -> Any:
    return rebuilt(state, {name: x.clone() for name, x in tensors_of(state).items()}, numbers_of(state))
