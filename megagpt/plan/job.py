"""A configuration on a number of GPUs: its layers, micro-batches and replicas."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from megagpt.config.schema import Config
from megagpt.train.flops import flops_per_token

BF16, FP32 = 2, 4  # bytes
RANKED_ANSWERS = 9
"""Largest number of answers to a ranked prompt (arXiv 2203.02155), for which memory must be enough."""


@dataclass(frozen=True)
class Job:
    """A run to be planned: `config` on `gpus` ranks, with what its kernels do that the configuration does not say."""

    config: Config
    gpus: int
    fused_gradient_accumulation: bool = False
    """Whether a weight's gradient is added to its fp32 buffer inside the matrix product (published runs did)."""
    scattered_messages: bool = False
    """Whether tensor-parallel ranks share the sending of hidden states that they all hold (arXiv 2104.04473, section
    4.1; Megatron-Core no longer does)."""

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
        """Chunks of layers of a pipeline stage (interleaved schedule)."""
        return self.config.parallel.virtual_pipeline_size

    @property
    def data_size(self) -> int:
        """Number of data-parallel replicas."""
        return self.gpus // (self.tensor_size * self.pipeline_size)

    @property
    def sequence_size(self) -> int:
        """Ranks that share the tokens of norms, dropouts and the residual stream."""
        return self.tensor_size if self.config.parallel.sequence_parallel else 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a replica in a step at the full batch size."""
        return self.config.optim.global_batch_size // (self.data_size * self.config.parallel.micro_batch_size)

    @property
    def rows(self) -> int:
        """Sequences of a micro-batch: stage reward has `RANKED_ANSWERS` for each prompt that it counts, stage embed all
        texts of a pair."""
        each = {"reward": RANKED_ANSWERS, "embed": 2 + self.config.embed.hard_negatives}
        return self.config.parallel.micro_batch_size * each.get(self.config.stage.name, 1)

    @property
    def row_length(self) -> int:
        """Tokens of a sequence; texts of stage embed are as long as they may be, padded for sequence-parallel ranks."""
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
        """Hidden states that a rank sends to the next stage for a micro-batch."""
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
        """Whether attention probabilities are written to memory: also where no fused kernel has the model's softcap."""
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
        """Largest number of chunks' micro-batches whose activations a stage holds at once.

        1F1B: as many as there are stages from here to the end. Interleaved: as its warm-up makes, and one more
        (arXiv 2205.05198, section 4.2.3).
        """
        if self.virtual_size == 1:
            return min(self.micro_batches, self.pipeline_size - stage)
        return min(self.micro_batches * self.virtual_size, self.warm_up(stage) + 1)

    def warm_up(self, stage: int) -> int:
        """Forward passes of chunks that a stage does before its first backward pass, as in Megatron-Core."""
        total = self.micro_batches * self.virtual_size
        if self.virtual_size == 1:
            return min(total, self.pipeline_size - stage - 1)
        return min(total, 2 * (self.pipeline_size - stage - 1) + (self.virtual_size - 1) * self.pipeline_size)
