"""Generative flow networks from the command line.

gflownet train ENV --objective NAME             train a GFlowNet or a baseline, its seeds side by side
gflownet active hypergrid --objective NAME      active learning: rounds of a proxy, a generator, new rewards
gflownet resume RUN                             continue a run from its last checkpoint
gflownet eval RUN                               distances to the target distribution, as CSV
gflownet sample RUN --n 1000 --out FILE         molecules of a trained run: .sdf, .csv, .smi, .jsonl or - (standard output)
gflownet score FILE|- --reward FORMULA --out FILE   the reward of molecules, without training; --check file.py:score
gflownet fragments --from FILE --out FILE       a vocabulary of building blocks from molecules
gflownet bench pmo                              methods by what they find with 10,000 calls of a score (PMO)
gflownet curves RUN... --out FIGURE             learning curves with intervals over seeds
gflownet distribution RUN --out FIGURE          the learned distribution beside the target, on a two-dimensional hypergrid
gflownet check-env ENV|file.py:make             check that an environment follows its interface
gflownet list                                   names of objectives, baselines, environments and terms of rewards
gflownet completion bash|zsh                    a script for shell completion
gflownet doctor                                 versions, device, and a short training run
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from envs.ranges import Calls, Count
from experiments.cli.bench import BENCHMARKS, bench
from experiments.cli.completion import completion_verb
from experiments.cli.curves import curves_verb
from experiments.cli.errors import UserError
from experiments.cli.molecules import fragments, sample
from experiments.cli.score import score
from experiments.cli.text import plain
from experiments.cli.threads import quiet
from experiments.cli.verbs import (
    DRY_RUN,
    OUT,
    QUIET,
    RESUME,
    TRUST,
    Verb,
    call,
    columns,
    continued,
    parse,
    print_csv,
    resume_verb,
    run_verb,
    tuned,
    unchecked,
    value_of,
    without_flags,
)

if TYPE_CHECKING:
    from experiments.gfn.config import Choice

PLAIN: Any = OmitArgPrefixes  # flags without the name of the field that holds them
PRESET = Annotated[str, tyro.conf.arg(help="default settings: recipe (tuned here) or paper (those of the environment's paper)")]
OBJECTIVE = Annotated[str, tyro.conf.arg(help="objective or baseline: a name from `gflownet list`, or file.py:objective")]
USAGE = (
    "usage: gflownet {train,active,resume,eval,sample,score,fragments,bench,curves,distribution,check-env,list,completion,"
    "doctor} ...   (gflownet COMMAND --help: its flags)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; exits with the codes of `experiments.cli.errors`."""
    quiet()
    run_verb("gflownet", f"{__doc__}\n{USAGE}", VERBS, argv)


def train(arguments: list[str]) -> None:
    """gflownet train ENV --objective NAME: the recipe's settings, overridden by flags."""
    run(arguments)


def run(arguments: list[str]) -> Path:
    """Parse, train to the end, return the run folder; with --dry-run print what the run would be."""
    from experiments.gfn.commands import finished, start
    from experiments.gfn.commands import resume as go_on
    from experiments.gfn.config import GFNSettings, as_config, choose_device, defaults
    from experiments.gfn.environments import find_env

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
    about = f"Train {name} on {env}; others have flags of their own.\n\n{tuned(recipe.note)}"
    own = [
        ("train", PLAIN[GFNSettings], dataclasses.field(default=settings)),
        ("resume", RESUME, dataclasses.field(default="never")),
        ("trust", TRUST, dataclasses.field(default=False)),
        ("dry_run", DRY_RUN, dataclasses.field(default=False)),
    ]
    parsed, choice = _asked(f"gflownet train {env}", about, choice, own, rest)
    config = as_config(choice, parsed.train, choose_device(choice, parsed.train))
    if parsed.dry_run:
        from experiments.gfn.dry_run import dry_run

        print(dry_run(config))
        return Path()
    going_on, parts = parsed.resume == "auto", (parsed.env, parsed.method)
    if going_on and continued(parsed.out, config, parsed.train, finished, go_on, parsed.quiet, parsed.trust, parts):
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
    from experiments.gfn.active import config_of, finished, settings_for
    from experiments.gfn.active import resume as go_on
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
    about = f"Active learning with {name} on {env}.\n\n{tuned(note)}"
    own = [
        ("preset", PRESET, dataclasses.field(default=preset)),
        ("settings", PLAIN[Settings], dataclasses.field(default=settings)),
        ("resume", RESUME, dataclasses.field(default="never")),
        ("trust", TRUST, dataclasses.field(default=False)),
    ]
    parsed, choice = _asked(f"gflownet active {env}", about, choice, own, rest)
    config = config_of(choice, parsed.settings)
    going_on = parsed.resume == "auto"
    if not going_on or not continued(parsed.out, config, parsed.settings, finished, go_on, parsed.quiet, parsed.trust):
        start_rounds(config, parsed.out, ["gflownet", "active", *arguments], parsed.quiet)


def _asked(program: str, about: str, choice: Choice, own: list[Any], arguments: list[str]) -> tuple[Any, Choice]:
    """(the parsed command, what it chooses): flags of an environment, a method and its objective beside the verb's `own`."""
    from experiments.gfn.config import Choice, GFlowNetSettings, find_method, refuse_clashes
    from experiments.gfn.environments import find_env

    entry = find_method(choice.method)
    refuse_clashes(choice.method, entry, choice.env)
    parts: dict[str, tuple[Any, dict[str, Any]]] = {"env": (find_env(choice.env).settings, choice.env_settings)}
    parts["method"] = (unchecked(GFlowNetSettings if entry.objective else entry.make), choice.hyperparameters)
    if entry.objective:
        parts["loss"] = (unchecked(entry.make), choice.objective)
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


