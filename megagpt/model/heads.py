"""Heads of models that do not predict tokens: one number per token, or one vector per text."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.config.embedding import LOG_SCALE_ORIGIN, LOG_SCALE_SPEED, EmbedConfig


class ScalarHead(torch.nn.Linear):
    """One number per token: a linear layer that every tensor-parallel rank holds completely."""

    def __init__(self, config: TransformerConfig, tp_group: dist.ProcessGroup):
        super().__init__(config.hidden_size, 1)
        self.split, self.tp_group = config.sequence_parallel, tp_group
        for parameter in self.parameters():  # each rank has its own tokens, so Megatron must sum the gradients
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [S, B, H], or [S / tp, B, H] under sequence parallelism -> float32 [B, S].

        Computed in float32, because differences between scores may be too small for bf16.
        """
        values = F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)
        if self.split:  # all ranks compute the same loss, so each takes its own part of the gradient
            values = gather_from_sequence_parallel_region(
                values, tensor_parallel_output_grad=False, group=self.tp_group
            )
        return values.t().contiguous()


class EmbeddingHead(torch.nn.Module):
    """One vector per text: the state of its last token, scaled to the length 1 / sqrt(temperature).

    The product of two vectors is then cosine / temperature, the logit of the contrastive softmax (arXiv 2201.10005).
    The temperature is learned as the parameter `scale`, see `LOG_SCALE_SPEED`.
    """

    def __init__(self, settings: EmbedConfig, config: TransformerConfig, tp_group: dist.ProcessGroup):
        super().__init__()
        self.split, self.tp_group = config.sequence_parallel, tp_group
        self.fixed, self.largest = -math.log(settings.temperature), -math.log(settings.min_temperature)
        self.scale = torch.nn.Parameter(torch.zeros(1)) if settings.learn_temperature else None

    def forward(self, hidden: Tensor, ends: Tensor) -> Tensor:
        """Hidden states [S, B, H], or [S / tp, B, H] under sequence parallelism -> float32 [B, H].

        ends: int64 [B], place of each text's last token. Computed in float32, because cosines near 1 may differ by less
        than bf16 can represent.
        """
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        if self.split:  # the state is on one of the ranks: only [B, H] is exchanged
            ends = ends - self.tp_group.rank() * hidden.shape[0]
            here = (ends >= 0) & (ends < hidden.shape[0])
            states = hidden[ends.clamp(0, hidden.shape[0] - 1), columns].float() * here[:, None]
            states = reduce_from_tensor_model_parallel_region(states, group=self.tp_group)
        else:
            states = hidden[ends, columns].float()
        return F.normalize(states, dim=-1) * (self._log_scale(states) / 2).exp()

    def _log_scale(self, states: Tensor) -> Tensor:
        if self.scale is None:
            return states.new_full((), self.fixed)
        return LogScale.apply(self.scale.float(), self.largest)


class LogScale(torch.autograd.Function):
    """log(1 / temperature) as a function of the learned parameter, at most `largest`.

    Above the limit only gradients that lead back below it pass. The gradient leaves out the factor LOG_SCALE_SPEED:
    Adam's update does not depend on it, and it would exaggerate this parameter's share of the gradient norm.
    """

    @staticmethod
    def forward(ctx, scale: Tensor, largest: float) -> Tensor:
        """The value, in the shape of `scale`."""
        value = LOG_SCALE_ORIGIN + LOG_SCALE_SPEED * scale
        ctx.save_for_backward(value < largest)
        return value.clamp(max=largest)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of `scale`."""
        (within,) = ctx.saved_tensors
        return gradient * (within | (gradient > 0)), None
