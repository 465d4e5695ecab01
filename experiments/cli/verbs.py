"""What the command lines `pgrl` and `gflownet` have in common: verbs by name, flags read ahead of the parser."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from experiments.cli.errors import UserError, guarded
from experiments.cli.ranges import check_flags
from experiments.cli.text import cell, plain

Verb = Callable[[list[str]], None]
Record = dict[str, int | float]
NUMBERS = ConstructorRegistry()  # how flags are read
RESERVED = {"out", "quiet", "resume", "trust", "dry_run"}  # flags of every `train`
OUT = Annotated[
    Path | None,
    tyro.conf.arg(help="run folder, which must not hold a run yet (but with --resume auto); None: a new folder below runs/"),
]
DRY_RUN = Annotated[
    bool,
    tyro.conf.arg(help="print settings, sizes, memory and time of the run, from a few iterations; nothing is written"),
]
CSV = Annotated[bool, tyro.conf.arg(help="print CSV")]
QUIET = Annotated[bool, tyro.conf.arg(help="hide the progress bar")]
RESUME = Annotated[
    Literal["never", "auto"],
    tyro.conf.arg(help="auto: a run with these settings in --out is continued, and a finished one left as it is"),
]
TRUST = Annotated[
    bool,
    tyro.conf.arg(help="with --resume: execute the files that the run names even if they have changed"),
]


def run_verb(program: str, about: str, verbs: Mapping[str, Verb], argv: Sequence[str] | None) -> None:
    """The verb that the first word of `argv` names, with the rest; exits with the codes of `experiments.cli.errors`.

    about  what `--help` prints, the usage in its last line
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    guarded(lambda: _dispatch(program, about, verbs, arguments), debug, program)


def _dispatch(program: str, about: str, verbs: Mapping[str, Verb], arguments: list[str]) -> None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(about)
    elif verb == "--version":
        from importlib.metadata import version

        print(f"{program} {version('pgrl')}")
    elif verb in verbs:
        verbs[verb](rest)
    else:
        usage = about.rstrip().rsplit("\n", 1)[-1]
        raise UserError(f"there is no command {verb!r}; close: {close_to(verb, verbs)}\n{usage}")


def without_flags(program: str, about: str, work: Callable[[], None]) -> Verb:
    """A verb that takes nothing but --help."""

    def verb(arguments: list[str]) -> None:
        def command() -> None:
            work()

        call(command, program, arguments, about)

    return verb


def resume_verb(program: str, resume: Callable[[Path, Path | None, bool, bool], Any]) -> Verb:
    """The verb that continues a run."""

    def verb(arguments: list[str]) -> None:
        def command(run: Positional[Path], checkpoint: Path | None = None, quiet: bool = False, trust: bool = False) -> None:
            """Continue a run from its last checkpoint, bit for bit on the CPU.

            Args:
                run: the run folder
                checkpoint: checkpoint folder, or best (see --best of train); default: the latest
                quiet: hide the progress bar
                trust: execute the files that the run names (rewards, environments) even if they changed or are not yours
            """
            resume(run, checkpoint, quiet, trust)

        call(command, f"{program} resume", arguments)

    return verb


def columns(rows: Mapping[str, str]) -> str:
    """Names and what they stand for, a line each."""
    return "\n".join(f"  {name:12s} {text}" for name, text in rows.items())


