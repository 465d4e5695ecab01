"""Numbers from people: every flag of every verb with NaN, infinity, negative and absurd numbers ends in a sentence, at once."""

import contextlib
import dataclasses
import io
import math
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import gflownet as gflownet_package
import pgrl as pgrl_package
from envs.ranges import check_values
from experiments.cli import gflownet, pgrl
from experiments.cli.completion import flags_of
from experiments.cli.errors import UserError
from experiments.gfn.config import GFNSettings
from experiments.gfn.environments import ENVIRONMENTS
from experiments.pg.config import PGSettings
from experiments.pg.snr import SnrSettings
from gflownet.active.rounds import Settings
from gflownet.gflownet import GFlowNet
from gflownet.registry import register as methods
from pgrl.registry import register as agents

TOOLS: dict[str, Any] = {"pgrl": pgrl, "gflownet": gflownet}
NUMBERS = ("nan", "inf", "-1", "0", str(10**30))
SMALL = {
    "pgrl": ["train", "n-pg", "--env-steps=100", "--seeds=1", "--quiet"],
    "gflownet": ["train", "hypergrid", "--objective=tb", "--ndim=2", "--height=4", "--states=16", "--hidden=4", "--quiet"],
}
FREE = {"--help", "--version"}  # no values


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each tool; to train into its folder is refused, after everything else is checked."""
    folder = tmp_path_factory.mktemp("runs")
    for tool, arguments in SMALL.items():
        assert _ends(tool, [*arguments, f"--out={folder / tool}"])[0] == 0
    return {tool: folder / tool for tool in SMALL}


def _ends(tool: str, arguments: Sequence[str]) -> tuple[int, str, float]:
    """Exit code, standard error, seconds."""
    said, code, started = io.StringIO(), 0, time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            TOOLS[tool].main(list(arguments))
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except BaseException:
            return 70, traceback.format_exc(), 0.0
    return code, said.getvalue(), time.process_time() - started


def _commands(tool: str, run: Path) -> Iterator[tuple[list[str], set[str]]]:
    """(command without flags, its flags), each flag of a verb once."""
    out, figure = f"--out={run}", f"--out={run / 'x.png'}"
    words: dict[str, list[str]] = {
        "resume": [str(run)],
        "eval": [str(run)],
        "curves": [str(run), figure],
        "distribution": [str(run), figure],
        "sample": [str(run), f"--out={run / 'x.smi'}"],
        "fragments": [],
        "snr": [str(run), "--env-steps=1"],
        "check": ["n-pg", "--seeds=16"],
        "check-env": ["gridworld" if tool == "pgrl" else "hypergrid"],
    }
    seen: dict[str, set[str]] = {}
    examples = [[verb, *words[verb]] for verb in TOOLS[tool].VERBS if verb in words]
    for verb, *rest in [*examples, *TOOLS[tool].examples()]:
        if [verb, *rest] == ["check-env", "molecules"]:  # ten seconds; its flags are those of train
            continue
        trains = verb in ("train", "active")
        new = flags_of(TOOLS[tool].VERBS[verb], rest) - seen.setdefault(verb, {"--out"} if trains else set()) - FREE
        seen[verb] |= new
        yield [verb, *rest, *([out] if trains else ["--env-steps=1"] if verb == "snr" else [])], new


@pytest.mark.parametrize("tool", TOOLS)
def test_every_flag_of_every_verb_with_absurd_numbers(
    tool: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, count = [], 0
    for command, flags in _commands(tool, runs[tool]):
        for flag in sorted(flags):
            for number in NUMBERS:
                rest = [word for word in command if not word.startswith(f"{flag}=")]
                code, said, seconds = _ends(tool, [*rest, f"{flag}={number}"])
                count += 1
                lines = said.strip().splitlines()
                parser = "For full helptext" in said  # of words where a choice or a switch is expected
                allowed = (0, 1, 2, 3) if command[0] == "check" else (0, 2, 3)  # sixteen seeds are too few to pass
                if code not in allowed or "Traceback" in said or (len(lines) > 1 and not parser) or seconds > 1:
                    wrong.append(f"{command} {flag}={number}: exit {code}, {seconds:.1f} s: {said[:300]}")
    assert not wrong, "\n".join(wrong)
    assert count > 100
    assert os.listdir(tmp_path) == []


def _kinds() -> list[Any]:
    """Every dataclass whose fields are flags."""
    own = [PGSettings, SnrSettings, GFNSettings, GFlowNet, Settings, *(entry.settings for entry in ENVIRONMENTS.values())]
    return [*own, *(entry.make for entry in (*agents().values(), *methods().values()))]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_no_number_of_a_setting_may_be_nan_infinite_or_absurd(kind: Any) -> None:
    for f in dataclasses.fields(kind):
        for number in (math.nan, math.inf, -math.inf, 10**5000):
            if "Any" not in str(f.type) and f.type != "Objective":
                with pytest.raises(ValueError, match=f"^{f.name} is .*, expected"):
                    check_values(kind, {f.name: number})


@pytest.mark.parametrize("number", [math.nan, math.inf, -1, 10**30, 10**5000], ids=["nan", "inf", "-1", "10^30", "10^5000"])
def test_python_refuses_them_in_the_same_words(number: float, tmp_path: Path) -> None:
    for name in ("seeds", "discount", "step_size", "env_steps"):
        if name not in ("discount", "step_size") or number != 10**30:
            with pytest.raises(UserError, match=rf"{name.replace('_', '-')} is .*, expected|{name} has more than"):
                pgrl_package.train("n-pg", out=tmp_path / "run", **{name: number})
    with pytest.raises(UserError, match=r"states is .*, expected|states has more than"):
        gflownet_package.train("hypergrid", "tb", out=tmp_path / "run", states=number)
    assert not (tmp_path / "run").exists()
