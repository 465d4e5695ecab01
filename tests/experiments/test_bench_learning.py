"""Ours beside another library: which curves are drawn, what the table says, which seeds are trained again."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import learning
from experiments.bench.peers import sb3_bench
from experiments.cli.errors import UserError
from experiments.run.run import Run


def run(folder: Path, algo: str, env: str, levels: list[float]) -> Path:
    config = {"algo": algo, "hyperparameters": {"step_size": 0.1}, "env": env, "seed": 0, "seeds": len(levels)}
    with Run.create(folder, "", config, ["pgrl"], tensorboard=False) as made:
        for step in (0, 500, 1000):
            made.log(step, {"eval/return_mean_action": [level * step / 1000 for level in levels]})
    return folder


def peer_rows(env: str, algo: str, seed: int, last: float, end: int = 1000) -> list[sb3_bench.Row]:
    points = (("0", "0"), (str(end), str(last)))
    return [dict(zip(sb3_bench.COLUMNS, (env, algo, str(seed), *point, "sb3 1.0"), strict=True)) for point in points]


def test_runs_are_drawn_beside_the_peers_one_figure_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "sb3.csv"
    sb3_bench.write(file, [row for seed in range(3) for row in peer_rows("A-v5", "SB3 PPO", seed, 300.0 * seed)])
    runs = (
        run(tmp_path / "1", "n-mpg", "A-v5", [100, 200, 300, 400, 1500]),
        run(tmp_path / "2", "n-pg-igt", "A-v5", [50]),
        run(tmp_path / "3", "n-mpg", "B-v5", [7, 9]),
    )
    made = learning.bench(runs, csv=file, out=tmp_path / "out", peers=tmp_path / "none", folder=tmp_path / "none")
    assert [path.name for path in made] == ["learning-a-v5.png", "learning-b-v5.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in made)
    text = (tmp_path / "out" / "learning.md").read_text()
    assert "| n-mpg | 5 | 300 | " in text
    assert " | 100 | 1,500 |" in text
    assert "| SB3 PPO | 3 | 300 | " in text
    assert "SB3 PPO,1000," in (tmp_path / "out" / "learning-a-v5.csv").read_text()
    assert "SB3" not in (tmp_path / "out" / "learning-b-v5.csv").read_text()
    assert "no curves of B-v5" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()  # nothing was trained


def test_the_table_compares_where_the_shortest_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "sb3.csv"
    rows = peer_rows("A-v5", "SB3 PPO", 0, 80) + peer_rows("A-v5", "SB3 PPO", 1, 40, end=500)
    sb3_bench.write(file, rows)
    lines = learning.table([run(tmp_path / "1", "n-mpg", "A-v5", [100])], file)
    assert "after 500 steps" in lines[0]
    assert lines[2:] == ["| n-mpg | 1 | 50 | 50 to 50 | 50 | 50 |", "| SB3 PPO | 2 | 40 | 40 to 40 | 40 | 40 |"]


def test_peers_that_are_not_installed_or_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learning.train_peers(tmp_path / "python", tmp_path / "sb3.csv", ["A-v5"], ["ppo"], 1, 1000)
    assert "not installed" in capsys.readouterr().err
    with pytest.raises(UserError, match="goes on with the seeds"):
        learning.train_peers(Path("/bin/false"), tmp_path / "sb3.csv", ["A-v5"], ["ppo"], 1, 1000)


def test_a_finished_seed_is_kept_and_a_killed_one_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, trained = tmp_path / "deep" / "sb3.csv", []

    def train(task: str, algo: str, seed: int, args: argparse.Namespace) -> None:
        trained.append((task, algo, seed))
        for row in peer_rows(task, f"SB3 {algo.upper()}", seed, 5.0, end=10 if len(trained) == 2 else 100):
            sb3_bench.append(args.out, row)
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sb3_bench, "train", train)
    args = argparse.Namespace(tasks=["A-v5"], algos=["ppo"], seeds=[0, 1, 2], env_steps=100, out=out)
    with pytest.raises(KeyboardInterrupt):
        sb3_bench.main(args)
    first = sb3_bench.read(out)
    assert [(row["seed"], row["env_steps"]) for row in first] == [("0", "0"), ("0", "100"), ("1", "0"), ("1", "10")]
    sb3_bench.main(args)
    sb3_bench.main(args)
    assert [seed for _, _, seed in trained] == [0, 1, 1, 2]
    rows = sb3_bench.read(out)
    assert rows[:2] == first[:2]
    assert [(row["seed"], row["env_steps"]) for row in rows[2:]] == [("1", "0"), ("1", "100"), ("2", "0"), ("2", "100")]


def test_the_mean_return_is_of_whole_episodes_of_the_mean_action() -> None:
    class Model:
        def predict(self, obs: Any, deterministic: bool) -> tuple[int, None]:
            assert deterministic
            return 1, None

    class ScriptedEnv:
        seeds: list[int | None]

        def __init__(self) -> None:
            self.seeds, self.t = [], 0

        def reset(self, seed: int | None) -> tuple[int, dict[str, Any]]:
            self.seeds.append(seed)
            self.t = 0
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            self.t += 1
            end = 2 + len(self.seeds)  # the first is terminated after three steps, the second truncated after four
            return 0, action, self.t == end and end == 3, self.t == end and end == 4, {}

    env = ScriptedEnv()
    assert sb3_bench.mean_return(Model(), env, 2, seed=7) == 3.5
    assert env.seeds == [7, None]


@pytest.mark.slow
def test_what_is_missing_is_trained_and_not_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("mujoco")
    options: dict[str, Any] = {"tasks": ("InvertedPendulum-v5",), "algos": ("n-mpg",), "env_steps": 10_500, "seeds": 2}
    places = {"folder": tmp_path / "runs", "peers": tmp_path / "python", "csv": tmp_path / "sb3.csv", "out": tmp_path / "out"}
    made = learning.bench(**options, **places)
    rows = (tmp_path / "runs" / "InvertedPendulum-v5" / "n-mpg" / "metrics.jsonl").read_bytes()
    assert [path.name for path in learning.bench(**options, **places)] == [path.name for path in made]
    assert (tmp_path / "runs" / "InvertedPendulum-v5" / "n-mpg" / "metrics.jsonl").read_bytes() == rows
