"""Bias + dropout + residual add: the mask is read off a run, then outputs and gradients must follow from it."""

import pytest
import torch
import torch.nn.functional as F
from check import assert_near, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from megagpt.kernels.bias_dropout_add import bias_dropout_add, kernel, reference

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
SHAPES = [(1, 1), (1,), (3, 63), (2, 5, 127), (33, 300), (300, 2)]


def random(*shape, device, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def drop(x, bias, residual, probability=0.25, training=True, seed=0):
    torch.manual_seed(seed)
    return bias_dropout_add(x, bias, residual, probability, training, backend="triton")


def kept(shape, device, probability=0.25, seed=0):
    """Which elements are kept, as float64 zeros and ones."""
    zeros, ones = torch.zeros(shape, device=device), torch.ones(shape[-1], device=device)
    scaled = drop(zeros, ones, zeros, probability, seed=seed).double()
    mask = (scaled > 0).double()
    assert_near(scaled, mask / (1 - probability), 1e-6, "kept elements are divided by 1 - probability")
    return mask


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_dropout(device, launched, dtype, tolerance, shape, biased):
    factors = kept(shape, device) / 0.75
    launched.clear()
    inputs = {name: random(*shape, device=device, dtype=dtype) for name in ("x", "residual")}
    if biased:
        inputs["bias"] = random(shape[-1], device=device, dtype=dtype)
    compare(
        lambda x, residual, bias=None: drop(x, bias, residual),
        lambda x, residual, bias=None: residual + factors * (x if bias is None else x + bias),
        inputs,
        tolerance,
    )
    assert launched == ["bias_dropout_add_forward_kernel", "bias_dropout_add_backward_kernel"]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.25, False), (0, False)])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_nothing_is_dropped(device, launched, dtype, tolerance, probability, training, biased):
    inputs = {name: random(2, 5, 127, device=device, dtype=dtype) for name in ("x", "residual")}
    if biased:
        inputs["bias"] = random(127, device=device, dtype=dtype)
    state = torch.get_rng_state()
    compare(
        lambda x, residual, bias=None: bias_dropout_add(x, bias, residual, probability, training, backend="triton"),
        lambda x, residual, bias=None: residual + x if bias is None else residual + x + bias,
        inputs,
        tolerance,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert launched == ["bias_dropout_add_forward_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.99])
def test_rate(device, probability):
    mask = kept((64, 1000), device, probability)
    deviation = (probability * (1 - probability) / mask.numel()) ** 0.5
    assert abs(mask.mean().item() - (1 - probability)) < 5 * deviation
    for axis in (0, 1):  # no row and no column stands out, nor do the four that one random call serves
        rates = mask.mean(axis)
        assert (rates - (1 - probability)).abs().max() < 5.5 * (deviation * (mask.numel() / mask.shape[axis]) ** 0.5)
    lanes = mask.view(64, -1, 4).mean((0, 1))
    assert (lanes - (1 - probability)).abs().max() < 5 * deviation * 2


def test_neighbours_are_independent(device):
    mask = kept((64, 1000), device, 0.5) - 0.5
    for rows, columns in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (16, 0), (0, 256)):
        product = mask[rows:, columns:] * mask[: 64 - rows, : 1000 - columns]
        assert abs(product.mean().item()) < 5 * 0.25 / product.numel() ** 0.5


def test_seed_decides(device):
    masks = [kept((16, 100), device, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    agreement = (masks[0] == masks[2]).double().mean().item()
    assert abs(agreement - (0.75**2 + 0.25**2)) < 5 * (0.625 * 0.375 / 1600) ** 0.5


def test_both_halves_of_the_seed_count(device):
    x = torch.ones(16, 100, device=device)
    masks = []
    for seed in (5, 5 + 2**32, 5 + 2**31):
        seed = torch.tensor([seed], device=device)
        masks.append(kernel.bias_dropout_add(x, None, torch.zeros_like(x), seed, 0.5))
    assert not any(torch.equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.gpu
def test_mask_does_not_depend_on_launch_settings(device, monkeypatch):
    x, y = random(37, 300, device=device), random(37, 300, device=device)
    seed = torch.tensor([7], device=device)

    def results():
        forward = kernel.bias_dropout_add(x, None, y, seed, 0.3)
        return forward, kernel.bias_dropout_add_backward(x, None, seed, 0.3)[0]

    expected = results()
    monkeypatch.setitem(kernel.geometry.__globals__, "COLUMNS", 32)
    for name, value in {"COLUMNS": 32, "FORWARD_ROWS": 2, "BACKWARD_ROWS": 4}.items():
        monkeypatch.setattr(kernel, name, value)
    monkeypatch.setitem(kernel.geometry.__globals__, "FORWARD_ROWS", 2)
    monkeypatch.setitem(kernel.geometry.__globals__, "BACKWARD_ROWS", 4)
    assert all(torch.equal(*pair) for pair in zip(expected, results(), strict=True))


def test_rows_keep_their_mask_when_more_follow(device):
    assert torch.equal(kept((5, 100), device), kept((9, 100), device)[:5])


@pytest.mark.gpu
def test_recomputation_repeats_the_mask(device):
    x, residual = (random(8, 50, device=device).requires_grad_() for _ in range(2))

    def run(recompute):
        torch.manual_seed(3)

        def op(x, residual):
            return bias_dropout_add(x, None, residual, 0.5, backend="triton").square()

        y = checkpoint(op, x, residual, use_reentrant=False) if recompute else op(x, residual)
        return torch.autograd.grad(y.sum(), (x, residual))

    assert all(torch.equal(*pair) for pair in zip(run(False), run(True), strict=True))


def test_only_the_seed_and_the_bias_are_saved(device):
    x, bias = random(8, 50, device=device).requires_grad_(), random(50, device=device).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        drop(x, bias, x.detach())
    assert sorted(saved) == [1, 50]


def test_strided(device):
    x, residual = (random(9, 4, 64, device=device).transpose(0, 1)[..., 10:44] for _ in range(2))
    factors = kept((4, 9, 34), device) / 0.75
    inputs = {"x": x, "bias": random(34, device=device), "residual": residual}
    compare(drop, lambda x, bias, residual: residual + factors * (x + bias), inputs, 1e-6)


@pytest.mark.parametrize("shape", [(0, 34), (3, 0, 34), (3, 0)])
@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_empty(device, shape, probability):
    inputs = {name: torch.zeros(shape, device=device).requires_grad_() for name in ("x", "residual")}
    bias = torch.zeros(shape[-1], device=device, requires_grad=True)
    y = drop(inputs["x"], bias, inputs["residual"], probability)
    y.sum().backward()
    assert y.shape == shape and not bias.grad.any()


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_opcheck(device, probability):
    x, bias, residual = (random(*shape, device=device).requires_grad_() for shape in ((4, 33), (33,), (4, 33)))
    seed = torch.tensor([1], device=device) if probability else None
    torch.library.opcheck(torch.ops.megagpt.bias_dropout_add, (x, bias, residual, seed, probability))
    torch.library.opcheck(torch.ops.megagpt.bias_dropout_add, (x, None, residual, seed, probability))


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_compiles_whole(device, probability):
    compiled = torch.compile(bias_dropout_add, fullgraph=True, backend="aot_eager")
    x, bias = random(4, 33, device=device), random(33, device=device)
    results = []
    for function in (bias_dropout_add, compiled):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, bias, x)]
        torch.manual_seed(0)
        y = function(*leaves, probability, backend="triton")
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_shapes_alone(probability):
    x, bias = torch.empty(5, 8, device="meta"), torch.empty(8, device="meta").requires_grad_()
    y = bias_dropout_add(x, bias, x, probability, backend="triton")
    y.sum().backward()
    assert y.is_meta and y.shape == (5, 8) and bias.grad.shape == (8,)
    with FakeTensorMode():
        x, bias = torch.ones(5, 8), torch.ones(8).requires_grad_()
        y = bias_dropout_add(x, bias, x, probability, backend="triton")
        y.sum().backward()
        assert y.shape == (5, 8) and bias.grad.shape == (8,)


@pytest.mark.parametrize("biased", [True, False])
def test_cpu_face(biased):
    """What the CPU runs in place of Triton: its own mask, by the same rules."""
    x, residual, bias = (random(*shape, device="cpu").double() for shape in ((6, 50), (6, 50), (50,)))
    bias, seed = bias if biased else None, torch.tensor([4])
    zeros = torch.zeros_like(x)
    factors = reference.seeded(zeros + 1, None, zeros, seed, 0.2)
    assert set(factors.unique().tolist()) == {0.0, 1.25}
    u = x + bias if biased else x
    torch.testing.assert_close(reference.seeded(x, bias, residual, seed, 0.2), residual + factors * u)
    torch.testing.assert_close(reference.seeded(x, bias, residual, None, 0.2), residual + u)
    dx, dbias = reference.seeded_backward(x, bias, seed, 0.2)
    torch.testing.assert_close(dx, factors * x)
    torch.testing.assert_close(dbias, (factors * x).sum(0) if biased else x.new_empty(0))


def test_torch_backend_is_torchs_dropout():
    x, residual, bias = random(6, 50, device="cpu"), random(6, 50, device="cpu"), random(50, device="cpu")
    for backend in ("torch", "auto"):
        torch.manual_seed(0)
        actual = bias_dropout_add(x, bias, residual, 0.3, backend=backend)
        torch.manual_seed(0)
        assert torch.equal(actual, residual + F.dropout(x + bias, 0.3))
    assert torch.equal(bias_dropout_add(x, None, residual, 0.3, training=False), residual + x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 4).double()}, "x has dtype torch.float64"),
        ({"x": torch.zeros(())}, "x has no dimension"),
        ({"x": torch.zeros(4, 2).mT}, "x has stride 2"),
        ({"residual": torch.zeros(2, 4).half()}, "residual has dtype torch.float16"),
        ({"residual": torch.zeros(2, 4, device="meta")}, "residual is on meta"),
        ({"residual": torch.zeros(1, 4)}, "residual has shape [1, 4]; it must be [2, 4]"),
        ({"bias": torch.zeros(4).half()}, "bias has dtype torch.float16"),
        ({"bias": torch.zeros(2)}, "bias has shape [2]; it must be [4]"),
        ({"bias": torch.zeros(8)[::2]}, "bias has stride 2"),
        ({"probability": 1.0}, "probability is 1.0; it must be at least 0 and less than 1"),
        ({"probability": -0.1}, "probability is -0.1"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_bad_input(device, arguments, message):
    good = {"x": torch.zeros(2, 4), "bias": torch.zeros(4), "residual": torch.zeros(2, 4), "probability": 0.1}
    chosen = {"backend": "triton"} | good | arguments
    chosen = {k: v.to(device) if isinstance(v, torch.Tensor) and not v.is_meta else v for k, v in chosen.items()}
    with pytest.raises(ValueError) as error:
        bias_dropout_add(**chosen)
    assert message in str(error.value)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 300), probability=st.floats(0.0, 0.9), seed=st.integers(0, 9))
def test_properties(rows, columns, probability, seed):
    """Each element is either the residual or what is added without dropout, scaled."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, residual = torch.rand(rows, columns, device=device) + 1, torch.zeros(rows, columns, device=device)
    out = drop(x, None, residual, probability, seed=seed)
    torch.testing.assert_close(out, torch.where(out == 0, 0, x / (1 - probability)))
    assert probability > 0 or (out != 0).all()
