"""How a corpus grows: pages in known amounts, real figures of two sizes, and a judgement."""

import json
import sys

import grow_corpus
import pytest

from megagpt.errors import ConfigError, MegaGPTError

SENTENCES = [
    f"This is sentence {number} of the text, and it says what number {number * 7} is." for number in range(500)
]


def test_pages_are_as_many_as_wanted_and_some_are_copies():
    found = list(grow_corpus.pages(SENTENCES, 2e6, seed=1))
    size = sum(len(page.encode()) for page in found)
    assert 2e6 <= size < 2.02e6
    assert found == list(grow_corpus.pages(SENTENCES, 2e6, seed=1)) != list(grow_corpus.pages(SENTENCES, 2e6, seed=2))
    copies = len(found) - len(set(found))
    assert 0.3 * grow_corpus.EXACT < copies / len(found) < 3 * grow_corpus.EXACT


@pytest.mark.parametrize(
    ("seconds", "memory", "fault"),
    [(11.9, 4.9, None), (12.1, 4.9, "cpu_seconds: 12.1 times for 10.0"), (11.9, 5.1, "peak_memory_mb: 5.1 times")],
)
def test_what_grows_too_fast_is_named(seconds, memory, fault):
    small = {"text_mb": 1.0, "cpu_seconds": 1.0, "peak_memory_mb": 1.0}
    large = {"text_mb": 10.0, "cpu_seconds": seconds, "peak_memory_mb": memory}
    faults = grow_corpus.judge([small, large])
    assert len(faults) == (fault is not None)
    assert not fault or fault in faults[0]


def test_two_sizes_are_measured(data_dir, tmp_path, monkeypatch):
    arguments = ["--data", data_dir, "--mb", 0.5, 1, "--folder", tmp_path / "work", "--output", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["grow_corpus.py", *map(str, arguments)])
    monkeypatch.setattr(grow_corpus, "FILE_MB", 0.2)
    monkeypatch.setattr(grow_corpus, "MOST_MEMORY", 2.0)  # so little text takes less memory than the program
    grow_corpus.main()
    small, large = json.loads((tmp_path / "out.json").read_text())["sizes"]
    assert small["text_mb"] == pytest.approx(0.5, abs=0.05) and large["text_mb"] == pytest.approx(1, abs=0.05)
    for size in (small, large):
        assert 0.5 < size["kept_pages"] / size["pages"] < 1
        assert 0 < size["cpu_seconds_by_step"]["filter"]["total"] < size["cpu_seconds"] < 3 * size["seconds"]
        assert 50 < size["peak_memory_mb"] < 3000
    with pytest.raises(ConfigError, match="ascending sizes"):
        monkeypatch.setattr(sys, "argv", ["grow_corpus.py", "--data", str(data_dir), "--mb", "2", "1"])
        grow_corpus.main()


def test_a_corpus_that_fails_ends_the_tool(data_dir, tmp_path, monkeypatch):
    arguments = ["--data", data_dir, "--mb", 0.1, "--folder", tmp_path / "work", "--recipe", "none"]
    monkeypatch.setattr(sys, "argv", ["grow_corpus.py", *map(str, arguments)])
    with pytest.raises(MegaGPTError, match="ended with exit code"):
        grow_corpus.main()
