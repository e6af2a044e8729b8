"""Keys and values of the tokens that went through the model, so that the next token costs one token's work."""

from megatron.core.inference.contexts import BaseInferenceContext
from torch import Tensor


class KVCache(BaseInferenceContext):
    """What attention remembers of a batch: for every layer of this rank, keys (already rotated) and values.

    Pass it as `inference_context` to all GPT chunks of the rank, with `runtime_gather_output=True`; they then return
    the logits of the last token only. Set `position_ids` before and call `advance` after every pass.
    """

    def __init__(self, sequence_length: int, capacity: int) -> None:
        """`sequence_length` is the model's, `capacity` the number of tokens a sequence of the batch can hold."""
        super().__init__(materialize_only_last_token_logits=True)
        self.max_sequence_length = sequence_length  # Megatron makes a table of so many rotary positions
        self.capacity = capacity
        self.length = 0
        self.position_ids: Tensor | None = None
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def is_static_batching(self) -> bool:
        """Whether sequences start and advance together: they do."""
        return True

    def is_decode_only(self) -> bool:
        """Whether Megatron may replay a graph captured for single tokens: it may not."""
        return False

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember `key` and `value` [Sq, B, groups, D]; returns those of all tokens so far, [Sk, B, groups, D]."""
        if layer not in self._layers:
            self._layers[layer] = tuple(part.new_empty(self.capacity, *part.shape[1:]) for part in (key, value))
        end = self.length + key.shape[0]
        for stored, new in zip(self._layers[layer], (key, value), strict=True):
            stored[self.length : end] = new
        keys, values = self._layers[layer]
        return keys[:end], values[:end]

    def advance(self, tokens: int) -> None:
        """Note that `tokens` tokens of every sequence went through all layers."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences of the batch but `rows` (int64 indices)."""
        for layer, stored in self._layers.items():
            self._layers[layer] = tuple(part.index_select(1, rows) for part in stored)

    def rotary(self, table: Tensor) -> Tensor:
        """Rows of the rotary `table` [positions, 1, 1, D] at this pass's positions, [Sq, B, 1, D]."""
        return table[self.position_ids.t()].squeeze(2)
