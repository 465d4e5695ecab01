"""The verbs of `pgrl`: parsing and calling, nothing else.

pgrl train ALGO --env ENV ...     pgrl resume RUN      pgrl eval RUN       pgrl curves RUN... --out figure.png
pgrl check ALGO|file.py:agent     pgrl check-env ENV   pgrl list           pgrl doctor
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from experiments.cli.errors import UserError
from experiments.cli.threads import quiet
from experiments.cli.verbs import OUT, QUIET, RESUME, Verb, parse, required, resumable, run_verb, value_of

USAGE = "usage: pgrl {train,resume,eval,curves,check,check-env,list,doctor} ...   (pgrl VERB --help says more)"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; exits with the codes of `experiments.cli.errors`."""
    quiet()
    run_verb("pgrl", f"{__doc__}\n{USAGE}", VERBS, argv)


def train(arguments: list[str]) -> None:
    """pgrl train ALGO --env ENV: the recipe's settings first, then what the command line says."""
    run(arguments)


def run(arguments: list[str]) -> Path:
    """Parse, train to the end, return the run folder."""
    from experiments.pg.commands import finished, start
    from experiments.pg.commands import resume as go_on
    from experiments.pg.config import PGSettings, as_config, choose_device, defaults, find_agent

    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            arguments = ["n-harpg", *arguments]
        else:
            raise UserError("got no algorithm: pgrl train ALGO --env ENV, with ALGO from `pgrl list` or file.py:agent")
    algo, rest = arguments[0], arguments[1:]
    settings, hyperparameters, recipe = defaults(
        algo, value_of(rest, "--env") or PGSettings.env, value_of(rest, "--preset") or PGSettings.preset
    )
    entry = find_agent(algo)
    agent_type: Any = entry.make
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
            ("out", OUT, dataclasses.field(default=None)),
            ("resume", RESUME, dataclasses.field(default=False)),
            ("quiet", QUIET, dataclasses.field(default=False)),
        ],
    )
    parsed = parse(command, f"pgrl train {algo}", f"Train {algo}.\n\nRecipe: {recipe.note or 'none'}", rest)
    chosen = {f.name: getattr(parsed.agent, f.name) for f in dataclasses.fields(parsed.agent)}
    config = as_config(algo, parsed.train, chosen, choose_device(parsed.train))
    if parsed.resume and resumable(parsed.out, config, parsed.train):
        if not finished(parsed.out):
            go_on(parsed.out, None, parsed.quiet)
        return Path(parsed.out)
    return start(config, parsed.out, ["pgrl", "train", *arguments], parsed.quiet)


def resume(arguments: list[str]) -> None:
    from experiments.pg.commands import resume as go_on

    def command(run: Positional[Path], checkpoint: Path | None = None, quiet: bool = False) -> None:
        """Continue a run from its last checkpoint, bit for bit on the CPU.

        Args:
            run: the run folder
            checkpoint: another checkpoint than the last
            quiet: no progress
        """
        go_on(run, checkpoint, quiet)

    tyro.cli(command, prog="pgrl resume", args=arguments)


def evaluate(arguments: list[str]) -> None:
    from experiments.pg.commands import evaluate as score

    def command(run: Positional[Path], episodes: int = 100, checkpoint: Path | None = None) -> None:
        """Play a trained policy and print each seed's return as CSV.

        Args:
            run: the run folder
            episodes: of each seed
            checkpoint: another checkpoint than the last
        """
        score(run, episodes, checkpoint)

    tyro.cli(command, prog="pgrl eval", args=arguments)


def curves(arguments: list[str]) -> None:
    from experiments.plots.curves import curves as draw
    from experiments.plots.curves import table

    def command(runs: Positional[tuple[Path, ...]], out: Path, metric: str | None = None) -> None:
        """Draw a metric against environment steps for one or more runs, and write the numbers as CSV beside it.

        Args:
            runs: run folders; runs of one algorithm are pooled
            out: figure, .png or .svg
            metric: default: eval/gap where it is exact, else eval/return
        """
        made = draw(list(runs), out, metric)
        print(table(list(runs), metric))
        print(f"figure: {made}   numbers: {made.with_suffix('.csv')}")

    tyro.cli(command, prog="pgrl curves", args=arguments)


def check(arguments: list[str]) -> None:
    from experiments.pg.oracle import check_agent

    def command(
        agent: Positional[str], seeds: int = 16_384, iterations: int = 16, batch_size: int = 1, step_size: float = 0.2
    ) -> None:
        """Hold an agent's direction against exact gradients on small environments with exact values; exit 1 when a claim fails.

        Args:
            agent: a name, or file.py:agent
            seeds: replicas side by side; more see smaller biases
            iterations: of the algorithm
            batch_size: episodes at each point
            step_size: the agent's hyperparameter of that name
        """
        if not check_agent(agent, seeds, iterations, batch_size, step_size):
            raise SystemExit(1)

    tyro.cli(command, prog="pgrl check", args=arguments)


def check_env(arguments: list[str]) -> None:
    def command(env: Positional[str], episodes: int = 4, steps: int = 64, horizon: int | None = None) -> None:
        """Hold an environment to the contract; exit 1 when a promise is broken.

        Args:
            env: a name, or file.py:make
            episodes: in the batch
            steps: of each
            horizon: where episodes are cut, for environments that do not say
        """
        from envs.check import ContractError
        from envs.check import check_env as hold
        from experiments.pg.build import make_env

        try:
            for promise in hold(make_env(env, horizon), n=episodes, steps=steps):
                print(f"ok  {promise}")
        except ContractError as error:
            raise UserError(f"{env}: {error}", exit_code=1) from error

    tyro.cli(command, prog="pgrl check-env", args=arguments)


def show_list(arguments: list[str]) -> None:
    from experiments.pg.commands import listing

    def command() -> None:
        """Algorithms and environments."""
        print(listing())

    tyro.cli(command, prog="pgrl list", args=arguments)


def doctor(arguments: list[str]) -> None:
    from experiments.pg.commands import doctor as look

    def command() -> None:
        """Versions, device, and a five-second training run."""
        look()

    tyro.cli(command, prog="pgrl doctor", args=arguments)


VERBS: dict[str, Verb] = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "curves": curves,
    "check": check,
    "check-env": check_env,
    "list": show_list,
    "doctor": doctor,
}

if __name__ == "__main__":
    main()