def resume(run: Path, checkpoint: Path | None, quiet: bool, trust: bool) -> None:
    from experiments.gfn import active, commands

    (active if active.is_active(run) else commands).resume(run, checkpoint, quiet, trust=trust)


def evaluate(arguments: list[str]) -> None:
    def command(
        run: Positional[Path],
        samples: Count = 10_000,
        checkpoint: Path | None = None,
        evaluation_calls: Calls | None = None,
        trust: bool = False,
    ) -> None:
        """Print as CSV how far each seed's samples, and its policy's exact distribution, are from the target distribution.

        Args:
            run: the run folder
            samples: fresh objects of each seed; l1_floor is the expected distance of so many independent samples of the target
            checkpoint: checkpoint folder, or best (see --best of train); default: the latest
            evaluation_calls: most calls of the reward for these samples; default: without limit, but none where a function of
                yours scores molecules: the column log_reward is then left out, and correlations are of molecules scored before
            trust: execute the files that the run names even if they changed or are not yours
        """
        from experiments.gfn.commands import evaluate

        print_csv(evaluate(run, samples, checkpoint, evaluation_calls, lambda line: print(line, file=sys.stderr), trust))

    call(command, "gflownet eval", arguments)


def distribution(arguments: list[str]) -> None:
    def command(run: Positional[Path], out: Path, checkpoint: Path | None = None, trust: bool = False) -> None:
        """Draw the learned distribution beside the target distribution, for a run on a two-dimensional hypergrid.

        Args:
            run: the run folder
            out: figure, .png or .svg
            checkpoint: checkpoint folder, or best (see --best of train); default: the latest
            trust: execute the files that the run names even if they changed or are not yours
        """
        from experiments.plots.gflownet import distribution

        print(plain(f"figure: {distribution(run, out, checkpoint, trust)}"))

    call(command, "gflownet distribution", arguments)


def check_env(arguments: list[str]) -> None:
    """gflownet check-env ENV: check that an environment keeps the contract of a DAG; exit 1 when a check fails."""
    from experiments.gfn.environments import find_env

    if not arguments or (arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments)):
        raise UserError("got no environment: gflownet check-env ENV, with ENV from `gflownet list` or file.py:make")
    env, rest = ("hypergrid", arguments) if arguments[0].startswith("-") else (arguments[0], arguments[1:])
    kind = find_env(env).settings
    command = dataclasses.make_dataclass("Command", [("env", PLAIN[kind], dataclasses.field(default_factory=kind))])
    parsed = parse(command, "gflownet check-env", check_env.__doc__ or "", rest)
    from experiments.gfn.build import check_dag_env

    for passed in check_dag_env(env, parsed.env):
        print(f"ok  {passed}")


def listing() -> None:
    """Print the names of objectives, baselines, environments and terms of rewards."""
    from experiments.gfn.environments import ENVIRONMENTS
    from gflownet.registry import register

    methods = register().items()
    print("objectives", columns({name: entry.about for name, entry in methods if entry.objective}), sep="\n")
    print("  file.py:objective: a dataclass with uses, loss(flows) and log_z(flows)")
    print("\nbaselines", columns({name: entry.about for name, entry in methods if not entry.objective}), sep="\n")
    print("\nenvironments", columns({name: env.about for name, env in ENVIRONMENTS.items()}), sep="\n")
    print("  file.py:make: a function that returns an envs.core.DagEnv")
    with contextlib.suppress(ImportError):  # RDKit is optional
        from gflownet.rewards.chemistry import SYNOPSIS
        from gflownet.rewards.pmo import TASKS

        words = [*SYNOPSIS, *(f"pmo:{name}" for name in TASKS), "file.py:function"]
        print("\nterms of a molecule's reward (--reward)")
        print(*textwrap.wrap(" ".join(words), 118, initial_indent="  ", subsequent_indent="  "), sep="\n")


def doctor() -> None:
    from experiments.gfn.commands import doctor

    doctor()


def examples() -> list[list[str]]:
    from experiments.gfn.environments import ENVIRONMENTS
    from gflownet.registry import register

    objectives = [["hypergrid", "--objective", name] for name in register()]
    environments = [[name, "--objective", "tb"] for name in ENVIRONMENTS]
    rounds = [["active", *words] for words in objectives]
    checks = (["check-env", name] for name in ENVIRONMENTS)
    return [*(["train", *words] for words in objectives + environments), *rounds, *checks]


def names() -> dict[str, list[str]]:
    from experiments.gfn.environments import ENVIRONMENTS
    from gflownet.registry import register

    environments = [*ENVIRONMENTS]
    own = {
        "train": environments,
        "active": ["hypergrid"],
        "check-env": environments,
        "bench": [*BENCHMARKS],
        "completion": ["bash", "zsh"],
    }
    return {**own, "--objective": [*register()], "--resume": ["auto", "never"]}


VERBS: dict[str, Verb] = {
    "train": train,
    "active": active,
    "resume": resume_verb("gflownet", resume),
    "eval": evaluate,
    "sample": sample,
    "score": score,
    "fragments": fragments,
    "bench": bench,
    "curves": curves_verb("gflownet", "states"),
    "distribution": distribution,
    "check-env": check_env,
    "list": without_flags("gflownet list", "Names of objectives, baselines, environments and terms of rewards.", listing),
    "completion": lambda arguments: completion_verb("gflownet", VERBS, examples, names)(arguments),
    "doctor": without_flags("gflownet doctor", "Versions, device, and a training run of a few seconds.", doctor),
}

if __name__ == "__main__":
    main()
