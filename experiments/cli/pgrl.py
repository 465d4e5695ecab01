"""Policy gradients from the command line.

pgrl train ALGO --env ENV            train an algorithm, its seeds side by side
pgrl resume RUN                      continue a run from its last checkpoint
pgrl eval RUN                        returns of the trained policies, as CSV
pgrl curves RUN... --out FIGURE      learning curves with intervals over seeds
pgrl snr ALGO|RUN                    environment steps at which the noise of an estimate equals its signal
pgrl check ALGO|file.py:agent        compare an algorithm's direction with exact gradients
pgrl check-env ENV|file.py:make      check that an environment follows its interface
pgrl list                            names of algorithms and environments
pgrl completion bash|zsh             a script for shell completion
pgrl doctor                          versions, device, and a short training run
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from envs.ranges import Batch, Count, Natural, Range, Rows, Seed, Seeds, Steps
from experiments.cli.completion import completion_verb
from experiments.cli.curves import curves_verb
from experiments.cli.errors import UserError
from experiments.cli.ranges import check_flags
from experiments.cli.text import plain
from experiments.cli.threads import quiet
from experiments.cli.verbs import (
    CSV,
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
    required,
    resume_verb,
    run_verb,
    tuned,
    unchecked,
    value_of,
    without_flags,
)

USAGE = (
    "usage: pgrl {train,resume,eval,curves,snr,check,check-env,list,completion,doctor} ...   (pgrl COMMAND --help: its flags)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; exits with the codes of `experiments.cli.errors`."""
    quiet()
    run_verb("pgrl", f"{__doc__}\n{USAGE}", VERBS, argv)


def train(arguments: list[str]) -> None:
    """pgrl train ALGO --env ENV: the recipe's settings, overridden by flags."""
    run(arguments)


def run(arguments: list[str]) -> Path:
    """Parse, train to the end, return the run folder; with --dry-run print what the run would be."""
    from experiments.pg.commands import finished, start
    from experiments.pg.commands import resume as go_on

    about = "Train {algo}; others have flags of their own."
    more = {"out": (OUT, None), "resume": (RESUME, "never"), "dry_run": (DRY_RUN, False), "trust": (TRUST, False)}
    parsed, config = configured("train", about, arguments, more)
    if parsed.dry_run:
        from experiments.pg.dry_run import dry_run

        print(dry_run(config))
        return Path()
    parts = (parsed.agent,) if parsed.agent else ()
    if parsed.resume == "auto" and continued(
        parsed.out, config, parsed.train, finished, go_on, parsed.quiet, parsed.trust, parts
    ):
        return Path(parsed.out)
    return start(config, parsed.out, ["pgrl", "train", *arguments], parsed.quiet)


