"""Recipes: names stand for different runs, and what sets a name apart is not overridden."""

import json
from typing import Any

import pytest

from experiments.gfn.config import defaults as gfn_defaults
from experiments.gfn.environments import ENVIRONMENTS
from experiments.pg.config import defaults, make_agent
from experiments.recipes.gfn.registry import recipe_for
from experiments.recipes.pg import exact, general, mujoco
from gflownet.registry import register as methods
from pgrl.registry import register

PG_ENVS = [*exact.RECIPES, *general.RECIPES, *mujoco.RECIPES, "Pendulum-v1"]


@pytest.mark.parametrize("preset", ["recipe", "theorem", "constant"])
@pytest.mark.parametrize("env", PG_ENVS)
def test_no_two_agents_are_the_same_run(env: str, preset: str) -> None:
    runs = {name: repr(make_agent(name, {"step_size": 0.1, **defaults(name, env, preset)[1]})) for name in register()}
    assert len(set(runs.values())) == len(runs), runs
    for name, entry in register().items():
        assert entry.preset.items() <= defaults(name, env, preset)[1].items()


def _presets(env: str) -> list[str]:
    found = []
    for preset in ("recipe", "paper"):
        try:
            recipe_for(env, preset)
            found.append(preset)
        except Exception:
            continue
    return found


@pytest.mark.parametrize(("env", "preset"), [(env, preset) for env in ENVIRONMENTS for preset in _presets(env)])
def test_no_two_objectives_are_the_same_run(env: str, preset: str) -> None:
    def run(name: str, entry: Any) -> str:
        train, choice, _ = gfn_defaults(name, env, preset)
        resolved = repr(entry.make(**(choice.objective if entry.objective else choice.hyperparameters)))
        return json.dumps([resolved, choice.hyperparameters, repr(train)], default=str)

    runs = {name: run(name, entry) for name, entry in methods().items()}
    assert len(set(runs.values())) == len(runs), runs