def print_csv(rows: Sequence[Mapping[str, int | float | str]]) -> None:
    """Records of numbers and names as CSV on standard output, floats with six digits."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(map(cell, rows[0]))
    for row in rows:
        out.writerow([f"{x:.6g}" if isinstance(x, float) else cell(x) for x in row.values()])


def tuned(note: str) -> str:
    """How the defaults were found, for `--help`."""
    return f"How the defaults were tuned: {note}" if note else "The defaults were not tuned."


def continued(
    out: Path | None,
    config: Mapping[str, Any],
    settings: Any,
    finished: Callable[[Path], bool],
    resume: Callable[..., Any],
    quiet: bool,
    trust: bool = False,
    parts: Sequence[Any] = (),
) -> bool:
    """`train --resume auto`: whether `out` held a run of these settings, which has now been trained to its end.

    What `settings` leave to be chosen (auto) stays as it was chosen when the run began.

    Args:
        out: the run folder, which need not be there.
        config: the complete, resolved settings.
        settings: the dataclass they come from, whose defaults a run takes that is too old to have them.
        finished: whether the newest checkpoint of a folder is the last one.
        resume: `resume(folder, checkpoint, quiet, given, trust)` of the package; settings that may differ are taken
            from `given`.
        quiet: print nothing.
        trust: execute the files that the run names even if they have changed.
        parts: dataclasses of hyperparameters and of an environment, whose defaults a run takes too.

    Returns:
        False where a new run is to be made in `out`.

    Raises:
        UserError: `out` is None, or holds a run with other settings.
    """
    from experiments.run.run import FREE, Run

    if out is None:
        raise UserError("got --resume auto without --out: name the run folder to continue")
    free = FREE | {name for name in ("device", "matmul") if getattr(settings, name, "") == "auto"}
    fields = [f for part in (settings, *parts) for f in dataclasses.fields(part)]
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    if not Run.resumable(out, config, free, defaults):
        return False
    if not finished(out):
        resume(out, None, quiet, config, trust)
    elif not quiet:
        print(plain(f"{out} is already done"), file=sys.stderr)
    return True


def refuse_shared(name: str, own: set[str], others: Mapping[str, set[str]]) -> None:
    """UserError where `name` has a hyperparameter that others have too, because each is one flag. others: whose -> names."""
    for what, taken in others.items():
        if both := sorted(own & taken):
            raise UserError(f"{name} has {', '.join(both)} among its hyperparameters, as the {what} do: rename it in {name}")


def close_to(name: str, known: Mapping[str, Any] | Sequence[str], otherwise: str = "none") -> str:
    """The names most like `name`, for a sentence."""
    return ", ".join(difflib.get_close_matches(name, known, 3, 0.4)) or otherwise


def required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def value_of(arguments: list[str], flag: str) -> str | None:
    """What is given to `--flag VALUE` or `--flag=VALUE`; the parser's flags depend on it."""
    for i, a in enumerate(arguments):
        name, equals, value = a.partition("=")
        if name.replace("_", "-") == flag and (equals or i + 1 < len(arguments)):
            return value if equals else arguments[i + 1]
    return None


def parse(kind: Any, program: str, description: str, arguments: list[str]) -> Any:
    """A dataclass of settings, see `unchecked`, from flags. UserError for a number out of range."""
    parsed = tyro.cli(kind, prog=program, description=description, args=arguments, registry=NUMBERS)
    for part in vars(parsed).values():
        if dataclasses.is_dataclass(part):
            check_flags(part)
    return parsed


def unchecked(kind: Any) -> Any:
    """A dataclass that takes any values: those of flags are checked together, once all are known."""
    return type(kind.__name__, (kind,), {"__doc__": kind.__doc__, "__module__": kind.__module__, "__post_init__": _anything})


def _anything(self: Any) -> None:
    pass


def call(command: Callable[..., None], program: str, arguments: list[str], description: str | None = None) -> None:
    """Call a function whose parameters are flags. UserError for a number out of range."""

    @wraps(command)
    def bound(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return signature(command).bind(*args, **kwargs).arguments

    given = tyro.cli(bound, prog=program, description=description, args=arguments, registry=NUMBERS)
    check_flags(command, given)
    command(**given)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


@NUMBERS.primitive_rule
def _integer(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Where an integer is expected any number is read, NaN too: that it does not fit is said once, with the range."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(1, "INT", lambda words: _number(words[0]), lambda x: isinstance(x, int), lambda x: [str(x)])
