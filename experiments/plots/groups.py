"""Which runs are pooled into one line of a figure, and the label that tells two lines of one method apart.

Runs of one method are pooled where they differ in their seeds alone, or in settings that change no number of a curve. Where
they differ in anything else, each combination is a line, and its label names what differs: `n-harpg step_size=0.1`. Who
names settings (`--by step_size`) gets a line for each of their values and pools the rest; `--by none` pools all.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.cli.load import short_name
from experiments.cli.text import plain
from experiments.cli.verbs import close_to
from experiments.plots.series import CurvesError, Series
from experiments.run.folder import flat
from experiments.run.run import FREE

# Differences in these tell no lines apart: seeds, names, where a run is computed, how often it is measured and saved.
# Rounding (device, deterministic, compile) counts as the same number. `preset` only chose what other settings record.
SAME = FREE | {"seed", "seeds", "algo", "method", "env", "preset", "out", "device", "threads", "deterministic", "compile"}
SAME |= {"evaluations", "log_rows", "checkpoints", "max_faults", "metrics"}
SHOWN, LONGEST = 4, 24  # settings in a label and characters of a value, where that is enough to tell lines apart


@dataclass(frozen=True)
class Group:
    """One line: its label and what is pooled.

    mixed     settings in which pooled runs differ
    repeated  how many seeds were left out, since another run with the same settings has them
    """

    label: str
    members: list[Series]
    mixed: tuple[str, ...]
    repeated: int = 0


def group(series: Sequence[Series], by: Sequence[str] | None = None) -> list[Group]:
    """The lines of a figure, methods and lines of a method in the order in which they first appear.

    Args:
        series: what runs logged.
        by: settings of config.json that tell lines apart; None: all that differ and change numbers; ("none",): no setting.

    Raises:
        CurvesError: no run has a setting of that name.
    """
    methods: dict[tuple[str, str], list[Series]] = {}
    for s in series:
        methods.setdefault((s.source, s.algo), []).append(s)
    names = _names(list(methods))
    by = None if by is None else _checked(by, series)
    return [line for key, members in methods.items() for line in _lines(names[key], members, by)]


def _lines(name: str, members: list[Series], by: Sequence[str] | None) -> list[Group]:
    tables = _settings(members)
    order = dict.fromkeys(key for table in tables for key in table)
    differ = [key for key in order if key not in SAME and len({_exact(t.get(key)) for t in tables}) > 1]
    apart = differ if by is None else [key for key in by if key in order]
    lines: dict[tuple[str, ...], list[int]] = {}
    for i, table in enumerate(tables):
        lines.setdefault(tuple(_exact(table.get(key)) for key in apart), []).append(i)
    first = [tables[rows[0]] for rows in lines.values()]
    labels = _labels(name, first, apart if by is not None else _telling(first, differ), len(apart))
    found = []
    for label, rows in zip(labels, lines.values(), strict=True):
        biased = dict.fromkeys(bias for i in rows for bias in _biases(members[i].config))
        label += f" (biased: {', '.join(biased)})" if biased else ""
        mixed = tuple(key for key in differ if len({_exact(tables[i].get(key)) for i in rows}) > 1)
        pooled, repeated = _once([(_exact([tables[i].get(key) for key in mixed]), members[i]) for i in rows])
        found.append(Group(label, pooled, mixed, repeated))
    return found


def _once(runs: Sequence[tuple[str, Series]]) -> tuple[list[Series], int]:
    """The runs with each seed once for the same settings, where it went furthest; the number of seeds left out.

    runs  (what sets a run apart from others of its line, the run)
    """
    kept: dict[Any, tuple[int, int]] = {}  # (settings, seed) -> (run, row)
    for i, (apart, s) in enumerate(runs):
        first, count = s.config.get("seed"), s.config.get("seeds")
        for row in range(len(s.y)):
            key = (apart, first + row) if isinstance(first, int) and count == len(s.y) else (i, row)
            if key not in kept or s.x[row, -1] > runs[kept[key][0]][1].x[kept[key][1], -1]:
                kept[key] = i, row
    rows = [[row for run, row in kept.values() if run == i] for i in range(len(runs))]
    left = [replace(s, x=s.x[sorted(r)], y=s.y[sorted(r)]) for (_, s), r in zip(runs, rows, strict=True) if r]
    return left, sum(len(s.y) for _, s in runs) - len(kept)


def _names(methods: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name for each (source, algo): files without folders, unless two would be called alike."""
    names = {(source, algo): algo if source else short_name(algo) for source, algo in methods}
    same = {name for name, count in Counter(names.values()).items() if count > 1}
    return {
        (source, algo): name if name not in same else f"{algo} ({source})" if source else algo
        for (source, algo), name in names.items()
    }


