"""Activations against the same mathematics in float64, at shapes below and above a tile."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from check import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.activations import ACT2FN

from megagpt.kernels.activation import activation, bias_gelu, geglu, reference, relu, squared_relu, swiglu

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
SHAPES = [(1, 2), (1,), (3, 63), (2, 5, 127), (33, 300), (300, 2)]


def gated(function):
    """The textbook's function of x and bias that multiplies a half by the other one's activation."""

    def truth(x, bias=None):
        gate, up = (x if bias is None else x + bias).chunk(2, -1)
        return function(gate) * up

    return truth


def pointwise(function):
    return lambda x, bias=None: function(x if bias is None else x + bias)


tanh_gelu = partial(F.gelu, approximate="tanh")
true_gelu, true_swiglu = pointwise(tanh_gelu), gated(F.silu)
POINTWISE = {
    "gelu": (bias_gelu, true_gelu),
    "gelu_exact": (partial(bias_gelu, approximate="none"), pointwise(F.gelu)),
    "relu": (relu, pointwise(F.relu)),
    "squared_relu": (squared_relu, pointwise(ACT2FN["relu2"])),
}
GATED = {
    "swiglu": (swiglu, true_swiglu),
    "geglu": (geglu, gated(tanh_gelu)),
    "geglu_exact": (partial(geglu, approximate="none"), gated(F.gelu)),
}
OPS = POINTWISE | GATED


def random(*shape, device, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_gelu(device, launched, dtype, tolerance, shape):
    inputs = {
        "x": 2 * random(*shape, device=device, dtype=dtype),
        "bias": random(shape[-1], device=device, dtype=dtype),
    }
    compare(lambda x, bias: bias_gelu(x, bias, backend="triton"), true_gelu, inputs, tolerance)
    assert launched == ["activation_forward_kernel", "activation_backward_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(device, launched, dtype, tolerance, shape, biased):
    *outer, columns = shape
    inputs = {"x": 2 * random(*outer, 2 * columns, device=device, dtype=dtype)}
    if biased:
        inputs["bias"] = random(2 * columns, device=device, dtype=dtype)
    compare(lambda x, bias=None: swiglu(x, bias, backend="triton"), true_swiglu, inputs, tolerance)
    assert launched == ["gated_forward_kernel", "gated_backward_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", OPS)
def test_every_kind(device, launched, kind, biased):
    """Both back ends, by the function's own name and by that of the kind."""
    op, truth = OPS[kind]
    for dtype, tolerance in DTYPES:
        inputs = {"x": 2 * random(33, 126, device=device, dtype=dtype)}
        if biased:
            inputs["bias"] = random(126, device=device, dtype=dtype)
        compare(lambda x, bias=None: op(x, bias, backend="triton"), truth, inputs, tolerance)
        compare(lambda x, bias=None: activation(x, bias, kind, backend="torch"), truth, inputs, 4 * tolerance)
    name = "gated" if kind in GATED else "activation"
    assert launched == [f"{name}_forward_kernel", f"{name}_backward_kernel"] * len(DTYPES)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("kind", ["relu", "squared_relu"])
def test_corners_of_relu(device, backend, kind):
    """At zero the slope is 0, as PyTorch's; NaN is not hidden."""
    x = torch.tensor([[0.0, -0.0, float("nan"), 2.0, float("-inf")]], device=device, requires_grad=True)
    y = activation(x, None, kind, backend=backend)
    y.sum().backward()
    exact = x.detach().requires_grad_()
    expected = OPS[kind][1](exact)
    expected.sum().backward()
    torch.testing.assert_close((y, x.grad), (expected, exact.grad), equal_nan=True)


