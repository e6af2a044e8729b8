"""LayerNorm and RMSNorm against float64: every row length, with and without the residual addition."""

from functools import partial

import pytest
import torch
from check import assert_near, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from megagpt.kernels.norm import kernel, layer_norm, rms_norm

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 1.2e-2), (torch.float16, 1.5e-3)]
SHAPES = [(5, 3), (1, 63), (2, 3, 127), (300, 8), (7, 1000), (3, 1284)]
KERNELS = [
    (5140, ["norm_forward_kernel", "norm_backward_kernel", "norm_reduce_kernel"]),
    (8192, ["norm_forward_kernel", "norm_backward_kernel", "norm_reduce_kernel"]),
    (8200, ["norm_forward_kernel", "norm_sums_kernel", "norm_backward_long_kernel", "norm_reduce_kernel"]),
    (8193, ["norm_forward_long_kernel", "norm_sums_kernel", "norm_backward_long_kernel", "norm_reduce_kernel"]),
    (16392, ["norm_forward_long_kernel", "norm_sums_kernel", "norm_backward_long_kernel", "norm_reduce_kernel"]),
]


def truth(x, weight, bias=None, residual=None, eps=1e-5, zero_centered=False):
    """By the definition; y is of h as rounded to the dtype that the op stores, as x + residual is given here."""
    weight = 1 + weight if zero_centered else weight
    h = x if residual is None else x + residual
    centred = h if bias is None else h - h.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    y = y if bias is None else y + bias
    return y if residual is None else (y, h)


def run(backend, eps=1e-5, zero_centered=False):
    def op(x, weight, bias=None, residual=None):
        options = {"residual": residual, "backend": backend, "eps": eps, "zero_centered": zero_centered}
        return rms_norm(x, weight, **options) if bias is None else layer_norm(x, weight, bias, **options)

    return op


