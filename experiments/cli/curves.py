"""The verb `curves` of both command lines."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from experiments.cli.text import plain
from experiments.cli.verbs import Verb, call


def curves_verb(program: str, x_axis: str) -> Verb:
    """The verb that draws learning curves. x_axis: the horizontal axis by default."""

    def verb(arguments: list[str]) -> None:
        def command(
            runs: Positional[tuple[Path, ...]],
            out: Path,
            metric: str | None = None,
            x: str = x_axis,
            by: tuple[str, ...] = (),
            csv: Path | None = None,
        ) -> None:
            """Draw a metric over training for one or more runs, and write the numbers as CSV beside the figure.

            Args:
                runs: run folders; runs of one method that differ in their seeds alone are pooled
                out: figure, .png or .svg
                metric: a logged tag; default: eval/gap, eval/return, eval/l1 or eval/correlation, the first that is there
                x: horizontal axis: env_steps (pgrl), states (gflownet: objects visited), oracle/calls (gflownet: reward calls),
                    iteration or wall (seconds)
                by: settings of config.json, e.g. step_size, that tell runs of one method apart (the rest is pooled), or
                    none: pool all runs of a method; default: all settings that differ and change numbers
                csv: curves of another library for the same figure: columns algo, seed, env_steps (as --x) and value;
                    where there is a column env, the rows of the runs' environment
            """
            from experiments.plots.curves import curves, table

            made = curves(list(runs), out, metric, x, None, by or None, csv)
            axis = x if x in ("env_steps", "states") else x_axis
            if csv is None or axis == x:  # other files have one axis
                print(table(list(runs), metric, by=by or None, others=csv, x=axis))
            print(plain(f"figure: {made}   numbers: {made.with_suffix('.csv')}"))

        call(command, f"{program} curves", arguments)

    return verb
