"""Text taken from the code for the site: help of every verb, TensorBoard tags, names and docstrings of modules."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
PACKAGES = ("pgrl", "gflownet", "envs", "experiments.run", "experiments.plots")
TAGS = {
    "Every run": ("experiments.run.run", "OWN_DESCRIPTIONS"),
    "pgrl": ("experiments.pg.train", "DESCRIPTIONS"),
    "gflownet": ("experiments.gfn.metrics", "DESCRIPTIONS"),
    "gflownet, molecules": ("experiments.molecules.metrics", "DESCRIPTIONS"),
    "gflownet active": ("experiments.gfn.active", "DESCRIPTIONS"),
}
HELP = {
    "pgrl": [["train", "n-pg-igt"], "resume", "eval", "curves", "snr", "check", "check-env", "list", "completion", "doctor"],
    "gflownet": [
        ["train", "hypergrid", "--objective", "tb"],
        ["train", "molecules", "--objective", "tb"],
        *(
            "active",
            "resume",
            "eval",
            "sample",
            "score",
            "fragments",
            ["bench", "pmo"],
            "curves",
            "distribution",
            "check-env",
            "list",
            "completion",
            "doctor",
        ),
    ],
}
WITHOUT_FLAGS = {"list", "doctor"}


def module_docstring(name: str) -> str:
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text())) or name


def help_of(tool: str, arguments: list[str]) -> str:
    """What `tool arguments` prints, without colours, 92 columns wide."""
    main: Callable[[list[str]], None] = importlib.import_module(f"experiments.cli.{tool}").main
    out = io.StringIO()
    plain = mock.patch.dict(os.environ, COLUMNS="92", NO_COLOR="1", TERM="dumb")
    with plain, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main(arguments)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def command_line() -> str:
    parts = [
        "# Command line\n\nThis page is made from the parsers when the site is built.\n\n"
        "Completion of verbs, flags and names in the shell:\n\n"
        "```bash\npgrl completion bash > ~/.local/share/bash-completion/completions/pgrl\n"
        "gflownet completion bash > ~/.local/share/bash-completion/completions/gflownet\n```\n\n"
        "In zsh `pgrl completion zsh > ~/.pgrl-completion.zsh`, and `source ~/.pgrl-completion.zsh` in `~/.zshrc`. "
        "The scripts hold the names and flags of the installed version; make them again after an update."
    ]
    for tool, verbs in HELP.items():
        parts.append(f"## {tool}")
        for verb in verbs:
            words = verb if isinstance(verb, list) else [verb]
            text = help_of(tool, words if words[0] in WITHOUT_FLAGS - {"doctor"} else [*words, "--help"])
            parts.append(f"### {tool} {' '.join(words)}\n\n````text\n{text}\n````")
    return "\n\n".join(parts) + "\n"


def tensorboard() -> str:
    from experiments.run.tensorboard import X_AXIS

    parts = [
        "# TensorBoard, tag by tag\n\nThis page is made from the dictionaries that describe the tags in TensorBoard itself.\n\n"
        "The horizontal axis of every tag is the number of environment steps (`pgrl`), of objects visited (`gflownet`) or of\n"
        "rewards known (`gflownet active`). They are `env_steps`, `states`, `known` of `metrics.jsonl`, and have no curve.\n\n"
        "| run in TensorBoard | what it shows |\n|---|---|\n"
        "| `RUN/seed-0`, ... | one seed |\n"
        "| `RUN/iqm` | interquartile mean over seeds, where there are several |\n"
        "| `RUN/iqm-low`, `RUN/iqm-high` | the ends of its 95 % bootstrap interval |\n"
        "| `RUN/all` | numbers that are not per seed, and pictures |\n"
        "| `RUN/hparams` | the config (Text tab), and what the HParams tab shows |\n\n"
        "The HParams tab has one row a run folder: its settings, and as metrics the interquartile means over seeds of\n"
        "`eval/...` and `mol/...` at the last evaluation."
    ]
    for title, (module, name) in TAGS.items():
        tags: dict[str, str] = getattr(importlib.import_module(module), name)
        shown = {tag: text for tag, text in tags.items() if tag not in X_AXIS}
        rows = "\n".join(f"| `{tag}` | {str(text).replace('|', chr(92) + '|')} |" for tag, text in shown.items())
        parts.append(f"## {title}\n\n| tag | meaning |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def modules(package: str) -> Iterator[str]:
    folder = ROOT.joinpath(*package.split("."))
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(ROOT).with_suffix("")
        yield ".".join(relative.parts[:-1] if relative.name == "__init__" else relative.parts)
