"""Batches of conversations for the stages edit and sft; only the assistant's tokens count in the loss."""

import bisect
import logging
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from megagpt.config.schema import Config
from megagpt.data.batch import Batch, HeldOut
from megagpt.data.chat import Example, has_answer, truncate_to_context
from megagpt.data.conversations import Conversation, read_conversations, split_conversations
from megagpt.data.loader import load_tokenizer
from megagpt.data.packed import SPLITS, Split, permutation
from megagpt.data.packing import batch_of_rows, pack
from megagpt.data.prefetch import PrefetchLoader
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError

log = logging.getLogger(__name__)


class ConversationLoader(PrefetchLoader):
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
        found = split_conversations(read_conversations(config.data.conversations), config.data.split)
        self.conversations: dict[Split, list[Conversation]] = found
        self.examples: dict[Split, list[Example]] = {split: self._encode(found[split], split) for split in SPLITS}
        check_masks(self.examples["train"], self.tokenizer)
        self.rows: dict[Split, list[list[int]]] = {
            split: pack([len(e.tokens) - 1 for e in examples], length if config.data.packing else 0)
            for split, examples in self.examples.items()
        }
        self._order = lru_cache(maxsize=2)(partial(permutation, len(self.rows["train"]), config.seed))

    def _encode(self, conversations: list[Conversation], split: Split) -> list[Example]:
        length = self.config.model.sequence_length + 1
        fitting = [_shortened(self.tokenizer, item, length) for item in conversations]
        examples = [example for example in fitting if example is not None]
        silent = sum(not has_answer(item.messages) for item in conversations)
        for count, why in (
            (silent, "they have no answer to be learnt"),
            (
                len(fitting) - len(examples) - silent,
                f"their first answer ends beyond model.sequence_length ({length - 1})",
            ),
        ):
            if count:
                log.warning("%s: %d of %d conversations are left out: %s", split, count, len(fitting), why)
        if not examples and self.config.data.split[SPLITS.index(split)]:
            raise DataError(
                f"no conversation is left in the {split} split of {len(conversations)}: use more, a longer "
                "model.sequence_length, or set its share in data.split to 0"
            )
        return examples

    def evaluation_batches(
        self, split: Split, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> HeldOut:
        """One rank's share of the conversations of `split`, in order; every rank gets the same number of batches.

        `max_tokens`: how many tokens to predict at most (None: all), by whole rows.
        """
        size, rows = self.config.parallel.micro_batch_size, self._held_out(split, max_tokens)

        def batch(number: int) -> Batch:
            begin = (number * data_parallel_size + data_parallel_rank) * size
            chosen = rows[begin : begin + size]
            return self._batch(split, chosen + [[]] * (size - len(chosen)))

        return HeldOut(-(-len(rows) // (size * data_parallel_size)), batch)

    def evaluation_bytes(self, split: Split, max_tokens: int | None, part: int = 0, parts: int = 1) -> int:
        """See `Loader.evaluation_bytes`."""
        table, examples = self.tokenizer.token_bytes, self.examples[split]
        chosen = [examples[index] for row in self._held_out(split, max_tokens) for index in row]
        return sum(int(table[example.tokens[example.trained]].sum()) for example in chosen[part::parts])

    def _held_out(self, split: Split, max_tokens: int | None) -> list[list[int]]:
        rows = self.rows[split]
        if max_tokens is None:
            return rows
        counts = np.cumsum([sum(int(self.examples[split][index].trained.sum()) for index in row) for row in rows])
        return rows[: max(1, bisect.bisect_right(counts.tolist(), max_tokens))]

    def _train_batch(self, start: int) -> Batch:
        rows, chosen = self.rows["train"], []
        for index in range(start, start + self.config.parallel.micro_batch_size):
            epoch, place = divmod(index, len(rows))
            chosen.append(rows[self._order(epoch)[place]])
        return self._batch("train", chosen)

    def _batch(self, split: Split, rows: list[list[int]]) -> Batch:
        examples, length = self.examples[split], self.config.model.sequence_length
        return batch_of_rows([[examples[index] for index in row] for row in rows], length, self.tokenizer)


def _shortened(tokenizer: Tokenizer, conversation: Conversation, length: int) -> Example | None:
    """See `truncate_to_context`. Raises DataError with the place of a conversation that a chat template refuses."""
    try:
        return truncate_to_context(tokenizer, conversation.messages, length)
    except DataError as error:
        raise DataError(f"{conversation.place}: {error}") from None


def check_masks(examples: Sequence[Example], tokenizer: Tokenizer) -> None:
    """Raise DataError when no token is trained on, or every text is: both are mistakes of the data."""
    special = np.array(sorted(tokenizer.special_ids.values()))
    if not any(example.trained.any() for example in examples):
        raise DataError("no token of the conversations is an assistant's: there is nothing to learn; check the roles")
    if all(example.trained[~np.isin(example.tokens, special)].all() for example in examples):
        raise DataError("every text of the conversations is an assistant's: there is no prompt; use stage=pretrain")
