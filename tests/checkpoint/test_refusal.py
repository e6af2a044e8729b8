"""Nothing in a checkpoint folder is trusted: what is not as written is refused by name before a tensor is used."""

import json
import logging
import os
import pickle
import shutil
import struct
import tracemalloc
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from timing import cpu_seconds

from megagpt.checkpoint import Checkpointer, Shard, World, find, find_newest, load, read_manifest
from megagpt.checkpoint.format import StoredShard, dump_index, dump_manifest, header
from megagpt.config.schema import CheckpointConfig
from megagpt.errors import CheckpointError
from tests.checkpoint.ranks import run_ranks, share, tensors

FILES = ("manifest.json", "index.json", "state.json", "rank_00000.safetensors", "rank_00001.safetensors")
OLD, NEW = "step_00000001", "step_00000002"


def save_two(directory, seed=0):
    """Saves steps 1 and 2 on two ranks."""

    def save(world):
        with Checkpointer(directory, CheckpointConfig(keep_last=2), world) as checkpointer:
            for step in (1, 2):
                own = {"rng": torch.full((5,), world.rank, dtype=torch.uint8)}
                manifest = {"run_id": f"run-{seed}"}
                checkpointer.save(step, share(tensors(seed + step), world, "flat"), own, {"step": step}, manifest)

    assert run_ranks(2, save) == [None, None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    save_two(path)
    return path


@pytest.fixture
def run(tmp_path, saved):
    """A copy of a folder with two checkpoints."""
    return shutil.copytree(saved, tmp_path / "run")


def assert_refused(run, file, caplog, ranks=2):
    """Asserts that all ranks refuse step 2 naming the file, loudly, and that step 1 is used in its place."""
    wanted = [Shard.whole(name, torch.full_like(tensor, 7)) for name, tensor in tensors(0).items()]
    with pytest.raises(CheckpointError, match=file):
        load(run / NEW, wanted)
    assert all((shard.data == 7).all() for shard in wanted)
    caplog.clear()
    assert run_ranks(ranks, lambda world: find_newest(run, world)) == [run / OLD] * ranks
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1 and NEW in errors[0] and file in errors[0]
    (run / OLD / "state.json").write_text("{}")
    for outcome in run_ranks(ranks, lambda world: find_newest(run, world)):
        assert isinstance(outcome, CheckpointError) and "is valid" in str(outcome) and file in str(outcome)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte(run, file, caplog):
    path = run / NEW / file
    data = bytearray(path.read_bytes())
    for position in sorted({0, 9, len(data) // 3, len(data) // 2, len(data) - 1}):
        for bit in (1, 128):
            data[position] ^= bit
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match=file):
                load(run / NEW, [])
            data[position] ^= bit
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert_refused(run, file, caplog)


@pytest.mark.parametrize("share_left", [0, 1, 0.5, -1])
@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file(run, file, share_left, caplog):
    path = run / NEW / file
    size = path.stat().st_size
    os.truncate(path, {0: 0, 1: 1, 0.5: size // 2, -1: size - 1}[share_left])
    assert_refused(run, file, caplog)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file(run, file, caplog):
    (run / NEW / file).unlink()
    assert_refused(run, file, caplog)


@pytest.mark.parametrize("file", [file for file in FILES if file != "index.json"])  # which is the same in every step
def test_a_file_of_another_step(run, file, caplog):
    shutil.copy(run / OLD / file, run / NEW / file)
    assert_refused(run, file, caplog)


def test_a_file_of_another_run(run, tmp_path, caplog):
    save_two(tmp_path / "other", seed=10)
    shutil.copy(tmp_path / "other" / NEW / FILES[3], run / NEW / FILES[3])
    assert_refused(run, FILES[3], caplog)


def test_swapped_rank_files(run, caplog):
    first, second = (run / NEW / file for file in FILES[3:])
    first.rename(run / "x")
    second.rename(first)
    (run / "x").rename(second)
    assert_refused(run, FILES[3], caplog)


def test_a_folder_under_another_step_s_name(run):
    (run / NEW).rename(run / "step_00000009")
    with pytest.raises(CheckpointError, match=r"step 2, but its folder is step_00000009"):
        load(run / "step_00000009", [])
    assert find_newest(run) == run / OLD


@pytest.mark.parametrize(
    "content",
    ["", "garbage", "step_00000003", "../run", "/etc/passwd", "step_00000002.tmp-1", "\x00" * 9, "9" * 100],
)
def test_a_wrong_latest_is_told_and_the_newest_is_used(run, content, caplog):
    (run / "latest").write_text(content)
    assert run_ranks(2, lambda world: find_newest(run, world)) == [run / NEW] * 2
    assert "latest" in caplog.text
    shutil.rmtree(run / OLD), shutil.rmtree(run / NEW)
    with pytest.raises(CheckpointError, match="latest"):
        find_newest(run)


def test_a_checkpoint_on_another_disk_is_read_by_its_link(run, tmp_path, caplog):
    (run / NEW).rename(tmp_path / "real")
    (run / NEW).symlink_to(tmp_path / "real")
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        assert checkpointer.find_newest() == run / NEW
    assert (run / NEW).is_symlink() and not caplog.text
    (tmp_path / "real").rename(tmp_path / "gone")
    assert find_newest(run) == run / OLD
    assert f"{run / NEW} is a link to {tmp_path}/real, where no folder is" in caplog.text


def test_links_inside_are_not_followed(run, tmp_path, caplog):
    (run / "latest").unlink()
    (run / "latest").symlink_to(run / OLD / "state.json")
    assert find_newest(run) == run / NEW and "symbolic link" in caplog.text
    shutil.copytree(run / NEW, run / "real")
    shutil.rmtree(run / NEW)
    shutil.copytree(run / "real", run / NEW)
    for file in FILES:
        (run / NEW / file).unlink()
        (run / NEW / file).symlink_to(run / "real" / file)
        with pytest.raises(CheckpointError, match=rf"{file}: it is a symbolic link"):
            load(run / NEW, [])
        (run / NEW / file).unlink()
        os.mkfifo(run / NEW / file)
        with pytest.raises(CheckpointError, match=rf"{file}: it is not a regular file"):
            load(run / NEW, [])
        (run / NEW / file).unlink()
        shutil.copy(run / "real" / file, run / NEW / file)
    assert find_newest(run) == run / NEW


def test_locate(run):
    assert find(run) == run / NEW and find(run / OLD) == run / OLD
    (run.parent / "project").mkdir()
    run.rename(run.parent / "project" / "checkpoints")
    assert find(run.parent / "project") == run.parent / "project" / "checkpoints" / NEW
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        find(run.parent / "project" / "absent")


# ---- hostile: written by somebody who also forged the hashes ----------------------------------------------------


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def forge(folder, file, data):
    """Puts data in place of a file and makes a manifest that agrees."""
    (folder / file).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    manifest["files"][file] = {"size": len(data), "sha256": sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(dump_manifest(manifest))


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize("file", [*FILES, "latest"])
def test_a_pickle_runs_nothing(run, tmp_path, file, forged):
    marker = tmp_path / "marker"
    data = pickle.dumps(Evil(marker))
    path = run / file if file == "latest" else run / NEW / file
    path.write_bytes(data)
    if forged and file not in ("manifest.json", "latest"):
        forge(run / NEW, file, data)
    wanted = [Shard.whole(name, tensor) for name, tensor in tensors(0).items()]
    if file == "latest":
        assert find_newest(run) == run / NEW
    else:
        with pytest.raises(CheckpointError, match=file):
            load(run / NEW, wanted)
    assert not marker.exists()
    pickle.loads(data)  # the pickle itself works
    assert marker.exists()


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2]}
HOSTILE = {
    "huge header length": safetensors(b"{}", length=2**63),
    "header of 100 MB": safetensors(b"{" + b" " * 100_000_000 + b"}"),
    "header longer than the file": safetensors(b"{}", length=5000),
    "deep nesting": safetensors(b'{"a":' * 200_000),
    "overlap": safetensors({"a": F32 | {"data_offsets": [0, 8]}, "b": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
    "duplicate keys": safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "NaN shape": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "offsets beyond the end": safetensors({"a": F32 | {"data_offsets": [0, 2**60]}}, bytes(8)),
    "negative offsets": safetensors({"a": F32 | {"data_offsets": [-8, 0]}}, bytes(8)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused_fast(run, kind):
    forge(run / NEW, FILES[3], HOSTILE[kind])

    def refuse() -> None:
        with pytest.raises(CheckpointError, match=FILES[3]):
            load(run / NEW, [])

    good = cpu_seconds(load, run / OLD, [], False) + cpu_seconds(sha256, HOSTILE[kind])
    assert cpu_seconds(refuse) < 20 * good
    tracemalloc.start()
    refuse()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000_000


def entries(run):
    return json.loads((run / NEW / "index.json").read_text())


def change(key, value, number=0):
    def edit(index):
        index[FILES[3]][number][key] = value

    return edit


EDITS = {
    "name with a path's dots first": change("name", "../../x"),
    "name that is no string": change("name", 5),
    "name with a line break": change("name", "model/x\n"),
    "unknown dtype": change("dtype", "OBJECT"),
    "dtype of another kind": change("dtype", ["F32"]),
    "negative offset": change("offset", [-1, 0]),
    "box outside": change("offset", [10**9, 0]),
    "NaN in a shape": change("shape", [float("nan"), 1]),
    "true in a shape": change("shape", [True, 8]),
    "fractional range": change("flat", [0.5, 3]),
    "range outside": change("flat", [0, 10**9]),
    "range backwards": change("flat", [9, 3]),
    "range of three": change("flat", [0, 1, 2]),
    "too many dimensions": change("global_shape", [1] * 50),
    "absurd size": change("global_shape", [2**40, 2**40]),
    "another global shape": change("global_shape", [12, 9]),
    "extra field": change("key", "x"),
    "no field": lambda index: index[FILES[3]][0].clear(),
    "an entry that is a list": lambda index: index.update({FILES[3]: [[]]}),
    "a file more": lambda index: index.update({"../../etc/passwd": []}),
    "a file fewer": lambda index: index.pop(FILES[3]),
    "a shard fewer": lambda index: index[FILES[3]].pop(),
    "a shard twice": lambda index: index[FILES[3]].append(index[FILES[3]][0]),
    "shared made private": change("private", True),
    "private neither": change("private", "no"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_forged_index_is_refused(run, kind):
    index = entries(run)
    EDITS[kind](index)
    forge(run / NEW, "index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load(run / NEW, [])


@pytest.mark.parametrize(("wrong", "message"), [("overlap", "overlap"), ("hole", "120 of its 240 elements")])
def test_pieces_that_overlap_or_leave_holes_are_refused_by_name(run, wrong, message):
    """The index, the header and the sizes all agree: only the coverage is wrong."""
    index = {file: [StoredShard.parse(entry) for entry in listed] for file, listed in entries(run).items()}
    number = next(i for i, entry in enumerate(index[FILES[3]]) if entry.name == "model/cube")
    entry = index[FILES[3]].pop(number)
    if wrong == "overlap":
        index[FILES[3]].append(replace(entry, flat=(1, entry.flat[1] + 1)))
    forge(run / NEW, FILES[3], header(index[FILES[3]]) + bytes(sum(entry.nbytes for entry in index[FILES[3]])))
    forge(run / NEW, "index.json", dump_index(index).encode())
    with pytest.raises(CheckpointError, match=rf"index\.json: model/cube: .*{message}"):
        load(run / NEW, [])


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/passwd", "rank_00000.safetensors/../x", "rank_00000.pt", "RANK_00000.safetensors"]
)
def test_a_manifest_that_names_other_files_is_refused(run, name):
    manifest = read_manifest(run / NEW)
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (run / NEW / "manifest.json").write_text(dump_manifest(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json lists"):
        load(run / NEW, [])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"step": 3}, "is of step 3"),
        ({"files": []}, "not a checkpoint's manifest"),
        ({"files": {}}, "does not list both"),
        ({"files": {"state.json": {"size": "1", "sha256": "0" * 64}}}, "malformed"),
        ({"files": {"state.json": {"size": 1, "sha256": "zz"}}}, "malformed"),
        ({"files": {"state.json": 1}}, "needs a size"),
    ],
)
def test_a_manifest_with_wrong_values_is_refused(run, edit, message):
    manifest = read_manifest(run / NEW)
    (run / NEW / "manifest.json").write_text(dump_manifest(manifest | edit))
    with pytest.raises(CheckpointError, match=rf"manifest\.json.*{message}"):
        load(run / NEW, [])


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path / "absent", World()) is None