def arguments(device, shape, dtype, rms, residual, weights=None):
    """Random arguments; x and residual are multiples of 1/8, for their sum to be exact in any dtype."""
    torch.manual_seed(sum(shape))
    columns = shape[-1:]
    made = {"x": torch.randn(shape, device=device).mul(8).add(4).round().div(8).to(dtype)}
    made["weight"] = torch.randn(columns, device=device).to(weights or dtype)
    if not rms:
        made["bias"] = torch.randn(columns, device=device).to(weights or dtype)
    if residual:
        made["residual"] = torch.randn(shape, device=device).mul(8).round().div(8).to(dtype)
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_float64(device, launched, dtype, tolerance, shape, rms, residual):
    compare(run("triton"), truth, arguments(device, shape, dtype, rms, residual), tolerance)
    assert launched == ["norm_forward_kernel", "norm_backward_kernel", "norm_reduce_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize(("columns", "kernels"), KERNELS)
@pytest.mark.parametrize(("rms", "residual"), [(False, True), (True, False)])
def test_every_row_length_has_its_kernels(device, launched, columns, kernels, rms, residual):
    compare(run("triton"), truth, arguments(device, (3, columns), torch.float32, rms, residual), 2e-6)
    assert launched == kernels


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("columns", [63, 8200, 8193])  # one pass, and the kernels of longer rows, forward and backward
@pytest.mark.parametrize(("rms", "residual"), [(False, True), (True, False)])
def test_zero_centered(device, backend, columns, rms, residual):
    exact = partial(truth, zero_centered=True)
    compare(
        run(backend, zero_centered=True), exact, arguments(device, (3, columns), torch.float32, rms, residual), 2e-6
    )


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_zero_centered_as_gemma(device, backend):
    """1 + weight is added in float32: a weight below the spacing of float16 at 1 counts, and only y is rounded."""
    norm = Gemma2RMSNorm(24, eps=1e-5).to(device, torch.float16)
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(std=2.0**-11)
    x = torch.randn(7, 24, device=device, dtype=torch.float16)
    y = rms_norm(x, norm.weight, zero_centered=True, backend=backend)
    exact = norm.double()(x.double())
    assert ((y - exact).abs() <= 1.01 * 2.0**-11 * exact.abs()).all()


@pytest.mark.gpu
def test_long_rows_in_bfloat16(device):
    compare(run("triton"), truth, arguments(device, (2, 8193), torch.bfloat16, False, True), 1.2e-2)
    compare(run("triton"), truth, arguments(device, (1, 65536), torch.bfloat16, True, False), 1.2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("rms", [False, True])
def test_weights_in_float32(device, dtype, backend, rms):
    inputs = arguments(device, (4, 63), dtype, rms, True, weights=torch.float32)
    assert run(backend)(**inputs)[0].dtype == dtype
    compare(run(backend), truth, inputs, 1.2e-2 if dtype == torch.bfloat16 else 1.5e-3)


@pytest.mark.parametrize("columns", [33, 8193])
def test_mean_far_from_zero(device, columns):
    """The variance is not a difference of large squares."""
    inputs = arguments(device, (2, columns), torch.float32, False, False)
    inputs["x"] += 1000
    compare(run("triton"), truth, inputs, 2e-4)


@pytest.mark.parametrize("rms", [False, True])
def test_one_column(device, rms):
    inputs = arguments(device, (3, 1), torch.float32, rms, False)
    y = run("triton")(**inputs)
    assert_near(y, truth(**inputs), 1e-6, "y")
    if not rms:
        assert torch.equal(y, inputs["bias"].expand(3, 1))


@pytest.mark.parametrize("columns", [33, 8193])
@pytest.mark.parametrize("used", [0, 1])
def test_gradient_of_one_output_alone(device, columns, used):
    inputs = arguments(device, (2, columns), torch.float32, False, True)
    compare(lambda **kw: run("triton")(**kw)[used], lambda **kw: _used(truth(**kw)[used], kw), inputs, 2e-6)


def _used(out, inputs):
    """For float64 to give zeros, not None, as gradients of what `out` does not depend on."""
    return out + 0 * (inputs["weight"].sum() + inputs["bias"].sum())


@pytest.mark.gpu
def test_sums_over_many_rows_are_repeatable(device):
    inputs = arguments(device, (200, 24), torch.float32, False, False)
    grads = []
    for _ in range(2):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        run("triton")(**leaves).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves.values()])
    assert all(map(torch.equal, *grads))
    compare(run("triton"), truth, inputs, 2e-6)


def test_gradients_of_parts_add_up(device):
    """Ranks that hold parts of a sequence sum their gradients of weight and bias."""
    inputs = arguments(device, (10, 24), torch.float32, False, False)
    gradients = []
    for rows in (slice(0, 10), slice(0, 3), slice(3, 10), slice(10, 10)):
        weight, bias = (inputs[name].clone().requires_grad_() for name in ("weight", "bias"))
        layer_norm(inputs["x"][rows], weight, bias, backend="triton").square().sum().backward()
        gradients.append(torch.stack([weight.grad, bias.grad]))
    assert (gradients[3] == 0).all()
    assert_near(gradients[1] + gradients[2], gradients[0], 1e-6, "sum of the parts")


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("columns", [24, 8193])
def test_no_rows(device, backend, columns):
    compare(run(backend), truth, arguments(device, (2, 0, columns), torch.float32, False, True), 1e-6)


