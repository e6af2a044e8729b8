"""Stage reward: what is learnt, alike in every layout; resuming; the shift; and the scores that others read."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt import cli
from megagpt.checkpoint import find
from megagpt.config.load import load
from megagpt.data.chat import grow_for_chat
from megagpt.data.ranked_loader import RankedLoader, encode_ranking
from megagpt.data.rankings import read_rankings
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import MegaGPTError
from megagpt.stages.reward import demonstrations
from tests.layouts import ON_TWO_RANKS, cases, tried

BATCH, STOP, LEARNING = 16, 2, 8


def rankings(count: int) -> list[dict]:
    """Prompts with 2 to 4 answers, of which that is better which says "to" more often; some are ties."""
    rng, records = random.Random(0), []
    for number in range(count):
        texts = [" ".join(rng.choices(["to", "be", "not"], k=rng.randint(1, 5))) for _ in range(2 + number % 3)]
        answers = [{"content": text, "rank": 5 - text.split().count("to")} for text in texts]
        records.append({"messages": [{"role": "user", "content": f"is {number}"}], "answers": answers})
    return records


def _run(overrides: list[str]) -> dict:
    """Train as told; returns losses, held-out figures, the demonstrations' scores, and the model's shards."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.rules import check
    from megagpt.evaluate.scores import evaluate_rankings, score
    from megagpt.stages.scoring import frozen_engine, reward_model_config
    from megagpt.stages.session import open_run
    from megagpt.train.objectives import RewardObjective

    config = load(overrides)
    check(config, dist.get_world_size())
    with open_run(config) as trainer:
        begun, engine, loader = trainer.state.step, trainer.engine, trainer.stage.loader
        trainer.stage.fit(trainer)
        rankings = evaluate_rankings(engine, config, loader.tokenizer, loader.held_out("validation", None))
        saved = reward_model_config(config, config.run_dir, "run_name")
        shown = score(frozen_engine(saved, RewardObjective())[0], saved, loader.tokenizer, trainer.stage.demonstrations)
        result = {"begun": begun, "rankings": rankings, "shown": shown}
    shards = [shard for shard in engine.shards(for_saving=False) if shard.name.startswith("model/")]
    result["shards"] = [replace(shard, data=shard.data.detach().clone().numpy()) for shard in shards]
    parallel_state.destroy_model_parallel()
    lines = map(json.loads, (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines())
    return result | {"curve": [(line["loss"], line["accuracy"], line["margin"]) for line in lines if "loss" in line]}


def _base(overrides: list[str]) -> None:
    from megatron.core import parallel_state

    from megagpt.stages.session import run_stage

    run_stage(load(overrides))
    parallel_state.destroy_model_parallel()


def _run_in_turn(runs: dict[str, list[str]]) -> dict[str, dict]:
    return {name: _run([*overrides, f"run_name={name}"]) for name, overrides in runs.items()}


def _one_rank(settings: list[str]) -> dict[str, dict]:
    first = _run_in_turn({"whole": settings, "learnt": [*settings, f"optim.train_epochs={LEARNING}", "optim.lr=5e-3"]})
    runs = Path(load(settings).runs_dir)
    middle = Path("checkpoints", f"step_{STOP:08}")
    shutil.copytree(runs / "whole" / middle, runs / "resumed" / middle)
    refused = {"refused": _refusals(settings, runs / "whole")}
    again = [*settings, f"checkpoint.load={runs}/whole"]
    return first | _run_in_turn({"resumed": settings, "again": again}) | refused


def _choose(engine: str, settings: list[str]) -> dict[str, dict]:
    """A run that chooses its best checkpoint, the same from its first one on, and that one's scores."""
    overrides = [*settings, "checkpoint.best_metric=validation_loss", "stage.eval_interval=1", "checkpoint.interval=0"]
    overrides += ON_TWO_RANKS.get(engine, [])
    result, runs = _run_in_turn({f"chosen_{engine}": overrides}), Path(load(settings).runs_dir)
    begin = Path("checkpoints", "step_00000001")  # the best so far, as the first always is
    shown = {"shown": _shown_at(settings, runs / f"chosen_{engine}" / begin)}
    shutil.copytree(runs / f"chosen_{engine}" / begin, runs / f"resumed_{engine}" / begin)
    return result | shown | _run_in_turn({f"resumed_{engine}": overrides})


def _shown_at(overrides: list[str], folder: Path) -> np.ndarray:
    """Scores of the demonstrations by the model of one checkpoint."""
    from megatron.core import parallel_state

    from megagpt.evaluate.scores import score
    from megagpt.parallel import launch
    from megagpt.stages.scoring import frozen_engine, reward_model_config
    from megagpt.train.objectives import RewardObjective

    config = load(overrides)
    launch.initialize(config.parallel, config.seed)
    scored = reward_model_config(config, str(folder), "the checkpoint")
    loader = RankedLoader(config)
    shown = score(frozen_engine(scored, RewardObjective())[0], scored, loader.tokenizer, demonstrations(config, loader))
    parallel_state.destroy_model_parallel()
    return shown


def _fine_tune(runs: dict[str, list[str]]) -> dict[str, str]:
    """What each run says that cannot go on; nothing for those that can."""
    from megatron.core import parallel_state

    from megagpt.stages.session import run_stage

    said = {}
    for name, overrides in runs.items():
        try:
            run_stage(load([*overrides, f"run_name={name}"]))
        except MegaGPTError as error:
            said[name] = str(error)
        parallel_state.destroy_model_parallel()
    return said


def _losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _refusals(settings: list[str], run: Path) -> dict[str, str]:
    """What is said where a reward model is taken for a language model."""
    from megatron.core import parallel_state

    from megagpt.checkpoint.convert.convert import convert
    from megagpt.config.schema import ParallelConfig
    from megagpt.model.generation import Generator
    from megagpt.parallel.megatron import MegatronEngine
    from megagpt.stages.weights import load_model, load_weights

    said = {}
    config, engine, tokenizer = load_model(run, ParallelConfig())
    language = load([*settings, f"checkpoint.load={run}", "model.head=tokens"])
    for name, attempt in {
        "generate": lambda: Generator(engine.modules, config, tokenizer),
        "start": lambda: load_weights(language, MegatronEngine(language, None, training=False)),
        "convert": lambda: convert(run, run.parent / "converted", "huggingface"),
    }.items():
        try:
            attempt()
        except MegaGPTError as error:
            said[name] = str(error)
    parallel_state.destroy_model_parallel()
    return said


@pytest.fixture(scope="module")
def settings(overrides, tmp_path_factory) -> list[str]:
    """Overrides of a run that learns from rankings; the run that it starts from is there."""
    folder = tmp_path_factory.mktemp("reward")
    given = dict(text.split("=", 1) for text in overrides)
    tokenizer = grow_for_chat(Tokenizer.load(given["data.tokenizer"]))
    tokenizer.save(folder / "tokenizer.json")
    (folder / "rankings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rankings(90)))
    common = [*overrides, f"runs_dir={folder}", "optim.ramp_start=null", "optim.ramp_tokens=0"]
    common += [f"optim.global_batch_size={BATCH}", "optim.warmup_tokens=0", "model.tie_embeddings=false"]
    reward = [
        *common,
        "stage=reward",
        f"checkpoint.load={folder}/base",
        f"model.vocab_size={tokenizer.vocab_size}",
        "model.hidden_dropout=0",
        "model.attention_dropout=0",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.rankings=[{folder}/rankings.jsonl]",
        "parallel.micro_batch_size=2",
        f"checkpoint.interval={STOP}",
        "checkpoint.keep_last=9",
    ]
    run_distributed(_base, 1, [*common, "run_name=base", f"optim.train_tokens={4 * BATCH * 32}"])
    return reward


@pytest.fixture(scope="module")
def one(settings) -> dict[str, dict]:
    """Results on one rank."""
    return run_distributed(_one_rank, 1, settings)[0]


@pytest.fixture(scope="module")
def two(settings, one, thorough) -> list[dict[str, dict]]:
    """Results of both ranks in every layout of two."""
    small = ["parallel.micro_batch_size=1"]  # the interleaved schedule takes as many micro-batches as stages
    return run_distributed(
        _run_in_turn, 2, {name: [*settings, *small, *o] for name, o in tried(ON_TWO_RANKS, thorough).items()}
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", cases(ON_TWO_RANKS))
def test_every_layout_learns_and_scores_as_one_rank(one, two, layout):
    expected = one["whole"]
    for rank in two:
        torch.testing.assert_close(rank[layout]["curve"], expected["curve"], rtol=1e-4, atol=1e-5)
        # Scores after some steps, whose rounding differs between layouts; they are of the order of 1.
        np.testing.assert_allclose(rank[layout]["shown"], expected["shown"], rtol=1e-3, atol=1e-4)
        for name in ("loss", "accuracy", "margin", "pairs", "longer_accuracy"):
            assert rank[layout]["rankings"][name] == pytest.approx(expected["rankings"][name], rel=1e-3, abs=1e-4)


def test_resume_is_bit_exact(one):
    whole, resumed = one["whole"], one["resumed"]
    assert (whole["begun"], resumed["begun"]) == (0, STOP)
    assert resumed["curve"] == whole["curve"][STOP:]
    assert len(resumed["curve"]) > 1
    for a, b in zip(whole["shards"], resumed["shards"], strict=True):
        assert np.array_equal(a.data, b.data), a.name


def test_held_out_rankings_are_learnt_better_than_from_lengths(one):
    rankings = one["learnt"]["rankings"]
    assert rankings["accuracy"] > 0.15 + max(rankings[f"{by}_accuracy"] for by in ("chance", "longer", "shorter"))
    assert rankings["length_balanced_accuracy"] > 0.65
    assert rankings["loss"] < 0.75 * one["whole"]["curve"][0][0]
    assert sum(part["pairs"] for part in rankings["reliability"]) == rankings["pairs"]


@pytest.mark.parametrize("run", ["whole", "resumed", "learnt", "again"])
def test_demonstrations_score_0_on_average_in_what_is_saved(one, run, settings):
    shown = one[run]["shown"]
    assert abs(shown.mean()) < 1e-5
    assert shown.std() > 0.01


def test_answers_of_a_file_are_scored(one, settings, capsys):
    config = load(settings)
    run, (file,) = Path(config.runs_dir) / "whole", config.data.rankings
    assert cli.run(["score", "--checkpoint", str(run), "--rankings", file]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    loader, scores = RankedLoader(config), {}
    for ranking, line in zip(read_rankings([file]), lines, strict=True):
        assert tuple(line["ranks"]) == ranking.ranks
        rows = encode_ranking(loader.tokenizer, ranking).rows
        scores |= {row.tobytes(): value for row, value in zip(rows, line["scores"], strict=True)}
    shown = [scores[row.tobytes()] for row in demonstrations(config, loader)]
    np.testing.assert_allclose(shown, one["whole"]["shown"], rtol=1e-4, atol=1e-5)


def test_a_reward_model_is_not_taken_for_a_language_model(one):
    said = one["refused"]
    assert "which generates no text" in said["generate"]
    assert "start from a language model" in said["start"]
    assert "which no format of language models holds" in said["convert"]


@pytest.mark.parametrize(
    "engine", ["megatron", *(pytest.param(f"deepspeed_{stage}", marks=pytest.mark.slow) for stage in (1, 3))]
)
def test_the_best_checkpoint_is_shifted_and_training_does_not_notice(one, settings, engine):
    found, runs = run_distributed(_choose, 1, engine, settings)[0], Path(load(settings).runs_dir)
    chosen, resumed = found[f"chosen_{engine}"], found[f"resumed_{engine}"]
    assert abs(found["shown"].mean()) < 1e-5
    assert found["shown"].std() > 0.01
    assert (chosen["begun"], resumed["begun"]) == (0, 1)
    assert resumed["curve"] == chosen["curve"][1:]
    assert find(runs / f"resumed_{engine}").name == find(runs / f"chosen_{engine}").name
    for a, b in zip(chosen["shards"], resumed["shards"], strict=True):
        assert np.array_equal(a.data, b.data), a.name
    if engine == "megatron":
        assert chosen["curve"] == one["whole"]["curve"]
        for a, b in zip(one["whole"]["shards"], chosen["shards"], strict=True):
            assert np.array_equal(a.data, b.data), a.name


@pytest.mark.slow
def test_fine_tuning_is_chosen_by_a_reward_model(one, settings):
    runs = Path(load(settings).runs_dir)
    talks = [
        {"messages": [*record["messages"], {"role": "assistant", "content": answer["content"]}]}
        for record in rankings(90)
        for answer in record["answers"][:1]
    ]
    (runs / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    sft = [
        *settings,
        "stage=sft",
        "model.head=tokens",
        f"data.conversations=[{runs}/talks.jsonl]",
        "data.rankings=[]",
        f"stage.reward_model={runs}/whole",
        "stage.reward_prompts=4",
        "stage.sample_tokens=6",
        "stage.eval_interval=2",
        "checkpoint.best_metric=validation_reward",
        "checkpoint.interval=0",
        "optim.train_tokens=3584",
        "optim.lr=1e-2",
        "data.split=[0.8,0.2,0]",
        "model.hidden_dropout=0.1",
    ]
    said = run_distributed(
        _fine_tune,
        1,
        {
            "alone": sft,
            "unwatched": [*sft, "stage.reward_model=null", "checkpoint.best_metric=null"],
            "unknown": [*sft, "checkpoint.best_metric=validation_rewards"],
            "unable": [*sft, f"stage.reward_model={runs}/base"],
        },
    )[0]
    assert set(said) == {"unknown", "unable"}
    assert "checkpoint.best_metric (validation_rewards)" in said["unknown"] and "validation_reward" in said["unknown"]
    assert "never trained to score" in said["unable"]
    (begun,) = [path for path in (runs / "alone/checkpoints").glob("step_*") if path.name < "step_00000007"][:1]
    shutil.copytree(begun, runs / "resumed_talks/checkpoints" / begun.name)
    assert run_distributed(_fine_tune, 1, {"resumed_talks": sft}) == [{}]
    assert _losses(runs / "unwatched") == _losses(runs / "alone")  # a model that looks on draws no random numbers
    later = {step: loss for step, loss in _losses(runs / "alone").items() if step > int(begun.name[-8:])}
    assert _losses(runs / "resumed_talks") == later
    still = ["model.hidden_dropout=0", "parallel.micro_batch_size=1"]
    layout = ["parallel.tensor_parallel_size=2"]
    assert run_distributed(_fine_tune, 1, {"still": [*sft, *still]}) == [{}]
    assert run_distributed(_fine_tune, 2, {"shared": [*sft, *still, *layout]}) == [{}, {}]
    found = {}
    for name in ("still", "shared"):
        lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
        found[name] = {line["step"]: line["validation_reward"] for line in lines if "validation_reward" in line}
        assert list(found[name]) == [2, 4, 6, 7]
        best = max(found[name], key=found[name].get)
        assert find(runs / name).name == f"step_{best:08}"
    assert len(set(found["still"].values())) > 1
    assert found["shared"] == pytest.approx(found["still"], rel=1e-3, abs=1e-4)


def test_a_reward_run_is_what_others_start_from(one):
    whole, again = one["whole"], one["again"]
    assert again["begun"] == 0
    assert again["curve"][0][0] < whole["curve"][0][0]  # on the same prompts
