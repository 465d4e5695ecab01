"""`make gpu`: what a machine with a CUDA GPU has to show, in four parts of at most ten minutes each.

    python -m experiments.bench.gpu [tests] [grid] [molecules] [cli] [--out experiments/results/gpu.md]

    tests      the tests that need a GPU: the CPU's numbers, whole iterations as a graph, resume
    grid       iterations per second by batch, objective and number of seeds: captured, eager, and on the CPU
    molecules  molecules per second, trained and sampled; TF32 beside float32; the kernels of one iteration
    cli        the console scripts: train, sample, a killed run that resumes, gridworld with many seeds

A part writes its own section, which names the hardware; sections of other parts stay. No package of the project has to be
installed: the checkout is enough.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from envs.dag.hypergrid import HyperGrid
from experiments.bench.molecule_work import SEH, environment, problem_of, random_weights, training
from experiments.bench.molecules import FAILED, NETS, gpu_rows, line, reason
from experiments.cli.errors import UserError, guarded
from experiments.run.log import read_metrics
from experiments.run.out_file import whole_file
from experiments.run.provenance import commit, processor
from gflownet.gflownet import GFlowNet
from gflownet.problem import DagProblem
from gflownet.registry import register
from gflownet.static.capture import captured

ROOT = Path(__file__).resolve().parents[2]
TIMED_OUT = 124  # exit code
LIMIT = 540.0  # seconds of a part, after which what is left is reported as not run


@dataclass(frozen=True)
class Scale:
    """How much is measured. The defaults are those of a GPU; a test gives smaller ones.

    device   cuda, or cpu in tests         seconds  of measuring, for each figure
    batches  objects of an iteration       states, seeds  budgets of the commands, largest number of seeds
    """

    device: str = "cuda"
    seconds: float = 2.0
    batches: tuple[int, ...] = (16, 256, 4096, 65536)
    states: int = 400_000
    seeds: tuple[int, ...] = (1_000, 10_000, 100_000)
    limit: float = LIMIT


class Clock:
    """The time that a part has left."""

    def __init__(self, limit: float) -> None:
        self._end = time.monotonic() + limit

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


def head(*columns: str) -> list[str]:
    """The head of a table in Markdown."""
    return [line(*columns), "|" + "---|" * len(columns)]


def tests(scale: Scale, clock: Clock) -> Iterator[str]:
    """The tests with the marker `gpu`, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "--durations=5", "tests"]
    done = run(command, clock.left)
    yield from ("```", *done.stdout.strip().splitlines()[-12:], "```")
    if done.returncode == TIMED_OUT:
        yield "Not finished: out of time."
    elif done.returncode != 0:
        yield f"{FAILED} (exit code {done.returncode})."


def grid(scale: Scale, clock: Clock) -> Iterator[str]:
    """Hypergrids of R0 = 0.01: iterations/s of trajectory balance and flow matching, then where the time goes."""
    yield from head("grid", "objective", "batch", "seeds", "mode", "iterations/s", "objects/s", "capture s", "peak MB")
    on_gpu = scale.device != "cpu"
    ways = ("captured", "eager", "cpu") if on_gpu else ("eager",)
    for way in ways:
        for name in ("tb", "fm"):
            for batch in scale.batches[: 3 if way == "cpu" else None]:
                yield grid_row((4, 8), name, batch, way, 1, scale, clock)
    if on_gpu:
        for shape, name, batch, way, seeds in (
            *(((4, 8), name, 4096, "captured", 1) for name in ("db", "subtb")),
            *(((8, 8), "tb", batch, way, 1) for batch in (256, 4096) for way in ("captured", "eager")),
            ((2, 64), "tb", 4096, "captured", 1),
            *(((4, 8), name, 16, "captured", seeds) for name in ("tb", "fm") for seeds in (10, 100)),
        ):
            yield grid_row(shape, name, batch, way, seeds, scale, clock)
    batch = min(4096, scale.batches[-1])
    yield from ("", f"One iteration of TB, 4-D, H = 8, batch {batch:,}:", "")
    problem = DagProblem(HyperGrid(4, 8, 0.01, device=scale.device), (0,), batch, 10**6, scale.device)
    method = GFlowNet(register()["tb"].make())
    state = method.init(problem)
    for way in ways[:2] if on_gpu else ways:
        step = captured(method, problem, state) if way == "captured" else method.step
        step(state, problem, 0)
        yield from kernels(way, lambda step=step: step(state, problem, 1), scale.device)  # type: ignore[misc]


