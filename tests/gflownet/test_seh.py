"""The sEH proxy against published predictions and a plain loop over atoms; weights from hostile files."""

import csv
import gzip
import json
import math
import os
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from envs.molecules.atom_tables import atom_tables, random_trees
from envs.molecules.atoms import AtomTables
from envs.molecules.bridge import Builder
from envs.molecules.fragments import Fragment, load_fragments
from gflownet.rewards.combine import Tempering
from gflownet.rewards.restricted import read_npz, read_pickle
from gflownet.rewards.seh import SHAPES, SehProxy, load_weights

SEH = Path(__file__).resolve().parents[3] / "shared/data/seh"
TEMPERING = Tempering(beta=10.0, r_min=0.1 / 8)  # of p / 8: (max(0.1, p) / 8)^10, the reward of the 2021 code
needs_data = pytest.mark.skipif(not SEH.exists(), reason="needs ../shared/data/seh")
VOCABULARY = (
    Fragment("benzene", "c1ccccc1", ((0, 1), (3, 1))),
    Fragment("amine", "CNC", ((1, 1), (0, 2))),
    Fragment("amide", "NC=O", ((0, 2), (1, 1))),
    Fragment("nitrile", "C#N", ((0, 1),)),
    Fragment("water", "O", ((0, 2),)),
    Fragment("chlorine", "Cl", ((0, 1),)),
)


def random_weights(scale: float = 0.3) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, scale / math.sqrt(shape[-1]), shape).astype("f4") for name, shape in SHAPES.items()}


# -- a plain loop, from the description of the proxy alone


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def leaky(x: Any) -> Any:
    return np.where(x > 0, x, 0.01 * x)


def plain(w: Mapping[str, Any], obs: torch.Tensor, transposed: bool, marked: bool) -> list[float]:
    """p of one observation [K, 4] of VOCABULARY, one atom and one bond after the other.

    In a tree without open points one for each atom 0 of a block with the most points, of these with the first SMILES.
    """
    (mol,) = Builder(VOCABULARY).molecules(obs[None])
    w = {name: x.astype("f8") for name, x in w.items()}
    x = np.zeros((mol.GetNumAtoms(), 71))
    for i, atom in enumerate(mol.GetAtoms()):
        x[i, {"H": 0, "C": 1, "N": 2, "O": 3, "F": 4}.get(atom.GetSymbol(), 5)] = 1
        x[i, 9] = atom.GetIsAromatic()
        x[i, {"SP": 10, "SP2": 11, "SP3": 12}[str(atom.GetHybridization())]] = 1
        x[i, 13] = atom.GetTotalNumHs()
        x[i, 13 + atom.GetAtomicNum()] = 1
    nodes = [node for node in obs.tolist() if node[0]]
    taken = [(i, own) for i, (_, _, own, _) in enumerate(nodes) if i] + [(p, up) for i, (_, p, _, up) in enumerate(nodes) if i]
    sizes = [mol.GetNumAtoms() for mol in Builder(VOCABULARY).molecules(torch.tensor([[[n[0], 0, 0, 0]] for n in nodes]))]
    marks = [
        sum(sizes[:i]) + atom
        for i, node in enumerate(nodes)
        for s, (atom, room) in enumerate(VOCABULARY[node[0] - 1].attach)
        if room > taken.count((i, s))
    ]
    fragments = [VOCABULARY[node[0] - 1] for node in nodes]
    order = [(-sum(room for _, room in f.attach), f.smiles) for f in fragments]
    starts = [sum(sizes[:i]) for i, place in enumerate(order) if place == min(order)]
    images = {"c1ccccc1": (0, 3)}.get(min(order)[1], (0,))
    if not marked:
        return [plain_of(w, mol, x, transposed)]
    values = []
    for atoms in [marks] if marks else [[start + image] for start in starts for image in images]:
        y = x.copy()
        y[atoms, 70] = 1
        values.append(plain_of(w, mol, y, transposed))
    return values


