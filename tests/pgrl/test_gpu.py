"""A GPU gives the results of the CPU: every agent on the gridworld, one with a network on LQR; a run resumes on its device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cli.pgrl import main
from experiments.pg.config import as_config, defaults, from_config, make_agent, make_problem
from experiments.pg.train import PGTraining, step
from experiments.run.checkpoint import load_latest
from pgrl.registry import register
from tests.devices import each_device


def after(algo: str, env: str, device: str, more: dict[str, Any] | None = None) -> Any:
    """θ of three seeds after five iterations in float64, and the last episodes' returns."""
    settings, hyperparameters, _ = defaults(algo, env)
    config = as_config(algo, settings, hyperparameters, device) | {"seeds": 3, "dtype": "float64", "batch_size": 2}
    config |= more or {}
    name, settings, hyperparameters = from_config(config)
    agent, problem = make_agent(name, hyperparameters), make_problem(settings, device)
    training = PGTraining.begin(agent, problem)
    for _ in range(5):
        training, metrics, _ = step(problem, agent, training, 10**6)
    return training.state.theta.cpu(), torch.as_tensor(metrics["rollout/return"]).cpu()


@each_device
@pytest.mark.parametrize("algo", list(register()))
def test_agents_on_the_gridworld(algo: str, device: str) -> None:
    (theta, returns), (there, others) = (after(algo, "gridworld", d) for d in ("cpu", device))
    assert torch.allclose(theta, there, rtol=1e-8, atol=1e-10)
    assert torch.allclose(returns, others, rtol=1e-8, atol=1e-10)
    assert float(theta.abs().max()) > 0


@each_device
def test_a_gaussian_policy_with_a_network_on_lqr(device: str) -> None:
    (theta, returns), (there, others) = (after("n-harpg", "lqr", d, {"hidden": (8,)}) for d in ("cpu", device))
    assert torch.allclose(theta, there, rtol=1e-8, atol=1e-10)
    assert torch.allclose(returns, others, rtol=1e-8, atol=1e-10)


@each_device
def test_a_value_network_and_a_q_for_each_episode(device: str) -> None:
    more: dict[str, Any] = {"baseline": "value-net", "gae_lambda": 0.9, "undiscounted_states": True}
    more["hyperparameters"] = {"step_size": 0.1, "hvp_batch_size": 3, "q_per_episode": True, "clip_correction": 1.0}
    (theta, returns), (there, others) = (after("n-harpg", "gridworld", d, more) for d in ("cpu", device))
    assert torch.allclose(theta, there, rtol=1e-8, atol=1e-10)
    assert torch.allclose(returns, others, rtol=1e-8, atol=1e-10)


@each_device
@pytest.mark.usefixtures("one_thread")
def test_a_run_is_resumed_on_its_device(device: str, tmp_path: Path) -> None:
    command = ["train", "n-harpg", "--env", "gridworld", "--seeds", "3", "--env-steps", "2000", "--checkpoints", "4", "--quiet"]
    for name in ("whole", "stopped"):
        main([*command, "--device", device, "--out", str(tmp_path / name)])
    for later in sorted((tmp_path / "stopped" / "checkpoints").iterdir())[1:]:  # as if it had been killed there
        later.rename(tmp_path / later.name)
    main(["resume", str(tmp_path / "stopped"), "--quiet"])
    whole, resumed = (load_latest(tmp_path / name / "checkpoints")[0]["state/theta"] for name in ("whole", "stopped"))
    assert torch.equal(whole, resumed) if device == "cpu" else torch.allclose(whole, resumed, rtol=1e-9, atol=1e-11)
