"""The command, called in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from megagpt import cli
from megagpt.stages import embedding
from tests.embedders import WordEmbedder


@pytest.fixture
def megagpt(capsys) -> Callable[..., str]:
    """Runs a command line that succeeds and returns what it prints."""

    def call(*arguments: object) -> str:
        assert cli.run(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def embedder(monkeypatch) -> WordEmbedder:
    """What every checkpoint is loaded as, instead of a model."""
    made = WordEmbedder()
    monkeypatch.setattr(embedding, "load_embedder", lambda path, parallel: made)
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The folder of a checkpoint in which nothing but its manifest is looked at."""
    folder = tmp_path / "run" / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder
