"""Stages edit and sft: what is learnt from conversations, in every layout, and going on exactly."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.data.chat import grow_for_chat
from megagpt.data.edits.edit import Edit
from megagpt.data.edits.make import make_edits
from megagpt.data.shapes import edit_messages
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import MegaGPTError
from tests.layouts import ON_TWO_RANKS, cases, tried

LENGTH, BATCH, STEPS, STOP, LEARNING_STEPS = 64, 4, 8, 5, 250


def _asked(edit: Edit) -> str:
    return edit_messages(edit.instruction, edit.input)[0].content


def _run(overrides: list[str]) -> dict:
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.config.rules import check
    from megagpt.evaluate.edits import generate_edits, read_edits, similarity
    from megagpt.evaluate.held_out import evaluate
    from megagpt.model.generation import Generator
    from megagpt.stages.session import open_run

    config, result = load(overrides), {}
    check(config, dist.get_world_size())
    with open_run(config) as trainer:
        engine, loader = trainer.engine, trainer.stage.loader
        result["begun"] = trainer.state.step
        trainer.stage.fit(trainer)
        result["held_out"] = evaluate(engine, loader, "validation", None)["loss"]
        if config.optim.train_tokens == LEARNING_STEPS * BATCH * LENGTH:
            held_out = {c.messages[0].content for c in loader.conversations["validation"]}
            edits = [e for e in read_edits(Path(config.data.conversations[0])) if _asked(e) in held_out]
            answers = generate_edits(Generator(engine.modules, config, loader.tokenizer), edits, 24)
            pairs = zip(edits, answers, strict=True)
            result["similarity"] = np.mean([similarity(edit.output, answer) for edit, answer in pairs])
            result["unchanged"] = np.mean([similarity(edit.output, edit.input) for edit in edits])
    shards = [shard for shard in engine.shards(for_saving=False) if shard.name.startswith("model/")]
    result["shards"] = [replace(shard, data=shard.data.detach().clone().numpy()) for shard in shards]
    parallel_state.destroy_model_parallel()
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    return result | {"losses": [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]}


def _stage(overrides: list[str]) -> None:
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.stages.session import run_stage

    assert run_stage(load(overrides)) == 0
    parallel_state.destroy_model_parallel()


def _run_in_turn(runs: dict[str, list[str]]) -> dict[str, dict]:
    return {name: _run([*overrides, f"run_name={name}"]) for name, overrides in runs.items()}


def _go_on_from_other_weights(settings: list[str]) -> dict[str, str]:
    """What the run `parts` says, once more, without its base, and with other weights in its place."""
    from megatron.core import parallel_state

    (load,) = [text.partition("=")[2] for text in settings if text.startswith("checkpoint.load=")]
    base, kept, said = Path(load), Path(f"{load}_kept"), {}
    base.rename(kept)
    for name in ("gone", "other_weights"):
        if name == "other_weights":
            shutil.copytree(base.with_name("whole"), base)
        try:
            _run([*settings, "run_name=parts"])
            said[name] = ""
        except MegaGPTError as error:
            said[name] = str(error)
            parallel_state.destroy_model_parallel()
    shutil.rmtree(base)
    kept.rename(base)
    return said


@pytest.fixture(scope="module")
def settings(overrides, tmp_path_factory) -> list[str]:
    """Overrides of a run that learns edits from a model of a few steps."""
    folder = tmp_path_factory.mktemp("edit")
    given = dict(text.split("=", 1) for text in overrides)
    tokenizer = grow_for_chat(Tokenizer.load(given["data.tokenizer"]))
    tokenizer.save(folder / "tokenizer.json")
    words = random.Random(0)
    texts = [" ".join(words.choices(["to", "be", "or", "not"], k=3)) + "." for _ in range(600)]
    edits = make_edits(["\n\n".join(texts)], 160, kinds=["uppercase"], max_chars=16)
    (folder / "edits.jsonl").write_text("".join(json.dumps(edit.record()) + "\n" for edit in edits))
    run = [
        *overrides,
        f"runs_dir={folder}",
        "model.hidden_dropout=0",
        "model.attention_dropout=0",
        "optim.lr=3e-3",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        f"optim.global_batch_size={BATCH}",
        "optim.warmup_tokens=0",
        f"model.sequence_length={LENGTH}",
        "parallel.micro_batch_size=2",
    ]
    base = [*run, "run_name=base", f"optim.train_tokens={4 * BATCH * LENGTH}", "parallel.micro_batch_size=1"]
    run_distributed(_stage, 1, base)
    return [
        *run,
        "stage=edit",
        f"checkpoint.load={folder}/base",
        f"model.vocab_size={tokenizer.vocab_size}",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.conversations=[{folder}/edits.jsonl]",
        f"optim.train_tokens={STEPS * BATCH * LENGTH}",
    ]


@pytest.fixture(scope="module")
def one(settings) -> dict[str, dict]:
    """Results on one rank."""
    learning = LEARNING_STEPS * BATCH * LENGTH
    runs = {
        "whole": settings,
        "parts": [*settings, f"optim.train_tokens={STOP * BATCH * LENGTH}"],
        "unpacked": [*settings, "data.packing=false"],
        "learnt": [*settings, f"optim.train_tokens={learning}", f"optim.decay_tokens={learning}"],
    }
    first = run_distributed(_run_in_turn, 1, runs)[0]
    results = first | run_distributed(_run_in_turn, 1, {"parts": settings})[0]
    return results | run_distributed(_go_on_from_other_weights, 1, settings)[0]


@pytest.fixture(scope="module")
def two(settings, one, thorough) -> dict[str, dict]:
    """Results of the first rank in every layout of two."""
    small = ["parallel.micro_batch_size=1"]  # the interleaved schedule takes as many micro-batches as stages
    return run_distributed(
        _run_in_turn, 2, {name: [*settings, *small, *o] for name, o in tried(ON_TWO_RANKS, thorough).items()}
    )[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", cases(ON_TWO_RANKS))
def test_every_layout_learns_as_one_rank(one, two, layout):
    torch.testing.assert_close(two[layout]["losses"], one["whole"]["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two[layout]["held_out"], one["whole"]["held_out"], rtol=1e-5, atol=1e-6)


def test_resume_is_bit_exact(one):
    whole, parts = one["whole"], one["parts"]
    assert (whole["begun"], parts["begun"], len(whole["losses"])) == (0, STOP, STEPS)
    assert parts["losses"] == whole["losses"]
    for a, b in zip(whole["shards"], parts["shards"], strict=True):
        assert np.array_equal(a.data, b.data), a.name


def test_weights_that_a_run_started_from_may_go_and_must_not_change(one):
    assert one["gone"] == ""
    assert "checkpoint.load (" in one["other_weights"]
    assert "holds other weights than when the run was started (from " in one["other_weights"]


def test_held_out_edits_are_learnt(one):
    learnt, begun = one["learnt"], one["whole"]
    assert learnt["held_out"] < 0.25 * begun["losses"][0]
    assert learnt["similarity"] > learnt["unchanged"] + 0.15


def test_packing_changes_how_many_are_seen_and_not_what_is_learnt(one):
    assert one["unpacked"]["losses"] != one["whole"]["losses"]
    assert one["unpacked"]["held_out"] > one["whole"]["held_out"]  # fewer conversations in as many rows


def test_the_stage_measures_edits_before_and_after(settings):
    folder = Path(next(text for text in settings if text.startswith("runs_dir=")).partition("=")[2])
    edits = (folder / "edits.jsonl").read_text().splitlines()[:6]
    (folder / "held_out.jsonl").write_text("\n".join(edits))
    held_out = f"stage.held_out_edits={folder}/held_out.jsonl"
    run_distributed(_stage, 1, [*settings, "run_name=stage", "optim.train_epochs=2", held_out])
    before, after = (
        json.loads((folder / "stage" / name).read_text()) for name in ("evaluation_before.json", "evaluation.json")
    )
    assert (before["step"], before["edits"], before["edit_exact_match"]) == (0, 6, 0)
    assert after["loss"] < before["loss"]
    assert before["unchanged_similarity"] == after["unchanged_similarity"] < 1
    assert before["edit_similarity"] != after["edit_similarity"]
    saved = (folder / "stage" / "config.yaml").read_text()
    tokens = after["step"] * BATCH * LENGTH
    assert f"train_tokens: {tokens}" in saved
    assert f"decay_tokens: {tokens}" in saved
