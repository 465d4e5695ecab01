"""The atom graph of a batch of block trees, by table look-ups without RDKit. It is the input of the sEH proxy.

An atom's features follow from its block, its position there, the number of partners bonded to it, and whether one of the
partners conjugates with it: a nitrogen next to a carbonyl is SP2, next to a methyl SP3. So

    feature[block, atom, partners, conjugated]   conjugated = any over partners q of changes[kind of the site, kind of q's site]
    kind[block, site, partners]                  equivalence class of the site, as seen by a partner

`atom_tables` computes the tables with RDKit, once for a vocabulary. Bonds inside a block never change, bonds between blocks are
single. Shapes are static: K nodes with A atoms each, padded; `AtomGraph.compact` removes the padding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from envs.molecules.first_atom import FirstAtom

SINGLE, DOUBLE, TRIPLE, AROMATIC, BARE, NO_BOND = range(6)  # BARE: an edge without features, from the only atom to itself
ELEMENTS = 56  # the largest atomic number with a feature
WIDTH = 70  # feature columns, without that of open attachment points


@dataclass(frozen=True)
class AtomTables:
    """C blocks with at most A atoms, E directed bonds, S sites and P partners at a site; F distinct features, Q kinds of sites.

    size         [C]             atoms
    site_atom    [C, S]          the atom of a site
    atom_site    [C, A]          the site of an atom, S where there is none
    capacity     [C, S]          the most partners of a site
    kind         [C, S, P + 1]   in 0..Q-1, defined for one partner or more
    changes      [Q, Q] bool     whether an atom of the first kind changes next to one of the second
    feature      [C, A, P + 1, 2]  which row of `rows`, by partners and whether one of them changes the atom
    rows         [F, 70]         features: H C N O F other; 3 unused; aromatic; SP SP2 SP3; hydrogens; atomic number 1..56
    source, target, bond [C, E]  atoms and type of bonds inside a block, NO_BOND for padding
    first        the atom that stands for the open ones where there are none
    """

    size: Tensor
    site_atom: Tensor
    atom_site: Tensor
    capacity: Tensor
    kind: Tensor
    changes: Tensor
    feature: Tensor
    rows: Tensor
    source: Tensor
    target: Tensor
    bond: Tensor
    first: FirstAtom

    def to(self, device: torch.device | str) -> AtomTables:
        """The same tables on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class AtomGraph:
    """N atoms and M directed edges of `size` molecules, molecule after molecule.

    feature   [N]  row of `AtomTables.rows`        stem  [N] bool  marked as open (all False without stem mask)
    molecule  [N]  in 0..size-1, ascending         real  [N] bool  False for padding
    source, target, bond [M]  type 0..3, BARE or NO_BOND (padding: an edge from an atom to itself)
    """

    feature: Tensor
    stem: Tensor
    molecule: Tensor
    real: Tensor
    source: Tensor
    target: Tensor
    bond: Tensor
    size: int

    def compact(self) -> AtomGraph:
        """The same graph without padding. The host waits for the sizes."""
        atoms, edges = self.real.nonzero().squeeze(1), (self.bond != NO_BOND).nonzero().squeeze(1)
        number = self.real.cumsum(0) - 1
        return AtomGraph(
            feature=self.feature[atoms],
            stem=self.stem[atoms],
            molecule=self.molecule[atoms],
            real=self.real[atoms],
            source=number[self.source[edges]],
            target=number[self.target[edges]],
            bond=self.bond[edges],
            size=self.size,
        )


def assemble(
    tables: AtomTables, obs: Tensor, stem_mask: bool, open_sites: Tensor | None = None, padded: bool = False
) -> AtomGraph:
    """Assemble the atom graph of a batch of block trees.

    Args:
        tables: of the vocabulary.
        obs: [B, K, 4]; parents come before their children.
        stem_mask: mark the atoms of open attachment points; in a molecule without any, one atom by the rule of `FirstAtom`.
        open_sites: [B, K, S] bool, the attachment points to mark; in a molecule without any, atom 0 of node 0, the block that
            came first, as in the code of 2021. None: those with capacity left.
        padded: keep all B·K·A atoms, so that the host does not wait for the device.

    Returns:
        The graph of B molecules.
    """
    B, K = obs.shape[:2]
    S = tables.capacity.shape[1]
    A = tables.feature.shape[1]
    code, parent, own, up = obs.unbind(-1)
    present, block = code > 0, (code - 1).clamp(min=0)
    node = torch.arange(K, device=obs.device)
    child = present & (node > 0)
    here, there = node * S + own, parent * S + up  # the two ends of the bond to the parent, as indices into [K·S]

    partners = torch.zeros(B, K * S, dtype=torch.int64, device=obs.device)
    partners.scatter_add_(1, here, child.long()).scatter_add_(1, there, child.long())
    kind_here = tables.kind[block, own, partners.gather(1, here)]
    kind_there = tables.kind[block.gather(1, parent), up, partners.gather(1, there)]
    changed = torch.zeros_like(partners)
    changed.scatter_add_(1, here, (tables.changes[kind_here, kind_there] & child).long())
    changed.scatter_add_(1, there, (tables.changes[kind_there, kind_here] & child).long())

    def at_atoms(of_sites: Tensor) -> Tensor:  # [B, K·S] -> [B, K, A], 0 at atoms that are not a site
        of_sites = torch.nn.functional.pad(of_sites.view(B, K, S), (0, 1))
        return of_sites.gather(2, tables.atom_site[block])

    atom = torch.arange(A, device=obs.device)
    feature = tables.feature[block[..., None], atom, at_atoms(partners), (at_atoms(changed) > 0).long()]
    real = (atom < tables.size[block][..., None]) & present[..., None]
    stem = torch.zeros_like(real)
    if stem_mask:
        room = tables.capacity[block] > partners.view(B, K, S) if open_sites is None else open_sites
        stem = (at_atoms(room.long()) > 0) & real
        closed = ~stem.flatten(1).any(1)
        if open_sites is not None:
            stem[:, 0, 0] |= closed
        elif padded:
            at, number = tables.first(obs)
            stem |= ((at * A + number)[:, None] == torch.arange(K * A, device=obs.device)).view(B, K, A) & closed[:, None, None]
        elif bool(closed.any()):
            at, number = tables.first(obs[closed])
            stem[closed.nonzero()[:, 0], at, number] = True

    first = (torch.arange(B, device=obs.device)[:, None] * K + node) * A  # [B, K] index of the first atom of a node
    inner = torch.where(present[..., None], tables.bond[block], NO_BOND)
    a = first + tables.site_atom[block, own]
    b = first.gather(1, parent) + tables.site_atom[block.gather(1, parent), up]
    outer = torch.where(child, SINGLE, NO_BOND)
    alone = torch.where(real.flatten(1).sum(1) == 1, BARE, NO_BOND)
    graph = AtomGraph(
        feature=feature.flatten(),
        stem=stem.flatten(),
        molecule=torch.arange(B, device=obs.device).repeat_interleave(K * A, output_size=B * K * A),
        real=real.flatten(),
        source=_joined(first[..., None] + tables.source[block], a, b, first[:, 0]),
        target=_joined(first[..., None] + tables.target[block], b, a, first[:, 0]),
        bond=_joined(inner, outer, outer, alone),
        size=B,
    )
    return graph if padded else graph.compact()


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
