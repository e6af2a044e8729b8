"""What a run survives: signals, kill -9 and numbers that are not finite."""

import json
import os
import random
import re
import signal
import time

import pytest
import torch
from dist import run_distributed

from megagpt.checkpoint import find
from megagpt.errors import STOPPED_BY_SIGNAL, DistributedError, TrainingDiverged
from tests.faults import job


def _engine(name: str) -> list[str]:
    """Settings of an engine, DeepSpeed's with all that it can shard."""
    if name == "megatron":
        return []
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    more = {
        "deepspeed": ["parallel.zero_stage=3"],
        "zero1-bf16": ["parallel.zero_stage=1", "optim.precision=bf16"],
        "zero2-offload": ["parallel.zero_stage=2", "parallel.offload_optimizer=cpu"],
    }
    return ["parallel.engine=deepspeed", *more[name]]


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("engine", "steps", "kills_wanted"), [("megatron", 250, 5), ("deepspeed", 100, 2)])
def test_kill_9_again_and_again(engine, steps, kills_wanted, overrides, tmp_path):
    """Ranks killed at random moments and restarted by torchrun end with the parameters of a run never killed."""
    settings = ["parallel=data", "checkpoint.interval=5", *_engine(engine)]
    whole = job.start(
        job.command(2, [*job.settings(overrides, tmp_path, "whole", steps), *settings]), tmp_path / "whole.log"
    )
    assert whole.wait(timeout=job.PATIENCE) == 0, (tmp_path / "whole.log").read_text()

    moments, log = random.Random(7), tmp_path / "killed.log"
    command = job.command(
        2, [*job.settings(overrides, tmp_path, "killed", steps), *settings], max_restarts=3 * kills_wanted
    )
    killed = job.start(command, log)
    kills = 0
    while kills < kills_wanted:
        job.wait_for(lambda: len(job.ranks_of(killed.pid)) == 2, killed, log)
        time.sleep(moments.uniform(0, 6))  # while starting, resuming, training or saving
        if killed.poll() is not None:
            break
        ranks = job.ranks_of(killed.pid)
        if ranks:  # none while torchrun starts them anew
            os.kill(moments.choice(ranks), signal.SIGKILL)
            kills += 1
    assert killed.wait(timeout=2 * job.PATIENCE) == 0, log.read_text()
    assert kills == kills_wanted, f"the run was over after {kills} kills"
    assert job.losses(tmp_path / "whole") == job.losses(tmp_path / "killed")

    tensors, state = job.tensors(tmp_path / "whole")
    tensors_killed, state_killed = job.tensors(tmp_path / "killed")
    assert state == state_killed
    assert tensors.keys() == tensors_killed.keys()
    assert all(torch.equal(tensors[name], tensors_killed[name]) for name in tensors)
    lines = [json.loads(line)["step"] for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, steps + 1))


