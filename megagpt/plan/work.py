"""Estimates the time of one micro-batch's forward and backward pass through a chunk, from FLOPs, bytes and messages.

The time of a matrix product is the larger of FLOPs / rate for its size and bytes / memory bandwidth; the time of other
operations is bytes / memory bandwidth. Both passes wait for the collectives of tensor parallelism. The additional
all-gathers of sequence parallelism in the backward pass overlap with the gradients of weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megagpt.plan.devices import Device
from megagpt.plan.job import FP32, Job
from megagpt.plan.parameters import inner_width, layer_norms, qkv_width


class Product(NamedTuple):
    """A matrix product with a weight: [rows, inner] x [inner, columns]."""

    rows: float
    inner: float
    columns: float


@dataclass(frozen=True)
class Seconds:
    """Seconds of some work, by its bottleneck."""

    matmul: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    tensor_parallel: float = 0.0
    recompute: float = 0.0

    @property
    def total(self) -> float:
        """Total seconds."""
        return self.matmul + self.attention + self.memory + self.tensor_parallel + self.recompute

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(*(getattr(self, name) * factor for name in self.__dataclass_fields__))


class Work:
    """Estimates times of the parts of `job`'s model on `device`; equal layers are computed once."""

    def __init__(self, job: Job, device: Device) -> None:
        self.job, self.device, self.model = job, device, job.config.model
        self.size, self.peak = job.itemsize, device.peak_flops(job.itemsize)
        self._layers: dict[int | None, tuple[Seconds, Seconds]] = {}

    def chunk(self, stage: int, chunk: int) -> tuple[Seconds, Seconds]:
        """Times of one micro-batch's forward and backward pass through a chunk; recomputation counts as backward."""
        forward, backward = Seconds(), Seconds()
        for layer in self.job.chunk_layers(stage, chunk):
            window = self.model.window(layer)
            if window not in self._layers:
                self._layers[window] = self._layer(window)
            forward += self._layers[window][0]
            backward += self._layers[window][1]
        if stage == self.job.pipeline_size - 1 and chunk == self.job.virtual_size - 1:
            ahead, back = self._projection()
            forward, backward = forward + ahead, backward + back
        if stage == 0 and chunk == 0:
            table = self._moved(2 * self.size * self.job.tokens * self.model.hidden_size)
            forward, backward = forward + Seconds(memory=table), backward + Seconds(memory=2 * table)
        slower = 1 + self.device.overhead
        return forward * slower, backward * slower

    def _layer(self, window: int | None) -> tuple[Seconds, Seconds]:
        products = list(self._products())
        matmul = sum(self._product_seconds(product) for product in products)
        gradients = sum(self._weight_gradient_seconds(product) for product in products)
        accumulation = 0.0 if self.job.fused_gradient_accumulation else self._moved(self._accumulated_bytes(products))
        attention, softmax = self._attention(window)
        messages = self._collective_seconds()
        element_wise = self._moved(self._element_wise_bytes())
        forward = Seconds(matmul, attention, element_wise + softmax, messages)
        # A fused backward pass recomputes the scores: 5 products instead of the forward's 2. The backward pass of an
        # unfused softmax reads its output too.
        backward = Seconds(
            matmul + gradients,
            attention * (2 if self.job.unfused_attention else 2.5),
            2 * element_wise + 1.25 * softmax + accumulation,
            messages,
            self._recompute(forward, attention + softmax),
        )
        return forward, backward

    def _recompute(self, forward: Seconds, attention: float) -> float:
        recompute = self.job.config.parallel.recompute
        return {"none": 0.0, "selective": attention, "full": forward.total}[recompute]

    def _products(self) -> Iterator[Product]:
        model, tensor, rows = self.model, self.job.tensor_size, self.job.tokens
        heads = model.num_attention_heads * model.head_size
        yield Product(rows, model.hidden_size, qkv_width(model, tensor))
        yield Product(rows, heads / tensor, model.hidden_size)
        yield Product(rows, model.hidden_size, inner_width(model) / tensor)
        yield Product(rows, model.ffn_size / tensor, model.hidden_size)

    def _product_seconds(self, product: Product) -> float:
        rows, inner, columns = product
        rate = self.peak * self.device.matmul
        for size in product:
            rate *= size / (size + self.device.matmul_half_size)
        moved = self.size * (rows * inner + inner * columns + rows * columns)
        return max(2 * rows * inner * columns / rate, self._moved(moved))

    def _weight_gradient_seconds(self, product: Product) -> float:
        rows, inner, columns = product
        # Fused accumulation reads and writes the fp32 sum instead of writing the gradient.
        fused = 2 * FP32 - self.size if self.job.fused_gradient_accumulation else 0
        seconds = self._product_seconds(Product(inner, rows, columns))
        return seconds + self._moved(fused * inner * columns)

    def _accumulated_bytes(self, products: list[Product]) -> float:
        """Bytes of reading weights' gradients, and reading and writing their fp32 sums."""
        return sum(product.inner * product.columns for product in products) * (self.size + 2 * FP32)

    def _attention(self, window: int | None) -> tuple[float, float]:
        """(seconds of both matrix products of attention, seconds of an unfused softmax) of one layer."""
        model, job = self.model, self.job
        length, heads = job.row_length, model.num_attention_heads / job.tensor_size
        matrices = job.rows * heads
        if job.unfused_attention:
            product = self._product_seconds(Product(length, model.head_size, length))
            # Reads the causal half of the scores; writes all probabilities; dropout reads them and writes its output
            # and mask.
            score_bytes = 3 + (5 if model.attention_dropout else 0)
            return 2 * matrices * product, self._moved(matrices * length**2 * score_bytes)
        seen = min(window or length, length)
        pairs = length * seen - seen * (seen - 1) / 2  # (query, key) pairs of a causal or banded mask
        rate = self.peak * self.device.attention
        return 4 * matrices * pairs * model.head_size / rate, 0.0

    def _element_wise_bytes(self) -> float:
        """Bytes moved by norms, residual additions with bias and dropout, activation and rotation of one layer."""
        model, job = self.model, self.job
        stream = job.tokens * model.hidden_size / job.sequence_size
        inner = job.tokens * model.ffn_size / job.tensor_size
        moved = self.size * stream * (2 * layer_norms(model) + 2 * 3) + (2 * stream if model.hidden_dropout else 0)
        moved += self.size * inner * (3 if model.is_gated else 2)
        passes = model.qk_layernorm + (model.position_embedding == "rope")  # over queries and keys
        heads = (model.num_attention_heads + model.query_groups) / job.tensor_size
        return moved + 2 * passes * self.size * job.tokens * model.head_size * heads

    def _projection(self) -> tuple[Seconds, Seconds]:
        """Forward and backward times of logits and loss; about 0 for other heads."""
        if self.model.head != "tokens":
            return Seconds(), Seconds()
        columns = self.model.padded_vocab_size / self.job.tensor_size
        product = Product(self.job.tokens, self.model.hidden_size, columns)
        seconds, gradient = self._product_seconds(product), self._weight_gradient_seconds(product)
        logits = self._moved(self.size * self.job.tokens * columns)
        fused = seconds if self.job.config.kernels.fuse_output_projection else 0.0  # the backward pass recomputes them
        return Seconds(seconds, memory=2 * logits), Seconds(seconds + gradient + fused, memory=2 * logits)

    def _collective_seconds(self) -> float:
        """Seconds of the two all-reduces (or pairs of all-gather and reduce-scatter) of a layer's forward pass."""
        if self.job.tensor_size == 1:
            return 0.0
        return 2 * self._ring(self.tensor_parallel_bytes() / 2)

    def tensor_parallel_bytes(self) -> float:
        """Bytes that a rank sends in one layer's forward pass (arXiv 2104.04473, section 3.2)."""
        tensor = self.job.tensor_size
        width = 4 * self.model.hidden_size
        if self.model.query_groups < tensor:  # ranks that share a key/value head gather queries, keys and values
            width += qkv_width(self.model)
        return self.size * self.job.tokens * width * (tensor - 1) / tensor

    def _ring(self, sent: float) -> float:
        inside = min(self.job.tensor_size, self.device.gpus_per_node)
        return sent / self.device.link_rate(inside, -(-self.job.tensor_size // inside))

    def _moved(self, count: float) -> float:
        return count / self.device.memory_rate
