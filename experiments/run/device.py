"""Where the tensors of a run live, and how a GPU multiplies matrices."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
import tyro

from experiments.cli.errors import UserError

Device = Annotated[
    str, tyro.conf.arg(help="auto, cpu or cuda; auto takes the GPU only when a measured iteration is faster there")
]
Matmul = Literal["auto", "tf32", "float32"]
WORKSPACES = (":4096:8", ":16:8")  # of cuBLAS, with which its sums are deterministic
PRECISION = {"tf32": "high", "float32": "highest"}


def choose(name: str, usable: Callable[[], bool], seconds: Callable[[str], float]) -> str:
    """The device that `--device name` means.

    Args:
        name: auto, cpu, cuda, or cuda:1.
        usable: whether the environment has tensors that can live on a GPU.
        seconds: duration of an iteration on a device, which auto measures.

    Returns:
        The device; auto is the CPU, unless CUDA is there and an iteration is measured to be faster on it.

    Raises:
        UserError: an unknown device, or one that this machine does not have.
    """
    if name == "auto":
        devices = ("cpu", "cuda") if torch.cuda.is_available() and usable() else ("cpu",)
        return min(devices, key=seconds) if len(devices) > 1 else "cpu"
    require_device(name)
    return name


def check_device(config: Mapping[str, Any]) -> None:
    """UserError (exit code 3) where a config names a device that is none."""
    device = config.get("device", "cpu")
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UserError(f"config.json does not fit: device is {device!r:.40}, expected cpu, cuda or cuda:1", exit_code=3)


def require_device(name: str) -> None:
    """Raises UserError unless `name` is cpu, cuda or cuda:INDEX, and this machine has it."""
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    if colon and int(index) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: this machine has {count} CUDA device{'s' * (count > 1)}, counted from cuda:0")


def matmul_on(device: str, asked: Matmul) -> Matmul:
    """What `--matmul` means on a device: auto is tf32 on CUDA and float32 on the CPU. UserError for tf32 on the CPU."""
    if asked == "auto":
        return "tf32" if device.startswith("cuda") else "float32"
    if asked == "tf32" and not device.startswith("cuda"):
        raise UserError(f"--matmul tf32 needs a CUDA device, got device {device}: leave it out, or use --matmul float32")
    return asked


def use_matmul(device: str, asked: Matmul) -> None:
    """Set how this process multiplies float32 matrices."""
    torch.set_float32_matmul_precision(PRECISION[matmul_on(device, asked)])


def use_deterministic(device: str, asked: bool, compiled: bool = False) -> None:
    """`--deterministic`: let torch take only algorithms that give the same bits every time; on the CPU they all do.

    An operation without one raises when it is called, and torch names it.

    Args:
        device: cpu, cuda, cuda:1, or auto.
        asked: whether the run is to be deterministic.
        compiled: whether iterations are captured in a CUDA graph.

    Raises:
        UserError: together with --compile, or where CUDA was started before.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return
    if asked and compiled:
        raise UserError("got --deterministic and --compile: captured iterations may not be deterministic; leave one out")
    if asked and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in WORKSPACES:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise UserError(
                f"--deterministic: CUDA was started without CUBLAS_WORKSPACE_CONFIG={WORKSPACES[0]}, so its sums are not "
                "deterministic: set that variable before Python starts"
            )
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACES[0]
    torch.use_deterministic_algorithms(asked)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = asked, False
