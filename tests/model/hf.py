"""The same weights in transformers' models, by the converter's tables. Linear, so for gradients too."""

from torch import Tensor
from transformers import PreTrainedModel

from megagpt.checkpoint.convert.hugging_face import parts
from megagpt.config.schema import ModelConfig


def to_hugging_face(ours: dict[str, Tensor], model: ModelConfig, theirs: PreTrainedModel) -> dict[str, Tensor]:
    """Our tensors (weights or gradients) by the names and in the shapes that `theirs` has."""
    architecture = type(theirs).__name__
    tensors = {
        part.name: part.take(tensor)
        for name, tensor in ours.items()
        for part in parts(architecture, name, tuple(tensor.shape), model)
    }
    if model.tie_embeddings:  # transformers lists the shared weight twice
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    return tensors
