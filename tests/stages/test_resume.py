"""A run that stops and goes on is the run that never stopped: in the same layout bit for bit, in another to 1e-5."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from dist import has_libaio, run_distributed

from megagpt.errors import MegaGPTError

STEPS = 20
DEEPSPEED = ["parallel.engine=deepspeed"]
ON_DISK = ["parallel.offload_optimizer=nvme", "parallel.offload_parameters=nvme"]


def _run(overrides: list[str]) -> dict:
    """Train as `overrides` say, and return the losses by step, and a hash of parameters and moments."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.config.rules import check
    from megagpt.stages.session import open_run

    config = load(overrides)
    check(config, dist.get_world_size())
    with open_run(config) as trainer:
        trainer.stage.fit(trainer)
    digest = hashlib.sha256()
    for shard in trainer.stage.shards(for_saving=False):
        digest.update(shard.name.encode() + shard.data.contiguous().view(torch.uint8).numpy().tobytes())
    lines = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    state = trainer.state
    parallel_state.destroy_model_parallel()
    return {
        "losses": {line["step"]: (line["loss"], line["grad_norm"], line["lr"]) for line in lines if "loss" in line},
        "digest": digest.hexdigest(),
        "state": state.to_dict(),
    }


def _run_in_turn(runs: list[list[str]]) -> list[dict]:
    from megatron.core import parallel_state

    results = []
    for overrides in runs:
        try:
            results.append(_run(overrides))
        except MegaGPTError as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
            parallel_state.destroy_model_parallel()
    return results


def _run_over_an_old_checkpoint(first: list[str], second: list[str], folder: Path) -> tuple[dict, dict, dict]:
    """As `_run` twice, where the checkpoint between has its configuration as versions before this one wrote it.

    Also what those configurations mean as seen by `from_saved`.
    """
    import yaml

    from megagpt.checkpoint.format import MANIFEST, dump_manifest, read_manifest
    from megagpt.config.load import from_saved, to_dict
    from megagpt.config.renamed import RENAMED

    before = _run(first)
    saved = next(folder.glob("checkpoints/step_*"))
    manifest = read_manifest(saved)
    old = manifest["config"]
    for was, now in RENAMED.items():
        section, name = now.split(".")
        old[section][was.split(".")[1]] = old[section].pop(name)
    assert old["optim"].pop("published")
    (saved / MANIFEST).write_text(dump_manifest(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump(old))
    return before, _run(second), to_dict(from_saved(old))


def _tokens(steps: int) -> int:
    """Tokens of the first `steps` steps, from the schedule itself."""
    from megagpt.config.schema import OptimConfig
    from megagpt.train.schedules import global_batch_size

    optim, tokens = OptimConfig(global_batch_size=16, ramp_start=8, ramp_tokens=32 * 8 * 6), 0
    for _ in range(steps):
        tokens += 32 * global_batch_size(optim, tokens, 2)
    return tokens


def _named(name: str, overrides: list[str], folder: Path, steps: int, *more: str) -> list[str]:
    return [*overrides, f"run_name={name}", f"runs_dir={folder}", f"optim.train_tokens={_tokens(steps)}", *more]


def slow(world_size: int, *layout: str):
    """A layout of `make test-slow`."""
    return pytest.param(world_size, list(layout), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        slow(1, "parallel.zero_stage=0", "parallel.micro_batch_size=2"),
        (2, ["parallel.zero_stage=1", "checkpoint.asynchronous=true"]),
        slow(2, "parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true", "parallel.micro_batch_size=2"),
        slow(2, "parallel.pipeline_parallel_size=2", "parallel.micro_batch_size=2", "optim.precision=bf16"),
        pytest.param(
            2,
            [*DEEPSPEED, "parallel.zero_stage=1", "optim.precision=bf16"],
            marks=[pytest.mark.slow, pytest.mark.thorough],
        ),
        slow(2, *DEEPSPEED, "parallel.zero_stage=2", "parallel.offload_optimizer=cpu"),
        slow(2, *DEEPSPEED, "parallel.zero_stage=3", "checkpoint.asynchronous=true", "optim.precision=bf16"),
        pytest.param(
            2,
            [*DEEPSPEED, "parallel.zero_stage=3", *ON_DISK, "model.hidden_size=128"],  # swapped from 1 MiB upward
            marks=[pytest.mark.slow, pytest.mark.thorough],
        ),
    ],
    ids=["one", "dp2-async", "tp2-sp", "pp2-bf16", "zero1-bf16", "zero2-offload", "zero3-bf16-async", "zero3-nvme"],
)
def test_same_layout_is_bit_exact(world_size, layout, overrides, tmp_path):
    stops = [3, 10, 14]  # in warm-up and ramp-up; after them; in the next epoch
    if "parallel.engine=deepspeed" in layout:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    if "parallel.offload_optimizer=nvme" in layout:
        if not has_libaio():
            pytest.skip("libaio's headers or a C++ compiler are not installed")
        layout = [*layout, f"parallel.offload_path={tmp_path}"]
    runs = [_named("whole", overrides, tmp_path, STEPS, *layout)]
    runs += [_named("parts", overrides, tmp_path, steps, *layout) for steps in (*stops, STEPS)]
    for whole, *_, last in run_distributed(_run_in_turn, world_size, runs):
        assert len(whole["losses"]) == STEPS
        assert last["losses"] == whole["losses"]
        assert last["digest"] == whole["digest"]
        assert last["state"] == whole["state"]


