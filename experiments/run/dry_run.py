"""What a training run would be: its settings, sizes, memory and time, as text. Nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from experiments.run.memory import available, listed, shown

ITERATIONS = 4  # run for the clock; the first ones are slower


def measured(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(
    config: Mapping[str, Any],
    parameters: int,
    parts: Mapping[str, int],
    iterations: float,
    seconds: float,
    row: float,
    rows: int,
) -> str:
    """The text.

    Args:
        config: the resolved settings.
        parameters: of a seed.
        parts: bytes of the run's arrays, by what they are for.
        iterations: how many there would be.
        seconds: of one.
        row: seconds of one evaluation.
        rows: how many evaluations there would be.
    """
    total = iterations * seconds + rows * row
    free = shown(available(str(config.get("device", "cpu"))))
    return "\n".join(
        [
            json.dumps(config, indent=2, ensure_ascii=False),
            f"sizes: {config['seeds']:,} seeds × {parameters:,} parameters",
            f"memory: about {listed(parts)}; {free} are free",
            f"time: about {duration(total)}: {iterations:,.0f} iterations of {duration(seconds)} and {rows} evaluations of "
            f"{duration(row)}",
            "nothing was written",
        ]
    )


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "s")):
        if seconds >= unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{1000 * seconds:.1f} ms"
