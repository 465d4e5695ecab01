"""GFlowNets from the command line: train, resume, evaluate, draw.

gflownet train ENV --objective NAME ...     gflownet resume RUN         gflownet eval RUN
gflownet curves RUN... --out figure.png     gflownet check-env ENV      gflownet list          gflownet doctor
gflownet distribution RUN --out figure.png
gflownet active hypergrid --objective NAME ...
gflownet sample RUN --n 1000 --out mols.sdf|.csv|.smi|.jsonl|-         gflownet fragments --from mols.smi --out fragments.json
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from experiments.cli.errors import UserError
from experiments.cli.molecules import fragments, sample
from experiments.cli.threads import quiet
from experiments.cli.verbs import OUT, QUIET, RESUME, Verb, parse, resumable, run_verb, value_of

if TYPE_CHECKING:
    from experiments.gfn.config import Choice

PLAIN: Any = OmitArgPrefixes  # flags without the name of the field that holds them
OBJECTIVE = Annotated[str, tyro.conf.arg(help="objective or baseline: a name from `gflownet list`, or file.py:objective")]
USAGE = (
    "usage: gflownet {train,active,resume,eval,sample,fragments,curves,distribution,check-env,list,doctor} ...   "
    "(gflownet VERB --help says more)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; exits with the codes of `experiments.cli.errors`."""
    quiet()
    run_verb("gflownet", f"{__doc__}\n{USAGE}", VERBS, argv)


def train(arguments: list[str]) -> None:
    """gflownet train ENV --objective NAME: the recipe's settings first, then what the command line says."""
    run(arguments)


def run(arguments: list[str]) -> Path:
    """Parse, train to the end, return the run folder."""
    from experiments.gfn.build import find_env
    from experiments.gfn.commands import finished, start
    from experiments.gfn.commands import resume as go_on
    from experiments.gfn.config import GFNSettings, as_config, choose_device, defaults

    help_wanted = bool({"-h", "--help"} & set(arguments))
    if not arguments or arguments[0].startswith("-"):
        if not help_wanted:
            raise UserError("got no environment: gflownet train ENV --objective NAME, with names from `gflownet list`")
        arguments = ["hypergrid", *arguments]
    env, rest = arguments[0], arguments[1:]
    find_env(env)
    name = value_of(rest, "--objective") or ("fm" if help_wanted else "")
    if not name:
        raise UserError(no_objective(f"gflownet train {env} --objective NAME, with NAME from `gflownet list`", rest))
    settings, choice, recipe = defaults(name, env, value_of(rest, "--preset") or GFNSettings.preset)
    about = f"Train {name} on {env}.\n\nRecipe: {recipe.note or 'none'}"
    own = [
        ("train", PLAIN[GFNSettings], dataclasses.field(default=settings)),
        ("resume", RESUME, dataclasses.field(default=False)),
    ]
    parsed, choice = _asked(f"gflownet train {env}", about, choice, own, rest)
    config = as_config(choice, parsed.train, choose_device(choice, parsed.train))
    if parsed.resume and resumable(parsed.out, config, parsed.train):
        if not finished(parsed.out):
            go_on(parsed.out, None, parsed.quiet)
        return Path(parsed.out)
    return start(config, parsed.out, ["gflownet", "train", *arguments], parsed.quiet)


def no_objective(usage: str, arguments: list[str], what: str = "got no objective") -> str:
    """The sentence for a command without --objective; a flag that looks like a misspelt one is named."""
    flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
    if close := difflib.get_close_matches("--objective", flags, 1, 0.75):
        return f"got {close[0]}, which is not a flag: did you mean --objective?"
    return f"{what}: {usage}"


def active(arguments: list[str]) -> None:
    """gflownet active hypergrid --objective NAME: rounds of a proxy, a generator trained on it, and new rewards."""
    from experiments.gfn.active import config_of, settings_for
    from experiments.gfn.active import start as start_rounds
    from gflownet.active.rounds import Settings

    help_wanted = bool({"-h", "--help"} & set(arguments))
    if (not arguments or arguments[0].startswith("-")) and help_wanted:
        arguments = ["hypergrid", *arguments]
    name = value_of(arguments, "--objective") or ("fm" if help_wanted else "")
    if not arguments or arguments[0].startswith("-") or not name:
        raise UserError(
            no_objective("gflownet active hypergrid --objective NAME", arguments, "got no environment or no objective")
        )
    env, rest = arguments[0], arguments[1:]
    preset = value_of(rest, "--preset") or "recipe"
    settings, choice, note = settings_for(name, env, preset)
    about = f"Active learning with {name} on {env}.\n\nRecipe: {note or 'none'}"
    own = [
        ("preset", str, dataclasses.field(default=preset)),
        ("settings", PLAIN[Settings], dataclasses.field(default=settings)),
    ]
    parsed, choice = _asked(f"gflownet active {env}", about, choice, own, rest)
    start_rounds(config_of(choice, parsed.settings), parsed.out, ["gflownet", "active", *arguments], parsed.quiet)


