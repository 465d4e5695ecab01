"""Bit sequences: trees and DAGs, modes, distances, the test set."""

import math
from itertools import product

import pytest
import torch

from envs.dag.bits import BLOCKS, Bits
from envs.dag.check_dag import check_dag
from envs.dag.enumeration import enumerate_dag
from tests.dags import assert_same_journeys, torch_twin


def strings(env: Bits, *texts: str) -> torch.Tensor:
    return env.tokens(torch.tensor([[int(bit) for bit in text] for text in texts]))


@pytest.mark.parametrize("order", ["append", "any"])
@pytest.mark.parametrize(("length", "word", "n_modes"), [(8, 2, 5), (6, 3, 4), (5, 1, 2), (1, 1, 2), (4, 4, 16)])
def test_the_contract_and_the_counts(length: int, word: int, n_modes: int, order: str) -> None:
    env = Bits(length, word, n_modes, order=order)
    check_dag(env)
    found = enumerate_dag(env)
    assert len(found) == env.n_states
    assert sorted(env.index(found.obs).tolist()) == list(range(env.n_states))
    assert env.describe(found.obs[found.objects]) == ["".join(x) for x in product("01", repeat=length)]
    positions = length // word
    edges = 2**word * (2 ** (word * positions) - 1) // (2**word - 1)
    assert len(found.parent) == (edges if order == "append" else positions * 2**word * (2**word + 1) ** (positions - 1))
    assert math.exp(float(found.log_paths()[-1])) == pytest.approx(1 if order == "append" else math.factorial(positions))


@pytest.mark.parametrize("order", ["append", "any"])
def test_the_paper_s_size_keeps_the_contract_and_has_no_number(order: str) -> None:
    env = Bits(120, 4, order=order)
    check_dag(env, episodes=2)
    with pytest.raises(ValueError, match="cannot be numbered"):
        env.index(torch.full((1, 30), 16))
    with pytest.raises(ValueError, match="use the sampled metrics"):
        enumerate_dag(env)


def test_modes_are_distinct_concatenated_blocks() -> None:
    env = Bits(120, 4, order="any")
    texts = env.describe(env.tokens(env.mode_bits))
    assert len(set(texts)) == env.n_modes == 60
    assert all(text[i : i + 8] in BLOCKS for text in texts for i in range(0, 120, 8))
    assert sorted(Bits(8, 2, 5).describe(Bits(8, 2, 5).tokens(Bits(8, 2, 5).mode_bits))) == sorted(BLOCKS)
    assert len(torch.unique(Bits(6, 2, 64).mode_bits, dim=0)) == 64
    assert torch.equal(Bits(seed=2).mode_bits, Bits(seed=2).mode_bits)
    assert not torch.equal(Bits(seed=2).mode_bits, Bits(seed=3).mode_bits)
    assert Bits(6, 2, 2, mode_blocks=("011", "100")).mode_bits.tolist() in [
        [list(a), list(b)] for a in product((0, 1), repeat=6) for b in product((0, 1), repeat=6)
    ]


def test_distances_and_rewards_by_hand() -> None:
    env = Bits(8, 2, 5, beta=4.0, radius=1)
    texts = env.describe(env.tokens(env.mode_bits))
    x = strings(env, "00000000", "10000000", "11000011", "01111110", "00010111")
    truth = [[sum(a != b for a, b in zip(s, mode, strict=True)) for mode in texts] for s in env.describe(x)]
    assert env.distances(x).tolist() == truth
    assert env.log_reward(x).tolist() == pytest.approx([-4 * min(row) / 8 for row in truth])
    zero = texts.index("00000000")
    assert env.modes(x).tolist() == [zero, zero, -1, -1, texts.index("00001111") if min(truth[4]) <= 1 else -1]


def test_of_an_unfinished_string_what_is_written_counts() -> None:
    env = Bits(8, 2, 5, order="any", beta=8.0)
    obs = torch.tensor([[4, 4, 4, 4], [1, 2, 4, 0], [3, 4, 4, 4]])
    assert env.describe(obs) == ["________", "0110__00", "11______"]
    assert env.log_reward_partial(obs).tolist() == pytest.approx([0.0, -2.0, 0.0])  # 0110__00: two bits from 00000000


def test_the_test_set_flips_as_many_bits_as_it_says() -> None:
    env = Bits(16, 4, 7, seed=5)
    x = env.test_set()
    assert x.shape == (7 * 16, 4)
    modes = env.mode_bits.repeat_interleave(16, 0)
    assert (env.bits(x) != modes).sum(1).tolist() == list(range(16)) * 7
    assert torch.equal(x, Bits(16, 4, 7, seed=5).test_set())
    assert (env.bits(x) != modes).double().mean(0).std() < 0.1  # no position is flipped more than others


@pytest.mark.parametrize("order", ["append", "any"])
def test_numpy_and_torch_step_alike(order: str) -> None:
    assert_same_journeys(Bits(12, 2, 4, order=order), torch_twin(Bits(12, 2, 4, order=order)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 7, "word": 2}, "length is 7 and word is 2"),
        ({"length": 8, "word": 0}, "word is 0"),
        ({"length": 8, "n_modes": 6}, "n_modes is 6, expected between 1 and 5"),
        ({"length": 3, "n_modes": 9}, "n_modes is 9, expected between 1 and 8"),
        ({"order": "prepend"}, "order is 'prepend', expected append or any"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"mode_blocks": ("01", "1")}, "mode_blocks are"),
        ({"mode_blocks": ("02", "11")}, "mode_blocks are"),
        ({"mode_blocks": ()}, "mode_blocks are"),
    ],
)
def test_wrong_numbers(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        Bits(**arguments)
