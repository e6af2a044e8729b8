"""Batches of prompts with ranked answers, for the stage reward: every answer in a row of its own."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Batch, HeldOut
from megagpt.data.chat import Message, chat_prompt, encode_chat
from megagpt.data.conversations import Conversation, split_conversations
from megagpt.data.loader import load_tokenizer
from megagpt.data.packed import SPLITS, Split, permutation
from megagpt.data.prefetch import PrefetchLoader
from megagpt.data.rankings import Ranking, read_rankings
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankedBatch(Batch):
    """R conversations, whose scores are read where `loss_mask` is 1: at the last token, end-of-text.

    A row without such a place is padding. Labels mean nothing.
    """

    prompts: torch.Tensor
    """int64 [R]: number of the row's prompt."""
    ranks: torch.Tensor
    """int64 [R]: rank of the row's answer among those to its prompt, 0 for the best."""

    def scores(self, values: torch.Tensor) -> torch.Tensor:
        """Each row's score, [R], of a value for every token, [R, S]."""
        return (values * self.loss_mask).sum(1)


@dataclass(frozen=True)
class RankedExample:
    """A prompt's answers as tokens, each after the prompt."""

    rows: list[np.ndarray]
    """int64 [n] each."""
    ranks: list[int]
    answer_tokens: list[int]
    """Tokens of each answer, end-of-text included."""


