"""Keys and values of the tokens that went through the model, so that the next token costs one token's work."""

import torch
from megatron.core.inference.contexts import BaseInferenceContext
from torch import Tensor


class KVCache(BaseInferenceContext):
    """What attention remembers of a batch: for every layer of this rank, keys (already rotated) and values.

    Pass it as `inference_context` to all GPT chunks of the rank, with `runtime_gather_output=True`; they then return
    the logits of the last token only. Call `begin` before and `advance` after every pass.
    """

    def __init__(self, sequence_length: int, capacity: int) -> None:
        """`sequence_length` is the model's, `capacity` the number of tokens a sequence of the batch can hold."""
        super().__init__(materialize_only_last_token_logits=True)
        self.max_sequence_length = sequence_length  # Megatron makes a table of so many rotary positions
        self.capacity = capacity
        self.length = 0
        self._positions: Tensor | None = None
        self._rotation: tuple[Tensor, Tensor] | None = None
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def is_static_batching(self) -> bool:
        """Whether sequences start and advance together: they do."""
        return True

    def is_decode_only(self) -> bool:
        """Whether Megatron may replay a graph captured for single tokens: it may not."""
        return False

    def begin(self, position_ids: Tensor) -> None:
        """Tell the positions, int64 [B, Sq], of the tokens of the next pass."""
        self._positions, self._rotation = position_ids, None

    def rotate(self, part: Tensor, table: Tensor) -> Tensor:
        """Rotate queries or keys [Sq, B, heads, D] by the angles in `table` [positions, 1, 1, D]."""
        if self._rotation is None:  # the same for all layers
            angles = table[self._positions.t()].squeeze(2)
            self._rotation = angles.cos().to(part.dtype), angles.sin().to(part.dtype)
        cos, sin = self._rotation
        first, second = part.chunk(2, -1)
        return part * cos + torch.cat((-second, first), -1) * sin

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember `key` and `value` [Sq, B, groups, D]; returns those of all tokens so far, [Sk, B, groups, D]."""
        new = [part.permute(1, 2, 0, 3) for part in (key, value)]  # the tokens of a head lie together: faster to read
        if layer not in self._layers:
            batch, groups, _, width = new[0].shape
            self._layers[layer] = tuple(part.new_empty(batch, groups, self.capacity, width) for part in new)
        end = self.length + key.shape[0]
        for stored, part in zip(self._layers[layer], new, strict=True):
            stored[:, :, self.length : end] = part
        keys, values = (stored[:, :, :end].permute(2, 0, 1, 3) for stored in self._layers[layer])
        return keys, values

    def advance(self, tokens: int) -> None:
        """Note that `tokens` tokens of every sequence went through all layers."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences of the batch but `rows` (int64 indices)."""
        for layer, stored in self._layers.items():
            self._layers[layer] = tuple(part.index_select(0, rows) for part in stored)