def plain_of(w: Mapping[str, Any], mol: Any, x: Any, transposed: bool) -> float:
    """p of the features x [atoms, 71]."""
    edges = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), b.GetBondTypeAsDouble()) for b in mol.GetBonds()]
    near: list[list[tuple[int, np.ndarray[Any, Any]]]] = [[] for _ in x]
    for a, b, order in edges:
        near[a].append((b, np.eye(4)[[1, 2, 3, 1.5].index(order)]))
        near[b].append((a, np.eye(4)[[1, 2, 3, 1.5].index(order)]))
    if not edges:
        near[0].append((0, np.zeros(4)))
    h = leaky(x @ w["lin0.weight"].T + w["lin0.bias"])
    root = w["conv.root"].T if transposed else w["conv.root"]
    for _ in range(12):
        new = []
        for i, neighbours in enumerate(near):
            total = np.zeros(64)
            for j, kind in neighbours:
                hidden = leaky(w["conv.nn.0.weight"] @ kind + w["conv.nn.0.bias"])
                total += h[j] @ (w["conv.nn.2.weight"] @ hidden + w["conv.nn.2.bias"]).reshape(64, 64)
            m = leaky(total / len(neighbours) + h[i] @ root + w["conv.bias"])
            gi = (w["gru.weight_ih_l0"] @ m + w["gru.bias_ih_l0"]).reshape(3, 64)
            gh = (w["gru.weight_hh_l0"] @ h[i] + w["gru.bias_hh_l0"]).reshape(3, 64)
            r, z = sigmoid(gi[0] + gh[0]), sigmoid(gi[1] + gh[1])
            new.append((1 - z) * np.tanh(gi[2] + r * gh[2]) + z * h[i])
        h = np.array(new)
    q, read, c = np.zeros(64), np.zeros(64), np.zeros(64)
    for _ in range(3):
        k = "set2set.lstm."
        gates = w[f"{k}weight_ih_l0"] @ np.concatenate([q, read]) + w[f"{k}weight_hh_l0"] @ q
        i, f, g, o = (gates + w[f"{k}bias_ih_l0"] + w[f"{k}bias_hh_l0"]).reshape(4, 64)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        q = sigmoid(o) * np.tanh(c)
        a = np.exp(h @ q)
        read = (a / a.sum()) @ h
    return float(w["lin3.weight"][0] @ np.concatenate([q, read]) + w["lin3.bias"][0])


@pytest.mark.parametrize(
    ("variant", "transposed", "marked"), [("A", False, True), ("B", True, True), ("C", True, False), ("A0", False, False)]
)
def test_a_batch_is_a_plain_loop_over_atoms(variant: str, transposed: bool, marked: bool) -> None:
    obs = random_trees(VOCABULARY, 20, 4, random.Random(1))
    obs[0] = 0
    obs[0, 0, 0] = 5  # water: an atom alone
    obs[1] = 0
    obs[1, :2, 0] = 6  # a molecule without an open site
    weights = random_weights()
    proxy = SehProxy(weights, atom_tables(VOCABULARY), variant, torch.float64)
    truth = [plain(weights, row, transposed, marked) for row in obs]
    assert np.std([values[0] for values in truth]) > 1e-4
    for static in (False, True):
        found = proxy(obs, static=static).tolist()
        assert all(min(abs(p - value) for value in values) < 1e-12 for p, values in zip(found, truth, strict=True))


def test_a_molecule_alone_or_in_company() -> None:
    obs = random_trees(VOCABULARY, 150, 6, random.Random(2))
    proxy = SehProxy(random_weights(), atom_tables(VOCABULARY), "B", torch.float64)
    together = proxy(obs)
    assert torch.allclose(torch.cat([proxy(row[None]) for row in obs]), together, atol=1e-12)
    assert torch.allclose(torch.cat([proxy(row[None], static=True) for row in obs]), together, atol=1e-12)
    assert proxy(obs[:0]).shape == proxy(obs[:0], static=True).shape == (0,)


def test_static_shapes_never_make_the_host_wait() -> None:
    """On the meta device whatever needs a number raises."""
    proxy = SehProxy(random_weights(), atom_tables(VOCABULARY), device="meta")
    obs = torch.zeros(7, 6, 4, dtype=torch.int64, device="meta")
    assert proxy(obs).shape == (7,)
    with pytest.raises((RuntimeError, NotImplementedError)):
        proxy(obs, static=False)


def test_the_reward() -> None:
    usual = TEMPERING(torch.tensor([-1.0, 0.1, 4.0, 8.0]) / 8)
    assert usual.dtype == torch.float64
    assert torch.allclose(usual.exp(), torch.tensor([(0.1 / 8) ** 10, (0.1 / 8) ** 10, 0.5**10, 1.0]).double())


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="got variant 'D'"):
        SehProxy(random_weights(), atom_tables(VOCABULARY), "D")


