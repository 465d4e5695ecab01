"""Learning curves of Stable-Baselines3 with its defaults: `python experiments/bench/peers/sb3_bench.py --out FILE.csv`.

PPO and A2C of stable-baselines3, TRPO of sb3-contrib, with `MlpPolicy` and no wrapper but their own. The value is the mean
undiscounted return of a few episodes of the mean action (`deterministic=True`, clipped at the bounds, as `predict` does),
before training and at equally spaced environment steps. An evaluation has an environment of its own and draws nothing from
the generators of training.

A row is written as soon as it is known. Seeds whose last row is at the budget are done and left as they are; a seed that was
killed loses its rows and starts again. One process writes a file at a time.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("env", "algo", "seed", "env_steps", "value", "library")
Row = dict[str, str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learning curves of Stable-Baselines3 with its default arguments.")
    parser.add_argument("--tasks", nargs="+", default=["HalfCheetah-v5"], help="Gymnasium ids")
    parser.add_argument("--algos", nargs="+", default=["ppo"], choices=["ppo", "a2c", "trpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--env-steps", type=int, default=1_000_000, help="budget of a seed")
    parser.add_argument("--evaluations", type=int, default=20, help="after the one before training")
    parser.add_argument("--episodes", type=int, default=5, help="of an evaluation")
    parser.add_argument("--out", type=Path, required=True, help=f"CSV with columns {', '.join(COLUMNS)}")
    args = parser.parse_args()
    if min(args.env_steps, args.evaluations, args.episodes) < 1 or args.evaluations > args.env_steps:
        parser.error("--env-steps, --evaluations and --episodes are at least 1, with no more evaluations than steps")
    return args


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    new = path.with_name(path.name + ".new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, path)


def append(path: Path, row: Row) -> None:
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
    print(", ".join(row.values()), file=sys.stderr, flush=True)


def mean_return(model: Any, env: Any, episodes: int, seed: int) -> float:
    """Mean undiscounted return of `episodes` episodes of the mean action."""
    total = 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        over = False
        while not over:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            over = terminated or truncated
    return total / episodes


def train(task: str, algo: str, seed: int, args: argparse.Namespace) -> None:
    """One seed from scratch, a row for each evaluation."""
    import gymnasium
    import sb3_contrib  # type: ignore[import-not-found]
    import stable_baselines3  # type: ignore[import-not-found]
    from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found]

    makers = {"ppo": stable_baselines3.PPO, "a2c": stable_baselines3.A2C, "trpo": sb3_contrib.TRPO}
    name, of = ("sb3-contrib", sb3_contrib) if algo == "trpo" else ("stable-baselines3", stable_baselines3)
    model, env = makers[algo]("MlpPolicy", task, seed=seed, device="cpu"), gymnasium.make(task)

    def evaluate(step: int) -> None:
        value = mean_return(model, env, args.episodes, 1_000_000 + seed)
        cells = (task, f"SB3 {algo.upper()}", str(seed), str(step), f"{value:.6g}", f"{name} {of.__version__}")
        append(args.out, dict(zip(COLUMNS, cells, strict=True)))

    class Evaluate(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            done, steps = self.num_timesteps, args.env_steps
            if done * args.evaluations // steps > (done - 1) * args.evaluations // steps:
                evaluate(done)
            return bool(done < steps)

    evaluate(0)
    model.learn(args.env_steps, callback=Evaluate())
    env.close()
    model.get_env().close()


def main(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        for algo in args.algos:
            for seed in args.seeds:
                rows, this = read(args.out), (task, f"SB3 {algo.upper()}", str(seed))
                reached = max((int(r["env_steps"]) for r in rows if (r["env"], r["algo"], r["seed"]) == this), default=-1)
                if reached >= args.env_steps:
                    print(f"{', '.join(this)}: done before", file=sys.stderr)
                    continue
                write(args.out, [r for r in rows if (r["env"], r["algo"], r["seed"]) != this])
                train(task, algo, seed, args)


if __name__ == "__main__":
    main(arguments())
