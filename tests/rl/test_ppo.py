"""Stage ppo: the same in every layout, exactly resumable in the middle of an iteration, and right in its figures."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.errors import MegaGPTError
from tests.layouts import ON_TWO_RANKS, cases, tried
from tests.rl.tiny_ppo import BATCH, PROMPT, RESPONSE, run_stage_once

STOP = 3
"""Steps before the interruption, in the middle of an iteration."""
LAYOUTS = ON_TWO_RANKS | {
    "each_its_own": [
        "ppo.rollout_parallel.tensor_parallel_size=2",
        "ppo.reference_parallel.pipeline_parallel_size=2",
        "ppo.critic_parallel.tensor_parallel_size=2",
        "ppo.critic_parallel.sequence_parallel=true",
        "ppo.critic_parallel.micro_batch_size=4",
        "ppo.offload=true",
    ],
    "tensor_answers_apart": ["parallel.tensor_parallel_size=2", "ppo.rollout_parallel.micro_batch_size=1"],
    "scored": ["ppo.reward=model", "ppo.reward_parallel.tensor_parallel_size=2"],
    "scored_by_pipeline": ["ppo.reward=model", "parallel.pipeline_parallel_size=2", "ppo.offload=true"],
    "pipeline_answers_apart": ["parallel.pipeline_parallel_size=2", "ppo.rollout_parallel.tensor_parallel_size=2"],
}
if "deepspeed_3" in ON_TWO_RANKS:
    LAYOUTS["deepspeed_3_with_tensor"] = [*LAYOUTS["deepspeed_3"], "ppo.rollout_parallel.tensor_parallel_size=2"]
    LAYOUTS["critic_deepspeed_3"] = [
        "parallel.tensor_parallel_size=2",
        "ppo.critic_parallel.engine=deepspeed",
        "ppo.critic_parallel.zero_stage=3",
        "ppo.critic_parallel.micro_batch_size=2",
    ]
OFTEN = {"sequence", "interleaved", "each_its_own", "scored_by_pipeline", "deepspeed_3_with_tensor"}


def _run(overrides: list[str], stop: int | None = None) -> dict:
    """Train, or only `stop` steps; return the lines of metrics and, as they are then, the episodes and all tensors."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.config.rules import check
    from megagpt.stages.session import open_run

    config = load(overrides)
    try:
        check(config, dist.get_world_size())
        with open_run(config) as trainer:
            begun = trainer.state.step
            if stop:
                limited = replace(trainer.config.optim, train_tokens=stop * BATCH * (PROMPT + RESPONSE))
                trainer.config = replace(trainer.config, optim=limited)
            trainer.stage.fit(trainer)
    except MegaGPTError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        parallel_state.destroy_model_parallel()
    shards = [replace(p, data=p.data.detach().clone().numpy()) for p in trainer.stage.shards(for_saving=False)]
    lines = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    episodes = {shard.name.removeprefix("episodes/"): shard.data for shard in shards if "episodes/" in shard.name}
    return {"begun": begun, "lines": lines, "shards": shards, "episodes": episodes}


def _run_in_turn(runs: dict[str, list[str]], **stops: int) -> dict[str, dict]:
    return {name: _run([*overrides, f"run_name={name}"], stops.get(name)) for name, overrides in runs.items()}


def _run_some(runs: dict[str, list[str]], stop: int) -> dict[str, dict]:
    return _run_in_turn(runs, parts=stop)


def _go_on_from_other_weights(settings: list[str]) -> dict[str, dict]:
    """The run `parts` once more: with other weights under the name of its base, and with the base under another name.

    The base is back in its place afterwards.
    """
    folder = _folder(settings)
    base, renamed = folder / "base", folder / "renamed"
    base.rename(renamed)
    shutil.copytree(folder / "whole", base)
    names = [f"checkpoint.load={renamed}", f"ppo.critic={renamed}"]
    parts = [*settings, "run_name=parts"]
    found = {"other_weights": _run(parts), "renamed": _run([*parts, *names])}
    shutil.rmtree(base)
    renamed.rename(base)
    return found


def _folder(settings: list[str]) -> Path:
    return Path(next(text for text in settings if text.startswith("runs_dir=")).partition("=")[2])