# -- published predictions

COLUMNS = {
    "pred_orig": "A",
    "pred_tb2022": "B",
    "pred_recursion": "C",
    "pred_orig_nostem": "A0",
    "pred_recursion_rootfixed": "A0",
}


@pytest.fixture(scope="module")
def tables() -> AtomTables:
    return atom_tables(load_fragments(SEH / "blocks_PDB_105.json"))


def states(name: str) -> tuple[list[dict[str, str]], torch.Tensor, torch.Tensor]:
    """The rows of a file, their states [B, 8, 4] in the order of their blocks, and which sites its authors had open."""
    fragments = load_fragments(SEH / "blocks_PDB_105.json")
    smiles_of = json.loads((SEH / "blocks_PDB_105.json").read_text())["block_smi"]
    number = {f.smiles: c for c, f in enumerate(fragments)}
    site = [{atom: s for s, (atom, _) in enumerate(f.attach)} for f in fragments]
    with (SEH / name).open() as file:
        rows = list(csv.DictReader(file))
    obs = np.zeros((len(rows), 8, 4), dtype="i8")
    room = np.zeros((len(rows), 8, max(map(len, site))), dtype=bool)
    for n, row in enumerate(rows):
        blocks = [number[smiles_of[str(i)]] for i in json.loads(row["blockidxs"])]
        obs[n, : len(blocks), 0] = np.array(blocks) + 1
        for i, j, a, b in json.loads(row["jbonds"]):
            obs[n, j, 1:] = i, site[blocks[j]][b], site[blocks[i]][a]
        for i, a in json.loads(row["stems"]):
            room[n, i, site[blocks[i]][a]] = True
    return rows, torch.from_numpy(obs), torch.from_numpy(room)


@needs_data
@pytest.mark.parametrize("name", ["parity.csv", "some_mols_U_1k.csv", "test_mols_6062.csv"])
def test_published_predictions(name: str, tables: AtomTables) -> None:
    rows, obs, room = states(name)
    weights = load_weights(SEH / "proxy_best_params.npz")
    for column in COLUMNS.keys() & rows[0].keys():
        truth = torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
        exact = 2e-5 if "recursion" in column else 1e-9  # recursion's module computes in float32
        for dtype, tolerance in ((torch.float64, exact), (torch.float32, 2e-5)):
            few = slice(1000) if dtype == torch.float32 else slice(320)
            proxy = SehProxy(weights, tables, COLUMNS[column], dtype)
            assert (proxy(obs[few], room[few]) - truth[few]).abs().max() < tolerance, (column, dtype)
        if name == "parity.csv":
            assert (proxy(obs[:40], room[:40], static=True) - truth[:40]).abs().max() < 2e-5


@needs_data
def test_published_rewards(tables: AtomTables) -> None:
    weights = load_weights(SEH / "proxy_best_params.pkl.gz")
    rows, obs, room = states("parity.csv")
    proxy = SehProxy(weights, tables, "A", torch.float64)
    truth = torch.tensor([float(row["reward_orig_b10"]) for row in rows], dtype=torch.float64)
    assert torch.allclose(TEMPERING(proxy(obs, room) / 8).exp(), truth, rtol=1e-9, atol=0)
    flat = torch.tensor([float(row["flat_recursion"]) for row in rows], dtype=torch.float64)
    proxy = SehProxy(weights, tables, "C", torch.float64)
    assert torch.allclose((proxy(obs, room) / 8).clamp(1e-4, 100), flat, atol=1e-5)
    rows, obs, room = states("some_mols_U_1k.csv")
    stored = torch.tensor([float(row["stored_reward"]) for row in rows[::3]], dtype=torch.float64)
    proxy = SehProxy(weights, tables, "B", torch.float64)
    assert torch.allclose(TEMPERING(proxy(obs[::3], room[::3]) / 8).exp(), stored, rtol=1e-9, atol=0)


@needs_data
def test_both_files_hold_the_same_weights() -> None:
    a, b = (load_weights(SEH / f"proxy_best_params.{end}") for end in ("npz", "pkl.gz"))
    assert list(a) == list(b) == list(SHAPES)
    assert all(np.array_equal(a[name], b[name]) for name in a)


