"""Registers the implementations of a `torch.library` op, and chooses the back end for `auto`."""

from collections.abc import Callable
from functools import cache
from importlib import import_module, util

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that the Triton kernels support, unless an op says otherwise; they compute in float32."""


SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
"""{compute capability: KiB of shared memory per program} of the chips that have launch settings (CUDA programming
guide, table of technical specifications)."""


def define_op(name: str, reference: Callable, kernel: str, fake: Callable, mutates: tuple[str, ...] = ()) -> Callable:
    """Register `torch.ops.megagpt.<name>` and return it.

    reference: the CPU implementation; its type annotations give the schema, and it must return new tensors. kernel:
    "module:function" of the Triton implementation, for CUDA and, with TRITON_INTERPRET=1, also for CPU; it is imported
    at the first call, because not every machine has Triton. fake: computes the outputs' shapes and dtypes, for meta
    tensors and torch.compile. mutates: names of the arguments that the op overwrites.
    """
    qualified = f"megagpt::{name}"
    module, function = kernel.split(":")

    def triton(*args):
        return getattr(import_module(module), function)(*args)

    def cpu(*args):
        return triton(*args) if interpreted() else reference(*args)

    torch.library.define(qualified, torch.library.infer_schema(reference, mutates_args=mutates))
    torch.library.impl(qualified, "cpu", cpu)
    torch.library.impl(qualified, "cuda", triton)
    torch.library.register_fake(qualified, fake)
    return getattr(torch.ops.megagpt, name).default


def choose_backend(backend: str, tensor: Tensor, others: tuple[str, ...] = ("torch",)) -> str:
    """The back end for `tensor`: `auto` is Triton on a GPU with fitting launch settings, else the first of `others`.

    Raises ValueError for an unknown back end, or for Triton on a CPU without its interpreter.
    """
    if backend == "auto":
        return "triton" if tensor.is_cuda and chip() else others[0]
    if backend not in ("triton", *others):
        raise ValueError(f"backend is {backend!r}; it must be one of auto, triton, {', '.join(others)}")
    if backend == "triton" and tensor.device.type == "cpu" and not interpreted():
        raise ValueError(
            "backend is 'triton' but the tensors are on the CPU: move them to CUDA, use 'auto', or set "
            "TRITON_INTERPRET=1 to run kernels slowly in Triton's interpreter"
        )
    return backend


def _constant(function: Callable) -> Callable:
    """Like `torch.compiler.assume_constant_result`, but without importing the compiler, which takes a second."""
    function._dynamo_marked_constant = True
    return function


@_constant
def interpreted() -> bool:
    """Whether Triton is installed and interprets kernels on the CPU (TRITON_INTERPRET=1) instead of compiling them."""
    return _interpreted()


@cache
def _interpreted() -> bool:
    if util.find_spec("triton") is None:
        return False
    from triton import knobs

    if knobs.runtime.interpret:
        _mend_interpreter()
    return knobs.runtime.interpret


def _mend_interpreter() -> None:
    """Fix products of bfloat16 matrices in Triton's interpreter, which multiplies bits instead of values."""
    import numpy as np
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot_of_numbers(self, a: TensorHandle, b: TensorHandle, *rest) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot_of_numbers


@_constant
def chip() -> int | None:
    """Key of SHARED_KIB whose launch settings the current GPU uses, such as 90 on sm_90.

    None if none fits, or if Triton is not installed. The interpreter uses the settings of Hopper (90).
    """
    if interpreted():
        return 90
    if util.find_spec("triton") is None:
        return None
    from triton.runtime import driver

    return _chip(driver.active.get_current_device())


@cache
def _chip(device: int) -> int | None:
    from triton.runtime import driver

    shared = driver.active.utils.get_device_properties(device)["max_shared_mem"]
    return chip_like(driver.active.get_current_target().arch, shared // 1024)


def chip_like(capability: int, shared_kib: int) -> int | None:
    """The newest chip of SHARED_KIB up to `capability` whose programs fit into `shared_kib`; None if there is none."""
    fitting = [known for known, kib in SHARED_KIB.items() if known <= capability and kib <= shared_kib]
    return max(fitting, default=None)


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of streaming multiprocessors of a device; 4 on a CPU, so that tests cover programs with many tiles too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def descriptor_memory() -> None:
    """Let this thread's next launch allocate memory for the tensor descriptors that its kernel makes."""
    import triton

    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))


def check_tensor(name: str, tensor: Tensor, like: Tensor | None = None, shape: tuple[int, ...] | None = None) -> None:
    """Raises ValueError, naming the argument, unless the kernels support `tensor`.

    It must have one of DTYPES, the device and dtype of `like`, and the shape `shape` (if these are given); the stride
    of its last dimension must be 1.
    """
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {tensor.dtype}; supported are float32, bfloat16 and float16")
    if like is not None and tensor.dtype != like.dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}, but the first argument has {like.dtype}: cast one of them")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but the first argument is on {like.device}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; it must be 1: use contiguous()")


def has_tiles(tensor: Tensor) -> bool:
    """Whether tensor descriptors can load tiles of it: contiguous rows that all begin at multiples of 16 bytes."""
    step = 16 // tensor.element_size()
    strides = [stride for stride, size in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True) if size > 1]
    return tensor.stride(-1) == 1 and all(s and s % step == 0 for s in strides) and tensor.storage_offset() % step == 0


def check_tiles(**tensors: Tensor) -> None:
    """Raises ValueError, naming the argument, unless `has_tiles` is true for all `tensors`."""
    for name, tensor in tensors.items():
        if not has_tiles(tensor):
            raise ValueError(
                f"{name} has strides {list(tensor.stride())} and storage offset {tensor.storage_offset()}; backend "
                f"'triton' needs positive multiples of {16 // tensor.element_size()} (16 bytes): use contiguous()"
            )
