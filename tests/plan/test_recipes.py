"""Every recipe passes the rules and fits on every cluster that is offered for it."""

import re

import pytest

from megagpt.config.load import groups, load
from megagpt.config.rules import check
from megagpt.plan.devices import load_devices
from megagpt.plan.estimate import estimate
from megagpt.plan.job import Job

SMALL = ["125m", "350m", "760m", "1_3b", "2_7b"]
DEVICES = {"80gb": ["A100-80", "H100-80"], "141gb": ["H200-141"]}


def recipes() -> list[tuple[str, str, int, str]]:
    """Size, cluster, GPUs and device."""
    found = []
    for cluster in groups()["cluster"]:
        size, nodes, memory = re.fullmatch(r"(?:(\d+.*b)_)?(\d+)x8x(\d+gb)", cluster).groups()
        for name in [size] if size else SMALL:
            found += [(name, cluster, 8 * int(nodes), device) for device in DEVICES[memory]]
    return found


@pytest.mark.parametrize(("size", "cluster", "gpus", "device"), recipes())
def test_fits(size, cluster, gpus, device):
    config = load([f"experiment=pretrain_{size}", f"cluster={cluster}"])
    check(config, gpus)
    plan = estimate(Job(config, gpus), load_devices()[device], simulated=False)
    assert plan.fits, f"{plan.peak_bytes / 2**30:.1f} GiB"


def test_nine_answers_fit():
    config = load(["experiment=reward_6_7b"])
    check(config, 8)
    rows = ["parallel.micro_batch_size=9", "optim.global_batch_size=576"]  # a plan counts rows
    fits = [
        estimate(
            Job(load(["experiment=reward_6_7b", *rows, *more]), 8), load_devices()["A100-80"], simulated=False
        ).fits
        for more in ([], ["parallel.recompute=none"])
    ]
    assert fits == [True, False]


@pytest.mark.parametrize(("size", "gpus"), [("1_3b", 8), ("6_7b", 8), ("175b", 64)])
def test_fine_tuning_fits(size, gpus):
    config = load([f"experiment=sft_{size}"])
    check(config, gpus)
    assert (config.model.hidden_dropout, config.optim.train_epochs, config.data.packing) == (0.2, 16, False)
    assert estimate(Job(config, gpus), load_devices()["A100-80"], simulated=False).fits


def test_what_is_asked_for_by_name_wins_over_the_cluster():
    config = load(["experiment=pretrain_175b", "parallel=3d", "parallel.micro_batch_size=3"])
    assert (config.parallel.tensor_parallel_size, config.parallel.micro_batch_size) == (2, 3)


def test_175b_is_as_published_on_1024_gpus():
    parallel = load(["experiment=pretrain_175b"]).parallel
    assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size) == (8, 16)
    assert parallel.virtual_pipeline_size > 1
    assert parallel.sequence_parallel
    assert (parallel.recompute, parallel.zero_stage) == ("selective", 1)
