"""The interface of every format: a model's tensors under megagpt's names, whole, one at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from megagpt.config.embedding import EmbedConfig
from megagpt.config.schema import ModelConfig
from megagpt.data.companions import Companions


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor, known before it is read."""

    shape: tuple[int, ...]
    """Shape of the whole tensor, as megagpt lays it out."""
    dtype: torch.dtype
    """Its dtype in the source."""

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Source(Protocol):
    """A checkpoint of some format, opened: its headers are read and checked, its tensors are not."""

    path: Path
    format: str
    """Name of the format, as `--to` has it."""
    model: ModelConfig
    step: int
    """Optimizer steps that were done; 0 when the format does not say."""
    tensors: Mapping[str, TensorInfo]
    """By name: `model/...` and, where there is one, `optimizer/{exp_avg,exp_avg_sq,master}/...`."""
    tokenizer: Path | None
    """The tokenizer.json that goes with it."""
    embed: EmbedConfig | None
    """How texts become vectors, where the format says so of a model with an embedding head."""
    extras: Companions
    """What transformers' folder says of the tokenizer and of generation, which goes along."""

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor `name`, contiguous, on the CPU. Raises CheckpointError."""


@dataclass(frozen=True)
class Format:
    """How one kind of checkpoint is recognised, read and written."""

    name: str
    detect: Callable[[Path], bool]
    """Whether a path holds one, by the names of its files."""
    open_source: Callable[[Path, ModelConfig | None], Source]
    """Opens it; the model's shape is given where the format may not tell. Raises CheckpointError."""
    write: Callable[[Source, Path, tqdm], None]
    """Writes a source into an empty folder, and updates the bar by bytes."""
    carries_optimizer: bool
    """Whether Adam's moments and fp32 masters go along."""
