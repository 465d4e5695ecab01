"""Worlds with exact values: small steps in float64, one trajectory an iteration as in the theory."""

from experiments.recipes import Recipe

RECIPES = {
    "gridworld": Recipe(
        discount=0.95,
        horizon=50,
        env_steps=100_000,
        dtype="float64",
        knobs={
            "reinforce": {"step_size": 2.0},
            "n-pg": {"step_size": 0.5},
            "n-mpg": {"step_size": 1.0},
            "n-pg-igt": {"step_size": 1.0},
            "harpg": {"step_size": 1.0},
            "n-harpg": {"step_size": 1.0},
            "sharp": {"step_size": 0.5},
        },
        note="step sizes by a grid over powers of two, ten seeds, area under the exact gap",
    ),
    "garnet": Recipe(
        discount=0.9,
        horizon=50,
        env_steps=100_000,
        dtype="float64",
        knobs={
            "reinforce": {"step_size": 0.5},
            "n-pg": {"step_size": 0.5},
            "n-mpg": {"step_size": 1.0},
            "n-pg-igt": {"step_size": 1.0},
            "harpg": {"step_size": 0.25},
            "n-harpg": {"step_size": 1.0},
            "sharp": {"step_size": 0.5},
        },
        note="step sizes as on the gridworld",
    ),
    "lqr": Recipe(
        discount=0.95,
        horizon=50,
        env_steps=100_000,
        dtype="float64",
        log_std=-0.9,
        learn_std=False,
        bias=False,
        knobs={
            "reinforce": {"step_size": 0.005},
            "n-pg": {"step_size": 0.1},
            "n-mpg": {"step_size": 0.25},
            "n-pg-igt": {"step_size": 0.25},
            "harpg": {"step_size": 0.005},
            "n-harpg": {"step_size": 0.25},
            "sharp": {"step_size": 0.1},
        },
        note="noise 0.4 held fixed: the gain is what is learnt",
    ),
}