# -- files


class Harm:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call = (call, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def zipped(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(gzip.compress(content if isinstance(content, bytes) else pickle.dumps(content, protocol)))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_weights_come_back_from_either_kind_of_file(tmp_path: Path, protocol: int) -> None:
    weights = random_weights()
    weights["lin0.weight"] = np.asfortranarray(weights["lin0.weight"].astype(">f8"))
    found = load_weights(zipped(tmp_path / "w.pkl.gz", list(weights.values()), protocol))
    np.savez_compressed(tmp_path / "w.npz", **weights)
    again = load_weights(tmp_path / "w.npz")
    assert all(np.array_equal(weights[name], x[name]) for name in SHAPES for x in (found, again))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([Harm(os.system, "touch harm")], "posix.system|nt.system"),
        ([Harm(eval, "open('harm', 'w')")], "builtins.eval"),
        ([Harm(os.mkdir, "harm")], "mkdir"),
        (b"cnumpy.f2py.crackfortran\nmyeval\n(V1+1\ntR.", "numpy.f2py.crackfortran.myeval"),
        (b"cnumpy\nload\n(Vharm\ntR.", "numpy.load"),
        (b"cnumpy\nndarray\n((I1000000000000\nttR.", "no list of NumPy arrays"),
        (b"\x80\x04]r\xff\xff\xff\x7f.", "memo index is 2147483647"),
        ([np.array([Harm(os.mkdir, "harm")], dtype=object)], "mkdir"),
        ([np.array([[1]], dtype=object)], "not floats"),
        ([np.arange(3)], "not floats"),
        ({"a": 1}, "not a list of arrays"),
        ([1.0], "not a list of arrays"),
        (b"", "cannot read"),
        (pickle.dumps([np.zeros(100)])[:-50], "cannot read"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, complaint: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        read_pickle(zipped(tmp_path / "w.pkl.gz", content))
    assert not (tmp_path / "harm").exists()


def test_broken_and_oversized_files_are_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "w.pkl.gz", list(random_weights().values()))
    (tmp_path / "cut.gz").write_bytes(whole.read_bytes()[:-1000])
    (tmp_path / "text.gz").write_text("no gzip")
    (tmp_path / "text.npz").write_text("no zip")
    zipped(tmp_path / "bomb.gz", bytes(65 * 2**20))
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(9 * 2**20))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    for name in ("cut.gz", "text.gz", "bomb.gz"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            read_pickle(tmp_path / name)
    for name in ("text.npz", "bomb.npz", "objects.npz"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            read_npz(tmp_path / name)
    for name in ("absent.npz", "absent.pkl.gz"):
        with pytest.raises(FileNotFoundError):
            load_weights(tmp_path / name)


def test_bytes_that_do_not_fit_their_shape_are_refused(tmp_path: Path) -> None:
    data = pickle.dumps([np.zeros((3, 2), dtype="f4")], 3)
    assert data.count(b"K\x03K\x02\x86") == 1
    with pytest.raises(ValueError, match="do not make up its shape"):
        read_pickle(zipped(tmp_path / "w.pkl.gz", data.replace(b"K\x03K\x02\x86", b"K\x07K\x02\x86")))


@pytest.mark.parametrize("end", ["npz", "pkl.gz"])
@pytest.mark.parametrize("fault", ["shape", "whole numbers", "nan", "missing", "more"])
def test_wrong_weights_are_refused(tmp_path: Path, end: str, fault: str) -> None:
    weights = random_weights()
    if fault == "shape":
        weights["conv.root"] = weights["conv.root"][:, :63]
    elif fault == "whole numbers":
        weights["lin3.bias"] = np.array([1], dtype="i4")
    elif fault == "nan":
        weights["gru.bias_ih_l0"][5] = np.nan
    elif fault == "missing":
        del weights["lin3.bias"]
    else:
        weights["more"] = np.zeros(2)
    path = tmp_path / f"w.{end}"
    if end == "npz":
        np.savez(path, **weights)
    else:
        zipped(path, list(weights.values()))
    complaint = {"shape": r"conv.root is .*63\)", "whole numbers": "lin3.bias|not floats", "nan": "gru.bias_ih_l0 .*not finite"}
    with pytest.raises(ValueError, match=complaint.get(fault, "expected 22|superfluous: (lin3.bias|more)")):
        load_weights(path)
