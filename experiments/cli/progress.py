"""A bar with rate and remaining time: on stderr in a terminal, below the cell in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def progress(total: int, unit: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """What is called with the number of `unit` done so far, of `total`; silent where there is no terminal and no notebook."""
    if quiet or not (sys.stderr.isatty() or in_notebook()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} / {{task.total:,.0f}} {unit}"),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task, begun, first = bar.add_task("", total=total, rate=""), time.monotonic(), -1

        def tick(done: int) -> None:
            nonlocal first
            first = done if first < 0 else first
            rate = (done - first) / max(time.monotonic() - begun, 1e-9)
            bar.update(task, completed=min(done, total), rate=f"{rate:,.0f}/s")

        yield tick
        bar.refresh()  # a notebook is not redrawn at the end


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel that can draw a bar; Rich draws with ipywidgets."""
    return "ipykernel" in sys.modules and find_spec("ipywidgets") is not None
