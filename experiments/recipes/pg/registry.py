"""The recipe of each environment of `pgrl`."""

from __future__ import annotations

from dataclasses import replace

from experiments.recipes.pg import exact, general, mujoco
from experiments.recipes.pg.recipe import PGRecipe


def recipe_for(env: str) -> PGRecipe:
    """The recipe of an environment, or the general one."""
    name = env.partition(":")[0]
    if name in exact.RECIPES:
        return exact.RECIPES[name]
    for table in (mujoco.RECIPES, general.RECIPES):
        if env in table:
            return replace(general.GENERAL, **table[env])
    return general.GENERAL
