"""The documentation holds: python blocks run, verbs and flags of bash blocks exist, links within the pages lead somewhere."""

import functools
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "reference"} & set(p.parts)),
]
SMALL = {"env_steps": 400, "states": 128, "seeds": 2, "episodes": 3, "samples": 64}  # the blocks as they stand take minutes


def blocks(language: str) -> list[tuple[str, str]]:
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(f"{p.relative_to(ROOT)}-{i}", text) for p in PAGES for i, text in enumerate(fence.findall(p.read_text()))]


def shrunk(text: str) -> str:
    for name, value in SMALL.items():
        text = re.sub(rf"\b{name}=[\d_]+", f"{name}={value}", text)
    return text.replace(".sample(100", ".sample(4")


PYTHON, BASH = blocks("python"), blocks("bash")


def test_there_are_blocks_to_test() -> None:
    assert len(PYTHON) > 8
    assert len(BASH) > 25


@pytest.mark.parametrize("text", [pytest.param(t, id=i) for i, t in PYTHON])
def test_python_blocks_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "molecules" in text or "rdkit" in text:
        pytest.importorskip("rdkit")
    if ".curves(" in text:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    name = "documentation_block"
    monkeypatch.setitem(sys.modules, name, type(sys)(name))  # dataclasses look up the module that defines them
    exec(compile(shrunk(text), "block", "exec"), sys.modules[name].__dict__)


@functools.cache
def flags(tool: str, words: tuple[str, ...]) -> frozenset[str]:
    from content import help_of

    return frozenset(re.findall(r"--[a-z0-9][a-z0-9-]*", help_of(tool, [*words, "--help"])))


def commands() -> list[str]:
    lines = [line for _, text in BASH for line in text.splitlines() if line.strip()]
    return sorted({line.split("  #")[0].strip() for line in lines})


@pytest.mark.parametrize("line", commands())
def test_verbs_and_flags_of_bash_blocks_exist(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.cli import gflownet, pgrl

    tool, verb, *rest = shlex.split(line)
    assert verb in {"pgrl": pgrl, "gflownet": gflownet}[tool].VERBS
    monkeypatch.chdir(tmp_path)
    agent, env, objective, dag = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)[:4]
    for name, text in (("mine", agent), ("world", env), ("balance", objective), ("stairs", dag)):
        Path(f"{name}.py").write_text(text)
    words = [verb]
    if verb == "train":  # its flags depend on the algorithm, the environment and the objective
        words.append(rest[0])
        words += [
            w for flag in ("--objective", "--env", "--preset") if flag in rest for w in (flag, rest[rest.index(flag) + 1])
        ]
    elif verb == "snr":  # of an algorithm, or of a folder
        words.append("." if "/" in rest[0] else rest[0])
    elif verb == "active":
        words += rest[:3]
    used = {word.split("=")[0] for word in rest if word.startswith("--")}
    assert used <= flags(tool, tuple(words)), f"no such flag: {sorted(used - flags(tool, tuple(words)))}"


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()) + re.findall(r"\{image\} (\S+)", page.read_text())
    inside = [link for link in links if "://" not in link and not link.startswith("reference/")]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_every_method_has_a_page() -> None:
    from gflownet.registry import register as objectives
    from pgrl.registry import register as algorithms

    assert {p.stem for p in (ROOT / "docs" / "objectives").glob("*.md")} == {"index", *objectives()}
    assert {p.stem for p in (ROOT / "docs" / "algorithms").glob("*.md")} | {"sharp"} == {"index", *algorithms()}  # a preset


def test_the_page_on_python_names_everything_that_is_exported() -> None:
    import gflownet
    import pgrl

    names = (ROOT / "docs" / "python.md").read_text().partition("## Names")[2]
    named = {name.split(".")[-1] for name in re.findall(r"`([\w.]+)(?:\(\))?`", names)}
    assert named - {"register"} == {*pgrl.__all__, *gflownet.__all__} - {"register"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