def grid_row(shape: tuple[int, int], name: str, batch: int, way: str, seeds: int, scale: Scale, clock: Clock) -> str:
    """Iterations/s of one case, or why there is no figure."""
    cells: list[Any] = [f"{shape[0]}-D, H = {shape[1]}", name, f"{batch:,}", seeds, way]
    if clock.left < 10 * scale.seconds:
        return line(*cells, "not run: out of time", "", "", "")
    device = "cpu" if way == "cpu" else scale.device
    try:
        problem = DagProblem(HyperGrid(*shape, 0.01, device=device), tuple(range(seeds)), batch, 10**6, device)
        method = GFlowNet(register()[name].make())
        state = method.init(problem)
        reset_peak(device)
        begun = time.monotonic()
        step = captured(method, problem, state) if way == "captured" else method.step
        capture = time.monotonic() - begun

        def iterations(n: int, t: int) -> None:
            nonlocal state
            for k in range(n):
                state, _ = step(state, problem, t + k)

        rate = per_second(iterations, scale.seconds, device, 20 if way == "captured" else 1)
    except (RuntimeError, ValueError) as error:
        return line(*cells, reason(error), "", "", "")
    return line(*cells, f"{rate:,.1f}", f"{rate * batch * seeds:,.0f}", f"{capture:.1f}" * (way == "captured"), peak(device))


def molecules(scale: Scale, clock: Clock) -> Iterator[str]:
    """The project's own table of molecules on a GPU, then TF32 and eager rows, then the kernels of one iteration."""
    on_gpu = scale.device != "cpu"
    if on_gpu:
        for text in gpu_rows(scale.seconds):
            yield text
            if clock.left < scale.limit / 3:
                yield "(the rest of this table was not run: out of time)"
                break
        yield ""
    env, made_of = environment(scale.device)
    yield from (f"Trajectory balance, {made_of}:", "")
    yield from head("net", "batch", "mode", "matmul", "molecules/s", "peak MB")
    batches = tuple(b for b in scale.batches if b >= 1024) or scale.batches[:1]
    ways = [("captured", "float32"), ("captured", "tf32"), ("eager", "tf32")] if on_gpu else [("eager", "float32")]
    for net in NETS:
        for batch in batches:
            for way, matmul in ways:
                yield molecule_row(env, net, batch, way, matmul, scale, clock)
    yield from ("", f"One iteration, net {next(iter(NETS))}, batch {batches[0]:,}:", "")
    work = training(next(iter(NETS.values())), problem_of(env, batches[0]), compiled=on_gpu)
    work(1)
    yield from kernels("captured" if on_gpu else "eager", lambda: work(1), scale.device)


def molecule_row(env: Any, net: str, batch: int, way: str, matmul: str, scale: Scale, clock: Clock) -> str:
    """Molecules/s of one case, or why there is no figure."""
    cells = (net, f"{batch:,}", way, matmul)
    if clock.left < 10 * scale.seconds:
        return line(*cells, "not run: out of time", "")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if matmul == "tf32" else "highest")
    try:
        reset_peak(scale.device)
        work = training(NETS[net], problem_of(env, batch), compiled=way == "captured")
        rate = per_second(lambda n, _: work(n), scale.seconds, scale.device, 2)
    except (RuntimeError, ValueError) as error:
        return line(*cells, reason(error), "")
    finally:
        torch.set_float32_matmul_precision(before)
    return line(*cells, f"{rate * batch:,.0f}", peak(scale.device))


