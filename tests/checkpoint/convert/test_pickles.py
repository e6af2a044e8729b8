"""Tensors and plain values come out of torch's files as torch reads them; nothing else comes out, and nothing runs."""

import argparse
import io
import os
import pickle
import shutil
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from megagpt.checkpoint.convert.pickles import Record, load, load_plain
from megagpt.checkpoint.convert.stored import StoredTensor
from megagpt.errors import CheckpointError


def same(ours, theirs):
    """Asserts that what we read is what torch reads."""
    if isinstance(ours, StoredTensor):
        assert ours.dtype == theirs.dtype and ours.shape == tuple(theirs.shape)
        tensor = ours.read()
        assert tensor.is_contiguous() and torch.equal(tensor, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs


def test_reads_what_torch_reads(tmp_path):
    base = torch.arange(60.0).view(5, 12)
    value = {
        "tensors": OrderedDict(f=base, t=base.t(), row=base[2], column=base[:, 3:9:2], expanded=base[:1, :1].clone()),
        "dtypes": [base.to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64)],
        "more": [(base > 3), base.to(torch.uint8), torch.tensor(3.5), torch.empty(0, 3), torch.nn.Parameter(base)],
        "numbers": [1, -1, 10**18, 2.5, True, None, "text ü", b"\x00\xff", {1, 2}, (1, (2,)), torch.float16],
        "empty": [{}, [], (), torch.Size([2, 3]), defaultdict(dict, a={"b": 1})],
    }
    for protocol in (2, 4):
        path = tmp_path / f"{protocol}.pt"
        torch.save(value, path, pickle_protocol=protocol)
        same(load(path), torch.load(path, weights_only=False))


def test_reads_ranges_without_the_rest(tmp_path):
    torch.save({"flat": torch.arange(1000), "other": torch.arange(600).view(20, 30).t()}, tmp_path / "a.pt")
    read = load(tmp_path / "a.pt")
    assert torch.equal(read["flat"].read_flat(990, 10), torch.arange(990, 1000))
    assert torch.equal(read["other"].read_flat(20, 5), torch.arange(600).view(20, 30).t().flatten()[20:25])
    with pytest.raises(CheckpointError, match="elements 990"):
        read["flat"].read_flat(990, 11)


def test_objects_are_records_without_behaviour(tmp_path):
    import megatron.core.enums as enums

    value = {
        "args": argparse.Namespace(num_layers=2, path=Path("/somewhere")),
        "type": enums.ModelType.encoder_or_decoder,
        "rng": np.random.get_state(),
        "scalar": np.float64(0.5),
    }
    torch.save(value, tmp_path / "a.pt")
    read = load(tmp_path / "a.pt")
    assert read["args"].kind == "argparse.Namespace" and read["args"].state["num_layers"] == 2
    assert read["type"].kind == "megatron.core.enums.ModelType" and type(read["scalar"]) is Record
    (tmp_path / "plain").write_bytes(pickle.dumps(argparse.Namespace(a=[1, 2]), protocol=4))
    assert load_plain(tmp_path / "plain").state == {"a": [1, 2]}


class Evil:
    def __init__(self, function, *args, state=None):
        self.reduced = (function, args, state) if state is not None else (function, args)

    def __reduce__(self):
        return self.reduced


