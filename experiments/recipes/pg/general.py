"""Any environment without a recipe of its own, and the classic-control tasks of Fatkhullin et al. 2023."""

from typing import Any

from experiments.recipes.pg.recipe import PGRecipe

GENERAL = PGRecipe(
    discount=0.99,
    env_steps=200_000,
    batch_size=4,
    hidden=(32, 32),
    baseline="value",
    hyperparameters={
        "reinforce": {"step_size": 0.01, "step_power": 0.0},
        "n-pg": {"step_size": 0.1, "step_power": 0.5},
        "n-mpg": {"step_size": 0.1, "step_power": 0.5, "eta": 0.3, "eta_power": 0.0},
        "n-pg-igt": {"step_size": 0.1, "step_power": 0.5, "eta": 0.3, "eta_power": 0.0},
        "harpg": {"step_size": 0.01, "step_power": 0.0, "eta": 0.3, "eta_power": 0.0},
        "n-harpg": {"step_size": 0.1, "step_power": 0.5, "eta": 0.3, "eta_power": 0.0},
        "sharp": {"step_size": 0.2},
        "adam-pg": {"step_size": 0.01},
    },
    note="general settings: tune step_size first",
)

FISHER = {"step_power": 0.5, "step_norm": "fisher"}
CONTROL: dict[str, Any] = {
    "env_steps": 200_000,
    "batch_size": 5,
    "output_scale": 0.01,
    "causal": True,
    "hyperparameters": {
        "reinforce": {"step_size": 3e-3, "step_power": 0.5},
        "n-pg": {**FISHER, "step_size": 0.1},
        "n-mpg": {**FISHER, "step_size": 0.2, "eta": 0.6, "eta_power": 0.0},
        "n-pg-igt": {**FISHER, "step_size": 0.1, "eta": 0.6, "eta_power": 0.0},
        "harpg": {"step_size": 3e-3, "step_power": 0.5, "eta": 0.6, "eta_power": 0.0},
        "n-harpg": {**FISHER, "step_size": 0.1, "eta": 0.8, "eta_power": 0.0},
        "sharp": {"step_size": 0.1, "step_norm": "fisher"},
        "adam-pg": {"step_size": 0.01},  # not tuned
    },
    "note": "network and discount of Fatkhullin et al. 2023; step size and η: search on CartPole (results/tuning.csv)",
}
RECIPES: dict[str, dict[str, Any]] = {"CartPole-v1": CONTROL, "Acrobot-v1": CONTROL}
