"""Stages, generation, checkpoints with the meta device in place of CUDA: devices do not mix, the host waits seldom.

What waits is listed here by function; a wait that is in no list fails, and so does one more of a kind.
"""

from collections import Counter
from pathlib import Path

import pytest
import standin
import torch
from dist import run_distributed
from standin import MixedDevices, OnDevice

from tests.layouts import ON_TWO_RANKS

STEP = {
    "item finalize_model_grads": 1,  # Megatron-Core asks whether any token counts
    "tolist means": 1,
    "item _grad_norm": 1,
}
"""Waits of a training step, however many micro-batches it has, at most."""
TOKEN = {"tolist _choose": 1}
"""Waits of a generated token of all answers, at most."""
PPO_MICRO_BATCH = {
    "index by a mask forward": 2,  # logits and labels of the chosen tokens; the values likewise
    "index by a mask loss": 3,
    "index by a mask backward_step": 2,
}
"""Waits of a micro-batch of PPO besides: how many tokens were chosen is known to the device alone."""
LAYOUTS = ("data", "tensor", "sequence")
"""Of two ranks. Pipelines set a tied weight's data to the device's, which PyTorch refuses for the stand-in."""


def by_function(counts: Counter) -> Counter:
    """Counts by kind and function, without files and lines."""
    found = Counter()
    for (kind, where), count in counts.items():
        found[f"{kind} {where.split(':')[1] if ':' in where else where}"] += count
    return found


def run_stage(name: str, folder: Path, stand_in: bool, more: tuple[str, ...] = ()) -> dict:
    """Run a stage of tools/gpu_stages.py in fp32; returns its losses, and waits of steps and of answers."""
    import gpu_stages

    from megagpt.config.load import load
    from megagpt.model.generation import Generator
    from megagpt.parallel.megatron import MegatronEngine
    from megagpt.stages import session
    from megagpt.train.metrics import read_jsonl

    steps, tokens = [], []
    run_name = "-".join((name, *(text.split(".")[-1].replace("=", "_") for text in more)))
    train_step, continued = MegatronEngine.train_step, Generator._continue

    def counted_step(engine, batches, count, lr):
        with standin.WAITS.counted() as waits:
            result = train_step(engine, batches, count, lr)
        steps.append((count, by_function(waits)))
        return result

    def counted_tokens(generator, waiting):
        with standin.WAITS.counted() as waits:
            yield from continued(generator, waiting)
        if len(waiting) <= generator.batch_size:  # so that a pass has a token of every answer that has not ended
            tokens.append((max(len(row.tokens) for row in waiting), by_function(waits)))

    config = load([*gpu_stages.overrides(name, folder), "optim.precision=fp32", f"run_name={run_name}", *more])
    MegatronEngine.train_step, Generator._continue = counted_step, counted_tokens
    try:
        if stand_in:
            with standin.active():
                status = session.run_stage(config)
        else:
            status = session.run_stage(config)
    finally:
        MegatronEngine.train_step, Generator._continue = train_step, continued
    assert status == 0
    losses = [line["loss"] for line in read_jsonl(folder / run_name / "metrics.jsonl") if "loss" in line]
    return {"losses": losses, "steps": steps, "tokens": tokens}


def all_stages(folder: Path) -> dict[str, dict]:
    """Every stage on the stand-in, one after the other."""
    names = ("pretrain", "code", "sft", "reward", "ppo", "embed")
    return {name: run_stage(name, folder, stand_in=True) for name in names}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    """Results of all stages on the stand-in, on one rank."""
    return run_distributed(all_stages, 1, tmp_path_factory.mktemp("stages"), timeout=600)[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "code", "sft", "reward", "embed"])
def test_a_step_waits_as_often_as_listed(found, stage):
    steps = found[stage]["steps"]
    assert steps and all(count > 1 for count, _ in steps)
    for _, waits in steps:
        assert {kind: count for kind, count in waits.items() if count > STEP.get(kind, 0)} == {}


@pytest.mark.slow
def test_a_step_of_ppo_waits_as_often_as_listed(found):
    steps = found["ppo"]["steps"]
    assert steps
    for count, waits in steps:
        allowed = STEP | {kind: count * each for kind, each in PPO_MICRO_BATCH.items()}
        assert {kind: number for kind, number in waits.items() if number > allowed.get(kind, 0)} == {}


@pytest.mark.slow
def test_a_generated_token_waits_once(found):
    passes = [entry for stage in ("code", "ppo") for entry in found[stage]["tokens"]]
    assert passes
    for longest, waits in passes:
        allowed = {kind: longest * each for kind, each in TOKEN.items()}
        assert longest and {kind: count for kind, count in waits.items() if count > allowed.get(kind, 0)} == {}


@pytest.mark.slow
def test_the_stand_in_computes_what_the_cpu_computes(found, tmp_path):
    plain = run_distributed(run_stage, 1, "pretrain", tmp_path, False)[0]
    torch.testing.assert_close(found["pretrain"]["losses"], plain["losses"], rtol=1e-5, atol=0)


