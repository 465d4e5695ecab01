"""What the site takes from the code: help of every verb, TensorBoard tags, the API, pseudo-code of module docstrings.

{docstring} pgrl.agents.harpg      a directive: the module's docstring, as it stands
reference/command-line.md          written before each build, as are the next two; git ignores them
reference/tensorboard.md
reference/api/*.md
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from content import PACKAGES, command_line, module_docstring, modules, tensorboard
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

SECTIONS = ("Args:", "Returns:", "Raises:", "Source:", "Yields:", "Attributes:", "Note:", "Example:", "Examples:")


LITERAL = re.compile(r"^ |^\S+ {2,}\S| = |<-", re.MULTILINE)  # indented, in columns, or a formula


class DocString(Directive):
    """The docstring of a module as a literal block: most of ours are pseudo-code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = module_docstring(self.arguments[0])
        return [nodes.literal_block(text, text, language="text", classes=["pseudo-code"])]


def write(path: Path, text: str) -> None:
    """Leave an unchanged file alone, so that a second build is short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def generate(app: Sphinx) -> None:
    reference = Path(app.srcdir) / "reference"
    write(reference / "command-line.md", command_line())
    write(reference / "tensorboard.md", tensorboard())
    for package in PACKAGES:
        body = [f"# {package}"]
        for name in modules(package):
            own = "" if "." in name else "\n   :ignore-module-all:"  # what a package exports is described where it is defined
            body.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}{own}\n```")
        write(reference / "api" / f"{package}.md", "\n\n".join(body) + "\n")
    pages = "\n".join(f"api/{package}" for package in PACKAGES)
    about = "From the docstrings, one page a package. [In Python](../python.md) says which names a notebook needs."
    text = f"# Python API\n\n{about}\n\n```{{toctree}}\n:maxdepth: 1\n\n{pages}\n```\n"
    write(reference / "index-api.md", text)


def as_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: paragraphs that hold formulas or columns become literal, the rest is escaped."""
    result: list[str] = []
    section = False
    for text in re.split(r"\n\s*\n", "\n".join(lines)):
        paragraph = text.splitlines()
        if not paragraph:
            continue
        if not paragraph[0].startswith(" "):
            section = False
        section = section or any(line.strip() in SECTIONS for line in paragraph if not line.startswith(" "))
        if section:
            for line in paragraph:
                result += ["", escaped(line)] if line.strip() in SECTIONS else [escaped(line)]
        elif LITERAL.search(text) and (result or len(paragraph) > 2):
            result += ["::", "", *("    " + line for line in paragraph)]
        else:
            result += map(escaped, paragraph)
        result.append("")
    lines[:] = result


def escaped(line: str) -> str:
    """Escape *, | and a trailing _ outside of back quotes."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("docstring", DocString)
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", as_rst, priority=400)
    return {"parallel_read_safe": True}
