"""Reads files of `torch.save` and `pickle.dump` without executing code from them.

A pickle is a program. This reader supports few of its instructions, and none of them calls Python code that the file
names: a class becomes one of the stand-ins below, or the file is refused. Tensors stay in the file until `read`.

The numbers of instructions and bytes are limited, and data is compared with the CRC-32 of its entry. `torch.load` with
weights_only=True and mmap=True does neither. In version 2.13 a file of 741 bytes makes it allocate a gigabyte, nested
tuples as a key keep it busy for ever, a flipped bit in a tensor is not noticed, and a mapped file that is truncated
ends the process with SIGBUS.
"""

import io
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from megagpt.checkpoint.convert.stored import Storage, StoredTensor
from megagpt.checkpoint.convert.zips import LOCAL_MARK, Entry, Window, entries
from megagpt.checkpoint.files import open_regular, shown
from megagpt.checkpoint.format import CODES, MAX_DIMENSIONS
from megagpt.errors import CheckpointError

PICKLE_LIMIT = 64 << 20
"""Largest pickle that is read, in bytes, without the data of tensors."""
INSTRUCTIONS = 4_000_000
"""Most instructions of a pickle that are executed. Each makes at most one object of about a hundred bytes."""
LARGEST_KEY = 1 << 60
"""Limit of integers as dict keys. Smaller integers have different hashes; larger ones can be made to collide."""
ADVICE = "Only tensors and plain values are read; where you trust the file, load it with PyTorch and save it without it"

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES}
OPAQUE_PACKAGES = ("megatron.", "deepspeed.", "transformer_engine.", "torch.distributed.checkpoint.")
"""Packages whose classes become `Record`s: they are neither imported nor called."""
OPAQUE = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "signal.Signals",
    "_io.BytesIO",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
}
OPCODES = (
    pickle.PROTO,
    pickle.FRAME,
    pickle.STOP,
    pickle.MARK,
    pickle.POP,
    pickle.POP_MARK,
    pickle.NONE,
    pickle.NEWTRUE,
    pickle.NEWFALSE,
    pickle.BININT,
    pickle.BININT1,
    pickle.BININT2,
    pickle.LONG1,
    pickle.BINFLOAT,
    pickle.BINUNICODE,
    pickle.SHORT_BINUNICODE,
    pickle.SHORT_BINBYTES,
    pickle.BINBYTES,
    pickle.EMPTY_TUPLE,
    pickle.TUPLE,
    pickle.TUPLE1,
    pickle.TUPLE2,
    pickle.TUPLE3,
    pickle.EMPTY_LIST,
    pickle.APPEND,
    pickle.APPENDS,
    pickle.EMPTY_DICT,
    pickle.EMPTY_SET,
    pickle.BINPUT,
    pickle.LONG_BINPUT,
    pickle.MEMOIZE,
    pickle.BINGET,
    pickle.LONG_BINGET,
    pickle.GLOBAL,
    pickle.STACK_GLOBAL,
    pickle.BINPERSID,
)


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object in the file: the name of its class, its constructor's arguments, and its state."""

    kind: str
    args: tuple = ()
    state: Any = None

    def __repr__(self) -> str:
        return f"<{self.kind}>"  # without its content, which may contain the object itself


def load(path: Path, start: int = 0, length: int | None = None) -> Any:
    """Reads the output of `torch.save` at byte `start` of a file: plain values, `Record`s and `StoredTensor`s.

    Raises: CheckpointError naming the file, if it has other content than tensors and plain values or is inconsistent.
    """
    with open_regular(path) as file:
        window = Window(file, path, start, length)
        if window.read(4) != LOCAL_MARK:
            raise CheckpointError(f"{path} is not a zip file: save it again with torch.save of PyTorch 1.6 or newer")
        places = entries(window, path)
        names = [name for name in places if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise CheckpointError(f"{path} holds {len(names)} data.pkl, so torch.save did not write it")
        (name,) = names
        prefix = name.removesuffix("data.pkl")
        if (order := places.get(f"{prefix}byteorder")) and _bytes(window, order, path) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine")
        data = _bytes(window, places[name], path)
        storages = {key.removeprefix(f"{prefix}data/"): place for key, place in places.items()}
    return _Reader(data, path, storages, start).load()


def load_plain(path: Path) -> Any:
    """Reads the output of `pickle.dump`, without tensors. Raises CheckpointError as `load` does."""
    with open_regular(path) as file:
        data = _bytes(Window(file, path, 0, None), Entry(0, os.fstat(file.fileno()).st_size, 0), path)
    return _Reader(data, path, {}, 0).load()


def _bytes(window: Window, entry: Entry, path: Path) -> bytes:
    if entry.size > PICKLE_LIMIT:
        raise CheckpointError(f"{path}: a pickle of {entry.size:,} bytes is refused; at most {PICKLE_LIMIT:,} are read")
    window.file.seek(window.first + entry.start)
    data = window.file.read(entry.size)
    if entry.crc and crc32(data) != entry.crc:
        raise CheckpointError(f"{path} is corrupt: its bytes from {window.first + entry.start:,} on fail their CRC-32")
    return data


@dataclass(frozen=True)
class _Global:
    """A stand-in for a class or function in the file; `build` replaces calls of it."""

    name: str
    build: Callable[..., Any]


class _Refused(ValueError):
    """A pickle has content that is not supported; the message names it."""


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """Replaces torch's functions that rebuild a tensor; the tensor must be inside its storage."""
    if not isinstance(storage, Storage):
        raise _Refused("a tensor has no storage")
    return _typed_tensor(storage, offset, shape, stride, storage.dtype)


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, _: Any, __: Any, dtype: Any, *___) -> Any:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise _Refused("a tensor has no storage or no dtype")
    return _typed_tensor(storage, offset, shape, stride, dtype)