@pytest.fixture(scope="module")
def one(settings) -> dict[str, dict]:
    """Results on one rank."""
    runs = {
        "whole": settings,
        "parts": settings,
        "without_text": [*settings, "ppo.ptx_coefficient=0", "ppo.entropy_coefficient=0"],
        "offloaded": [*settings, "ppo.offload=true"],
        "scored": [*settings, "ppo.reward=model"],
        "unable": [*settings, "ppo.reward=model", f"ppo.reward_model={_folder(settings)}/base"],
        "no_end": [*settings, "ppo.max_new_tokens=1", f"ppo.max_prompt_tokens={PROMPT + RESPONSE - 1}"],
    }
    first = run_distributed(_run_some, 1, runs, STOP)[0]
    results = first | run_distributed(_run_in_turn, 1, {"parts": settings})[0]
    return results | run_distributed(_go_on_from_other_weights, 1, settings)[0]


@pytest.fixture(scope="module")
def two(settings, one, thorough) -> list[dict[str, dict]]:
    """Results of every layout of two ranks, by rank."""
    layouts = tried(LAYOUTS, thorough, OFTEN)
    return run_distributed(_run_in_turn, 2, {name: [*settings, *extra] for name, extra in layouts.items()})


METRICS = ("loss", "value_loss", "score", "reward", "kl", "entropy", "ratio", "pretraining_loss", "explained_variance")


@pytest.mark.slow
@pytest.mark.parametrize("layout", cases(LAYOUTS, OFTEN))
def test_every_layout_learns_as_one_rank(one, two, layout):
    expected, found = one["scored" if "ppo.reward=model" in LAYOUTS[layout] else "whole"], two[0][layout]
    assert np.array_equal(found["episodes"]["tokens"], expected["episodes"]["tokens"])
    for name in METRICS:
        assert any(name in line for line in expected["lines"]), name
        for a, b in zip(expected["lines"], found["lines"], strict=True):
            assert (name in a) == (name in b)
            if name in a:
                assert math.isclose(a[name], b[name], rel_tol=2e-4, abs_tol=2e-5), (name, a["step"])
    for name in ("logprobs", "reference", "values", "advantages", "returns", "scores"):
        np.testing.assert_allclose(found["episodes"][name], expected["episodes"][name], rtol=1e-3, atol=2e-4)
        assert np.array_equal(found["episodes"][name], two[1][layout]["episodes"][name])  # on every rank the same bits


def test_a_reward_model_scores_the_whole_answer_and_nothing_else_does(one):
    scored, checked = one["scored"]["episodes"]["scores"], one["whole"]["episodes"]["scores"]
    assert len(set(scored.tolist())) > len(set(checked.tolist()))
    assert "ConfigError: ppo.reward_model" in one["unable"]["error"]
    assert "never trained to score" in one["unable"]["error"]


def test_resume_in_the_middle_of_an_iteration_is_bit_exact(one):
    whole, parts = one["whole"], one["parts"]
    assert (whole["begun"], parts["begun"]) == (0, STOP)
    same = ("step", *METRICS, "kl_coefficient", "grad_norm", "value_grad_norm")
    for a, b in zip(whole["lines"], parts["lines"], strict=True):
        assert [a.get(name) for name in same] == [b.get(name) for name in same]
    for a, b in zip(whole["shards"], parts["shards"], strict=True):
        assert a.name == b.name
        assert np.array_equal(a.data, b.data), a.name
    kinds = {shard.name.split("/")[0] for shard in whole["shards"]}
    assert kinds == {"model", "optimizer", "critic", "ema", "episodes", "updates"}


def test_a_run_keeps_the_weights_that_it_started_from(one, settings):
    said, base = one["other_weights"]["error"], _folder(settings) / "base"
    assert said.startswith("ConfigError")
    for field in ("checkpoint.load", "ppo.critic"):
        was = f"(from {base}/checkpoints/step_"
        assert f"{field} ({base}) holds other weights than when the run was started {was}" in said
    assert one["renamed"]["begun"] == len([line for line in one["whole"]["lines"] if "loss" in line])


