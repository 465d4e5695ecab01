"""Where the tensors of a run live, and how a GPU multiplies matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import tyro

from experiments.cli.errors import UserError

Device = Annotated[
    str, tyro.conf.arg(help="auto, cpu or cuda; auto takes the GPU only when a measured iteration is faster there")
]
Matmul = Literal["auto", "tf32", "float32"]
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
