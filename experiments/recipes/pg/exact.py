"""Environments with exact values: float64, one trajectory an iteration as in the theory."""

from dataclasses import replace

from experiments.recipes.pg.recipe import PGRecipe

MOMENTUM = ("n-mpg", "n-pg-igt", "n-harpg")
STEADY = {"eta": 0.3, "eta_power": 0.0}
EXACT = PGRecipe(discount=0.95, horizon=50, env_steps=60_000, baseline="value", causal=True, dtype="float64")
RECIPES = {
    "gridworld": replace(
        EXACT,
        hyperparameters={
            "reinforce": {"step_size": 2.0, "step_power": 0.25},
            "n-pg": {"step_size": 0.5, "step_power": 0.5},
            "n-mpg": {"step_size": 0.506, "step_power": 0.5, "eta": 0.725, "eta_power": 0.5},
            "n-pg-igt": {"step_size": 1.0, "step_power": 2 / 3, "eta": 0.9, "eta_power": 2 / 3},
            "harpg": {"step_size": 1.0, "step_power": 0.25, "eta": 0.5, "eta_power": 0.0},
            "n-harpg": {"step_size": 0.769, "step_power": 0.4, "eta": 0.44, "eta_power": 0.0},
            "sharp": {"step_size": 0.75},
            "adam-pg": {"step_size": 0.05},  # not tuned
        },
        note="random search on the exact gap after 60,000 steps: 64 settings, then the best 8 on seeds 0-9",
    ),
    "garnet": replace(
        EXACT,
        discount=0.9,
        hyperparameters={
            "reinforce": {"step_size": 0.5, "step_power": 0.25},
            "n-pg": {"step_size": 0.5, "step_power": 0.5},
            "harpg": {"step_size": 0.25, "step_power": 0.25, "eta": 0.5, "eta_power": 0.0},
            "sharp": {"step_size": 0.5},
            "adam-pg": {"step_size": 0.05},
            **{algo: {"step_size": 0.5, "step_power": 0.5, **STEADY} for algo in MOMENTUM},
        },
        note="a few trials",
    ),
    "lqr": replace(
        EXACT,
        log_std=-0.9,
        learn_std=False,
        bias=False,
        hyperparameters={
            "reinforce": {"step_size": 3e-4, "step_power": 0.25},
            "n-pg": {"step_size": 0.02, "step_power": 0.5},
            "harpg": {"step_size": 1e-4, "step_power": 0.0, **STEADY},
            "sharp": {"step_size": 0.05},
            "adam-pg": {"step_size": 0.01},
            **{algo: {"step_size": 0.05, "step_power": 0.5, **STEADY} for algo in MOMENTUM},
        },
        note="a few trials; noise 0.4 held fixed: only the gain is learned",
    ),
}