def _branch(long: list[str], short: list[str], folder: Path) -> list[dict]:
    """A run, one that goes on from a copy of its checkpoint of step 10, and one as long that begins at step 0."""
    results = _run_in_turn([[*long, "checkpoint.keep_every=5"]])
    (folder / "branch/checkpoints").mkdir(parents=True)
    shutil.copytree(folder / "long/checkpoints/step_00000010", folder / "branch/checkpoints/step_00000010")
    return results + _run_in_turn([[*short, "run_name=branch"], [*short, "run_name=whole"]])


def test_a_run_branches_off_from_the_stable_phase_of_another(overrides, tmp_path):
    """What differs is where the decay begins; with Muon, for once."""
    wsd = [*overrides, "optim.schedule=wsd", "optim.decay_tokens=null", "optim.optimizer=muon"]
    long = _named("long", wsd, tmp_path, STEPS)
    short = [*_named("short", wsd, tmp_path, 14), "optim.decay_fraction=0.2"]
    assert 0.8 * _tokens(14) > _tokens(10)
    first, branch, whole = run_distributed(_branch, 1, long, short, tmp_path)[0]
    assert (branch["digest"], branch["state"]) == (whole["digest"], whole["state"])
    assert {step: whole["losses"][step] for step in branch["losses"]} == branch["losses"]
    assert first["losses"][10] == whole["losses"][10] and first["losses"][14] != whole["losses"][14]
    assert min(branch["losses"]) == 11


def test_a_checkpoint_with_old_keys_goes_on(overrides, tmp_path):
    first, whole = (_named(name, overrides, tmp_path, steps) for name, steps in (("old", 3), ("whole", 6)))
    second = _named("old", overrides, tmp_path, 6)
    _, resumed, meaning = run_distributed(_run_over_an_old_checkpoint, 1, first, second, tmp_path / "old")[0]
    (expected,) = run_distributed(_run_in_turn, 1, [whole])[0]
    assert (resumed["losses"], resumed["digest"]) == (expected["losses"], expected["digest"])
    assert "value_lr" not in meaning["ppo"] and meaning["ppo"]["critic_lr"] == 9e-6
    log = (tmp_path / "old" / "log.txt").read_text()
    assert "resumed at step 3" in log
    assert re.findall(r"(\S+) changed from", log) == ["optim.train_tokens"]
    assert log.count("schedule of ") == 2


def test_another_way_to_choose_the_best_begins_anew(overrides, tmp_path):
    chosen = [*overrides, "checkpoint.best_metric=validation_loss", "stage.eval_interval=5"]
    turns = ((10, "null"), (15, "null"), (20, "max"))
    runs = [_named("run", chosen, tmp_path, steps, f"checkpoint.best_mode={mode}") for steps, mode in turns]
    states = [result["state"] for result in run_distributed(_run_in_turn, 1, runs)[0]]
    # Losses fall. The last run begins with the step that it goes on from, whose loss is higher than that of step 20.
    assert [state["best_step"] for state in states] == [10, 15, 15]
    assert states[2]["best_value"] == states[1]["best_value"] < states[0]["best_value"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 15, 20]  # 10 and 15 were seen twice


