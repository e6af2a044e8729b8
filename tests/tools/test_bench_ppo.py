"""The benchmark of PPO: parts of an iteration from metrics that are known, and speeds beside transformers' own."""

import json
import statistics
from pathlib import Path

import bench_ppo
import pytest

from megagpt.config.load import save
from megagpt.config.schema import Config, ModelConfig, OptimConfig, PPOConfig, StageConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.instructions import WORDS
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError
from tests.runs import save_random_run

EPISODES, STEPS = 6, 2
SECONDS = [(9.0, 5.0), (1.0, 0.5), (2.0, 0.25), (3.0, 0.75)]
"""Of an iteration's rollout and of its scoring; the first is left out."""


def metrics(iterations: list[tuple[float, float]]) -> str:
    """Lines of metrics of iterations of two steps, which take 4 s each besides rollout and scoring."""
    lines = []
    for rollout, scoring in iterations:
        own = {"rollout_seconds": rollout, "scoring_seconds": scoring, "response_tokens": 10.0}
        lines += [own | {"step_seconds": 4 + rollout + scoring}, {"step_seconds": 4.0}, {"validation_loss": 2.0}]
    return "".join(json.dumps({"step": number} | line) + "\n" for number, line in enumerate(lines))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """The folder of a run of PPO of random weights."""
    tokenizer = grow_for_chat(train_tokenizer([" ".join(WORDS)], 300))
    size = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 96}
    config = Config(
        model=ModelConfig(**size, vocab_size=tokenizer.vocab_size),
        stage=StageConfig(name="ppo"),
        ppo=PPOConfig(rollout_batch_size=EPISODES, generation_batch_size=4, max_new_tokens=4),
        optim=OptimConfig(precision="fp32"),
    )
    folder = save_random_run(tmp_path_factory.mktemp("ppo"), config, tokenizer)
    save(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text(metrics(SECONDS))
    return folder


def test_report(run_dir, monkeypatch, tmp_path, capsys):
    output = tmp_path / "out/ppo.json"
    options = ["--batch-size", "3", "--new-tokens", "5", "--repeats", "2", "--output", str(output)]
    monkeypatch.setattr("sys.argv", ["bench_ppo.py", str(run_dir), *options])
    bench_ppo.main()
    report = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert {"device", "threads", "python", "torch", "transformers", "date", "command"} <= set(report)
    assert (
        report["iteration"]
        == {
            "iterations": 3,
            "episodes": EPISODES,
            "seconds": 4 * STEPS + 2.25,  # of what rollout and scoring take together, the median is 2.25
            "rollout_seconds": 2.0,
            "scoring_seconds": 0.5,
            "update_seconds": 4 * STEPS + 2.25 - 2.5,
            "generated_tokens_per_second": statistics.median(10 * EPISODES / rollout for rollout, _ in SECONDS[1:]),
        }
    )
    for name, sizes in (("generation", (3, 3, 5)), ("rollout", (EPISODES, 4, 4))):
        figures = report[name]
        assert (figures["prompts"], figures["batch_size"], figures["new_tokens"]) == sizes
        speeds = figures["tokens_per_second"]
        assert set(speeds) == {"megagpt", "transformers"} and min(speeds.values()) > 0
        assert figures["ratio"] == speeds["megagpt"] / speeds["transformers"]


def test_both_generators_write_as_many_tokens(run_dir, monkeypatch, tmp_path):
    """Random weights hardly ever end an answer: both write all that they may, and the first time is not counted."""
    made = []
    monkeypatch.setattr(bench_ppo, "speed", lambda function, seed: made.append(function(seed)) or 1.0)
    options = ["--batch-size", "2", "--new-tokens", "3", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["bench_ppo.py", str(run_dir), *options])
    bench_ppo.main()
    ours, theirs = made[::2], made[1::2]
    assert ours == theirs == [2 * 3] * 2 + [EPISODES * 4] * 2


def test_runs_that_are_too_short_or_of_several_ranks_are_refused(run_dir, monkeypatch, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(metrics(SECONDS[:2]))
    with pytest.raises(ConfigError, match="has 2 iterations of PPO; it needs 3 or more"):
        bench_ppo.iteration(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["bench_ppo.py", str(run_dir)])
    with pytest.raises(ConfigError, match="one rank, not 2"):
        bench_ppo.main()