def evil_values(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    return {
        "posix.system": Evil(os.system, command),
        "builtins.eval": Evil(eval, f"open({str(marker)!r}, 'w')"),
        "torch.hub.load": Evil(torch.hub.load, "someone/something", "model"),
        "builtins.getattr": Evil(getattr, "text", "upper"),
        "collections.Counter": Counter("aab"),
        "builtins.exec": {"deep": [({"nested": (1, Evil(exec, f"open({str(marker)!r}, 'w')"))},)]},
        "shutil.rmtree": OrderedDict(a=Evil(shutil.rmtree, str(marker.parent), state={"a": 1})),
        "torch.serialization.load": Evil(torch.load, str(marker)),
        "torch.storage._load_from_bytes": Evil(torch.storage._load_from_bytes, b""),
    }


@pytest.mark.parametrize("name", evil_values(Path("x")))
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_by_name_and_never_runs(tmp_path, name, protocol):
    marker = tmp_path / "marker"
    value = evil_values(marker)[name]
    torch.save({"model": torch.ones(2), "args": value}, tmp_path / "a.pt", pickle_protocol=protocol)
    (tmp_path / "plain").write_bytes(pickle.dumps(value, protocol=protocol))
    for read, path in ((load, tmp_path / "a.pt"), (load_plain, tmp_path / "plain")):
        with pytest.raises(CheckpointError, match=f"{path.name}.* it asks for {name}.*Only tensors"):
            read(path)
    assert not marker.exists()


def op(*parts: bytes | str) -> bytes:
    """A pickle of protocol 2, written by hand; a text is a class that is asked for."""
    asked = (b"c" + part.replace("/", "\n").encode() + b"\n" if isinstance(part, str) else part for part in parts)
    return b"\x80\x02" + b"".join(asked) + b"."


NAMESPACE, DICT = "argparse/Namespace", "collections/OrderedDict"
HAND_MADE = {
    "object state on a function": op("torch._utils/_rebuild_tensor_v2", b"}", b"X\x01\x00\x00\x00aK\x01s", b"b"),
    "object state on a list": op(b"]", b"}b"),
    "object state on a class": op(NAMESPACE, b"}b"),
    "call of a dict": op(b"}", b")R"),
    "call of a record": op(NAMESPACE, b")R)R"),
    "call without a tuple": op(NAMESPACE, b"]R"),
    "items of a class": op(NAMESPACE, b"K\x01K\x02s"),
    "append to a class": op(NAMESPACE, b"K\x01a"),
    "a list as key": op(b"}]K\x01s"),
    "an extension": b"\x80\x02\x82\x01.",
    "an instance, protocol 0": b"(iargparse\nNamespace\n.",
    "an empty stack": b"\x80\x02.",
    "a persistent object": op(b"X\x01\x00\x00\x00aQ"),
    "a huge text": b"\x80\x02X\xff\xff\xff\xff.",
    "a huge memo": b"\x80\x02Nr\xff\xff\xff\x7f",
    "nothing": b"",
    "a list that holds itself as a key": b"\x80\x02}q\x00(]q\x01h\x01h\x01u.",
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_malformed_pickles_are_refused(tmp_path, name):
    (tmp_path / "a.bin").write_bytes(HAND_MADE[name])
    with pytest.raises(CheckpointError, match=r"a\.bin"):
        load_plain(tmp_path / "a.bin")


def test_a_nest_of_tuples_is_not_walked(tmp_path):
    nest = b")q\x00" + b"0h\x00h\x00\x86q\x00" * 100  # each holds the one before it twice: 2**100 leaves
    (tmp_path / "a.bin").write_bytes(b"\x80\x02}" + nest + b"K\x01s.")
    with pytest.raises(CheckpointError, match="key of a dict"):
        load_plain(tmp_path / "a.bin")


def rewritten(path: Path, change, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a zip file whose entries went through `change(name, data)`."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compression) as out:
        for name in source.namelist():
            if (data := change(name, source.read(name))) is not None:
                out.writestr(name, data)
    return target


@pytest.fixture
def good(tmp_path) -> Path:
    torch.save({"a": torch.arange(64.0)}, tmp_path / "good.pt")
    return tmp_path / "good.pt"


def test_damaged_files_are_refused(good):
    for size in (0, 3, 100, good.stat().st_size // 2, good.stat().st_size - 1):
        cut = good.with_name("cut.pt")
        cut.write_bytes(good.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            load(cut)
    changes = {
        "compressed": (lambda name, data: data, zipfile.ZIP_DEFLATED),
        "data.pkl": (lambda name, data: None if name.endswith("data.pkl") else data, zipfile.ZIP_STORED),
        "big-endian": (lambda name, data: b"big" if name.endswith("byteorder") else data, zipfile.ZIP_STORED),
        "storage '0'": (lambda name, data: data[:-4] if name.endswith("data/0") else data, zipfile.ZIP_STORED),
        "is refused|corrupt": (lambda name, data: data[:-9] if "data.pkl" in name else data, zipfile.ZIP_STORED),
    }
    for message, (change, compression) in changes.items():
        with pytest.raises(CheckpointError, match=message):
            load(rewritten(good, change, compression))


def test_tensors_outside_their_storage_are_refused(good):
    def shape(size: int):
        return lambda name, data: data.replace(b"K@\x85", b"M" + size.to_bytes(2, "little") + b"\x85")

    assert load(rewritten(good, shape(64)))["a"].shape == (64,)
    with pytest.raises(CheckpointError, match="exceeds its storage"):
        load(rewritten(good, shape(65)))


def test_overlapping_entries_and_enormous_headers_are_refused(good, monkeypatch):
    data = io.BytesIO(good.read_bytes())
    with zipfile.ZipFile(data, "a") as archive:
        twin = zipfile.ZipInfo("good/data/1")
        twin.header_offset = archive.getinfo("good/data/0").header_offset
        twin.file_size, twin.compress_size, twin.CRC = 256, 256, 0
        archive.filelist.append(twin)
        archive._didModify = True
    good.write_bytes(data.getvalue())
    with pytest.raises(CheckpointError, match="overlap"):
        load(good)
    monkeypatch.setattr("megagpt.checkpoint.convert.pickles.PICKLE_LIMIT", 10)
    torch.save({"a": 1}, good)
    with pytest.raises(CheckpointError, match="at most 10"):
        load(good)


def test_links_are_refused(good):
    link = good.with_name("link.pt")
    link.symlink_to(good)
    with pytest.raises(CheckpointError, match="symbolic link"):
        load(link)
