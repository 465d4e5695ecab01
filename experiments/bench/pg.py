"""`make bench`: environment steps per second, learning included, beside the physics alone; wall clock and CPU time in one run.

    python -m experiments.bench.pg [--tasks HalfCheetah-v5 Hopper-v5 ...] [--seconds 6] [--cpu-only] [--out FILE]

Ratios are what to read: the floor of a task is measured before and after each method, on as many threads as there are CPUs,
with actions of the same policy, so that it visits the same states. CPU time is that of one thread without worker processes, the
median of three measurements next to the floor; on a busy machine wall clock says nothing, and `--cpu-only` leaves it out.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from envs.mdp.tabular import gridworld
from envs.rollout import rollout
from envs.workers import Workers
from experiments.pg.config import cpus
from experiments.run.provenance import processor
from pgrl.agent import Agent
from pgrl.agents.n_harpg import NHARPG
from pgrl.agents.n_pg_igt import NPGIGT
from pgrl.gradients import Estimator
from pgrl.policy import policy_for
from pgrl.problem import Problem

Clock = Callable[[], float]
CPU = time.process_time
AGENTS: dict[str, Agent] = {"N-PG-IGT": NPGIGT(step_size=0.02), "N-HARPG": NHARPG(step_size=0.02)}


def warmed(agent: Agent, problem: Problem, iterations: int) -> Any:
    """The agent's state after some training: episodes of an untrained policy that falls at once measure little but overhead."""
    state = agent.init(problem.theta())
    for t in range(iterations):
        state, _ = agent.step(state, problem.iteration(t))
    return state


def steps_per_second(agent: Agent, problem: Problem, state: Any, seconds: float, clock: Clock = time.perf_counter) -> float:
    begun, steps, t = clock(), 0, 1_000_000
    while (elapsed := clock() - begun) < seconds:
        world = problem.iteration(t)
        state, _ = agent.step(state, world)
        steps, t = steps + int(world.env_steps().sum()), t + 1
    return steps / elapsed


def on_one_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns with torch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def physics_floor(env: Any, actions: list[Any], seconds: float, threads: int, clock: Clock = time.perf_counter) -> float:
    """Steps per second of `mj_step` alone on recorded actions; with `time.thread_time`, per second of a thread's CPU time."""
    import mujoco

    model, skip = env._model, env.task.frame_skip

    def play(k: int) -> float:
        begun, steps = clock(), 0
        data = mujoco.MjData(model)
        while True:
            for episode in actions[k::threads] or actions:
                mujoco.mj_resetData(model, data)
                for action in episode:
                    data.ctrl[:] = action
                    mujoco.mj_step(model, data, skip)
                steps += len(episode)
                if (elapsed := clock() - begun) > seconds:
                    return steps / elapsed

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(play, range(threads)))


