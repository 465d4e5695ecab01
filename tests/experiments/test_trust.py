"""A run folder is data: opening it executes nothing that it brings, follows no link, and mixes no two runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gflownet
import pgrl
from experiments.cli.errors import UserError
from experiments.cli.gflownet import main as gflownet_main
from experiments.cli.pgrl import main as pgrl_main
from experiments.run import checkpoint, identity
from experiments.run.checkpoint import folder_of
from experiments.run.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")

ENV = """
from pathlib import Path
from envs.mdp.tabular import gridworld
Path(__file__).with_suffix(".ran").write_text("")
def make():
    return gridworld()
"""
REWARD = """
from pathlib import Path
Path(__file__).with_suffix(".ran").write_text("")
def score(cells):
    return 1.0 + cells.sum(-1).double()
"""
FEW = ["--evaluations", "2", "--log-rows", "2", "--quiet"]
GRID = ["--ndim", "2", "--height", "4", "--states", "64", "--objective", "tb", *FEW]


def code(main: Callable[[list[str]], None], *words: Any) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def ran(file: Path) -> bool:
    """Was the file executed since this was asked last?"""
    mark = file.with_suffix(".ran")
    found = mark.exists()
    mark.unlink(missing_ok=True)
    for name in [name for name in sys.modules if name == f"file:{file.resolve()}"]:  # as in a new process
        del sys.modules[name]
    return found


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Path, Path]:
    """A run of `pgrl` in an environment from a file, and that file."""
    file = tmp_path / "mine.py"
    file.write_text(ENV)
    words = ["train", "reinforce", "--env", f"{file}:make", "--seeds", "1", "--env-steps", "200", "--step-size", "0.1", *FEW]
    assert code(pgrl_main, *words, "--out", tmp_path / "run") == 0
    assert ran(file)
    return tmp_path / "run", file


@pytest.fixture
def grid(tmp_path: Path) -> tuple[Path, Path]:
    """A run of `gflownet` with a reward from a file, and that file."""
    file = tmp_path / "reward.py"
    file.write_text(REWARD)
    assert code(gflownet_main, "train", "hypergrid", "--reward", f"{file}:score", *GRID, "--out", tmp_path / "run") == 0
    assert ran(file)
    return tmp_path / "run", file


def edit(run: Path, **values: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, **values}))


def openings(run: Path, pg: bool) -> dict[str, Callable[[], int]]:
    """Every way to open a run."""

    def python() -> int:
        try:
            made: Any = (pgrl if pg else gflownet).load(run)
            made.evaluate(2)
        except UserError as error:
            return error.exit_code
        return 0

    main = pgrl_main if pg else gflownet_main
    common = {
        "eval": lambda: code(main, "eval", run, "--episodes" if pg else "--samples", 2),
        "resume": lambda: code(main, "resume", run, "--quiet"),
        "python": python,
    }
    figure = run.parent / "figure.png"
    return common if pg else {**common, "distribution": lambda: code(main, "distribution", run, "--out", figure)}


def test_ones_own_unchanged_files_are_used_without_a_word(mine: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = mine
    for name, opened in openings(run, True).items():
        assert (name, opened(), ran(file)) == (name, 0, True)
    shutil.move(run, tmp_path / "elsewhere")  # the folder may move, the file may not
    assert code(pgrl_main, "eval", tmp_path / "elsewhere", "--episodes", 2) == 0
    record = json.loads((tmp_path / "elsewhere" / "run.json").read_text())
    assert set(record["files"]) == {str(file)}


def test_a_changed_file_is_refused_and_trust_takes_it(
    grid: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, file = grid
    file.write_text(f"{REWARD}\n# another")
    for name, opened in openings(run, False).items():
        assert (name, opened(), ran(file)) == (name, 3, False)
    assert f"{file} has changed since" in capsys.readouterr().err
    again = ["train", "hypergrid", "--reward", f"{file}:score", *GRID, "--out", run, "--resume", "auto"]
    (run / "checkpoints" / sorted(os.listdir(run / "checkpoints"))[-1]).rename(tmp_path / "later")  # there is something to do
    assert code(gflownet_main, *again) == 3
    assert "has changed since" in capsys.readouterr().err
    assert code(gflownet_main, "eval", run, "--samples", 2, "--trust") == 0
    assert code(gflownet_main, "eval", run, "--samples", 2) == 3 or ran(file)  # eval writes no record
    ran(file)
    assert code(gflownet_main, *again, "--trust") == 0
    ran(file)
    assert code(gflownet_main, "eval", run, "--samples", 2) == 0  # resume did
    assert gflownet.load(run, trust=True).evaluate(2)


@pytest.mark.parametrize("key", ["env", "algo"])
@pytest.mark.parametrize("kind", ["inside", "relative", "unknown", "forged", "foreign", "linked"])
def test_a_strangers_code_is_never_executed(
    key: str, kind: str, mine: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = mine
    monkeypatch.chdir(tmp_path)
    place = run if kind == "inside" else tmp_path
    (file := place / "evil.py").write_text(ENV)
    name = {"relative": "evil.py"}.get(kind, str(file))
    if kind == "linked":  # outside by its name, inside by what it is
        (run / "real.py").write_text(ENV)
        file.unlink()
        file.symlink_to(run / "real.py")
    edit(run, **{key: f"{name}:make"})
    record = identity.Identity.new({"env": f"{name}:make"}, identity.Identity.of(run).id)
    if kind in ("inside", "relative", "linked"):  # even a record that this account sealed
        record.write(run)
    if kind == "forged":  # the right hash and a seal of somebody else
        identity.Identity(record.id, record.files, "0" * 64).write(run)
    if kind == "foreign":
        identity.Identity(record.id, record.files).write(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for way, opened in openings(run, True).items():
        assert (way, opened(), ran(file), ran(run / "real.py")) == (way, 3, False, False)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"} == {
        path: data for path, data in before.items() if path.name != "lock"
    }


@pytest.mark.parametrize("change", ["method", "env", "reward", "pyc", "map"])
def test_whatever_names_a_file_in_a_gflownet_run_is_looked_at(
    change: str, grid: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = grid
    (file := tmp_path / "evil.py").write_text(REWARD)
    settings = json.loads((run / "config.json").read_text())["env_settings"]
    edit(
        run,
        **{
            "method": {"method": f"{file}:score"},
            "env": {"env": f"{file}:score"},
            "reward": {"env_settings": {**settings, "reward": f"{file}:score"}},
            "pyc": {"env_settings": {**settings, "reward": f"{file}c"}},  # Python executes these too
            "map": {"env_settings": {**settings, "reward": "/dev/zero.py"}},
        }[change],
    )
    if change == "pyc":
        import py_compile

        py_compile.compile(str(file), cfile=f"{file}c")
    for way, opened in openings(run, False).items():
        assert (way, opened() != 0, ran(file)) == (way, True, False)
    assert "Traceback" not in capsys.readouterr().err


def test_molecule_rewards_of_a_stranger(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    (file := tmp_path / "score.py").write_text(
        REWARD.replace("score(cells)", "score(smiles)").replace(
            "1.0 + cells.sum(-1).double()", "[0.5 + len(s) / 100 for s in smiles]"
        )
    )
    words = ["train", "molecules", "--reward", f"{file}:score*qed", "--objective", "tb", "--max-blocks", "2", "--states", "32"]
    words += ["--reward-cache", str(tmp_path / "answers.sqlite")]
    assert code(gflownet_main, *words, *FEW, "--metrics", "sampled", "--out", tmp_path / "run") == 0
    assert ran(file)
    sample = ["sample", tmp_path / "run", "--n", 2, "--out", tmp_path / "out.csv", "--quiet"]
    assert code(gflownet_main, *sample) == 0
    assert ran(file)
    file.write_text(file.read_text() + "# changed\n")
    assert (code(gflownet_main, *sample), ran(file)) == (3, False)
    assert (code(gflownet_main, *sample, "--trust"), ran(file)) == (0, True)


def test_a_gymnasium_id_that_imports_a_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert code(pgrl_main, "train", "reinforce", "--seeds", 1, "--env-steps", 50, *FEW, "--out", run) == 0
    (tmp_path / "evil_module.py").write_text("open(__file__ + '.ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(run, env="evil_module:Env-v0")
    assert [opened() for opened in openings(run, True).values()] == [3, 3, 3]
    assert not (tmp_path / "evil_module.py.ran").exists()


def test_a_changed_map_is_refused_and_an_endless_one_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "map.txt").write_text("S..\n..G\n")
    run = tmp_path / "run"
    words = ["train", "reinforce", "--env", f"gridworld:{file}", "--seeds", 1, "--env-steps", 50, *FEW]
    assert code(pgrl_main, *words, "--out", run) == 0
    assert code(pgrl_main, "eval", run, "--episodes", 1) == 0
    file.write_text("S..\n.#G\n")
    assert code(pgrl_main, "eval", run, "--episodes", 1) == 3
    assert f"{file} has changed since" in capsys.readouterr().err
    os.mkfifo(pipe := tmp_path / "pipe")
    for endless in ("/dev/zero", pipe):
        edit(run, env=f"gridworld:{endless}")
        assert code(pgrl_main, "eval", run, "--episodes", 1) == 3


def test_the_cache_beside_a_file_is_not_what_is_executed(tmp_path: Path) -> None:
    import py_compile

    from experiments.cli.load import load_object

    (file := tmp_path / "f.py").write_text("def f():\n    return 1\n")
    stamp = file.stat()
    (other := tmp_path / "g.py").write_text("def f():\n    return 2\n")
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    cache = tmp_path / "__pycache__" / f"f.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(other), cfile=str(cache))
    assert load_object(f"{file}:f")() == 1


# -- links, pipes, devices


ATTACKS = {
    "lock": "lock",
    "metrics": "metrics.jsonl",
    "config": "config.json",
    "identity": "run.json",
    "command": "cmd.txt",
    "provenance": "environment.000000002.json",
    "provenance being written": ".environment.000000002.json.part",
    "config being written": ".config.json.part",
    "checkpoints": "checkpoints",
    "a checkpoint": "checkpoints/000000002",
    "a later checkpoint": "checkpoints/000000003",
    "a discarded checkpoint": "checkpoints/discarded-000000003",
    "tensors": "checkpoints/000000002/tensors.safetensors",
    "meta": "checkpoints/000000002/meta.json",
    "manifest": "checkpoints/000000002/manifest.json",
    "event files of old": "tensorboard",
    "sub-run of a seed": "seed-0",
    "sub-run of all": "all",
    "hyperparameters": "hparams",
    "an event file": "all/events.out.tfevents.1.2",
    "pictures": "best",
    "a picture": "best/000000000001.png",
    "a picture being written": "best/.000000000001.png.part",
    "faults": "faults",
    "a fault": "faults/000000001.safetensors",
    "figure": "active.png",
}


def small(folder: Path) -> Run:
    with Run.create(folder, "", {"algo": "a", "env": "e", "seed": 0}, ["pgrl"]) as run:
        for k in (1, 2):
            run.log(k, {"eval/gap": [1.0, 2.0]})
            run.checkpoint(k, {"x": torch.zeros(2)}, {})
    return run


def go_on(folder: Path) -> None:
    with Run.open(folder) as run:
        run.resume(lambda tensors, meta: None)
        run.log(3, {"eval/gap": [1.0, 2.0]})
        run.picture(3, b"png")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
@pytest.mark.parametrize("what", ATTACKS)
def test_resume_follows_nothing_out_of_the_folder(what: str, kind: str, tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    victim = tmp_path / "victim"
    path = run.folder / ATTACKS[what]
    path.parent.mkdir(exist_ok=True)
    moved = path.exists()
    (shutil.move if moved else lambda *_: victim.mkdir())(path, victim)
    if victim.is_dir():
        (victim / "events.out.tfevents.1").write_text("precious")
        (victim / "precious").write_text("precious")
    before = tree(victim) if victim.is_dir() else victim.read_bytes()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim if kind == "link" else tmp_path / "nothing")
    inside = tree(run.folder) if kind != "pipe" else None
    with pytest.raises(UserError) as refused:
        go_on(run.folder)
    assert refused.value.exit_code == 3
    assert path.name in str(refused.value)
    assert (tree(victim) if victim.is_dir() else victim.read_bytes()) == before
    assert not (tmp_path / "nothing").exists()
    if inside is not None:
        assert tree(run.folder) == inside


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_reading_follows_nothing_either(kind: str, tmp_path: Path) -> None:
    from experiments.run.log import read_metrics

    for what, read in (
        ("config.json", lambda folder: Run.open(folder)),
        ("run.json", lambda folder: Run.open(folder).load()),
        ("metrics.jsonl", read_metrics),
        ("checkpoints", lambda folder: Run.open(folder).load()),
        ("checkpoints/000000002", lambda folder: Run.open(folder).load()),
    ):
        run = small(tmp_path / what.replace("/", "-") / "run")
        shutil.move(run.folder / what, victim := run.folder.parent / "victim")
        path = run.folder / what
        os.mkfifo(path) if kind == "pipe" else path.symlink_to(victim)
        with pytest.raises(UserError, match=r"a link|a named pipe|ordinary") as refused:
            read(run.folder)
        assert refused.value.exit_code == 3


def test_a_link_to_a_run_folder_is_a_run_folder(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    (tmp_path / "latest").symlink_to(run.folder)
    with Run.open(tmp_path / "latest") as again:
        assert again.resume(lambda tensors, meta: meta["iteration"]) == 2
        again.log(3, {"eval/gap": [0.0, 1.0]})


def test_a_batch_of_faults_is_not_written_through_a_link(tmp_path: Path) -> None:
    from experiments.run.faults import keep_fault

    (victim := tmp_path / "victim").mkdir()
    (victim / "000000000.safetensors").write_text("precious")
    (tmp_path / "faults").symlink_to(victim)
    with pytest.raises(UserError, match="is a link"):
        keep_fault(tmp_path, 1, {"x": torch.zeros(2)})
    assert os.listdir(victim) == ["000000000.safetensors"]


# -- one run, one id


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    first, second = small(tmp_path / "first"), small(tmp_path / "second")
    assert first.identity.id != second.identity.id
    shutil.rmtree(folder_of(second.checkpoints, 2))
    shutil.copytree(folder_of(first.checkpoints, 2), folder_of(second.checkpoints, 2))
    for use in (lambda: Run.open(second.folder).load(), lambda: Run.open(second.folder).resume(lambda *_: None)):
        with pytest.raises(UserError, match="is a checkpoint of another run") as refused:
            use()
        assert refused.value.exit_code == 3
    assert Run.open(second.folder).load(Path("000000001"))[1]["run"] == second.identity.id


FORGED = {
    "pgrl": [
        "skipped=5",
        'skipped=["a","b"]',
        "failing=null",
        "failing=[]",
        'restarts="x"',
        "state=3",
        'state={"t":"x"}',
        "state={}",
    ],
    "gflownet": ["due=[1]", 'due={"states":"x"}', "due={}", 'states="x"', "states=-5", "reward=5", 'reward={"calls":"x"}'],
}


@pytest.mark.parametrize("program", FORGED)
def test_forged_numbers_are_refused(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = {"pgrl": pgrl_main, "gflownet": gflownet_main}[program]
    few = GRID if program == "gflownet" else ["--env-steps", "300", "--seeds", "2", *FEW]
    assert code(main, "train", "hypergrid" if program == "gflownet" else "reinforce", *few, "--out", tmp_path / "run") == 0
    run = Run.open(tmp_path / "run")
    tensors, meta = run.load()
    folder = folder_of(run.checkpoints, meta["iteration"])
    for forged in FORGED[program]:
        name, _, value = forged.partition("=")
        checkpoint.save(folder, tensors, {**meta, name: json.loads(value)})
        assert code(main, "resume", run.folder, "--quiet") == 3, forged
        assert "checkpoint" in capsys.readouterr().err
    checkpoint.save(folder, tensors, meta)
    assert code(main, "resume", run.folder, "--quiet") == 0


def test_a_checkpoint_that_was_set_aside_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--env-steps", "300", "--seeds", "2", *FEW]
    assert code(pgrl_main, "train", "reinforce", *few, "--out", tmp_path / "run") == 0
    folder = Run.open(tmp_path / "run").checkpoints
    newest = max(path.name for path in folder.iterdir())
    (folder / newest).rename(folder / f"discarded-{newest}")
    assert code(pgrl_main, "eval", tmp_path / "run", "--episodes", 2, "--checkpoint", f"discarded-{newest}") == 0
    (folder / f"discarded-{newest}").rename(folder / "mine")
    assert code(pgrl_main, "eval", tmp_path / "run", "--episodes", 2, "--checkpoint", "mine") == 3


def test_rows_whose_checkpoints_were_removed_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["train", "reinforce", "--env-steps", "300", "--seeds", "2", *FEW, "--out", tmp_path / "run"]
    assert code(pgrl_main, *few) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert code(pgrl_main, *few, "--resume", "auto") == 3
    assert "has rows of metrics and no checkpoint" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == rows


def test_text_that_looks_like_json_names_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--env-steps", "300", "--seeds", "2", *FEW]
    assert code(pgrl_main, "train", "reinforce", *few, "--best", "{.py", "--out", tmp_path / "run") == 2
    assert "got --best {.py, which" in capsys.readouterr().err


def test_checkpoints_of_earlier_versions_have_no_id(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    tensors, meta = run.load()
    checkpoint.save(folder_of(run.checkpoints, 2), tensors, {k: v for k, v in meta.items() if k != "run"})
    (run.folder / "run.json").unlink()
    with Run.open(run.folder) as again:
        again.resume(lambda *_: None)
        again.log(3, {"eval/gap": [0.0, 1.0]})
        again.checkpoint(3, {"x": torch.zeros(2)}, {})
    assert Run.open(run.folder).load()[1]["run"] == again.identity.id is not None
    earlier, later = (folder_of(run.checkpoints, iteration) for iteration in (2, 4))
    assert "run" not in Run.open(run.folder).load(earlier)[1]
    checkpoint.save(later, tensors, {**{k: v for k, v in meta.items() if k != "run"}, "iteration": 4})
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        Run.open(run.folder).load(later)


def test_equal_seeds_give_equal_tensors_with_ids_of_their_own(tmp_path: Path) -> None:
    words = ["train", "reinforce", "--seeds", 1, "--env-steps", 100, *FEW, "--out"]
    for name in ("a", "b"):
        assert code(pgrl_main, *words, tmp_path / name) == 0
    a, b = (sorted((tmp_path / name / "checkpoints").iterdir())[-1] / "tensors.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
    assert (tmp_path / "a" / "run.json").read_bytes() != (tmp_path / "b" / "run.json").read_bytes()


def test_nothing_is_kept_for_the_account_when_a_run_names_no_code(tmp_path: Path) -> None:
    home = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.cli.pgrl", "train", "reinforce", "--seeds", "1", "--env-steps", "20", *FEW]
    subprocess.run([*command, "--out", str(tmp_path / "run")], env=home, check=True)
    assert not (tmp_path / "state").exists()
