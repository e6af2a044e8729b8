"""Stage embed beside sentence-transformers: the same weights, pairs and order give the same losses and weights."""

import json
import random
from pathlib import Path

import pytest
import torch
from bench_train import transformers_model
from dist import run_distributed

from megagpt.checkpoint.convert.hugging_face import parts
from megagpt.config.load import load
from megagpt.config.schema import Config, ModelConfig

pytest.importorskip("sentence_transformers")

BATCH, STEPS, TEMPERATURE, RATE, CLIP = 16, 20, 0.05, 1e-4, 1.0
WORDS = ["to", "be", "or", "not", "that", "is"]
SINGLE, CACHED = {"single": BATCH}, {"cached": 4}
"""Pairs of a micro-batch: one pass over the whole batch, or two passes over parts of it."""


def _ours(settings: list[str]) -> dict[str, dict]:
    return {name: _train([*settings, f"run_name={name}"], size) for name, size in (SINGLE | CACHED).items()}


def _train(settings: list[str], micro_batch_size: int) -> dict:
    """Train; returns first and last weights, the curve, and the tokens of every step's texts, in the order of pairs."""
    from megatron.core import parallel_state

    from megagpt.model.parameters import named_boxes
    from megagpt.stages.session import open_run

    config = load([*settings, f"parallel.micro_batch_size={micro_batch_size}"])
    with open_run(config) as trainer:
        engine, loader = trainer.engine, trainer.stage.loader
        first = {name: value.detach().clone() for name, value, _ in named_boxes(engine.modules)}
        steps = [_tokens(list(loader.micro_batches(step * BATCH, BATCH, 0, 1))) for step in range(STEPS)]
        trainer.stage.fit(trainer)
        last = {name: value.detach().clone() for name, value, _ in named_boxes(engine.modules)}
    parallel_state.destroy_model_parallel()
    lines = map(json.loads, (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines())
    curve = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    return {"first": first, "last": last, "curve": curve, "steps": steps}


def _tokens(batches: list) -> list[list[list[int]]]:
    """Token ids of the queries, the documents and the negatives of a step."""
    found = {}
    for batch in batches:
        for place, tokens, end in zip(
            batch.places.tolist(), batch.tokens.tolist(), batch.labels.tolist(), strict=False
        ):
            found[place] = tokens[: end + 1]
    return [[found[kind * BATCH + pair] for pair in range(BATCH)] for kind in range(3)]


@pytest.fixture(scope="module")
def settings(overrides, tmp_path_factory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("peer"), random.Random(0)

    def text(number: int) -> str:
        return f"{number} " + " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))

    records = [
        {
            "query": text(n),
            "positive": text(n),
            "negatives": [text(n + 1000)],
            "text_ids": [3 * n, 3 * n + 1, 3 * n + 2],
        }
        for n in range(BATCH * 4)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = [*overrides, f"runs_dir={folder}", "optim.ramp_start=null", "optim.ramp_tokens=0"]
    common += [f"optim.global_batch_size={BATCH}", "model.hidden_dropout=0", "model.attention_dropout=0"]
    common += ["model.attention_pattern=[dense]"]
    run_distributed(_base, 1, [*common, "run_name=base", f"optim.train_tokens={2 * BATCH * 32}"])
    return [
        *common,
        "stage=embed",
        f"checkpoint.load={folder}/base",
        f"data.pairs=[{folder}/pairs.jsonl]",
        "data.split=[1,0,0]",
        "embed.hard_negatives=1",
        "embed.learn_temperature=false",
        f"embed.temperature={TEMPERATURE}",
        f"optim.train_epochs={STEPS / 4}",
        f"optim.lr={RATE}",
        "optim.min_lr_ratio=1",
        "optim.warmup_tokens=0",
        f"optim.clip_grad={CLIP}",
    ]


def _base(overrides: list[str]) -> None:
    from megatron.core import parallel_state

    from megagpt.stages.session import run_stage

    run_stage(load(overrides))
    parallel_state.destroy_model_parallel()


@pytest.fixture(scope="module")
def ours(settings) -> dict[str, dict]:
    return run_distributed(_ours, 1, settings)[0]


def _peer(model: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.nn.Sequential:
    """The same model of transformers, with sentence-transformers' modules behind it."""
    from sentence_transformers.sentence_transformer import modules

    theirs = transformers_model(model, "gelu_new").transformer
    theirs.load_state_dict(_to_hugging_face(weights, model))

    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gpt = theirs

        def forward(self, features):
            hidden = self.gpt(features["input_ids"], attention_mask=features["attention_mask"]).last_hidden_state
            return features | {"token_embeddings": hidden}

    pooling = modules.Pooling(model.hidden_size, pooling_mode="lasttoken")
    return torch.nn.Sequential(Transformer(), pooling, modules.Normalize())


def _to_hugging_face(ours: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    return {
        part.name.removeprefix("transformer."): part.take(tensor)
        for name, tensor in ours.items()
        for part in parts("GPT2LMHeadModel", name, tuple(tensor.shape), model)
    }


def _features(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": tokens, "attention_mask": mask}


def _loss(name: str, model: torch.nn.Module) -> torch.nn.Module:
    from sentence_transformers.sentence_transformer import losses

    how = {
        "scale": 1 / TEMPERATURE,
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    if name == "single":
        return losses.MultipleNegativesRankingLoss(model, **how)
    return losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4, **how)


def _train_peer(name: str, config: Config, ours: dict) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Losses and gradient norms of every step, and the last weights, by torch's AdamW."""
    model = _peer(config.model, ours["first"])
    loss_of, optim = _loss(name, model), config.optim
    parameters = [value for value in model.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in parameters if value.dim() > 1]},
        {"params": [value for value in parameters if value.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, RATE, (optim.beta1, optim.beta2), optim.eps, optim.weight_decay)
    curve = []
    for texts in ours["steps"]:
        adam.zero_grad()
        loss = loss_of([_features(rows) for rows in texts], None)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
        curve.append((loss.item(), norm.item()))
    return curve, dict(model[0].gpt.named_parameters())


@pytest.mark.parametrize("name", ["single", "cached"])
def test_twenty_steps_are_those_of_sentence_transformers(name, ours, settings):
    config = load(settings)
    curve, weights = _train_peer(name, config, ours[name])
    assert len(curve) == STEPS
    assert curve[-1][0] < 0.95 * curve[0][0]  # something is learnt
    torch.testing.assert_close(ours[name]["curve"], curve, rtol=1e-5, atol=1e-5)
    reached = _to_hugging_face(ours[name]["last"], config.model)
    for key, value in weights.items():
        if not key.endswith("attn.c_attn.bias"):  # a key's bias has no gradient but rounding, by which Adam moves it
            # Adam also moves what has little gradient but rounding: a hundredth of the way of 20 steps is allowed.
            torch.testing.assert_close(reached[key], value, rtol=1e-4, atol=2e-5)


def test_one_pass_and_two_passes_learn_the_same(ours):
    torch.testing.assert_close(ours["single"]["curve"], ours["cached"]["curve"], rtol=1e-5, atol=1e-5)
