"""The interface of every format: it gives whole tensors of a model one at a time, under megagpt's names."""

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
    """Shape of the whole tensor in megagpt's layout."""
    dtype: torch.dtype
    """Dtype in the source."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Source(Protocol):
    """An opened checkpoint of any format: its headers are read and checked, its tensors are not read yet."""

    path: Path
    format: str
    """Name of the format, as in `--to`."""
    model: ModelConfig
    step: int
    """Number of finished optimizer steps; 0 when the format does not store it."""
    tensors: Mapping[str, TensorInfo]
    """By name: `model/...` and, if the source has optimizer state, `optimizer/{exp_avg,exp_avg_sq,master}/...`."""
    tokenizer: Path | None
    """The model's tokenizer.json; None when there is none."""
    embed: EmbedConfig | None
    """Settings of stage embed for a model with an embedding head; None for other models."""
    extras: Companions
    """Companion files of a transformers folder, about the tokenizer and generation."""

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor `name`, contiguous, on the CPU. Raises CheckpointError."""


@dataclass(frozen=True)
class Format:
    """Functions that recognise, read and write one kind of checkpoint."""

    name: str
    detect: Callable[[Path], bool]
    """Whether a path holds such a checkpoint, judged by the names of its files."""
    open_source: Callable[[Path, ModelConfig | None], Source]
    """Opens a checkpoint; the second argument is the model's shape for formats that may not give it. Raises
    CheckpointError."""
    write: Callable[[Source, Path, tqdm], None]
    """Writes a source into an empty folder, and updates the progress bar by bytes."""
    carries_optimizer: bool
    """Whether the format stores Adam's moments and fp32 masters."""