def cli(scale: Scale, clock: Clock) -> Iterator[str]:
    """Commands as a user types them, each in a process of its own."""
    device, states = scale.device, scale.states
    compiled = ["--compile"] if device != "cpu" else []
    batch = min(4096, max(states // 8, 1))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        yield from head("command", "seconds", "rate", "result")
        weights = str(SEH / "proxy_best_params.npz" if SEH.exists() else random_weights(home / "random.npz"))
        trees = ["train", "molecules", "--objective", "tb", "--replay", "none", "--device", device]
        proxy = ["--reward", "seh", "--seh-weights", weights]  # stays on the GPU, as an iteration in a graph has to
        few = ["--evaluations", "1", "--checkpoints", "2", "--log-rows", "10"]
        for name, more in (
            ("mol", [*trees, *proxy, *compiled, "--batch-size", str(batch), "--states", str(states)]),
            ("eager", [*trees, "--reward", "qed", "--batch-size", str(max(batch // 4, 1)), "--states", str(states // 20)]),
        ):
            yield command_row("gflownet", [*more, *few], home / name, clock)
        for more in (["--n", str(states // 20), "--no-log-p"], ["--n", str(states // 200)]):
            arguments = ["sample", str(home / "mol"), *more, "--device", device, "--quiet", "--out", str(home / "drawn.csv")]
            yield command_row("gflownet", arguments, None, clock)
        grids = ["train", "hypergrid", "--device", device, *compiled, "--states", str(5 * states)]
        yield command_row("gflownet", [*grids, "--objective", "fm", "--batch-size", str(batch), *few], home / "fm", clock)
        yield killed_and_resumed(
            home / "killed", [*grids, "--objective", "tb", "--batch-size", str(max(batch // 16, 1))], clock
        )
        for seeds in scale.seeds:
            arguments = ["train", "n-harpg", "--env", "gridworld", "--device", device, "--seeds", str(seeds), "--log-rows", "5"]
            arguments += ["--env-steps", str(min(20_000, states)), "--evaluations", "2", "--checkpoints", "2"]
            yield command_row("pgrl", arguments, home / f"seeds{seeds}", clock)


def command_row(program: str, arguments: list[str], out: Path | None, clock: Clock) -> str:
    """Run one command; its rate is that of the last row of its metrics."""
    more = [] if out is None else ["--quiet", "--out", str(out)]
    shown = re.sub(r"\S*/", "", " ".join([program, *(a for a in arguments if a != "--quiet")]))
    if clock.left < 10:
        return line(f"`{shown}`", "", "", "not run: out of time")
    begun = time.monotonic()
    done = run([sys.executable, "-m", f"experiments.cli.{program}", *arguments, *more], clock.left)
    seconds = f"{time.monotonic() - begun:.1f}"
    if done.returncode == TIMED_OUT:
        return line(f"`{shown}`", seconds, "", "not finished: out of time")
    if done.returncode:
        return line(f"`{shown}`", seconds, "", f"{FAILED}: {last_line(done.stderr)}")
    return line(f"`{shown}`", seconds, "" if out is None else rate_of(out), "ok")


def killed_and_resumed(out: Path, arguments: list[str], clock: Clock) -> str:
    """SIGKILL after the second checkpoint, then `resume`; the run has to reach its budget."""
    what = "the same on TB, killed by SIGKILL and resumed"
    if clock.left < 90:
        return line(what, "", "", "not run: out of time")
    command = [
        sys.executable,
        "-m",
        "experiments.cli.gflownet",
        *arguments,
        "--checkpoints",
        "200",
        "--quiet",
        "--out",
        str(out),
    ]
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=process_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and clock.left > 60 and len(list((out / "checkpoints").glob("0*"))) < 2:
        time.sleep(0.05)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (out / "checkpoints").is_dir():
        return line(what, f"{time.monotonic() - begun:.1f}", "", f"{FAILED}: no checkpoint was written")
    done = run([sys.executable, "-m", "experiments.cli.gflownet", "resume", str(out), "--quiet"], clock.left)
    seconds, wanted = f"{time.monotonic() - begun:.1f}", json.loads((out / "config.json").read_text())["states"]
    if done.returncode or read_metrics(out)[-1]["states"] < wanted:
        return line(what, seconds, "", f"{FAILED}: {last_line(done.stderr) or 'the budget is not used up'}")
    return line(what, seconds, rate_of(out), "ok, though it had ended before the kill" if ended else "ok")


def rate_of(out: Path) -> str:
    """The last time/..._per_second of a run."""
    rates = [(tag, row[tag]) for row in read_metrics(out) for tag in row if tag.endswith("_per_second")]
    return f"{rates[-1][1]:,.0f} {rates[-1][0].removeprefix('time/').replace('_per_second', '/s')}" if rates else ""


def kernels(name: str, work: Callable[[], Any], device: str) -> Iterator[str]:
    """How many kernels a call launches, their time beside the wall clock, and the longest."""
    on_gpu = device != "cpu"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as seen:
        begun = time.monotonic()
        work()
        wait(device)
        wall = time.monotonic() - begun
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events: list[Any] = [e for e in seen.events() or [] if e.device_type == kind]

    def microseconds(event: Any) -> float:
        return float(event.device_time if on_gpu else event.self_cpu_time_total)

    total: dict[str, float] = {}
    for event in events:
        total[event.name] = total.get(event.name, 0.0) + microseconds(event)
    longest = sorted(total.items(), key=lambda item: -item[1])[:8]
    yield f"* {name}: {len(events):,} kernels, {sum(total.values()) / 1e3:.2f} ms of {1e3 * wall:.2f} ms wall (profiled)."
    yield from (f"  * {time / 1e3:.3f} ms `{kernel[:90]}`" for kernel, time in longest)


def per_second(work: Callable[[int, int], Any], seconds: float, device: str, chunk: int) -> float:
    """Iterations/s of work(how many, number of the first), after three to warm up."""
    work(3, 0)
    wait(device)
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        work(chunk, 3 + done)
        done += chunk
        wait(device)
    return done / (time.monotonic() - begun)


def wait(device: str) -> None:
    """Until the GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Begin to measure the peak of memory anew."""
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> str:
    """The peak of memory in MB since `reset_peak`, nothing on the CPU."""
    return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}" if device != "cpu" else ""


def last_line(text: str) -> str:
    """The last line of what a process printed."""
    return (text.strip().splitlines() or [""])[-1]


def process_environment() -> dict[str, str]:
    """The checkout need not be installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """A command from the checkout's root; one that takes longer than `seconds` ends with exit code 124."""
    try:
        return subprocess.run(
            command, cwd=ROOT, env=process_environment(), capture_output=True, text=True, timeout=max(seconds, 1)
        )
    except subprocess.TimeoutExpired as error:
        so_far = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        return subprocess.CompletedProcess(command, TIMED_OUT, so_far, f"out of time after {seconds:.0f} s")


PARTS: dict[str, Callable[[Scale, Clock], Iterator[str]]] = {"tests": tests, "grid": grid, "molecules": molecules, "cli": cli}


def hardware(device: str) -> str:
    """GPU, driver, versions and processor, in a line."""
    python = ".".join(map(str, sys.version_info[:3]))
    rest = (
        f"torch {torch.__version__}, Python {python}, {os.cpu_count()} cores of {processor()}, commit {(commit() or '?')[:12]}"
    )
    if device == "cpu":
        return f"CPU, {rest}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB), driver {driver}, CUDA {torch.version.cuda}, {rest}"


def write_section(out: Path, part: str, lines: list[str]) -> None:
    """Put the section `part` into the file; the others stay, and parts that were never run say so."""
    sections = dict.fromkeys(PARTS, "Not run yet.")
    if out.exists():
        found = re.split(r"^## (\w+)\n", out.read_text(), flags=re.MULTILINE)[1:]
        sections |= {name: body.strip() for name, body in zip(found[::2], found[1::2], strict=True) if name in PARTS}
    sections[part] = "\n".join(lines).strip()
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    with whole_file(out) as write:
        write(f"# On a GPU\n\nMade by `make gpu` (`python -m experiments.bench.gpu PART...`).\n\n{body}\n".encode())


def measure(part: str, scale: Scale, out: Path) -> bool:
    """Run a part, print and write its section. Whether nothing in it failed."""
    begun = time.monotonic()
    lines = []
    try:
        for text in PARTS[part](scale, Clock(scale.limit)):
            print(text, flush=True)
            lines.append(text)
    except Exception as error:  # what was measured before it is written all the same, and the next part runs
        lines += ["", f"{type(error).__name__} — {reason(error)}"]
        print(lines[-1], flush=True)
    when = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {time.monotonic() - begun:.0f} s"
    write_section(out, part, [f"*{hardware(scale.device)}; {when}.*", "", *lines])
    return not any(FAILED in text for text in lines)


def main(
    parts: tyro.conf.Positional[tuple[Literal["tests", "grid", "molecules", "cli"], ...]] = (),
    out: Path = Path("experiments/results/gpu.md"),
    seconds: float = Scale.seconds,
) -> None:
    """Check and measure on a CUDA GPU; write a section for each part.

    Args:
        parts: tests, grid, molecules, cli; default: all
        out: Markdown
        seconds: of measuring, for each figure
    """
    if not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device: run `make gpu` where there is one", exit_code=1)
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent}: make it, or choose another --out")
    good = [measure(part, replace(Scale(), seconds=seconds), out) for part in parts or PARTS]
    if not all(good):
        raise UserError(f"something failed: see {out}", exit_code=1)


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main), program="gpu")
