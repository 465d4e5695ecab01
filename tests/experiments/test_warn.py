"""Warnings of a training run: what they look at, and that a good run gives none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cli.gflownet import main
from experiments.gfn.warn import Warnings, equal_rewards
from experiments.run.log import read_metrics


def said(residuals: list[list[float]], rewards: list[list[float]], total: int = 100) -> list[str]:
    """Of rows evenly spaced over a run; the first row, of the untrained policy, has no residual."""
    warnings, found = Warnings(total), []
    for i, (residual, reward) in enumerate(zip(residuals, rewards, strict=True)):
        row: dict[str, Any] = {"states": total * i // (len(rewards) - 1), "mol/log_reward": reward}
        found += warnings.of(row | ({"train/residual": residual} if i else {}))
    return found


RISES = [[-9.0, -9.0], [-10.0, -9.5], [-8.0, -7.0], [-5.0, -6.0], [-4.0, -6.0], [-3.0, -5.0], [-3.0, -5.0]]
ARRIVES = [[0.0, 0.0], [-30.0, 20.0], [-20.0, 9.0], [-9.0, 6.0], [-6.0, -6.0], [-5.0, 7.0], [1.0, 6.0]]


def test_a_run_that_learns_gives_none() -> None:
    assert said(ARRIVES, RISES) == []


def test_log_z_that_does_not_arrive() -> None:
    """At 3 evaluations in a row of the second half, in one direction, for one of the seeds; once."""
    away = [*ARRIVES[:4], [-6.0, 8.0], [-5.0, 7.5], [1.0, 9.0]]
    away[3] = [-9.0, 8.0]
    (sentence,) = said(away, RISES)
    assert "log Z has not arrived: it is 7.5 or more away" in sentence
    assert said([*ARRIVES[:4], [-6.0, 8.0], [-5.0, -7.5], [1.0, 9.0]], RISES) == []  # to both sides is noise
    early = [[0.0, 0.0], [90.0, 90.0], [80.0, 80.0], [70.0, 70.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert said(early, RISES) == []


def test_a_policy_that_got_worse() -> None:
    worse = [*RISES[:4], [-4.0, -9.5], [-3.0, -12.0], [-3.0, -9.0]]
    (sentence,) = said(ARRIVES, worse)
    assert "at most -9 at 3 evaluations in a row, those of the untrained policy had -9:" in sentence
    assert said(ARRIVES, [*RISES[:4], [-4.0, -9.5], [-3.0, -8.0], [-3.0, -9.0]]) == []


def test_a_resumed_run_remembers_its_rows() -> None:
    rows = [
        {"states": 10 * i, "mol/log_reward": [-9.0 - i], "train/residual": [9.0]} | ({"train/residual": None} if i == 0 else {})
        for i in range(11)
    ]
    resumed = Warnings(100, rows[:-1])
    assert resumed.of(rows[-1]) == []  # it was said before the pause
    resumed = Warnings(100, rows[:7])
    assert len(resumed.of(rows[7])) == 2


def test_a_resumed_run_reads_what_was_not_finite() -> None:
    rows = [{"states": 10 * i, "mol/log_reward": [-9.0], "train/residual": [None]} for i in range(11)]
    assert len(Warnings(100, rows[:-1]).of(rows[-1])) == 0


def test_equal_rewards() -> None:
    assert equal_rewards(torch.tensor([[1.0, 2.0]])) == []
    assert "all 2 molecules of the first iteration have log R = 1:" in equal_rewards(torch.ones(1, 2))[0]


@pytest.mark.parametrize(("start", "warned"), [("0", True), ("auto", False)])
def test_log_z_at_beta_32(start: str, warned: bool, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A peaked reward: with log Z = 0 at the start nothing is learned, and the run says so."""
    flags = ["--reward", "similar[CC(=O)Oc1ccccc1C(=O)O]*qed", "--beta", "32", "--states", "640", "--evaluations", "10"]
    out = ["--max-blocks", "3", "--hidden", "16", "16", "--quiet", "--out", str(tmp_path / "run")]
    main(["train", "molecules", "--objective", "tb", "--log-z-start", start, *flags, *out])
    assert ("log Z has not arrived" in capsys.readouterr().err) == warned


SEH = Path(__file__).resolve().parents[3] / "shared/data/seh"


@pytest.mark.slow
@pytest.mark.skipif(not SEH.exists(), reason="needs ../shared/data/seh")
def test_log_z_arrives_within_2_000_molecules(tmp_path: Path) -> None:
    """With the recipe's rates on sEH at β = 10, where log Z is above 30 and starts near 10."""
    task = ["--reward", "seh", "--beta", "10", "--r-min", "0.0125", "--fragments", str(SEH / "blocks_PDB_105.json")]
    few = ["--states", "3072", "--evaluations", "4", "--seh-weights", str(SEH / "proxy_best_params.npz"), "--quiet"]
    main(["train", "molecules", "--objective", "tb", *task, *few, "--out", str(tmp_path / "run")])
    log_z = {row["states"]: row["eval/log_z"][0] for row in read_metrics(tmp_path / "run") if "eval/log_z" in row}
    then = log_z[min(states for states in log_z if states >= 2000)]
    assert abs(then - log_z[3072]) < 2
    assert log_z[3072] > 28
