"""Finite MDPs: what is sampled follows the tables; maps; wrong tables refused."""

import pytest
import torch

from envs.core import Trajectories
from envs.mdp.tabular import FiniteMDP, garnet, gridworld
from envs.random import Rng
from envs.rollout import rollout
from pgrl.policy import policy_for
from tests.worlds import DISCOUNT, THETA, exact_mdp, table_policy, tiny_mdp


def play(mdp: FiniteMDP, theta: torch.Tensor, episodes: int, seed: int = 0) -> Trajectories:
    rng = Rng.of_seeds([seed]).spawn(episodes)
    rng.dtype = torch.float64
    return rollout(mdp, table_policy(mdp).actor(theta, episodes, mdp.backend), rng)


def test_frequencies_are_the_tables() -> None:
    mdp, n = tiny_mdp(), 200_000
    tau = play(mdp, THETA, n)
    pi = torch.softmax(THETA.reshape(2, 2), 1)
    start = tau.obs[0].bincount(minlength=2) / n
    assert torch.allclose(start, mdp.start.float(), atol=4.5 * 0.5 / n**0.5)
    for s in range(2):
        here = tau.obs[0] == s
        share = tau.action[0][here].bincount(minlength=2) / here.sum()
        assert torch.allclose(share, pi[s].float(), atol=4.5 * 0.5 / int(here.sum()) ** 0.5)
        for a in range(2):
            moved = tau.obs[1][here & (tau.action[0] == a)]
            share = moved.bincount(minlength=2) / len(moved)
            assert torch.allclose(share, mdp.transition[s, a].float(), atol=4.5 * 0.5 / len(moved) ** 0.5)


@pytest.mark.parametrize(
    "mdp", [tiny_mdp(), gridworld(horizon=20), garnet(6, 3, 4, seed=2, horizon=20)], ids=["tiny", "grid", "garnet"]
)
def test_mean_return_is_the_exact_value(mdp: FiniteMDP) -> None:
    policy = policy_for(mdp, dtype=torch.float64)
    theta = torch.randn(1, policy.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    returns = play(mdp, theta, 50_000).returns(DISCOUNT)
    exact = float(exact_mdp(mdp, policy).J(theta[0], mdp.horizon))
    assert abs(float(returns.mean()) - exact) / float(returns.std() / 50_000**0.5) < 4.5


def test_terminal_states_end_episodes_and_pay_nothing_more() -> None:
    mdp = gridworld("S.G", slip=0.0, horizon=10)
    theta = torch.full((1, 12), -50.0, dtype=torch.float64)
    theta[0, 1::4] = 50.0  # always right
    tau = play(mdp, theta, 3)
    assert tau.mask.sum(0).tolist() == [2, 2, 2]
    assert tau.terminated.all()
    assert not tau.truncated.any()
    assert tau.returns().tolist() == [1.0, 1.0, 1.0]


def test_the_horizon_cuts_without_terminating() -> None:
    tau = play(gridworld("S..........G", horizon=4), torch.zeros(1, 48, dtype=torch.float64), 5)
    assert tau.mask.shape[0] == 4
    assert tau.mask.all()
    assert not tau.terminated.any()


def test_maps_read_walls_slip_and_starts() -> None:
    mdp = gridworld("S#G\n..P", slip=0.2)
    assert mdp.n_states == 5
    assert mdp.start.tolist() == [1, 0, 0, 0, 0]
    right = mdp.transition[0, 1]  # a wall: stays, unless it slips down; up is the edge
    assert right.tolist() == pytest.approx([0.9, 0, 0.1, 0, 0])
    assert mdp.terminal.tolist() == [False, True, False, False, True]
    assert float(mdp.reward[3, 1, 4]) == -1.0
    free = gridworld("..\n.G")
    assert free.start.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [("..\n.", "line 2 has 1 cells"), ("..\n.x", "line 2, column 2: got 'x'"), ("GP", "no cell to start from")],
)
def test_wrong_maps(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gridworld(text)


def test_wrong_tables() -> None:
    P, r, rho = torch.full((2, 2, 2), 0.5), torch.zeros(2, 2), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="each row of transition"):
        FiniteMDP(P * 0.9, r, rho, horizon=3)
    with pytest.raises(ValueError, match="reward has shape"):
        FiniteMDP(P, torch.zeros(3, 2), rho, horizon=3)
    with pytest.raises(ValueError, match="horizon is 0"):
        FiniteMDP(P, r, rho, horizon=0)
    with pytest.raises(ValueError, match="branching"):
        garnet(3, 2, 5)
    with pytest.raises(ValueError, match="slip"):
        gridworld(slip=1.5)


def test_garnet_is_its_seed() -> None:
    assert torch.equal(garnet(seed=3).transition, garnet(seed=3).transition)
    assert not torch.equal(garnet(seed=3).transition, garnet(seed=4).transition)
    assert ((garnet(8, 3, 2).transition > 0).sum(-1) == 2).all()


def test_trajectories_cut_and_joined() -> None:
    tau = play(gridworld(), torch.zeros(1, 88, dtype=torch.float64), 20)
    again = Trajectories.cat([tau.rows(0, 7), tau.rows(7, 20)])
    assert torch.equal(again.mask, tau.mask[: len(again.mask)])
    assert torch.equal(again.returns(0.9), tau.returns(0.9))
    assert tau.steps == int(tau.mask.sum())
