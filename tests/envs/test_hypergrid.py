"""The hypergrid: exact thresholds, both conventions, modes as regions and as cells, rewards of one's own."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from envs.dag.check_dag import check_dag
from envs.dag.enumeration import enumerate_dag
from envs.dag.hypergrid import HyperGrid
from tests.dags import assert_same_journeys, torch_twin

LINE = [HyperGrid(1, H) for H in range(2, 301)]


def corners(s: int, H: int) -> tuple[bool, bool]:
    """Plateau and ring at one coordinate, in fractions."""
    u = abs(Fraction(s, H - 1) - Fraction(1, 2))
    return u > Fraction(1, 4), Fraction(3, 10) < u < Fraction(4, 10)


def test_thresholds_are_those_of_exact_fractions() -> None:
    for env in LINE:
        R = env.log_reward(torch.arange(env.height)[:, None]).exp()
        truth = [0.1 + 0.5 * plateau + 2.0 * ring for plateau, ring in (corners(s, env.height) for s in range(env.height))]
        assert R.tolist() == pytest.approx(truth, rel=1e-12), env.height


def test_modes_are_symmetric() -> None:
    for env in LINE:
        x = torch.arange(env.height)[:, None]
        assert torch.equal(env.log_reward(x), env.log_reward(env.height - 1 - x)), env.height
        modes = env.modes(x)
        assert torch.equal(modes >= 0, modes.flip(0) >= 0), env.height


@pytest.mark.parametrize("H", [16, 256])
def test_heights_that_floating_point_gets_wrong(H: int) -> None:
    """The open interval in float64, as the code of 2021 has it, is not symmetric here: the control of the tests above."""
    u = np.abs(np.linspace(-1, 1, H))
    ring = (u > 0.6) & (u < 0.8)
    exact = np.array([corners(s, H)[1] for s in range(H)])
    assert (ring != exact).any()
    assert np.array_equal(LINE[H - 2].modes(torch.arange(H)[:, None]).numpy() >= 0, exact)


@pytest.mark.parametrize("convention", ["stop", "paper2021"])
@pytest.mark.parametrize(("ndim", "H"), [(1, 2), (1, 5), (2, 2), (2, 6), (3, 4)])
def test_the_contract_and_the_counts(ndim: int, H: int, convention: str) -> None:
    env = HyperGrid(ndim, H, convention=convention)
    check_dag(env)
    found = enumerate_dag(env)
    objects = found.obs[found.objects]
    cells = torch.tensor(list(product(range(H), repeat=ndim)))
    assert torch.equal(objects[env.index(objects).argsort()], cells[env.reachable(cells)])
    expected = H**ndim if convention == "stop" else (H - 1) ** ndim + ndim * (H - 1) ** (ndim - 1)
    assert len(objects) == expected
    assert int(found.level.max()) == env.horizon


def test_other_rewards_and_larger_grids_keep_the_contract() -> None:
    check_dag(HyperGrid(2, 9, reward="cosine"))
    check_dag(HyperGrid(5, 64), episodes=4)
    check_dag(HyperGrid(5, 64, convention="paper2021"), episodes=4)


def test_regions_and_cells() -> None:
    small, large = HyperGrid(4, 8), HyperGrid(2, 20)
    assert (small.n_modes, large.n_modes) == (16, 4)
    for env, mode_cells in ((HyperGrid(2, 8), 4), (large, 4**2), (HyperGrid(3, 13), 2**3), (small, 16)):
        cells = torch.tensor(list(product(range(env.height), repeat=env.ndim)))
        modes = env.modes(cells)
        highest = env.log_reward(cells) > math.log(2.5)
        assert torch.equal(modes >= 0, highest)
        assert int(highest.sum()) == mode_cells
        assert torch.unique(modes[highest]).tolist() == list(range(env.n_modes))
        sides = cells[highest] * 2 > env.height - 1
        for mode in range(env.n_modes):
            assert len(torch.unique(sides[modes[highest] == mode], dim=0)) == 1
    assert HyperGrid(2, 3).n_modes == 0  # no coordinate lies in the ring
    assert HyperGrid(2, 8, reward="cosine").n_modes == 0


def test_the_cosine_reward() -> None:
    env = HyperGrid(2, 30, 0.01, reward="cosine")
    cells = np.array(list(product(range(30), repeat=2)))
    u = -1 + 2 * cells / 29
    truth = 0.01 + ((np.cos(50 * u) + 1) * np.exp(-0.5 * (5 * u) ** 2) / np.sqrt(2 * np.pi)).prod(1)
    assert np.allclose(env.log_reward(torch.from_numpy(cells)).exp().numpy(), truth, rtol=1e-12, atol=0)


def test_a_reward_of_one_s_own() -> None:
    env = HyperGrid(2, 3, reward=lambda cells: 1 + cells.sum(1))
    found = enumerate_dag(env)
    assert math.exp(found.log_z) == pytest.approx(sum(1 + a + b for a in range(3) for b in range(3)))
    assert env.n_modes == 0
    check_dag(env)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x: x.sum(1), r"R is 0.* at cell \[0, 0\], expected a positive number"),
        (lambda x: 1.0 - x[:, 1], r"R is 0.* at cell \[0, 1\], expected a positive number"),
        (lambda x: 2.0 - 3 * x[:, 0], r"R is -1.* at cell \[1, 0\], expected a positive number"),
        (lambda x: torch.where(x[:, 0] == 2, torch.nan, 1.0), r"R is nan at cell \[2, 0\], expected a positive number"),
        (lambda x: torch.where(x[:, 0] == 2, torch.inf, 1.0), r"R is inf at cell \[2, 0\], expected a positive number"),
        (lambda x: x + 1, r"returned shape \(9, 2\), expected \(9,\)"),
    ],
)
def test_rewards_without_a_logarithm(reward, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        HyperGrid(2, 3, reward=reward).log_reward(torch.tensor(list(product(range(3), repeat=2))))


@pytest.mark.parametrize("convention", ["stop", "paper2021"])
def test_numpy_and_torch_step_alike(convention: str) -> None:
    env = HyperGrid(3, 6, convention=convention)
    assert_same_journeys(env, torch_twin(env), episodes=200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 0}, "ndim is 0"),
        ({"height": 1}, "height is 1"),
        ({"ndim": 40, "height": 8}, "cannot be numbered"),
        ({"R0": 0.0}, "expected R0 > 0"),
        ({"R1": -1.0}, "expected R0 > 0"),
        ({"R1": math.nan}, "R0, R1, R2"),
        ({"R0": math.inf}, "R0, R1, R2"),
        ({"convention": "2021"}, "expected stop or paper2021"),
        ({"reward": "sines"}, "expected corners, cosine or a function"),
    ],
)
def test_wrong_numbers(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        HyperGrid(**arguments)