def test_the_first_minibatch_of_an_iteration_sees_the_policy_that_answered(one):
    fresh = [line for line in one["without_text"]["lines"] if "score" in line]
    assert len(fresh) == 2
    for line in fresh:
        assert abs(line["ratio"] - 1) < 1e-3
        assert line["approximate_kl"] < 1e-6
        assert line["clip_fraction"] == 0
    assert abs(fresh[0]["kl"]) < 1e-4  # nothing has been learnt yet
    assert max(line["approximate_kl"] for line in one["without_text"]["lines"]) > 1e-6


def test_what_an_iteration_collects_fits_together(one):
    episodes = {name: torch.from_numpy(np.asarray(value)) for name, value in one["whole"]["episodes"].items()}
    columns = torch.arange(PROMPT + RESPONSE)
    first, last = episodes["prompt_lengths"] - 1, episodes["lengths"] - 1
    mask = (columns >= first[:, None]) & (columns < last[:, None])
    assert not episodes["logprobs"][~mask].any()
    assert not episodes["reference"][~mask].any()
    assert (episodes["logprobs"][mask] < 0).all()
    assert (episodes["lengths"] - episodes["prompt_lengths"] <= RESPONSE).all()
    white = episodes["advantages"][mask]
    torch.testing.assert_close(white.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    fresh = [line for line in one["whole"]["lines"] if "score" in line]
    assert math.isclose(fresh[-1]["score"], episodes["scores"].mean(), rel_tol=1e-5)
    assert math.isclose(fresh[-1]["eos_rate"], episodes["finished"].double().mean())
    assert fresh[0]["kl_coefficient"] == 0.02
    assert 0.02 * 0.99 < fresh[1]["kl_coefficient"] < 0.02 * 1.01
    assert fresh[1]["kl_coefficient"] != 0.02


def test_the_critic_learns_alone_at_first_and_the_mean_follows_the_policy(one):
    lines, shards = one["whole"]["lines"], {shard.name: shard.data for shard in one["whole"]["shards"]}
    assert shards["updates"].tolist() == [len(lines) - 1, len(lines)]
    assert lines[0]["ratio"] == pytest.approx(lines[1]["ratio"], abs=1e-3)  # the first step left the policy as it was
    name = "decoder.final_layernorm.weight"
    assert not np.array_equal(shards[f"ema/{name}"], shards[f"model/{name}"])
    assert np.abs(shards[f"ema/{name}"] - 1).max() < np.abs(shards[f"model/{name}"] - 1).max()


def test_pretraining_text_is_learnt_beside(one):
    with_text, without = one["whole"]["lines"], one["without_text"]["lines"]
    assert with_text[-1]["pretraining_loss"] < with_text[0]["pretraining_loss"] - 0.05
    assert all(line["pretraining_loss"] == 0 for line in without)


def test_models_that_wait_elsewhere_change_nothing(one):
    for a, b in zip(one["whole"]["shards"], one["offloaded"]["shards"], strict=True):
        assert np.array_equal(a.data, b.data), a.name


def test_an_answer_without_an_end_is_penalised(one):
    line = next(line for line in one["no_end"]["lines"] if "score" in line)
    assert line["response_tokens"] == 1
    assert line["reward"] == pytest.approx(line["score"] - (1 - line["eos_rate"]), abs=1e-4)


def test_the_stage_answers_held_out_prompts_before_and_after(settings):
    folder = _folder(settings)
    run_distributed(run_stage_once, 1, [*settings, "run_name=stage", "stage.eval_interval=4"])
    before, after = (
        json.loads((folder / "stage" / name).read_text()) for name in ("evaluation_before.json", "evaluation.json")
    )
    assert (before["step"], after["step"]) == (0, 8)
    assert abs(before["validation_kl"]) < 1e-4 < abs(after["validation_kl"])
    for values in (before, after):
        assert 0 <= values["validation_score"] <= 1
        assert values["validation_loss"] > 0
    samples = [json.loads(line) for line in (folder / "stage" / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "text", "score", "finished"} <= set(samples[0])
    lines = [json.loads(line) for line in (folder / "stage" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_score" in line] == [4]