def test_killed_rank_is_named(overrides, tmp_path):
    command = job.command(2, [*job.settings(overrides, tmp_path, "run", steps=100_000), "parallel=data"])
    log = tmp_path / "log"
    process = job.start(command, log)
    job.wait_for(lambda: job.steps(tmp_path / "run") > 2, process, log)
    os.kill(job.ranks_of(process.pid)[1], signal.SIGKILL)
    assert process.wait(timeout=job.PATIENCE) != 0
    # Where the other rank ends within one look of the launcher, that one may be called the first failure.
    assert re.search(r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9 ", log.read_text())
    assert "megagpt/stages" not in log.read_text()  # no traceback of ours; torchrun prints its own


def test_the_loss_of_a_rank_is_reported_once(overrides, tmp_path):
    """Without a launcher, which would often end the other rank before that has noticed anything."""
    command = job.command(1, [*job.settings(overrides, tmp_path, "run", steps=100_000), "parallel=data"])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(job.free_port())}
    logs = [tmp_path / f"log{rank}" for rank in range(2)]
    ranks = [job.start(command, log, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank, log in enumerate(logs)]
    job.wait_for(lambda: job.steps(tmp_path / "run") > 2, ranks[0], logs[0])
    ranks[1].kill()
    assert ranks[0].wait(timeout=job.PATIENCE) == DistributedError.exit_code
    assert logs[0].read_text().count("lost contact with another rank") == 1
    assert "Traceback" not in logs[0].read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_save_and_stop(number, overrides, tmp_path):
    command = job.command(1, [*job.settings(overrides, tmp_path, "run", steps=100_000), "checkpoint.interval=0"])
    log = tmp_path / "log"
    process = job.start(command, log)
    job.wait_for(lambda: job.steps(tmp_path / "run") > 2, process, log)
    process.send_signal(number)
    assert process.wait(timeout=job.PATIENCE) == STOPPED_BY_SIGNAL, log.read_text()
    saved = int(find(tmp_path / "run").name.removeprefix("step_"))
    assert saved == job.steps(tmp_path / "run")
    assert f"stopped by a signal at step {saved}" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
def test_ctrl_c_under_torchrun_saves(engine, overrides, tmp_path):
    """The terminal sends SIGINT to the launcher and to every rank at once, and the launcher passes it on."""
    settings = [*job.settings(overrides, tmp_path, "run", steps=100_000), "checkpoint.interval=0", "parallel=data"]
    command = job.command(2, [*settings, *_engine(engine)])
    log = tmp_path / "log"
    process = job.start(command, log)
    job.wait_for(lambda: job.steps(tmp_path / "run") > 2, process, log)
    for pid in (process.pid, *job.ranks_of(process.pid)):
        os.kill(pid, signal.SIGINT)
    assert process.wait(timeout=job.PATIENCE) != 0
    assert int(find(tmp_path / "run").name.removeprefix("step_")) == job.steps(tmp_path / "run"), log.read_text()


class _Poisoned:
    """Language modelling whose loss is not finite in some calls, on one rank only."""

    def __init__(self, calls: range, value: float) -> None:
        from megagpt.train.objectives import LanguageModelObjective

        self.inner, self.calls, self.value, self.seen = LanguageModelObjective(), calls, value, 0
        self.metric_names, self.forward = self.inner.metric_names, self.inner.forward

    def loss(self, output, batch):
        import torch.distributed as dist

        loss, count, metrics = self.inner.loss(output, batch)
        self.seen += 1
        poisoned = dist.get_rank() == dist.get_world_size() - 1 and self.seen - 1 in self.calls
        return loss * (self.value if poisoned else 1.0), count, metrics


def _train_poisoned(overrides: list[str], calls: range, value: float) -> tuple[list, dict, str]:
    from megagpt.config.load import load as load_config
    from megagpt.stages.pretrain import Pretrain
    from megagpt.stages.session import open_run

    def poisoned(config) -> Pretrain:
        stage = Pretrain(config)
        stage.objective = _Poisoned(calls, value)
        return stage

    hashes, message = [], ""
    with open_run(load_config(overrides), poisoned) as trainer:
        step = trainer.engine.train_step

        def watched_step(*arguments):
            result = step(*arguments)
            shards = trainer.stage.shards(for_saving=False)
            hashes.append((result.applied, [shard.data.double().sum().item() for shard in shards]))
            return result

        trainer.engine.train_step = watched_step
        try:
            trainer.stage.fit(trainer)
        except TrainingDiverged as error:
            message = str(error)
    return hashes, trainer.state.to_dict(), message


def _train_poisoned_by_each(overrides: list[str], calls: range, values: list[float]) -> list[tuple]:
    return [_train_poisoned([*overrides, f"run_name=run{n}"], calls, value) for n, value in enumerate(values)]


@pytest.mark.parametrize("engine", ["megatron", "deepspeed", "zero1-bf16", "zero2-offload"])
def test_non_finite_step_is_skipped_everywhere(engine, overrides, tmp_path):
    """With 4 micro-batches a rank and step, calls 4 to 7 are step 2, poisoned on the last rank alone."""
    settings = [*job.settings(overrides, tmp_path, "run", steps=4), "parallel.micro_batch_size=1", *_engine(engine)]
    values = [float("nan"), float("inf")]
    for rank in run_distributed(_train_poisoned_by_each, 2, settings, range(5, 6), values):
        assert len(rank) == len(values)
        for hashes, state, _ in rank:
            assert [applied for applied, _ in hashes] == [True, False, True, True]
            assert hashes[0][1] == hashes[1][1]
            assert hashes[1][1] != hashes[2][1]
            assert (state["step"], state["skipped_steps"], state["skipped_in_a_row"]) == (4, 1, 0)
    for number in range(len(values)):
        lines = [json.loads(line) for line in (tmp_path / f"run{number}/metrics.jsonl").read_text().splitlines()]
        assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 1]


def test_too_many_skipped_steps_stop_the_run(overrides, tmp_path):
    settings = [*job.settings(overrides, tmp_path, "run", steps=9), "optim.max_skipped_steps=3"]
    for hashes, state, message in run_distributed(_train_poisoned, 2, settings, range(4, 99), float("nan")):
        assert len(hashes) == state["step"] == 4
        assert "3 steps in a row, up to step 4" in message
