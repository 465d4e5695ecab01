"""Runs of released versions are opened, evaluated and continued: tests/fixtures/VERSION/NAME.

Each is a run folder of that version's code, stopped at its second but last checkpoint; end.json has the SHA-256 of the tensors in
which that code ended the run.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from experiments.api import load
from experiments.cli import gflownet, pgrl
from experiments.run.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RUNS = sorted(path.parent for path in FIXTURES.glob("*/*/end.json"))


def test_every_version_before_this_one_has_a_run() -> None:
    assert {run.parent.name for run in RUNS} == {"0.1.0", "0.2.0", "0.3.0"}


@pytest.mark.parametrize("fixture", RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_old_run_is_evaluated_and_continued_to_the_old_bytes(fixture: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fixture, run)
    assert load(run).evaluate(20)[0]["seed"] == 0
    rows = read_metrics(run)
    (pgrl if fixture.name == "gridworld" else gflownet).main(["resume", str(run), "--quiet"])
    end = json.loads((fixture / "end.json").read_text())
    tensors = (run / "checkpoints" / end["iteration"] / "tensors.safetensors").read_bytes()
    assert hashlib.sha256(tensors).hexdigest() == end["tensors"]
    assert [row["step"] for row in read_metrics(run)] == [row["step"] for row in rows]
