"""Bit sequences."""

from experiments.recipes.gfn.recipe import GFNRecipe

RECIPES = {
    "recipe": GFNRecipe(
        states=200_000,
        common={"hidden": (256, 256), "learning_rate": 1e-3},
        note="general settings, not tuned on this environment",
    ),
}
