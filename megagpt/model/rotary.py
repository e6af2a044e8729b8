"""Rotary position embedding (RoPE, arXiv 2104.09864): frequencies for each kind of layer, and the rotation."""

import math

import torch
from torch import Tensor

from megagpt.config.architecture import ModelConfig

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of several tokens, each broadcastable to [..., heads, R]."""


class Rotary:
    """Cosines and sines of all positions, for dense and for banded layers, computed at their first use."""

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def table(self, length: int, like: Tensor) -> Tensor:
        """[kinds, 2, length, R] on the device and in the dtype of `like`: cosines and sines of positions from 0.

        kinds: see `kind_of`. R: `ModelConfig.rotary_size`.
        """
        key = (like.device, like.dtype)
        if key not in self._tables or self._tables[key].shape[2] < length:
            self._tables[key] = self._compute(max(length, self.model.sequence_length), *key)
        return self._tables[key][:, :, :length]

    def of_sequence(self, length: int, like: Tensor) -> Tensor:
        """[kinds, 2, length, 1, 1, R], for queries and keys [length, B, heads, D]."""
        return self.table(length, like)[:, :, :, None, None]

    def at(self, positions: Tensor, like: Tensor) -> Tensor:
        """[kinds, 2, T, 1, R] for `positions`, int64 [T], of queries and keys [T, heads, D]."""
        return self.table(self.model.sequence_length, like)[:, :, positions, None]

    def _compute(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):  # training may use a table that was made during generation
            kinds = []
            for banded in (False, True) if self.model.rope_local_base else (False,):
                frequencies, factor = rotary_frequencies(self.model, banded)
                positions = torch.arange(length, dtype=torch.float32, device=device)
                angles = torch.outer(positions, frequencies.to(device)).repeat(1, 2)  # both halves have equal angles
                kinds.append(torch.stack((angles.cos() * factor, angles.sin() * factor)))
            return torch.stack(kinds).to(dtype)


def kind_of(model: ModelConfig, layer: int) -> int:
    """Index of a layer's kind in the tables of `Rotary`: 1 for banded layers with their own base, else 0.

    layer: counted from 0.
    """
    return int(model.rope_local_base is not None and model.window(layer) is not None)


def rotary_frequencies(model: ModelConfig, banded: bool = False) -> tuple[Tensor, float]:
    """Rotation of each pair of dimensions in radians per position, float32 [R / 2], and a factor of cosines and sines.

    banded: whether the layer is banded; banded layers may have a base of their own (`rope_local_base`).
    """
    scaling, local = model.rope_scaling, banded and model.rope_local_base is not None
    base, size = model.rope_local_base if local else model.rope_base, model.rotary_size
    periods = base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    frequencies, original = 1.0 / periods, scaling.original_length
    if local or scaling.kind in ("none", "dynamic"):
        return frequencies, 1.0
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        turns = original * frequencies / (2 * math.pi)  # within the original context
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return _blend(frequencies, scaling.factor, kept.clamp(0, 1)), 1.0

    def pair_with(turns: float) -> float:
        """Index, as a real number, of the pair that makes `turns` full turns within the original context."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - first) / (last - first or 0.001)
    warmer = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return _blend(frequencies, scaling.factor, 1 - ramp.clamp(0, 1)), scaling.attention_factor or warmer


def _blend(frequencies: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Interpolation between the frequencies (where `kept` is 1) and the frequencies divided by `factor` (0)."""
    return frequencies / factor * (1 - kept) + frequencies * kept


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first R dimensions of queries or keys [..., heads, D]; dimension i is paired with i + R / 2."""
    cos, sin = rotation
    size = cos.shape[-1]
    turned = x[..., :size]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)
