"""Tasks in context while a model trains: when they are asked, what is logged, and that training does not notice."""

import hashlib
import json
import random
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.config.load import load
from megagpt.errors import ConfigError, DataError

STEPS = 7
ASKED = ["stage.tasks.names=[sums,words]", "stage.tasks.shots=[0,3]", "stage.tasks.every=3", "stage.tasks.limit=5"]


@dataclass
class Asked:
    """Stands for the model as tasks see it: its replica's number, and texts that it writes."""

    modules: list
    config: object
    tokenizer: object

    def write(self, prompts: list[str]) -> list[str]:
        from megagpt.model.generation import GenerationConfig, Generator

        generator = Generator(self.modules, self.config, self.tokenizer)
        return [c.text for c in generator.generate(prompts, GenerationConfig(temperature=0, max_new_tokens=4))]


def ask(lm: Asked, *, tasks, shots, protocol, data, limit, seed):
    """Stands for `run_tasks`: replicas share prompts unevenly, and all random states are used and set anew."""
    import torch.distributed as dist

    from megagpt.evaluate.in_context.outcomes import TaskOutcome

    assert (protocol, data, limit) == ("lm-eval", Path("sets"), 5)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.rand(3), np.random.rand(), random.random()
    group = lm.modules[0].pg_collection.dp
    for task in tasks:
        for number in shots:
            prompts = ["to be " * (number + 1) + str(index) for index in range(limit)]
            texts = lm.write(prompts[group.rank() :: group.size()])
            vowels = torch.tensor(sum(map(len, texts)) + 0.0)
            dist.all_reduce(vowels, group=group)
            metrics = {"length": vowels.item() / limit, "other": 9.0}
            yield TaskOutcome(task, number, metrics, "length", True, None, [], notes=["a note"] * (number == 3))


def stand_in(**functions) -> None:
    """Make modules of the given functions where `megagpt.stages.tasks` looks for them."""
    package = "megagpt.evaluate.in_context"
    run, model = types.ModuleType(f"{package}.run"), types.ModuleType(f"{package}.language_model")
    run.__dict__.update(functions)
    model.MegaGPTLM = Asked
    sys.modules[run.__name__], sys.modules[model.__name__] = run, model


def _train(runs: list[list[str]]) -> list[dict]:
    from megatron.core import parallel_state

    from megagpt.stages.session import open_run

    stand_in(run_tasks=ask)
    results = []
    for overrides in runs:
        config = load(overrides)
        with open_run(config) as trainer:
            trainer.stage.fit(trainer)
        digest = hashlib.sha256()
        for shard in trainer.stage.shards(for_saving=False):
            digest.update(shard.name.encode() + shard.data.contiguous().view(torch.uint8).numpy().tobytes())
        parallel_state.destroy_model_parallel()
        lines = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
        losses = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
        tasks = [line for line in lines if any(key.startswith("task_") for key in line)]
        results.append({"losses": losses, "digest": digest.hexdigest(), "tasks": tasks})
    return results


@pytest.mark.parametrize(
    "layout",
    [
        [],
        ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
        ["parallel.pipeline_parallel_size=2"],
    ],
    ids=["dp2", "tp2-sp", "pp2"],
)
def test_training_is_the_same_with_and_without_tasks(layout, overrides, tmp_path):
    plain = [
        *overrides,
        *layout,
        f"runs_dir={tmp_path}",
        "parallel.micro_batch_size=2",
        f"optim.train_tokens={32 * 8 * STEPS}",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        "optim.global_batch_size=8",
        "checkpoint.interval=0",
    ]
    runs = [[*plain, "run_name=plain"], [*plain, "run_name=asked", *ASKED, "stage.tasks.data=sets"]]
    (without, asked), *_ = run_distributed(_train, 2, runs)
    assert len(without["losses"]) == STEPS and without["tasks"] == []
    assert (asked["losses"], asked["digest"]) == (without["losses"], without["digest"])
    assert [line["step"] for line in asked["tasks"]] == [3, 6, 7]  # at their interval, and the trained model
    assert [line["tokens"] for line in asked["tasks"]] == [32 * 8 * step for step in (3, 6, 7)]
    for line in asked["tasks"]:
        names = {key for key in line if key not in ("step", "tokens", "time")}
        assert names == {"task_sums_0shot", "task_sums_3shot", "task_words_0shot", "task_words_3shot"}
        assert line["task_sums_0shot"] == line["task_words_0shot"] > 0
    assert "task sums, 3-shot: a note" in (tmp_path / "asked" / "log.txt").read_text()


@pytest.mark.parametrize("error", [ConfigError, DataError])
def test_what_is_wrong_with_tasks_is_said_before_anything_is_built(error, overrides, tmp_path, monkeypatch):
    from megagpt import stages
    from megagpt.__main__ import main

    def refuse(names, shots, protocol, data):
        assert (names, shots, protocol, data) == (("sums",), (0, 3), "gpt3", Path("sets"))
        raise error("no task is called sums")

    run = types.ModuleType("megagpt.evaluate.in_context.run")
    run.check_tasks = refuse
    monkeypatch.setitem(sys.modules, run.__name__, run)
    monkeypatch.setattr(stages, "run", lambda config: 0)
    wanted = [*overrides, f"runs_dir={tmp_path}", "stage.tasks.shots=[0,3]", "stage.tasks.protocol=gpt3"]
    assert main(wanted) == 0  # without names nothing is looked at
    with pytest.raises(error, match=r"^stage\.tasks: no task is called sums"):
        main([*wanted, "stage.tasks.names=[sums]", "stage.tasks.data=sets"])
