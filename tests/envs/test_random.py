"""Counter-based random numbers: equal to SplitMix64, with the right distribution, and a function of the key alone."""

import pickle

import numpy as np
import pytest
import torch

from envs.random import GOLDEN, Rng, mix


def test_splitmix64_reference() -> None:
    """The published first outputs for seed 1234567."""
    start = torch.tensor(1234567)
    outputs = [int(mix(start + torch.tensor(i) * GOLDEN)) % 2**64 for i in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_row_alone_is_the_row_in_company_and_blocks_are_steps() -> None:
    many, one = Rng.of_seeds(range(100)).drawn(16, False), Rng.of_seeds([7])
    for t in (0, 1, 15, 16, 40, 3):
        assert torch.equal(many.at(t).uniform(3)[7:8], one.at(t).uniform(3))
        assert torch.allclose(many.normal(2)[7:8], one.normal(2))


def test_draws_folds_and_rows_differ() -> None:
    rng = Rng.of_seeds(range(50))
    draws = [rng.at(0).uniform(), rng.uniform(), rng.at(1).uniform(), rng.fold(0).uniform(), rng.fold(1).uniform()]
    flat = torch.cat(draws)
    assert len(flat.unique()) == len(flat)
    assert len(rng.spawn(20).key.unique()) == 1000
    assert torch.equal(rng.at(0).uniform(), draws[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_and_range(dtype: torch.dtype) -> None:
    rng = Rng.of_seeds(range(1000)).drawn(200, False)
    rng.dtype = dtype
    u, z = rng.uniform(5), rng.normal(5)
    block_u = torch.stack([rng.at(t).uniform(5) for t in range(200)]).double()
    block_z = torch.stack([(rng.at(t).uniform(5), rng.normal(5))[1] for t in range(200)]).double()
    n = block_u.numel()
    assert u.dtype == z.dtype == dtype
    assert 0 < float(block_u.min()) < float(block_u.max()) < 1
    for sample, mean, std in (
        (block_u, 0.5, 12**-0.5),
        (block_z, 0.0, 1.0),
        (block_z**2, 1.0, 2**0.5),
        (block_z**3, 0.0, 15**0.5),
    ):
        assert abs(float(sample.mean()) - mean) / std * n**0.5 < 4.5
    # neighbours in time, in rows and in slots are uncorrelated
    for a, b in ((block_z[1:], block_z[:-1]), (block_z[:, 1:], block_z[:, :-1]), (block_z[..., 1:], block_z[..., :-1])):
        assert abs(float((a * b).mean())) * a.numel() ** 0.5 < 4.5


def test_numpy_gives_the_same_numbers() -> None:
    a, b = Rng.of_seeds(range(5)), Rng.of_seeds(range(5)).drawn(8, True)
    numbers = b.at(3).normal(2)
    assert isinstance(numbers, np.ndarray)
    assert np.array_equal(a.at(3).normal(2).numpy(), numbers)
    assert np.array_equal(a.integers().numpy(), b.integers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_blocks_on_the_cpu_have_the_bits_of_those_in_torch(kind: str, dtype: torch.dtype) -> None:
    rng = Rng.of_seeds(range(7)).drawn(33, False)
    rng.dtype = dtype
    for shape in ((), (5,), (2, 3)):
        block, reference = rng.at(64)._block(kind, shape), rng._block_in_torch(kind, shape)
        assert block.dtype == dtype
        assert torch.equal(block, reference)


def test_a_scale_is_the_standard_deviation() -> None:
    rng, again = Rng.of_seeds(range(5)).drawn(8, True), Rng.of_seeds(range(5)).drawn(8, True)
    wide, narrow = np.full((5, 3), 7.0, np.float32), np.full((5, 3), 0.1, np.float32)
    for scale in (wide, narrow, wide):
        assert np.array_equal(rng.at(2).normal(3, scale=scale), scale * again.at(2).normal(3))
    assert np.array_equal(rng.at(3).normal(3), again.at(3).normal(3))


def test_integers_are_seeds_and_move_the_draw_on() -> None:
    rng = Rng.of_seeds(range(1000))
    first, second = rng.integers(), rng.integers()
    assert int(first.min()) >= 0
    assert int(first.max()) < 2**31
    assert not torch.equal(first, second)


def test_streams_travel() -> None:
    rng = Rng.of_seeds(range(5)).drawn(8, True)
    assert np.array_equal(pickle.loads(pickle.dumps(rng)).at(2).uniform(3), rng.at(2).uniform(3))
