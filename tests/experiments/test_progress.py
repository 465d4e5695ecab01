"""The progress bar: seen in a terminal and in a notebook, silent elsewhere."""

import importlib.machinery
import io
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

import pgrl
from experiments.cli.progress import in_notebook, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(quiet: bool = False) -> None:
    with progress(1000, "objects", quiet) as tick:
        for done in (0, 500, 1200):
            tick(done)


def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stderr is a terminal from here on; not in a fixture, because pytest replaces stderr after the set-up."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    return stream


def test_a_terminal_shows_count_unit_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = in_terminal(monkeypatch)
    shown()
    assert "1,000 / 1,000 objects" in terminal.getvalue()
    assert "/s" in terminal.getvalue()


def test_quiet_is_silent_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = in_terminal(monkeypatch)
    shown(quiet=True)
    assert terminal.getvalue() == ""


def test_a_pipe_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    shown()
    assert stream.getvalue() == ""


def test_training_from_python_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = in_terminal(monkeypatch)
    pgrl.train("n-pg", env_steps=200, out=tmp_path / "loud")
    assert "200 / 200 steps a seed" in terminal.getvalue()
    written = len(terminal.getvalue())
    pgrl.train("n-pg", env_steps=200, out=tmp_path / "quiet", quiet=True)
    assert len(terminal.getvalue()) == written


def test_a_notebook_shows_it_where_widgets_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # type: ignore[arg-type]
    assert not in_notebook()
    widgets = ModuleType("ipywidgets")
    widgets.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    assert in_notebook()


def test_training_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    runs: list[pgrl.PolicyGradientRun] = []
    thread = threading.Thread(target=lambda: runs.append(pgrl.train("n-pg", env_steps=100, out=tmp_path / "run", quiet=True)))
    thread.start()
    thread.join()
    assert len(runs) == 1
