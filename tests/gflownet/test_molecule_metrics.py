"""Metrics of molecules: against RDKit, against plain loops that follow the definitions, and by hand."""

import math

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem, DataStructs

from gflownet.molecules.fingerprints import (
    FINGERPRINTS,
    Bits,
    ModeCounter,
    circles,
    fingerprints,
    internal_diversity,
    mean_similarity,
    tanimoto,
)
from gflownet.molecules.metrics import collect, modes, novelty, scaffolds, summary, top_mean

GROUPS = ("C", "N", "O", "F", "Cl", "CC", "OC", "C(=O)O", "C#N", "N(C)C")
CORES = ("c1ccc({})cc1{}", "c1cc({})ncc1{}", "C1CC({})CCC1{}", "c1c({})[nH]cc1{}", "C({})CC{}")


@pytest.fixture(scope="module")
def library() -> list[str]:
    """365 small molecules, some of them very much alike."""
    made = (Chem.MolToSmiles(Chem.MolFromSmiles(core.format(a, b))) for core in CORES for a in GROUPS for b in GROUPS)
    smiles = list(dict.fromkeys(made))
    return [smiles[i] for i in np.random.default_rng(0).permutation(len(smiles))]


def sets(*members: set[int]) -> Bits:
    """Fingerprints with these bits on."""
    bits = np.zeros((len(members), 2048), np.uint8)
    for row, on in zip(bits, members, strict=True):
        row[list(on)] = 1
    return np.packbits(bits, axis=1)


@pytest.mark.parametrize("kind", FINGERPRINTS)
def test_similarities_are_those_of_rdkit_to_the_last_bit(library: list[str], kind: str) -> None:
    theirs = [FINGERPRINTS[kind](Chem.MolFromSmiles(s)) for s in library]
    bits = fingerprints(library, kind)
    got = tanimoto(bits[:50], bits)
    assert (got == [DataStructs.BulkTanimotoSimilarity(a, theirs) for a in theirs[:50]]).all()
    assert 0 < (got > 0.7).mean() < 0.5  # both sides of the modes' threshold occur


def test_fingerprints_take_molecules_and_smiles_and_refuse_the_rest() -> None:
    assert (fingerprints(["CCO"]) == fingerprints([Chem.MolFromSmiles("OCC")])).all()
    assert fingerprints([]).shape == (0, 256)
    with pytest.raises(ValueError, match=r"cannot read 'C\('"):
        fingerprints(["C("])
    with pytest.raises(ValueError, match="got fingerprint 'ecfp', expected one of morgan2-2048, rdk"):
        fingerprints(["C"], "ecfp")


def test_two_empty_fingerprints_have_similarity_0() -> None:
    empty = DataStructs.ExplicitBitVect(2048)
    assert tanimoto(sets(set()), sets(set(), {1})).tolist() == [[DataStructs.TanimotoSimilarity(empty, empty), 0.0]] == [[0, 0]]


def test_mean_similarity_is_over_pairs_of_different_molecules(library: list[str]) -> None:
    bits = np.concatenate([fingerprints(library)] * 2)  # more than a block
    whole = tanimoto(bits, bits)
    expected = whole[np.triu_indices(len(bits), 1)].mean()
    assert mean_similarity(bits) == pytest.approx(expected, abs=1e-12)
    assert internal_diversity(bits) == pytest.approx(1 - expected, abs=1e-12)
    assert mean_similarity(sets({1, 2}, {1, 3}, {4})) == pytest.approx(1 / 9)  # 1/3, 0 and 0; with i = j it would be 11/27
    assert math.isnan(mean_similarity(bits[:1]))


@pytest.mark.parametrize("portion", [1, 7, 1000])
def test_modes_are_those_of_the_definition_in_portions_or_at_once(library: list[str], portion: int) -> None:
    """More fingerprints than fit in a block, with copies among them."""
    bits = np.concatenate([fingerprints(library), fingerprints(library, "rdk")])
    bits = bits[np.random.default_rng(1).permutation(len(bits))]
    alike = tanimoto(bits, bits)
    kept: list[int] = []
    for i in range(len(bits)):
        if all(alike[i, j] < 0.7 for j in kept):
            kept.append(i)
    counter, new = ModeCounter.begin(), []
    for start in range(0, len(bits), portion):
        counter, found = counter.add(bits[start : start + portion])
        new += found.tolist()
    assert np.flatnonzero(new).tolist() == kept
    assert (counter.accepted == bits[kept]).all()
    assert (counter.modes, counter.seen) == (len(kept), len(bits))
    assert 100 < len(kept) < len(bits) - 100


def test_a_similarity_of_exactly_the_threshold_is_no_new_mode() -> None:
    ten = set(range(10))
    _, new = ModeCounter.begin().add(
        sets(ten, set(range(7)), set(range(6)))
    )  # 0.7 to the first; 0.6 to it, the second being out
    assert new.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="similarity 0, expected a number above 0"):
        ModeCounter.begin(0)


