"""Registers our exact environments with Gymnasium: pgrl/GridWorld-v0, pgrl/Garnet-v0, pgrl/LQR-v0.

Gymnasium 1.0 and later load no plugins, so this module must be imported. It registers when imported, and `gymnasium.make` can
import it:

    gymnasium.make("envs.registration:pgrl/GridWorld-v0", slip=0.2)

An environment never changes under its id: a change gets a new version. torch is imported only when an environment is made.
"""

from __future__ import annotations

import gymnasium

ENTRY_POINTS = {
    "pgrl/GridWorld-v0": "envs.mdp.gymnasium_export:make_gridworld",
    "pgrl/Garnet-v0": "envs.mdp.gymnasium_export:make_garnet",
    "pgrl/LQR-v0": "envs.mdp.gymnasium_export:make_lqr",
}


def register_envs() -> None:
    """Register the environments that are not registered yet."""
    for name, entry_point in ENTRY_POINTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point)


register_envs()
