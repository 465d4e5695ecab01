"""`--deterministic`: what it sets on CUDA, what it refuses; every method runs where torch refuses other algorithms."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import gflownet
import pgrl
from experiments.cli.errors import UserError
from experiments.run import device
from gflownet.registry import register as methods
from pgrl.registry import register as agents

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """A GPU that is there and not started; what is set there is put back."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    started = mock.Mock(return_value=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", started)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield started
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_what_is_set_on_cuda(cuda: mock.Mock) -> None:
    device.use_deterministic("cuda", True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    cuda.return_value = True  # the next run of this process
    device.use_deterministic("cuda:1", True)
    device.use_deterministic("cuda:1", False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_refused_on_cuda(cuda: mock.Mock) -> None:
    with pytest.raises(UserError, match=r"got --deterministic and --compile: .* leave one out"):
        device.use_deterministic("cuda", True, compiled=True)
    cuda.return_value = True
    with pytest.raises(UserError, match="CUDA was started without CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        device.use_deterministic("auto", True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_nothing_is_set_on_the_cpu(tmp_path: Path) -> None:
    run = pgrl.train("n-pg", env_steps=100, seeds=1, deterministic=True, quiet=True, out=tmp_path / "run")
    assert '"deterministic": true' in (run.folder / "config.json").read_text()
    assert '"deterministic": true' in (run.folder / "environment.json").read_text()
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_method_has_deterministic_algorithms(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        for name in agents():
            pgrl.train(name, env_steps=50, seeds=2, checkpoints=1, log_rows=2, quiet=True, out=tmp_path / name)
        for name in methods():
            settings = {"ndim": 2, "height": 4, "states": 16, "evaluations": 1, "log_rows": 1, "checkpoints": 1, "quiet": True}
            gflownet.train("hypergrid", name, out=tmp_path / "grid" / name, **settings)
    finally:
        torch.use_deterministic_algorithms(False)
