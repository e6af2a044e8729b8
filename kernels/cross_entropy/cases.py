"""Launches of the cross-entropy kernels on meta tensors, for `tools/kernel_report.py`."""

from collections.abc import Callable, Iterator

import torch

from megagpt.kernels.cross_entropy import kernel

TOKENS, COLUMNS, VOCABULARY = 16384, 51200, 50257


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, call that launches with meta tensors)."""

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    labels, per_token = meta(TOKENS, dtype=torch.int64), meta(TOKENS)
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        logits = meta(TOKENS, COLUMNS, dtype=dtype)
        yield f"cross_entropy statistics {name}", lambda x=logits: kernel.statistics(x, labels, 0, VOCABULARY)
        yield (
            f"cross_entropy backward {name}",
            lambda x=logits: kernel.backward(per_token, x, labels, per_token, 0, VOCABULARY, -100, 0.1, 1e-4),
        )
    yield (
        "cross_entropy losses",
        lambda: kernel.losses(meta(1, 4, TOKENS), labels, VOCABULARY, -100, 0.1, 1e-4),
    )
