"""Runs Megatron-Core where there is no CUDA, by answering its `torch.cuda` calls from the CPU.

Megatron-Core names the device "cuda" throughout. On a machine without one, `enable` redirects those requests once
for the process, and the same engine code then runs on CPU ranks that talk over gloo.
"""

import contextlib
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _CudaToCpu(TorchFunctionMode):
    """Rewrites `device="cuda"`, `.cuda()` and the tensor type names that Megatron-Core compares with."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs and str(kwargs.get("device", "")).startswith("cuda"):
            kwargs = {**kwargs, "device": "cpu"}
        result = func(*args, **(kwargs or {}))
        # Megatron-Core tells dtypes apart by names such as 'torch.cuda.FloatTensor'.
        return result.replace("torch.", "torch.cuda.") if func is torch.Tensor.type and len(args) == 1 else result


class _Stream(contextlib.nullcontext):
    def wait_stream(self, stream: Any) -> None:
        """There is nothing to wait for: CPU operations run in order."""

    def synchronize(self) -> None:
        """There is nothing to wait for: CPU operations run in order."""


class _Generators:
    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


_MODE = _CudaToCpu()


def device() -> torch.device:
    """The device of this process: the current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def enable() -> None:
    """Answer Megatron-Core's CUDA calls from the CPU in this thread; does nothing where CUDA is available."""
    if torch.cuda.is_available() or _MODE in torch.overrides._get_current_function_mode_stack():
        return
    cuda = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    cuda.synchronize = lambda *args, **kwargs: None
    cuda.current_stream = lambda *args: _Stream()
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.default_generators = _Generators()
    cuda._lazy_init = lambda: None
    cuda._lazy_call = lambda function, **kwargs: function()
    random = sys.modules.get("megatron.core.tensor_parallel.random")
    if random is not None:  # it took its copies of these two when it was imported
        random._lazy_init, random._lazy_call = cuda._lazy_init, cuda._lazy_call
    # Here the "CUDA" and the CPU random state are the same; Megatron-Core warns of that at every fork.
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
    _MODE.__enter__()
