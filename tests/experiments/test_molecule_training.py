"""Training on molecules: the top_k of a run, its metrics, pictures and histograms, what is enumerated, and going on to the
same bytes."""

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from envs.dag.enumeration import enumerate_dag
from envs.dag.search import TooManyStates
from envs.molecules.block_trees import BlockTrees
from envs.molecules.counting import count_states
from experiments.cli.errors import UserError
from experiments.cli.gflownet import main
from experiments.gfn import train as gfn
from experiments.gfn.build import truth
from experiments.gfn.commands import opened
from experiments.gfn.metrics import held_back, of_the_policy
from experiments.molecules.config import MoleculeSettings, molecules
from experiments.molecules.metrics import Molecules
from experiments.run.log import read_metrics
from gflownet.evaluation import exact_distribution
from gflownet.metrics import pearson, spearman
from gflownet.molecules.fingerprints import circles, fingerprints, internal_diversity
from gflownet.molecules.metrics import collect, modes, scaffolds, top_mean
from gflownet.molecules.top_k import TopK
from gflownet.rewards.lru import LRUCache
from tests.block_vocabularies import vocabulary

FRAGMENTS = {  # CC is ethyl, or methyl on methyl
    "benzene": ("c1ccccc1", [[i, 1] for i in range(6)]),
    "amine": ("CN", [[0, 2], [1, 1]]),
    "methyl": ("C", [[0, 2]]),
    "ethyl": ("CC", [[0, 2], [1, 2]]),
    "fluoro": ("F", [[0, 1]]),
}
RUN = ["--states", 96, "--batch-size", 4, "--seeds", 2, "--hidden", 16, "--window", 50, "--mode-threshold", 0.4]
FEW = ["--evaluations", 3, "--log-rows", 6, "--checkpoints", 6, "--quiet"]
KINDS: dict[str, list[Any]] = {
    "tb": ["--max-blocks", 3, "--replay", "prioritised", "--capacity", 20],
    "fm": ["--max-blocks", 4, "--metrics", "sampled", "--epsilon", 0.1],
}


class Stopped(Exception):
    """In place of a power cut."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fragments") / "few.json"
    listed = [{"name": name, "smiles": smiles, "attach": attach} for name, (smiles, attach) in FRAGMENTS.items()]
    path.write_text(json.dumps({"format": "fragments-1", "fragments": listed}))
    return path


@pytest.fixture(scope="module")
def whole(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for name in KINDS:
        main([*command(name, blocks), "--out", str(folder / name)])
    return {name: folder / name for name in KINDS}


def command(name: str, blocks: Path) -> list[str]:
    given = ["train", "molecules", "--objective", name, "--fragments", blocks, *RUN, *FEW, *KINDS[name]]
    return [str(a) for a in given]


def same(cut: Path, whole: Path) -> None:
    assert read_metrics(cut, timing=False) == read_metrics(whole, timing=False)
    last = sorted((whole / "checkpoints").iterdir())[-1]
    theirs = cut / "checkpoints" / last.name
    assert (last / "tensors.safetensors").read_bytes() == (theirs / "tensors.safetensors").read_bytes()
    pictures = sorted((whole / "best").iterdir())
    assert [p.read_bytes() for p in pictures] == [(cut / "best" / p.name).read_bytes() for p in pictures]
    for folder in (cut, whole):
        check_events(folder, read_metrics(folder), pictures)


def check_events(folder: Path, rows: list[dict[str, Any]], pictures: list[Path]) -> None:
    """What TensorBoard's own reader finds is what the rows and the pictures say, each once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    size = {"histograms": 0, "images": 0}
    for seed in range(2):
        found = EventAccumulator(str(folder / f"seed-{seed}"), size).Reload().Histograms("hist/reward")
        told = [row for row in rows if "hist/reward" in row]
        assert [e.step for e in found] == [row["step"] for row in told]
        for event, row in zip(found, told, strict=True):
            edges, counts = row["hist/reward"]["edges"], row["hist/reward"]["counts"][seed]
            shown = event.histogram_value
            assert shown.bucket == counts
            assert shown.bucket_limit == edges[1:]
            assert (shown.min, shown.max, shown.num) == (edges[0], edges[-1], 128)
            # means of the histogram are those of the rewards up to the width of a bin
            assert shown.sum / 128 == pytest.approx(row["mol/reward"][seed], abs=edges[1] - edges[0])
    images = EventAccumulator(str(folder / "all"), size).Reload().Images("best/molecules")
    assert [e.step for e in images] == [int(p.stem) for p in pictures]
    for event, path in zip(images, pictures, strict=True):
        assert event.encoded_image_string == path.read_bytes()
        assert (event.width, event.height) > (200, 150)


