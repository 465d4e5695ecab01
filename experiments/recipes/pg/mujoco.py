"""The MuJoCo v5 tasks: 64×64 tanh, learned standard deviation (Fatkhullin et al. 2023 used the v2 tasks).

One trajectory says little about thousands of parameters (on HalfCheetah the noise is some twenty times the gradient), so steps
are short and constant, and discount 0.95 keeps the noise of far rewards out.
"""

from typing import Any

CONSTANT = {"step_size": 0.01, "step_power": 0.0}
COMMON: dict[str, Any] = {
    "discount": 0.95,
    "env_steps": 1_000_000,
    "batch_size": 1,
    "hidden": (64, 64),
    "baseline": "value",
    "causal": True,
    "hyperparameters": {
        "reinforce": {"step_size": 3e-5, "step_power": 0.0},
        "n-pg": CONSTANT,
        "n-mpg": {**CONSTANT, "eta": 0.1, "eta_power": 0.0},
        "n-pg-igt": {**CONSTANT, "eta": 0.1, "eta_power": 0.0},
        "harpg": {"step_size": 3e-5, "step_power": 0.0, "eta": 0.2, "eta_power": 0.0},
        "n-harpg": {**CONSTANT, "eta": 0.2, "eta_power": 0.0},
        "sharp": {"step_size": 0.2},
    },
    "note": "64×64 tanh as in Fatkhullin et al. 2023, one trajectory an iteration; tuned by a few short trials on HalfCheetah",
}

TASKS = ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Reacher", "Ant", "Humanoid", "HumanoidStandup")
PENDULUMS = ("InvertedPendulum", "InvertedDoublePendulum")
RECIPES: dict[str, dict[str, Any]] = {f"{task}-v5": COMMON for task in TASKS + PENDULUMS}
RECIPES["HalfCheetah-v5"] = RECIPES["Swimmer-v5"] = {**COMMON, "horizon": 500}
