"""Attention and decode attention in Triton against the textbook in float64: outputs, log-sum-exp, every gradient."""

import itertools

import pytest
import torch
from check import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.kernels.attention import attention
from megagpt.kernels.attention.op import HEAD_DIMS
from megagpt.kernels.decode import decode_attention

DTYPES = [(torch.float16, 2e-3), (torch.bfloat16, 2.5e-2)]
FORWARD = "attention_forward_kernel"
BACKWARD = ["attention_delta_kernel", "attention_dkdv_kernel", "attention_dq_kernel"]
DOCUMENTS = [0, 1, 30, 30, 127, 130, 254]


def tensors(queries, keys, heads, groups, dim, dtype, device, batch=2):
    generator = torch.Generator().manual_seed(queries * 1000 + keys + dim)
    shapes = [(batch, queries, heads, dim), *[(batch, keys, groups, dim)] * 2]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def check(q, k, v, tolerance, **options) -> None:
    mine = [part.detach().requires_grad_() for part in (q, k, v)]
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    out, lse = attention(*mine, return_lse=True, backend="triton", **options)
    true_out, true_lse = attention(*exact, return_lse=True, backend="reference", **options)
    seen = true_lse.isfinite()
    assert torch.equal(lse.isfinite(), seen)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    dlse = torch.where(seen, dlse, 0.0)
    assert_near(out, true_out, tolerance, "out")
    assert_near(lse[seen], true_lse[seen], 1e-5, "lse")
    grads = torch.autograd.grad((out, lse), mine, (dout, dlse))
    true_grads = torch.autograd.grad((true_out, true_lse), exact, (dout.double(), dlse.double()))
    for name, grad, true_grad in zip("qkv", grads, true_grads, strict=True):
        assert_near(grad, true_grad, tolerance, f"gradient of {name}")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("length", [1, 63, 127, 200])
def test_causal(device, launched, dtype, tolerance, length):
    check(*tensors(length, length, 2, 2, 64, dtype, device), tolerance)
    assert launched == [FORWARD, *BACKWARD]


@pytest.mark.gpu
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dimensions(device, launched, dim):
    check(*tensors(70, 70, 2, 1, dim, torch.float16, device, batch=1), 2e-3)
    both = 1 if dim < 192 else 2  # the sums of dk and dv do not fit in registers together
    assert launched == [FORWARD, BACKWARD[0], *[BACKWARD[1]] * both, BACKWARD[2]]


@pytest.mark.parametrize(
    ("causal", "window", "scale", "groups"),
    [c for c in itertools.product((True, False), (None, 1, 50), (None, 0.3), (4, 1)) if c[2] is None or c[3] == 1],
)
@pytest.mark.parametrize(("queries", "keys"), [(130, 130), (5, 150)])
def test_option_pairs(device, queries, keys, causal, window, scale, groups):
    parts = tensors(queries, keys, 4, groups, 64, torch.float16, device, batch=1)
    check(*parts, 2e-3, causal=causal, window=window, scale=scale)


@pytest.mark.gpu
@pytest.mark.parametrize(("causal", "window"), list(itertools.product((True, False), (None, 20))))
def test_packed_documents(device, causal, window):
    bounds = torch.tensor(DOCUMENTS, dtype=torch.int32, device=device)
    check(*tensors(127, 127, 2, 1, 64, torch.float16, device), 2e-3, causal=causal, window=window, cu_seqlens=bounds)


