"""How much memory a run will take, estimated before its arrays are made, and how much there is."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

from experiments.cli.errors import UserError

LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
CACHED = ("active_file", "inactive_file")  # in memory.stat: given back when memory is wanted
CGROUP = Path("/sys/fs/cgroup")


def available(device: str = "cpu") -> int:
    """Bytes that are free: of this machine, within the limits of a container and of the process, or of a GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = [] if most == resource.RLIM_INFINITY else [most]
    free += [int(line.split()[1]) * 1024 for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable")]
    for limit, used, stat in LIMITS:
        numbers = [line for name in (limit, used) for line in _lines(CGROUP / name)]
        if len(numbers) == 2 and all(x.isdigit() for x in numbers):
            held = dict(line.split() for line in _lines(CGROUP / stat))
            prefix = "total_" if "total_inactive_file" in held else ""
            cached = sum(int(held.get(f"{prefix}{name}", 0)) for name in CACHED)
            free.append(max(0, int(numbers[0]) - int(numbers[1]) + cached))
    return min(free, default=1 << 62)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def require(parts: Mapping[str, int], hints: Mapping[str, str], device: str = "cpu") -> None:
    """Refuse what does not fit.

    Args:
        parts: bytes by what they are for.
        hints: what to do where a part is the largest.
        device: where the arrays will be.

    Raises:
        UserError: they are more than is free.
    """
    total, free = sum(parts.values()), available(device)
    if total > free:
        largest = max(parts, key=lambda part: parts[part])
        raise UserError(f"this needs about {listed(parts)}, and {shown(free)} are free: {hints[largest]}")


def listed(parts: Mapping[str, int]) -> str:
    """The sum, and its parts from the largest on: "3.1 GB of memory (baseline 3.0 GB, parameters 0.1 GB)"."""
    largest = sorted(parts.items(), key=lambda part: -part[1])[:4]
    return f"{shown(sum(parts.values()))} of memory ({', '.join(f'{name} {shown(size)}' for name, size in largest)})"


def shown(size: int) -> str:
    """Bytes for people."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1000:.1f} kB"
