"""The hypergrid: 4-D, H = 8 as in Bengio et al. (NeurIPS 2021)."""

from experiments.recipes.gfn.recipe import GFNRecipe

NET = {"hidden": (256, 256)}
# 16 batches of 16 episodes, then 32 updates on 16 steps each; the entropy is that of the paper's figure
PPO = {"batch_size": 256, "updates": 32, "minibatch": 16, "clip": 0.2, "value_weight": 0.5, "entropy": 0.5}
RECIPES = {
    "recipe": GFNRecipe(
        states=1_000_000,
        common={**NET, "learning_rate": 3e-3, "final_rate": 0.02},
        hyperparameters={
            "fm": {"learning_rate": 1e-3},
            "ppo": {**PPO, "learning_rate": 1e-4},
            "soft-pg": {"learning_rate": 1e-3},
        },
        note="learning rate: the better of 0.001 and 0.003 after 48,000 objects on the 4-D grid, R0 = 0.01, one seed",
    ),
    "paper": GFNRecipe(
        states=320_000,
        env_settings={"convention": "paper2021"},
        common={**NET, "learning_rate": 1e-4},
        hyperparameters={"ppo": {**PPO, "learning_rate": 1e-4}},
        note="Bengio et al. 2021, its code: Adam 1e-4, 16 trajectories, 256×256 LeakyReLU, no exploration",
    ),
}
