"""A configuration on a given number of GPUs: layers, micro-batches and replicas."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from megagpt.config.schema import Config
from megagpt.train.flops import flops_per_token

BF16, FP32 = 2, 4  # bytes
RANKED_ANSWERS = 9
"""Largest number of answers per ranked prompt (arXiv 2203.02155); memory is planned for this many."""


@dataclass(frozen=True)
class Job:
    """A run to be planned: `config` on `gpus` ranks, and two properties of the kernels that the configuration lacks."""

    config: Config
    gpus: int
    fused_gradient_accumulation: bool = False
    """Whether the matrix product adds a weight's gradient to the fp32 buffer (as in the published runs)."""
    scattered_messages: bool = False
    """Whether each tensor-parallel rank sends only its share of the hidden states to the next stage (arXiv 2104.04473,
    section 4.1; Megatron-Core no longer does this)."""

    @property
    def tensor_size(self) -> int:
        """Number of tensor-parallel ranks."""
        return self.config.parallel.tensor_parallel_size

    @property
    def pipeline_size(self) -> int:
        """Number of pipeline stages."""
        return self.config.parallel.pipeline_parallel_size

    @property
    def virtual_size(self) -> int:
        """Number of chunks of layers per pipeline stage (interleaved schedule)."""
        return self.config.parallel.virtual_pipeline_size

    @property
    def data_size(self) -> int:
        """Number of data-parallel replicas."""
        return self.gpus // (self.tensor_size * self.pipeline_size)

    @property
    def sequence_size(self) -> int:
        """Number of ranks that share the tokens of norms, dropouts and the residual stream."""
        return self.tensor_size if self.config.parallel.sequence_parallel else 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a replica in a step at the full batch size."""
        return self.config.optim.global_batch_size // (self.data_size * self.config.parallel.micro_batch_size)

    @property
    def rows(self) -> int:
        """Sequences per micro-batch: stage reward has `RANKED_ANSWERS` per prompt, stage embed all texts of a pair."""
        each = {"reward": RANKED_ANSWERS, "embed": 2 + self.config.embed.hard_negatives}
        return self.config.parallel.micro_batch_size * each.get(self.config.stage.name, 1)

    @property
    def row_length(self) -> int:
        """Tokens per sequence; in stage embed the greatest text length, padded for sequence-parallel ranks."""
        length = self.config.model.sequence_length
        if self.config.stage.name != "embed":
            return length
        longest = self.config.embed.max_tokens or length
        return min(-(-longest // self.tensor_size) * self.tensor_size, length)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.row_length * self.rows

    @property
    def flops_per_token(self) -> float:
        """See `megagpt.train.flops`."""
        return flops_per_token(dataclasses.replace(self.config.model, sequence_length=self.row_length))

    @property
    def message_bytes(self) -> float:
        """Bytes of hidden states that a rank sends to the next stage for one micro-batch."""
        sharers = self.tensor_size if self.scattered_messages else self.sequence_size
        return self.itemsize * self.tokens * self.config.model.hidden_size / sharers

    @property
    def step_tokens(self) -> int:
        """Tokens of a step at the full batch size."""
        return self.tokens * self.micro_batches * self.data_size

    @property
    def itemsize(self) -> int:
        """Bytes of a weight and of an activation."""
        return BF16 if self.config.optim.precision == "bf16" else FP32

    @cached_property
    def unfused_attention(self) -> bool:
        """Whether attention probabilities are written to memory, also because no fused kernel supports the softcap."""
        model, chosen = self.config.model, self.config.kernels.attention
        if chosen != "auto" or not model.attention_softcap:
            return chosen == "unfused"
        import torch

        from megagpt.kernels.attention import triton_supports

        fused = triton_supports(torch.bfloat16, model.head_size, dropout=model.attention_dropout)
        return self.itemsize == FP32 or not fused

    @cached_property
    def layers_per_chunk(self) -> int:
        """Layers of one chunk."""
        return self.config.model.num_layers // (self.pipeline_size * self.virtual_size)

    def chunk_layers(self, stage: int, chunk: int) -> range:
        """Numbers of the layers of one chunk of a stage."""
        first = (chunk * self.pipeline_size + stage) * self.layers_per_chunk
        return range(first, first + self.layers_per_chunk)

    def in_flight(self, stage: int) -> int:
        """Largest number of (chunk, micro-batch) pairs whose activations a stage holds at once.

        1F1B: the number of stages from this one to the last. Interleaved: the forward passes of the warm-up and one
        more (arXiv 2205.05198, section 4.2.3).
        """
        if self.virtual_size == 1:
            return min(self.micro_batches, self.pipeline_size - stage)
        return min(self.micro_batches * self.virtual_size, self.warm_up(stage) + 1)

    def warm_up(self, stage: int) -> int:
        """Number of chunks' forward passes in a stage's warm-up, before 1F1B begins, as in Megatron-Core."""
        total = self.micro_batches * self.virtual_size
        if self.virtual_size == 1:
            return min(total, self.pipeline_size - stage - 1)
        return min(total, 2 * (self.pipeline_size - stage - 1) + (self.virtual_size - 1) * self.pipeline_size)
