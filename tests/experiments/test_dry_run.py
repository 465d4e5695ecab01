"""--dry-run: settings, sizes, memory and time, and nothing written."""

import json
import os
import re
from pathlib import Path

import pytest

from experiments.run.dry_run import duration
from tests.experiments.test_faults import fails, outside_agent, train_agent
from tests.experiments.test_numbers_of_flags import SMALL, TOOLS

MORE = {"pgrl": [["train", "n-harpg", "--env=CartPole-v1", "--env-steps=3000", "--seeds=2", "--hidden=8"]], "gflownet": []}
PARAMETERS = {"pgrl": "1 seeds × 88 parameters", "gflownet": "1 seeds × 52 parameters"}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_dry_run_says_what_the_run_would_be_and_writes_nothing(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (SMALL[tool], *MORE[tool]):
        capsys.readouterr()
        TOOLS[tool].main([*arguments, "--dry-run"])
        text, _, rest = capsys.readouterr().out.partition("\n}\n")
        assert os.listdir(tmp_path) == []
        config = json.loads(text + "}")
        sizes, memory, time, last = rest.splitlines()
        assert sizes.startswith(f"sizes: {config['seeds']} seeds × ")
        assert re.fullmatch(r"memory: about [\d.]+ [kMG]B of memory \(.*\); [\d.,]+ [MGT]B are free", memory)
        assert re.fullmatch(r"time: about .*: [\d,]+ iterations of [\d.]+ m?s and \d+ evaluations of [\d.]+ m?s", time)
        assert last == "nothing was written"
        if arguments is SMALL[tool]:
            assert sizes == f"sizes: {PARAMETERS[tool]}"
            TOOLS[tool].main([*arguments, f"--out={tmp_path / 'run'}"])
            assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
            TOOLS[tool].main([*arguments, f"--out={tmp_path / 'run'}", "--dry-run"])  # a folder that is there is not touched
            (tmp_path / "run").rename(tmp_path.parent / f"{tool}-{tmp_path.name}")


def test_an_agent_that_fails_in_a_dry_run_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fault in ("raise ValueError('boo')", "return None"):
        agent = outside_agent(tmp_path / "mine.py", step=fault)
        agent.write_text(agent.read_text().replace("state.t == 7", "state.t == 1"))
        error = fails(capsys, 5, "pgrl", *train_agent(agent, tmp_path / "run", "--dry-run"))
        assert "dry run" in error


def test_seconds_for_people() -> None:
    assert [duration(x) for x in (0.0, 0.0025, 2.0, 90, 7200, 86_400 * 3)] == [
        "0.0 ms",
        "2.5 ms",
        "2.0 s",
        "1.5 minutes",
        "2.0 hours",
        "3.0 days",
    ]
