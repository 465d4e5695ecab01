"""Our exact worlds under Gymnasium ids: pgrl/GridWorld-v0, pgrl/Garnet-v0, pgrl/LQR-v0.

Gymnasium 1.0 and later load no plugins, so somebody has to import this module. It registers when imported, and
`gymnasium.make` can do that itself:

    gymnasium.make("envs.registration:pgrl/GridWorld-v0", slip=0.2)

A world is never changed under its id: a change gets a new version. Nothing heavy is imported before a world is made.
"""

from __future__ import annotations

import gymnasium

ENTRY_POINTS = {
    "pgrl/GridWorld-v0": "envs.mdp.gymnasium_export:make_gridworld",
    "pgrl/Garnet-v0": "envs.mdp.gymnasium_export:make_garnet",
    "pgrl/LQR-v0": "envs.mdp.gymnasium_export:make_lqr",
}


def register_envs() -> None:
    """Registers the worlds that are not registered yet."""
    for name, entry_point in ENTRY_POINTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point)


register_envs()
