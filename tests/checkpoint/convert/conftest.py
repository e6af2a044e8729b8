"""What tests of broken files share."""

from pathlib import Path

import pytest
from tqdm import tqdm

from tests.checkpoint.convert.formats import FORMATS
from tests.checkpoint.convert.test_megatron import GPT3, source_of


@pytest.fixture
def written(tmp_path):
    """Writes a checkpoint of a format."""

    def write(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        FORMATS[name].write(source_of(GPT3), folder, tqdm(disable=True))
        return folder

    return write
