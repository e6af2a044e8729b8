"""A run that starts from another one, or from a converted model: its shape, tokenizer and weights as overrides."""

import dataclasses
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"
LEFT_OUT = ("head", "name")
"""Fields of the model that belong to the stage and to the run."""


def base_overrides(run: Path) -> list[str]:
    """Overrides by which a run has the model of `run`, a run folder or a checkpoint, its tokenizer and its weights.

    Raises CheckpointError when there is no checkpoint.
    """
    from megagpt.checkpoint.inspect import chosen, model_of

    model = dataclasses.asdict(model_of(run))
    lines = [f"model.{name}={_written(value)}" for name, value in model.items() if name not in LEFT_OUT]
    tokenizer = chosen(run).parent.parent / TOKENIZER
    return [*lines, *([f"data.tokenizer={tokenizer}"] if tokenizer.exists() else []), f"checkpoint.load={run}"]


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return str(value)
