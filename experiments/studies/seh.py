"""Molecules with a high predicted affinity for soluble epoxide hydrolase, the task of Bengio et al. (NeurIPS 2021).

    python -m experiments.studies.seh --blocks blocks_PDB_105.json --weights best_params.pkl.gz --out runs/seh
    python -m experiments.studies.seh ... --rows tb-40 mcmc-10           some rows; the tables hold all seeds that are finished

Both files were published with the paper. Made by it: the tables of results/seh.md, seh.csv and seh.png. A row is a method and
the β of the distribution R^β, R = max(0.1, p)/8, that it samples; `exchange` and `metropolis` are the perfect sampler. Rows
`fm: ...` change one setting of flow matching at a time. Seeds are runs of their own: faster here than side by side.
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

import gflownet
from experiments.cli.errors import UserError, guarded
from experiments.gfn.build import make_dag_env
from experiments.gfn.environments import find_env
from experiments.molecules.fidelity import of_policy
from experiments.molecules.stationary import THIN, Draws, Plan, best_share, finished, stationary
from experiments.plots.best_molecules import Line, Point, best_molecules
from experiments.recipes.gfn.molecules import SEH
from experiments.run.log import read_metrics
from experiments.studies import scaled

SHARED: dict[str, Any] = {"preset": "paper", "top_k": 20_000, "metrics": "sampled", "evaluations": 10, "checkpoints": 5}
RECIPE: dict[str, Any] = {"batch_size": 64, "replay": "prioritised", "learning_rate": 2e-3, "epsilon": 0.02}
TB: dict[str, Any] = {**RECIPE, "objective": "tb", "log_z_rate": 1.0}
FM: dict[str, Any] = {**RECIPE, "objective": "fm", "beta": 10.0, "states": 6_400, "evaluations": 4}
ROWS: dict[str, tuple[int, dict[str, Any]]] = {  # name -> seeds, settings
    "tb-40": (5, {**TB, "beta": 40.0, "states": 32_000}),
    "tb-20": (3, {**TB, "beta": 20.0, "states": 32_000}),
    "tb-16": (3, {**TB, "beta": 16.0, "states": 32_000}),
    "tb-10": (3, {**TB, "beta": 10.0, "states": 32_000}),
    "mcmc-40": (3, {"objective": "mcmc", "beta": 40.0, "states": 100_000}),
    "mcmc-10": (3, {"objective": "mcmc", "beta": 10.0, "states": 100_000}),
    "ppo-40": (3, {"objective": "ppo", "beta": 40.0, "states": 16_000}),
    "ppo-10": (3, {"objective": "ppo", "beta": 10.0, "states": 16_000}),
    "fm-40": (3, {**RECIPE, "objective": "fm", "beta": 40.0, "states": 10_000}),
    "fm-10": (3, {**RECIPE, "objective": "fm", "beta": 10.0, "states": 32_000}),
    "random": (3, {"objective": "uniform", "beta": 10.0, "states": 32_000}),
    "fm: as fm-10": (1, FM),
    "fm: learning rate 5e-4": (1, {**FM, "learning_rate": 5e-4}),
    "fm: learning rate 5e-3": (1, {**FM, "learning_rate": 5e-3}),
    "fm: learning rate 1e-2": (1, {**FM, "learning_rate": 1e-2}),
    "fm: learning rate 1e-2, longer": (1, {**FM, "learning_rate": 1e-2, "states": 19_200}),
    "fm: network 4 × 128": (1, {**FM, "hidden": (128,) * 4}),
    "fm: no smoothing": (1, {**FM, "smoothing": 0.0}),
    "fm: no replay": (1, {**FM, "replay": "none"}),
    "fm: the paper's settings": (1, {"objective": "fm", "beta": 10.0, "states": 6_400, "evaluations": 4}),
}
CHAINS = {
    "exchange": Plan((5.0, 10.0, 16.0, 20.0, 40.0), chains=96, sweeps=3_000, cold=300),
    "metropolis": Plan((10.0,), chains=192, sweeps=1_500, cold=0),
    "metropolis-merged": Plan((10.0,), chains=192, sweeps=1_500, cold=0),  # --convention merged, for comparison
}
SHOWN = (10.0, 16.0, 20.0, 40.0)
FRESH, EXACT = 400, 400  # samples of each policy, and of the perfect sampler beside it
PAPER = [Point("GFlowNet", 1e5, 8.21), Point("GFlowNet", 1e6, 8.34), Point("MARS", 1e5, 7.71), Point("PPO", 1e5, 7.87)]


def study(
    blocks: Path,
    weights: Path,
    out: Path = Path("runs/studies/seh"),
    scale: float = 1.0,
    rows: tuple[str, ...] = (*CHAINS, *ROWS),
    figure: Path | None = None,
) -> Path:
    """Run the perfect sampler and the methods, and write tables, a CSV file and the figure.

    Args:
        blocks: the paper's building blocks
        weights: of the paper's proxy
        out: a folder for the runs
        scale: factor of the budgets
        rows: which to run; default: all
        figure: the tables, .md; default: seh.md in that folder. CSV and figure stand beside it
    """
    if unknown := [name for name in rows if name not in ROWS | CHAINS]:
        raise UserError(f"got --rows {unknown[0]}, expected some of {', '.join((*CHAINS, *ROWS))}")
    task = {**SHARED, "fragments": blocks, "seh_weights": weights}
    for name in rows:
        if name in ROWS:
            for seed in range(ROWS[name][0]):
                trained(name, seed, task, scale, out)
        else:
            sampled(name, task, scale, out)
    return report(task, scale, out, figure or out / "seh.md")


# -- running


def trained(name: str, seed: int, task: dict[str, Any], scale: float, out: Path) -> None:
    """One seed of a row in NAME/seed-K; NAME/seed-K.json says when it is finished, and its seconds of CPU."""
    settings = {**task, **ROWS[name][1], "seed": seed}
    started = time.process_time()
    folder = out / name / f"seed-{seed}"
    gflownet.train(
        "molecules", out=folder, resume=True, quiet=True, **{**settings, "states": scaled(settings["states"], scale)}
    )
    record = folder.with_suffix(".json")
    if not record.is_file():
        record.write_text(json.dumps({"cpu": time.process_time() - started}))


def sampled(name: str, task: dict[str, Any], scale: float, out: Path) -> Draws:
    """The perfect sampler, from where it stands."""
    kind = find_env("molecules")
    convention = "merged" if name.endswith("merged") else "paper2021"
    settings = {**SEH, "convention": convention, "beta": 1.0, "fragments": str(task["fragments"])}
    env = make_dag_env("molecules", kind.settings(**settings, seh_weights=str(task["seh_weights"])), "cpu")
    return stationary(env, plan(name, scale), out / name)


def plan(name: str, scale: float) -> Plan:
    full = CHAINS[name]
    cold = scaled(full.cold, scale) if full.cold else 0
    return replace(full, sweeps=max(2 * THIN, scaled(full.sweeps, scale)), cold=cold)


# -- reporting


def report(task: dict[str, Any], scale: float, out: Path, figure: Path) -> Path:
    """Tables, CSV and figure of all that is finished."""
    found = {name: sampled(name, task, scale, out) for name in CHAINS if finished(out / name, plan(name, scale))}
    runs = {name: [out / name / f"seed-{k}" for k in range(seeds)] for name, (seeds, _) in ROWS.items()}
    runs = {name: done for name, folders in runs.items() if (done := [f for f in folders if f.with_suffix(".json").is_file()])}
    records = {name: [record(folder, ROWS[name][1]["beta"], found) for folder in folders] for name, folders in runs.items()}
    curves = {name: [evaluations(folder) for folder in folders] for name, folders in runs.items()}
    main = [name for name in runs if not name.startswith("fm:")]
    tables = {
        "The perfect sampler": perfect(found),
        "Does it converge": convergence(found),
        "Best molecules": best(main, curves, records),
        "Fresh samples of the policies": fresh(main, curves, records),
        "Flow matching": flow_matching([name for name in runs if name.startswith("fm:")], curves, records),
    }
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_text("\n\n".join(f"## {title}\n\n{table(rows)}" for title, rows in tables.items() if len(rows) > 1) + "\n")
    write_csv(figure.with_suffix(".csv"), curves)
    lines = [Line(name, [points(rows) for rows in curves[name]], ROWS[name][1]["objective"]) for name in main]
    if "exchange" in found:
        lines += [Line(f"β = {beta:g}", [expected(found["exchange"], beta)]) for beta in SHOWN]
    best_molecules([line for line in lines if any(line.seeds)], PAPER, figure.with_suffix(".png"))
    return figure


def record(folder: Path, beta: float, found: dict[str, Draws]) -> dict[str, Any]:
    """{"cpu", "policy"}: see `of_policy`; computed once."""
    file = folder.with_suffix(".json")
    known: dict[str, Any] = json.loads(file.read_text())
    exact = None
    if "exchange" in found and beta in found["exchange"].betas:
        drawn = found["exchange"].objects[:, found["exchange"].betas.index(beta)].flatten(0, 1)
        exact = drawn[torch.linspace(0, len(drawn) - 1, min(EXACT, len(drawn))).long()]
    if "policy" not in known or (exact is not None and known["policy"] and "eubo" not in known["policy"]):
        known["policy"] = {name: x[0] for name, x in of_policy(folder, FRESH, exact).items()}
        file.write_text(json.dumps(known))
    return known


def evaluations(folder: Path) -> list[dict[str, float]]:
    """Rows of metrics with molecules; one seed, so that each entry is a number (NaN where there is none)."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "mol/top_10" in row]
    return [{tag: _number(x) for tag, x in row.items() if not isinstance(x, dict)} for row in rows]


