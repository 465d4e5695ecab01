"""`BlockTreeNet`: a graph transformer over block trees whose tokens are the nodes, as a function of flat parameters.

    token     h_i  =  block_i + own site on the bond + (block, site) of the parent there + n + sum of own sites that are taken
    layer     w_ij =  sigmoid(q_i . k_j / sqrt(d_head) + b[relation of i and j]),   h_i += W_o sum_j w_ij v_j
              h_i +=  W_2 gelu(W_1 norm(h_i))                                     (norm comes before every product)
    attach    logit(row r at site s of node i)  =  gelu(W norm(h_i) + e[block_i, s]) . E[r] + c[r]
    state     stop, log-flow  =  O gelu(W mean_i norm(h_i))

The relation is the distance in the tree and whether j is an ancestor of i, a descendant, or neither. Every output depends on
every node, and not on the order of the nodes. Weights are sigmoids, not a softmax: a sum distinguishes two children from one,
at a tenth of the cost. The empty state is one special token with a site 0. Both layouts of `Trees` give the same outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, pad

from envs.molecules.blocks import Blocks
from envs.random import Rng
from gflownet.trees.batches import Trees

COLUMNS = ("policy", "flow", "backward")


@dataclass(frozen=True)
class Scores:
    """The outputs of the network for M states and N sites.

    logits    one [N, R] for each policy: row r attached at the site       stop      [policies, M]
    flow      [flows, M]                                                  backward  one [M, R + 1] for each: by row, stop last
    """

    logits: list[Tensor]
    stop: Tensor
    flow: Tensor
    backward: list[Tensor]


@dataclass(frozen=True)
class Attach:
    """The factors of a policy head's logits of attaching rows, for M trees of at most K nodes.

    node      [M, K, d]        without meaning for absent nodes
    site      [sites + 1, d]
    row       [d, R]
    row_bias  [R]
    """

    node: Tensor
    site: Tensor
    row: Tensor
    row_bias: Tensor


@dataclass(frozen=True, eq=False)
class BlockTreeNet:
    """The transformer, obs [S, M, K, 4] -> [S, M, O]. A node is block + 1, parent, own site, parent's site; absent ones are 0.

    blocks      the vocabulary, on the device of the network
    max_blocks  K
    columns     the outputs, in order, with A = (K - 1)·S·R + 1:
        policy    A  logits; (node·S + site)·R + row attaches, A - 1 stops; 0 where no partner fits
        flow      1  log F(s)
        backward  A  logits of the last action. They depend only on its row, i.e. on the leaf that was attached, because the
                     parent's nodes are numbered differently from the child's
    width       of the transformer
    layers      of the transformer
    heads       of the attention; they divide the width
    ratio       hidden units of a layer's MLP, divided by the width
    padded      the layout; None: padded unless on the CPU

    Raises ValueError for unknown columns, or if an argument is out of range.
    """

    blocks: Blocks = field(repr=False)
    max_blocks: int = 8
    columns: tuple[str, ...] = ("policy",)
    width: int = 64
    layers: int = 3
    heads: int = 2
    ratio: int = 2
    padded: bool | None = None

    def __post_init__(self) -> None:
        if not self.columns or not set(self.columns) <= set(COLUMNS):
            raise ValueError(f"got columns {self.columns}, expected some of {', '.join(COLUMNS)}")
        if self.heads < 1 or self.width % self.heads or self.max_blocks < 2 or min(self.layers, self.ratio) < 1:
            raise ValueError(
                f"got width {self.width}, {self.heads} heads, {self.layers} layers, ratio {self.ratio}, {self.max_blocks} "
                "blocks: expected heads that divide the width, at least one layer, a ratio of at least 1 and two blocks"
            )

    @property
    def actions(self) -> int:
        """A, the number of actions."""
        return (self.max_blocks - 1) * self.blocks.S * self.blocks.R + 1

    @property
    def outputs(self) -> int:
        return sum(1 if kind == "flow" else self.actions for kind in self.columns)

    @property
    def size(self) -> int:
        return sum(self._sizes)

    def init(self, rng: Rng) -> Tensor:
        """Initial parameters from one key for each seed, [S, P]; logits are about 0.1, so that the policy is nearly uniform."""
        z = rng.normal(self.size)
        spread = torch.cat([torch.full((n,), std) for n, (_, std) in zip(self._sizes, self._parts.values(), strict=True)])
        start = pad(torch.full((self._sizes[0],), -1.0), (0, self.size - self._sizes[0]))  # sigmoids of about a quarter
        return z * spread.to(z) + start.to(z)

    def forward(self, params: Tensor, obs: Tensor) -> Tensor:
        """The outputs for params [S, P] and obs [S, M, K, 4], [S, M, O], differentiable in params."""
        if len(params) == 1:
            return self._dense(params[0], obs[0])[None]
        return torch.stack([self._dense(*seed) for seed in zip(params.unbind(), obs.unbind(), strict=True)])

    def at_sites(self, params: Tensor, obs: Tensor, state: Tensor, site: Tensor) -> Scores:
        """The outputs of one seed for given sites only.

        Args:
            params: [P].
            obs: [M, K, 4].
            state: [N], rows of obs.
            site: [N], node·S + site of the node: any site that its block has, or 0 in the empty state. In the ragged layout
                nodes are below the size of the tree.

        Returns:
            The outputs for M states and N sites.
        """
        w, trees, h = self._encoded(params, obs)
        node, s = site // self.blocks.S, site % self.blocks.S
        row, name = trees.start[state] + node, self.numbers[obs[state, node, 0], s]
        logits = []
        for p in range(self._count("policy")):
            x = torch.mm(h, w[f"policy{p}"]).index_select(0, row) + w[f"site{p}"].index_select(0, name)
            logits.append(torch.addmm(w[f"row_bias{p}"], gelu(x), w[f"row{p}"]))
        return Scores(logits, *self._of_states(w, trees, h, obs))

    def attach(self, params: Tensor, obs: Tensor) -> tuple[list[Attach], Scores]:
        """What gives the logits at any points of states, without computing them.

        Args:
            params: one seed's, [P].
            obs: states [M, K, 4].

        Returns:
            One `Attach` for each policy, and the scores at no points.
        """
        w, trees, h = self._encoded(params, obs)
        places = None
        if not self._pads(params):
            index = torch.arange(self.max_blocks, device=h.device)
            last = trees.n[trees.start].clamp_min(1) - 1
            places = (trees.start[:, None] + torch.minimum(index, last[:, None])).flatten()
        heads = []
        for p in range(self._count("policy")):
            x = torch.mm(h, w[f"policy{p}"])
            node = (x if places is None else x.index_select(0, places)).view(len(obs), self.max_blocks, self.width)
            heads.append(Attach(node, w[f"site{p}"], w[f"row{p}"], w[f"row_bias{p}"]))
        return heads, Scores([], *self._of_states(w, trees, h, obs))

    def _encoded(self, params: Tensor, obs: Tensor) -> tuple[dict[str, Tensor], Trees, Tensor]:
        w = self._unpack(params)
        trees = Trees.of(obs, self.numbers, self._pads(params))
        return w, trees, self._embed(w, trees)

    def _of_states(self, w: dict[str, Tensor], trees: Trees, h: Tensor, obs: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Stop, flow and backward of `Scores`."""
        mean = h.new_zeros(len(obs), self.width).index_add(0, trees.tree, h * trees.fraction[:, None].to(h))
        state_out = torch.addmm(w["out_bias"], gelu(torch.addmm(w["pool_bias"], mean, w["pool"])), w["out"])
        counts = [self._count("policy"), self._count("flow"), self._count("backward") * (self.blocks.R + 1)]
        stop, flow, backward = torch.split(state_out, counts, 1)
        return stop.t(), flow.t(), list(torch.split(backward, self.blocks.R + 1, 1)) if counts[2] else []

    def _pads(self, params: Tensor) -> bool:
        return params.device.type != "cpu" if self.padded is None else self.padded

    # -- parameters

    def _count(self, kind: str) -> int:
        return self.columns.count(kind)

    @cached_property
    def numbers(self) -> Tensor:
        """[C + 1, S] a number from 1 on for each site of each block (by block + 1), 0 where there is none."""
        real = pad(self.blocks.capacity > 0, (0, 0, 1, 0))
        return torch.where(real, real.flatten().cumsum(0).view(real.shape), 0)

    @cached_property
    def _parts(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Shape and standard deviation at the start of each weight."""
        d, K, R, L = self.width, self.max_blocks, self.blocks.R, self.layers
        sites, fan, out = self.blocks.sites + 1, 1 / math.sqrt(d), 0.1 / math.sqrt(d)
        parts: dict[str, tuple[tuple[int, ...], float]] = {"relation": ((L * self.heads, 3 * K), 1.0)}
        parts |= {"block": ((self.blocks.C + 1, d), 1.0), "n": ((K + 1, d), 0.5)}
        parts |= {"own": ((sites, d), 0.5), "up": ((sites, d), 0.5), "taken": ((sites, d), 0.5)}
        for i in range(L):
            parts |= {f"qkv{i}": ((d, 3 * d), fan), f"qkv_bias{i}": ((3 * d,), 0.0), f"mix{i}": ((d, d), fan)}
            parts |= {f"in{i}": ((d, self.ratio * d), fan), f"in_bias{i}": ((self.ratio * d,), 0.0)}
            parts |= {f"out{i}": ((self.ratio * d, d), fan / math.sqrt(self.ratio))}
        for p in range(self._count("policy")):
            parts |= {f"policy{p}": ((d, d), fan), f"site{p}": ((sites, d), 1.0)}
            parts |= {f"row{p}": ((d, R), out), f"row_bias{p}": ((R,), 0.0)}
        of_state = self._count("policy") + self._count("flow") + self._count("backward") * (R + 1)
        parts |= {"pool": ((d, d), fan), "pool_bias": ((d,), 0.0), "out": ((d, of_state), out), "out_bias": ((of_state,), 0.0)}
        return parts

    @cached_property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape, _ in self._parts.values()]

    def _unpack(self, params: Tensor) -> dict[str, Tensor]:
        flat = torch.split(params, self._sizes)  # one split, whose gradient is one concatenation
        return {name: x.view(shape) for x, (name, (shape, _)) in zip(flat, self._parts.items(), strict=True)}

    # -- the transformer

    def _embed(self, w: dict[str, Tensor], trees: Trees) -> Tensor:
        """[N, d], normalised."""
        d = (self.width,)
        h = w["block"].index_select(0, trees.block) + w["own"].index_select(0, trees.own)
        h = h + w["up"].index_select(0, trees.up) + w["n"].index_select(0, trees.n)
        h = h.index_add(0, trees.parent, w["taken"].index_select(0, trees.up))
        table = pad(w["relation"], (0, 1), value=-torch.inf)  # its last column: a place where there is no node
        bias = [self._bias(table, *group) for group in trees.groups]
        cuts = [m * n for m, n, _ in trees.groups]
        for i in range(self.layers):
            qkv = torch.addmm(w[f"qkv_bias{i}"], layer_norm(h, d), w[f"qkv{i}"])
            mixed = [self._mix(x, b[i], n) for x, b, (_, n, _) in zip(torch.split(qkv, cuts), bias, trees.groups, strict=True)]
            h = torch.addmm(h, torch.cat(mixed) if len(mixed) > 1 else mixed[0], w[f"mix{i}"])
            inner = torch.addmm(w[f"in_bias{i}"], layer_norm(h, d), w[f"in{i}"])
            h = torch.addmm(h, gelu(inner), w[f"out{i}"])
        return layer_norm(h, d)

    def _bias(self, table: Tensor, m: int, n: int, relation: Tensor) -> tuple[Tensor, ...]:
        """For each layer [heads·m, n, n]."""
        return table.index_select(1, relation).view(self.layers, self.heads * m, n, n).unbind()

    def _mix(self, qkv: Tensor, bias: Tensor, n: int) -> Tensor:
        """[m·n, 3d] of m trees of n nodes -> [m·n, d]."""
        H, e = self.heads, self.width // self.heads
        q, k, v = qkv.view(-1, n, 3, H, e).permute(2, 3, 0, 1, 4).reshape(3, -1, n, e).unbind()
        weight = torch.sigmoid(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(e)))
        return torch.bmm(weight, v).view(H, -1, n, e).permute(1, 2, 0, 3).reshape(-1, self.width)

    # -- dense outputs

    def _dense(self, params: Tensor, obs: Tensor) -> Tensor:
        """[P], [M, K, 4] -> [M, O]."""
        fits = self._open(obs)
        M, points = fits.shape
        padded = self._pads(params)
        if padded:
            every = torch.arange(M * points, device=obs.device)
            state, site = every // points, every % points
        else:
            state, site = fits.nonzero(as_tuple=True)
        scores = self.at_sites(params, obs, state, site)
        places = [iter(x) for x in (scores.logits, scores.stop, scores.flow, scores.backward)]
        columns = []
        for kind in self.columns:
            if kind == "flow":
                columns.append(next(places[2])[:, None])
            elif kind == "backward":
                rows, stop = next(places[3]).split([self.blocks.R, 1], 1)
                columns += [rows.repeat(1, points), stop]
            else:
                logits, stop = next(places[0]), next(places[1])[:, None]
                if padded:
                    dense = torch.where(fits[..., None], logits.view(M, points, -1), 0.0)
                else:
                    dense = logits.new_zeros(M, points, self.blocks.R).index_put_((state, site), logits)
                columns += [dense.flatten(1), stop]
        return torch.cat(columns, 1)

    def _open(self, obs: Tensor) -> Tensor:
        """[M, (K - 1)·S] bool: a partner fits there (site 0 of node 0 in the empty state)."""
        M, K = obs.shape[:2]
        block, parent, own, up = obs.unbind(-1)
        bond = (block > 0).long()
        bond[:, 0] = 0
        S = self.blocks.S
        used = bond.new_zeros(M, K * S).scatter_add_(1, torch.arange(K, device=obs.device) * S + own, bond)
        used = used.scatter_add_(1, parent * S + up, bond)
        fits = pad(self.blocks.capacity, (0, 0, 1, 0))[block].flatten(1) > used
        fits[:, 0] |= block[:, 0] == 0
        return (fits & (block[:, -1:] == 0))[:, : (K - 1) * S]