def prepare(folder: Path) -> None:
    """Write the data of all stages, on the first of several ranks."""
    import gpu_stages
    import torch.distributed as dist

    if dist.get_rank() == 0:
        folder.mkdir()
        gpu_stages.prepare(folder)
    dist.barrier()


def layouts(folder: Path) -> dict[str, dict]:
    """Pretraining on the stand-in in layouts of two ranks."""
    prepare(folder)
    more = {name: ("model.num_layers=4", *ON_TWO_RANKS[name]) for name in LAYOUTS}
    return {name: run_stage("pretrain", folder, True, more[name]) for name in LAYOUTS}


def ppo_with_a_copy(folder: Path) -> list[float]:
    """Losses of PPO on two ranks, whose rollouts are made by a copy in another layout; all models are offloaded."""
    prepare(folder)
    for stage in ("pretrain", "sft", "reward"):
        run_stage(stage, folder, True)
    copy = ("parallel.tensor_parallel_size=2", "ppo.rollout_parallel.tensor_parallel_size=1", "ppo.offload=true")
    return run_stage("ppo", folder, True, copy)["losses"]


@pytest.mark.slow
def test_layouts_of_two_ranks_mix_no_devices_and_agree_with_one(tmp_path):
    ranks = run_distributed(layouts, 2, tmp_path / "two", timeout=600)
    one = run_distributed(run_stage, 1, "pretrain", tmp_path, False, ("model.num_layers=4",))[0]["losses"]
    for results in ranks:
        for name in LAYOUTS:
            torch.testing.assert_close(results[name]["losses"], one, rtol=1e-4, atol=0)
            for _, waits in results[name]["steps"]:
                assert {kind: count for kind, count in waits.items() if count > STEP.get(kind, 0)} == {}, name


@pytest.mark.slow
@pytest.mark.thorough
def test_ppo_with_offloaded_models_and_a_rollout_copy_mixes_no_devices(tmp_path):
    first, second = run_distributed(ppo_with_a_copy, 2, tmp_path / "two", timeout=600)
    assert first == second and first


def ops_that_cuda_refuses() -> dict:
    here, there = torch.ones(3), OnDevice(torch.ones(3))
    return {
        "sum of both devices": lambda: here + there,
        "matrix product": lambda: there @ here,
        "stack": lambda: torch.stack((here, there)),
        "mask": lambda: torch.where(here > 0, there, there),
        "no values": lambda: there + torch.empty(3, device="meta"),
    }


@pytest.mark.parametrize("name", ["sum of both devices", "matrix product", "stack", "mask"])
def test_mixed_devices_are_refused(name):
    with standin._Dispatch(), pytest.raises(MixedDevices):
        ops_that_cuda_refuses()[name]()


def waits_of(work) -> dict[str, int]:
    with standin._Dispatch(), standin.WAITS.counted() as counts:
        work()
    return {kind: count for (kind, _), count in counts.items()}


def test_what_the_host_waits_for_is_counted():
    x = OnDevice(torch.tensor([1.0, 0.0, 3.0]))
    pinned = standin._pin(torch.ones(3))
    assert waits_of(lambda: x.sum().item()) == {"item": 1}
    assert waits_of(lambda: bool(x.sum() > 0)) == {"item": 1}
    assert waits_of(lambda: x.nonzero()) == {"nonzero": 1}
    assert waits_of(lambda: x[x > 0]) == {"index by a mask": 1}
    assert waits_of(lambda: x.__setitem__(x > 0, 2.0)) == {}
    assert waits_of(lambda: x.tolist()) == {"tolist": 1}
    assert waits_of(lambda: x.cpu()) == {"copy to the CPU": 1}
    assert waits_of(lambda: torch.ones(3).to("meta")) == {"copy to the device": 1}
    assert waits_of(lambda: torch.ones(3).to("meta", non_blocking=True)) == {"copy to the device": 1}  # pageable
    assert waits_of(lambda: pinned.to("meta")) == {"copy to the device": 1}
    assert waits_of(lambda: pinned.to("meta", non_blocking=True)) == {}
    assert waits_of(lambda: x[[0, 2]]) == {"indices from the CPU": 1}
    assert waits_of(lambda: (x * 2 + torch.zeros(3, device="meta")).sum()) == {}


def test_values_and_gradients_are_those_of_the_cpu():
    x = torch.linspace(-1, 1, 12).view(3, 4)

    def value(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x @ weight).view(-1)[1:].reshape(-1)
        y[0] *= 2  # in place, on a view
        return y.square().sum()

    weight = torch.linspace(0, 1, 8).view(4, 2)
    expected = weight.clone().requires_grad_()
    value(x, expected).backward()
    with standin._Dispatch():
        on_device = torch.nn.Parameter(weight.to("meta"))
        loss = value(x.to("meta"), on_device)
        loss.backward()
        assert on_device.device.type == "meta"
        torch.testing.assert_close(on_device.grad.cpu(), expected.grad)
        assert loss.item() == pytest.approx(value(x, expected).item())