# -- going on


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_stopped_run_goes_on_to_the_same_bytes(
    tmp_path: Path, blocks: Path, whole: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = gfn._step

    def dying(method: Any, state: Any, problem: Any, t: int) -> Any:
        if t == 15:
            raise Stopped
        return step(method, state, problem, t)

    with monkeypatch.context() as patch:
        patch.setattr(gfn, "_step", dying)
        with pytest.raises(Stopped):
            main([*command(name, blocks), "--out", str(tmp_path / "cut")])
    assert len(read_metrics(tmp_path / "cut")) < len(read_metrics(whole[name]))
    main(["resume", str(tmp_path / "cut"), "--quiet"])
    same(tmp_path / "cut", whole[name])


def test_kill_9(tmp_path: Path, blocks: Path, whole: dict[str, Path]) -> None:
    script = (
        "import os, signal, sys, torch, experiments.gfn.train as gfn\n"
        "torch.set_num_threads(1)\n"
        "step = gfn._step\n"
        "def dying(method, state, problem, t):\n"
        "    if t == 13: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(method, state, problem, t)\n"
        "gfn._step = dying\n"
        "from experiments.cli.gflownet import main\nmain(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command("fm", blocks), "--out", str(tmp_path / "cut")])
    assert killed.returncode == -signal.SIGKILL
    main(["resume", str(tmp_path / "cut"), "--quiet"])
    same(tmp_path / "cut", whole["fm"])


# -- what a run says


def test_the_top_k_and_its_metrics_are_those_of_all_that_was_visited(
    tmp_path: Path, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, visited = gfn._step, []

    def watched(*given: Any) -> Any:
        state, outcome = step(*given)
        visited.append((outcome.objects, outcome.log_reward))
        return state, outcome

    monkeypatch.setattr(gfn, "_step", watched)
    main([*command("fm", blocks), "--states", "240", "--out", str(tmp_path / "run")])
    _, begun = opened(tmp_path / "run")
    top_k, env = begun.training.top_k, begun.problem.env
    assert top_k is not None
    assert isinstance(env, BlockTrees)
    reward: Any = env.reward
    objects, log_reward = (torch.cat(parts, 1) for parts in zip(*visited, strict=True))
    row = read_metrics(tmp_path / "run")[-1]
    for seed in range(2):
        first: dict[int, int] = {}
        for at, key in enumerate(env.index(objects[seed]).tolist()):
            first.setdefault(key, at)
        order = sorted(first.values(), key=lambda at: (-float(log_reward[seed, at]), at))
        n = int(top_k.there[seed].sum())
        assert top_k.visited_at[seed, :n].tolist() == [at + 1 for at in order]
        assert torch.equal(top_k.obs[seed, :n].long(), objects[seed, order])
        assert torch.equal(top_k.log_reward[seed, :n], log_reward[seed, order])

        drawn = collect(reward.smiles(objects[seed]), reward.untempered(log_reward[seed]).numpy())
        high = drawn.above(0.4)
        by_reward = [i for i in drawn.by_reward if drawn.reward[i] > 0.4]
        assert len(drawn.smiles) < n < objects.shape[1], "trees that are one molecule, and trees visited twice, are wanted here"
        assert 3 < len(modes(drawn, 0.4)) < len(high)
        assert row["mol/top_10"][seed] == pytest.approx(top_mean(drawn, 10), rel=1e-12)
        assert row["mol/top_1000"][seed] is None
        assert row["mol/above"][seed] == len(high)
        assert row["mol/modes"][seed] == len(modes(drawn, 0.4))
        assert row["mol/circles"][seed] == circles(fingerprints(drawn.at(np.array(by_reward))))
        assert row["mol/scaffolds"][seed] == scaffolds(drawn.at(high))
        best = fingerprints(drawn.at(drawn.by_reward[:100]))
        assert row["mol/diversity"][seed] == (pytest.approx(internal_diversity(best)) if len(best) == 100 else None)
        assert 0 < row["mol/unique"][seed] < row["mol/valid"][seed] == 1.0


def test_of_trees_that_are_one_molecule_the_best_counts_once(blocks: Path) -> None:
    env: Any = molecules(MoleculeSettings(fragments=str(blocks), max_blocks=3), "cpu")
    methyl, ethyl, fluoro = 3, 4, 5
    trees = [  # FCC as fluoro-methyl-methyl and as fluoro-ethyl, CCC twice, FC
        [[methyl, 0, 0, 0], [methyl, 0, 0, 0], [fluoro, 1, 0, 0]],
        [[ethyl, 0, 0, 0], [fluoro, 0, 0, 0], [0, 0, 0, 0]],
        [[ethyl, 0, 0, 0], [methyl, 0, 0, 0], [0, 0, 0, 0]],
        [[methyl, 0, 0, 0], [methyl, 0, 0, 0], [methyl, 1, 0, 0]],
        [[methyl, 0, 0, 0], [fluoro, 0, 0, 0], [0, 0, 0, 0]],
    ]
    obs = env.canonical(torch.tensor(trees)).obs[None]
    worth = env.reward.tempered(torch.tensor([[0.5, 0.9, 0.3, 0.2, 0.7]], dtype=torch.float64))
    top_k = TopK.begin(1, 8, obs[0]).add(obs, worth, env.index(obs[0])[None], 0)
    looked = Molecules(env, 0.4)
    assert [smiles for smiles, _ in looked.best(top_k)] == ["CCF", "CF", "CCC"]
    assert [reward for _, reward in looked.best(top_k)] == pytest.approx([0.9, 0.7, 0.3])
    row = looked.of_top_k(top_k)
    assert row["mol/above"].tolist() == [2.0]
    assert row["mol/scaffolds"].tolist() == [0.0]
    assert (looked.picture(top_k) or b"")[:4] == b"\x89PNG"
    assert looked.picture(TopK.begin(1, 8, obs[0])) is None
    nothing = looked.of_top_k(TopK.begin(1, 8, obs[0]))
    assert nothing["mol/modes"].tolist() == [0.0]
    assert bool(nothing["mol/top_10"].isnan().all())


def test_correlation_is_that_of_the_exact_law(whole: dict[str, Path]) -> None:
    _, (_, method, problem, exact, training, _) = opened(whole["fm"])
    env: Any = problem.env
    assert exact is None
    row = of_the_policy(method, training.state, problem, None, 3)
    again = of_the_policy(method, training.state, problem, None, 4)
    everything = enumerate_dag(env)
    tests = held_back(env)
    law = exact_distribution(method, training.state, problem, everything).log()
    log_p = law[:, everything.object_of(tests)]
    log_reward = env.log_reward(tests)
    assert row["eval/correlation"].tolist() == pytest.approx(pearson(log_p, log_reward.expand_as(log_p)).tolist(), abs=1e-6)
    assert row["eval/rank_correlation"].tolist() == pytest.approx(
        spearman(log_p, log_reward.expand_as(log_p)).tolist(), abs=1e-4
    )
    assert all(torch.equal(row[tag], again[tag]) for tag in row)


def test_what_is_held_back_is_distinct_and_finished() -> None:
    env = BlockTrees(vocabulary("CO", "CN", "benzene", "pyridine"), max_blocks=6, min_blocks=3)
    tests = held_back(env)
    assert len(tests) > 100
    assert len(torch.unique(env.index(tests))) == len(tests)
    assert int(env.size(tests).min()) >= 3
    assert (env.size(tests) == 6).all()
    assert torch.equal(tests, held_back(env))


def test_eval_prints_the_metrics_of_molecules(whole: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["eval", str(whole["fm"]), "--samples", "40"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    last = read_metrics(whole["fm"])[-1]
    for seed, row in enumerate(rows):
        assert row["samples"] == "40"
        for name in ("top_10", "modes", "scaffolds"):
            assert float(row[name]) == pytest.approx(last[f"mol/{name}"][seed], rel=1e-5)
        assert 0 < float(row["unique"]) <= float(row["valid"]) == 1


def test_what_rdkit_said_is_kept_and_bounded() -> None:
    asked: list[str] = []

    def make(keys: list[str]) -> Any:
        return lambda places: [asked.append(keys[i]) or keys[i].upper() for i in places]  # type: ignore[func-returns-value]

    kept: LRUCache[str] = LRUCache(3)
    for keys in (["a", "b", "a"], ["b", "c", "d"], ["b", "a", "e", "f", "a"]):
        assert kept(keys, make(keys)) == [key.upper() for key in keys]
    assert asked == ["a", "b", "c", "d", "a", "e", "f"], "a was forgotten for d; each is worked out once"
    assert kept.computed == 7
    assert len(kept._values) == 3


# -- small enough to enumerate?


@pytest.mark.parametrize("min_blocks", [1, 2, 3])
@pytest.mark.parametrize(
    ("names", "max_blocks"),
    [(("CO", "CN", "benzene"), 3), (("F", "CH2"), 8), (("F",), 4), (("triazine", "cyclopropane"), 4), (("CO:1", "CN:0"), 4)],
)
def test_states_are_counted(names: tuple[str, ...], max_blocks: int, min_blocks: int) -> None:
    if names == ("F",) and min_blocks == 3:
        return
    env = BlockTrees(vocabulary(*names), max_blocks=max_blocks, min_blocks=min_blocks)
    many = len(enumerate_dag(env))
    assert count_states(env, many) == many
    with pytest.raises(TooManyStates, match=f"more than the limit of {many - 1:,}"):
        count_states(env, many - 1)


def test_a_large_vocabulary_is_not_enumerated(blocks: Path) -> None:
    few, many = (molecules(MoleculeSettings(fragments=f, max_blocks=k), "cpu") for f, k in ((str(blocks), 2), ("", 8)))
    assert truth("molecules", many, "auto") is None
    with pytest.raises(UserError, match=r"at least .* states, .* use --metrics sampled"):
        truth("molecules", many, "exact")
    known = truth("molecules", few, "auto")
    assert known is not None
    assert isinstance(few, BlockTrees)
    assert len(known) == count_states(few, 10_000)


def test_rewards_that_are_all_equal_are_pointed_out(blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*command("tb", blocks), "--r-min", "2", "--out", str(tmp_path / "flat")])
    assert "all 8 molecules of the first iteration have log R = 5.54518: is the reward" in capsys.readouterr().err
    main([*command("tb", blocks), "--out", str(tmp_path / "qed")])
    assert capsys.readouterr().err == ""