def test_strided_input(device):
    inputs = arguments(device, (3, 4, 2, 24), torch.float32, False, True)
    inputs["x"] = inputs["x"].transpose(1, 2)
    inputs["residual"] = inputs["residual"].transpose(0, 2).reshape(2, 4, 3, 24).permute(2, 0, 1, 3)
    inputs["x"], inputs["residual"] = inputs["x"][..., 3:17], inputs["residual"][..., 3:17]
    inputs["weight"], inputs["bias"] = inputs["weight"][3:17], inputs["bias"][3:17]
    compare(run("triton"), truth, inputs, 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("rms", [False, True])
def test_torch_backend(device, launched, dtype, tolerance, rms):
    compare(run("torch"), truth, arguments(device, (7, 100), dtype, rms, True), tolerance)
    compare(
        run("torch", eps=0.1), lambda **kw: truth(**kw, eps=0.1), arguments(device, (7, 9), dtype, rms, 0), tolerance
    )
    assert launched == []


def test_eps(device):
    inputs = arguments(device, (2, 63), torch.float32, False, False)
    compare(run("triton", eps=0.5), lambda **kw: truth(**kw, eps=0.5), inputs, 2e-6)


def test_auto_on_cpu_takes_torch(launched):
    layer_norm(torch.randn(2, 3), torch.ones(3), torch.zeros(3))
    assert launched == []


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(2, 40), st.floats(0.5, 4), st.floats(-8, 8), st.integers(0, 99))
def test_layer_norm_ignores_scale_and_shift(rows, columns, scale, shift, seed):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device)
    x += torch.arange(columns, device=device)  # so that no row is nearly constant
    weight, bias = torch.ones(columns, device=device), torch.zeros(columns, device=device)
    y = layer_norm(x, weight, bias, eps=0.0, backend="triton")
    torch.testing.assert_close(y.mean(-1), torch.zeros(rows, device=device), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(rows, device=device), atol=1e-4, rtol=0)
    moved = layer_norm(scale * x + shift, weight, bias, eps=0.0, backend="triton")
    torch.testing.assert_close(moved, y, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("rms", "residual"), [(False, False), (False, True), (True, False), (True, True)])
def test_opcheck(device, rms, residual):
    inputs = arguments(device, (4, 33), torch.float32, rms, residual)
    for tensor in inputs.values():
        tensor.requires_grad_()
    values = [inputs.get(name) for name in ("x", "residual", "weight", "bias")]
    torch.library.opcheck(torch.ops.megagpt.norm, (*values, 1e-5, not residual))


@pytest.mark.gpu
def test_compiles_whole(device):
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    made = arguments(device, (4, 33), torch.float32, False, True)
    for backend in ("triton", "torch"):
        results = []
        for function in (layer_norm, compiled):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in made.items()}
            y, h = function(**leaves, backend=backend)
            (y.square() + h).sum().backward()
            results.append([y, h, *(leaf.grad for leaf in leaves.values())])
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("residual", [False, True])
def test_shapes_without_data(launched, residual):
    made = arguments("cpu", (2, 3, 40), torch.bfloat16, False, residual)
    values = [made.get(name) for name in ("x", "residual", "weight", "bias")]
    real = torch.ops.megagpt.norm(*values, 1e-5, False)
    launched.clear()
    meta = torch.ops.megagpt.norm(*(None if value is None else value.to("meta") for value in values), 1e-5, False)
    with FakeTensorMode() as mode:
        fake = [None if value is None else mode.from_tensor(value) for value in values]
        fake = torch.ops.megagpt.norm(*fake, 1e-5, False)
    assert launched == []
    for a, b, c in zip(real, meta, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()) == (c.shape, c.dtype, c.stride())


X = torch.zeros(2, 4)
W = torch.zeros(4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(())}, "x has shape"),
        ({"x": torch.zeros(3, 0)}, "x has shape"),
        ({"x": X.double()}, "x has dtype torch.float64"),
        ({"x": X.t().contiguous().t()}, "x has stride 2"),
        ({"residual": torch.zeros(4)}, "residual has shape"),
        ({"residual": X.half()}, "residual has dtype torch.float16"),
        ({"residual": X.to("meta")}, "residual is on meta"),
        ({"weight": torch.zeros(3)}, "weight has shape"),
        ({"weight": W.half()}, "weight has dtype torch.float16"),
        ({"weight": W.to("meta")}, "weight is on meta"),
        ({"bias": torch.zeros(())}, "bias has shape"),
        ({"bias": torch.zeros(8)[::2]}, "bias has stride 2"),
        ({"bias": W.bfloat16()}, "bias has dtype torch.bfloat16"),
        ({"backend": "apex"}, "backend is 'apex'"),
    ],
)
def test_bad_input_is_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        layer_norm(**{"x": X, "weight": W, "bias": W, "backend": "triton", **inputs})


def test_vectors_that_settings_promise():
    assert [kernel._vector(columns) for columns in (5140, 12288, 1, 6)] == [4, 8, 1, 1]
