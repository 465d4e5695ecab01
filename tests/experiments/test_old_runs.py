"""Runs of released versions are opened, evaluated and continued: tests/fixtures/VERSION/NAME.

Each is a run folder of that version's code, stopped at its last checkpoint but one. end.json has the SHA-256 of the tensors in
which that code ended the run, or θ where only that is equal, up to rounding. Integers of any width are taken as 64 bits: those
of replay had 16 in 0.2.0.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from experiments.api import load
from experiments.cli import gflownet, pgrl
from experiments.run import checkpoint as checkpoints
from experiments.run.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RUNS = sorted(path.parent for path in FIXTURES.glob("*/*/end.json"))


def digest(checkpoint: Path) -> str:
    both = hashlib.sha256()
    for name, x in sorted(checkpoints.load(checkpoint)[0].items()):
        both.update(name.encode() + (x if x.is_floating_point() else x.long()).numpy().tobytes())
    return both.hexdigest()


def test_every_version_before_this_one_has_a_run() -> None:
    assert {run.parent.name for run in RUNS} == {"0.1.0", "0.2.0", "0.3.0"}


@pytest.mark.parametrize("fixture", RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_old_run_is_evaluated_and_continued_to_its_old_end(fixture: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fixture, run)
    assert load(run).evaluate(20)[0]["seed"] == 0
    rows = read_metrics(run)
    (pgrl if fixture.name == "gridworld" else gflownet).main(["resume", str(run), "--quiet"])
    end = json.loads((fixture / "end.json").read_text())
    last = run / "checkpoints" / end["iteration"]
    if "tensors" in end:
        assert digest(last) == end["tensors"]
    else:  # the loss has been summed in another order since
        assert torch.allclose(checkpoints.load(last)[0]["state/theta"], torch.tensor(end["theta"]), rtol=0, atol=1e-6)
    assert [row["step"] for row in read_metrics(run)] == [row["step"] for row in rows]
