"""Cross-entropy against torch's in float64: losses and gradients, every option, odd sizes, bad input."""

from functools import partial
from itertools import product

import pytest
import torch
from check import assert_near, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from truth_cross_entropy import random_case, truth

from megagpt.kernels.cross_entropy import cross_entropy

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
KERNELS = ["cross_entropy_statistics_kernel", "cross_entropy_losses_kernel", "cross_entropy_backward_kernel"]
BACKENDS = ["triton", "torch"]
# A block of the kernels has 2,048 columns in float32 and 4,096 in the others.
SHAPES = [((1,), 1), ((3,), 63), ((2, 5), 127), ((7,), 1000), ((130,), 8), ((2,), 8192), ((1, 1), 9001), ((), 50)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def example(device: str, shape: tuple, columns: int, dtype: torch.dtype = torch.float32, vocab_size: int = 0):
    logits = (4 * torch.randn(*shape, columns, device=device)).to(dtype)
    return logits, torch.randint(0, vocab_size or columns, shape, device=device)


def check(logits, labels, tolerance=2e-6, backend="triton", inplace=False, **options) -> None:
    def ours(logits):
        return cross_entropy(logits.clone(), labels, inplace=inplace, backend=backend, **options)

    compare(ours, lambda logits: truth(logits, labels, **options), {"logits": logits}, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("shape", "columns"), SHAPES)
def test_equals_torch(device, launched, dtype, tolerance, shape, columns):
    check(*example(device, shape, columns, dtype), tolerance)
    assert launched == KERNELS


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding(device, launched, dtype, tolerance, backend, inplace):
    logits, labels = example(device, (3, 4), 4500, dtype, vocab_size=4321)
    logits[..., 4321:] = float("nan")  # columns that mean nothing
    logits.requires_grad_()
    losses = cross_entropy(logits.clone(), labels, 4321, inplace=inplace, backend=backend)
    losses.sum().backward()
    assert not logits.grad[..., 4321:].any()
    exact = logits.detach().double().requires_grad_()
    expected = truth(exact, labels, 4321)
    expected.sum().backward()
    assert_near(losses, expected, 2e-6, "losses")
    assert_near(logits.grad, exact.grad, tolerance, "gradient")
    assert launched == (KERNELS if backend == "triton" else [])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("ignore_index", "label_smoothing", "z_loss", "padding", "inplace"),
    list(product([None, -100, 7], [0.0, 0.1], [0.0, 1e-2], [0, 5], [False, True])),
)
def test_options(device, backend, ignore_index, label_smoothing, z_loss, padding, inplace):
    logits, labels = example(device, (6,), 61 + padding, vocab_size=61)
    options = {"vocab_size": 61, "label_smoothing": label_smoothing, "z_loss": z_loss}
    if ignore_index is not None:
        labels[1::2] = ignore_index
        options["ignore_index"] = ignore_index
    check(logits, labels, backend=backend, inplace=inplace, **options)


