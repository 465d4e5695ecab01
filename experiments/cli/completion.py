"""Shell completion: a script with every verb, flag and name, made from the parsers. Completing runs no Python.

pgrl completion bash > ~/.local/share/bash-completion/completions/pgrl
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal
from unittest import mock

import tyro
from tyro.conf import Positional

from experiments.cli.verbs import Verb

Shell = Literal["bash", "zsh"]
FLAG = re.compile(r"--[a-z0-9][a-z0-9-]*")
ZSH = "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"
SCRIPT = """\
_{program}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flags= names=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    case ${{COMP_WORDS[COMP_CWORD-1]}} in
{values}
    esac
    case $word in
        -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
        *) COMPREPLY=($(compgen -W "$names" -- "$word") $(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _{program} {program}
"""


def completion_verb(
    program: str,
    verbs: Mapping[str, Verb],
    examples: Callable[[], Iterable[Sequence[str]]],
    names: Callable[[], Mapping[str, Iterable[str]]],
) -> Verb:
    """The verb that prints the script.

    Args:
        program: the console script.
        verbs: its verbs.
        examples: commands whose --help together show every flag, where flags depend on what is named.
        names: what may follow a verb, and what may follow a flag ("--env").
    """

    def verb(arguments: list[str]) -> None:
        def command(shell: Positional[Shell]) -> None:
            """Print a script for shell completion: source it, or put it where the shell looks for completions.

            Args:
                shell: bash or zsh
            """
            print(script(program, shell, verbs, examples(), names()), end="")

        tyro.cli(command, prog=f"{program} completion", args=arguments)

    return verb


def script(
    program: str,
    shell: Shell,
    verbs: Mapping[str, Verb],
    examples: Iterable[Sequence[str]],
    names: Mapping[str, Iterable[str]],
) -> str:
    """The script; arguments as of `completion_verb`."""
    flags: dict[str, set[str]] = {name: set() for name in verbs}
    for verb, *rest in [*([name] for name in verbs), *examples]:
        flags[verb] |= flags_of(verbs[verb], rest)
    cases = [
        f'        {name}) flags="{" ".join(sorted(found))}" names="{" ".join(names.get(name, ()))}" ;;'
        for name, found in flags.items()
    ]
    values = [f'        {name}) names="{" ".join(some)}" ;;' for name, some in names.items() if name.startswith("-")]
    text = SCRIPT.format(program=program, verbs=" ".join(verbs), cases="\n".join(cases), values="\n".join(values))
    return (ZSH if shell == "zsh" else "") + text


def flags_of(verb: Verb, arguments: Sequence[str]) -> set[str]:
    """The flags that the help of a command shows at the beginning of a line."""
    out = io.StringIO()
    plain = mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1", TERM="dumb")
    with plain, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        verb([*arguments, "--help"])
    heads = re.findall(r"^[│ ] ?(-[^\s,]*(?:, -[^\s,]*)*)", out.getvalue(), re.MULTILINE)  # in a box, or indented by two
    return {flag for head in heads for flag in FLAG.findall(head)}
