"""The layout: imports point down, nothing imports in a circle, a class name stands for one thing."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {
    "envs": {"pgrl", "gflownet", "experiments", "tests"},
    "pgrl": {"gflownet", "experiments", "tests"},
    "gflownet": {"pgrl", "experiments", "tests"},
    "experiments": {"tests"},
}
FACADES = {"pgrl": ROOT / "pgrl/__init__.py", "gflownet": ROOT / "gflownet/__init__.py"}  # may load `experiments`, in functions
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for floor in ABOVE
    for path in (ROOT / floor).rglob("*.py")
}


def imported_floors(source: str, everywhere: bool = True) -> set[str]:
    """Top-level packages that a module imports; `everywhere` includes the imports inside functions."""
    names: set[str] = set()
    for node in imports(ast.parse(source), everywhere):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def imports(tree: ast.AST, everywhere: bool = True) -> list[ast.Import | ast.ImportFrom]:
    """The import statements of a module, all of them, or only those that run when it is loaded."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif not everywhere and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            if isinstance(node.test, ast.UnaryOp):  # `if not TYPE_CHECKING` runs at import
                found += imports(ast.Module(node.body, []), everywhere)
            else:
                found += imports(ast.Module(node.orelse, []), everywhere)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += imports(node, everywhere)
    return found


def dependencies(name: str, source: str, known: set[str]) -> set[str]:
    """Modules among `known` that the module `name` imports, wherever in the file."""
    found = set()
    for node in imports(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                found |= {x for x in (f"{node.module}.{alias.name}", node.module) if x in known}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found - {name}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one directed circle, or an empty list."""
    done: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph[node]):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next((found for node in sorted(graph) if (found := visit(node))), [])


@pytest.mark.parametrize("floor", ABOVE)
def test_imports_point_down(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    wrong = {}
    for file in files:
        above = imported_floors(file.read_text()) & ABOVE[floor]
        if file == FACADES.get(floor):
            above -= {"experiments"} - imported_floors(file.read_text(), everywhere=False)
        if above:
            wrong[str(file.relative_to(ROOT))] = above
    assert not wrong


def test_nothing_imports_in_a_circle() -> None:
    graph = {name: dependencies(name, path.read_text(), set(MODULES)) for name, path in MODULES.items()}
    for facade in FACADES:  # what they load lazily imports them in turn: the only exception
        graph[facade] = set()
    assert circle(graph) == []


def test_a_class_name_stands_for_one_thing() -> None:
    names = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_an_import_that_points_up_is_seen() -> None:
    assert imported_floors("def f():\n    from experiments.run.run import Run") & ABOVE["pgrl"] == {"experiments"}
    assert imported_floors("def f():\n    import experiments", everywhere=False) == set()
    assert imported_floors("if TYPE_CHECKING:\n    import experiments", everywhere=False) == set()
    assert imported_floors("if not TYPE_CHECKING:\n    import experiments", everywhere=False) == {"experiments"}
    assert imported_floors("if TYPE_CHECKING: pass\nelse:\n    import experiments", everywhere=False) == {"experiments"}
    assert imported_floors("try:\n    import experiments\nexcept ImportError: pass", everywhere=False) == {"experiments"}


def test_a_circle_is_seen_in_functions_too() -> None:
    known = {"a.b", "a.c", "a.d"}
    sources = {"a.b": "from a import c", "a.c": "def f():\n    from a.d import x", "a.d": "import a.b"}
    graph = {name: dependencies(name, source, known) for name, source in sources.items()}
    assert circle(graph) == ["a.b", "a.c", "a.d", "a.b"]
    graph["a.d"] = dependencies("a.d", "if TYPE_CHECKING:\n    import a.b", known)
    assert circle(graph) == ["a.b", "a.c", "a.d", "a.b"]
    graph["a.d"] = dependencies("a.d", "import torch", known)
    assert circle(graph) == []


@pytest.mark.parametrize("package", ["pgrl", "gflownet"])
def test_importing_the_library_pulls_in_nothing_heavy(package: str) -> None:
    heavy = "('rdkit', 'mujoco', 'tensorboard', 'matplotlib', 'scipy')"
    code = f"import sys, {package}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_wheel_leaves_out_what_only_a_checkout_needs() -> None:
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) == set(ABOVE)
    left_out = {ROOT / path for path in wheel["exclude"]}
    assert {"bench", "studies", "results", "demo.py"} <= {path.name for path in left_out}
    for name, path in MODULES.items():  # what is in the wheel must not import what is not
        if not any(path.is_relative_to(folder) for folder in left_out):
            used = dependencies(name, path.read_text(), set(MODULES))
            assert not [x for x in used if any(MODULES[x].is_relative_to(folder) for folder in left_out)]
