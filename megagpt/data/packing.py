"""Packing: several whole conversations in one row of a batch, to have little padding."""

import bisect
from collections.abc import Sequence

import numpy as np
import torch

from megagpt.data.batch import Batch
from megagpt.data.chat import Example
from megagpt.data.tokenizer import Tokenizer


def batch_of_rows(rows: Sequence[Sequence[Example]], length: int, tokenizer: Tokenizer) -> Batch:
    """A batch of `length` tokens per row. Each row holds whole examples, then padding.

    Positions begin at 0 in every example. If a row holds several examples, the batch has `document_ids`, which keep
    them apart.
    """
    shape = len(rows), length
    tokens, labels = (np.full(shape, tokenizer.end_of_text_id) for _ in range(2))
    mask, positions, documents = np.zeros(shape, np.float32), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples):
            end = start + len(example.tokens) - 1
            tokens[row, start:end], labels[row, start:end] = example.tokens[:-1], example.tokens[1:]
            mask[row, start:end] = example.trained[1:]
            positions[row, start:end], documents[row, start:end] = np.arange(end - start), number
            start = end
        positions[row, start:], documents[row, start:] = np.arange(length - start), len(examples)
    tensors = [torch.from_numpy(array) for array in (tokens, labels, mask, positions, documents)]
    return Batch(*tensors) if any(len(examples) > 1 for examples in rows) else Batch(*tensors[:4])


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of indices of `lengths`, of at most `room` tokens, by best fit, longest first.

    `room` 0: one example per row, in order.
    """
    if not room:
        return [[index] for index in range(len(lengths))]
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect.bisect_left(free, (lengths[index], -1))
        if place == len(free):
            left, row = room, len(rows)
            rows.append([])
        else:
            left, row = free.pop(place)
        rows[row].append(index)
        bisect.insort(free, (left - lengths[index], row))
    return rows
