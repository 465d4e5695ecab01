"""`list`, help and shell completion: every name is there, quickly, and without importing torch."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import gflownet, pgrl
from gflownet.registry import MethodEntry
from gflownet.registry import register as methods
from pgrl.registry import AgentEntry
from pgrl.registry import register as agents

ROOT = Path(__file__).parents[2]
TOOLS: dict[str, Any] = {"pgrl": pgrl, "gflownet": gflownet}


def fresh(tool: str, *arguments: str) -> str:
    """What a command prints in a new interpreter; its last line says whether torch was imported."""
    code = (
        f"import sys; from experiments.cli.{tool} import main\n"
        f"try: main({list(arguments)})\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("name", "entry"), [*agents().items(), *methods().items()])
def test_a_registered_name_leads_to_its_class_and_says_its_first_line(name: str, entry: AgentEntry | MethodEntry) -> None:
    line = (entry.make.__doc__ or "").splitlines()[0]
    assert entry.about.endswith(".")
    assert (entry.about == line) == (not entry.preset)  # a preset has a line of its own
    assert len(entry.about) < 120


def test_a_class_may_be_registered_itself() -> None:
    class Mine: ...

    assert AgentEntry(Mine).make is Mine  # type: ignore[arg-type]
    assert MethodEntry(Mine, "").make is Mine


def test_the_mujoco_tasks_of_the_list_are_those_there_are() -> None:
    from envs.mdp.mujoco_tasks import TASKS
    from experiments.pg.environments import MUJOCO

    assert set(MUJOCO) == {f"{task}-v5" for task in TASKS}


@pytest.mark.parametrize("tool", TOOLS)
def test_list_names_everything_without_torch(tool: str) -> None:
    from experiments.gfn.environments import ENVIRONMENTS
    from experiments.pg.environments import OWN

    text = fresh(tool, "list")
    assert text.splitlines()[-1] == "False"
    names = {"pgrl": [*agents(), *OWN, "Humanoid-v5"], "gflownet": [*methods(), *ENVIRONMENTS]}[tool]
    assert [name for name in names if f" {name}" not in text] == []


HELP = [
    *(("pgrl", [verb, "--help"]) for verb in pgrl.VERBS if verb not in ("train", "snr")),
    *(("gflownet", [verb, "--help"]) for verb in gflownet.VERBS if verb not in ("train", "active")),
    ("pgrl", ["--help"]),
    ("gflownet", ["--help"]),
]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_comes_without_torch(tool: str) -> None:
    """Of all verbs but `train`, `snr` and `active`, whose flags are those of agents, objectives and environments."""
    calls = [arguments for name, arguments in HELP if name == tool]
    code = (
        f"import sys; from experiments.cli.{tool} import main\n"
        f"for arguments in {calls}:\n    try: main(arguments)\n    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, arguments"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def completed(script: str, tool: str, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    code = f'{script}\nCOMP_WORDS=({tool} {" ".join(words[:-1])} "{words[-1]}"); COMP_CWORD={len(words)}; _{tool}\n'
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    out = subprocess.run(["bash", "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=True).stdout
    return set(out.split())


@pytest.fixture(scope="module", params=TOOLS)
def tool_and_script(request: pytest.FixtureRequest) -> tuple[str, str]:
    tool = TOOLS[request.param]
    from experiments.cli.completion import script

    return request.param, script(request.param, "bash", tool.VERBS, tool.examples(), tool.names())


def test_bash_completes_verbs_names_flags_and_files(tool_and_script: tuple[str, str]) -> None:
    tool, script = tool_and_script
    assert completed(script, tool, "") == set(TOOLS[tool].VERBS)
    assert completed(script, tool, "cur") == {"curves"}
    assert completed(script, tool, "curves", "--m") == {"--metric"}
    switches = {"--quiet", "--no-quiet", "--trust", "--no-trust"}
    assert completed(script, tool, "resume", "--") == {"--help", "--checkpoint"} | switches
    assert completed(script, tool, "eval", "quick") == {"quickstart-chemist.md", "quickstart-researcher.md"}
    if tool == "pgrl":
        assert completed(script, tool, "train", "n-h") == {"n-harpg"}
        assert completed(script, tool, "train", "n-harpg", "--env", "Hop") == {"Hopper-v5"}
        assert completed(script, tool, "train", "n-harpg", "--eta") == {"--eta", "--eta-power"}
    else:
        assert completed(script, tool, "train", "mol") == {"molecules", "molecules.md"}
        assert completed(script, tool, "train", "molecules", "--objective", "sub") == {"subtb"}
        assert completed(script, tool, "train", "molecules", "--max-b") == {"--max-blocks"}
        assert completed(script, tool, "train", "hypergrid", "--objective", "fm", "--smoo") == {"--smoothing"}


def every_flag(tool: str, arguments: Iterable[str]) -> set[str]:
    from experiments.cli.completion import flags_of

    verb, *rest = arguments
    return flags_of(TOOLS[tool].VERBS[verb], rest)


def test_flags_are_those_of_the_dataclasses() -> None:
    import dataclasses

    from experiments.pg.config import PGSettings

    kinds: list[Any] = [PGSettings, agents()["n-harpg"].make]
    fields = {f"--{f.name.replace('_', '-')}" for kind in kinds for f in dataclasses.fields(kind)}
    assert fields <= every_flag("pgrl", ["train", "n-harpg"])


def test_the_verb_prints_the_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    verbs: Mapping[str, Any] = {verb: pgrl.VERBS[verb] for verb in ("list", "completion")}
    monkeypatch.setattr(pgrl, "VERBS", verbs)
    monkeypatch.setattr(pgrl, "examples", list)
    verbs["completion"](["zsh"])
    out = capsys.readouterr().out
    assert out.startswith("autoload -Uz compinit")
    assert "complete -o filenames -F _pgrl pgrl" in out
    with pytest.raises(SystemExit):
        verbs["completion"](["fish"])
