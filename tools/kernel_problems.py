"""The problems of tools/bench_kernels.py, with their solvers and targets.

Work is the least that any implementation must move or compute: inputs and outputs count once, masked attention scores
do not count, and a backward pass of attention counts as two and a half forward passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

OURS = "megagpt"
Solver = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the problems. The defaults fit a large GPU and exceed its L2 cache."""

    device: str = "cuda"
    tokens: int = 16384
    hidden: int = 2048  # of attention: heads times their dimension
    sequences: tuple[int, ...] = (2048, 4096, 8192, 16384)
    target_sequence: int = 8192  # the sequence length that has targets
    window: int = 256
    width: int = 4096  # of norms, dropout and rows of softmax
    long_row: int = 131072
    inner: int = 8192  # of activations
    vocabulary: int = 51200
    decode_batch: int = 64


@dataclass(frozen=True)
class Work:
    """Bytes or floating-point operations of one direction, and targets {against: (must, aim)}; None: no such target.

    A target is a ratio of their time to ours; against `copy` and `matmul`, a fraction of these measured limits; against
    `memory of X`, the ratio of X's peak memory to ours.
    """

    bytes: int = 0
    flops: int = 0
    targets: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass
class Problem:
    """Inputs by name, solvers of them, the reference `truth` (computed in `precision`), and work by direction."""

    op: str
    case: str
    inputs: dict[str, Tensor]
    solvers: dict[str, Solver]
    truth: Solver
    work: dict[str, Work]
    precision: torch.dtype = torch.float64


FORWARD = {"copy": (0.85, 0.92)}
BACKWARD = {"copy": (0.75, 0.85)}


def with_torch(ours: Solver, plain: Solver, sizes: Sizes, **others: Solver) -> dict[str, Solver]:
    """Ours, PyTorch eager, PyTorch compiled (on a GPU), and others."""
    compiled = {"torch.compile": torch.compile(plain, dynamic=False)} if sizes.device == "cuda" else {}
    return {OURS: partial(ours, backend="triton"), "torch": plain, **compiled, **others}


def random(sizes: Sizes, *shape: int) -> Tensor:
    """Normal numbers in bfloat16, with a gradient."""
    return torch.randn(shape, device=sizes.device, dtype=torch.bfloat16).requires_grad_()