def _checked(by: Sequence[str], series: Sequence[Series]) -> list[str]:
    """The settings that `--by` names, several in a word where commas part them."""
    names = [name.strip().replace("-", "_") for word in by for name in word.split(",")]
    known = dict.fromkeys(key for s in series for key in flat(s.config))
    if names == ["none"] and "none" not in known:
        return []
    for given, name in zip((n for word in by for n in word.split(",")), names, strict=True):
        if name not in known:
            close = close_to(name, list(known), ", ".join(known) or "none")
            said = f"these runs have no setting {given!r}; close: {close}"
            raise CurvesError(f"{said}. --by takes settings of config.json, or none alone; runs stand before it")
    return list(dict.fromkeys(names))


def _settings(members: Sequence[Series]) -> list[dict[str, Any]]:
    """The settings of each run by name; one that an older run does not record has the value that it had by default."""
    tables = [flat(s.config) for s in members]
    order = dict.fromkeys(key for table in tables for key in table)
    if all(order.keys() - SAME <= table.keys() for table in tables):
        return tables
    defaults = _defaults(members[0].config)
    return [{key: table.get(key, defaults.get(key)) for key in order} for table in tables]


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Default values of the settings of a method and of its environment, as JSON has them; no file of a user is executed."""
    kinds: list[Any] = []
    if "algo" in config:
        from experiments.pg.config import PGSettings
        from pgrl.registry import register as agents

        agent = agents().get(str(config["algo"]))
        kinds = [PGSettings, *([agent.make] if agent else [])]
    elif "method" in config:
        from experiments.gfn.config import GFlowNetSettings, GFNSettings
        from experiments.gfn.environments import ENVIRONMENTS
        from gflownet.registry import register as methods

        method, env = methods().get(str(config["method"])), ENVIRONMENTS.get(str(config.get("env")))
        kinds = [GFNSettings, GFlowNetSettings, *([method.make] if method else []), *([env.settings] if env else [])]
    fields = [f for kind in kinds for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING]
    return {f.name: json.loads(json.dumps(f.default, default=str)) for f in fields}


def _biases(config: Mapping[str, Any]) -> list[str]:
    """The biased settings of a run of pgrl."""
    if "algo" not in config:
        return []
    from experiments.pg.config import biases

    try:
        return biases(config)
    except (AttributeError, TypeError, ValueError):  # values of another type, which `resume` refuses
        return []


def _telling(tables: Sequence[Mapping[str, Any]], differ: Sequence[str]) -> list[str]:
    """The settings of a label: those that are needed to tell the lines apart, and more that differ while there is room."""
    needed: list[str] = []
    parts = 1
    for key in differ:
        finer = len({tuple(_exact(t.get(k)) for k in (*needed, key)) for t in tables})
        if finer > parts:
            needed, parts = [*needed, key], finer
    return needed + [key for key in differ if key not in needed][: max(0, SHOWN - len(needed))]


def _labels(name: str, tables: Sequence[Mapping[str, Any]], keys: Sequence[str], differing: int) -> list[str]:
    """A label for each line, with exact values where rounded ones would be the same."""
    rest = f" and {differing - len(keys)} more" if differing > len(keys) else ""
    for text in (_short, _exact):
        labels = [" ".join([name, *(f"{key}={text(table.get(key))}" for key in keys)]) + rest for table in tables]
        if len(set(labels)) == len(labels):
            break
    return [plain(label) for label in labels]


def _exact(value: Any) -> str:
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # 1.0 is 1
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ",".join(map(_short, value)) or "none"
    text = "none" if value is None else Path(value).name if isinstance(value, str) else _exact(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