def _number(x: Any) -> float:
    x = x[0] if isinstance(x, list) else x
    return float("nan") if x is None or isinstance(x, str) else float(x)


def perfect(found: dict[str, Draws]) -> list[list[str]]:
    rows = [["sampler", "samples", "mean p", "5 %, 50 %, 95 %", "best 1 %", "best 0.1 %", "mean log R", "independent draws"]]
    for name, draws in found.items():
        p, times = 8 * draws.log_reward.exp(), draws.autocorrelation_time()
        for k, beta in enumerate(draws.betas):
            if beta in SHOWN:
                w = draws.weights(beta)
                cells = [_of_groups(p, w, share) for share in (1.0, 0.01, 0.001)]
                quantiles = ", ".join(f"{_quantile(p, w, q):.2f}" for q in (0.05, 0.5, 0.95))
                log_r = f"{float((w * beta * draws.log_reward).sum()):.2f}"
                rows.append([name, _law(beta), cells[0], quantiles, *cells[1:], log_r, f"{p[:, k].numel() / times[k]:,.0f}"])
    return rows


def _of_groups(p: torch.Tensor, w: torch.Tensor, share: float, groups: int = 12) -> str:
    """Mean of the best `share` of draws p [T, K, n] with weights w, ± its standard error from groups of chains."""
    parts = torch.tensor([best_share(p[..., g::groups], w[..., g::groups], share) for g in range(min(groups, p.shape[2]))])
    return f"{best_share(p, w, share):.2f} ± {parts.std() / len(parts) ** 0.5:.2f}"