def _fail_at_the_first_evaluation(overrides: list[str]) -> str:
    from megagpt.config.load import load
    from megagpt.stages.session import open_run

    def evaluate(state):
        raise RuntimeError("out of memory")

    with open_run(load(overrides)) as trainer:
        trainer.stage.evaluate = evaluate
        try:
            trainer.stage.fit(trainer)
        except RuntimeError as error:
            return f"{error} at step {trainer.state.step}"
    return "no evaluation"


def _fail_and_go_on(runs: list[list[str]], whole: list[str]) -> tuple[list[str], list[dict]]:
    """What runs say whose first evaluation fails; then they go on, and `whole` trains without an interruption."""
    from megatron.core import parallel_state

    said = []
    for overrides in runs:
        said.append(_fail_at_the_first_evaluation(overrides))
        parallel_state.destroy_model_parallel()
    return said, _run_in_turn([*runs, whole])


def test_an_evaluation_that_fails_loses_no_step(overrides, tmp_path):
    """The step is there, and it is the best all the same (losses fall): the run that goes on evaluates it."""
    often = [*overrides, "stage.eval_interval=5"]
    best = [
        *often,
        "checkpoint.best_metric=validation_loss",
        "checkpoint.best_mode=max",
    ]  # losses fall: the first is it
    runs = [_named("failing", often, tmp_path, 12), _named("best", best, tmp_path, 12)]
    runs.append(_named("at_the_end", [*best, "checkpoint.interval=0"], tmp_path, 5))
    ((said, (failing, *others, whole)),) = run_distributed(
        _fail_and_go_on, 1, runs, _named("whole", best, tmp_path, 12)
    )
    assert said == ["out of memory at step 5"] * 3
    assert failing["digest"] == others[0]["digest"] == whole["digest"]
    assert others[0]["state"] == whole["state"]
    for name, result in (("best", others[0]), ("at_the_end", others[1]), ("whole", whole)):
        assert result["state"]["best_step"] == 5
        assert (tmp_path / name / "checkpoints/best").read_text() == "step_00000005\n"
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        evaluated = [line["step"] for line in lines if "validation_loss" in line]
        assert evaluated == ([5] if name == "at_the_end" else [5, 10, 12])


def test_data_may_move_and_must_not_change(overrides, tmp_path):
    (place,) = [text for text in overrides if text.startswith("data.corpora=")]
    here = Path(re.search(r"path: (\S+)}", place)[1])
    for name in ("moved", "other"):
        (tmp_path / name).mkdir()
        for suffix in ("bin", "idx", "json"):
            shutil.copy(f"{here}.{suffix}", tmp_path / name / f"web.{suffix}")
    blank = tmp_path / "other" / "web.bin"
    blank.write_bytes(bytes(blank.stat().st_size))
    changes = [f"data.corpora=[{{path: {tmp_path}/{name}/web}}]" for name in ("moved", "other")]
    runs = [_named("run", overrides, tmp_path, 2, "seed=1234")]
    runs += [_named("run", overrides, tmp_path, 4, change) for change in changes]
    ((first, moved, other),) = run_distributed(_run_in_turn, 1, runs)
    assert sorted(moved["losses"]) == [1, 2, 3, 4]
    assert {step: moved["losses"][step] for step in (1, 2)} == first["losses"]
    assert other["error"].startswith("ConfigError")
    assert f"data.corpora[0] ({tmp_path}/other/web) holds other data than when the run was started" in other["error"]


