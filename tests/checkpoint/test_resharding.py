"""What is saved in one layout is loaded in any other, bit for bit."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dist import run_distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from megagpt.checkpoint import Checkpointer, Shard, World, current_world, find_newest, load, read_manifest
from megagpt.checkpoint.geometry import coverage_flaw, rectangles
from megagpt.config.schema import CheckpointConfig
from megagpt.errors import CheckpointError
from tests.checkpoint.ranks import MANIFEST, assert_holds, blank, run_ranks, share, tensors

LAYOUTS = ("whole", "rows", "columns", "flat")
STATE = {"step": 5, "samples": 80, "history": [1.5, None, "x"]}


def save(world, directory, layout, seed=0, step=5, **config):
    with Checkpointer(directory, CheckpointConfig(**config), world) as checkpointer:
        own = {"rng/cpu": torch.arange(world.rank, world.rank + 9, dtype=torch.uint8)}
        checkpointer.save(step, share(tensors(seed), world, layout), own, STATE, MANIFEST)


def restore(world, directory, layout, seed=0):
    with Checkpointer(directory, CheckpointConfig(), world) as checkpointer:
        path = checkpointer.find_newest()
        shards = blank(share(tensors(seed), world, layout))
        state = checkpointer.load(path, shards)
        assert_holds(shards, tensors(seed))
        return state, checkpointer.rank_tensors(path, world.rank)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("saved", LAYOUTS)
def test_every_layout_loads_every_other(tmp_path, saved, asynchronous):
    size = 1 if saved == "whole" else 3
    assert run_ranks(size, lambda world: save(world, tmp_path, saved, asynchronous=asynchronous)) == [None] * size
    for loaded in LAYOUTS:
        for ranks in (1, 2, 4) if loaded != "whole" else (1,):
            for rank, (state, own) in enumerate(
                run_ranks(ranks, lambda world, to=loaded: restore(world, tmp_path, to))
            ):
                assert state == STATE
                expected = {"rng/cpu": torch.arange(rank, rank + 9, dtype=torch.uint8)} if rank < size else {}
                assert own.keys() == expected.keys()
                assert all(torch.equal(own[name], expected[name]) for name in own)


def test_files_are_plain_safetensors(tmp_path):
    save(World(), tmp_path, "whole")
    path = find_newest(tmp_path)
    stored = load_file(path / "rank_00000.safetensors")
    assert {name for name in stored if name != "rng/cpu"} == tensors(0).keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors(0).items())
    manifest = read_manifest(path)
    assert manifest.items() >= MANIFEST.items()
    assert (manifest["step"], manifest["world_size"]) == (5, 1)


@st.composite
def partitions(draw, shape):
    """Pieces that cover a tensor exactly once: boxes cut at random, each cut in random flat ranges."""
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 4)) if shape else 0):
        offset, size = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, size[axis]))
        low, high = list(size), list(size)
        low[axis], high[axis] = at, size[axis] - at
        second = tuple(o + at if i == axis else o for i, o in enumerate(offset))
        boxes += [(offset, tuple(low)), (second, tuple(high))]
    numbers, shards = torch.arange(numel(shape), dtype=torch.float32).reshape(shape), []
    for offset, size in boxes:
        box = numbers[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))]
        if draw(st.booleans()):
            shards.append(Shard("model/x", shape, offset, size, None, box.clone()))
            continue
        ends = sorted([0, box.numel(), *draw(st.lists(st.integers(0, box.numel()), max_size=4))])
        for span in pairwise(ends):
            shards.append(Shard("model/x", shape, offset, size, span, box.reshape(-1)[slice(*span)].clone()))
    return draw(st.permutations(shards))


def numel(shape):
    return torch.Size(shape).numel()


SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.data(), SHAPES)
def test_any_partition_loads_into_any_other(tmp_path_factory, data, shape):
    saved, wanted = data.draw(partitions(shape)), data.draw(partitions(shape))
    # Two files: shards meet across files and within one.
    halves = (saved[::2], saved[1::2])
    path = tmp_path_factory.mktemp("run")

    def write(world):
        with Checkpointer(path, CheckpointConfig(), world) as checkpointer:
            checkpointer.save(1, halves[world.rank], {}, {}, {})

    assert run_ranks(2, write) == [None, None]
    load(path / "step_00000001", blank(wanted))
    assert_holds(wanted, {"model/x": torch.arange(numel(shape), dtype=torch.float32).reshape(shape)})


@settings(max_examples=200, deadline=None)
@given(st.data(), SHAPES)
def test_rectangles_tile_a_piece_in_order(data, shape):
    full = torch.arange(numel(shape)).reshape(shape)
    for shard in data.draw(partitions(shape)):
        found, position = [], 0
        for rectangle in rectangles(shard):
            box = full[tuple(slice(o, o + n) for o, n in zip(rectangle.offset, rectangle.shape, strict=True))]
            assert rectangle.start == position
            position += box.numel()
            found += box.reshape(-1).tolist()
        assert found == shard.data.reshape(-1).long().tolist()
        assert len(rectangles(shard)) <= max(1, 2 * len(shape) - 1)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
def test_coverage_finds_every_hole_and_every_overlap(data, shape):
    shards = data.draw(partitions(shape))
    assert coverage_flaw(shards) is None
    held = [shard for shard in shards if shard.numel]
    victim = data.draw(st.sampled_from(held))
    if len(held) > 1:
        assert "missing" in coverage_flaw([shard for shard in shards if shard is not victim])
    stranger = data.draw(st.sampled_from([shard for shard in data.draw(partitions(shape)) if shard.numel]))
    assert "overlap" in coverage_flaw([*shards, stranger])
    if victim.numel == stranger.numel:  # so that the sizes alone do not tell
        same = set(victim.data.reshape(-1).tolist()) == set(stranger.data.reshape(-1).tolist())
        swapped = coverage_flaw([stranger if shard is victim else shard for shard in shards])
        assert swapped is None if same else "overlap" in swapped


def test_names_that_do_not_fit_are_listed(tmp_path):
    save(World(), tmp_path, "whole")
    path = find_newest(tmp_path)
    own = tensors(0)
    with pytest.raises(CheckpointError, match=r"model/cube is not expected; model/scale is not expected"):
        load(path, [Shard.whole(n, t) for n, t in own.items() if n not in ("model/cube", "model/scale")])
    load(path, [Shard.whole("model/cube", own["model/cube"])], strict=False)
    with pytest.raises(CheckpointError, match=r"model/absent is missing; .*model/cube is not expected"):
        load(path, [Shard.whole("model/absent", torch.zeros(1))])
    wrong = [
        Shard.whole("model/absent", torch.zeros(1)),
        Shard.whole("model/cube", torch.zeros(4, 6, 9)),
        Shard.whole("model/scale", torch.zeros((), dtype=torch.bfloat16)),
    ]
    expected = r"absent is missing.*cube has shape \[4, 6, 10\], not \[4, 6, 9\].*scale is torch.float32, not"
    with pytest.raises(CheckpointError, match=expected):
        load(path, wrong, strict=False)


def test_a_dtype_is_converted_only_when_asked(tmp_path):
    save(World(), tmp_path, "whole")
    target = Shard.whole("model/cube", torch.zeros(4, 6, 10, dtype=torch.bfloat16))
    load(find_newest(tmp_path), [target], strict=False, cast=True)
    assert torch.equal(target.data, tensors(0)["model/cube"].bfloat16())
    whole_number = Shard.whole("model/cube", torch.zeros(4, 6, 10, dtype=torch.int64))
    with pytest.raises(CheckpointError, match=r"not torch\.int64"):
        load(find_newest(tmp_path), [whole_number], strict=False, cast=True)


def test_loading_fills_views_in_place(tmp_path):
    save(World(), tmp_path, "whole")
    parameter = torch.nn.Parameter(torch.zeros(10, 6, 4))
    load(find_newest(tmp_path), [Shard.whole("model/cube", parameter.data.permute(2, 1, 0))], strict=False)
    assert torch.equal(parameter.detach().permute(2, 1, 0), tensors(0)["model/cube"])


def test_a_single_element_of_odd_stride(tmp_path):
    columns = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    shards = [Shard("model/x", (1, 2), (0, i), (1, 1), None, columns.t()[:1, i : i + 1]) for i in (0, 1)]
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        checkpointer.save(1, shards, {}, {}, {})
        checkpointer.load(tmp_path / "step_00000001", blank(shards))
    assert [shard.data.item() for shard in shards] == [3.0, 4.0]


def test_pieces_that_do_not_make_up_the_tensor_are_not_saved(tmp_path):
    half = Shard("model/x", (4,), (0,), (2,), None, torch.zeros(2))
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        with pytest.raises(CheckpointError, match="model/x: 2 of its 4 elements are missing"):
            checkpointer.save(1, [half], {}, {}, {})
        with pytest.raises(CheckpointError, match="overlap"):
            whole = Shard.whole("model/x", torch.zeros(4))
            checkpointer.save(1, [half, whole], {}, {}, {})
        assert checkpointer.find_newest() is None
    assert [path.name for path in tmp_path.iterdir()] == [".run_lock.json"]


def test_large_rows_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("megagpt.checkpoint.loading.CHUNK", 64)
    monkeypatch.setattr("megagpt.checkpoint.files.CHUNK", 64)
    save(World(), tmp_path, "whole")
    for layout in LAYOUTS:
        shards = run_ranks(3, lambda world, layout=layout: restore(world, tmp_path, layout))
        assert not [result for result in shards if isinstance(result, Exception)]


def peak_memory():
    """Largest resident size in bytes since the last reset."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here")
