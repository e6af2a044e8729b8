"""Cross-entropy fused with the output projection, against the two apart; its memory."""

import weakref
from itertools import product

import pytest
import torch
from check import compare
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from truth_cross_entropy import linear_truth

from megagpt.kernels.cross_entropy import cross_entropy, linear_cross_entropy

DTYPES = [(torch.float32, 4e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
STATISTICS, LOSSES = "cross_entropy_statistics_kernel", "cross_entropy_losses_kernel"
BACKWARD = "cross_entropy_backward_kernel"
BACKENDS = ["triton", "torch"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def example(
    device: str, shape: tuple, size: int, columns: int, dtype: torch.dtype = torch.float32, vocab_size: int = 0
):
    hidden = torch.randn(*shape, size, device=device).to(dtype)
    weight = (torch.randn(columns, size, device=device) / size**0.5).to(dtype)
    return hidden, weight, torch.randint(0, vocab_size or columns, shape, device=device)


def check(hidden, weight, labels, tolerance=4e-6, backend="triton", chunk_columns=None, **options) -> None:
    compare(
        lambda **x: linear_cross_entropy(**x, labels=labels, chunk_columns=chunk_columns, backend=backend, **options),
        lambda **x: linear_truth(**x, labels=labels, **options),
        {"hidden": hidden, "weight": weight},
        tolerance,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("shape", "size", "columns"), [((1,), 1, 1), ((3,), 8, 63), ((2, 5), 16, 1000), ((), 4, 300), ((4, 1), 63, 127)]
)
def test_equals_torch(device, launched, backend, dtype, tolerance, shape, size, columns):
    check(*example(device, shape, size, columns, dtype), tolerance, backend)
    slices = -(-columns // 128)  # the least columns of a slice
    expected = [STATISTICS] * slices + [LOSSES] + [BACKWARD] * slices
    assert launched == (expected if backend == "triton" else [])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("ignored", "label_smoothing", "z_loss", "padding", "chunk_columns"),
    list(product([False, True], [0.0, 0.1], [0.0, 1e-2], [0, 20], [None, 17])),
)
def test_options(device, backend, ignored, label_smoothing, z_loss, padding, chunk_columns):
    hidden, weight, labels = example(device, (6,), 8, 61 + padding, vocab_size=61)
    if ignored:
        labels[1::2] = 7
    options = {"vocab_size": 61, "label_smoothing": label_smoothing, "z_loss": z_loss, "chunk_columns": chunk_columns}
    check(hidden, weight, labels, backend=backend, ignore_index=7 if ignored else -100, **options)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_the_gradient_that_is_wanted(device, frozen):
    hidden, weight, labels = example(device, (6,), 8, 300)
    tensors = {"hidden": hidden, "weight": weight}
    (wanted,) = tensors.keys() - {frozen}
    tensors[wanted].requires_grad_()
    linear_cross_entropy(**tensors, labels=labels, backend="triton").sum().backward()
    ours, tensors[wanted].grad = tensors[wanted].grad, None
    linear_truth(**tensors, labels=labels).sum().backward()
    torch.testing.assert_close(ours, tensors[wanted].grad, atol=1e-5, rtol=1e-5)
    assert tensors[frozen].grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_that_is_no_token_gives_nan_to_its_token_alone(device, backend):
    hidden, weight, labels = example(device, (3,), 8, 300)
    labels[1] = 300
    losses = linear_cross_entropy(hidden, weight, labels, backend=backend)
    assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_no_tokens(device, backend):
    hidden, weight, _ = example(device, (5, 4), 16, 300)
    labels = torch.randint(0, 300, (4, 3), device=device)
    check(hidden[1:4].transpose(0, 1)[..., :8], weight[:, 3:11], labels, backend=backend)
    hidden = torch.zeros(0, 16, device=device, requires_grad=True)
    losses = linear_cross_entropy(hidden, weight.requires_grad_(), labels.flatten()[:0], backend=backend)
    losses.sum().backward()
    assert losses.shape == (0,) and hidden.grad.shape == (0, 16) and not weight.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole(device, backend):
    hidden, weight, labels = example(device, (4,), 8, 300, vocab_size=290)

    def step(hidden, weight):
        return linear_cross_entropy(hidden, weight, labels, 290, label_smoothing=0.1, backend=backend)

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
        losses = run(*inputs)
        losses.sum().backward()
        results.append([losses.detach()] + [x.grad for x in inputs])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


def test_shapes_alone(device):
    with FakeTensorMode():
        hidden = torch.zeros(4, 3, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.zeros(300, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(4, 3, device=device, dtype=torch.int64)
        losses = linear_cross_entropy(hidden, weight, labels, backend="triton")
        losses.sum().backward()
        assert losses.shape == (4, 3) and losses.dtype == torch.float32
        assert hidden.grad.shape == hidden.shape and weight.grad.dtype == torch.bfloat16
    hidden = torch.empty(4, 8, device="meta")
    weight = torch.empty(300, 8, device="meta")
    for backend in BACKENDS:
        losses = linear_cross_entropy(hidden, weight, torch.empty(4, device="meta").long(), backend=backend)
        assert losses.is_meta and losses.shape == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 8, dtype=torch.float64)}, "hidden has dtype torch.float64; supported are"),
        ({"hidden": torch.tensor(1.0)}, "hidden has no dimension; it must be"),
        ({"weight": torch.zeros(5, 8).bfloat16()}, "weight has dtype torch.bfloat16, but the first argument has"),
        ({"weight": torch.zeros(5, 7)}, "weight has shape .5, 7.; it must be .5, 8."),
        ({"weight": torch.zeros(0, 8)}, "weight has shape .0, 8.; there must be at least one column"),
        ({"weight": torch.zeros(8, 5).t()}, "weight has stride 5 in its last dimension"),
        ({"labels": torch.zeros(2)}, "labels has dtype torch.float32; it must be int64"),
        ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, "labels has shape .2, 1.; it must be .2."),
        ({"vocab_size": 6}, "vocab_size is 6; it must be from 1 to the 5 columns"),
        ({"chunk_columns": 0}, "chunk_columns is 0; it must be at least 1"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"hidden": torch.zeros(2, 8), "weight": torch.zeros(5, 8), "labels": torch.zeros(2).long(), **change}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all memory that tensors hold which operators return while it is on, and their peak."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        held = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            storage = leaf.untyped_storage() if torch.is_tensor(leaf) else None
            if storage is not None and storage not in self.known and storage.data_ptr() not in held:
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, size: int) -> None:
        self.live -= size


def peak_bytes(losses) -> int:
    """Peak of what `losses(hidden, weight, labels)` and its backward pass allocate, at GPT-2's padded vocabulary."""
    hidden, weight, labels = example("cpu", (2048,), 64, 51_200, vocab_size=50_257)
    hidden.requires_grad_()
    weight.requires_grad_()
    with LiveBytes() as memory:
        losses(hidden, weight, labels).sum().backward()
    return memory.peak


def test_peak_memory_is_an_eighth():
    fused = peak_bytes(lambda *inputs: linear_cross_entropy(*inputs, vocab_size=50_257))
    unfused = peak_bytes(lambda h, w, labels: cross_entropy(h @ w.t(), labels, 50_257, inplace=True))
    logits = 2048 * 51_200 * 4
    assert logits < unfused < 1.2 * logits, "the unfused path has the logits once"
    assert fused * 8 <= unfused, f"{unfused / fused:.1f} times less memory"
