"""Files that are small and ask for much, that hold what nobody expects, or that are no files: named, and soon."""

import argparse
import json
import pickle
import shutil
import struct
import time
import zipfile

import pytest
import torch

from megagpt.checkpoint.convert import deepspeed, megatron, megatron_dist
from megagpt.checkpoint.convert.common import parameters
from megagpt.checkpoint.convert.convert import convert
from megagpt.checkpoint.convert.pickles import load, load_plain
from megagpt.checkpoint.convert.safetensors_files import read_header
from megagpt.checkpoint.files import parse_json, shown
from megagpt.checkpoint.format import dump_manifest
from megagpt.checkpoint.geometry import coverage_flaw
from megagpt.checkpoint.inspect import inspect
from megagpt.checkpoint.saved import buildable_config
from megagpt.errors import CheckpointError
from megagpt.parallel.shards import ShardMetadata
from tests.checkpoint.convert.formats import FORMATS
from tests.checkpoint.convert.test_megatron import GPT3
from tests.checkpoint.convert.test_pickles import op
from tests.memory import peak_growth


def cheaply(refuse, seconds: float = 10, megabytes: int = 700) -> None:
    """Runs what is to be refused, within a time of the processor and a growth of memory."""
    began = time.process_time()
    grown = peak_growth(refuse)
    assert time.process_time() - began < seconds
    assert grown < megabytes << 20


# ---- pickles ----------------------------------------------------------------------------------------------------