def test_a_metric_that_no_evaluation_gives_is_refused_before_the_first_step(overrides, tmp_path):
    changes = {
        "checkpoint.best_metric=validation_los": "did you mean validation_loss?",
        "checkpoint.best_metric=accuracy": "they give validation_loss, validation_perplexity, validation_bits_per_byte",
        "data.split=[1,0,0]": "give data.split a validation share",
    }
    wanted = [*overrides, "checkpoint.best_metric=validation_loss", "stage.eval_interval=5"]
    runs = [_named(f"run{place}", wanted, tmp_path, 2, change) for place, change in enumerate(changes)]
    for message, result in zip(changes.values(), run_distributed(_run_in_turn, 1, runs)[0], strict=True):
        assert result["error"].startswith("ConfigError") and message in result["error"]
    assert not list(tmp_path.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_other_layouts_go_on(overrides, tmp_path):
    """Saved on TP2; resumed on PP2, DP2, one rank and TP2 x PP2, against the run that never stopped."""
    plain = [*overrides, "model.hidden_dropout=0", "model.attention_dropout=0", "parallel.micro_batch_size=2"]
    tensor = ["parallel.tensor_parallel_size=2"]
    pipeline = ["parallel.pipeline_parallel_size=2"]
    layouts = {"pp2": (2, pipeline), "dp2": (2, []), "one": (1, []), "tp2pp2": (4, tensor + pipeline)}
    saved = [_named(name, plain, tmp_path, 10, *tensor) for name in layouts]
    whole, *_ = run_distributed(_run_in_turn, 2, [_named("whole", plain, tmp_path, STEPS, *tensor), *saved])[0]
    for name, (world_size, layout) in layouts.items():
        (resumed,) = run_distributed(_run_in_turn, world_size, [_named(name, plain, tmp_path, STEPS, *layout)])[0]
        for step, values in whole["losses"].items():
            torch.testing.assert_close(resumed["losses"][step], values, rtol=1e-5, atol=0, msg=f"{name}, step {step}")


@pytest.mark.slow
def test_engines_go_on_from_each_other(overrides, tmp_path):
    """Megatron on TP2 x PP2, then ZeRO-3 on 4 ranks, then ZeRO-2 on TP2, then Megatron again: as if never stopped."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    constant = ["optim.ramp_start=null", "optim.ramp_tokens=0", "optim.global_batch_size=8"]
    plain = [*overrides, *constant, "model.hidden_dropout=0", "model.attention_dropout=0", f"runs_dir={tmp_path}"]
    grid = ["parallel.tensor_parallel_size=2", "parallel.pipeline_parallel_size=2"]

    def named(name: str, steps: int, *layout: str) -> list[str]:
        return [*plain, f"run_name={name}", f"optim.train_tokens={32 * 8 * steps}", *layout]

    whole, *_ = run_distributed(_run_in_turn, 4, [named("whole", STEPS, *grid), named("run", 5, *grid)])[0]
    turns = [
        (4, 10, [*DEEPSPEED, "parallel.zero_stage=3"]),
        (2, 15, [*DEEPSPEED, "parallel.zero_stage=2", "parallel.tensor_parallel_size=2"]),
        (4, STEPS, grid),
    ]
    for ranks, steps, layout in turns:
        (last,) = run_distributed(_run_in_turn, ranks, [named("run", steps, *layout)])[0]
    assert last["state"] == whole["state"]
    assert len(whole["losses"]) == STEPS
    for step, values in whole["losses"].items():
        torch.testing.assert_close(last["losses"][step], values, rtol=1e-5, atol=0, msg=f"step {step}")


def test_what_a_run_must_keep(overrides, tmp_path):
    """Fields that a begun run depends on are refused by name; others may change."""
    refused = {
        "seed=5": "seed is 5, but the run was started with 1234",
        "data.split=[0.9,0.05,0.05]": "data.split",
        "model.init_std=0.1": "model.init_std",
        "checkpoint.resume=false": "checkpoint.resume is false",
        "optim.precision=bf16": "optim.precision is bf16, but the run was started with fp32",
    }
    runs = [
        _named("run", overrides, tmp_path, steps, change)
        for steps, change in [(2, "seed=1234"), *((4, change) for change in refused), (4, "optim.lr=5e-4")]
    ]
    ((first, *others, last),) = run_distributed(_run_in_turn, 1, runs)
    for message, result in zip(refused.values(), others, strict=True):
        assert result["error"].startswith("ConfigError")
        assert message in result["error"]
    assert sorted(last["losses"]) == [1, 2, 3, 4]
    assert {step: last["losses"][step] for step in (1, 2)} == first["losses"]
    assert last["losses"][4][2] == pytest.approx(5e-4 * last["state"]["tokens"] / (32 * 8 * 5))  # in warm-up