class RankedLoader(PrefetchLoader):
    """Every batch of a run on ranked answers. A batch is a function of the seed and of sample numbers, in every layout.

    A sample is a prompt with all its answers, which are thus in one batch; an epoch is a permutation of all prompts.
    Rows are as long as the longest of the batch. Where stages of a pipeline exchange them, all batches have one shape:
    as many rows, as long, as the largest of the data would need.
    """

    def __init__(self, config: Config) -> None:
        """Read all rankings. Raises DataError when nothing can be learnt from them."""
        super().__init__()
        self.config = config
        self.tokenizer = load_tokenizer(config)
        self.examples = {split: self._encode(found, split) for split, found in self._split().items()}
        everything = [example for examples in self.examples.values() for example in examples]
        self._most = max(len(example.rows) for example in everything)
        self._longest = max(len(row) for example in everything for row in example.rows)
        self._order = lru_cache(maxsize=2)(partial(permutation, len(self.examples["train"]), config.seed))

    @property
    def sample_tokens(self) -> int:
        """See `Loader.sample_tokens`: of all answers to a prompt, with the prompt, on average and without padding."""
        train = self.examples["train"]
        return -(-sum(len(row) for example in train for row in example.rows) // len(train))

    def _split(self) -> dict[Split, list[Ranking]]:
        """Rankings by split; see `split_conversations`."""
        rankings = read_rankings(self.config.data.rankings)
        held: dict[Conversation, dict[Ranking, None]] = {}
        for ranking in rankings:
            held.setdefault(Conversation(ranking.messages, user=ranking.user), {})[ranking] = None
        keys_of = split_conversations(list(held), self.config.data.split)
        return {split: [ranking for key in keys for ranking in held[key]] for split, keys in keys_of.items()}

    def _encode(self, rankings: list[Ranking], split: Split) -> list[RankedExample]:
        length, examples, useless, long = self.config.model.sequence_length, [], 0, 0
        for ranking in rankings:
            if len(set(ranking.ranks)) < 2:
                useless += 1
                continue
            example = encode_ranking(self.tokenizer, ranking)
            kept = [number for number, row in enumerate(example.rows) if len(row) <= length]
            if len({example.ranks[number] for number in kept}) < 2:
                long += 1
                continue
            examples.append(RankedExample(*([values[n] for n in kept] for values in vars(example).values())))
        for count, why in (
            (useless, "none of their answers is better than another"),
            (long, f"fewer than two different answers end within model.sequence_length ({length})"),
        ):
            if count:
                log.warning("%s: %d of %d prompts are left out: %s", split, count, len(rankings), why)
        if not examples and self.config.data.split[SPLITS.index(split)]:
            raise DataError(
                f"no prompt with two answers to compare is left in the {split} split of {len(rankings)}: use more, a"
                " longer model.sequence_length, or set its share in data.split to 0"
            )
        return examples

    def _train_batch(self, start: int) -> RankedBatch:
        examples, chosen = self.examples["train"], []
        for index in range(start, start + self.config.parallel.micro_batch_size):
            epoch, place = divmod(index, len(examples))
            chosen.append(examples[self._order(epoch)[place]])
        return self._batch(chosen)

    def evaluation_batches(
        self, split: Split, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> HeldOut:
        """One rank's share of the prompts of `split`, in order; every rank gets the same number of batches.

        `max_tokens`: how many tokens to read at most (None: all), by whole prompts and at least one.
        """
        size, chosen = self.config.parallel.micro_batch_size, self.held_out(split, max_tokens)

        def batch(number: int) -> RankedBatch:
            begin = (number * data_parallel_size + data_parallel_rank) * size
            return self._batch(chosen[begin : begin + size])

        return HeldOut(-(-len(chosen) // (size * data_parallel_size)), batch)

    def evaluation_bytes(self, split: Split, max_tokens: int | None, part: int = 0, parts: int = 1) -> int:
        """0: no text is predicted."""
        return 0

    def held_out(self, split: Split, max_tokens: int | None) -> list[RankedExample]:
        """The prompts that `evaluation_batches` of all ranks have, in order."""
        examples = self.examples[split]
        if max_tokens is None:
            return examples
        tokens = np.cumsum([sum(map(len, example.rows)) for example in examples])
        return examples[: max(1, int(np.searchsorted(tokens, max_tokens, side="right")))]

    def _batch(self, examples: Sequence[RankedExample]) -> RankedBatch:
        rows = [row for example in examples for row in example.rows]
        prompts = [number for number, example in enumerate(examples) for _ in example.rows]
        ranks = [rank for example in examples for rank in example.ranks]
        count, longest = max(1, len(rows)), max(map(len, rows), default=1)
        if self.config.parallel.pipeline_parallel_size > 1:
            count, longest = self.config.parallel.micro_batch_size * self._most, self._longest
        return ranked_batch(rows, prompts, ranks, count, row_length(longest, self.config), self.tokenizer)


def row_length(longest: int, config: Config) -> int:
    """Length of rows of which the longest has `longest` tokens: sequence-parallel ranks take equal parts of them."""
    parts = config.parallel.tensor_parallel_size
    return min(-(-longest // parts) * parts, config.model.sequence_length)


def ranked_batch(
    rows: Sequence[np.ndarray],
    prompts: Sequence[int],
    ranks: Sequence[int],
    count: int,
    length: int,
    tokenizer: Tokenizer,
) -> RankedBatch:
    """`count` rows of `length` tokens: the given ones, int64 [n] each with n <= length, and padding."""
    shape = (count, length)
    tokens, mask = np.full(shape, tokenizer.end_of_text_id, np.int64), np.zeros(shape, np.float32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        mask[number, len(row) - 1] = 1
    absent = count - len(rows)
    return RankedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.zeros(shape, dtype=torch.int64),
        loss_mask=torch.from_numpy(mask),
        position_ids=torch.arange(length).expand(shape),
        prompts=torch.tensor([*prompts, *[0] * absent], dtype=torch.int64),
        ranks=torch.tensor([*ranks, *[0] * absent], dtype=torch.int64),
    )


def encode_ranking(tokenizer: Tokenizer, ranking: Ranking) -> RankedExample:
    """A ranking's conversations as tokens, one for every answer.

    Raises DataError with the place of a ranking that the model's chat template refuses.
    """
    conversations = [[*ranking.messages, Message("assistant", answer)] for answer in ranking.answers]
    try:
        rows = [encode_chat(tokenizer, messages).tokens for messages in conversations]
        before = len(chat_prompt(tokenizer, ranking.messages))
    except DataError as error:
        raise DataError(f"{ranking.place}: {error}") from None
    return RankedExample(rows, list(ranking.ranks), [len(row) - before for row in rows])
