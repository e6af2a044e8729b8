"""The benchmark of stage embed: both sides take steps, and a file of too few pairs is refused at once."""

import json

import bench_embed
import pytest

from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError

WORDS = ["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """Arguments for a file of 13 pairs, of which two are of one document."""
    folder = tmp_path_factory.mktemp("pairs")
    train_tokenizer([" ".join(WORDS)], 300).save(folder / "tokenizer.json")
    records = [{"query": " ".join(WORDS[: n % 10 + 1]), "positive": f"{n}", "document": f"{n % 12}"} for n in range(13)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return ["--tokenizer", f"{folder}/tokenizer.json", "--pairs", f"{folder}/pairs.jsonl", "--micro-batches", "2", "4"]


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["bench_embed.py", *arguments])
    bench_embed.main()


@pytest.mark.slow
@pytest.mark.thorough
def test_report(options, monkeypatch, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    output = tmp_path / "out/embed.json"
    sizes = ["--batch-size", "4", "--growth", "4", "12", "--repeats", "1"]
    run(monkeypatch, *options, *sizes, "--output", str(output))
    report = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert {"device", "threads", "python", "torch", "date", "command", "growth", "step"} <= set(report)
    assert report["command"].startswith("python tools/bench_embed.py --tokenizer ")
    assert [one["batch_size"] for one in report["growth"]] == [4, 12]
    for one in report["growth"]:
        assert one["seconds_per_pair"] > 0 and one["peak_memory_gib"] > 0
    step = report["step"]
    assert (step["batch_size"], step["repeats"], step["model"]) == (4, 1, "demo")
    for values in (step["micro_batch_size"], step["seconds"]):
        assert set(values) == {"megagpt", "sentence_transformers"} and min(values.values()) > 0
    assert step["ratio"] == step["seconds"]["sentence_transformers"] / step["seconds"]["megagpt"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (["--growth", "4", "13"], "--growth 13 takes 13 pairs of different documents, and .*pairs.jsonl has 12"),
        (["--batch-size", "16"], "--batch-size 16 takes 16 pairs"),
    ],
)
def test_too_few_pairs_are_refused_before_anything_is_measured(options, monkeypatch, sizes, message):
    monkeypatch.setattr(bench_embed, "growth", None)
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, *options, "--batch-size", "4", *sizes)


def test_several_ranks_are_refused(options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one rank, not 2"):
        run(monkeypatch, *options)