def _quantile(p: torch.Tensor, w: torch.Tensor, q: float) -> float:
    values, order = p.flatten().sort()
    return float(values[int((w.flatten()[order].cumsum(0) < q).sum().clamp_max(len(values) - 1))])


def convergence(found: dict[str, Draws]) -> list[list[str]]:
    head = ["sampler", "samples", "mean p: hot, cold starts", "first, second half", "accepted", "exchanged with the next β"]
    rows = [[*head, "sweeps for one draw", "log Z(β) − log Z(10)"]]
    for name, draws in found.items():
        time_of_one, ratio = draws.autocorrelation_time(), [0.0, *draws.log_z_ratios().cumsum(0).tolist()]
        for k, beta in enumerate(draws.betas):
            if beta in SHOWN:
                p = 8 * draws.log_reward[:, k].exp()
                half, n = len(p) // 2, p.shape[1] // 2
                starts = (p[:, :n].mean(0), p[:, n:].mean(0))
                halves = (p[:half].mean(0), p[half:].mean(0))
                both = [", ".join(f"{x.mean():.2f} ± {x.std() / len(x) ** 0.5:.2f}" for x in two) for two in (starts, halves)]
                up = f"{draws.exchanged[k]:.2f}" if k < len(draws.betas) - 1 else "–"
                cells = [
                    f"{draws.accepted[k]:.2f}",
                    up,
                    f"{time_of_one[k]:.0f}",
                    f"{ratio[k] - ratio[draws.betas.index(10.0)]:.2f}",
                ]
                rows.append([name, _law(beta), *both, *cells])
    return rows


def best(names: list[str], curves: dict[str, Any], records: dict[str, Any]) -> list[list[str]]:
    head = ["row", "samples", "visited", "seeds", "top-10", "top-100", "top-1000", "modes", "scaffolds", "CPU s a seed"]
    rows = [head]
    for name in names:
        last = [rows_of_seed[-1] for rows_of_seed in curves[name]]
        tops = [_spread([8 * row[f"mol/top_{k}"] for row in last], 2) for k in (10, 100, 1000)]
        counts = [_spread([row[f"mol/{of}"] for row in last], 0) for of in ("modes", "scaffolds")]
        cpu = f"{sum(r['cpu'] for r in records[name]) / len(last):,.0f}"
        law = "–" if name == "random" else _law(ROWS[name][1]["beta"])
        rows.append([name, law, f"{last[0]['states']:,.0f}", str(len(last)), *tops, *counts, cpu])
    return rows


