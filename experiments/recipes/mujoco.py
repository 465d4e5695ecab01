"""The MuJoCo v5 tasks: 64×64 tanh, learnt standard deviation, discount 0.99 (Fatkhullin et al. 2023 used the v2 tasks)."""

from typing import Any

COMMON: dict[str, Any] = {
    "env_steps": 1_000_000,
    "batch_size": 1,
    "hidden": (64, 64),
    "baseline": "value",
    "log_std": 0.0,
    "note": "64×64 tanh and discount 0.99 as in Fatkhullin et al. 2023; one trajectory an iteration",
}

TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Reacher", "Ant", "Humanoid", "HumanoidStandup")
PENDULUMS = ("InvertedPendulum", "InvertedDoublePendulum")
RECIPES: dict[str, dict[str, Any]] = {f"{task}-v5": COMMON for task in TASKS + PENDULUMS}
RECIPES["HalfCheetah-v5"] = RECIPES["Swimmer-v5"] = {**COMMON, "horizon": 500}
