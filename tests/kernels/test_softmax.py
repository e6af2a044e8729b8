"""Scale-mask-softmax against float64, in every form: causal, masked, both, in one pass and in two."""

import pytest
import torch
from check import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from megagpt.kernels.softmax import kernel, scale_mask_softmax

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)]
SHAPES = [(1, 1), (3, 63), (2, 3, 5, 127), (2, 2, 1, 3, 8), (3, 2, 1000), (5, 4096)]
LONG = kernel.FORWARD_ONE_PASS + 1


def truth(x, scale=1.0, mask=None, causal=False):
    """By the definition: exponentials of what is not hidden over their sum, and 0 / 0 as 0."""
    queries, keys = x.shape[-2:]
    hidden = torch.zeros(x.shape, dtype=torch.bool, device=x.device) if mask is None else mask.expand(x.shape)
    if causal:
        positions = torch.arange(keys, device=x.device) - (keys - queries)
        hidden = hidden | (positions > torch.arange(queries, device=x.device)[:, None])
    hidden = hidden | (x == float("-inf"))
    scores = torch.where(hidden, 0.0, x) * scale
    exponential = torch.where(hidden, 0.0, (scores - scores.amax(-1, keepdim=True)).exp())
    return exponential / exponential.sum(-1, keepdim=True).clamp(min=1e-300)


@pytest.fixture(autouse=True)
def same_numbers():
    """Every time: tolerances are tight, and one set of random numbers in forty would not be within them."""
    torch.manual_seed(1)


def check(x, tolerance, backend="triton", **options):
    compare(
        lambda x: scale_mask_softmax(x, **options, backend=backend),
        lambda x: truth(x, **options),
        {"x": x},
        tolerance,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"scale": -0.3}, {"causal": True}, {"scale": 0.125, "causal": True}])
def test_equals_float64(device, launched, dtype, tolerance, shape, options):
    if options.get("causal") and shape[-2] > shape[-1]:
        pytest.skip("a causal mask has no more queries than keys")
    check(torch.randn(shape, device=device).mul(3).to(dtype), tolerance, **options)
    assert launched == ["softmax_forward_kernel", "softmax_backward_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape", [(), (1,), (63,), (5, 1), (5, 63), (1, 5, 63), (2, 1, 5, 63), (3, 1, 63), (2, 3, 5, 63), (1, 1, 1, 1)]
)
def test_masks_broadcast(device, causal, shape):
    torch.manual_seed(1)
    mask = torch.rand(shape, device=device) < 0.4
    check(torch.randn(2, 3, 5, 63, device=device), 1e-6, mask=mask, causal=causal, scale=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [LONG, LONG + 7])
def test_long_rows(device, launched, dtype, tolerance, causal, keys):
    x = torch.randn(1, 2, 2, keys, device=device).mul(2).to(dtype)
    x[..., : keys // 2] -= 100  # the largest scores come late
    mask = torch.rand(2, keys, device=device) < 0.5 if keys != LONG else None
    check(x, tolerance, scale=1.5, mask=mask, causal=causal)
    assert launched == ["softmax_forward_long_kernel", "softmax_backward_long_kernel"]


@pytest.mark.gpu
def test_backward_of_rows_between_the_thresholds(device, launched):
    check(torch.randn(2, kernel.BACKWARD_ONE_PASS + 8, device=device), 1e-6, causal=True)
    assert launched == ["softmax_forward_kernel", "softmax_backward_long_kernel"]


def test_longest_row(device):
    check(torch.randn(1, 131072, device=device).to(torch.bfloat16), 1.6e-2)


def test_mask_is_not_copied(device, monkeypatch):
    mask = (torch.rand(2, 1, 4, 33, device=device) < 0.5).expand(2, 3, 4, 33)
    memory, heads, strides = kernel._mask_strides(mask, torch.Size((2, 3, 4, 33)))
    assert memory.data_ptr() == mask.data_ptr()
    assert (heads, strides) == (3, (132, 0, 33, 1))


def test_strided_masks_and_five_dimensions(device):
    x = torch.randn(2, 2, 3, 4, 33, device=device)
    for mask in (torch.rand(33, 4, device=device).t() < 0.5, torch.rand(2, 1, 3, 1, 66, device=device)[..., ::2] < 0.5):
        check(x, 1e-6, mask=mask)


def test_strided_input(device):
    x = torch.randn(3, 4, 2, 20, device=device).transpose(1, 2)[..., 3:17]
    check(x, 1e-6, causal=True)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("keys", [33, LONG])
def test_rows_with_nothing_to_see_are_zeros(device, backend, keys):
    x = torch.randn(4, keys, device=device)
    x[1], x[2, ::2], x[2, 3] = float("-inf"), float("-inf"), 4.0
    mask = torch.zeros(4, keys, dtype=torch.bool, device=device)
    mask[0] = True
    check(x, 1e-6, mask=mask, backend=backend)
    x.requires_grad_()
    y = scale_mask_softmax(x, mask=mask, backend=backend)
    y.square().sum().backward()
    assert (y[:2] == 0).all()
    assert (x.grad[:2] == 0).all()


@pytest.mark.parametrize("keys", [40, LONG])
def test_causal_does_not_read_hidden_keys(device, keys):
    """NaN in keys that are hidden, in the scores and in the gradient, goes nowhere."""
    x = torch.randn(4, keys, device=device)
    future = torch.ones(4, keys, dtype=torch.bool, device=device).triu(keys - 3)
    dy, results = torch.randn_like(x), []
    for filler in (0.0, float("nan")):
        filled = x.masked_fill(future, filler).requires_grad_()
        y = scale_mask_softmax(filled, causal=True, backend="triton")
        results.append((y, *torch.autograd.grad(y, filled, dy.masked_fill(future, filler))))
    for clean, dirty in zip(*results, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_nan_and_infinity_show(device, backend):
    x = torch.randn(3, 20, device=device)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    y = scale_mask_softmax(x, backend=backend)
    assert y[:2].isnan().any(1).all()
    assert y[2].isfinite().all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 0), (0, 2, 4, 8)])
