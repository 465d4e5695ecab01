"""`check_reward`: whether a reward keeps its contract, tried with five known drugs in a process as in training.

it loads               no molecules, no numbers             one number for each, each finite
singly = in one batch  the same again                       whatever the order
a new process says the same
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from experiments.cli.errors import UserError
from experiments.oracle.host import Child, NotLoaded, ProcessGone, TimedOut
from experiments.oracle.make import spec_of
from experiments.oracle.protocol import CallFailed
from experiments.oracle.settings import OracleSettings
from experiments.oracle.spec import RewardSpec

DRUGS = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "ibuprofen": "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
}
CLOSE = 1e-5  # relative difference that rounding in a batch may make


class _Failed(Exception):
    """A check failed, in one sentence that says what to change."""


def check_reward(name: str, settings: OracleSettings, say: Callable[[str], None]) -> None:
    """Try a reward; a line for each check that it passes.

    Args:
        name: file.py:function, or "command".
        settings: how it is run.
        say: is handed each line.

    Raises:
        UserError: a check fails (exit code 1), or the reward cannot be read.
    """
    spec = spec_of(name, settings)
    try:
        for line in _checks(spec, settings.reward_timeout):
            say(f"ok  {line}")
    except (_Failed, NotLoaded, ProcessGone, CallFailed) as error:
        raise UserError(f"failed check: {' '.join(str(error).split())}", exit_code=1) from error


def _checks(spec: RewardSpec, limit: float) -> Iterator[str]:
    smiles = list(DRUGS.values())
    with contextlib.closing(Child(spec, limit and max(limit, 600.0))) as child:
        yield "it loads"
        if spec.kind == "function":
            try:
                _asked(child, [], limit)
            except CallFailed as error:
                raise _Failed(f"for an empty list {error}: return an empty list") from error
            yield "no molecules: an empty list"
        singly = [_asked(child, [one], limit) for one in smiles]
        values = [values[0] for values, _ in singly]
        said = ", ".join(f"{drug} {value:g}" for drug, value in zip(DRUGS, values, strict=True))
        yield f"a finite number for each of five drugs: {said}"
        batch, seconds = _asked(child, smiles, limit)
        _same(values, batch, "each alone", "all in one call", "a molecule's value must not depend on the others of its call")
        yield "all in one call: the same numbers"
        _same(
            batch, _asked(child, smiles, limit)[0], "first", "in the same call again", "fix its random seed, and keep no state"
        )
        yield "again: the same numbers"
        back = _asked(child, smiles[::-1], limit)[0][::-1]
        _same(batch, back, "in order", "in reverse order", "answer in the order of the molecules")
        yield "in another order: the same numbers"
        calls = child.calls
    with contextlib.closing(Child(spec, limit and max(limit, 600.0))) as child:
        other = _asked(child, smiles, limit)[0]
        _same(batch, other, "in one process", "in a new process", "fix its random seed; a cache would mix the two")
    yield "in a new process: the same numbers"
    times = sorted(seconds for _, seconds in singly)
    hint = ": --reward-batch would use that" if seconds < 2.5 * times[2] and times[2] > 0.001 else ""
    yield f"it kept its process and its pipes over {calls} calls, whatever it printed, forked or started"
    yield f"time: {times[2]:.3g} s for one molecule (median), {seconds:.3g} s for five in one call{hint}"


def _asked(child: Child, smiles: Sequence[str], limit: float) -> tuple[list[float], float]:
    """Values and seconds. _Failed where one is no finite number or it takes too long."""
    try:
        scored, seconds = child(smiles, limit)
    except TimedOut:
        raise _Failed(f"no answer within {limit:g} s for {_named(smiles)}: allow more with --reward-timeout") from None
    except ProcessGone as error:
        raise _Failed(f"{error}, for {_named(smiles)}: it must not end, nor close what it has not opened") from error
    for one, answer in zip(smiles, scored, strict=True):
        if answer.status != "ok":
            raise _Failed(f"{answer.message}, for {one}")
    return [answer.value for answer in scored], seconds


def _named(smiles: Sequence[str]) -> str:
    return ", ".join(smiles) or "an empty list"


def _same(a: Sequence[float], b: Sequence[float], first: str, second: str, change: str) -> None:
    for drug, x, y in zip(DRUGS, a, b, strict=True):
        if abs(x - y) > CLOSE * max(abs(x), abs(y)):
            raise _Failed(f"{drug} is {x:.9g} {first} and {y:.9g} {second}: {change}")
