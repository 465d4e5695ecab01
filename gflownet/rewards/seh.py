"""`SehProxy`: the sEH proxy of Bengio et al. (2021) for batches of block trees.

    h = leaky_relu(features W0 + b0)         71 features -> 64: a look-up, because there are few distinct rows
    12 times:  m = leaky_relu(mean over edges j -> i of h_j W_type + h_i root + b)      h = GRU(input m, state h)
    q* = 0;  3 times:  q = LSTM(q*);  a = softmax over a molecule's atoms of h . q;  q* = [q ; sum of a h]
    p = q* W3 + b3;   a molecule of one atom has an edge to itself, without features

The edge network has five distinct inputs, four types of bonds and an edge without features, so that W_type is precomputed.
p is on the raw scale: 4 corresponds to -8.6 kcal/mol, a difference of 1 to 1.10 kcal/mol.

Implementations interpret the file of weights in different ways, and their results are not comparable:

    A    h root, atoms with open sites marked       the 2021 paper
    B    h rootᵀ, marked                            the trajectory-balance and sub-trajectory-balance papers
    C    h rootᵀ, no marks                          recursion's gflownet and its descendants
    A0   h root, no marks                           C without its transposition

In a molecule without open sites one atom is marked; `envs.molecules.first_atom` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, leaky_relu

from envs.molecules.atoms import BARE, NO_BOND, WIDTH, AtomGraph, AtomTables, assemble
from gflownet.rewards.restricted import read_weights

D = 64  # width of an atom's state
STEPS, READS = 12, 3  # rounds of messages, rounds of Set2Set
CHUNK = 64  # molecules in a chunk on the CPU, so that the working set fits into the cache
VARIANTS = {"A": (False, True), "B": (True, True), "C": (True, False), "A0": (False, False)}  # root transposed?, marks?

SHAPES: dict[str, tuple[int, ...]] = {
    "lin0.weight": (D, WIDTH + 1),
    "lin0.bias": (D,),
    "conv.root": (D, D),
    "conv.bias": (D,),
    "conv.nn.0.weight": (128, 4),
    "conv.nn.0.bias": (128,),
    "conv.nn.2.weight": (D * D, 128),
    "conv.nn.2.bias": (D * D,),
    "gru.weight_ih_l0": (3 * D, D),
    "gru.weight_hh_l0": (3 * D, D),
    "gru.bias_ih_l0": (3 * D,),
    "gru.bias_hh_l0": (3 * D,),
    "lin1.weight": (512, D),
    "lin1.bias": (512,),
    "lin2.weight": (105, 512),
    "lin2.bias": (105,),
    "set2set.lstm.weight_ih_l0": (4 * D, 2 * D),
    "set2set.lstm.weight_hh_l0": (4 * D, D),
    "set2set.lstm.bias_ih_l0": (4 * D,),
    "set2set.lstm.bias_hh_l0": (4 * D,),
    "lin3.weight": (1, 2 * D),
    "lin3.bias": (1,),
}


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read the 22 arrays of the published `best_params.pkl.gz`, or of an `.npz`; errors as `restricted.read_weights`."""
    return read_weights(path, SHAPES)


