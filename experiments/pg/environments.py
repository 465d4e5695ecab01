"""Names of environments of `pgrl`. Reading them loads no torch; `experiments.pg.build` makes them."""

from experiments.recipes.pg.mujoco import RECIPES

OWN = {
    "gridworld": "5×5 grid with walls, pits, slip and a goal, or your own map: gridworld:FILE",
    "garnet": "random finite MDP with 8 states and 3 actions, or another draw: garnet:SEED",
    "lqr": "linear-quadratic regulator, a double integrator",
}
MUJOCO = tuple(RECIPES)
