"""Search, refusal and what would fit."""

import dataclasses
import time

import pytest
from timing import cpu_seconds

from megagpt.config.load import load
from megagpt.config.rules import check
from megagpt.errors import ConfigError
from megagpt.plan.assumptions import doubts
from megagpt.plan.devices import find_device, load_devices
from megagpt.plan.job import Job
from megagpt.plan.run import estimate
from megagpt.plan.search import remedies, search
from megagpt.plan.tables import refusal

DEVICES = load_devices()
H100, H200, A100 = (DEVICES[name] for name in ("H100-80", "H200-141", "A100-80"))


def test_search_finds_what_fits_in_seconds():
    config = load(["experiment=pretrain_175b"])
    began = time.process_time()
    found = search(config, 1024, H100)
    seconds = time.process_time() - began
    assert seconds < 400 * cpu_seconds(estimate, Job(config, 1024), H100)  # of thousands of layouts
    assert len(found) == 10
    steps = [layout.plan.step_seconds for layout in found]
    assert steps == sorted(steps)
    for layout in found:
        check(layout.plan.job.config, 1024)
        assert layout.plan.fits
        # The overrides alone lead there.
        again = load(["experiment=pretrain_175b", *layout.overrides])
        assert again.parallel == layout.plan.job.config.parallel
        assert estimate(Job(again, 1024), H100).step_seconds == pytest.approx(layout.plan.step_seconds)


def test_the_formula_is_near_the_simulation():
    found = search(load(["experiment=pretrain_13b"]), 64, A100)
    assert len(found) == 10
    for layout in found:
        quick = estimate(layout.plan.job, A100, simulated=False)
        assert quick.step_seconds == pytest.approx(layout.plan.step_seconds, rel=0.05)


def test_layouts_whose_time_is_in_doubt_come_last():
    found = search(load(["experiment=demo", "optim=demo", "optim.global_batch_size=64"]), 16, H100, count=1000)
    doubtful = [layout for layout in found if doubts(layout.plan)]
    assert doubtful == [layout for layout in found if layout.plan.job.config.parallel.zero_stage == 3]
    assert 0 < len(doubtful) < len(found)
    assert doubtful == found[-len(doubtful) :]
    others = found[: -len(doubtful)]
    assert doubtful[0].plan.step_seconds < others[-1].plan.step_seconds  # by time alone they would be mixed
    for layouts in (others, doubtful):
        steps = [layout.plan.step_seconds for layout in layouts]
        assert steps == sorted(steps)


def test_nothing_fits():
    assert search(load(["experiment=pretrain_175b"]), 8, A100) == []


def test_refusal_names_the_part_and_changes_that_fit():
    overrides = ["experiment=pretrain_13b", "parallel=data", "optim.ramp_start=null", "optim.ramp_tokens=0"]
    plan = estimate(Job(load(overrides), 8), A100)
    assert not plan.fits
    changes = remedies(plan.job, A100)
    assert 2 <= len(changes) <= 3
    for change in changes:
        again = estimate(Job(load([*overrides, *change.overrides]), 8), A100)
        assert again.fits
    text = refusal(plan, changes)
    assert "the largest part is gradients" in text
    assert " ".join(changes[0].overrides) in text


def test_parts_of_the_step_add_up():
    for gpus, overrides in ((8, ["experiment=pretrain_1_3b"]), (64, ["experiment=pretrain_13b", "parallel=3d"])):
        plan = estimate(Job(load(overrides), gpus), H200)
        assert sum(plan.parts.values()) == pytest.approx(plan.step_seconds)
        assert min(plan.parts.values()) > -1e-9  # one of them is a difference
        assert plan.gpu_hours == pytest.approx(plan.days * 24 * gpus)
        assert plan.mfu <= plan.hfu < 1


def test_zero_divides_and_offload_moves():
    def plan(**values):
        config = load(["experiment=pretrain_1_3b"])
        return estimate(
            Job(dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **values)), 8), H100
        )

    held = {
        stage: plan(engine="deepspeed" if stage else "megatron", zero_stage=stage).memory[0] for stage in (0, 1, 2, 3)
    }
    assert held[0].optimizer == 8 * held[1].optimizer == 8 * held[3].optimizer
    assert held[0].gradients == 8 * held[2].gradients
    assert held[0].weights == 8 * held[3].weights
    moved = plan(engine="deepspeed", zero_stage=2, offload_optimizer="cpu")
    assert moved.memory[0].optimizer == 0
    assert moved.host[0].optimizer > 0
    assert moved.sent["to the host"] > 0


def test_devices_can_be_changed(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "H100-80: {inter_node_gbs: 10}\nMINE: {memory_gib: 10, peak_tflops: 1, peak_fp32_tflops: 1, "
        "memory_gbs: 1, intra_node_gbs: 1, inter_node_gbs: 1, host_gbs: 1}\n"
    )
    devices = load_devices(own)
    assert devices["H100-80"] == dataclasses.replace(H100, inter_node_gbs=10)
    assert find_device("mine", devices).memory_gib == 10
    own.write_text("H100-80: {memory_gib: -1, colour: red}\n")
    with pytest.raises(ConfigError, match=r"H100-80 has the unknown field colour, has memory_gib=-1"):
        load_devices(own)
    with pytest.raises(ConfigError, match="did you mean"):
        find_device("H10", DEVICES)
