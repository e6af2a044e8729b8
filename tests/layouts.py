"""Layouts of two ranks, in which stages are compared with one rank."""

import importlib.util
from collections.abc import Iterable

import pytest

ON_TWO_RANKS = {
    "data": [],
    "tensor": ["parallel.tensor_parallel_size=2"],
    "sequence": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
    "pipeline": ["parallel.pipeline_parallel_size=2"],
    "interleaved": ["parallel.pipeline_parallel_size=2", "parallel.virtual_pipeline_size=2"],
}
"""Name -> overrides."""
if importlib.util.find_spec("deepspeed"):
    ON_TWO_RANKS |= {
        f"deepspeed_{stage}": ["parallel.engine=deepspeed", f"parallel.zero_stage={stage}"] for stage in (1, 2, 3)
    }
OFTEN = {"data", "sequence", "interleaved", "deepspeed_3"}
"""Layouts that are tried every time: what the others share between ranks, these do too."""


def cases(layouts: Iterable[str], often: set[str] = OFTEN) -> list:
    """Parameters of a test of each layout; `make test-thorough` alone has those that are not among `often`."""
    return [name if name in often else pytest.param(name, marks=pytest.mark.thorough) for name in layouts]


def tried(layouts: dict[str, list[str]], thorough: bool, often: set[str] = OFTEN) -> dict[str, list[str]]:
    """The layouts whose tests run."""
    return {name: overrides for name, overrides in layouts.items() if thorough or name in often}
