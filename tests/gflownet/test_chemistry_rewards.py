"""Rewards of molecules: published or hand-computed values, the grammar of expressions, and errors."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors, Lipinski, MolSurf

from experiments.cli.errors import UserError
from experiments.molecules.config import MoleculeSettings, resolved
from gflownet.rewards import chemistry
from gflownet.rewards.cached import Quantities, from_smiles
from gflownet.rewards.chemistry import Similarity, Term, Window, ease, term
from gflownet.rewards.combine import MoleculeReward, Tempering
from gflownet.rewards.expression import Expression

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
CAFFEINE = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
DRUGS = (
    ASPIRIN,
    CAFFEINE,
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CC(=O)Nc1ccc(O)cc1",
    "CN1CCC[C@H]1c1cccnc1",
    "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O",
)


def parts(text: str, smiles: Sequence[str] = DRUGS, **given: Sequence[float]) -> dict[str, list[float]]:
    reward = MoleculeReward.of(text, Tempering(1.0), outside=("seh",))
    return {name: x.tolist() for name, x in reward.parts(*from_smiles(smiles), given).items()}


# -- quantities and terms


ALERTING = (  # charges, isotopes, hydrogens, halogens, alerts, fragments, an atom alone
    "[2H]C([2H])O [H][H] C [13CH3]CCCCC=O [O-][N+](=O)c1ccc(N)cc1 CC(=O)[O-].[Na+] OS(=O)(=O)c1ccccc1S N=C=O CC(=O)OC(C)=O "
    "C1OC1 BrCCBr Clc1cc(Cl)c(Cl)cc1 C=CC(=O)C=C N#CC(C)=O CSSC O=C1C=CC(=O)C=C1 C[Si](C)(C)F OO NN C=[N+]=[N-] C#CC(=O)C "
    "c1ccc2c(c1)ccc(=O)o2 S=C(N)N CCCCCCCCCCCCC P I [Se]1C=CC=C1 O=C(C)OC.O=C(C)OC.O=C(C)OC FC(F)(F)S(=O)(=O)O "
    "c1ccccc1Oc1ccccc1 C[C@H](N)C(=O)O"
)


@pytest.mark.parametrize("smiles", ALERTING.split())
def test_qed_is_rdkits_to_the_bit(smiles: str) -> None:
    assert chemistry.qed(Chem.MolFromSmiles(smiles)) == QED.qed(Chem.MolFromSmiles(smiles))
    alerts = sum(Chem.MolFromSmiles(smiles).HasSubstructMatch(alert) for alert in QED.StructuralAlerts)
    properties = chemistry._qed_properties(Chem.MolFromSmiles(smiles))
    assert properties is None or properties[-1] == alerts


def test_aspirin_has_the_values_that_are_known() -> None:
    mol = Chem.MolFromSmiles(ASPIRIN)
    assert chemistry.qed(mol) == pytest.approx(0.550, abs=5e-4)
    assert chemistry.sa_score(mol) == pytest.approx(1.58, abs=5e-3)
    assert chemistry.mw(mol) == pytest.approx(180.16, abs=5e-3)
    assert chemistry.tpsa(mol) == pytest.approx(63.60, abs=5e-3)
    assert chemistry.logp(mol) == pytest.approx(1.310, abs=5e-4)
    assert chemistry.rotors(mol) == 2
    assert Similarity.to("OC(=O)c1ccccc1OC(C)=O")(mol) == 1


@pytest.mark.parametrize("smiles", DRUGS)
def test_quantities_are_rdkit_s(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    assert chemistry.qed(mol) == QED.qed(mol)
    assert chemistry.logp(mol) == Crippen.MolLogP(mol)
    assert chemistry.mw(mol) == Descriptors.MolWt(mol)
    assert chemistry.tpsa(mol) == MolSurf.TPSA(mol)
    assert chemistry.rotors(mol) == Lipinski.NumRotatableBonds(mol)


def test_ease_turns_the_sa_score_round() -> None:
    assert ease(np.array([1.0, 10.0, 5.5])).tolist() == [1.0, 0.0, 0.5]


def test_a_window_is_1_inside_and_falls_as_a_normal_density_outside() -> None:
    x = np.array([1.0, 2.0, 3.0, 0.5, 4.0, 1e6])
    assert Window(1.0, 3.0, 0.5)(x) == pytest.approx([1, 1, 1, math.exp(-0.5), math.exp(-2), 0], abs=1e-15)
    assert Window(-math.inf, 3.0, 1.0)(x[:4]).tolist() == [1, 1, 1, 1]


def test_windows_carry_their_name_and_width() -> None:
    assert term("logp", "1, 3") == Term("logp[1,3]", "logp", chemistry.logp, Window(1, 3, 1))
    assert term("mw", "200,500,25").shape == Window(200, 500, 25)
    assert term("mw", "200,500,25").label == "mw[200,500,25]"
    assert term("tpsa", "-inf,120").shape == Window(-math.inf, 120, 20)


# -- the language


def test_products_means_weights_and_powers() -> None:
    x = {name: np.array(values) for name, values in parts("qed+sa").items()}
    qed, sa = x["qed"], x["sa"]
    for text, expected in {
        "qed": qed,
        "qed*sa": qed * sa,
        "qed+sa": (qed + sa) / 2,
        "mean(qed,sa)": (qed + sa) / 2,
        "2*qed+sa": (2 * qed + sa) / 3,
        "mean(.5*qed, 1.5*sa)": (qed + 3 * sa) / 4,
        "qed^2*sa": qed**2 * sa,
        " ( qed * sa ) ^ 0.5 ": np.sqrt(qed * sa),
        "2*qed^2*sa + mean(qed,sa,sa)": (2 * qed**2 * sa + (qed + 2 * sa) / 3) / 3,
        "mean(qed+sa,sa)": (qed + 3 * sa) / 4,
        "qed*(qed+3*sa)": qed * (qed + 3 * sa) / 4,
    }.items():
        assert parts(text)["reward"] == pytest.approx(expected, rel=1e-14), text


def test_brackets_of_smiles_are_not_the_end_of_the_term() -> None:
    found = parts("similar[[nH]1cccc1]*similar[c1ccc[nH]1]", ["c1cc[nH]c1"])
    assert found == {"reward": [1], "similar[[nH]1cccc1]": [1], "similar[c1ccc[nH]1]": [1]}


def test_leaves_are_told_apart() -> None:
    found = Expression.parse("seh*qed*logp[1,3]*logp[2,3]*~/a-b/my.py:score*2.py:f", ("seh",))
    assert [t.label for t in found.terms] == ["qed", "logp[1,3]", "logp[2,3]"]
    assert (found.outside, found.functions) == (("seh",), ("~/a-b/my.py:score", "2.py:f"))


TERMS = (
    r"qed, sa, logp\[low,high\], mw\[low,high\], tpsa\[low,high\], rotors\[low,high\], similar\[SMILES\], pmo:TASK, "
    "file.py:function"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", rf'^reward "", character 1 \(the end\): expected a term, which is one of seh, {TERMS} or mean\(a,b\)$'),
        ("qed**sa", rf"character 5 \('\*sa'\): expected a term, which is one of seh, {TERMS}"),
        ("qed*docking", r"character 5 \('docking'\): expected a term"),
        ("mean()", r"character 6 \('\)'\): expected a term"),
        ("qed sa", r"character 5 \('sa'\): expected"),
        ("qed-sa", r"character 4 \('-sa'\): expected"),
        ("qed)", r"character 4"),
        ("(qed*sa", r'character 8 \(the end\): expected "\)"'),
        ("qed^sa", r"character 5 \('sa'\): expected a number after \^"),
        ("2*qed", r"the weight 2 before this is outside a mean"),
        ("sa+(2*qed)", r"the weight 2"),
        ("2+qed", r"character 2 \('\+qed'\): expected \* and a term after a weight"),
        ("0*qed+0*sa", "all weights of the mean before this are 0"),
        ("qed[1]", r"character 1 .*: qed takes no brackets, got \[1\]"),
        ("sa*logp", r"character 4 .*: logp needs a window"),
        ("logp[3,1]", "low <= high"),
        ("logp[1,nan]", "low <= high"),
        ("logp[1,3,0]", "width > 0"),
        ("mw[200]", "mw needs a window"),
        ("mw[a,b]", "mw needs a window"),
        ("mw[1,2,3,4]", "mw needs a window"),
        ("similar", r"similar needs a molecule"),
        ("similar[]", "cannot read this as SMILES"),
        ("similar[C1CC]", r"similar\[C1CC\]: RDKit cannot read this as SMILES"),
        ("sa*similar[[nH]1cccc1", r"character 11 \('\[\[nH\]1cccc1'\): this bracket is never closed"),
        ("qed*pmo:celecoxib", r"character 5 .*: there is no PMO task 'celecoxib'; close: celecoxib_rediscovery"),
        ("pmo:", r"there is no PMO task ''; close: albuterol_similarity, "),
        ("pmo:qed[1,2]", r"pmo:qed takes no brackets, got \[1,2\]"),
        ("pmo", "expected a term"),
        ("(" * 5000 + "qed" + ")" * 5000, "at most 50 brackets"),
    ],
)
def test_what_is_no_reward_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Expression.parse(text, ("seh",))
    assert "\n" not in str(error.value)


# -- parts and tempering


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "a" * 20_000, "qed*" * 5_000, "(" * 20_000, "similar[" * 2_500, "a.py:" * 4_000, "a[" * 10_000]
)
def test_a_long_text_is_refused_at_once(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"at most 20,000|, character"):
        Expression.parse(text)
    with pytest.raises(UserError, match="molecules: "):
        resolved(MoleculeSettings(reward=text))
    assert time.process_time() - begun < 0.5


def test_parts_are_the_reward_its_terms_and_what_is_under_them() -> None:
    found = parts("seh*sa*logp[1,3]*logp[0,1]", [ASPIRIN, CAFFEINE], seh=[0.5, 0.9])
    assert list(found) == ["reward", "sa", "logp[1,3]", "logp[0,1]", "seh", "sa_score", "logp"]
    terms = [np.array(found[name]) for name in ("sa", "logp[1,3]", "logp[0,1]", "seh")]
    assert found["reward"] == pytest.approx(np.prod(terms, axis=0))
    assert found["sa"] == pytest.approx((10 - np.array(found["sa_score"])) / 9)
    assert found["logp[1,3]"][1] == pytest.approx(math.exp(-0.5 * (1 - found["logp"][1]) ** 2))
    assert parts("qed", []) == {"reward": [], "qed": []}


def test_the_log_reward_is_tempered_and_clipped() -> None:
    temper = Tempering(beta=8.0, r_min=0.1, r_max=2.0)
    got = temper(np.array([-1.0, 0.0, 0.05, 0.1, 0.5, 2.0, 9.0]))
    assert got == pytest.approx(8 * np.log([0.1, 0.1, 0.1, 0.1, 0.5, 2.0, 2.0]))
    p = np.array([-0.3, 0.05, 4.0, 8.4])  # the 2021 code: (max(0.1, p) / 8) ** 10
    assert np.exp(Tempering(10.0, 0.1 / 8)(p / 8)) == pytest.approx((np.maximum(0.1, p) / 8) ** 10)
    reward = MoleculeReward.of("qed", temper)
    keys, molecules = from_smiles(DRUGS)
    assert (reward.log_reward(keys, molecules) == temper(reward.parts(keys, molecules)["reward"])).all()
    for wrong in ({"beta": 0.0}, {"beta": 1.0, "r_min": 0.0}, {"beta": 1.0, "r_max": 0.001}, {"beta": math.nan}):
        with pytest.raises(ValueError, match="expected beta > 0 and 0 < r_min < r_max"):
            Tempering(**wrong)


def test_no_molecule_is_made_where_all_is_given() -> None:
    reward = MoleculeReward.of("seh^2", Tempering(1.0), outside=("seh",))

    def never(places: list[int]) -> list[Chem.Mol]:
        raise AssertionError(places)

    assert not reward.needs_molecules
    assert reward.parts([1, 2], never, {"seh": [0.5, 2.0]})["reward"].tolist() == [0.25, 4.0]


# -- what goes wrong


def reward_of(function: object) -> MoleculeReward:
    return MoleculeReward.of("qed*my.py:f", Tempering(1.0), functions={"my.py:f": function})  # type: ignore[dict-item]


def boom(smiles: list[str]) -> list[float]:
    raise RuntimeError("no licence")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda smiles: [1.0],
            r"^my.py:f gave numbers of shape \[1\], expected \[6\]: one for each of a batch of 6 molecules, the first",
        ),
        (lambda smiles: [[1.0]] * 6, r"gave numbers of shape \[6, 1\], expected \[6\]"),
        (lambda smiles: 1.0, r"gave numbers of shape \[\], expected \[6\]"),
        (lambda smiles: ["good"] * 6, r"gave \['good', .* expected a list of 6 numbers"),
        (
            lambda smiles: [1.0, 1.0, math.nan, 1.0, 1.0, 1.0],
            r"^my.py:f of CC\(C\)Cc1ccc\(C\(C\)C\(=O\)O\)cc1 is nan, .* \(1 of 6 are not\)",
        ),
        (lambda smiles: [math.inf] * 6, r"^my.py:f of CC\(=O\)Oc1ccccc1C\(=O\)O is inf, expected a finite number \(6 of 6"),
        (
            boom,
            r"^my.py:f raised RuntimeError: no licence \(test_chemistry_rewards.py, line \d+\); "
            r"it was given a batch of 6 molecules, the first being CC\(=O\)",
        ),
    ],
)
def test_a_function_that_answers_wrongly_is_named_with_its_molecule(function: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_of(function).parts(*from_smiles(DRUGS))


def test_a_function_gets_canonical_smiles_and_its_numbers_are_parts() -> None:
    found = reward_of(lambda smiles: np.array([len(s) for s in smiles])).parts(*from_smiles(["OCC", "C"]))
    assert found["my.py:f"].tolist() == [3, 1]
    assert found["reward"].tolist() == (found["qed"] * found["my.py:f"]).tolist()
    with pytest.raises(ValueError, match=r"the reward uses my.py:f, which was not loaded; loaded: none"):
        MoleculeReward.of("my.py:f", Tempering(1.0))


def fails(mol: Chem.Mol) -> float:
    raise OverflowError("too large")


def not_a_number(mol: Chem.Mol) -> float:
    return math.nan if mol.GetNumAtoms() > 1 else 0.0


def test_a_quantity_that_fails_is_named_with_its_molecule() -> None:
    with pytest.raises(
        ValueError, match=r"^size of C raised OverflowError: too large \(test_chemistry_rewards.py, line \d+\)$"
    ):
        Quantities({"size": fails}, {})(*from_smiles(["C"]))
    with pytest.raises(ValueError, match=r"^size of CC is nan, expected a finite number$"):
        Quantities({"size": not_a_number}, {})(*from_smiles(["C", "CC"]))


def test_given_scores_and_the_result_must_be_numbers_for_all() -> None:
    with pytest.raises(ValueError, match=r"got scores of shape \[0\] for seh, expected one for each of 1 molecules"):
        parts("seh", ["C"])
    with pytest.raises(ValueError, match=r"got scores of shape \[2\] for seh"):
        parts("seh", ["C"], seh=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"^seh of CC is nan"):
        parts("seh", ["C", "CC"], seh=[1.0, math.nan])
    with pytest.raises(ValueError, match=r'^the reward "seh\^0.5" of CC is nan'):
        parts("seh^0.5", ["C", "CC"], seh=[1.0, -1.0])


def test_smiles_that_cannot_be_read_are_counted_from_1() -> None:
    with pytest.raises(ValueError, match=r"molecule 2 of 3 is 'C\(', which RDKit cannot read"):
        from_smiles(["C", "C(", "C"])


# -- each molecule once


def test_a_molecule_is_computed_once_and_forgotten_when_there_is_no_room() -> None:
    calls: list[str] = []

    def count(mol: Chem.Mol) -> float:
        calls.append(Chem.MolToSmiles(mol))
        return float(mol.GetNumAtoms())

    quantities = Quantities({"atoms": count}, {}, size=2)
    assert quantities(*from_smiles(["C", "CC", "C"]))["atoms"].tolist() == [1, 2, 1]
    assert quantities(*from_smiles(["CCC", "C"]))["atoms"].tolist() == [3, 1]  # CC was not asked for longest
    assert quantities(*from_smiles(["C", "CCC"]))["atoms"].tolist() == [1, 3]
    assert calls == ["C", "CC", "CCC"]
    assert quantities(*from_smiles(["CC", "CCCC", "CCCCC", "C"]))["atoms"].tolist() == [
        2,
        4,
        5,
        1,
    ]  # more than there is room for
    assert quantities.computed == len(calls) == 6
    with pytest.raises(ValueError, match="room for 0 molecules"):
        Quantities({}, {}, size=0)


def test_numbers_do_not_depend_on_what_is_kept_or_on_workers() -> None:
    text = "qed*sa+logp[1,3]+similar[c1ccccc1]+mw[100,200]+tpsa[0,50]+rotors[0,1]"
    smiles = [s + "C" * n for n in range(6) for s in ("c1ccccc1", "OC(=O)", "C1CC1", "N1CCC1", "Cl", "c1ccoc1C(=O)N")]
    keys, molecules = from_smiles(smiles)
    alone = MoleculeReward.of(text, Tempering(1.0)).parts(keys, molecules)
    kept = MoleculeReward.of(text, Tempering(1.0), size=10)
    for start in range(0, len(keys), 5):
        kept.parts(keys[start : start + 7], lambda places, start=start: molecules([start + i for i in places]))
    again = kept.parts(keys, molecules)
    shared = MoleculeReward.of(text, Tempering(1.0), workers=2)
    before = set(multiprocessing.active_children())
    with shared.quantities:
        by_workers = shared.parts(keys, molecules)
        started = set(multiprocessing.active_children()) - before
        assert len(started) == 2
    assert not any(process.is_alive() for process in started)
    for name, x in alone.items():
        assert x.tolist() == again[name].tolist() == by_workers[name].tolist(), name


def dies(mol: Chem.Mol) -> float:
    if mol.GetNumAtoms() > 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def test_a_worker_s_error_is_the_molecule_s_and_one_that_keeps_dying_is_said() -> None:
    with Quantities({"size": not_a_number}, {}, workers=1) as quantities:
        with pytest.raises(ValueError, match=r"^size of CC is nan, expected a finite number$"):
            quantities(*from_smiles(["C" * n for n in range(1, 20)]))
        assert (
            quantities(list("abcdefgh"), lambda places: [Chem.MolFromSmiles("C")] * len(places))["size"].tolist() == [0.0] * 8
        )
    with Quantities({"size": dies}, {}, workers=1) as quantities:
        with pytest.raises(RuntimeError, match="a worker process died 3 times scoring the same 25 molecules"):
            quantities(*from_smiles(["C" * n for n in range(1, 26)]))
        assert quantities(*from_smiles(["C" * n for n in range(1, 10)]))["size"].tolist() == [1.0] * 9
