"""Comparing a kernel with the same mathematics in float64, forward and every gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """The largest difference, relative to the largest expected value, is within `tolerance`."""
    assert actual.shape == expected.shape, what
    assert torch.isfinite(actual).all(), f"{what}: not finite, or memory that was not written"
    if actual.numel():
        difference = (actual.double() - expected.double()).abs().max().item()
        limit = tolerance * max(expected.double().abs().max().item(), 1e-30)
        assert difference <= limit, f"{what}: differs by {difference:.3g}, allowed {limit:.3g}"


def compare(op: Callable, truth: Callable, inputs: dict[str, Tensor], tolerance: float) -> None:
    """`op(**inputs)` equals `truth(**inputs)` computed in float64, and so do the gradients of all float inputs.

    Both return one tensor or several; each is multiplied by fixed random numbers and summed to get gradients.
    """
    mine = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
    exact = {
        k: (v.detach().double() if v.is_floating_point() else v).requires_grad_(v.is_floating_point())
        for k, v in inputs.items()
    }
    actual, expected = op(**mine), truth(**exact)
    actual, expected = ([out] if isinstance(out, Tensor) else list(out) for out in (actual, expected))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(out.shape, generator=generator).to(out.device, out.dtype) for out in actual]
    for index, (mine_out, exact_out) in enumerate(zip(actual, expected, strict=True)):
        assert_near(mine_out, exact_out, tolerance, f"output {index}")
    torch.autograd.backward(actual, weights)
    torch.autograd.backward(expected, [weight.double() for weight in weights])
    for name, tensor in mine.items():
        if tensor.requires_grad:
            assert_near(tensor.grad, exact[name].grad, tolerance, f"gradient of {name}")
