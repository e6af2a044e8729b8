"""Fixtures of the tests of reinforcement learning."""

import pytest

from tests.rl import tiny_ppo


@pytest.fixture(scope="session")
def settings(tmp_path_factory) -> list[str]:
    """Overrides of a run of PPO on a model of a few steps."""
    return tiny_ppo.prepare(tmp_path_factory.mktemp("ppo"))