TEXT = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
BOMBS = {
    "instructions": (b"\x80\x02" + b"N0" * 2_000_001 + b"N.", "more than 4,000,000 instructions"),
    "copies of a text": (
        op("_codecs/encode", b"q\x00" + TEXT + b"X\x06\x00\x00\x00latin1\x86q\x01" + b"h\x00h\x01R" * 9),
        None,
    ),
    "copies of a list": (
        op("builtins/set", b"q\x00](" + b"K\x01" * 500_000 + b"eq\x01\x85q\x02" + b"h\x00h\x02R" * 9),
        None,
    ),
    "colliding keys": (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0b" + ((2**61 - 1) * (n + 1)).to_bytes(11, "little") + b"N" for n in range(50_000))
        + b"u.",
        "enormous number",
    ),
    "a tuple that holds its predecessor twice, as a key": (
        b"\x80\x02}" + b")q\x00" + b"0h\x00h\x00\x86q\x00" * 100 + b"K\x01s.",
        "key of a dict",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_ask_for_much_are_refused(name, tmp_path):
    data, message = BOMBS[name]
    (tmp_path / "a.bin").write_bytes(data)

    def refuse() -> None:
        with pytest.raises(CheckpointError, match=message or "instructions"):
            load_plain(tmp_path / "a.bin")

    cheaply(refuse)


def test_nests_are_neither_walked_nor_shown(written):
    """100 dicts, each with its predecessor under two keys: 2**100 paths. A list likewise, among the arguments."""
    folder = written("megatron")
    file = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    good = torch.load(file, weights_only=False)
    nest, many = {"w": torch.ones(1)}, [1]
    for _ in range(100):
        nest, many = {"a": nest, "b": nest}, [many, many]
    for change, message in (
        ({"model": good["model"] | {"nest": nest}}, "holds a dict twice"),
        ({"args": argparse.Namespace(**vars(good["args"]) | {"num_layers": many})}, "num_layers is"),
        ({"args": argparse.Namespace(**vars(good["args"]) | {"normalization": many})}, "normalization is"),
        ({"args": many}, "holds no arguments"),
        ({"model": many}, "holds no model"),
        ({"checkpoint_version": many}, "checkpoint_version is"),
    ):
        torch.save(good | change, file)

        def refuse(message=message) -> None:
            (folder / "iter_0000007/megagpt.json").unlink(missing_ok=True)
            with pytest.raises(CheckpointError, match=message):
                megatron.open_source(folder, None)

        cheaply(refuse)
    assert len(shown(many)) < 300 and len(shown({"x" * 10**6: many})) < 300


def test_a_model_that_contains_itself_is_refused(written):
    folder = written("megatron")
    file = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["self"] = state["model"]
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="holds a dict twice, the second time as 'self'"):
        megatron.open_source(folder, None)


NUMBERS = [None, 0, -1, 1.5, "4", [], {}, [1], 10**9, 10**50, float("inf"), float("nan"), True, b"x", {1}]
ARGUMENTS = ["num_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"]
ARGUMENTS += ["ffn_hidden_size", "kv_channels", "norm_epsilon", "rotary_base", "rotary_percent", "num_query_groups"]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_any_kind_are_refused_or_harmless(name, written):
    """None of them ends in anything but a model that fits, or a named error."""
    folder = written("megatron")
    (folder / "iter_0000007/megagpt.json").unlink()
    file = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    good = torch.load(file, weights_only=False)
    good["args"].group_query_attention = name == "num_query_groups"
    refused = 0
    for value in NUMBERS:
        torch.save(good | {"args": argparse.Namespace(**vars(good["args"]) | {name: value})}, file)
        try:
            source = megatron.open_source(folder, None)
        except CheckpointError as error:
            refused += 1
            assert str(folder) in str(error)
        else:
            assert parameters(source.model) == parameters(GPT3), value
    assert refused > 5


# ---- zip files, headers and JSON --------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_by_its_crc(tmp_path):
    """As it may become in years on a disk. The checksum that a file leaves out is not asked for."""
    value = torch.arange(1000.0)
    torch.save({"a": value, "b": torch.ones(3)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.find(value.numpy().tobytes()) + 3002] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    read = load(tmp_path / "a.pt")
    assert torch.equal(read["b"].read(), torch.ones(3))
    for part in (read["a"].read, lambda: read["a"].read_flat(0, 1)):  # a part is not used either
        with pytest.raises(CheckpointError, match=r"a\.pt is corrupt: its bytes from .* fail their CRC-32"):
            part()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() == "a/data/0"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": value}, tmp_path / "b.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load(tmp_path / "b.pt")["a"].read(), value)


def test_a_flipped_bit_of_a_pickle_is_found_by_its_crc(tmp_path):
    torch.save({"number": 1234567}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes().replace((1234567).to_bytes(4, "little"), (1234566).to_bytes(4, "little"))
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC-32"):
        load(tmp_path / "a.pt")


def test_a_long_list_of_entries_is_refused_unread(tmp_path):
    """Made by hand: 400,000 entries without data, of which only the list is there."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
    entries = b"".join(entry + b"%05d" % (n % 100_000) for n in range(400_000))
    count = 65535
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), 30, 0)
    (tmp_path / "a.pt").write_bytes(b"PK\3\4" + bytes(26) + entries + end)

    def refuse() -> None:
        with pytest.raises(CheckpointError, match=r"a\.pt: a list of entries of 20,400,000 bytes; at most"):
            load(tmp_path / "a.pt")

    cheaply(refuse, seconds=2, megabytes=100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{" + b" " * 99_000_000 + b"}", "not a safetensors file"),
        (b'{"a":[' + b"{}," * 5_000_000 + b"{}]}", "more than 4,194,304 values"),
        (b'{"a":' * 200_000, "not valid JSON"),
        (b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', "do not agree"),
    ],
    ids=["99 MB", "many values", "deep", "a dimension beyond any"],
)
def test_headers_that_ask_for_much_are_refused(text, message, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)

    def refuse() -> None:
        with pytest.raises(CheckpointError, match=message):
            read_header(tmp_path / "a.safetensors")

    cheaply(refuse, seconds=5, megabytes=200)


def test_json_that_asks_for_much_is_refused(tmp_path):
    for data, message in ((b"[" + b"{}," * 5_000_000 + b"{}]", "values"), (b"[" * 100_000, "JSON")):
        with pytest.raises(CheckpointError, match=message):
            parse_json(data, tmp_path)
    with pytest.raises(CheckpointError, match="a key is there twice"):
        parse_json(b'{"a": {"b": 1, "b": 2}}', tmp_path)


def test_a_tensor_in_very_many_pieces_is_compared_in_no_time():
    """As many rows and columns as pieces: no two have to be compared."""
    size = 100
    pieces = [ShardMetadata("w", (size, size), (a, b), (1, 1), None) for a in range(size) for b in range(size)]
    swapped = [*pieces[:-1], pieces[0]]
    began = time.process_time()
    assert coverage_flaw(pieces) is None and "overlap" in coverage_flaw(swapped)
    assert time.process_time() - began < 10


# ---- DeepSpeed and torch.distributed.checkpoint -----------------------------------------------------------------

OPTIM = "global_step7/zero_pp_rank_0_mp_rank_00_optim_states.pt"
NORM, BIAS = "decoder.final_layernorm.weight", "decoder.final_layernorm.bias"


STACKED = "decoder.layers.self_attention.linear_proj.bias"


def slices(state):
    return state["optimizer_state_dict"]["param_slice_mappings"][1]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: vars(slices(s)[NORM]).update(start=vars(slices(s)[BIAS])["start"]),
            f"{NORM} overlap|{BIAS} overlap",
        ),
        (
            lambda s: vars(slices(s)[NORM]).update(start=vars(slices(s)[NORM])["start"] + 0.5),
            "no range of a flat tensor",
        ),
        (lambda s: vars(slices(s)[NORM]).update(numel=True), "no range of a flat tensor"),
        (lambda s: slices(s).update({NORM: []}), "lack values that DeepSpeed saves"),
        (
            lambda s: s["optimizer_state_dict"].update(single_partition_of_fp32_groups=[1, 2]),
            "lack values that DeepSpeed saves",
        ),
        (lambda s: s["optimizer_state_dict"].update(partition_count=[[]]), "data-parallel ranks' files"),
    ],
)
def test_slices_of_deepspeed(edit, message, written):
    folder = written("deepspeed")
    state = torch.load(folder / OPTIM, weights_only=False)
    edit(state)
    torch.save(state, folder / OPTIM)
    with pytest.raises(CheckpointError, match=message):
        deepspeed.open_source(folder, None)


def test_ranks_of_deepspeed_without_end(written):
    folder = written("deepspeed")
    shutil.copy(folder / OPTIM, folder / OPTIM.replace("rank_0_mp_rank_00", "rank_999999_mp_rank_999999"))
    with pytest.raises(CheckpointError, match="numbered up to 999999"):
        deepspeed.open_source(folder, None)


def test_chunks_in_the_same_bytes_and_layers_without_end(written):
    folder = written("megatron-dist")
    where = folder / "iter_0000007/.metadata"
    good = where.read_bytes()
    metadata = pickle.loads(good)
    first, second, *_ = [index for index in metadata.storage_data if index.fqn == STACKED]
    metadata.storage_data[first] = metadata.storage_data[second]
    where.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="overlap in the file, according to its metadata"):
        megatron_dist.open_source(folder, None)
    metadata = pickle.loads(good)
    described = metadata.state_dict_metadata[STACKED]
    described.size = torch.Size([10**9, 32])
    where.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="elements are missing"):
        megatron_dist.open_source(folder, None)


@pytest.mark.parametrize("name", FORMATS)
def test_models_of_absurd_sizes_are_refused(name, written):
    """A number costs a file nothing: 10**9 layers are not listed."""
    folder = written(name)
    for file in folder.rglob("megagpt.json"):
        values = json.loads(file.read_text())
        values["model"]["num_layers"] = 10**9
        file.write_text(json.dumps(values))
    for file in folder.rglob("manifest.json"):
        values = json.loads(file.read_text())
        del values["digest"]
        values["config"]["model"]["num_layers"] = 10**9
        file.write_text(dump_manifest(values))

    def refuse() -> None:
        with pytest.raises(CheckpointError, match=r"num_layers \(1,000,000,000\) is above 4,096"):
            FORMATS[name].open_source(folder, None)

    cheaply(refuse, seconds=2, megabytes=100)


# ---- our own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config"),
        ([], "config"),
        ({"model": []}, "model"),
        ({"model": {"num_attention_heads": 0}}, "num_attention_heads"),
        ({"model": {"num_attention_heads": 5, "hidden_size": 32}}, "num_attention_heads"),
        ({"model": {"hidden_size": 10**12, "num_attention_heads": 1}}, "parameters"),
    ],
    ids=str,
)
def test_a_checkpoint_of_ours_with_another_config(config, message, written):
    folder = written("megagpt")
    (file,) = folder.rglob("manifest.json")
    values = json.loads(file.read_text())
    del values["digest"], values["config"]
    file.write_text(dump_manifest(values if config is None else values | {"config": config}))
    with pytest.raises(CheckpointError, match=rf"manifest\.json.*{message}"):
        convert(folder, folder.parent / "target", "megatron", prove=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 1 << 20}, "embedding.word_embeddings.weight has shape"),
        ({"num_layers": 4000}, r"decoder\.layers\.4\..* is missing"),
        ({"num_layers": 10**9}, "num_layers .* is above 4,096"),
    ],
    ids=str,
)
def test_no_model_is_built_that_a_checkpoint_does_not_hold(change, message, written):
    """As generation, evaluation and training from another run ask before they build one."""
    (file,) = written("megagpt").rglob("manifest.json")
    assert buildable_config(file.parent).model.num_layers == GPT3.num_layers
    values = json.loads(file.read_text())
    del values["digest"]
    values["config"]["model"] |= change
    file.write_text(dump_manifest(values))

    def refuse() -> None:
        with pytest.raises(CheckpointError, match=message):
            buildable_config(file.parent)

    cheaply(refuse, seconds=2, megabytes=100)


def test_a_manifest_that_is_nested_deeply(written):
    folder = written("megagpt")
    (file,) = folder.rglob("manifest.json")
    for depth in (300, 700, 900, 960, 990):
        file.write_text('{"files": {}, "a": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            inspect(file.parent, verified=False, norms=False)