@pytest.mark.gpu
def test_packed_equals_documents_alone(device):
    q, k, v = tensors(127, 127, 2, 2, 64, torch.float16, device)
    bounds = torch.tensor(DOCUMENTS, device=device)
    packed = attention(q, k, v, cu_seqlens=bounds, backend="triton").flatten(0, 1)
    for first, end in itertools.pairwise(DOCUMENTS):
        alone = [part.flatten(0, 1)[first:end].unsqueeze(0) for part in (q, k, v)]
        if end > first:
            expected = attention(*alone, backend="triton")[0]
            assert_near(packed[first:end], expected, 2e-3, f"document {first}:{end}")


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 40])
def test_left_padding(device, window):
    q, k, v = tensors(130, 130, 2, 2, 64, torch.float16, device)
    first_key = torch.tensor([0, 101], dtype=torch.int32, device=device)
    options = {"first_key": first_key, "window": window}
    out = attention(q, k, v, backend="triton", **options)
    assert_near(out, attention(q.double(), k.double(), v.double(), backend="reference", **options), 2e-3, "out")
    assert not out[1, :101].any()  # queries that see no key
    with pytest.raises(ValueError, match="first_key has no gradient"):
        attention(q.requires_grad_(), k, v, backend="triton", **options)


@pytest.mark.gpu
def test_strided_views_of_one_projection(device):
    packed = torch.randn(100, 2, 6, 64, device=device).half()
    q, k, v = packed.transpose(0, 1).split((2, 2, 2), dim=2)
    check(q, k, v, 2e-3)


@pytest.mark.gpu
def test_band_costs_what_it_covers(device, monkeypatch):
    """Keys outside the band are never read: they may hold anything."""
    q, k, v = tensors(600, 600, 1, 1, 64, torch.float16, device, batch=1)
    out = attention(q[:, -128:], k, v, window=50, backend="triton")
    k[:, :256], v[:, :256] = float("nan"), float("nan")
    assert torch.equal(out, attention(q[:, -128:], k, v, window=50, backend="triton"))


@pytest.mark.gpu
def test_backward_is_deterministic(device):
    parts = [part.requires_grad_() for part in tensors(200, 200, 4, 2, 64, torch.bfloat16, device)]

    def gradients():
        return torch.autograd.grad(attention(*parts, backend="triton").float().square().sum(), parts)

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


def test_float32_takes_the_reference(device, launched):
    parts = tensors(40, 40, 2, 2, 24, torch.float32, device)
    with pytest.raises(ValueError, match="head dimension 24"):
        attention(*parts, backend="triton")
    parts = tensors(40, 40, 2, 2, 64, torch.float32, device)
    check(*parts, 1e-5)
    assert not launched


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 3), (2, 0, 5), (2, 3, 0)])
def test_empty(device, batch, queries, keys):
    q, k, v = (part.requires_grad_() for part in tensors(queries, keys, 2, 2, 64, torch.float16, device, batch=batch))
    out, lse = attention(q, k, v, causal=False, return_lse=True, backend="triton")
    assert not out.any()
    assert not lse.isfinite().any()
    out.sum().backward()
    assert q.grad.shape == q.shape
    assert not k.grad.any()


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(3)), st.integers(1, 80), st.integers(1, 40))
def test_permutes_with_its_batch_and_ignores_hidden_keys(order, length, window):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = tensors(length, length, 2, 1, 64, torch.float16, device, batch=3)
    out = attention(q, k, v, window=window, backend="triton")
    assert torch.equal(attention(q[order], k[order], v[order], window=window, backend="triton"), out[order])
    k[:, : max(length - window, 0)], v[:, : max(length - window, 0)] = 1e3, -1e3
    changed = attention(q, k, v, window=window, backend="triton")
    assert torch.equal(changed[:, -1], out[:, -1])


def test_opcheck_and_compile(device):
    q, k, v = (part.requires_grad_() for part in tensors(40, 40, 2, 1, 64, torch.float16, device, batch=1))
    torch.library.opcheck(
        torch.ops.megagpt.attention, (q, k, v, None, None, None, True, 0, 0.125, None), rtol=5e-2, atol=5e-3
    )
    decode = (q[:, -1:].detach(), k.detach(), v.detach(), None, 0, 0.125, None)
    torch.library.opcheck(torch.ops.megagpt.decode_attention, decode)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, backend="triton"), attention(q, k, v, backend="triton"))
    shapes = [part.to("meta") for part in (q, k, v)]
    out, lse = attention(*shapes, return_lse=True, backend="triton")
    assert out.shape == q.shape
    assert lse.shape == (1, 2, 40)


