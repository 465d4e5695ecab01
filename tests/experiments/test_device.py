"""The device of a run, and the precision of its matrix products. Machines with a GPU are imitated."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments.cli.errors import UserError
from experiments.cli.gflownet import main
from experiments.run.device import choose, matmul_on, use_matmul


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def never(_: str = "") -> float:
    raise AssertionError("nothing is to be measured")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto", lambda: True, never) == "cpu"
    assert choose("cpu", lambda: True, never) == "cpu"
    with pytest.raises(UserError, match="--device cuda: this machine has no CUDA device; use --device cpu"):
        choose("cuda", lambda: True, never)
    for wrong in ("gpu", "cuda:abc", "cuda:", "cpu:3"):
        with pytest.raises(UserError, match=f"--device is '{wrong}', expected auto, cpu, cuda or cuda:1"):
            choose(wrong, lambda: True, never)


def test_with_a_gpu_auto_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose("auto", lambda: True, {"cpu": 2.0, "cuda": 1.0}.__getitem__) == "cuda"
    assert choose("auto", lambda: True, {"cpu": 1.0, "cuda": 2.0}.__getitem__) == "cpu"
    assert choose("auto", lambda: False, never) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose("cuda:1", lambda: True, never) == "cuda:1"
    with pytest.raises(UserError, match="--device cuda:2: this machine has 2 CUDA devices, counted from cuda:0"):
        choose("cuda:2", lambda: True, never)


def test_tf32_is_the_default_on_cuda_alone() -> None:
    assert matmul_on("cuda:0", "auto") == "tf32"
    assert matmul_on("cuda", "float32") == "float32"
    assert matmul_on("cpu", "auto") == matmul_on("cpu", "float32") == "float32"
    use_matmul("cuda", "auto")
    assert torch.get_float32_matmul_precision() == "high"
    use_matmul("cpu", "auto")
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(UserError, match="--matmul tf32 needs a CUDA device, got device cpu"):
        use_matmul("cpu", "tf32")


def test_the_config_says_how_matrices_are_multiplied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "hypergrid", "--objective", "tb", "--ndim", "2", "--states", "32", "--device", "cpu", "--quiet"]
    main([*command, "--out", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["matmul"] == "float32"
    del config["matmul"]  # a run from before the setting was there
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    main(["resume", str(tmp_path / "run"), "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--matmul", "tf32", "--out", str(tmp_path / "other")])
    assert stopped.value.code == 2
    assert "--matmul tf32 needs a CUDA device" in capsys.readouterr().err
