"""Kernels run on CUDA where there is a GPU, else in Triton's interpreter; their outputs start as NaN."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
CUDA = torch.cuda.is_available()


@pytest.fixture
def device() -> str:
    """Where kernels run."""
    return "cuda" if CUDA else "cpu"


@pytest.fixture(scope="session")
def dynamo():
    """torch.compile lists PyTorch's functions when it first runs, which must not be while they are replaced."""
    torch.compile(torch.neg, backend="eager")(torch.zeros(1))


@pytest.fixture(autouse=True)
def poison(monkeypatch, dynamo):
    """Memory that a kernel leaves unwritten shows as NaN, or as a wild integer."""

    def poisoned(make):
        def fill(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan") if out.is_floating_point() else -99) if not out.is_meta else out

        return fill

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
