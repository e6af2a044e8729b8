"""The command, called in this process."""

from collections.abc import Callable

import pytest

from megagpt import cli


@pytest.fixture
def megagpt(capsys) -> Callable[..., str]:
    """Runs a command line that succeeds and returns what it prints."""

    def call(*arguments: object) -> str:
        assert cli.run(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    return call
