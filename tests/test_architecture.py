"""The four floors: an import may point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABOVE = {
    "envs": {"pgrl", "gflownet", "experiments", "tests"},
    "pgrl": {"gflownet", "experiments", "tests"},
    "gflownet": {"pgrl", "experiments", "tests"},
    "experiments": {"tests"},
}


def imported_floors(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("floor", ABOVE)
def test_imports_point_down(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): bad for f in files if (bad := imported_floors(f.read_text()) & ABOVE[floor])}
    assert not wrong


def test_an_import_that_points_up_is_seen() -> None:
    assert imported_floors("def f():\n    from experiments.run.run import Run") & ABOVE["pgrl"] == {"experiments"}


def test_files_stay_small() -> None:
    lines = {f: len(f.read_text().splitlines()) for floor in ABOVE for f in (ROOT / floor).rglob("*.py")}
    assert not {str(f.relative_to(ROOT)): n for f, n in lines.items() if n > 300}


def test_importing_the_library_pulls_in_nothing_heavy() -> None:
    code = "import sys, pgrl; print([m for m in ('rdkit', 'mujoco', 'tensorboard', 'matplotlib', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
