"""Active learning on the grid: posterior of the proxy, sampling without replacement, results of rounds, resume, bad input."""

import importlib.util
import itertools
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from envs.random import Rng
from experiments.cli.gflownet import main
from experiments.gfn import active as gfn_active
from experiments.gfn.active import settings_for
from experiments.gfn.config import make_method
from experiments.run.log import read_metrics
from gflownet.active.gaussian_process import GaussianProcess
from gflownet.active.rounds import Pool, Settings, TrueReward, begin, draw, measures, one_round
from gflownet.baselines.uniform import Uniform
from gflownet.gflownet import GFlowNet
from gflownet.objectives.trajectory_balance import TrajectoryBalance
from gflownet.registry import register

SMALL = Settings(seeds=1, rounds=3, initial=8, queries=6, states=1_200, batch_size=16, proxy="oracle", top_k=4)
GRID = ["--ndim", 2, "--height", 8, "--initial", 8, "--queries", 4, "--rounds", 3, "--states", 48, "--top-k", 4, "--quiet"]
NET = ["--hidden", 8]


pytestmark = pytest.mark.usefixtures("one_thread")


def pool(ndim: int = 2, **knobs: Any) -> Pool:
    env = HyperGrid(ndim, 8, **knobs)
    return Pool(env, enumerate_dag(env))


def active(*arguments: object) -> None:
    main([str(a) for a in ("active", "hypergrid", *arguments)])


