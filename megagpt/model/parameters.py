"""Parameters by names that are the same in every layout: this rank's share of each, and its initial value."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.config.embedding import scale_of
from megagpt.config.schema import Config


@dataclass(frozen=True)
class Box:
    """A box (a contiguous range in each dimension) of a global tensor that this rank holds."""

    global_shape: tuple[int, ...]
    """Shape of the global tensor."""
    offset: tuple[int, ...]
    """Index of the box's first element in the global tensor."""
    shape: tuple[int, ...]
    """Shape of the box."""

    def of(self, full: Tensor) -> Tensor:
        """View of this box in the global tensor."""
        return full[tuple(slice(start, start + size) for start, size in zip(self.offset, self.shape, strict=True))]


def named_boxes(chunks: Iterable[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter, list[Box]]]:
    """(global name, parameter, boxes) of every parameter of this rank's GPT `chunks`.

    Layers are numbered from 0 over the whole model. The flattened parameter is the concatenation of its flattened
    boxes. Only the first linear layer of a gated activation has two boxes, because its gate and its value are sharded
    separately. The last pipeline stage's copy of tied embeddings has the embedding's name; Megatron-Core sets its
    attribute `shared`.
    """
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            yield _global_name(chunk, name), parameter, _boxes(chunk, parameter)


def _global_name(chunk: torch.nn.Module, name: str) -> str:
    if name == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        return "embedding.word_embeddings.weight"
    return re.sub(
        r"^decoder\.layers\.(\d+)\.",
        lambda match: f"decoder.layers.{chunk.decoder.layers[int(match[1])].layer_number - 1}.",
        name,
    )


def _boxes(chunk: torch.nn.Module, parameter: torch.nn.Parameter) -> list[Box]:
    return boxes_of(parameter, chunk.tp_group.size(), chunk.tp_group.rank())


def boxes_of(parameter: torch.nn.Parameter, ranks: int, rank: int) -> list[Box]:
    """The boxes that a parameter holds on tensor-parallel rank `rank` of `ranks`, see `named_boxes`."""
    local = tuple(parameter.shape)
    if not getattr(parameter, "tensor_model_parallel", False):
        return [Box(local, (0,) * len(local), local)]
    dim, parts = parameter.partition_dim, parameter.partition_stride
    size = local[dim] // parts

    def along(length: int, elsewhere: tuple[int, ...]) -> tuple[int, ...]:
        return (*elsewhere[:dim], length, *elsewhere[dim + 1 :])

    whole, origin = along(local[dim] * ranks, local), (0,) * len(local)
    return [Box(whole, along((part * ranks + rank) * size, origin), along(size, local)) for part in range(parts)]


@torch.no_grad()
def initialize(chunk: torch.nn.Module, config: Config) -> None:
    """Fill `chunk` with initial values as in GPT-2 and GPT-3, equal in every layout and on any device.

    With N(mean, standard deviation): weights and positions are N(0, init_std); projections into the residual stream
    are N(0, init_std / sqrt(2 layers)); norms are 1 (zero-centered ones 0); biases and padded rows of the vocabulary
    are 0. A scalar head is N(0, 1 / sqrt(hidden size + 1)), so that its values have a variance of about 1 (arXiv
    2009.01325); an embedding head begins with `embed.temperature`. Every global tensor is drawn in float32 on the CPU
    by a generator of its own, seeded with config.seed and the tensor's name.
    """
    for name, parameter, boxes in named_boxes([chunk]):
        full = _initial_value(name, boxes[0].global_shape, config)
        parameter.copy_(torch.cat([box.of(full).flatten() for box in boxes]).view_as(parameter))


def _initial_value(name: str, shape: tuple[int, ...], config: Config) -> Tensor:
    model, seed = config.model, config.seed
    if name == "embedding_head.scale":
        return torch.full(shape, scale_of(config.embed.temperature))
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.zeros(shape) if model.zero_centered_norm else torch.ones(shape)
    std = model.init_std
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):  # into the residual stream
        std /= math.sqrt(2 * model.num_layers)
    elif name == "scalar_head.weight":
        std = 1 / math.sqrt(model.hidden_size + 1)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    value = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:4]))).mul_(std)
    if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        value[model.vocab_size :] = 0.0
    return value
