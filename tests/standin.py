"""The meta device in place of CUDA, with values: what mixes devices is refused, and what the host waits for is counted.

A tensor on the device is an `OnDevice`, which says that it is on `meta` and holds its values in a CPU tensor. Every
operation on it is done on the CPU, so that runs give the numbers that they give without the stand-in, in any layout,
while every operator sees devices as CUDA would show them:

- An operation on tensors of both devices raises `MixedDevices`, and so does a collective of CPU tensors in a group that
  would be NCCL's. CPU scalars are allowed, as CUDA allows them.
- What makes the host wait for the device is noted in `Waits`, by kind, file, function and line: reading values, results
  whose shape depends on values, and copies between devices other than from pinned memory without blocking.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from megagpt.data import batch as batches
from megagpt.parallel import cpu

META = torch.device("meta")
aten = torch.ops.aten
OURS = ("/megagpt/", "/kernels/", "/megatron/core/")
BY_VALUE = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::equal": "equal",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::repeat_interleave": "repeat_interleave",
    "aten::bincount": "bincount",
}
"""Operators whose result, or its shape, the host has to wait for."""
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
ON_EACH_SIDE = ("aten::copy_", "aten::_to_copy")


class MixedDevices(Exception):
    """An operation that CUDA would refuse."""


class OnDevice(torch.Tensor):
    """A tensor on the stand-in, whose values are in `held`."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=META,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r})"

    def tolist(self) -> Any:
        """Which PyTorch offers for no other kind of tensor."""
        WAITS.note("tolist")
        return self.held.tolist()

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_tensors(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


def _tensors(index: Any) -> Any:
    """An index with tensors for lists, of which PyTorch would make tensors of the meta device, without values."""
    if isinstance(index, tuple):
        return tuple(_tensors(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


class Waits:
    """What the host waited for: counts by (kind, file:function:line)."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def note(self, kind: str) -> None:
        """Count a wait of the line of our code, or of Megatron-Core's, that runs now."""
        self.counts[kind, here()] += 1

    @contextmanager
    def counted(self) -> Iterator[Counter]:
        """The counts of a block, complete at its end."""
        before, found = self.counts.copy(), Counter()
        yield found
        found.update(self.counts - before)


WAITS = Waits()
HOST_GROUPS: set[str] = set()
"""Names of the groups that were asked to be gloo's, which take CPU tensors."""


def here() -> str:
    """file:function:line of the innermost frame of our code or of Megatron-Core's."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in OURS) and not file.endswith("/parallel/cpu.py"):
            return f"{file.split('site-packages/')[-1].split('/megagpt/')[-1]}:{frame.f_code.co_name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def in_object_collective() -> bool:
    """Whether torch.distributed sends Python objects, for which it chooses the device itself."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if frame.f_code.co_filename.endswith("distributed_c10d.py") and ("_object" in name or name == "barrier"):
            return True
        frame = frame.f_back
    return False


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operator, on the CPU: checked, its waits noted, its results on the device that CUDA would have them on."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    off = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if any(tensor.is_meta for tensor in off):
        raise MixedDevices(f"{name} on a tensor without values, at {here()}")
    target = kwargs.get("device")
    target = torch.device(target) if target is not None else None
    if name.startswith("c10d::"):
        _check_collective(name, args, off)
    elif name in ON_EACH_SIDE:
        _note_copy(name, args, kwargs, target)
    elif on and off:
        _check_mixture(name, on, off)
    if on:
        _note_waits(name, args)
    if target is not None and target.type == "meta":
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrappers = {id(tensor.held): tensor for tensor in on}
    held_args, held_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    result = func(*held_args, **held_kwargs)
    stays = name == "aten::copy_" and not isinstance(args[0], OnDevice)
    wraps = (target.type == "meta" if target is not None else bool(on)) and not stays

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return wrappers.get(id(leaf)) if id(leaf) in wrappers else OnDevice(leaf) if wraps else leaf

    return tree_map(wrapped, result)


def _check_mixture(name: str, on: list[OnDevice], off: list[torch.Tensor]) -> None:
    if name in INDEXED:
        WAITS.note("indices from the CPU")
    elif any(tensor.dim() for tensor in off):
        shapes = [f"{list(t.shape)} on {'the device' if isinstance(t, OnDevice) else 'the CPU'}" for t in (*on, *off)]
        raise MixedDevices(f"{name} of {', '.join(shapes)}, at {here()}")


def _check_collective(name: str, args: tuple, off: list[torch.Tensor]) -> None:
    groups = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.ScriptObject)]
    known = set()
    for group in groups:
        try:
            known.add(dist.distributed_c10d.ProcessGroup.unbox(group).group_name)
        except RuntimeError:  # a ReduceOp
            continue
    if off and not known & HOST_GROUPS and not in_object_collective():
        raise MixedDevices(f"{name} of CPU tensors in a group that would be NCCL's, at {here()}")


def _note_copy(name: str, args: tuple, kwargs: dict[str, Any], target: torch.device | None) -> None:
    if name == "aten::copy_":
        to_device, source, blocking = isinstance(args[0], OnDevice), args[1], not (args[2:] and args[2])
    else:
        source, blocking = args[0], not kwargs.get("non_blocking")
        to_device = isinstance(source, OnDevice) if target is None else target.type == "meta"
    if isinstance(source, OnDevice) == to_device:
        return
    if not to_device:
        WAITS.note("copy to the CPU")
    elif blocking or not getattr(source, "in_pinned_memory", False):
        WAITS.note("copy to the device")


def _note_waits(name: str, args: tuple) -> None:
    if name in BY_VALUE and (name != "aten::repeat_interleave" or len(args) < 2):
        WAITS.note(BY_VALUE[name])
    # On CUDA a number stays on the CPU, and PyTorch fills a mask with it without looking where that is true.
    looks = name in INDEXED and (name == "aten::index" or args[2].dim())
    if looks and any(isinstance(i, OnDevice) and i.dtype == torch.bool for i in args[1] if i is not None):
        WAITS.note("index by a mask")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


class _Function(cpu._CudaToCpu):
    """What Megatron-Core asks of CUDA goes to the stand-in."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0].to(META)
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs = {**kwargs, "device": META}
        if func == torch.Tensor.data.__set__ and isinstance(args[0], OnDevice):
            args[0].held = args[1].held
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and len(args) == 1:
            return "torch.cuda." + result.split(".")[-1]
        return result


def _tensor(make: Callable) -> Callable:
    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, torch.Tensor) or device is None or torch.device(device).type != "meta":
            return make(data, *args, device=device, **kwargs)
        return make(data, *args, **kwargs).to(META)

    return tensor


def _new_tensor(self: torch.Tensor, data: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
    return torch.tensor(data, dtype=dtype or self.dtype).to(self.device)


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    pinned = tensor.clone()
    pinned.in_pinned_memory = True
    return pinned


_move = torch.nn.Module.to


def _to(module: torch.nn.Module, *target: Any, **options: Any) -> torch.nn.Module:
    """From the CPU to a GPU parameters stay the same objects; here they become others, which need their attributes."""
    before = [vars(parameter) for parameter in module.parameters()]
    for parameter, attributes in zip(_move(module, *target, **options).parameters(), before, strict=True):
        vars(parameter).update({name: value for name, value in attributes.items() if name != "held"})
    return module


@contextmanager
def active() -> Iterator[Waits]:
    """Have the meta device stand for CUDA in this process; enter before engines are built."""
    WAITS.counts.clear()
    HOST_GROUPS.clear()
    new_group = dist.new_group

    def named_group(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        group = new_group(*args, backend=backend, **kwargs)
        if backend == "gloo" and group is not None:
            HOST_GROUPS.add(group.group_name)
        return group

    patches = [
        (cpu, "_MODE", _Function()),
        (cpu, "device", lambda: META),
        (torch.nn.Module, "to", _to),
        (torch, "tensor", _tensor(torch.tensor)),
        (torch, "as_tensor", _tensor(torch.as_tensor)),
        (torch.Tensor, "new_tensor", _new_tensor),
        (torch.Tensor, "pin_memory", _pin),
        (torch.Tensor, "is_pinned", lambda tensor: getattr(tensor, "in_pinned_memory", False)),
        (dist, "new_group", named_group),
        (batches, "has_gpu", lambda: True),
        (sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"]),
    ]
    with ExitStack() as stack:
        for where, attribute, value in patches:
            if hasattr(where, attribute):
                stack.enter_context(mock.patch.object(where, attribute, value))
        cpu.enable()
        torch.cuda.current_device = lambda: META
        stack.enter_context(_Dispatch())
        yield WAITS
