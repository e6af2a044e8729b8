"""The attention op against the reference in float64: outputs and the gradients of q, k and v."""

import pytest
import torch

from megagpt.kernels.attention import attention
from megagpt.kernels.attention.masks import hidden_keys
from megagpt.kernels.attention.sdpa import _visible_keys

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}


def tensors(queries: int, keys: int, groups: int, dtype: torch.dtype, heads: int = 4, dim: int = 24):
    """q, k, v and an output gradient as strided views of one projection, laid out as the model has them."""
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    packed = torch.randn(keys, 2, heads + 2 * groups, dim, dtype=torch.float64, generator=generator).to(dtype)
    q, k, v = packed.transpose(0, 1).split((heads, groups, groups), dim=2)
    gradient = torch.randn(2, queries, heads, dim, dtype=torch.float64, generator=generator).to(dtype)
    return q[:, keys - queries :], k, v, gradient


def results(function, q, k, v, gradient, **options) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = function(*leaves, **options)
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def textbook(q, k, v, causal=True, window=None, mask=None, scale=None):
    k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], 2) for part in (k, v))
    hidden = hidden_keys(q.shape[1], k.shape[1], causal, window, q.device)
    hidden = hidden if mask is None else hidden | mask
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1).masked_fill(hidden, 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, v)


def check(q, k, v, gradient, **options) -> list[torch.Tensor]:
    actual = results(attention, q, k, v, gradient, **options)
    expected = results(textbook, *(t.double() for t in (q, k, v, gradient)), **options)
    for value, truth in zip(actual, expected, strict=True):
        assert value.dtype == q.dtype
        error = (value.double() - truth).abs().max() / truth.abs().max().clamp(min=1.0)
        assert error < TOLERANCE[q.dtype]
    return actual


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize(("queries", "keys"), [(33, 33), (1, 33), (5, 33)])
def test_causal_and_banded(queries: int, keys: int, window: int | None, groups: int, dtype: torch.dtype):
    check(*tensors(queries, keys, groups, dtype), window=window)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shape", [(1, 1, 1, 33), (2, 1, 9, 33), (2, 4, 9, 33)])
def test_mask(shape: tuple[int, ...], window: int | None, causal: bool):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3
    check(*tensors(9, 33, 2, torch.float32), causal=causal, window=window, mask=mask)


def test_without_any_mask():
    check(*tensors(9, 33, 4, torch.float32), causal=False)


def test_scale():
    check(*tensors(17, 17, 4, torch.float32), scale=0.9)


def test_a_query_that_sees_nothing_gives_zeros():
    q, k, v, gradient = tensors(9, 9, 4, torch.float32)
    mask = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    mask[1, :, :, :4] = True  # as in a batch padded on the left
    values = check(q, k, v, gradient, mask=mask)
    assert not values[0][1, :4].any()
    assert all(value.isfinite().all() for value in values)


def test_dropout_keeps_the_mean_and_follows_the_seed():
    q, k, v, _ = tensors(16, 16, 4, torch.float32)

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return attention(q, k, v, dropout=0.5)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    mean = torch.stack([sample(seed) for seed in range(2000)]).mean(0)
    torch.testing.assert_close(mean, attention(q, k, v), atol=0.35, rtol=0)


def test_masks_are_kept_and_survive_inference_mode():
    q, k, v, gradient = tensors(29, 29, 4, torch.float32)
    with torch.inference_mode():
        attention(q, k, v, window=3)
    misses = _visible_keys.cache_info().misses
    check(q, k, v, gradient, window=3)
    assert _visible_keys.cache_info().misses == misses


def test_dense_causal_training_takes_the_fused_kernel():
    q, k, v, _ = tensors(33, 33, 2, torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(q, k, v)
    assert any("flash_attention" in event.key for event in profile.key_averages())