def _asked(program: str, about: str, choice: Choice, own: list[Any], arguments: list[str]) -> tuple[Any, Choice]:
    """(the parsed command, what it chooses): flags of an environment, a method and its objective beside the verb's `own`."""
    from experiments.gfn.build import find_env
    from experiments.gfn.config import Choice, GFlowNetSettings, find_method, refuse_clashes

    entry = find_method(choice.method)
    refuse_clashes(choice.method, entry, choice.env)
    parts: dict[str, tuple[Any, dict[str, Any]]] = {"env": (find_env(choice.env).settings, choice.env_settings)}
    parts["method"] = (GFlowNetSettings if entry.objective else entry.make, choice.hyperparameters)
    if entry.objective:
        parts["loss"] = (entry.make, choice.objective)
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("objective", OBJECTIVE),
            *own,
            *(
                (part, PLAIN[kind], dataclasses.field(default_factory=partial(kind, **values)))
                for part, (kind, values) in parts.items()
            ),
            ("out", OUT, dataclasses.field(default=None)),
            ("quiet", QUIET, dataclasses.field(default=False)),
        ],
    )
    parsed = parse(command, program, about, arguments)
    chosen = {
        part: {f.name: getattr(getattr(parsed, part), f.name) for f in dataclasses.fields(kind)}
        for part, (kind, _) in parts.items()
    }
    chosen["method"].pop("objective", None)
    return parsed, Choice(choice.method, chosen.get("loss", {}), chosen["method"], choice.env, chosen["env"])


def resume(arguments: list[str]) -> None:
    from experiments.gfn.active import is_active
    from experiments.gfn.active import resume as go_on_with_rounds
    from experiments.gfn.commands import resume as go_on

    def command(run: Positional[Path], checkpoint: Path | None = None, quiet: bool = False) -> None:
        """Continue a run from its last checkpoint, bit for bit on the CPU.

        Args:
            run: the run folder
            checkpoint: another checkpoint than the last
            quiet: no progress
        """
        (go_on_with_rounds if is_active(run) else go_on)(run, checkpoint, quiet)

    tyro.cli(command, prog="gflownet resume", args=arguments)


def evaluate(arguments: list[str]) -> None:
    from experiments.gfn.commands import evaluate as score

    def command(run: Positional[Path], samples: int = 10_000, checkpoint: Path | None = None) -> None:
        """Print as CSV how far each seed's samples, and its policy's exact distribution, are from the target distribution.

        Args:
            run: the run folder
            samples: fresh objects of each seed; l1_floor is what so many exact samples would score
            checkpoint: another checkpoint than the last
        """
        score(run, samples, checkpoint)

    tyro.cli(command, prog="gflownet eval", args=arguments)


def curves(arguments: list[str]) -> None:
    from experiments.plots.curves import curves as draw
    from experiments.plots.curves import table

    def command(runs: Positional[tuple[Path, ...]], out: Path, metric: str | None = None, x: str = "states") -> None:
        """Draw a metric against objects visited for one or more runs, and write the numbers as CSV beside it.

        Args:
            runs: run folders; runs of one objective are pooled
            out: figure, .png or .svg
            metric: default: eval/l1 where the target distribution is enumerated, else eval/correlation
            x: states, iteration or wall
        """
        made = draw(list(runs), out, metric, x)
        print(table(list(runs), metric))
        print(f"figure: {made}   numbers: {made.with_suffix('.csv')}")

    tyro.cli(command, prog="gflownet curves", args=arguments)


def distribution(arguments: list[str]) -> None:
    from experiments.plots.gflownet import distribution as draw

    def command(run: Positional[Path], out: Path, checkpoint: Path | None = None) -> None:
        """Draw the learned distribution beside the target distribution, for a run on a two-dimensional hypergrid.

        Args:
            run: the run folder
            out: figure, .png or .svg
            checkpoint: another checkpoint than the last
        """
        print(f"figure: {draw(run, out, checkpoint)}")

    tyro.cli(command, prog="gflownet distribution", args=arguments)


def check_env(arguments: list[str]) -> None:
    """gflownet check-env ENV: hold an environment to the contract of DAGs; exit 1 when a promise is broken."""
    from experiments.gfn.build import check_dag_env, find_env

    if not arguments or (arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments)):
        raise UserError("got no environment: gflownet check-env ENV, with ENV from `gflownet list` or file.py:make")
    env, rest = ("hypergrid", arguments) if arguments[0].startswith("-") else (arguments[0], arguments[1:])
    kind = find_env(env).settings
    command = dataclasses.make_dataclass("Command", [("env", PLAIN[kind], dataclasses.field(default_factory=kind))])
    parsed = parse(command, "gflownet check-env", check_env.__doc__ or "", rest)
    for promise in check_dag_env(env, parsed.env):
        print(f"ok  {promise}")


def show_list(arguments: list[str]) -> None:
    from experiments.gfn.commands import listing

    def command() -> None:
        """Objectives, baselines and environments."""
        print(listing())

    tyro.cli(command, prog="gflownet list", args=arguments)


def doctor(arguments: list[str]) -> None:
    from experiments.gfn.commands import doctor as look

    def command() -> None:
        """Versions, device, and a training run of a few seconds."""
        look()

    tyro.cli(command, prog="gflownet doctor", args=arguments)


VERBS: dict[str, Verb] = {
    "train": train,
    "active": active,
    "resume": resume,
    "eval": evaluate,
    "sample": sample,
    "fragments": fragments,
    "curves": curves,
    "distribution": distribution,
    "check-env": check_env,
    "list": show_list,
    "doctor": doctor,
}

if __name__ == "__main__":
    main()
