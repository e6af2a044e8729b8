"""Imports Megatron-Core without PyTorch's compiler and wandb, which megagpt does not need; this halves the time."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def import_megatron() -> None:
    """Import Megatron-Core quickly. Call this before anything else imports it; later calls have no effect.

    Megatron-Core decorates its fused functions with `torch.compile`, which loads PyTorch's compiler even if no such
    function is called. megagpt calls none, so the decorator is replaced by the identity during the import.
    Megatron-Core's dynamic inference and timers, which megagpt does not use either, import wandb; it is hidden.
    """
    if "megatron.core" in sys.modules:
        return
    with _without_compiler(), _without_wandb(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Apex is not installed; megagpt does not need it
        warnings.simplefilter("ignore", DeprecationWarning)  # Megatron-Core uses its own deprecated modules
        import megatron.core.models.common.language_module.language_module
        import megatron.core.optimizer
        import megatron.core.transformer.transformer_block  # noqa: F401


@contextmanager
def _without_compiler() -> Iterator[None]:
    def as_it_is(function: Callable | None = None, **_: Any) -> Callable:
        return function or as_it_is

    compiled, torch.compile = torch.compile, as_it_is
    disabled, torch.compiler.disable = torch.compiler.disable, as_it_is
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable = compiled, disabled


@contextmanager
def _without_wandb() -> Iterator[None]:
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # makes `import wandb` raise ImportError
    try:
        yield
    finally:
        if hidden:
            del sys.modules["wandb"]
