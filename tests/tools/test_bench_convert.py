"""The benchmark of conversions, on a model of a few kilobytes: what it writes, and what it refuses to accept."""

import json
from pathlib import Path

import bench_convert
import pytest
from safetensors.torch import load_file, save_file

from megagpt.errors import CheckpointError

TINY = [
    "model=tiny",
    "model.num_layers=2",
    "model.hidden_size=256",
    "model.sequence_length=16",
    "model.vocab_size=65536",
    "model.attention_pattern=[dense]",
]
TIMED = ("to_huggingface", "back", "safetensors_load_and_save")


def run(monkeypatch, folder: Path) -> int:
    arguments = ["--folder", str(folder), "--output", str(folder / "out/convert.json")]
    monkeypatch.setattr("sys.argv", ["bench_convert.py", *TINY, *arguments])
    return bench_convert.main()


def test_both_ways_and_the_peer_are_measured_in_one_run(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path) == 0
    report = json.loads((tmp_path / "out/convert.json").read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert {"cpu", "python", "torch", "safetensors", "date", "command"} <= set(report)
    assert report["command"].startswith("python tools/bench_convert.py model=tiny")
    assert report["megabytes"] == report["parameters"] * 4 / 1e6
    assert report["largest_tensor_mib"] == 65536 * 256 * 4 / 2**20  # the vocabulary
    for name in ("to_huggingface", "back"):
        assert report[name]["predicted_peak_mib"] == 300 + 2 * report["largest_tensor_mib"]
        assert report[name]["peak_mib"] < 1.15 * report[name]["predicted_peak_mib"]
    assert report["back"]["peak_mib"] > 0.85 * report["back"]["predicted_peak_mib"]
    assert report["limit_mib"] == 2048 + 1.5 * report["largest_tensor_mib"]
    for name in TIMED:
        figures = report[name]
        assert figures["seconds"] > 0 and 0 < figures["peak_mib"] < report["limit_mib"]
        # The peer's file has a header besides, and no padding of the vocabulary.
        assert figures["mb_per_second"] * figures["seconds"] == pytest.approx(report["megabytes"], rel=0.2)
    assert not list(tmp_path.glob("tmp*"))

    monkeypatch.setattr(bench_convert, "measure", lambda *_: report | {"limit_mib": report["back"]["peak_mib"] - 1})
    assert run(monkeypatch, tmp_path) == 1  # one of the ways takes more memory than it may


def test_a_changed_tensor_fails(monkeypatch, tmp_path):
    timed = bench_convert.timed

    def meddle(command: list, size: int) -> dict[str, float]:
        if "megagpt" in command:  # on the way back
            (file,) = next(part for part in command if str(part).endswith("hf")).glob("*.safetensors")
            tensors = load_file(file)
            tensors["transformer.ln_f.weight"] += 1
            save_file(tensors, file, metadata={"format": "pt"})
        return timed(command, size)

    monkeypatch.setattr(bench_convert, "timed", meddle)
    with pytest.raises(CheckpointError, match="the round trip changed a tensor"):
        run(monkeypatch, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_process_that_fails_is_named():
    with pytest.raises(CheckpointError, match=r"-c 'raise SystemExit\(3\)' failed"):
        bench_convert.timed(["-c", "raise SystemExit(3)"], 1)
