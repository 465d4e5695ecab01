"""The run folder: complete, never overwritten, resumed without gap or repeat, whole on a full disk; TensorBoard reads back."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.plots.statistics import bootstrap_interval, iqm
from experiments.run import run as module
from experiments.run.checkpoint import CheckpointError, DamagedCheckpoint, saved
from experiments.run.run import MetricsError, Run, RunError, read_metrics, run_name

CONFIG: dict[str, Any] = {"algo": "n-harpg", "env": "gridworld", "seed": 0, "seeds": 3, "hyperparameters": {"eta": (0.5, None)}}
TELL = {"eval/gap": "J* − J(θ), exact.", "train/loss": "A loss."}


def both(tensors: Any, meta: Any) -> Any:
    return tensors, meta


def new(tmp_path: Path, name: str = "run", **keywords: Any) -> Run:
    return Run.create(tmp_path / name, "unused", CONFIG, ["pgrl", "train", "a b"], TELL, **keywords)


def row(k: int) -> dict[str, Any]:
    return {"iteration": k, "eval/gap": [k + 0.5, 2.0 * k, 0.1], "train/loss": -1.0 * k}


def events(folder: Path, name: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / name)).Reload()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """Writing takes half of the bytes and then fails while `switch["full"]`."""
    switch, real = {"full": False}, os.write

    def write(handle: int, data: Any) -> int:
        if switch["full"]:
            real(handle, bytes(data[: len(data) // 2]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    yield switch
    switch["full"] = False


def test_a_new_run_says_everything(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        assert (
            json.loads((run.folder / "config.json").read_text())
            == run.config
            == {**CONFIG, "hyperparameters": {"eta": [0.5, None]}}
        )
        assert (run.folder / "cmd.txt").read_text() == "pgrl train 'a b'\n"
        where = json.loads((run.folder / "environment.json").read_text())
        assert where["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # a build's own suffix
        assert where["packages"]["numpy"] == np.__version__
        assert {"python", "device", "threads", "processor", "platform", "commit", "time"} <= set(where)
        assert run.checkpoints.is_dir()
    opened = Run.open(run.folder)
    assert opened.config == run.config
    with pytest.raises(RuntimeError, match="open for reading"):
        opened.log(1, {})


def test_finding_the_versions_imports_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from experiments.run.run import Run
Run.create(Path(sys.argv[1]), "", {}, []).close()
print([m for m in ("mujoco", "gymnasium", "tensorboard", "matplotlib", "scipy") if m in sys.modules])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = run_name("my/file.py:make", "n-harpg", 3, CONFIG)
    assert re.fullmatch(r"my-file\.py-make/n-harpg/\d{8}-\d{6}-seed3-[0-9a-f]{6}", name)
    assert name[-6:] != run_name("e", "a", 3, {**CONFIG, "seeds": 4})[-6:]
    assert name[-6:] == run_name("e", "a", 3, dict(reversed(CONFIG.items())))[-6:]
    folders = []
    for _ in range(3):
        with Run.create(None, name, CONFIG, []) as run:
            folders.append(str(run.folder))
    assert folders == [f"runs/{name}", f"runs/{name}-2", f"runs/{name}-3"]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    new(tmp_path).close()
    with pytest.raises(
        RunError, match=r"never overwritten: choose another --out, or continue it with `pgrl resume .*run`"
    ) as caught:
        new(tmp_path)
    assert caught.value.exit_code == 2
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty"):
        new(tmp_path, "home")
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    new(tmp_path, "empty").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not make"):
        new(tmp_path, "file/run")
    with pytest.raises(ValueError, match="JSON"):
        Run.create(tmp_path / "nan", "", {"x": float("nan")}, [])
    assert not (tmp_path / "nan").exists()


def test_opening_what_is_not_a_run(tmp_path: Path) -> None:
    run = new(tmp_path, "a/b")
    run.close()
    with pytest.raises(RunError, match="there is no run folder"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"not a run folder, it has no config.json; did you mean .*a/b\?"):
        Run.open(tmp_path)
    for text in ("{", "[]", "\xff"):
        (run.folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(RunError, match=r"config.json is damaged") as caught:
            Run.open(run.folder)
        assert caught.value.exit_code == 3


def test_keys_of_an_older_config_are_read(tmp_path: Path) -> None:
    run = new(tmp_path)
    run.close()
    (run.folder / "config.json").write_text(json.dumps({"knobs": {"eta": 1}, "world": {}, "gallery": 10, "seed": 0}))
    assert Run.open(run.folder).config == {"hyperparameters": {"eta": 1}, "env_settings": {}, "top_k": 10, "seed": 0}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    run = new(tmp_path)
    run.checkpoint(1, {}, {})
    code = "import sys, pathlib; from experiments.run.run import Run; Run.open(pathlib.Path(sys.argv[1])).resume(lambda *x: x)"
    result = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True)
    assert f"is being written by process {os.getpid()}: wait for it or stop it" in result.stderr
    with pytest.raises(RunError, match="is being written by"):
        Run.open(run.folder).resume(both)
    with pytest.raises(RuntimeError, match="already"):
        run.resume(both)
    run.close()
    run.close()
    Run.open(run.folder).resume(both)


def test_rows_read_back_strictly(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log(
            10, {"a": float("nan"), "b": [1, float("-inf")], "c": torch.tensor([0.5, 1]), "d": np.float64(2), "time/x": 1.0}
        )
        assert [r["step"] for r in read_metrics(run.folder)] == [10]  # flushed at once
        run.log(20, row(1))
        for bad in ({"wall": 1.0}, {"step": 1.0}):
            with pytest.raises(ValueError, match="own"):
                run.log(1, bad)
        with pytest.raises(TypeError, match="number"):
            run.log(1, {"a": "text"})  # type: ignore[dict-item]
    rows = read_metrics(run.folder, timing=False)
    assert rows == [{"step": 10, "a": None, "b": [1, None], "c": [0.5, 1.0], "d": 2.0}, {"step": 20, **row(1)}]
    with run.metrics.open("a") as file:
        file.write('{"step": 30, "ev')
    assert len(read_metrics(run.metrics)) == 2
    with run.metrics.open("a") as file:
        file.write("\n")
    with pytest.raises(MetricsError, match="line 3 is not JSON"):
        read_metrics(run.metrics)
    with pytest.raises(MetricsError, match="cannot be read"):
        read_metrics(tmp_path / "none.jsonl")


def test_resume_has_no_gap_and_no_repeat(tmp_path: Path) -> None:
    with new(tmp_path, "whole") as whole:
        for k in range(1, 11):
            whole.log(10 * k, row(k))
    run = new(tmp_path, "cut")
    for k in range(1, 9):
        run.log(10 * k, row(k))
        if k % 2 == 0:
            run.checkpoint(k, {"theta": torch.full((3, 4), k)}, {"rng": k})
    run.log(90, row(9))
    os.write(os.open(run.metrics, os.O_WRONLY | os.O_APPEND), b'{"step": 100, "wa')  # as a kill leaves it
    before = run.wall
    run.close()
    again = Run.open(run.folder, TELL)
    tensors, meta = again.resume(both)
    assert meta["iteration"] == meta["rng"] == 8
    assert bool((tensors["theta"] == 8).all())
    assert 0 < again.wall < before + 60
    for k in (9, 10):
        again.log(10 * k, row(k))
    again.close()
    assert read_metrics(run.folder, timing=False) == read_metrics(whole.folder, timing=False)
    walls = [r["wall"] for r in read_metrics(run.folder)]
    assert walls == sorted(walls)
    for name in ("seed-0", "seed-2", "iqm-low", "all"):
        a, b = events(run.folder, name), events(whole.folder, name)
        assert a.Tags()["scalars"] == b.Tags()["scalars"]
        for tag in set(a.Tags()["scalars"]) - {"time/wall"}:
            assert [(e.step, e.value) for e in a.Scalars(tag)] == [(e.step, e.value) for e in b.Scalars(tag)]
            assert len(a.Scalars(tag)) == 10
    assert (run.folder / "environment.000000008.json").is_file()


def test_resume_from_an_earlier_checkpoint_after_damage(tmp_path: Path) -> None:
    run = new(tmp_path)
    for k in range(1, 4):
        run.log(k, row(k))
        run.checkpoint(k, {"x": torch.tensor(k)}, {})
    run.close()
    (run.checkpoints / "000000003" / "meta.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint) as caught:
        Run.open(run.folder).resume(both)
    assert caught.value.previous
    with Run.open(run.folder) as again:
        assert again.resume(both, caught.value.previous)[1]["iteration"] == 2
        assert [r["step"] for r in read_metrics(run.folder)] == [1, 2]
        again.log(3, row(3))
        again.checkpoint(3, {}, {})
    assert [p.name for p in saved(run.checkpoints)] == ["000000001", "000000002", "000000003"]
    assert (run.checkpoints / "discarded-000000003").is_dir()
    with Run.open(run.folder) as again:
        assert again.resume(both, Path("000000001"))[1]["iteration"] == 1  # by its bare name


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    run = new(tmp_path)
    run.close()
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        Run.open(run.folder).resume(both)
    again = new(tmp_path, "short")
    again.log(1, row(1))
    again.checkpoint(1, {}, {})
    again.close()
    again.metrics.write_text("")
    with pytest.raises(RunError, match="has 0 bytes") as caught:
        Run.open(again.folder).resume(both)
    assert caught.value.exit_code == 3
    from experiments.run.checkpoint import folder_of, save

    save(folder_of(again.checkpoints, 2), {}, {"iteration": 2})
    with pytest.raises(RunError, match="not a checkpoint of a run"):
        Run.open(again.folder).resume(both)
    other = new(tmp_path, "other")
    foreign = other.checkpoint(1, {}, {})
    with pytest.raises(RunError, match="is not a checkpoint of the run"):
        Run.open(again.folder).resume(both, foreign)
    other.close()


def test_a_full_disk_loses_nothing_when_it_is_free_again(
    tmp_path: Path, full_disk: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    run = new(tmp_path, tensorboard=False)
    run.log(1, row(1))
    assert run.checkpoint(1, {"x": torch.zeros(3)}, {})
    full_disk["full"] = True
    run.log(2, row(2))
    run.log(3, row(3))
    assert run.checkpoint(3, {"x": torch.ones(3)}, {}) is None
    assert [r["step"] for r in read_metrics(run.folder)] == [1]
    assert run.metrics.read_bytes().endswith(b"\n")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" of ")[0][25:] for line in said] == ["metrics.jsonl", "a checkpoint"]
    full_disk["full"] = False
    run.log(4, row(4))
    assert run.checkpoint(4, {}, {})
    assert [r["step"] for r in read_metrics(run.folder)] == [1, 2, 3, 4]
    full_disk["full"] = True
    run.log(5, row(5))
    run.log(6, row(6))
    with pytest.raises(
        RunError, match=r"metrics.jsonl 3 times in a row \(No space left.*the last good checkpoint is .*000000004"
    ) as caught:
        run.log(7, row(7))
    assert caught.value.exit_code == 1
    for _ in range(2):
        run.checkpoint(8, {}, {})
    with pytest.raises(RunError, match="a checkpoint 3 times"):
        run.checkpoint(8, {}, {})
    full_disk["full"] = False
    run.close()
    assert [r["step"] for r in read_metrics(run.folder)] == [1, 2, 3, 4, 5, 6, 7]
    with Run.open(run.folder) as again:
        assert again.resume(both)[1]["iteration"] == 4


def test_event_files_that_cannot_be_written_do_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with new(tmp_path) as run, monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        patch.setattr(module.ScalarWriter, "add", fail)
        for k in range(1, 6):
            run.log(k, row(k))
        run.checkpoint(5, {}, {})
    assert capsys.readouterr().err.count("WARNING") == 1
    with Run.open(run.folder) as again:
        again.resume(both)
    assert len(events(run.folder, "seed-1").Scalars("eval/gap")) == 5


def test_a_real_file_size_limit_leaves_whole_rows_and_checkpoints(tmp_path: Path) -> None:
    code = """
