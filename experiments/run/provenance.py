"""Provenance of a run: versions, device, threads, processor, commit. No package is imported to find its version."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("pgrl", "torch", "numpy", "gymnasium", "mujoco", "tensorboard", "safetensors", "scikit-learn", "rdkit")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Versions, device, threads, processor, platform, commit and UTC time, as JSON; what is not there is null."""
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda,
        "deterministic": not on_gpu or torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "commit": commit(),
    }


def version(package: str) -> str | None:
    """Installed version, without importing the package; None when it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str | None:
    """The git commit of this source, "-dirty" appended when files differ from it; None when it is not a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # an installed copy may lie inside somebody else's repository
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def examine(train: Callable[[Path], None], what: str, count: int, unit: str) -> None:
    """Print provenance and the speed of a short run: the verb `doctor`.

    Args:
        train: makes the run in a folder.
        what: the run, in words.
        count: what it does, in `unit`.
        unit: "objects", "environment steps".
    """
    for name, value in provenance("cuda" if torch.cuda.is_available() else "cpu").items():
        print(f"{name:12s} {value}")
    folder = Path(tempfile.mkdtemp())
    try:
        begun = time.perf_counter()
        train(folder / "run")
        print(f"{'training':12s} ok: {what}, {count / (time.perf_counter() - begun):,.0f} {unit}/s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
