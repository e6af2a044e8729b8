"""Replaces the progress bars of lm-eval and of the datasets library by megagpt's."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from megagpt.log import progress


@contextmanager
def only_our_bars() -> Iterator[None]:
    """Context in which lm-eval's models show megagpt's progress bars, and steps without a model show none."""
    from datasets.utils import logging as datasets

    bars = {"lm_eval.api.task": _no_bar, "lm_eval.api.model": _no_bar, "lm_eval.models.huggingface": _bar}
    modules = {sys.modules[name]: bar for name, bar in bars.items() if name in sys.modules}  # `hf` is seldom loaded
    before = {module: module.tqdm for module in modules}
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        for module, bar in modules.items():
            module.tqdm = bar
        yield
    finally:
        for module, bar in before.items():
            module.tqdm = bar
        if shown:
            datasets.enable_progress_bar()


def _no_bar(examples: Iterable[Any], **_: Any) -> Iterable[Any]:
    return examples


def _bar(examples: Iterable[Any] | None = None, *, total: float | None = None, **_: Any) -> "tqdm | Iterator[Any]":
    return progress(total, "requests", "requests") if examples is None else _each(list(examples))


def _each(examples: list[Any]) -> Iterator[Any]:
    with progress(len(examples), "requests", "requests") as bar:
        for example in examples:
            yield example
            bar.update(1)
