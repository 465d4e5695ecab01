"""Policy-gradient agents as pure functions: policies, estimators, schedules, agents.

Importing it registers our environments with Gymnasium: `gymnasium.make("pgrl/GridWorld-v0")`.
"""

import envs.registration  # noqa: F401  Gymnasium loads no plugins since 1.0