def configured(
    verb: str, about: str, arguments: list[str], more: Mapping[str, tuple[Any, Any]], budget: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Parse ALGO and the flags of a run: what was given, and the complete config.

    Args:
        verb: for the help.
        about: its first line, which may name {algo}.
        arguments: those after the verb.
        more: flags beside settings, hyperparameters and --quiet: name -> (annotation, default).
        budget: default of --env-steps, in place of the recipe's.
    """
    from experiments.pg.config import PGSettings, as_config, choose_device, defaults, find_agent

    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            arguments = ["n-harpg", *arguments]
        else:
            raise UserError(f"got no algorithm: pgrl {verb} ALGO --env ENV, with ALGO from `pgrl list` or file.py:agent")
    algo, rest = arguments[0], arguments[1:]
    settings, hyperparameters, recipe = defaults(
        algo, value_of(rest, "--env") or PGSettings.env, value_of(rest, "--preset") or PGSettings.preset
    )
    trained = settings.env_steps
    settings = dataclasses.replace(settings, env_steps=budget or trained)
    entry = find_agent(algo)
    agent_type: Any = unchecked(entry.make)
    if unset := [f.name for f in dataclasses.fields(agent_type) if required(f) and f.name not in hyperparameters]:
        typed = [n for n in unset if value_of(rest, f"--{n.replace('_', '-')}") is None]
        if typed and not {"-h", "--help"} & set(rest):
            flags = ", ".join(f"--{n.replace('_', '-')}" for n in typed)
            raise UserError(f"no recipe has {', '.join(typed)} of {algo} on {settings.env}: give {flags}")
    placeholder = {**dict.fromkeys(unset, 1.0), **hyperparameters}
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("train", OmitArgPrefixes[PGSettings], dataclasses.field(default=settings)),
            (
                "agent",
                OmitArgPrefixes[agent_type],  # type: ignore[misc]
                dataclasses.field(default_factory=lambda: agent_type(**placeholder)),
            ),
            *((name, kind, dataclasses.field(default=x)) for name, (kind, x) in {**more, "quiet": (QUIET, False)}.items()),
        ],
    )
    parsed = parse(command, f"pgrl {verb} {algo}", f"{about.format(algo=algo)}\n\n{tuned(recipe.note)}", rest)
    chosen = {f.name: getattr(parsed.agent, f.name) for f in dataclasses.fields(parsed.agent)}
    config = as_config(algo, parsed.train, chosen, choose_device(parsed.train))
    if budget and parsed.train.horizon == "auto":  # it is that of a run of the recipe's length
        long = dataclasses.replace(parsed.train, env_steps=trained)
        config["horizon"] = as_config(algo, long, chosen, config["device"])["horizon"]
    return parsed, config


def resume(run: Path, checkpoint: Path | None, quiet: bool, trust: bool) -> None:
    from experiments.pg.commands import resume as continue_run

    continue_run(run, checkpoint, quiet, trust=trust)


def evaluate(arguments: list[str]) -> None:
    def command(run: Positional[Path], episodes: Count = 100, checkpoint: Path | None = None, trust: bool = False) -> None:
        """Sample episodes of the trained policies and print each seed's return as CSV.

        Args:
            run: the run folder
            episodes: episodes of each seed
            checkpoint: checkpoint folder, or best (see --best of train); default: the latest
            trust: execute the files that the run names even if they changed or are not yours
        """
        from experiments.pg.commands import evaluate

        print_csv(evaluate(run, episodes, checkpoint, trust))

    call(command, "pgrl eval", arguments)


def snr(arguments: list[str]) -> None:
    """pgrl snr ALGO|RUN: where noise = signal, at the start of a run or at a checkpoint."""
    from experiments.pg.snr import BUDGET, SnrSettings, at_checkpoint, at_start, table

    asked = {"measure": (OmitArgPrefixes[SnrSettings], SnrSettings()), "csv": (CSV, False)}
    about = "Measure at how many environment steps the noise of an estimate is as long as its signal"
    if arguments and Path(arguments[0]).is_dir():
        kinds = {
            "run": (Positional[Path], dataclasses.MISSING),
            "env_steps": (Annotated[Steps, tyro.conf.arg(help="environment steps of the measurement")], BUDGET),
            "row": (Annotated[Natural, tyro.conf.arg(help="which seed of the run, counted from 0")], 0),
            "checkpoint": (
                Annotated[
                    Path | None, tyro.conf.arg(help="checkpoint folder, or best (see --best of train); default: the latest")
                ],
                None,
            ),
            **asked,
            "quiet": (QUIET, False),
            "trust": (TRUST, False),
        }
        command = dataclasses.make_dataclass(
            "Command", [(name, kind, dataclasses.field(default=x)) for name, (kind, x) in kinds.items()]
        )
        given = parse(command, "pgrl snr", f"{about}, at a checkpoint of a run.", arguments)
        check_flags(command, vars(given))
        found = at_checkpoint(given.run, given.measure, given.env_steps, given.row, given.checkpoint, given.trust, given.quiet)
    else:
        start = f"{about}, at the start of {{algo}}.\n--env-steps are those of the measurement, --seed gives the parameters."
        given, config = configured("snr", start, arguments, asked, BUDGET)
        found = at_start(config, given.measure, given.quiet)
    print_csv(found.rows) if given.csv else print(table(found.rows))
    for note in found.notes:
        print(plain(note), file=sys.stderr)


def check(arguments: list[str]) -> None:
    def command(
        agent: Positional[str],
        seeds: Annotated[Seeds, Range(2, 1_000_000)] = 4096,
        iterations: Annotated[int, Range(3, 1_000_000)] = 16,
        batch_size: Batch = 4,
        step_size: Annotated[float, Range(0, 100, above=True)] = 0.2,
        seed: Seed = 0,
    ) -> None:
        """Compare an agent's direction with exact gradients: over all outcomes in tiny MDPs, then by sampling in small ones.

        Exit code 1 when it is more biased than the agent declares, 5 when it raises.

        Args:
            agent: a name from `pgrl list`, or file.py:agent
            seeds: independent replicas for sampling; more replicas detect a smaller bias
            iterations: iterations of the algorithm for sampling
            batch_size: episodes of a replica at each point that is sampled
            step_size: the agent's hyperparameter of that name, for sampling
            seed: each seed samples other replicas
        """
        from experiments.pg.commands import check_agent

        if not check_agent(agent, seeds, iterations, batch_size, step_size, seed):
            raise SystemExit(1)

    call(command, "pgrl check", arguments)


def check_env(arguments: list[str]) -> None:
    def command(env: Positional[str], episodes: Batch = 4, steps: Rows = 64, horizon: Count | None = None) -> None:
        """Check that an environment follows the interface of its kind; exit code 1 when a check fails.

        Args:
            env: a name from `pgrl list`, a Gymnasium id, or file.py:make
            episodes: episodes in the batch
            steps: steps of each episode
            horizon: steps after which an episode is cut; default: the environment's own
        """
        from envs.check import ContractError, check_env
        from experiments.pg.build import make_env
        from experiments.pg.memory import sampled
        from experiments.run.memory import require

        made = make_env(env, horizon)
        require({"episodes": sampled(made, episodes, steps)}, {"episodes": "lower --episodes or --steps"})
        try:
            for passed in check_env(made, n=episodes, steps=steps):
                print(f"ok  {passed}")
        except ContractError as error:
            raise UserError(f"{env}: {error}", exit_code=1) from error

    call(command, "pgrl check-env", arguments)


def listing() -> None:
    """Print the names of algorithms and environments."""
    from experiments.pg.environments import MUJOCO, OWN
    from pgrl.registry import register

    print("algorithms", columns({name: entry.about for name, entry in register().items()}), sep="\n")
    print("  file.py:agent: a dataclass with init(theta) and step(state, world)")
    print("\nenvironments", columns(OWN), sep="\n")
    print(f"  {', '.join(MUJOCO)}: batched MuJoCo")
    print("  any other Gymnasium id (CartPole-v1, ...), or file.py:make")


def doctor() -> None:
    from experiments.pg.commands import doctor

    doctor()


def examples() -> list[list[str]]:
    from pgrl.registry import register

    return [["snr", "."], ["snr", "n-harpg"], *(["train", name] for name in register())]


def names() -> dict[str, list[str]]:
    from experiments.pg.environments import MUJOCO, OWN
    from pgrl.registry import register

    algorithms, environments = [*register()], [*OWN, *MUJOCO]
    own = {
        "train": algorithms,
        "snr": algorithms,
        "check": algorithms,
        "check-env": environments,
        "completion": ["bash", "zsh"],
    }
    return {**own, "--env": environments, "--resume": ["auto", "never"]}


VERBS: dict[str, Verb] = {
    "train": train,
    "resume": resume_verb("pgrl", resume),
    "eval": evaluate,
    "curves": curves_verb("pgrl", "env_steps"),
    "snr": snr,
    "check": check,
    "check-env": check_env,
    "list": without_flags("pgrl list", "Names of algorithms and environments.", listing),
    "completion": lambda arguments: completion_verb("pgrl", VERBS, examples, names)(arguments),
    "doctor": without_flags("pgrl doctor", "Versions, device, and a training run of five seconds.", doctor),
}

if __name__ == "__main__":
    main()
