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

RECIPES: dict[str, dict[str, Any]] = dict.fromkeys(
    (
        "HalfCheetah-v5",
        "Hopper-v5",
        "Walker2d-v5",
        "Swimmer-v5",
        "Reacher-v5",
        "Ant-v5",
        "Humanoid-v5",
        "HumanoidStandup-v5",
        "InvertedPendulum-v5",
        "InvertedDoublePendulum-v5",
    ),
    COMMON,
)
RECIPES["HalfCheetah-v5"] = {**COMMON, "horizon": 500}
RECIPES["Swimmer-v5"] = {**COMMON, "horizon": 500}