def _typed_tensor(storage: Storage, offset: Any, shape: Any, stride: Any, dtype: torch.dtype) -> StoredTensor:
    shape, stride, (offset,) = sizes(shape), sizes(stride), sizes((offset,))
    held = storage.size // dtype.itemsize
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if prod(shape) > held or (0 not in shape and last >= held):
        raise _Refused(f"a tensor of shape {shape} exceeds its storage of {held:,} elements")
    return StoredTensor(storage, storage.start + offset * dtype.itemsize, dtype, shape, stride)


def sizes(value: Any) -> tuple[int, ...]:
    """A shape from a file. Raises ValueError for any other value."""
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise _Refused("a shape is not a short list")
    if any(type(size) is not int or not 0 <= size < 1 << 62 for size in value):
        raise _Refused("a shape holds a value that is not a size")
    return tuple(value)


def _parameter(data: Any, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise _Refused("a parameter has no tensor")
    return data


def _tensor_of_type(rebuild: Any, _: Any, args: Any, *__: Any) -> StoredTensor:
    """Replaces the function that rebuilds tensors with attributes; the attributes are ignored."""
    if not isinstance(rebuild, _Global) or not rebuild.name.startswith("torch._utils._rebuild_"):
        raise _Refused("a tensor is rebuilt by something that is not a function for that")
    return rebuild.build(*args)


def _mapping(items: Any = (), *_: Any) -> dict:
    """Replaces dict classes; a default dict's factory is ignored."""
    found: dict = {}
    if isinstance(items, list):
        for item in items:
            _set_items(found, item)
    return found


def _set(items: Any = ()) -> set:
    if not isinstance(items, list | tuple):
        raise _Refused("a set is not made of a list")
    return {_key(item) for item in items}


def _encode(text: Any, encoding: Any) -> bytes:
    """Replaces the function by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("it encodes a value that is not text")
    return text.encode("latin1")


def _key(value: Any) -> Any:
    """A dict's key, after a check that its type hashes fast and without intended collisions."""
    if not isinstance(value, str | bytes | int | float | Record | torch.dtype | None):
        raise _Refused(f"a {type(value).__name__} is the key of a dict")
    if isinstance(value, int) and abs(value) >= LARGEST_KEY:
        raise _Refused("an enormous number is the key of a dict")
    return value


def _set_items(target: Any, items: Any) -> None:
    if not isinstance(target, dict) or not isinstance(items, list | tuple) or len(items) % 2:
        raise _Refused("it sets items of a value that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value


STAND_INS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": _set,
    "_codecs.encode": _encode,
    "torch.Size": sizes,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
}


class _Limited(dict):
    """Table of instructions that limits how many are executed."""

    left = INSTRUCTIONS

    def spend(self, count: int) -> None:
        """Subtracts `count` from the remaining budget. Raises _Refused when it is exhausted."""
        self.left -= count
        if self.left < 0:
            raise _Refused(f"it has more than {INSTRUCTIONS:,} instructions")

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.spend(1)
        return super().__getitem__(code)


class _Reader(pickle._Unpickler):
    """Executes the few instructions that plain values need."""

    # CPython's C unpickler grows its memo to any index that a file names; the one in Python does not.
    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES}  # noqa: RUF012

    def __init__(self, data: bytes, path: Path, storages: dict[str, Entry], start: int):
        super().__init__(io.BytesIO(data))
        self.path, self.storages, self.start = path, storages, start
        self.dispatch = _Limited(self.dispatch)

    def load(self) -> Any:
        """The value in the pickle. Raises CheckpointError."""
        try:
            return super().load()
        except _Refused as error:
            raise CheckpointError(f"{self.path} is refused: {error}. {ADVICE}") from None
        except KeyError as error:
            raise CheckpointError(f"{self.path} is refused: it has an unknown instruction or index {error}") from None
        except (ArithmeticError, AttributeError, EOFError, IndexError, MemoryError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is cut or corrupt: {type(error).__name__} {error}") from None
        except (pickle.UnpicklingError, TypeError, ValueError, struct.error) as error:
            raise CheckpointError(f"{self.path} is cut or corrupt: {type(error).__name__} {error}") from None

    def find_class(self, module: str, name: str) -> Any:
        """The meaning of a name in the file: a dtype, or a stand-in for a class or function."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if module in ("torch", "torch.storage") and name in DTYPES:
            return DTYPES[name]
        if module == "torch" and name in DTYPE_NAMES:
            return DTYPE_NAMES[name]
        if full in STAND_INS:
            return _Global(full, STAND_INS[full])
        if full in OPAQUE or full.startswith(OPAQUE_PACKAGES):
            return _Global(full, lambda *args: Record(full, args))
        raise _Refused(f"it asks for {full:.200}")

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a tensor. The size of its entry in the file must be exactly the claimed size."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise _Refused("it refers to something that is not a tensor's storage")
        _, dtype, key, _, count = pid
        entry = self.storages.get(key) if isinstance(key, str) else None
        if entry is None or type(count) is not int or count * dtype.itemsize != entry.size:
            raise _Refused(f"the storage {shown(key)} is missing or does not have its claimed size")
        return Storage(self.path, self.start + entry.start, entry.size, entry.crc, dtype)

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(args, tuple):
            raise _Refused("it calls a value that is not a class")
        self.dispatch.spend(len(args))
        self.dispatch.spend(sum(len(arg) for arg in args if isinstance(arg, str | bytes | list | tuple | dict | set)))
        self.append(function.build(*args))

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], dict):  # an ordered dict's state is its _metadata, which is ignored
            raise _Refused("it sets the state of a value that is not an object")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise _Refused("it adds to a value that is not a set")
        self.stack[-1].update(_key(item) for item in items)

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
    }
