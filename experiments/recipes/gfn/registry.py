"""The recipe of each environment of `gflownet`."""

from __future__ import annotations

from experiments.cli.errors import UserError
from experiments.recipes.gfn import bits, hypergrid, molecules, sets
from experiments.recipes.gfn.recipe import GFNRecipe


def recipe_for(env: str, preset: str = "recipe") -> GFNRecipe:
    """The recipe of an environment, or the general one. UserError for an unknown preset."""
    general = {"recipe": GFNRecipe(states=200_000, note="general settings: tune learning_rate first")}
    known = {"hypergrid": hypergrid.RECIPES, "bits": bits.RECIPES, "sets": sets.RECIPES, "molecules": molecules.RECIPES}.get(
        env, general
    )
    if preset not in known:
        raise UserError(f"--preset is {preset!r}, expected {' or '.join(known)}")
    return known[preset]