@pytest.mark.parametrize(("op", "truth"), [(bias_gelu, true_gelu), (swiglu, true_swiglu)])
class TestBoth:
    def test_strided(self, device, op, truth):
        x = random(9, 4, 64, device=device).transpose(0, 1)[..., 10:44]
        compare(lambda x, bias: op(x, bias, backend="triton"), truth, {"x": x, "bias": random(34, device=device)}, 2e-6)

    @pytest.mark.parametrize("rows", [(0,), (3, 0)])
    def test_no_rows(self, device, op, truth, rows):
        inputs = {"x": torch.zeros(*rows, 34, device=device), "bias": torch.ones(34, device=device)}
        compare(lambda x, bias: op(x, bias, backend="triton"), truth, inputs, 0)

    def test_no_columns(self, device, op, truth):
        x = torch.zeros(3, 0, device=device, requires_grad=True)
        out = op(x, torch.zeros(0, device=device), backend="triton")
        out.sum().backward()
        assert out.shape == x.grad.shape == (3, 0)

    @pytest.mark.filterwarnings("ignore:overflow encountered")  # to infinity, as meant
    def test_extremes_stay_finite(self, device, op, truth):
        x = torch.tensor([[-1e4, -100, -20, 0, 20, 100, 1e4, 1]], device=device).mT.repeat(1, 4)
        compare(lambda x: op(x, 0 * x[0], backend="triton"), lambda x: truth(x, 0 * x[0]), {"x": x}, 1e-6)

    def test_compiles_whole(self, device, op, truth):
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        results = []
        for function in (op, compiled):
            x, bias = (random(*shape, device=device).requires_grad_() for shape in ((4, 34), (34,)))
            y = function(x, bias, backend="triton")
            y.square().sum().backward()
            results.append((y, x.grad, bias.grad))
        assert all(torch.equal(eager, whole) for eager, whole in zip(*results, strict=True))

    def test_shapes_alone(self, op, truth):
        x, bias = torch.empty(5, 3, 8, device="meta"), torch.empty(8, device="meta", requires_grad=True)
        y = op(x, bias, backend="triton")
        y.sum().backward()
        assert y.shape == truth(x, bias).shape and y.is_meta and bias.grad.shape == bias.shape
        with FakeTensorMode():
            x, bias = torch.ones(5, 3, 8), torch.ones(8, requires_grad=True)
            z = op(x, bias, backend="triton")
            z.sum().backward()
            assert z.shape == y.shape and bias.grad.shape == bias.shape

    def test_same_bits_every_time(self, device, op, truth):
        def gradients():
            x, bias = random(100, 34, device=device).requires_grad_(), random(34, device=device).requires_grad_()
            op(x, bias, backend="triton").square().sum().backward()
            return torch.cat([x.grad, bias.grad[None]])

        assert torch.equal(gradients(), gradients())

    @pytest.mark.parametrize(
        ("x", "bias", "message"),
        [
            (torch.zeros(2, 4).double(), torch.zeros(4).double(), "x has dtype torch.float64"),
            (torch.zeros(2, 4).int(), torch.zeros(4).int(), "x has dtype torch.int32"),
            (torch.zeros(()), torch.zeros(()), "x has no dimension"),
            (torch.zeros(4, 2).mT, torch.zeros(4), "x has stride 2"),
            (torch.zeros(2, 4), torch.zeros(4).half(), "bias has dtype torch.float16"),
            (torch.zeros(2, 4), torch.zeros(4, device="meta"), "bias is on meta"),
            (torch.zeros(2, 4), torch.zeros(2), "bias has shape [2]; it must be [4]"),
            (torch.zeros(2, 4), torch.zeros(8)[::2], "bias has stride 2"),
        ],
    )
    def test_bad_input(self, device, op, truth, x, bias, message):
        x, bias = (tensor if tensor.is_meta else tensor.to(device) for tensor in (x, bias))
        with pytest.raises(ValueError) as error:
            op(x, bias, backend="triton")
        assert message in str(error.value)

    def test_unknown_backend(self, device, op, truth):
        with pytest.raises(ValueError, match="backend is 'cuda'"):
            op(torch.zeros(2, 4, device=device), torch.zeros(4, device=device), backend="cuda")


@pytest.mark.parametrize("kind", OPS)
def test_faces_agree(kind):
    """What the CPU runs in place of Triton gives the gradients of the mathematics, in new tensors."""
    for shape in ((8,), (5, 8), (2, 3, 8)):
        x, bias = random(*shape, device="cpu").double(), random(8, device="cpu").double()
        leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = OPS[kind][1](*leaves)
        gradient = random(*y.shape, device="cpu").double()
        y.backward(gradient)
        dx, dbias = reference.activation_backward(gradient, x, bias, kind)
        torch.testing.assert_close((dx, dbias), tuple(leaf.grad for leaf in leaves))
        assert dx.data_ptr() != dbias.data_ptr()
        unbiased = reference.activation_backward(gradient, x + bias, None, kind)
        torch.testing.assert_close(unbiased, (dx, torch.empty(0, dtype=x.dtype)))


@pytest.mark.parametrize("kind", ["relu", "geglu_exact"])
def test_opcheck(device, kind):
    x, bias = (random(*shape, device=device).requires_grad_() for shape in ((4, 34), (34,)))
    torch.library.opcheck(torch.ops.megagpt.activation, (x, bias, kind))
    torch.library.opcheck(torch.ops.megagpt.activation, (x, None, kind))


def test_unknown_names_are_refused():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="kind is 'mish'; it must be one of gelu, gelu_exact, relu"):
        activation(x, None, "mish")
    for op in (bias_gelu, geglu):
        with pytest.raises(ValueError, match="approximate is 'erf'; it must be one of tanh, none"):
            op(x, None, approximate="erf")


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_halves_must_be_equal(device, backend):
    with pytest.raises(ValueError, match="x has 7 columns; their number must be even"):
        swiglu(torch.zeros(2, 7, device=device), backend=backend)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 300), seed=st.integers(0, 99))
def test_properties(rows, columns, seed):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    x = torch.randn(rows, 2 * columns, device=device)
    gate, up = x.chunk(2, -1)
    flipped = swiglu(torch.cat([-gate, up], -1), backend="triton")
    # silu(g) - silu(-g) = g, and gelu(u) - gelu(-u) = u
    torch.testing.assert_close(swiglu(x, backend="triton") - flipped, gate * up, rtol=1e-5, atol=1e-5)
    zero = torch.zeros(2 * columns, device=device)
    odd = bias_gelu(x, zero, backend="triton") - bias_gelu(-x, zero, backend="triton")
    torch.testing.assert_close(odd, x, rtol=1e-5, atol=1e-5)