@pytest.mark.gpu
def test_the_longest_rows(device):
    check(*example(device, (1,), 262_144, torch.bfloat16), tolerance=8e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_inplace_gradient_has_the_logits_memory(device, backend):
    for dtype in [torch.float32, torch.bfloat16] if backend == "triton" else [torch.float32]:
        leaf, labels = example(device, (4,), 100, dtype)
        logits = leaf.requires_grad_().clone()
        gradients = []
        logits.register_hook(gradients.append)
        losses = cross_entropy(logits, labels, inplace=True, backend=backend)
        losses.sum().backward(retain_graph=True)
        assert gradients[0].data_ptr() == logits.data_ptr()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses.sum().backward()


def test_without_inplace_logits_stay_and_backward_repeats(device):
    logits, labels = example(device, (4,), 100)
    leaf = logits.clone().requires_grad_()
    losses = cross_entropy(leaf, labels, backend="triton")
    first, second = (torch.autograd.grad(losses.sum(), leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(leaf, logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [-1, 61, 63, 2**40])
def test_a_label_that_is_no_token_gives_nan_to_its_token_alone(device, backend, wrong):
    logits, labels = example(device, (3,), 64, vocab_size=61)
    labels[1] = wrong
    logits.requires_grad_()
    losses = cross_entropy(logits, labels, 61, backend=backend)
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False]
    assert logits.grad[1, :61].isnan().all() and logits.grad[::2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_that_overflow_and_tokens_ruled_out(device, backend):
    ruled_out = float("-inf")
    logits = torch.tensor([[1e4, -1e4, 0.0], [ruled_out, 1.0, 2.0], [ruled_out, 1.0, 2.0]], device=device)
    logits.requires_grad_()
    losses = cross_entropy(logits, torch.tensor([1, 1, 0], device=device), backend=backend)
    losses.sum().backward()
    p = torch.tensor([1.0, 2.0]).softmax(0)
    expected = torch.tensor([2e4, -p[0].log(), float("inf")])
    torch.testing.assert_close(losses.detach().cpu(), expected)
    torch.testing.assert_close(logits.grad[0].cpu(), torch.tensor([1.0, -1.0, 0.0]))
    torch.testing.assert_close(logits.grad[1].cpu(), torch.stack((torch.tensor(0.0), p[0] - 1, p[1])))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), columns=st.integers(1, 300), backend=st.sampled_from(BACKENDS))
def test_random_cases(seed, columns, backend):
    logits, labels, weight, options = random_case(seed, columns)
    results = []
    for op, x in ((partial(cross_entropy, backend=backend), logits), (truth, logits.double())):
        x.requires_grad_()
        losses = op(x, labels, **options)
        (losses * weight).sum().backward()
        results.append((losses, x.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5, check_dtype=False)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.sampled_from([-8.0, 2.0, 64.0]))
def test_shifted_logits_have_the_same_losses(seed, shift):
    logits, labels = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)), torch.tensor([0, 20, 39])
    shifted, plain = (cross_entropy(x, labels, backend="triton") for x in (logits + shift, logits))
    torch.testing.assert_close(shifted, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(device, backend):
    wide, _ = example(device, (5, 4), 100)
    for logits in (wide[1::2, :, 7:50], wide.transpose(0, 1), wide[0, :, :90], wide[:, :1].expand(5, 4, 100)):
        labels = torch.randint(0, 40, logits.shape[-2::-1], device=device).t() if logits.dim() == 3 else None
        check(logits, torch.arange(4, device=device) if labels is None else labels, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_no_tokens(device, backend, inplace):
    logits = torch.zeros(0, 3, 50, device=device, requires_grad=True)
    labels = torch.empty(0, 3, dtype=torch.int64, device=device)
    losses = cross_entropy(logits.clone(), labels, inplace=inplace, backend=backend)
    losses.sum().backward()
    assert losses.shape == (0, 3) and logits.grad.shape == (0, 3, 50)


def test_opcheck(device):
    logits, labels = example(device, (4,), 33, vocab_size=30)
    options, ops = (30, -100, 0.1, 1e-2), torch.ops.megagpt
    losses, lse = ops.cross_entropy_losses(ops.cross_entropy_statistics(logits, labels, 0, 30)[None], labels, *options)
    torch.library.opcheck(ops.cross_entropy_statistics, (logits, labels, 0, 30))
    torch.library.opcheck(ops.cross_entropy_losses, (torch.rand(2, 4, 4, device=device), labels, *options))
    for op in (ops.cross_entropy_backward, ops.cross_entropy_backward_):
        torch.library.opcheck(op, (losses, logits.clone(), labels, lse, 0, *options))


def test_cpu_face_equals_the_kernels():
    from megagpt.kernels.cross_entropy import kernel, reference

    for dtype in (torch.float32, torch.bfloat16):
        logits, labels = example("cpu", (5,), 70, dtype)
        labels[0], gradient = -100, torch.rand(5)
        for first in (0, 40, 80):
            statistics = kernel.statistics(logits, labels, first, 90)
            assert_near(reference.statistics(logits, labels, first, 90), statistics, 2e-6, "statistics")
            lse = torch.full((5,), 9.0)
            options = (gradient, logits, labels, lse, first, 90, -100, 0.1, 1e-2)
            assert_near(reference.backward(*options), kernel.backward(*options), 8e-3, "gradient")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(device, backend, inplace):
    leaf, labels = example(device, (4,), 33, vocab_size=30)
    options = {"vocab_size": 30, "label_smoothing": 0.1, "z_loss": 1e-2, "inplace": inplace, "backend": backend}

    def step(logits):
        return cross_entropy(logits * 2.0, labels, **options)

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        logits = leaf.clone().requires_grad_()
        losses = run(logits)
        losses.sum().backward()
        results.append((losses.detach(), logits.grad))
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results, strict=True))


@pytest.mark.parametrize("inplace", [False, True])
def test_shapes_alone(device, inplace):
    with FakeTensorMode():
        logits = torch.zeros(4, 3, 33, device=device, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.zeros(4, 3, device=device, dtype=torch.int64)
        losses = cross_entropy(logits.clone(), labels, inplace=inplace, backend="triton")
        losses.sum().backward()
        assert losses.shape == (4, 3) and losses.dtype == torch.float32 and losses.device.type == device
        assert logits.grad.shape == logits.shape and logits.grad.dtype == torch.bfloat16
    logits = torch.empty(4, 33, device="meta", requires_grad=True)
    for backend in BACKENDS:
        losses = cross_entropy(logits, torch.empty(4, device="meta", dtype=torch.int64), backend=backend)
        losses.sum().backward()
        assert losses.is_meta and losses.shape == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 5, dtype=torch.int32)}, "logits has dtype torch.int32; supported are"),
        ({"logits": torch.zeros(5, 2).t()}, "logits has stride 2 in its last dimension; it must be 1"),
        ({"logits": torch.zeros(2, 0)}, "logits has shape .2, 0.; there must be at least one column"),
        ({"logits": torch.tensor(1.0)}, "logits has shape ..; there must be at least one column"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels has dtype torch.int32; it must be int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels has shape .3.; it must be .2."),
        ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, "labels is on meta, but logits is on cpu"),
        ({"vocab_size": 6}, "vocab_size is 6; it must be from 1 to the 5 columns"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be from 1 to the 5 columns"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5; it must be from 0 to 1"),
        ({"backend": "cuda"}, "backend is 'cuda'; it must be one of auto, triton, torch"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"logits": torch.zeros(2, 5), "labels": torch.zeros(2, dtype=torch.int64), **change}
    with pytest.raises(ValueError, match=message):
        cross_entropy(**arguments)


def test_gradients_of_gradients_are_refused(device):
    logits, labels = example(device, (2,), 5)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(logits, labels).square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