def mujoco_rows(task: str, seeds: int, seconds: float, cpu_only: bool = False) -> Iterator[str]:
    from envs.mdp.mujoco_env import MujocoEnv

    env = MujocoEnv(task)
    policy = policy_for(env, hidden=(64, 64))
    with contextlib.nullcontext() if cpu_only else Workers(env, max(1, cpus() - 1)) as workers:
        problem, alone = (Problem(env, policy, 0.99, tuple(range(seeds)), env.horizon, workers=w) for w in (workers, None))
        for name, agent in AGENTS.items():
            state = warmed(agent, problem, 3 if not env.terminates else 100)
            tau = problem.evaluate(state.theta, max(1, 16 // seeds), 0)
            actions = [a[m].numpy() for a, m in zip(tau.action.transpose(0, 1), tau.mask.T, strict=True)]
            wall = ""
            if not cpu_only:
                floors = [physics_floor(env, actions, seconds / 4, cpus())]
                ours = steps_per_second(agent, problem, state, seconds)
                floors.append(physics_floor(env, actions, seconds / 4, cpus()))
                floor = statistics.mean(floors)
                wall = f" {ours:,.0f} | {floor:,.0f} | **{ours / floor:.2f}** |"
            beside = sorted(_beside_physics(agent, alone, state, actions, seconds / 8) for _ in range(3))
            _, one, physics = beside[1]
            length = float(tau.mask.sum(0).double().mean())
            cpu = f" {1e6 / one:,.1f} | {1e6 / physics:,.1f} | **{one / physics:.2f}** |"
            yield f"| {task} | {seeds} | {name} |{wall}{cpu} {length:,.0f} |"


def _beside_physics(
    agent: Agent, problem: Problem, state: Any, actions: list[Any], seconds: float
) -> tuple[float, float, float]:
    """The ratio, steps per second of CPU time of one thread, and those of `mj_step` alone."""
    physics = physics_floor(problem.env, actions, seconds / 2, 1, time.thread_time)
    one = on_one_thread(lambda: steps_per_second(agent, problem, state, seconds, CPU))
    return one / physics, one, physics


def gridworld_rows(seconds: float) -> Iterator[str]:
    env = gridworld()
    policy = policy_for(env, dtype=torch.float64)
    for seeds in (1, 10, 100, 1000):
        problem = Problem(env, policy, 0.95, tuple(range(seeds)), 50)
        for name, agent in AGENTS.items():
            state = warmed(agent, problem, 3)
            wall, cpu = (steps_per_second(agent, problem, state, seconds / 2, clock) for clock in (time.perf_counter, CPU))
            yield f"| {seeds:,} | {name} | {wall:,.0f} | {1e6 / wall:,.2f} | {1e6 / cpu:,.2f} |"


def hessian_row(task: str, seeds: int = 10) -> str:
    """CPU time of a gradient and of a Hessian-vector product on the same trajectories, one thread."""
    from envs.mdp.mujoco_env import MujocoEnv

    env = MujocoEnv(task)
    policy = policy_for(env, hidden=(64, 64))
    problem = Problem(env, policy, 0.99, tuple(range(seeds)), env.horizon)
    theta = problem.theta()
    world = problem.iteration(0)
    tau = rollout(env, policy.actor(theta, 1, "numpy"), world._sample_rng, env.horizon)
    estimator = Estimator(policy, 0.99)
    gradient = on_one_thread(lambda: _median_cpu_seconds(lambda: estimator.gradient(theta, tau)))
    product = on_one_thread(lambda: _median_cpu_seconds(lambda: estimator.hessian_vector(theta, tau, theta)))
    steps = tau.mask.numel()
    micro = [f"{1e6 * seconds / steps:.2f}" for seconds in (gradient, product)]
    return f"| {task} | {policy.size:,} | {steps:,} | {' | '.join(micro)} | **{product / gradient:.1f}** |"


def _median_cpu_seconds(work: Callable[[], Tensor]) -> float:
    work()
    taken = []
    for _ in range(9):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


MEMORY = """
import sys
from envs.mdp.mujoco_env import MujocoEnv
from pgrl.agents.n_harpg import NHARPG
from pgrl.policy import policy_for
from pgrl.problem import Problem

task, seeds, horizon = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
env = MujocoEnv(task)
policy, agent = policy_for(env, hidden=(64, 64)), NHARPG(0.02)


def peak(seeds, horizon):
    problem = Problem(env, policy, 0.99, tuple(range(seeds)), horizon)
    state = agent.init(problem.theta())
    for t in range(3):
        state, _ = agent.step(state, problem.iteration(t))
    with open("/proc/self/status") as status:  # getrusage would tell the parent's peak
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


base = peak(1, 2)  # libraries loaded, nothing large yet
print(policy.size, (peak(seeds, horizon) - base) / 1024)
"""


def memory_row(task: str, seeds: int, horizon: int) -> str:
    """Peak memory of a fresh process that makes iterations of N-HARPG, above that of a tiny problem."""
    command = [sys.executable, "-c", MEMORY, task, str(seeds), str(horizon)]
    size, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return f"| {task} | {int(size):,} | {seeds} | {horizon:,} | {float(peak):,.0f} |"


def import_row(statement: str) -> str:
    """Wall clock and CPU time of a fresh process that does nothing else, medians."""
    wall, cpu = [], []
    for _ in range(7):
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", statement], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - begun)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return f"| `{statement}` | {statistics.median(wall):.2f} | {statistics.median(cpu):.2f} |"


def bench(
    tasks: tuple[str, ...] = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Humanoid-v5"),
    seconds: float = 6.0,
    cpu_only: bool = False,
    out: Path | None = None,
) -> None:
    """Measure and print; with --out also write the tables there.

    Args:
        tasks: MuJoCo tasks
        seconds: for each figure
        cpu_only: only CPU time of one thread, and only of the MuJoCo tasks
        out: Markdown file
    """
    lines: list[str] = []

    def say(*new: str) -> None:
        lines.extend(new)
        print("\n".join(new), flush=True)

    say(f"{processor()}, {cpus()} CPUs, Python {platform.python_version()}, torch {torch.__version__}", "")
    wall = "" if cpu_only else " environment steps/s | physics alone | ratio |"
    head = f"| task | seeds | method |{wall} CPU µs/step, one thread | physics alone | ratio | episode |"
    say(head, "|---" * (head.count("|") - 1) + "|")
    for task in tasks:
        for seeds in (10, 1):
            for row in mujoco_rows(task, seeds, seconds, cpu_only):
                say(row)
    if not cpu_only:
        _other_tables(tasks, seconds, say)
    if out is not None:
        out.write_text("Made by `python -m experiments.bench.pg --out FILE`.\n\n" + "\n".join(lines) + "\n")


def _other_tables(tasks: tuple[str, ...], seconds: float, say: Callable[..., None]) -> None:
    say(
        "",
        "| task | parameters | steps | gradient, CPU µs/step | Hessian-vector product, CPU µs/step | ratio |",
        "|---|---|---|---|---|---|",
    )
    say(hessian_row(tasks[0]), "")
    say("| task | parameters D | seeds | horizon | peak memory of N-HARPG, MiB |", "|---|---|---|---|---|")
    for seeds, horizon in ((5, 200), (10, 200), (10, 400), (20, 400)):
        say(memory_row("HumanoidStandup-v5", seeds, horizon))
    torch.set_num_threads(1)
    say("", "| gridworld, seeds | method | environment steps/s | µs a step | CPU µs a step |", "|---|---|---|---|---|")
    for row in gridworld_rows(seconds / 2):
        say(row)
    say("", "| a fresh process | seconds | CPU seconds |", "|---|---|---|")
    for statement in ("import pgrl", "import gflownet", "import torch", "import pgrl.agents.n_harpg, gflownet.gflownet"):
        say(import_row(statement))


if __name__ == "__main__":
    tyro.cli(bench)
