"""`make bench-molecules`: molecules per second, trained, sampled and scored, and where the time goes; everything in one run.

    python -m experiments.bench.molecules [--seconds 5] [--out FILE.md]

The sEH proxy (variant A) on the blocks of 2021 where ../shared/data/seh is there, else random weights and our own fragments:
rates do not depend on the weights. On the CPU one thread runs. Rates are medians over windows, by wall clock with quartiles and
for each second of CPU time. Other processes disturb the latter less, so it is what targets and products are compared with.
"Products alone": the matrix products of the same work, by shape, done again with nothing around them: what arithmetic alone
needs. Figures of others cannot be measured beside ours and are quoted. The network 4 × 128 has the depth and width of the
peer's but fewer parameters; 4 × 204 has as many.
"""

from __future__ import annotations

import cProfile
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line has it; active: threads spin, on an idle machine

import torch
import tyro

from envs.molecules.atoms import assemble
from envs.molecules.block_trees import BlockTrees
from experiments.bench.molecule_work import (
    Products,
    Run,
    drawing,
    drawing_graph,
    environment,
    equal,
    large,
    problem_of,
    recipe,
    small,
    training,
)
from experiments.bench.peers.measure import per_second, timed
from experiments.pg.config import cpus
from experiments.run.provenance import processor
from gflownet.flows.flows import Flows
from gflownet.gflownet import GFlowNet
from gflownet.optimiser import Adam
from gflownet.problem import ITERATION, DagProblem
from gflownet.rewards.seh import SehProxy
from gflownet.sampling.sampler import sampler
from gflownet.static.capture import CapturedIteration
from gflownet.trees.actions import SparseLogits
from gflownet.trees.outputs import evaluate

Row = dict[str, Any]
FAILED = "**failed**"
BATCH, ORIGINAL = 64, 27  # molecules of an iteration; molecules/s of the original's proxy, one at a time
SCALING, SAMPLED, PROXY = (16, 64, 256, 1024), (64, 512), (1, 64, 512)
ON_GPU, FEW = (256, 1024, 4096, 16384), 1024  # FM on trees has no static shapes: larger batches are not measured
NETS = {"4 × 128": large(), "3 × 64": small()}
QUOTED = {"tb": "14–17", "fm": "1.4–2.8, original, batch 4", "sampled": "45–52", "sampled and scored": "28–35"}


