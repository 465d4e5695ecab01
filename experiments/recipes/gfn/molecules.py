"""Molecules from fragments: our own vocabulary with a chemist's reward; the sEH domain of Bengio et al. (NeurIPS 2021)."""

from experiments.recipes.gfn.recipe import GFNRecipe

NET = {"hidden": (64, 64, 64)}
SEH = {"reward": "seh", "beta": 10.0, "r_min": 0.0125, "mode_threshold": 0.875}  # (max(0.1, p)/8)^10; a mode has p > 7
FM = {"terminal_weight": 10.0, "smoothing": 2.5e-5}
PPO = {"batch_size": 256, "updates": 32, "minibatch": 16, "learning_rate": 1e-4, "entropy": 1e-6}
RECIPES = {
    "recipe": GFNRecipe(
        states=100_000,
        batch_size=64,
        common={**NET, "learning_rate": 2e-3, "log_z_rate": 1.0, "epsilon": 0.02, "replay": "prioritised"},
        hyperparameters={"fm": FM, "ppo": {**NET, **PPO}, "soft-pg": {**NET, "learning_rate": 1e-3}},
        note="TB: the best of seven settings of both learning rates and replay, by the mean reward of fresh molecules and the "
        "correlation, after 24,000 molecules of sEH (β = 10) and 16,000 of celecoxib similarity·QED (β = 32), one seed",
    ),
    "paper": GFNRecipe(
        states=1_000_000,
        batch_size=4,
        env_settings={**SEH, "convention": "paper2021"},
        common={**NET, "learning_rate": 5e-4, "epsilon": 0.05},
        hyperparameters={
            "fm": FM,
            "ppo": {**NET, **PPO},
            "mcmc": {"batch_size": 64},
            "uniform": {"batch_size": 64},
            "soft-pg": {**NET, "batch_size": 64},
        },
        note="Bengio et al. 2021: its blocks and proxy A, R = (max(0.1, p)/8)^10, Adam 5e-4, 4 trajectories, ε = 0.05, "
        "λ_T = 10; our net",
    ),
}
