"""Vocabulary tables: sites, capacities and symmetries of each building block.

    block      a fragment with attachment points            site   an attachment point: an atom of a block
    capacity   the number of partners a site can have       orbit  sites that the block's automorphisms map to each other
    row        a pair (block, orbit): a way to attach a block. A vocabulary may restrict the sites by which a block attaches

The tables are pure tensors, independent of chemistry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

GROUP = 720  # the largest order of a block's symmetry group


@dataclass(frozen=True)
class Blocks:
    """C blocks with at most S sites and G symmetries, R rows ordered by block and then by site.

    capacity   [C, S]     0: there is no such site
    symmetry   [C, G, S]  image of site s under the g-th automorphism; padding repeats the identity
    orbit      [C, S]     the lowest site of a site's orbit
    joins      [C, S] bool  whether the block can be attached by this site
    row        [C, S]     the row of a site's orbit (0 where `joins` is False)
    row_block  [R]        row_site  [R] the lowest site of the orbit      first_row  [C] a block's first row
    sites                 number of sites of all blocks
    still_open            still_open[d]: the most open sites of any block with d partners
    """

    names: tuple[str, ...]
    capacity: Tensor
    symmetry: Tensor
    orbit: Tensor
    joins: Tensor
    row: Tensor
    row_block: Tensor
    row_site: Tensor
    first_row: Tensor
    sites: int
    still_open: tuple[int, ...]

    @property
    def C(self) -> int:
        return self.capacity.shape[0]

    @property
    def S(self) -> int:
        return self.capacity.shape[1]

    @property
    def R(self) -> int:
        return len(self.row_block)

    @staticmethod
    def of(
        names: Sequence[str],
        capacities: Sequence[Sequence[int]],
        symmetries: Sequence[Sequence[Sequence[int]]],
        joins: Sequence[Sequence[int]] | None = None,
    ) -> Blocks:
        """Build the tables of C blocks.

        Args:
            names: of the blocks.
            capacities: capacities[c][s], at least 1.
            symmetries: symmetries[c], a group of permutations of the sites of block c, with the identity.
            joins: joins[c], the sites by which block c can be attached, and with them their orbits; None: all sites.

        Raises:
            ValueError: there is no block, a block has no site or none to attach it by, a capacity is below 1, or permutations
                do not form a group of symmetries.
        """
        if not names or not len(names) == len(capacities) == len(symmetries):
            raise ValueError(f"got {len(names)} names, {len(capacities)} lists of capacities and {len(symmetries)} groups")
        for name, room, group in zip(names, capacities, symmetries, strict=True):
            _check(name, room, group)
        C, S, G = len(names), max(map(len, capacities)), max(map(len, symmetries))
        capacity = torch.zeros(C, S, dtype=torch.int64)
        symmetry = torch.arange(S).repeat(C, G, 1)
        for c, (room, group) in enumerate(zip(capacities, symmetries, strict=True)):
            capacity[c, : len(room)] = torch.tensor(room)
            for g, permutation in enumerate(group):
                symmetry[c, g, : len(room)] = torch.tensor(permutation)
        orbit = symmetry.amin(1)
        allowed = capacity > 0
        if joins is not None:
            allowed = _orbits_of(names, capacities, joins, orbit)
        first = (orbit == torch.arange(S)) & allowed
        number = (first.flatten().cumsum(0) - 1).view(C, S)
        row = torch.where(allowed, number.gather(1, orbit), 0)
        row_block, row_site = first.nonzero(as_tuple=True)
        return Blocks(
            names=tuple(names),
            capacity=capacity,
            symmetry=symmetry,
            orbit=orbit,
            joins=allowed,
            row=row,
            row_block=row_block,
            row_site=row_site,
            first_row=first.sum(1).cumsum(0) - first.sum(1),
            sites=sum(map(len, capacities)),
            still_open=_still_open(capacities),
        )

    def most_points(self, size: int) -> int:
        """Bound the number of open attachment points, from the vocabulary alone.

        Args:
            size: the most blocks of a tree, at least 1.

        Returns:
            A number that no tree of at most `size` blocks exceeds.
        """
        return _most_points(self.still_open, size)

    def to(self, device: torch.device | str) -> Blocks:
        """The same tables on `device`."""
        moved: dict[str, Any] = {f.name: x.to(device) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **moved)


@cache
def _most_points(still_open: tuple[int, ...], size: int) -> int:
    best, most = {0: 0}, 1  # by the sum of partners: the most open sites of n blocks
    for n in range(1, size + 1):
        longer: dict[int, int] = {}
        for total, points in best.items():
            for d, more in enumerate(still_open[: 2 * size - 1 - total]):
                longer[total + d] = max(longer.get(total + d, 0), points + more)
        best = longer
        most = max(most, best.get(2 * (n - 1), 0))  # n blocks have n - 1 bonds
    return most


def _still_open(capacities: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """A site of capacity c stays open with c - 1 partners: a block's first partners close none where they can."""
    rooms = [(len(room), sum(room)) for room in capacities]
    return tuple(
        max(sites - max(0, d - (total - sites)) for sites, total in rooms if total >= d)
        for d in range(max(total for _, total in rooms) + 1)
    )


def _orbits_of(
    names: Sequence[str], capacities: Sequence[Sequence[int]], joins: Sequence[Sequence[int]], orbit: Tensor
) -> Tensor:
    """[C, S] bool: the sites in the orbit of one of joins[c]."""
    chosen = torch.zeros_like(orbit, dtype=torch.bool)
    for c, (name, room, sites) in enumerate(zip(names, capacities, joins, strict=True)):
        if not sites or not set(sites) <= set(range(len(room))):
            raise ValueError(f"block {name} is attached by the sites {list(sites)}, expected some of its {len(room)} sites")
        chosen[c, orbit[c, list(sites)]] = True
    return chosen.gather(1, orbit)


def _check(name: str, room: Sequence[int], group: Sequence[Sequence[int]]) -> None:
    if not room or min(room) < 1:
        raise ValueError(f"block {name} has sites {list(room)}, expected at least one site, with capacities of at least 1")
    elements = {tuple(g) for g in group}
    whole = tuple(range(len(room)))
    if whole not in elements or any(sorted(g) != list(whole) for g in elements) or len(elements) > GROUP:
        raise ValueError(
            f"block {name}: expected its symmetries as at most {GROUP} permutations of its {len(room)} sites, with the identity"
        )
    if any(room[g[s]] != room[s] for g in elements for s in whole):
        raise ValueError(f"block {name}: a symmetry maps a site to one of another capacity")
    if any(tuple(g[h[s]] for s in whole) not in elements for g in elements for h in elements):
        raise ValueError(f"block {name}: its symmetries do not form a group: the product of two of them is missing")
