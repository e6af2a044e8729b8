"""Imports Megatron-Core without what megagpt never uses of it, which halves the time that the import takes."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def import_megatron() -> None:
    """Import Megatron-Core quickly; to be called before anything else imports it, and without effect afterwards.

    Its fused functions are decorated with `torch.compile`, which loads PyTorch's compiler even if none is ever called:
    our layers and settings call none, so here the decorator leaves functions as they are. Its dynamic inference and
    its timers, which megagpt does not use either, load wandb where it is installed; here they do not find it.
    """
    if "megatron.core" in sys.modules:
        return
    with _without_compiler(), _without_wandb(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that Apex is not installed, which megagpt does not need
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own modules, by each other
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