def test_memory_beside_the_tensors_is_flat(tmp_path):
    data = torch.ones(16, 2 << 20)  # 128 MiB
    columns = Shard("model/x", (16, 2 << 20), (0, 0), (16, 2 << 20), None, data)
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_memory()
        checkpointer.save(1, [columns], {}, {}, {})
        data.zero_()
        checkpointer.load(tmp_path / "step_00000001", [columns])
        narrow = Shard("model/x", (16, 2 << 20), (0, 5), (16, 9), None, torch.zeros(16, 9))
        checkpointer.load(tmp_path / "step_00000001", [narrow])
        assert peak_memory() - before < data.nbytes // 2
    assert data.min() == narrow.data.min() == 1


def save_and_restore(directory):
    world = current_world()
    save(world, directory, "columns", asynchronous=True)
    state, own = restore(world, directory, "flat")
    return state, own["rng/cpu"].tolist()


def fail_on_rank_one(directory):
    shards = [Shard.whole("model/x", torch.zeros(4))] if current_world().rank == 0 else []
    with Checkpointer(directory, CheckpointConfig()) as checkpointer:
        own = {"bad": torch.zeros(1, dtype=torch.complex64)} if checkpointer.world.rank else {}
        try:
            checkpointer.save(6, shards, own, {}, {})
        except CheckpointError as error:
            return str(error), checkpointer.find_newest().name
    return None


def gloo_ranks(directory):
    return save_and_restore(directory), fail_on_rank_one(directory)


def test_real_ranks(tmp_path):
    results = run_distributed(gloo_ranks, 2, tmp_path)
    for rank, (restored, failure) in enumerate(results):
        assert restored == (STATE, list(range(rank, rank + 9)))
        assert failure == ("rank 1: bad: dtype torch.complex64 cannot be stored", "step_00000005")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run_lock.json", "latest", "step_00000005"]
