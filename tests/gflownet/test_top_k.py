"""`TopK` against a dictionary that is sorted after every object; the division into batches makes no difference."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from gflownet.molecules.top_k import TopK

Kept = list[tuple[int, float, int]]  # key, log-reward, visited at


def slowly(keys: list[int], worth: dict[int, float], size: int) -> Kept:
    """One object after another, by Python's own sort."""
    kept: Kept = []
    for at, key in enumerate(keys, 1):
        if key not in {k for k, *_ in kept} and (len(kept) < size or worth[key] > kept[-1][1]):
            kept = sorted([*kept, (key, worth[key], at)], key=lambda entry: (-entry[1], entry[2]))[:size]
    return kept


def of_keys(keys: Tensor) -> Tensor:
    """An observation [S, n, 2, 3] that tells its key."""
    return torch.stack([keys, keys % 7, keys % 5, keys * 0, keys % 3, keys % 2], -1).view(*keys.shape, 2, 3)


def listed(top_k: TopK, seed: int) -> Kept:
    there = top_k.there[seed]
    assert bool(there.sort(descending=True).values.eq(there).all()), "an empty place before a full one"
    columns = (top_k.key[seed][there], top_k.log_reward[seed][there], top_k.visited_at[seed][there])
    return list(zip(*(x.tolist() for x in columns), strict=True))


@pytest.mark.parametrize("size", [1, 5, 40])
def test_it_keeps_what_sorting_everything_would_keep(size: int) -> None:
    draw = random.Random(size)
    # few keys, fewer rewards: ties and copies everywhere, keys near the ends of int64 too
    names = [draw.choice([k, 2**62 + k, -(2**62) - k]) for k in range(60)]
    worth = {name: float(draw.randrange(12)) / 4 - 2 for name in names}
    streams = [[draw.choice(names) for _ in range(300)] for _ in range(3)]
    keys = torch.tensor(streams)
    small = keys.remainder(2**62)
    rewards = torch.tensor([[worth[k] for k in stream] for stream in streams], dtype=torch.float64)
    top_k, done = TopK.begin(3, size, of_keys(small)[0]), 0
    while done < 300:
        end = min(300, done + draw.choice([1, 2, 7, 50]))
        part = slice(done, end)
        top_k = top_k.add(of_keys(small)[:, part], rewards[:, part], keys[:, part], done)
        done = end
        for seed, stream in enumerate(streams):
            assert listed(top_k, seed) == slowly(stream[:done], worth, size)
    at_once = TopK.begin(3, size, of_keys(small)[0]).add(of_keys(small), rewards, keys, 0)
    assert all(torch.equal(a, b) for a, b in zip(at_once, top_k, strict=True))
    for seed in range(3):
        there = top_k.there[seed]
        wanted = of_keys(small[seed][top_k.visited_at[seed][there] - 1][None])[0]
        assert torch.equal(top_k.obs[seed][there].long(), wanted.short().long())


def test_it_is_made_of_tensors_of_fixed_shape_and_small_integers() -> None:
    top_k = TopK.begin(2, 4, torch.zeros(1, 8, 4, dtype=torch.int64))
    assert top_k.obs.dtype == torch.int16
    assert top_k.obs.shape == (2, 4, 8, 4)
    assert not top_k.there.any()
    objects, worth = torch.ones(2, 1, 8, 4, dtype=torch.int64), torch.zeros(2, 1)
    after = top_k.add(objects, worth, torch.ones(2, 1, dtype=torch.int64), 41)
    assert after.visited_at.tolist() == [[42, -1, -1, -1]] * 2
    assert [x.shape for x in after] == [x.shape for x in top_k]
    assert after.add(objects, worth, torch.ones(2, 1, dtype=torch.int64), 42).visited_at.tolist() == after.visited_at.tolist()


def test_observations_that_are_no_integers_stay_as_they_are() -> None:
    example: Any = torch.full((1, 2), 0.25)
    top_k = TopK.begin(1, 2, example).add(example[None], torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64), 0)
    assert top_k.obs[0].tolist() == [[0.25, 0.25], [0.0, 0.0]]
    with pytest.raises(ValueError, match="expected at least 1"):
        TopK.begin(1, 0, example)
