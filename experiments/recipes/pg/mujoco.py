"""The MuJoCo v5 tasks: 64×64 tanh, observations normalised by the first 10,000 steps, small first actions, clipped actions.

What all algorithms share on a task (horizon, discount, batch) follows from how many steps a gradient takes to stand out from
its noise (`pgrl snr`). Steps have a constant length in the norm of the Fisher information, whatever the task. The step size
and η were found on HalfCheetah: those of N-MPG, N-PG-IGT and N-HARPG by trials of 500,000 steps on four seeds, those of the
others by `experiments.studies.tuning` (results/tuning.csv); HARPG's is below the least that was searched, where all diverged.
No figure shows these seeds. Ant and Humanoid have settings by analogy, and learn little with them.
"""

from typing import Any

FISHER = {"step_power": 0.0, "step_norm": "fisher"}
COMMON: dict[str, Any] = {
    "discount": 0.99,
    "env_steps": 1_000_000,
    "batch_size": 10,
    "hidden": (64, 64),
    "baseline": "value",
    "causal": True,
    "log_std": -0.5,
    "output_scale": 0.01,
    "normalise_steps": 10_000,
    "bounds": "clip",
    "hyperparameters": {
        "reinforce": {"step_size": 3e-4, "step_power": 0.0},
        "n-pg": {**FISHER, "step_size": 0.2},
        "n-mpg": {**FISHER, "step_size": 0.1, "eta": 0.3, "eta_power": 0.0},
        "n-pg-igt": {**FISHER, "step_size": 0.1, "eta": 0.5, "eta_power": 0.0},
        "harpg": {"step_size": 1e-4, "step_power": 0.0, "eta": 0.5, "eta_power": 0.0},
        "n-harpg": {**FISHER, "step_size": 0.05, "eta": 0.5, "eta_power": 0.0},
        "sharp": {"step_size": 0.4, "step_norm": "fisher"},
        "adam-pg": {"step_size": 3e-3},  # not tuned
    },
    "settings": {"harpg": {"batch_size": 5}, "n-harpg": {"batch_size": 3}, "sharp": {"batch_size": 3}},  # two batches each
    "note": "64×64 tanh as in Fatkhullin et al. 2023; step size and η: HalfCheetah, other seeds (docs/mujoco.md)",
}

HALF = ("harpg", "n-harpg", "sharp")  # they sample two batches
FALLS: dict[str, Any] = {  # short episodes at first: more of them
    "discount": 0.995,
    "batch_size": 25,
    "settings": {algo: {"batch_size": 12} for algo in HALF},
}
TASKS: dict[str, dict[str, Any]] = {
    "HalfCheetah-v5": {"horizon": 200},
    "Hopper-v5": FALLS,
    "Walker2d-v5": {},
    "Swimmer-v5": {"discount": 0.999, "batch_size": 2, "hidden": (), "settings": {}},  # a linear policy
    "Reacher-v5": {"discount": 0.95, "batch_size": 20, "log_std": -1.0},
    "Ant-v5": {"horizon": 200},
    "Humanoid-v5": FALLS,
}
OTHERS = ("HumanoidStandup-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5")
RECIPES: dict[str, dict[str, Any]] = {
    **{task: {**COMMON, **own} for task, own in TASKS.items()},
    **{task: {**COMMON, "note": "settings of HalfCheetah with whole episodes; not tried on this task"} for task in OTHERS},
}
