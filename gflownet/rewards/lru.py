"""Values by key, computed once; beyond a size the least recently used are forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """A cache of `size` values, filled a batch at a time. `computed` counts the values that were not there."""

    def __init__(self, size: int) -> None:
        self.size, self.computed = size, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def __call__(self, keys: Sequence[Hashable], make: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """Look values up, and compute those that are missing.

        Args:
            keys: one for each value wanted; a key may come more than once.
            make: gives the values at some places of `keys`: the first place of each missing key, in order.

        Returns:
            One value for each key.
        """
        missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._values}
        places = sorted(missing.values())
        made = dict(zip((keys[i] for i in places), make(places) if places else (), strict=True))
        self.computed += len(made)
        found = [made[key] if key in made else self._values[key] for key in keys]
        for key, value in zip(keys, found, strict=True):
            self._values[key] = value
            self._values.move_to_end(key)
        self._shrink()
        return found

    def entries(self) -> Mapping[Hashable, T]:
        """All that is there, the least recently used first."""
        return self._values

    def replace(self, entries: Mapping[Hashable, T]) -> None:
        """Forget all, and take `entries`, the least recently used first."""
        self._values = OrderedDict(entries)
        self._shrink()

    def _shrink(self) -> None:
        while len(self._values) > self.size:
            self._values.popitem(last=False)
