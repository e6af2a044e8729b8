"""Overrides for a run that starts from another run or a converted model: shape, tokenizer and weights."""

import dataclasses
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"
LEFT_OUT = ("head", "name")
"""Fields of the model that depend on the stage or the run, and so are not taken over."""


def base_overrides(run: Path) -> list[str]:
    """Overrides that give a new run the model shape, the tokenizer and the weights of `run`.

    run: a run folder or a checkpoint

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