class SehProxy:
    """The proxy, obs [B, K, 4] -> p [B], without gradients. Shapes follow the data on the CPU and are static elsewhere.

    Args:
        weights: from `load_weights`.
        tables: atom tables of the vocabulary.
        variant: A, B, C or A0, as in the module docstring.
        dtype: of the computation and the result.
        device: of the weights.

    Raises:
        ValueError: the variant is unknown.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        tables: AtomTables,
        variant: str = "A",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"got variant {variant!r} of the sEH proxy, expected one of {', '.join(VARIANTS)}")
        transposed, self.stem_mask = VARIANTS[variant]
        w = {name: torch.as_tensor(array).to(torch.float64) for name, array in weights.items()}
        edge = torch.cat([torch.eye(4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)])
        edge = leaky_relu(edge @ w["conv.nn.0.weight"].T + w["conv.nn.0.bias"])
        atom = tables.rows.to("cpu", torch.float64) @ w["lin0.weight"][:, :WIDTH].T + w["lin0.bias"]

        def put(x: Tensor) -> Tensor:
            return x.to(device, dtype).contiguous()

        self.tables = tables.to(device)
        self.start = put(leaky_relu(torch.cat([atom, atom + w["lin0.weight"][:, WIDTH]])))  # [2 F, D], marked ones second
        self.edge = put((edge @ w["conv.nn.2.weight"].T + w["conv.nn.2.bias"]).view(BARE + 1, D, D))
        self.root = put(w["conv.root"].T if transposed else w["conv.root"])
        self.bias = put(w["conv.bias"])
        # The new state is tanh(x) = 2 sigmoid(2 x) - 1, several times faster on a CPU: its rows are doubled here.
        twice = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)[:, None, None]
        inward, onward = ((w[f"gru.weight_{k}_l0"].view(3, D, D) * twice).transpose(1, 2) for k in ("ih", "hh"))
        bi, bh = (w[f"gru.bias_{k}_l0"].view(3, D) * twice[:, 0] for k in ("ih", "hh"))
        self.inward, self.onward, self.bi, self.bh = put(inward), put(onward), put(bi), put(bh)
        self.lstm = put(torch.cat([w["set2set.lstm.weight_ih_l0"], w["set2set.lstm.weight_hh_l0"]], 1).T)
        self.lstm_bias = put(w["set2set.lstm.bias_ih_l0"] + w["set2set.lstm.bias_hh_l0"])
        self.last, self.last_bias = put(w["lin3.weight"].T), put(w["lin3.bias"])

    @torch.no_grad()
    def __call__(self, obs: Tensor, open_sites: Tensor | None = None, static: bool | None = None) -> Tensor:
        """Evaluate the proxy.

        Args:
            obs: [B, K, 4].
            open_sites: [B, K, S] bool, the sites to mark; None: those with capacity left. As in `assemble`.
            static: use static shapes, without synchronisation; None: unless on the CPU.

        Returns:
            p, [B] in the proxy's dtype.
        """
        if obs.device.type != "cpu" if static is None else static:
            graph = assemble(self.tables, obs, self.stem_mask, open_sites, padded=True)
            return self._read(self._static(graph), graph)
        parts = [torch.empty(0, dtype=self.root.dtype)]
        for i in range(0, len(obs), CHUNK):
            here = slice(i, i + CHUNK)
            graph = assemble(self.tables, obs[here], self.stem_mask, None if open_sites is None else open_sites[here])
            parts.append(self._read(self._ragged(graph), graph))
        return torch.cat(parts)

    def _first(self, graph: AtomGraph) -> Tensor:
        return self.start[graph.feature + graph.stem * (len(self.start) // 2)]

    def _static(self, graph: AtomGraph) -> Tensor:
        """The last states of atoms [N, D]: all padded atoms, for all types of bonds."""
        h, N = self._first(graph), len(graph.feature)
        exists = (graph.bond != NO_BOND).to(h.dtype)
        degree = h.new_zeros(N).index_add_(0, graph.target, exists)
        weight = (exists / degree.clamp(min=1)[graph.target])[:, None]
        row = graph.source * (BARE + 1) + graph.bond.clamp(max=BARE)
        edge = self.edge.transpose(0, 1).reshape(D, -1)
        for _ in range(STEPS):
            sent = (h @ edge).view(-1, D)[row] * weight
            m = leaky_relu(torch.addmm(self.bias, h, self.root).index_add_(0, graph.target, sent))
            r, z = (torch.sigmoid(m @ self.inward[i] + self.bi[i] + h @ self.onward[i] + self.bh[i]) for i in (0, 1))
            n = 2 * torch.sigmoid(m @ self.inward[2] + self.bi[2] + r * (h @ self.onward[2] + self.bh[2])) - 1
            h = n + z * (h - n)
        return h

    def _ragged(self, graph: AtomGraph) -> Tensor:
        """The same with less work: h W_type only for atoms with such a bond, gathered by target, in place."""
        h, N = self._first(graph), len(graph.feature)
        key = graph.bond * N + graph.source
        used = torch.zeros((BARE + 1) * N, dtype=torch.bool).index_fill_(0, key, True)
        sender = used.nonzero().squeeze(1) % max(N, 1)
        ends = [0, *used.view(BARE + 1, N).sum(1).cumsum(0).tolist()]
        types = [(t, a, b) for t, (a, b) in enumerate(pairwise(ends)) if b > a]
        by_target = graph.target.argsort(stable=True)
        row = (used.cumsum(0) - 1)[key[by_target]]
        degree = graph.target.bincount(minlength=N)
        start = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        weight = degree.to(h.dtype).reciprocal()[graph.target[by_target]]
        out, sent = (h.new_empty(len(sender), D) for _ in range(2))
        m, r, z, n = (torch.empty_like(h) for _ in range(4))
        bias = self.bi + self.bh
        for _ in range(STEPS):
            torch.index_select(h, 0, sender, out=out)
            for t, a, b in types:
                torch.mm(out[a:b], self.edge[t], out=sent[a:b])
            torch.addmm(self.bias, h, self.root, out=m)
            m += embedding_bag(row, sent, start, mode="sum", per_sample_weights=weight, include_last_offset=True)
            torch.nn.functional.leaky_relu_(m)
            for i, gate in ((0, r), (1, z)):
                torch.addmm(bias[i], m, self.inward[i], out=gate).addmm_(h, self.onward[i]).sigmoid_()
            torch.addmm(self.bh[2], h, self.onward[2], out=n).mul_(r).addmm_(m, self.inward[2]).add_(self.bi[2])
            n.sigmoid_().mul_(2).sub_(1)
            torch.lerp(n, h, z, out=h)
        return h

    def _read(self, h: Tensor, graph: AtomGraph) -> Tensor:
        """Set2Set and the last layer: [N, D] -> [size]."""
        B = graph.size
        q_star, c = h.new_zeros(B, 2 * D), h.new_zeros(B, D)
        for _ in range(READS):
            gates = torch.addmm(self.lstm_bias, torch.cat([q_star, q_star[:, :D]], 1), self.lstm)
            i, f, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            q = torch.sigmoid(o) * torch.tanh(c)
            score = (h * q[graph.molecule]).sum(1).masked_fill(~graph.real, -torch.inf)
            top = score.new_full((B,), -torch.inf).scatter_reduce(0, graph.molecule, score, "amax")
            a = torch.exp(score - top.nan_to_num(neginf=0.0)[graph.molecule])
            total = a.new_zeros(B).index_add_(0, graph.molecule, a)
            mean = torch.zeros_like(q).index_add_(0, graph.molecule, a[:, None] * h) / total.clamp(min=1e-30)[:, None]
            q_star = torch.cat([q, mean], 1)
        return torch.addmm(self.last_bias, q_star, self.last).squeeze(1)
