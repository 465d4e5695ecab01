"""Sets: number of states, partition function as an elementary symmetric polynomial, stepping in numpy and torch."""

import math

import pytest
import torch

from envs.dag.check_dag import check_dag
from envs.dag.enumeration import enumerate_dag
from envs.dag.sets import Sets
from tests.dags import assert_same_journeys, torch_twin


@pytest.mark.parametrize(("items", "size"), [(7, 3), (5, 5), (1, 1), (6, 1)])
def test_the_contract_and_the_counts(items: int, size: int) -> None:
    env = Sets(items, size)
    check_dag(env)
    found = enumerate_dag(env)
    assert len(found) == env.n_states == sum(math.comb(items, k) for k in range(size + 1))
    assert sorted(env.index(found.obs).tolist()) == list(range(env.n_states))
    assert len(found.objects) == math.comb(items, size)


def test_the_paper_s_sets_are_too_many_to_enumerate_and_keep_the_contract() -> None:
    check_dag(Sets(30, 20), episodes=4)
    with pytest.raises(ValueError, match="cannot be numbered, expected fewer than 2"):
        Sets(100, 80).index(torch.zeros(1, 100, dtype=torch.int64))


def test_z_is_an_elementary_symmetric_polynomial() -> None:
    energies = [0.3, -0.7, 0.1, 0.9, -0.2, 0.0]
    found = enumerate_dag(Sets(6, 3, energies))
    poly = [1.0]
    for e in energies:
        poly = [a + math.exp(-e) * b for a, b in zip([*poly, 0.0], [0.0, *poly], strict=True)]
    assert math.exp(found.log_z) == pytest.approx(poly[3], rel=1e-12)


def test_describe_and_reward() -> None:
    env = Sets(8, 3, torch.arange(8.0) / 10)
    x = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0], [0] * 8])
    assert env.describe(x) == ["{1,4,7}", "{2}", "{}"]
    assert env.log_reward_partial(x).tolist() == pytest.approx([-1.2, -0.2, 0.0])
    assert env.log_reward(x[:1]).dtype == torch.float64


def test_energies_are_their_seed() -> None:
    assert torch.equal(Sets(9, 2, seed=3).energies, Sets(9, 2, seed=3).energies)
    assert not torch.equal(Sets(9, 2, seed=3).energies, Sets(9, 2, seed=4).energies)
    assert Sets(500, 2, scale=0.1).energies.abs().max() <= 0.1


def test_numpy_and_torch_step_alike() -> None:
    assert_same_journeys(Sets(9, 4), torch_twin(Sets(9, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 3, "size": 4}, "size is 4"),
        ({"items": 3, "size": 0}, "size is 0"),
        ({"items": 3, "size": 2, "scale": -1.0}, "scale is -1.0"),
        ({"items": 3, "size": 2, "energies": [1.0, 2.0]}, "energies are"),
        ({"items": 2, "size": 2, "energies": [1.0, math.nan]}, "energies are"),
    ],
)
def test_wrong_numbers(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        Sets(**arguments)