def fresh(names: list[str], curves: dict[str, Any], records: dict[str, Any]) -> list[list[str]]:
    head = [
        "row",
        "mean p",
        "5 %, 50 %, 95 %",
        "mean log R",
        "log p against log R: fresh, test trees",
        "start of log Z",
        "log Z learned",
    ]
    rows = [[*head, "E w", "log Z by Bennett", "E v"]]
    for name in names:
        policies, last = [r["policy"] for r in records[name]], [rows_of_seed[-1] for rows_of_seed in curves[name]]
        if not policies[0]:
            rows.append([name, "", "", _spread([row["rollout/log_reward"] for row in last], 2), *[""] * 6])
            continue
        quantiles = [sum(p["quantiles"][i] for p in policies) / len(policies) for i in range(3)]
        correlations = [[p["correlation"] for p in policies], [row["eval/correlation"] for row in last]]
        bounds = [_spread([p[of] for p in policies], 1) if of in policies[0] else "" for of in ("elbo", "log_z", "eubo")]
        rows.append(
            [
                name,
                _spread([8 * p["reward"] for p in policies], 2),
                ", ".join(f"{8 * q:.2f}" for q in quantiles),
                _spread([p["log_reward"] for p in policies], 2),
                ", ".join(_spread(x, 2) for x in correlations),
                "auto" if ROWS[name][1]["objective"] == "tb" else "–",
                _spread([row.get("eval/log_z", float("nan")) for row in last], 1),
                *bounds,
            ]
        )
    return rows


def flow_matching(names: list[str], curves: dict[str, Any], records: dict[str, Any]) -> list[list[str]]:
    rows = [
        [
            "setting",
            "visited",
            "updates",
            "top-10",
            "top-100",
            "top-1000",
            "mean p of fresh samples",
            "test trees",
            "log Z",
            "CPU s a seed",
        ]
    ]
    for name in names:
        last, batch = [rows_of_seed[-1] for rows_of_seed in curves[name]], ROWS[name][1].get("batch_size", 4)
        tops = [_spread([8 * row[f"mol/top_{k}"] for row in last], 2) for k in (10, 100, 1000)]
        cells = [_spread([8 * r["policy"]["reward"] for r in records[name]], 2)]
        cells += [_spread([row["eval/correlation"] for row in last], 2), _spread([row["eval/log_z"] for row in last], 1)]
        cells.append(f"{sum(r['cpu'] for r in records[name]) / len(last):,.0f}")
        states = f"{last[0]['states']:,.0f}"
        rows.append([name.removeprefix("fm: "), states, f"{last[0]['states'] / batch:,.0f}", *tops, *cells])
    return rows


def _law(beta: float) -> str:
    return f"R^{beta:g}"


def _spread(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    known = torch.tensor([x for x in values if x == x], dtype=torch.float64)
    if not len(known):
        return "–"
    spread = f" ± {known.std():,.{digits}f}" if len(known) > 1 else ""
    return f"{known.mean():,.{digits}f}{spread}"


def table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def points(rows: list[dict[str, float]]) -> list[Point]:
    """Top-100 against molecules visited."""
    found = [Point("", row["states"], 8 * row["mol/top_100"]) for row in rows]
    return [point for point in found if point.visited >= 100 and point.top == point.top]


def expected(draws: Draws, beta: float) -> list[Point]:
    """Top-100 of N independent draws: the mean of the best 100 / N of the distribution, copies counted."""
    p, w = 8 * draws.log_reward.exp(), draws.weights(beta)
    sizes = torch.logspace(2.7, 5, 16, dtype=torch.float64).tolist()
    return [Point("", n, best_share(p, w, 100 / n)) for n in sizes]


TAGS = ("states", "mol/top_10", "mol/top_100", "mol/top_1000", "mol/modes", "mol/scaffolds", "mol/reward", "mol/log_reward")
MORE = ("eval/correlation", "eval/log_z", "train/acceptance")


def write_csv(path: Path, curves: dict[str, Any]) -> None:
    """One line an evaluation of a seed; rewards are p/8."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "seed", *TAGS, *MORE])
        for name, seeds in curves.items():
            for seed, rows in enumerate(seeds):
                for row in rows:
                    values = [row.get(tag, float("nan")) for tag in (*TAGS, *MORE)]
                    writer.writerow([name, seed, *("" if x != x else f"{x:.6g}" for x in values)])


if __name__ == "__main__":
    guarded(lambda: print(f"tables: {tyro.cli(study)}"), program="gflownet")