def test_empty(device, launched, backend, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    y = scale_mask_softmax(x, mask=torch.tensor(True, device=device), backend=backend)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert launched == []


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("options", [{}, {"causal": True, "scale": 0.5}])
def test_torch_backend(device, launched, dtype, tolerance, options):
    x = torch.randn(2, 3, 5, 63, device=device, dtype=dtype)
    check(x, tolerance, backend="torch", mask=torch.rand(5, 63, device=device) < 0.3, **options)
    assert launched == []


def test_auto_on_cpu_takes_torch(launched):
    scale_mask_softmax(torch.randn(2, 3))
    assert launched == []


numbers = st.floats(-50, 50, width=32)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(numbers, min_size=1, max_size=40),
    st.integers(1, 3),
    st.booleans(),
    st.floats(-2, 2, width=32),
    st.floats(-1000, 1000, width=32),
)
def test_sums_to_one_and_ignores_a_shift(row, queries, causal, scale, shift):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(row, device=device).repeat(min(queries, len(row)), 1)
    y = scale_mask_softmax(x, scale, None, causal, backend="triton")
    torch.testing.assert_close(y.sum(-1), torch.ones(len(x), device=device), atol=1e-5, rtol=0)
    shifted = scale_mask_softmax(x + shift, scale, None, causal, backend="triton")
    torch.testing.assert_close(shifted, y, atol=2e-3, rtol=0)  # adding 1000 rounds x by 2**-15


@pytest.mark.parametrize("causal", [False, True])
def test_opcheck(device, causal):
    x = torch.randn(2, 3, 4, 33, device=device, requires_grad=True)
    mask = torch.rand(2, 1, 4, 33, device=device) < 0.5
    torch.library.opcheck(torch.ops.megagpt.scale_mask_softmax, (x, 0.5, mask, causal))
    torch.library.opcheck(torch.ops.megagpt.scale_mask_softmax, (x.transpose(1, 2).detach(), 0.5, None, causal))


def test_compiles_whole(device):
    x = torch.randn(2, 4, 33, device=device, requires_grad=True)
    mask = torch.rand(4, 33, device=device) < 0.5
    compiled = torch.compile(scale_mask_softmax, fullgraph=True, backend="aot_eager")
    for backend in ("triton", "torch"):
        expected = scale_mask_softmax(x, 0.5, mask, True, backend=backend)
        actual = compiled(x, 0.5, mask, True, backend=backend)
        assert torch.equal(actual, expected)
        gradient = torch.randn_like(x)
        assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (actual, expected)))


def test_shapes_without_data(launched):
    x = torch.randn(2, 3, 4, 8).transpose(0, 1)
    op = torch.ops.megagpt.scale_mask_softmax
    assert op(x.to("meta").bfloat16(), 0.5, None, True).dtype == torch.bfloat16
    with FakeTensorMode() as mode:
        fake = op(mode.from_tensor(x), 0.5, None, True)
    assert launched == []
    assert fake.shape == x.shape
    assert fake.stride() == scale_mask_softmax(x, 0.5, None, True, backend="triton").stride()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(()), {}, "x has shape"),
        (torch.zeros(4), {}, "x has shape"),
        (torch.zeros(5, 4), {"causal": True}, "x has shape .* as many keys"),
        (torch.zeros(2, 4, dtype=torch.float64), {}, "x has dtype torch.float64"),
        (torch.zeros(2, 4, dtype=torch.int32), {}, "x has dtype torch.int32"),
        (torch.zeros(4, 2).t(), {}, "x has stride 2"),
        (torch.zeros(2, 4), {"mask": torch.zeros(2, 4)}, "mask has dtype torch.float32"),
        (torch.zeros(2, 4), {"mask": torch.zeros(3, 4, dtype=torch.bool)}, "mask has shape"),
        (torch.zeros(2, 4), {"mask": torch.zeros(1, 2, 4, dtype=torch.bool)}, "mask has shape"),
        (torch.zeros(2, 4), {"mask": torch.zeros(2, 4, dtype=torch.bool, device="meta")}, "mask is on meta"),
        (torch.zeros(2, 4), {"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_bad_input_is_named(x, options, message):
    with pytest.raises(ValueError, match=message):
        scale_mask_softmax(x, **{"backend": "triton", **options})
