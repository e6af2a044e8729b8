"""Batches for training and evaluation, made from the configuration."""

from collections.abc import Iterator
from datetime import date

import numpy as np
import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Batch, HeldOut
from megagpt.data.fim import FillInTheMiddle
from megagpt.data.packed import SPLITS, Mixture, PackedCorpus, Split
from megagpt.data.prefetch import PrefetchLoader
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError

CHUNK = 1 << 20
"""Number of held-out tokens that are read at a time."""


def load_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of `data.tokenizer`, with the date that training gives its chat template.

    Raises ConfigError when it has more tokens than the model.
    """
    tokenizer = Tokenizer.load(config.data.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer {config.data.tokenizer} has "
            f"{tokenizer.vocab_size} tokens: set model.vocab_size={tokenizer.vocab_size}"
        )
    tokenizer.today = date.fromisoformat(config.data.chat_date)
    return tokenizer


class PretrainLoader(PrefetchLoader):
    """Batches of a pretraining run; see `Loader`. A batch depends only on the seed and on its sample numbers."""

    def __init__(self, config: Config) -> None:
        """Open all corpora. Raises DataError or ConfigError when they do not fit the configuration."""
        super().__init__()
        self.config, data, model = config, config.data, config.model
        if not data.corpora:
            raise ConfigError("data.corpora is empty: name at least one corpus made by `megagpt data preprocess`")
        self.tokenizer = load_tokenizer(config)
        self.corpora: dict[Split, list[PackedCorpus]] = {
            split: [
                PackedCorpus(corpus.path, data.split, split, model.sequence_length, config.seed)
                for corpus in data.corpora
            ]
            for split in SPLITS
        }
        self._check()
        self.mixture = Mixture(self.corpora["train"], [corpus.weight for corpus in data.corpora], config.seed)
        self.fim = None
        if data.fim_rate:
            self.fim = FillInTheMiddle(
                self.tokenizer,
                rate=data.fim_rate,
                spm_rate=data.fim_spm_rate,
                seed=config.seed,
                unit_rate=data.fim_unit_rate,
                unit=data.fim_unit,
                piece_tokens=data.fim_piece_tokens,
            )

    def evaluation_batches(
        self,
        split: Split,
        max_tokens: int | None,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        micro_batch_size: int | None = None,
    ) -> HeldOut:
        """One rank's share of the documents of `split`, in order. Each token is predicted once.

        Windows follow one another without overlap; the first input of a corpus is end-of-text. `max_tokens` (None:
        all) is divided among the corpora by their weights. Every rank gets the same number of batches; rows beyond the
        end of the text have loss_mask 0.
        """
        size, length = micro_batch_size or self.config.parallel.micro_batch_size, self.config.model.sequence_length
        parts = self._held_out(split, max_tokens)
        ends = np.cumsum([-(-limit // length) for _, limit in parts])

        def window(number: int) -> tuple[PackedCorpus, int, int]:
            place = int(np.searchsorted(ends, number, side="right"))
            corpus, limit = parts[place]
            start = (number - int(ends[place - 1] if place else 0)) * length
            return corpus, start, min(length, limit - start)

        def batch(number: int) -> Batch:
            begin = (number * data_parallel_size + data_parallel_rank) * size
            return self._evaluation_batch([window(at) for at in range(begin, min(begin + size, int(ends[-1])))], size)

        return HeldOut(-(-int(ends[-1]) // (size * data_parallel_size)), batch)

    def evaluation_bytes(self, split: Split, max_tokens: int | None, part: int = 0, parts: int = 1) -> int:
        """See `Loader.evaluation_bytes`."""
        chunks = self._evaluation_tokens(split, max_tokens, part, parts)
        return sum(int(self.tokenizer.token_bytes[tokens].sum()) for tokens in chunks)

    def held_out_text(self, split: Split, max_tokens: int | None = None) -> bytes:
        """The text that `evaluation_batches` predicts, in UTF-8; other compressors are measured on it."""
        chunks = self._evaluation_tokens(split, max_tokens)
        return b"".join(self.tokenizer.decode_bytes(tokens.tolist()) for tokens in chunks)

    def _check(self) -> None:
        sha256, data = self.tokenizer.sha256, self.config.data
        for corpus in self.corpora["train"]:
            if corpus.about["tokenizer_sha256"] != sha256:
                raise DataError(
                    f"{corpus.prefix} was tokenized with another tokenizer (sha256 "
                    f"{corpus.about['tokenizer_sha256'][:12]}) than data.tokenizer={data.tokenizer} ({sha256[:12]}): "
                    "set data.tokenizer to the one it was made with, or make the corpus again"
                )
        for corpus, of in zip(self.corpora["train"], data.corpora, strict=True):
            if of.weight > 0:
                corpus[0]  # raises now, not in the middle of a run, if the split is too short
        for split, share in zip(SPLITS, data.split, strict=True):
            if share > 0 and not any(corpus.num_tokens for corpus in self.corpora[split]):
                total = sum(corpus.about["documents"] for corpus in self.corpora[split])
                advice = "raise the share or set it to 0"
                if total <= sum(share > 0 for share in data.split):
                    advice = "cut the text into more documents (one JSON object or line each), or set the share to 0"
                raise DataError(
                    f"no document fell into the {split} split: data.split gives it a share of {share} of {total} "
                    f"document{'s' * (total != 1)}; {advice}"
                )

    def _train_batch(self, start: int) -> Batch:
        samples = [self._sample(start + row) for row in range(self.config.parallel.micro_batch_size)]
        tokens, mask = (torch.from_numpy(np.stack(rows)) for rows in zip(*samples, strict=True))
        return self._batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask)

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, int64 [S + 1], and loss mask, float32 [S], of a training sample."""
        tokens = self.mixture[index]
        if self.fim:
            return self.fim.sample(tokens, index)
        return tokens, np.ones(len(tokens) - 1, np.float32)

    def _evaluation_batch(self, windows: list[tuple[PackedCorpus, int, int]], size: int) -> Batch:
        tokens = np.full((size, self.config.model.sequence_length + 1), self.tokenizer.end_of_text_id)
        mask = np.zeros((size, self.config.model.sequence_length), np.float32)
        for row, (corpus, start, count) in enumerate(windows):
            known = min(start, 1)  # 1 if a token before the first prediction can be its input
            tokens[row, 1 - known : count + 1] = corpus.read(start - known, count + known)
            mask[row, :count] = 1
        tokens = torch.from_numpy(tokens)
        return self._batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.from_numpy(mask))

    def _batch(self, inputs: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor) -> Batch:
        positions = torch.arange(inputs.shape[1]).expand(inputs.shape).contiguous()
        if not self.config.data.isolate_documents:
            return Batch(inputs, labels, loss_mask, positions)
        after_end = torch.zeros_like(inputs, dtype=torch.bool)
        after_end[:, 1:] = inputs[:, :-1] == self.tokenizer.end_of_text_id
        starts = torch.where(after_end, positions, 0).cummax(1).values
        return Batch(inputs, labels, loss_mask, positions - starts, after_end.long().cumsum(1))

    def _held_out(self, split: Split, max_tokens: int | None) -> list[tuple[PackedCorpus, int]]:
        """(corpus, number of its tokens to predict) for every corpus."""
        weights = [corpus.weight for corpus in self.config.data.corpora]
        shares = np.array(weights) / sum(weights)
        # At least one token of each corpus that is trained on, so that a small limit does not round to 0 for all.
        limits = [None if max_tokens is None else max(int(share > 0), int(max_tokens * share)) for share in shares]
        return [
            (corpus, corpus.num_tokens if limit is None else min(corpus.num_tokens, limit))
            for corpus, limit in zip(self.corpora[split], limits, strict=True)
        ]

    def _evaluation_tokens(
        self, split: Split, max_tokens: int | None, part: int = 0, parts: int = 1
    ) -> Iterator[np.ndarray]:
        """The tokens in chunks of at most CHUNK: chunks part, part + parts, part + 2 parts, ..."""
        chunks = [
            (corpus, start, min(CHUNK, limit - start))
            for corpus, limit in self._held_out(split, max_tokens)
            for start in range(0, limit, CHUNK)
        ]
        for corpus, start, count in chunks[part::parts]:
            yield corpus.read(start, count)