def says(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == code, error
    assert "Traceback" not in error
    return error


def same(one: Path, other: Path) -> None:
    assert read_metrics(one, timing=False) == read_metrics(other, timing=False)
    last = sorted((one / "checkpoints").iterdir())[-1]
    tensors = "tensors.safetensors"
    assert (last / tensors).read_bytes() == (other / "checkpoints" / last.name / tensors).read_bytes()


def test_the_posterior_is_scikit_learns_and_the_textbooks() -> None:
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    process = pytest.importorskip("sklearn.gaussian_process")
    x = torch.tensor([[0.0, 0.0], [1.0, 0.2], [0.3, 0.9], [0.6, 0.6], [0.1, 0.5]], dtype=torch.float64)
    y = torch.tensor([0.1, 2.6, 0.6, 1.1, 0.2], dtype=torch.float64)
    at = torch.rand(5000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # more than one part
    mean, std = GaussianProcess().posterior(x, y, at)
    fitted = GaussianProcess().fit(x, y).kernel_
    scale, length = fitted.k1.constant_value, fitted.k2.length_scale
    theirs = process.GaussianProcessRegressor(fitted, alpha=1e-6, normalize_y=True, optimizer=None).fit(x.numpy(), y.numpy())
    for ours, his in zip((mean, std), theirs.predict(at.numpy(), return_std=True), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(his), rtol=1e-10, atol=1e-10)

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale * torch.exp(-torch.cdist(a, b) / length)

    centre, spread = y.mean(), y.std(correction=0)
    solved = torch.linalg.solve(k(x, x) + 1e-6 * torch.eye(5, dtype=torch.float64), k(x, at))
    torch.testing.assert_close(mean, centre + spread * (solved.T @ ((y - centre) / spread)), rtol=1e-8, atol=1e-8)
    variance = spread**2 * (scale - (k(x, at) * solved).sum(0))
    torch.testing.assert_close(std, variance.sqrt(), rtol=1e-6, atol=1e-6)
    known_mean, known_std = GaussianProcess().posterior(x, y, x)
    torch.testing.assert_close(known_mean, y, rtol=0, atol=1e-4)
    assert float(known_std.max()) < 0.01
    likelihood = theirs.log_marginal_likelihood
    best = likelihood(fitted.theta)
    assert all(likelihood(fitted.theta + step) <= best + 1e-9 for step in ([0.1, 0], [-0.1, 0], [0, 0.1], [0, -0.1]))
    assert isinstance(fitted.k2, kernels.Matern)


def test_rewards_that_are_all_alike_fit_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("sklearn")
    mean, std = GaussianProcess().posterior(torch.rand(6, 2), torch.full((6,), 0.3), torch.rand(3, 2))
    torch.testing.assert_close(mean, torch.full((3,), 0.3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert bool((std >= 0).all())
    assert not recwarn.list


def test_cells_are_drawn_without_replacement_by_the_law() -> None:
    law, known = torch.tensor([0.0, 0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64), torch.tensor([1])
    rng = Rng.of_seeds([7])
    rng.dtype = torch.float64
    drawn = torch.stack([draw(law, known, 2, rng.fold(i)) for i in range(3000)])
    first = drawn[:, 0].bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(first.double(), torch.tensor([0, 0, 3, 2, 1, 0]).double() / 6, rtol=0, atol=0.03)
    after = drawn[drawn[:, 0] == 2][:, 1].bincount(minlength=6).double()  # the rest, normalised again
    torch.testing.assert_close(after / after.sum(), torch.tensor([0, 0, 0, 2, 1, 0]).double() / 3, rtol=0, atol=0.05)
    assert sorted(draw(law, known, 5, rng).tolist()) == [0, 2, 3, 4, 5]  # it has three; the others are any


def test_a_grid_with_other_rewards_is_the_same_grid() -> None:
    for convention in ("stop", "paper2021"):
        p = pool(3, convention=convention)
        reward = torch.linspace(0.1, 2.0, len(p.cells), dtype=torch.float64)
        again = enumerate_dag(p.with_reward(reward))
        assert torch.equal(again.obs[again.objects], p.cells)
        torch.testing.assert_close(again.log_reward, reward.log())


def test_what_is_measured() -> None:
    p = pool()
    cells = torch.tensor([[1, 1], [6, 6], [3, 3], [0, 0], [1, 6]])
    known = p.dag.object_of(cells)
    top, modes, distance = measures(p, known[:4], 2)
    assert (round(top, 9), modes) == (2.6, 2)
    assert distance == pytest.approx(2**0.5 * 5 / 7)
    assert measures(p, known, 4)[:2] == (pytest.approx((3 * 2.6 + 0.6) / 4), 3)


def test_with_the_oracle_for_a_proxy_the_modes_are_found_and_uniform_moves_find_fewer() -> None:
    p, seeds = pool(), range(2)
    gfn = GFlowNet(TrajectoryBalance(), learning_rate=0.02, hidden=(32,))
    found = {}
    for name, method in (("tb", gfn), ("uniform", Uniform())):
        modes = []
        for seed in seeds:
            known = begin(p, SMALL, seed)
            for i in range(SMALL.rounds):
                done = one_round(p, TrueReward(p.reward), method, SMALL, seed, i, known)
                assert len(set(done.known.tolist())) == len(known) + SMALL.queries
                assert torch.equal(done.known[: len(known)], known)
                assert done.error == 0
                known = done.known
            assert name != "tb" or done.l1 < 0.5
            modes.append(measures(p, known, 4).modes)
        found[name] = modes
    assert found["tb"] == [4, 4]
    assert sum(found["uniform"]) <= 4


@pytest.mark.parametrize("name", sorted(register()))
def test_every_method_generates(name: str) -> None:
    _, choice, _ = settings_for(name, "hypergrid", "recipe")
    few = {"hidden": (8,)} if name not in ("mcmc", "uniform") else {}
    method = make_method(
        replace(choice, hyperparameters={**choice.hyperparameters, **few, **({"updates": 2} if name == "ppo" else {})})
    )
    p, settings = pool(), replace(SMALL, states=32, batch_size=8)
    done = one_round(p, TrueReward(p.reward), method, settings, 0, 0, begin(p, settings, 0))
    assert len(set(done.known.tolist())) == 14
    assert 0 < done.l1 < 2
    assert (done.unlikely > 0) <= (name == "mcmc")


@pytest.mark.parametrize("name", ["fm", "mcmc"])
def test_the_same_seed_gives_the_same_bytes_after_a_stop_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = "gp" if name == "fm" and importlib.util.find_spec("sklearn") else "oracle"
    net = [] if name == "mcmc" else NET
    command = [*GRID, "--objective", name, "--batch-size", 8, "--proxy", proxy, "--seeds", 2, *net]
    active(*command, "--out", tmp_path / "one")
    one_round = gfn_active._round

    def stopped(begun: Any, known: Any, s: int, i: int, tick: Any) -> Any:
        if (s, i) == (1, 1):
            signal.raise_signal(signal.SIGTERM)
        return one_round(begun, known, s, i, tick)

    with monkeypatch.context() as patch:
        patch.setattr(gfn_active, "_round", stopped)
        with pytest.raises(SystemExit) as ended:
            active(*command, "--out", tmp_path / "cut")
        assert ended.value.code == 143
    assert len(read_metrics(tmp_path / "cut")) == 3
    main(["resume", str(tmp_path / "cut"), "--quiet"])
    same(tmp_path / "cut", tmp_path / "one")
    alone = ["--seeds", 1, "--seed", 1, "--out", tmp_path / "alone"]
    active(*command[: command.index("--seeds")], *net, *alone)
    both, last = read_metrics(tmp_path / "one")[-1], read_metrics(tmp_path / "alone")[-1]
    for tag in ("eval/top_mean", "eval/modes", "eval/generator_l1", "rollout/queried"):
        assert both[tag][1] == last[tag][0]


def test_the_run_folder_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    active(*GRID, "--objective", "tb", "--proxy", "oracle", "--kappa", 1, "--beta", 2, *NET, "--seeds", 2, "--out", out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["round", "known"]
    assert [line.split()[:2] for line in lines[1:5]] == [["0", "8"], ["1", "12"], ["2", "16"], ["3", "20"]]
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [8, 12, 16, 20]
    for before, row in itertools.pairwise(rows):
        for s in (0, 1):
            gain = row["eval/top_mean"][s] - before["eval/top_mean"][s]
            assert row["eval/top_gain"][s] == pytest.approx(gain)
            assert row["eval/top_return"][s] == pytest.approx(before["eval/top_return"][s] + gain)
            assert gain >= 0
    config = json.loads((out / "config.json").read_text())
    assert (config["method"], config["rounds"], config["beta"], config["hyperparameters"]["hidden"]) == ("tb", 3, 2.0, [8])
    assert list(out.rglob("events*"))
    if importlib.util.find_spec("matplotlib"):
        assert (out / "active.png").stat().st_size > 10_000
        main([str(a) for a in ("curves", out, "--metric", "eval/modes", "--out", tmp_path / "modes.png")])


def test_bad_input_gets_one_clear_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", tmp_path / "run"]

    def wrong(*arguments: object, code: int = 2) -> str:
        error = says(capsys, "active", "hypergrid", *GRID, "--objective", "tb", *arguments, *out, code=code)
        assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()
        return error

    assert "--rounds is 0, expected at least 1" in wrong("--rounds", 0)
    assert "--seeds is 0" in wrong("--seeds", 0)
    assert "--initial is 2, expected at least --top-k, 4" in wrong("--initial", 2)
    assert "--floor is 0.0, expected a finite number above 0" in wrong("--floor", 0)
    assert "--kappa is -1.0, expected a finite number of at least 0" in wrong("--kappa", -1)
    assert "92 cells, the grid has 64" in wrong("--rounds", 21, "--proxy", "oracle")
    assert "at most 100,000" in wrong("--ndim", 6, "--proxy", "oracle")
    assert "recipe or paper" in wrong("--preset", "theorem")
    assert "active learning is on the hypergrid, not on bits" in says(capsys, "active", "bits", "--objective", "fm")
    assert "gflownet active hypergrid" in says(capsys, "active")
    assert "got no environment or no objective" in says(capsys, "active", "hypergrid")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pip install 'pgrl[active]'" in wrong(code=4)
    active(*GRID, "--objective", "uniform", "--proxy", "oracle", *out)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"initial": 8', '"initial": 9'))
    assert "does not fit" in says(capsys, "resume", tmp_path / "run", code=3)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["active", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--rounds", "--kappa", "--ndim", "--learning-rate"))
