"""`megagpt data instructions`."""

import json

import pytest

from megagpt.data.conversations import read_conversations
from megagpt.data.instructions import check
from megagpt.data.rankings import read_rankings
from megagpt.errors import ConfigError


def test_the_three_files_are_what_the_stages_read(tmp_path, megagpt):
    for name in ("one", "two"):
        out = megagpt("data", "instructions", "--count", "30", "--output-dir", tmp_path / name)
    assert "6 repeat" in out
    files = {name: tmp_path / "one" / f"{name}.jsonl" for name in ("conversations", "rankings", "prompts")}
    for name, path in files.items():
        assert path.read_bytes() == (tmp_path / "two" / f"{name}.jsonl").read_bytes()
    shown = read_conversations([files["conversations"]])
    assert len(shown) == 30
    for conversation in shown:
        assert check(conversation.extra["check"], conversation.messages[-1].content) == 1
    for ranking in read_rankings([files["rankings"]]):
        assert 2 <= len(ranking.answers) <= 9
        assert min(ranking.ranks) == 0
    for prompt in read_conversations([files["prompts"]]):
        assert prompt.messages[-1].role == "user"
        assert "check" in prompt.extra
    kinds = {json.loads(line)["kind"] for line in files["prompts"].read_text().splitlines()}
    assert len(kinds) > 8


def test_mistakes_are_told(tmp_path, megagpt):
    with pytest.raises(ConfigError, match="kinds sing: they are"):
        megagpt("data", "instructions", "--kinds", "sing", "--output-dir", str(tmp_path))
    with pytest.raises(ConfigError, match="--count is 0"):
        megagpt("data", "instructions", "--count", "0", "--output-dir", str(tmp_path))
    assert not list(tmp_path.iterdir())
