"""Runs Megatron-Core on machines without CUDA, by redirecting its `torch.cuda` calls to the CPU.

Megatron-Core uses the device "cuda" throughout. On a machine without a GPU, `enable` redirects these calls once per
process. The same engine code then runs on CPU ranks that communicate over gloo.
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
        """Do nothing: CPU operations run in order."""

    def synchronize(self) -> None:
        """Do nothing: CPU operations run in order."""


class _Generators:
    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


_MODE = _CudaToCpu()


def device() -> torch.device:
    """The device of this process: the current CUDA device if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def enable() -> None:
    """Redirect Megatron-Core's CUDA calls in this thread to the CPU; does nothing if CUDA is available."""
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
    if random is not None:  # its import has copied these two functions
        random._lazy_init, random._lazy_call = cuda._lazy_init, cuda._lazy_call
    # Here the "CUDA" and the CPU random state are the same; Megatron-Core warns about that at every fork.
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)
    _MODE.__enter__()