import resource, sys, torch
from pathlib import Path
from experiments.run.run import *
run = Run.create(Path(sys.argv[1]), "", {}, [])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for k in range(1, 10_000):
        run.log(k, {"eval/gap": [0.5 * k] * 10})
        if k % 10 == 0:
            run.checkpoint(k, {"x": torch.full((100,), k)}, {})
except RunError as error:
    print("stopped:", error)
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, check=True)
    assert "stopped: could not write metrics.jsonl 3 times in a row (File too large)" in result.stdout
    assert "WARNING: could not write metrics.jsonl" in result.stderr
    rows = read_metrics(tmp_path / "r")
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 50
    with Run.open(tmp_path / "r") as run:
        tensors, meta = run.resume(both)
        assert bool((tensors["x"] == meta["iteration"]).all())
        assert len(read_metrics(run.folder)) == meta["iteration"]


def test_tensorboard_reads_back_values_steps_times_and_descriptions(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR

    start = time.time()
    with new(tmp_path) as run:
        for k in range(1, 6):
            run.log(1000 * k, {**row(k), "sick": [1.0, float("nan"), 3.0], "unknown": 1.5})
    x = np.array([row(k)["eval/gap"] for k in range(1, 6)]).T
    low, high = bootstrap_interval(x)
    expected = {f"seed-{k}": x[k] for k in range(3)}
    expected |= {"iqm": iqm(x), "iqm-low": low, "iqm-high": high}
    assert {p.parent.relative_to(run.folder).name for p in run.folder.rglob("events*")} == {*expected, "all", "hparams"}
    for name, values in expected.items():
        found = events(run.folder, name).Scalars("eval/gap")
        assert [e.step for e in found] == [1000 * k for k in range(1, 6)]
        np.testing.assert_allclose([e.value for e in found], values, rtol=1e-6)
        assert all(start - 1 < e.wall_time < time.time() + 1 for e in found)
    everything = events(run.folder, "all")
    assert set(everything.Tags()["scalars"]) == {"time/wall", "time/iteration", "train/loss", "unknown"}
    assert "sick" not in events(run.folder, "seed-1").Tags()["scalars"]
    assert events(run.folder, "iqm").Scalars("sick")[0].value == 2.0

    told = {}  # as the server's own loader sees it, and with what the fast loader needs to keep a description
    for path in sorted(run.folder.rglob("events*")):
        for event in event_file_loader.LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.summary_description and path.parent.name != "hparams":
                    assert value.metadata.plugin_data.plugin_name == "scalars"
                    assert value.WhichOneof("value") == "simple_value"
                    assert value.metadata.data_class == DATA_CLASS_SCALAR
                    told[value.tag] = value.metadata.summary_description
    assert told["eval/gap"] == TELL["eval/gap"]
    assert told["unknown"] == "unknown"
    assert told["time/wall"].startswith("Seconds")


@pytest.mark.parametrize(("seeds", "shown", "aggregate"), [(1, 1, False), (32, 32, True), (33, 8, True)])
def test_many_seeds_show_the_first_few(tmp_path: Path, seeds: int, shown: int, aggregate: bool) -> None:
    with new(tmp_path) as run:
        run.log(1, {"eval/gap": [float(k) for k in range(seeds)]})
    names = {p.parent.name for p in run.folder.rglob("events*")}
    intervals = ["iqm", "iqm-low", "iqm-high"] if aggregate else []
    assert names == {"all", "hparams", *(f"seed-{k}" for k in range(shown)), *intervals}
    if aggregate:
        assert events(run.folder, "iqm").Scalars("eval/gap")[0].value == (seeds - 1) / 2


def hparams_tab(folder: Path) -> tuple[Any, Any]:
    """(experiment, session groups), as TensorBoard's plugin sees the runs below a folder."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    backend = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    context, nothing = RequestContext(), []
    experiment = backend.experiment_from_metadata(context, "", True, backend.hparams_metadata(context, ""), nothing)
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, aggregation_type=api_pb2.AGGREGATION_AVG)
    request.allowed_statuses.extend([api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING])
    return experiment, list_session_groups.Handler(context, backend, "", request).run().session_groups


def test_the_hparams_tab_has_a_row_a_run_with_settings_and_evaluations(tmp_path: Path) -> None:
    other = {"algo": "/home/me/mine.py:agent", "env": "lqr", "seed": 0, "seeds": 3, "causal": True, "vocabulary": "C" * 5000}
    for name, config, shift in (("a", {**CONFIG, "env_settings": {"height": 8, "horizon": None}}, 0.0), ("b", other, 1.0)):
        with Run.create(tmp_path / name, "", config, ["pgrl"]) as run:
            for k in (1, 2):
                run.log(100 * k, {"train/loss": 1.0, "eval/gap": [k + shift, k + shift, k + shift + 3]})
    experiment, groups = hparams_tab(tmp_path)
    assert {info.name.tag for info in experiment.metric_infos} == {"eval/gap"}
    assert {info.name for info in experiment.hparam_infos} >= {"algo", "env", "eta", "height", "causal"}
    assert "vocabulary" not in {info.name for info in experiment.hparam_infos}
    assert len(groups) == 2
    first, second = sorted(groups, key=lambda group: group.name)
    assert first.name == "a/hparams"
    assert (first.hparams["height"].number_value, first.hparams["algo"].string_value) == (8.0, "n-harpg")
    assert (second.hparams["causal"].bool_value, second.hparams["algo"].string_value) == (True, "mine:agent")
    assert [group.metric_values[0].value for group in (first, second)] == [3.0, 4.0]  # of the last evaluation
    text = events(tmp_path / "a", "hparams").Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text) == json.loads((tmp_path / "a" / "config.json").read_text())
    assert len(events(tmp_path / "b", "hparams").Tensors("config")[0].tensor_proto.string_val[0]) < 1000


def test_the_horizontal_axis_has_no_curve_and_seeds_stand_at_their_own_steps(tmp_path: Path) -> None:
    with new(tmp_path) as run:
        run.log(15, {"env_steps": [10, 20], "rollout/return": [1.0, 2.0], "states": 15})
    for name, step in (("seed-0", 10), ("seed-1", 20), ("iqm", 15)):
        assert [event.step for event in events(run.folder, name).Scalars("rollout/return")] == [step]
        assert "env_steps" not in events(run.folder, name).Tags()["scalars"]
    assert events(run.folder, "all").Tags()["scalars"] == ["time/wall"]
    assert read_metrics(run.folder)[0]["env_steps"] == [10, 20]


def test_event_files_are_made_again_on_resume_where_older_runs_had_them_elsewhere(tmp_path: Path) -> None:
    run = new(tmp_path)
    run.log(1, row(1))
    run.checkpoint(1, {}, {})
    run.close()
    (run.folder / "tensorboard" / "aggregate").mkdir(parents=True)
    (run.folder / "all" / "notes.txt").write_text("mine")
    old = {path.name for path in run.folder.rglob("events*")}
    with Run.open(run.folder) as again:
        again.resume(both)
    assert not old & {path.name for path in run.folder.rglob("events*")}
    assert not (run.folder / "tensorboard").exists()
    assert (run.folder / "all" / "notes.txt").read_text() == "mine"
    assert events(run.folder, "hparams").Tags()["tensors"]
