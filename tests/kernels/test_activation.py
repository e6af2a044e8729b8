import pytest
import torch
import torch.nn.functional as F
from check import compare

from megagpt.kernels.activation import bias_gelu

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (2, 5, 127), (7, 1000)])
def test_bias_gelu(device, launched, dtype, tolerance, shape):
    x, bias = torch.randn(shape, device=device, dtype=dtype), torch.randn(shape[-1], device=device, dtype=dtype)
    compare(
        lambda x, bias: bias_gelu(x, bias, backend="triton"),
        lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        {"x": x, "bias": bias},
        tolerance,
    )
    assert launched == ["bias_gelu_forward_kernel", "bias_gelu_backward_kernel"]


def test_opcheck(device):
    x, bias = torch.randn(4, 33, device=device, requires_grad=True), torch.randn(33, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.megagpt.bias_gelu, (x, bias))


def test_compiles_whole(device):
    x, bias = torch.randn(4, 33, device=device), torch.randn(33, device=device)
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias, backend="triton"), bias_gelu(x, bias, backend="triton"))