def test_modes_of_drawn_molecules_depend_on_the_order() -> None:
    smiles = ["Cc1ccccc1CCN", "Cc1ccccc1CCNC", "CCO", "CCCCCCCCC"]
    drawn = collect(smiles, [1.0, 3.0, 5.0, 0.5])
    alike = float(tanimoto(fingerprints(smiles[:1]), fingerprints(smiles[1:2]))[0, 0])
    assert 0.5 < alike < 0.7
    assert modes(drawn, 0.5, "visit", 0.5).tolist() == [0, 2]  # the last is not above the threshold
    assert modes(drawn, 0.5, "reward", 0.5).tolist() == [2, 1]
    assert modes(drawn, 0.5).tolist() == [0, 1, 2]
    assert modes(drawn, 5.0).tolist() == []


def test_circles_is_a_lower_bound_that_the_order_decides() -> None:
    """A chain: the middle one is near both ends, the ends are far from each other. Two can be chosen, greedy may take one."""
    left, middle, right = {1, 2}, {1, 2, 3, 4}, {3, 4}
    assert circles(sets(left, middle, right), 0.5) == 2
    assert circles(sets(middle, left, right), 0.5) == 1  # distances of exactly 0.5 are not enough
    assert circles(sets(middle, left, right), 0.49) == 3
    ten = sets(set(range(10)), set(range(3)))  # similarity 0.3, distance 0.7, where 1 - 0.7 > 0.3 in floating point
    assert circles(ten, 0.7) == 1
    assert circles(ten, 0.69) == 2
    with pytest.raises(ValueError, match="got distance 1, expected"):
        circles(ten, 1)


def test_what_is_drawn_is_counted_by_canonical_smiles() -> None:
    drawn = collect(
        ["OCC", "CCO", "C(", "c1ccccc1", "", "C1=CC=CC=C1", "C[C@H](N)O", "C[C@@H](N)O"], [1, 3, 99, 2, 99, 1.5, 0, 5]
    )
    assert (drawn.drawn, drawn.valid) == (8, 6)
    assert drawn.smiles == ("CCO", "c1ccccc1", "C[C@H](N)O", "C[C@@H](N)O")  # mirror images are different molecules
    assert drawn.reward.tolist() == [3, 2, 0, 5]
    assert drawn.validity == 6 / 8
    assert drawn.uniqueness == 4 / 6
    assert drawn.mean_reward == pytest.approx((1 + 3 + 2 + 1.5 + 0 + 5) / 6)
    assert drawn.by_reward.tolist() == [3, 0, 1, 2]
    assert drawn.above(2).tolist() == [0, 3]
    assert [top_mean(drawn, k) for k in (1, 2, 4)] == [5, 4, 2.5]
    assert math.isnan(top_mean(drawn, 5))
    assert novelty(drawn, ["C(C)O", "CCCC"]) == 0.75
    with pytest.raises(ValueError, match=r"rewards of shape \[2\], expected one for each of 3 molecules"):
        collect(["C", "C", "C"], [1, 2])


def test_scaffolds_are_rings_and_what_links_them() -> None:
    assert scaffolds(["Cc1ccccc1", "Oc1ccc(CCC)cc1", "c1ccccc1", "CCO", "c1ccncc1", "CC1CCCCC1", "c1ccc(Cc2ccccc2)cc1"]) == 4
    assert scaffolds(["CCO", "C"]) == 0


def test_the_summary_says_what_every_number_is(library: list[str]) -> None:
    smiles = library[:120] + library[:20] + ["nothing"]
    rewards = np.random.default_rng(2).random(141)
    drawn = collect(smiles, rewards)
    figures = summary(drawn, 0.5, known=library[:60])
    assert figures["validity"].value == 140 / 141
    assert figures["uniqueness"].value == 120 / 140
    assert figures["novelty"].value == 0.5
    assert figures["top_100_reward"].value == pytest.approx(np.sort(drawn.reward)[-100:].mean())
    best = fingerprints(drawn.at(drawn.by_reward[:100]))
    assert figures["top_100_similarity_morgan2-2048"].value == pytest.approx(mean_similarity(best))
    assert figures["top_100_diversity_morgan2-2048"].value == pytest.approx(internal_diversity(best))
    assert math.isnan(figures["top_1000_reward"].value)
    assert figures["modes_morgan2-2048"].value == len(modes(drawn, 0.5, "reward"))
    assert figures["scaffolds"].value == scaffolds(drawn.at(drawn.above(0.5)))
    assert figures["circles_morgan2-2048"].value <= figures["modes_morgan2-2048"].value
    for name, figure in figures.items():
        assert any(word in figure.meaning for word in ("drawn", "unique")), name
        assert "morgan2-2048" not in name or "morgan2-2048" in figure.meaning
        assert any(n in figure.meaning for n in ("120", "140", "141")), name


def test_the_summary_of_nothing_is_numbers_too() -> None:
    figures = summary(collect(["nothing"]), 0.5)
    assert figures["validity"].value == 0
    assert math.isnan(figures["uniqueness"].value)
    assert figures["modes_morgan2-2048"].value == 0
    assert summary(collect([]), 0.5)["scaffolds"].value == 0
