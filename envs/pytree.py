"""Flattens states, nested NamedTuples of tensors and numbers, to dicts by name, and rebuilds them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def tensors_of(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state by name, those of NamedTuples inside it as outer/inner."""
    found: dict[str, Tensor] = {}
    for name, x in state._asdict().items():
        if isinstance(x, Tensor):
            found[prefix + name] = x
        elif hasattr(x, "_asdict"):
            found |= tensors_of(x, f"{prefix}{name}/")
    return found


def numbers_of(state: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a state that are not tensors, by name, as in `tensors_of`."""
    found: dict[str, Any] = {}
    for name, x in state._asdict().items():
        if hasattr(x, "_asdict"):
            found |= numbers_of(x, f"{prefix}{name}/")
        elif not isinstance(x, Tensor):
            found[prefix + name] = x
    return found


def rebuilt(state: Any, tensors: dict[str, Tensor], numbers: dict[str, Any], prefix: str = "") -> Any:
    """A state like `state`, with these tensors (moved to where its own are) and numbers. KeyError when one is missing."""
    parts: dict[str, Any] = {}
    for name, x in state._asdict().items():
        if isinstance(x, Tensor):
            parts[name] = tensors[prefix + name].to(x.device)
        elif hasattr(x, "_asdict"):
            parts[name] = rebuilt(x, tensors, numbers, f"{prefix}{name}/")
        else:
            parts[name] = numbers[prefix + name]
    return state._replace(**parts)
