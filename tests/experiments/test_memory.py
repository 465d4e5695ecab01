"""A run whose arrays would not fit into memory is refused with the estimate, before anything is allocated or written."""

from pathlib import Path

import pytest

from experiments.cli.errors import UserError
from experiments.run import memory
from tests.experiments.test_numbers_of_flags import SMALL, _ends

TRAIN = {
    "pgrl": {
        "parameters": ["n-pg", "--hidden", "1000000", "1000000"],
        "episodes": ["n-pg", "--batch-size", "1000000000"],
        "evaluation": ["n-pg", "--discount", "1", "--eval-episodes", "1000000000"],
    },
    "gflownet": {
        "parameters": ["hypergrid", "--objective", "tb", "--hidden", "1000000", "1000000"],
        "window": ["hypergrid", "--objective", "tb", "--window", "1000000000", "--seeds", "1000"],
        "batches": ["bits", "--objective", "db", "--batch-size", "1000000000"],
        "replay buffer": ["sets", "--objective", "tb", "--replay", "fifo", "--capacity", "1000000000", "--seeds", "100"],
        "objects": ["hypergrid", "--objective", "tb", "--search-rounds", "1000000000"],
    },
}
ROWS = [(tool, part, arguments) for tool, rows in TRAIN.items() for part, arguments in rows.items()]


@pytest.mark.parametrize(("tool", "part", "arguments"), ROWS, ids=[f"{tool}-{part}" for tool, part, _ in ROWS])
def test_training_that_would_not_fit_is_refused(tool: str, part: str, arguments: list[str], tmp_path: Path) -> None:
    code, said, seconds = _ends(tool, ["train", *arguments, f"--out={tmp_path / 'run'}"])
    assert (code, len(said.splitlines())) == (2, 1)
    assert f"TB of memory ({part} " in said or f"GB of memory ({part} " in said
    assert " are free: " in said
    assert seconds < 2
    assert not (tmp_path / "run").exists()


def test_a_large_map_with_a_baseline_over_states_is_refused_and_the_other_baseline_named(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("\n".join(["." * 150] * 149 + ["G" * 150]))
    code, said, _ = _ends("pgrl", ["train", "n-pg", f"--env=gridworld:{tmp_path / 'map.txt'}", f"--out={tmp_path / 'run'}"])
    assert code == 2
    assert "(baseline " in said
    assert "use --baseline time" in said


def test_samples_that_would_not_fit_are_refused(tmp_path: Path) -> None:
    for tool, flag in (("pgrl", "--episodes"), ("gflownet", "--samples")):
        run = tmp_path / tool
        assert _ends(tool, [*SMALL[tool], f"--out={run}"])[0] == 0
        code, said, _ = _ends(tool, ["eval", str(run), f"{flag}=1000000000"])
        assert (code, "of memory" in said, said.strip().endswith(f"lower {flag}")) == (2, True, True)
    code, said, _ = _ends("pgrl", ["check-env", "gridworld", "--episodes=10000000", "--steps=1000000"])
    assert (code, "lower --episodes or --steps" in said) == (2, True)


def test_a_gaussian_process_that_would_not_fit_is_refused(tmp_path: Path) -> None:
    grid = ["--ndim=3", "--height=36", "--initial=40000", f"--out={tmp_path / 'run'}"]
    code, said, _ = _ends("gflownet", ["active", "hypergrid", "--objective=tb", *grid])
    assert (code, "of memory (Gaussian process " in said, (tmp_path / "run").exists()) == (2, True, False)


def test_the_cache_of_files_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    for name, text in (
        ("max", "1000000"),
        ("current", "900000"),
        ("stat", "anon 100000\nactive_file 300000\ninactive_file 500000"),
    ):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert memory.available() == 900_000


def test_what_is_free_is_the_least_of_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory.available() < 1 << 50
    monkeypatch.setattr(memory, "available", lambda device: 10**9)
    memory.require({"a": 10**9}, {})
    with pytest.raises(UserError, match=r"about 1\.5 GB of memory \(b 1\.0 GB, a 500\.0 MB\), and 1\.0 GB are free: do$"):
        memory.require({"a": 5 * 10**8, "b": 10**9}, {"b": "do"})
