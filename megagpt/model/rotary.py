"""Rotary position embedding (RoPE, arXiv 2104.09864): frequencies of every kind of layer, and the turn itself."""

import math

import torch
from torch import Tensor

from megagpt.config.architecture import ModelConfig

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of some tokens, [..., R] each, that broadcast to [..., heads, R]."""


class Rotary:
    """Cosines and sines of all positions, for dense and for banded layers, computed when they are first asked for."""

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def table(self, length: int, like: Tensor) -> Tensor:
        """[kinds, 2, length, R] on the device and in the dtype of `like`: cosines and sines of positions from 0.

        Kinds are those that `kind_of` numbers; R is `ModelConfig.rotary_size`.
        """
        key = (like.device, like.dtype)
        if key not in self._tables or self._tables[key].shape[2] < length:
            self._tables[key] = self._compute(max(length, self.model.sequence_length), *key)
        return self._tables[key][:, :, :length]

    def of_sequence(self, length: int, like: Tensor) -> Tensor:
        """[kinds, 2, length, 1, 1, R], for queries and keys [length, B, heads, D]."""
        return self.table(length, like)[:, :, :, None, None]

    def at(self, positions: Tensor, like: Tensor) -> Tensor:
        """[kinds, 2, T, 1, R] of tokens at `positions`, int64 [T], for queries and keys [T, heads, D]."""
        return self.table(self.model.sequence_length, like)[:, :, positions, None]

    def _compute(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):  # a table that is made while generating may be asked for in training
            kinds = []
            for banded in (False, True) if self.model.rope_local_base else (False,):
                frequencies, factor = rotary_frequencies(self.model, banded)
                positions = torch.arange(length, dtype=torch.float32, device=device)
                angles = torch.outer(positions, frequencies.to(device)).repeat(1, 2)  # both halves turn alike
                kinds.append(torch.stack((angles.cos() * factor, angles.sin() * factor)))
            return torch.stack(kinds).to(dtype)


def kind_of(model: ModelConfig, layer: int) -> int:
    """The place in a table of `Rotary` of a layer, counted from 0."""
    return int(model.rope_local_base is not None and model.window(layer) is not None)


def rotary_frequencies(model: ModelConfig, banded: bool = False) -> tuple[Tensor, float]:
    """Radians by which each pair of dimensions turns at a step, float32 [R / 2], and the factor of cosines and sines.

    banded: of banded layers, where those have a base of their own (`rope_local_base`).
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
        """The pair, as a real number, that makes so many turns within the original context."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - first) / (last - first or 0.001)
    warmer = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return _blend(frequencies, scaling.factor, 1 - ramp.clamp(0, 1)), scaling.attention_factor or warmer


def _blend(frequencies: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Frequencies, of which the share `kept` stays as it is and the rest is divided by `factor`."""
    return frequencies / factor * (1 - kept) + frequencies * kept


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the first R dimensions of queries or keys [..., heads, D]: the first R / 2 with the next R / 2."""
    cos, sin = rotation
    size = cos.shape[-1]
    turned = x[..., :size]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)