def rated(run: Run, batch: int, seconds: float, device: str = "cpu", again: Callable[[], Any] | None = None) -> Row:
    """Molecules/s of `run`, and of its products alone (those of `again` where `run` itself hides them)."""
    row = per_second(run, seconds, "rate", batch)
    n = max(1, 256 // batch)  # molecules differ in size
    with Products() as products:
        for _ in range(n):
            again() if again else run(1)
    alone = products.seconds(device)
    row["by"] = 1000 / row["cpu_ms"] if device == "cpu" else row["rate"]  # what is compared
    return row | {"mflop": products.flop / n / batch / 1e6, "gflops": products.flop / alone / 1e9, "bound": n * batch / alone}


def cells(row: Row, target: float | None = None, quoted: str = "–") -> str:
    met = "–" if target is None else f"≥ {target:,.0f}: {'met' if row['by'] >= target else 'missed'}"
    wall = f"{row['rate']:,.4g} ({row['low']:,.3g}–{row['high']:,.3g})"
    ours = f"{wall} | **{1000 / row['cpu_ms']:,.4g}** | {row['mean_episode_length']:.1f} | {met} | {quoted}"
    alone = f"{row['mflop']:,.1f} | {row['gflops']:,.3g} | {row['bound']:,.4g} | {row['by'] / row['bound']:.0%}"
    return f"{ours} | {alone} | {row['others_cpus']:.1f} |"


HEAD = "molecules/s (quartiles) | a CPU second | steps | target | quoted, not measured in this run"
HEAD += " | MFLOP a molecule | GFLOP/s of the products alone | products alone, molecules/s | fraction | CPUs of others |"


# -- tables


def rates(env: Any, seconds: float) -> Iterator[str]:
    yield from table("Molecules/s, batch as given", "work", "net", "batch", HEAD)
    for net, method, targets in zip(NETS, NETS.values(), ((80, 300), (300, 1500)), strict=True):
        trained = rated(training(method, problem_of(env, BATCH)), BATCH, seconds)
        yield f"| trained, TB | {net} | {BATCH} | {cells(trained, targets[0], QUOTED['tb'])}"
        for batch in SAMPLED:
            for scored, name in enumerate(("sampled", "sampled and scored")):
                row = rated(drawing(method, problem_of(env, batch), bool(scored)), batch, seconds)
                quoted = QUOTED[name] + (", batch 64" if batch != BATCH else "")
                yield f"| {name} | {net} | {batch} | {cells(row, None if scored else targets[1], quoted)}"
    trained = rated(training(equal(), problem_of(env, BATCH)), BATCH, seconds)
    yield f"| trained, TB | 4 × 204 | {BATCH} | {cells(trained, None, QUOTED['tb'])}"
    sampled = rated(drawing(equal(), problem_of(env, BATCH)), BATCH, seconds)
    yield f"| sampled | 4 × 204 | {BATCH} | {cells(sampled, None, QUOTED['sampled'])}"
    for batch in SCALING:
        row = rated(training(small(), problem_of(env, batch)), batch, seconds)
        yield f"| trained, TB | 3 × 64 | {batch:,} | {cells(row)}"
    row = rated(training(recipe(), problem_of(env, BATCH)), BATCH, seconds)
    yield f"| trained, TB, the recipe's replay and ε | 3 × 64 | {BATCH} | {cells(row)}"
    row = rated(training(small("fm"), problem_of(env, BATCH)), BATCH, seconds)
    yield f"| trained, FM | 3 × 64 | {BATCH} | {cells(row, None, QUOTED['fm'])}"
    problem, nets = problem_of(env, BATCH), NETS | {"4 × 204": equal()}
    sizes = "; ".join(f"{net}: {method.model(problem).net.size:,}" for net, method in nets.items())
    yield from ("", f"Parameters: {sizes}; of the network that is quoted for training and sampling: 2,241,879.")


def shares(method: GFlowNet, problem: DagProblem, seconds: float) -> tuple[dict[str, float], float]:
    """Milliseconds of CPU time of an iteration by what they went into; how much slower the profiler made it."""
    run = training(method, problem)
    run(2)
    n = max(2, math.ceil(seconds / 4 / timed(run, 1)[0]))
    profile = cProfile.Profile(time.process_time, builtins=False)
    plain, profiled = _cpu_seconds(lambda: run(n)), _cpu_seconds(lambda: profile.runcall(run, n))
    profile.create_stats()
    known: Any = profile.stats  # function -> (.., .., .., seconds, the same by caller)

    def name(f: Any) -> tuple[str, int, str]:
        code = inspect.unwrap(f).__code__
        return code.co_filename, code.co_firstlineno, code.co_name

    def spent(*functions: Any) -> float:
        return sum(known[name(f)][3] for f in functions if name(f) in known)

    back = spent(BlockTrees.edge_count, BlockTrees.parents, BlockTrees.index)
    looked_up = known.get(name(evaluate), (0, 0, 0, 0.0, {}))
    in_loss = looked_up[4].get(name(Flows.outputs_at), (0, 0, 0, 0.0))[3]
    parts = {
        "environment, steps (canonical forms, masks)": spent(BlockTrees.reset, BlockTrees.step),
        "environment, edges into states": back,
        "atom graph": spent(assemble),
        "sEH proxy": spent(SehProxy.__call__) - spent(assemble),
        "net while sampling": looked_up[3] - in_loss,
        "drawing moves": spent(SparseLogits.draw),
        "net in the loss": in_loss,
        "the loss around it": spent(type(method.objective).loss) - in_loss - back,
        "backward": spent(torch.autograd.grad),
        "optimiser": spent(Adam.step),
    }
    parts["the rest"] = profiled - sum(parts.values())
    return {part: 1000 * x / n for part, x in parts.items()}, profiled / plain


def _cpu_seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def share_rows(env: Any, seconds: float) -> Iterator[str]:
    columns = {f"TB, {net}": method for net, method in NETS.items()} | {"FM, 3 × 64": small("fm")}
    yield from table(f"Where an iteration goes, batch {BATCH}: ms of CPU time (fraction)", "", *columns)
    found = [shares(method, problem_of(env, BATCH), seconds) for method in columns.values()]
    totals = [sum(parts.values()) for parts, _ in found]
    for part in found[0][0]:
        yield line(part, *(f"{parts[part]:,.1f} ({parts[part] / x:.0%})" for (parts, _), x in zip(found, totals, strict=True)))
    world = [sum(list(parts.values())[:3]) / x for (parts, _), x in zip(found, totals, strict=True)]
    yield line("**environment and atom graph**, ≤ 20 %", *(f"**{x:.0%}**: {'met' if x <= 0.2 else 'missed'}" for x in world))
    yield line("all, as profiled", *(f"{x:,.1f}" for x in totals))
    yield line("the profiler's slowing", *(f"× {slower:.2f}" for _, slower in found))


def proxy_rows(env: Any, seconds: float) -> Iterator[str]:
    problem = problem_of(env, max(PROXY))
    method = small()
    last = problem.play(
        sampler(env, method.model(problem), method.init(problem).theta, max(PROXY)), problem.rng(ITERATION)
    ).last
    assert last is not None
    original, single = f"× the original's {ORIGINAL} (quoted)", "× our batch 1"
    yield from table(
        "The sEH proxy as a reward",
        "batch",
        "molecules/s (quartiles)",
        "a CPU second",
        original,
        single,
        "products alone",
    )
    alone = 0.0
    for batch in PROXY:

        def run(n: int, batch: int = batch) -> float:
            for i in range(n):
                env.log_reward(last[i * batch % max(PROXY) :][:batch])
            return 0.0

        row = rated(run, batch, seconds / 2)
        alone, multiple = alone or row["by"], row["by"] / ORIGINAL
        met = "" if batch == 1 else f", ≥ 30: {'met' if multiple >= 30 else 'missed'}"
        rate = f"{row['rate']:,.4g} ({row['low']:,.3g}–{row['high']:,.3g})"
        by = f"**{row['by']:,.4g}**"
        yield line(batch, rate, by, f"{multiple:.1f}{met}", f"{row['by'] / alone:.1f}", f"{row['bound']:,.4g}")


def peak(batch: int) -> tuple[float, float]:
    """MB resident before the first of three iterations of TB, and at most; of a process that does nothing else. Linux."""
    torch.set_num_threads(1)
    run = training(small(), problem_of(environment()[0], batch))
    before = _resident("VmRSS")
    run(3)
    return before, _resident("VmHWM")


def _resident(which: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(x.split()[1] for x in lines if x.startswith(which))) / 1024


def memory_rows() -> Iterator[str]:
    yield from table("Memory, TB, 3 × 64", "batch", "MB before", "MB at most", "kB more for each molecule more")
    last: tuple[int, float] | None = None
    for batch in SCALING:
        code = f"import json; from experiments.bench.molecules import peak; print(json.dumps(peak({batch})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        if done.returncode:
            yield line(f"{batch:,}", f"not measured: {done.stderr.strip().splitlines()[-1]}", "–", "–")
            continue
        before, most = json.loads(done.stdout)
        more = "–" if last is None else f"{1024 * (most - last[1]) / (batch - last[0]):,.0f}"
        yield line(f"{batch:,}", f"{before:,.0f}", f"{most:,.0f}", more)
        last = batch, most


def gpu_rows(seconds: float) -> Iterator[str]:
    """TB as one CUDA graph, FM as it is, sampling as a graph; products are those of the same work without a graph."""
    env, _ = environment("cuda")
    yield from table(f"{torch.cuda.get_device_name()}, static shapes", "work", "net", "batch", HEAD)
    for net, method, batch in ((net, method, batch) for net, method in NETS.items() for batch in ON_GPU):
        problem = problem_of(env, batch)

        def tb(method: GFlowNet = method, problem: DagProblem = problem) -> tuple[Run, Callable[[], Any]]:
            return training(method, problem, compiled=True), CapturedIteration(method, problem, method.init(problem))

        def drawn(method: GFlowNet = method, problem: DagProblem = problem) -> tuple[Run, Callable[[], Any]]:
            plain = drawing(method, problem)
            return drawing_graph(method, problem), lambda: plain(1)

        def fm(problem: DagProblem = problem) -> tuple[Run, None]:
            return training(small("fm"), problem), None

        work: list[tuple[str, Callable[[], Any], float]] = [("trained, TB, --compile", tb, 50e3), ("sampled", drawn, 300e3)]
        work += [("trained, FM", fm, 10e3)] if method is NETS["3 × 64"] and batch <= FEW else []
        for name, made, target in work:
            try:
                run, again = made()
                yield f"| {name} | {net} | {batch:,} | {cells(rated(run, batch, seconds, 'cuda', again), target)}"
            except (RuntimeError, ValueError) as error:
                yield line(name, net, f"{batch:,}", reason(error), *"–" * 9)
            torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """Why a row has no figure. A GPU may be too small for a batch, which is no fault of the code."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{FAILED}: {(str(error).splitlines() or [type(error).__name__])[0][:120]}"


def line(*cells: Any) -> str:
    return f"| {' | '.join(str(x) for x in cells)} |"


def table(title: str, *columns: str) -> Iterator[str]:
    head = line(*columns).replace("| |", "|")
    yield from ("", f"**{title}**", "", head, "|---" * (head.count("|") - 1) + "|")


def bench(seconds: float = 5.0, out: Path = Path("experiments/results/molecules-speed.md")) -> None:
    """Measure, print, and write tables.

    Args:
        seconds: of measuring, for each figure
        out: Markdown
    """
    torch.set_num_threads(1)
    env, made_of = environment()
    waiting = os.environ.get("OMP_WAIT_POLICY", "not set")
    lines = [f"{processor()}, {cpus()} CPUs, Python {platform.python_version()}, torch {torch.__version__}, one thread"]
    lines[0] += f" (OMP_WAIT_POLICY {waiting}); {made_of}; {env.n_actions:,} actions, at most {env.max_blocks} blocks."
    parts = [rates(env, seconds), share_rows(env, seconds), proxy_rows(env, seconds), memory_rows()]
    if torch.cuda.is_available():
        parts.append(gpu_rows(seconds))
    for part in parts:
        for text in part:
            print(text, file=sys.stderr, flush=True)
            lines.append(text)
    if not torch.cuda.is_available():
        lines += ["", "On a GPU: not measured, there is none."]
    lines += [
        "",
        "Quoted: recursionpharma/gflownet f064713, seh_frag, TB, batch 64, graph transformer 4 × 128, and the code of 2021, on "
        "two shared cores of an AMD EPYC; not measured in this run. *steps*: of an episode. *products alone*: the "
        "matrix products of the same work (net and proxy), with nothing around them.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"# Speed on molecules\n\n`make bench-molecules`. {text}")


if __name__ == "__main__":
    tyro.cli(bench)
