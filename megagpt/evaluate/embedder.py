"""Computes vectors of texts with an embedding model."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megagpt.config.schema import Config
from megagpt.data.ranked_loader import row_length
from megagpt.data.text_batch import Side, TextEncoder
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.log import progress
from megagpt.parallel.engine import Engine

log = logging.getLogger(__name__)


class Embedder:
    """Turns texts into vectors. All ranks make the same calls and get the same vectors."""

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer) -> None:
        """engine: an engine that returns one vector per text (`ContrastiveObjective`)."""
        self.engine, self.config = engine, config
        self.encoder = TextEncoder(config.embed, config.model.sequence_length, tokenizer)
        self.size = config.model.hidden_size
        """Numbers per vector."""

    def embed(self, texts: Sequence[str], side: Side, dimensions: int | None = None, label: str = "") -> np.ndarray:
        """Vectors of length 1, float32 [n, dimensions]; dimensions is `size` by default.

        label: title of a progress bar; "" for none. Texts that are too long are cut, and a warning gives their number.
        Raises DataError for an empty text, ConfigError for more dimensions than the vectors have. Collective.
        """
        if dimensions is not None and not 0 < dimensions <= self.size:
            raise ConfigError(f"the vectors have {self.size} dimensions, not {dimensions}")
        vectors, cut = self.vectors(texts, side, label)
        if cut:
            limit = self.encoder.max_tokens
            log.warning("%d of %d texts are longer than %d tokens and lose their ends", cut, len(texts), limit)
        return F.normalize(torch.from_numpy(vectors[:, :dimensions]), dim=-1).numpy()

    def vectors(self, texts: Sequence[str], side: Side, label: str = "") -> tuple[np.ndarray, int]:
        """The head's vectors, float32 [n, H], of length 1 / sqrt(temperature), and the number of texts that were cut.

        Raises DataError for an empty text. Collective.
        """
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise DataError(f"text {number} of {len(texts)} is empty: it has no vector")
        rows, cut = self.encoder.encode(texts, side)
        return self.of_rows(rows, label), int(cut.sum())

    def of_rows(self, rows: Sequence[np.ndarray], label: str = "") -> np.ndarray:
        """The head's vectors, float32 [n, H]. rows: token ids of each text, from `TextEncoder`. Collective."""
        result = torch.zeros(len(rows), self.size)
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))  # little padding
        dims, budget = self.engine.dims, self.config.parallel.micro_batch_size * self.config.model.sequence_length
        with progress(len(rows), "texts", label) if label else nullcontext() as bar:
            while order:
                length = row_length(len(rows[order[0]]), self.config)
                each = -(-len(order) // (dims.pipeline_size * dims.data_size))  # few texts do not fill a batch
                count = max(1, min(budget // length, each))
                share = count * dims.pipeline_size  # the interleaved schedule takes multiples of the number of stages
                together, order = order[: share * dims.data_size], order[share * dims.data_size :]
                own = together[dims.data_rank * share : (dims.data_rank + 1) * share]
                parts = [own[first : first + count] for first in range(0, share, count)]
                batches = [self.encoder.batch([rows[place] for place in part], count, length) for part in parts]
                for part, output in zip(parts, self.engine.outputs(iter(batches), len(batches)), strict=True):
                    result[part] = output[: len(part)].float().cpu()
                if bar is not None:
                    bar.update(len(together))
        return self._of_all_replicas(result)

    def _of_all_replicas(self, result: torch.Tensor) -> np.ndarray:
        dims = self.engine.dims
        if dims.data_size > 1:
            if dims.tensor_rank > 0 or not dims.is_first_stage:
                result.zero_()  # only one rank of each replica contributes to the sum
            result = result.to(self.engine.device)
            dist.all_reduce(result)
        return result.cpu().numpy()
