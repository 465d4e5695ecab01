"""`pgrl check`: prints what `pgrl.check` finds about an agent."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.cli.errors import UserError
from experiments.pg.config import find_agent, make_agent
from pgrl.check import LIMIT, benches, bias, decay, order, verdict


def check_agent(algo: str, seeds: int, iterations: int, batch_size: int, step_size: float) -> bool:
    """Prints the table and the verdicts; True when every claim is kept."""
    if seeds < 2 or iterations < 3 or batch_size < 1:
        raise UserError(
            f"got --seeds {seeds} --iterations {iterations} --batch-size {batch_size}, expected at least 2, 3 and 1"
        )
    entry: Any = find_agent(algo)
    hyperparameters = dict(entry.preset)
    if "step_size" in {f.name for f in dataclasses.fields(entry.make)} and "step_size" not in hyperparameters:
        hyperparameters["step_size"] = step_size
    agent = make_agent(algo, hyperparameters)
    marks = sorted({0, *(round((iterations - 1) ** (k / 4)) for k in range(5))})
    found, orders = {}, {}
    print(f"{algo}: error of the direction d_t - ∇J_H(θ_t) over {seeds} replicas")
    print(f"{'env':8s} {'t':>4s} {'‖mean‖/‖∇J‖':>12s} {'visible from':>13s} {'max |z|':>8s} {'rms':>8s}")
    for bench in benches(seeds, batch_size):
        found[bench.name] = bias(agent, bench, marks)
        for f in found[bench.name]:
            flag = " *" if f.z >= LIMIT else ""
            print(f"{bench.name:8s} {f.t:4d} {f.share:12.2%} {f.visible:13.2%} {f.z:8.1f} {f.rms:8.3f}{flag}")
        orders[bench.name] = order(agent, bench)
        print(f"{bench.name:8s} rms ~ t^{decay(found[bench.name]):.2f}")
    claims = verdict(agent, found, orders)
    for kept, sentence in claims:
        print(f"{'ok  ' if kept else 'FAIL'} {algo} {sentence}")
    return all(kept for kept, _ in claims)