def sdpa(which: SDPBackend | None, causal: bool, mask: Tensor | None = None) -> Solver:
    """PyTorch's attention on our layout [B, S, H, D]."""

    def solve(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        if which is None:
            out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        else:
            with sdpa_kernel(which):
                out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return out.transpose(1, 2)

    return solve


def flash_attn(causal: bool) -> Solver:
    """Attention of the flash-attn package, if it is installed."""

    def solve(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from flash_attn import flash_attn_func

        return flash_attn_func(q, k, v, causal=causal)

    return solve


def attention(sizes: Sizes) -> Iterator[Problem]:
    """Dense attention at several sequence lengths; banded and soft-capped attention compared with our dense one."""
    from megagpt.kernels.attention import attention

    ours = partial(attention, backend="triton")
    must = {64: (1.2, 1.1), 128: (1.4, 1.2)}
    for depth in (64, 128):
        heads = sizes.hidden // depth
        for causal in (True, False):
            for length in sizes.sequences:
                shape = (sizes.tokens // length, length, heads, depth)
                flops = 4 * sizes.tokens * length * sizes.hidden // (2 if causal else 1)
                targets = [{"flash": (ratio, None), "cudnn": (None, 1.0)} for ratio in must[depth]]
                if not causal or length != sizes.target_sequence:
                    targets = [{}, {}]
                yield Problem(
                    "attention",
                    f"{'causal' if causal else 'full'}, head dim {depth}, sequence {length}",
                    {name: random(sizes, *shape) for name in "qkv"},
                    {
                        OURS: partial(ours, causal=causal),
                        "flash": sdpa(SDPBackend.FLASH_ATTENTION, causal),
                        "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION, causal),
                        "flash-attn package": flash_attn(causal),
                    },
                    sdpa(None, causal),
                    {
                        "forward": Work(flops=flops, targets=targets[0]),
                        "backward": Work(flops=5 * flops // 2, targets=targets[1]),
                    },
                    torch.float32,
                )
    yield banded(sizes, ours)
    yield softcapped(sizes, ours)


def banded(sizes: Sizes, ours: Solver) -> Problem:
    """A window at the target sequence length. The aim: as many times faster as it has fewer scores."""
    length, window, depth = sizes.target_sequence, sizes.window, 128
    position = torch.arange(length, device=sizes.device)
    distance = position[:, None] - position[None, :]
    visible = (distance >= 0) & (distance < window)
    seen = window * length - window * (window - 1) // 2
    fewer = length * (length + 1) / 2 / seen
    flops = 4 * sizes.tokens // length * seen * sizes.hidden
    targets = {"megagpt dense": (5.0, round(fewer, 1))}
    shape = (sizes.tokens // length, length, sizes.hidden // depth, depth)
    return Problem(
        "attention",
        f"window {window}, head dim {depth}, sequence {length}",
        {name: random(sizes, *shape) for name in "qkv"},
        {OURS: partial(ours, causal=True, window=window), "megagpt dense": partial(ours, causal=True)},
        sdpa(None, False, visible),
        {"forward": Work(flops=flops, targets=targets), "backward": Work(flops=5 * flops // 2, targets=targets)},
        torch.float32,
    )


def softcapped(sizes: Sizes, ours: Solver) -> Problem:
    """Soft-capped scores, causal, at the target sequence length, compared with ours without a cap."""
    length, depth = sizes.target_sequence, 128
    shape = (sizes.tokens // length, length, sizes.hidden // depth, depth)
    flops = 2 * sizes.tokens * length * sizes.hidden
    return Problem(
        "attention",
        f"causal, softcap 50, head dim {depth}, sequence {length}",
        {name: random(sizes, *shape) for name in "qkv"},
        {OURS: partial(ours, softcap=50.0), "megagpt without": ours},
        partial(ours, softcap=50.0, backend="unfused"),
        {"forward": Work(flops=flops), "backward": Work(flops=5 * flops // 2)},
        torch.float32,
    )


def decode(sizes: Sizes) -> Iterator[Problem]:
    """One query per sequence against a long cache."""
    from megagpt.kernels.decode import decode_attention

    batch, keys, depth = sizes.decode_batch, sizes.target_sequence, 128
    cache = [(batch, keys, sizes.hidden // depth, depth)] * 2
    shapes = dict(zip("qkv", [(batch, 1, sizes.hidden // depth, depth), *cache], strict=True))
    inputs = {name: random(sizes, *shape).detach() for name, shape in shapes.items()}
    yield Problem(
        "decode",
        f"batch {batch}, {keys} keys, head dim {depth}",
        inputs,
        {
            OURS: partial(decode_attention, backend="triton"),
            "torch": sdpa(None, False),
            "flash": sdpa(SDPBackend.FLASH_ATTENTION, False),
            "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION, False),
        },
        sdpa(None, False),
        {"forward": Work(bytes=sum(tensor.nbytes for tensor in inputs.values()))},
        torch.float32,
    )


def softmax(sizes: Sizes) -> Iterator[Problem]:
    """Rows of usual and of very large length, and causal squares."""
    from megagpt.kernels.softmax import scale_mask_softmax

    def plain(x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = 0.5 * x
        return torch.softmax(x if hidden is None else x.masked_fill(hidden, float("-inf")), -1)

    def apex(x: Tensor) -> Tensor:
        from apex.transformer.functional.fused_softmax import ScaledUpperTriangMaskedSoftmax

        return ScaledUpperTriangMaskedSoftmax.apply(x, 0.5)

    size, side = sizes.tokens * sizes.width, min(2048, sizes.tokens)
    for rows, columns in ((sizes.tokens, sizes.width), (size // sizes.long_row, sizes.long_row)):
        yield Problem(
            "softmax",
            f"{rows} rows of {columns}",
            {"x": random(sizes, rows, columns)},
            with_torch(partial(scale_mask_softmax, scale=0.5), plain, sizes),
            plain,
            {"forward": Work(4 * size, targets=FORWARD), "backward": Work(6 * size, targets=BACKWARD)},
        )
    hidden = torch.ones(side, side, dtype=torch.bool, device=sizes.device).triu(1)

    def masked(x: Tensor) -> Tensor:
        return plain(x, hidden)

    size = size // side**2 * side**2
    yield Problem(
        "softmax",
        f"causal, {size // side**2} squares of {side}",
        {"x": random(sizes, size // side**2, side, side)},
        with_torch(partial(scale_mask_softmax, scale=0.5, causal=True), masked, sizes, apex=apex),
        masked,
        {"forward": Work(3 * size, targets=FORWARD), "backward": Work(4 * size, targets=BACKWARD)},
    )


def norm(sizes: Sizes) -> Iterator[Problem]:
    """LayerNorm and RMSNorm, and LayerNorm of a residual sum that is also an output."""
    from megagpt.kernels.norm import layer_norm, rms_norm

    def plain_layer(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None):
        h = x if residual is None else x + residual
        y = F.layer_norm(h, h.shape[-1:], weight, bias)
        return y if residual is None else (y, h)

    def plain_rms(x: Tensor, weight: Tensor, zero_centered: bool = False) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight + int(zero_centered), 1e-5)

    def apex_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine

        return fused_layer_norm_affine(x, weight, bias, x.shape[-1:], 1e-5)

    def apex_rms(x: Tensor, weight: Tensor) -> Tensor:
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine

        return fused_rms_norm_affine(x, weight, x.shape[-1:], 1e-5)

    def transformer_engine(name: str) -> Solver:
        @cache  # the module has its own parameters; speed does not depend on their values
        def module(width: int) -> torch.nn.Module:
            import transformer_engine.pytorch as te

            return getattr(te, name)(width, eps=1e-5, params_dtype=torch.bfloat16, device=sizes.device)

        return lambda x, **_: module(x.shape[-1])(x)

    shape = (sizes.tokens, sizes.width)
    size = sizes.tokens * sizes.width
    x, residual = random(sizes, *shape), random(sizes, *shape)
    weight, bias = random(sizes, sizes.width), random(sizes, sizes.width)
    affine = {"x": x, "weight": weight, "bias": bias}
    te_layer, te_rms = (transformer_engine(name) for name in ("LayerNorm", "RMSNorm"))
    solvers = with_torch(layer_norm, plain_layer, sizes)
    fused = solvers | {"apex": apex_layer, "transformer engine": te_layer}
    rms = with_torch(rms_norm, plain_rms, sizes, apex=apex_rms) | {"transformer engine": te_rms}
    plain_zero, zero = (partial(norm, zero_centered=True) for norm in (plain_rms, rms_norm))
    for case, inputs, solved, truth, passes in (
        ("LayerNorm", affine, fused, plain_layer, (2, 3)),
        ("LayerNorm of a sum", affine | {"residual": residual}, solvers, plain_layer, (4, 4)),
        ("RMSNorm", {"x": x, "weight": weight}, rms, plain_rms, (2, 3)),
        ("RMSNorm, 1 + weight", {"x": x, "weight": weight}, with_torch(zero, plain_zero, sizes), plain_zero, (2, 3)),
    ):
        forward, backward = (2 * size * count for count in passes)
        work = {"forward": Work(forward, targets=FORWARD), "backward": Work(backward, targets=BACKWARD)}
        yield Problem("norm", f"{case}, {sizes.tokens} x {sizes.width}", inputs, solved, truth, work)


def activation(sizes: Sizes) -> Iterator[Problem]:
    """Activations with their bias, and gated ones without."""
    from megagpt.kernels import activation as ours

    def biased(x: Tensor, bias: Tensor, function: Solver) -> Tensor:
        return function(x + bias)

    def gated(x: Tensor, function: Solver) -> Tensor:
        gate, up = x.chunk(2, -1)
        return function(gate) * up

    tanh_gelu = partial(F.gelu, approximate="tanh")
    size, name = sizes.tokens * sizes.inner, f"{sizes.tokens} x {sizes.inner}"
    for case, op, function in (
        ("bias + GELU", ours.bias_gelu, tanh_gelu),
        ("bias + exact GELU", partial(ours.bias_gelu, approximate="none"), F.gelu),
        ("bias + squared ReLU", ours.squared_relu, lambda u: F.relu(u).square()),
        ("SwiGLU", ours.swiglu, F.silu),
        ("GeGLU", ours.geglu, tanh_gelu),
    ):
        if case.startswith("bias"):
            inputs = {"x": random(sizes, sizes.tokens, sizes.inner), "bias": random(sizes, sizes.inner)}
            plain, forward, backward = partial(biased, function=function), 4 * size, 6 * size
        else:
            inputs = {"x": random(sizes, sizes.tokens, 2 * sizes.inner)}
            plain, forward, backward = partial(gated, function=function), 6 * size, 10 * size
        work = {"forward": Work(forward, targets=FORWARD), "backward": Work(backward, targets=BACKWARD)}
        yield Problem("activation", f"{case}, {name}", inputs, with_torch(op, plain, sizes), plain, work)


def bias_dropout_add(sizes: Sizes) -> Iterator[Problem]:
    """Dropout with p = 0.1. The reference takes the mask from a run of ours on ones with the same seed."""
    from megagpt.kernels.bias_dropout_add import bias_dropout_add

    def ours(x: Tensor, bias: Tensor, residual: Tensor, backend: str) -> Tensor:
        torch.manual_seed(0)
        return bias_dropout_add(x, bias, residual, 0.1, backend=backend)

    def plain(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return residual + F.dropout(x + bias, 0.1)

    def truth(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        zeros = torch.zeros_like(x, dtype=torch.bfloat16)
        ones = torch.ones_like(bias, dtype=torch.bfloat16)
        kept = ours(zeros, ones, zeros, "triton") > 0
        return residual + kept * (x + bias) / 0.9

    size = sizes.tokens * sizes.width
    inputs = {name: random(sizes, sizes.tokens, sizes.width) for name in ("x", "residual")}
    yield Problem(
        "bias_dropout_add",
        f"{sizes.tokens} x {sizes.width}",
        inputs | {"bias": random(sizes, sizes.width)},
        with_torch(ours, plain, sizes),
        truth,
        {"forward": Work(6 * size, targets=FORWARD), "backward": Work(4 * size, targets=BACKWARD)},
    )


def cross_entropy(sizes: Sizes) -> Iterator[Problem]:
    """Cross-entropy of given logits, and fused with the output projection."""
    from megagpt.kernels.cross_entropy import cross_entropy, linear_cross_entropy

    def plain(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="none")

    def plain_linear(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return plain(hidden @ weight.t(), labels)

    labels = torch.randint(sizes.vocabulary, (sizes.tokens,), device=sizes.device)
    size, target = sizes.tokens * sizes.vocabulary, {"copy": (0.8, 0.9)}
    name = f"{sizes.tokens} tokens, vocabulary {sizes.vocabulary}"
    yield Problem(
        "cross_entropy",
        name,
        {"logits": random(sizes, sizes.tokens, sizes.vocabulary), "labels": labels},
        with_torch(cross_entropy, plain, sizes),
        plain,
        {"forward": Work(2 * size, targets=target), "backward": Work(4 * size, targets=target)},
        torch.float32,
    )
    with torch.no_grad():
        hidden, weight = random(sizes, sizes.tokens, sizes.hidden), random(sizes, sizes.vocabulary, sizes.hidden)
        weight *= sizes.hidden**-0.5
    flops = 2 * size * sizes.hidden
    yield Problem(
        "linear_cross_entropy",
        f"{name}, hidden {sizes.hidden}",
        {"hidden": hidden, "weight": weight, "labels": labels},
        with_torch(linear_cross_entropy, plain_linear, sizes),
        plain_linear,
        {"forward": Work(flops=flops, targets={"memory of torch": (8.0, None)}), "backward": Work(flops=2 * flops)},
        torch.float32,
    )


PROBLEMS: dict[str, Callable[[Sizes], Iterator[Problem]]] = {
    "attention": attention,
    "decode": decode,
    "softmax": softmax,
    "norm": norm,
    "activation": activation,
    "bias_dropout_add": bias_dropout_add,
    "cross_entropy": cross_entropy,
}