BAD = {
    "q has shape": lambda q, k, v: attention(q[0], k, v),
    "k has shape": lambda q, k, v: attention(q, k[..., :32], v),
    "q has 4 heads": lambda q, k, v: attention(q, k.repeat(1, 1, 3, 1), v.repeat(1, 1, 3, 1)),
    "v is torch.float32": lambda q, k, v: attention(q, k, v.float()),
    "window is 0": lambda q, k, v: attention(q, k, v, window=0),
    "scale is -1": lambda q, k, v: attention(q, k, v, scale=-1),
    "dropout is not supported": lambda q, k, v: attention(q, k, v, dropout=0.1, backend="triton"),
    "mask is not supported": lambda q, k, v: attention(
        q, k, v, mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool), backend="triton"
    ),
    "mask has dtype": lambda q, k, v: attention(q, k, v, mask=torch.zeros(1, 1, 1, 1)),
    "cu_seqlens is": lambda q, k, v: attention(q, k, v, cu_seqlens=torch.tensor([0.0, 80.0])),
    "cu_seqlens needs": lambda q, k, v: attention(q[:, 1:], k, v, cu_seqlens=torch.tensor([0, 80])),
    "first_key is": lambda q, k, v: attention(q, k, v, first_key=torch.tensor([1])),
    "backend is 'fast'": lambda q, k, v: attention(q, k, v, backend="fast"),
    "head dimension 40": lambda q, k, v: attention(*(p[..., :40] for p in (q, k, v)), backend="triton"),
    "k has stride 2": lambda q, k, v: attention(q, torch.cat((k, k), -1)[..., ::2], v, backend="triton"),
    "v has strides": lambda q, k, v: attention(q, k, torch.nn.functional.pad(v, (0, 1))[..., :64], backend="triton"),
    "must be \\[batch, 1": lambda q, k, v: decode_attention(q, k, v),
    "has no gradient": lambda q, k, v: decode_attention(q[:, -1:].requires_grad_(), k, v, backend="triton"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    q, k, v = tensors(40, 40, 4, 2, 64, torch.float16, "cpu")
    with pytest.raises(ValueError, match=message):
        BAD[message](q, k, v)


@pytest.mark.parametrize("bounds", [[0, 70, 60, 80], [0, 50], [1, 80]])
def test_documents_that_do_not_fit(bounds):
    q, k, v = tensors(40, 40, 2, 2, 64, torch.float16, "cpu")
    with pytest.raises(RuntimeError, match="cu_seqlens must begin with 0"):
        attention(q, k, v, cu_seqlens=torch.tensor(bounds))


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("keys", "heads", "groups", "dim", "window"),
    [(1, 2, 2, 64, None), (1000, 4, 2, 80, None), (300, 4, 4, 128, 100), (130, 80, 1, 64, None), (65, 2, 1, 256, 64)],
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("processors", [1, 1000])
def test_decode(monkeypatch, device, launched, dtype, tolerance, keys, heads, groups, dim, window, padded, processors):
    """With one multiprocessor to fill the keys stay whole; with many they are split wherever they are several tiles."""
    monkeypatch.setattr("megagpt.kernels.decode.kernel.multiprocessors", lambda device: processors)
    q, k, v = tensors(1, keys, heads, groups, dim, dtype, device)
    first_key = torch.tensor([0, keys // 2], dtype=torch.int32, device=device) if padded else None
    out = decode_attention(q, k, v, window, first_key=first_key, backend="triton")
    exact = (part.double() for part in (q, k, v))
    expected = attention(*exact, window=window, first_key=first_key, backend="reference")
    assert_near(out, expected, tolerance, "out")
    split = processors > 1 and min(keys, window or keys) > 1
    assert launched == ["decode_attention_kernel", "decode_join_kernel"][: 1 + split]
