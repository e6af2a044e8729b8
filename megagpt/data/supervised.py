"""Batches of conversations, of which only the assistant's part counts in the loss: for the stages edit and sft."""

import bisect
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.data.chat import Example, Message, encode_chat
from megagpt.data.conversations import Conversation, read_conversations
from megagpt.data.loader import load_tokenizer
from megagpt.data.packed import PARTS, Part, part_of, permutation
from megagpt.data.read_ahead import ReadAhead
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")


class ConversationLoader(ReadAhead):
    """Every batch of a run on conversations. A batch is a function of the seed and of sample numbers, in every layout.

    A sample is a row of `model.sequence_length` tokens: several whole conversations, none of which sees another, or
    one, if `data.packing` is off. An epoch is a permutation of all rows.
    """

    def __init__(self, config: Config) -> None:
        """Read all conversations. Raises DataError when nothing can be learnt from them."""
        super().__init__()
        self.config = config
        self.tokenizer = load_tokenizer(config)
        length = config.model.sequence_length
        found = divide(read_conversations(config.data.conversations), config.data.split)
        self.conversations: dict[Part, list[Conversation]] = found
        self.examples: dict[Part, list[Example]] = {part: self._encode(found[part], part) for part in PARTS}
        check_masks(self.examples["train"], self.tokenizer)
        self.rows: dict[Part, list[list[int]]] = {
            part: pack([len(e.tokens) - 1 for e in examples], length if config.data.packing else 0)
            for part, examples in self.examples.items()
        }
        self._order = lru_cache(maxsize=2)(partial(permutation, len(self.rows["train"]), config.seed))

    def _encode(self, conversations: list[Conversation], part: Part) -> list[Example]:
        length = self.config.model.sequence_length + 1
        fitting = [fit(self.tokenizer, conversation.messages, length) for conversation in conversations]
        examples = [example for example in fitting if example is not None]
        if len(examples) < len(fitting):
            log.warning(
                "%s: %d of %d conversations are left out: their first answer ends beyond model.sequence_length (%d)",
                *(part, len(fitting) - len(examples), len(fitting), length - 1),
            )
        if not examples and self.config.data.split[PARTS.index(part)]:
            raise DataError(
                f"no conversation is left in the {part} part of {len(conversations)}: use more, a longer "
                "model.sequence_length, or set its share in data.split to 0"
            )
        return examples

    def evaluation_batches(
        self, part: Part, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> Iterator[Batch]:
        """One rank's share of the conversations of `part`, in order; every rank gets the same number of batches.

        `max_tokens`: how many tokens to predict at most (None: all), by whole rows.
        """
        size, rows = self.config.parallel.micro_batch_size, self._held_out(part, max_tokens)
        for first in range(0, len(rows), size * data_parallel_size):
            begin = first + data_parallel_rank * size
            chosen = rows[begin : begin + size]
            yield self._batch(part, chosen + [[]] * (size - len(chosen)))

    def evaluation_bytes(self, part: Part, max_tokens: int | None) -> int:
        """Number of UTF-8 bytes of the text that `evaluation_batches` predicts on all ranks together."""
        table, examples = self.tokenizer.token_bytes, self.examples[part]
        chosen = [examples[index] for row in self._held_out(part, max_tokens) for index in row]
        return sum(int(table[example.tokens[example.trained]].sum()) for example in chosen)

    def _held_out(self, part: Part, max_tokens: int | None) -> list[list[int]]:
        rows = self.rows[part]
        if max_tokens is None:
            return rows
        counts = np.cumsum([sum(int(self.examples[part][index].trained.sum()) for index in row) for row in rows])
        return rows[: max(1, bisect.bisect_right(counts.tolist(), max_tokens))]

    def _train_batch(self, start: int) -> Batch:
        rows, chosen = self.rows["train"], []
        for index in range(start, start + self.config.parallel.micro_batch_size):
            epoch, place = divmod(index, len(rows))
            chosen.append(rows[self._order(epoch)[place]])
        return self._batch("train", chosen)

    def _batch(self, part: Part, rows: list[list[int]]) -> Batch:
        examples, length = self.examples[part], self.config.model.sequence_length
        return batch_of_rows([[examples[index] for index in row] for row in rows], length, self.tokenizer)


def batch_of_rows(rows: Sequence[Sequence[Example]], length: int, tokenizer: Tokenizer) -> Batch:
    """Rows of `length` tokens, each of whole examples, with positions from 0 in every one; what is left is padding.

    Unless every row holds a single example, `document_ids` keeps them apart.
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
    """Indices of `lengths` in rows of at most `room`, by best fit, longest first; `room` 0: one a row, in order."""
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


def fit(tokenizer: Tokenizer, messages: Sequence[Message], length: int) -> Example | None:
    """The conversation up to its last answer that ends within `length` tokens; None when not even the first does."""
    ends = [number for number, message in enumerate(messages, 1) if message.role == "assistant"]
    while ends:
        example = encode_chat(tokenizer, messages[: ends.pop()])
        if len(example.tokens) <= length:
            return example
    return None


def divide(conversations: Sequence[T], split: Sequence[float]) -> dict[Part, list[T]]:
    """Conversations, or other records with `messages` and `user`, by part; exact repetitions are left out.

    Those that begin alike but for case and white space are in the same part, and so are those of one user where users
    are known, and whatever hangs together by either.
    """
    parts: dict[Part, list[T]] = {part: [] for part in PARTS}
    records = list(dict.fromkeys(conversations))
    groups: dict[str, str] = {}

    def group(key: str) -> str:
        while groups.setdefault(key, key) != key:
            groups[key] = key = groups[groups[key]]
        return key

    for record in records:
        if record.user is not None:
            first, second = sorted((group(_opening(record)), group(f"user {record.user}")))
            groups[second] = first
    for record in records:
        parts[part_of(group(_opening(record)), split)].append(record)
    return parts


def _opening(record: Any) -> str:
    first = next((message.content for message in record.messages if message.role == "user"), "")
    return "prompt " + " ".join(first.split()).lower()


def check_masks(examples: Sequence[Example], tokenizer: Tokenizer) -> None:
    """Raise DataError when no token is trained on, or every text is: both are mistakes of the data."""
    special = np.array(sorted(tokenizer.special_ids.values()))
    if not any(example.trained.any() for example in examples):
        raise DataError("no token of the conversations is an assistant's: there is nothing to learn; check the roles")
    if all(example.trained[~np.isin(example.tokens, special)].all() for example in examples):
        raise DataError("every text of the conversations is an assistant's: there is no prompt; use stage=pretrain")
