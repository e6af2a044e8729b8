"""Stage code: what it starts from, with a vocabulary that has grown, and training with fill-in-the-middle."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.data.code_tokens import grow_for_code
from megagpt.data.indexed import write_corpus
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import MegaGPTError

STEPS, STOP, BATCH, LENGTH = 12, 7, 8, 32
TENSOR, PIPELINE = ["parallel.tensor_parallel_size=2"], ["parallel.pipeline_parallel_size=2"]
ZERO3 = ["parallel.engine=deepspeed", "parallel.zero_stage=3"]
UNTIED = ["model.tie_embeddings=false"]
EMBEDDING, OUTPUT = "model/embedding.word_embeddings.weight", "model/output_layer.weight"
LARGER = 400  # tokens; with them the padded vocabulary grows too


def _fim_loss(stage) -> float:
    """Mean loss of held-out documents that are all rearranged, on one rank."""
    from megagpt.data.batch import Batch
    from megagpt.data.fim import FillInTheMiddle

    loader, batches = stage.loader, []
    fim, corpus = FillInTheMiddle(loader.tokenizer, rate=1), loader.corpora["validation"][0]
    for index in range(32):
        tokens, mask = (torch.from_numpy(part)[None] for part in fim.sample(corpus[index], index))
        batches.append(Batch(tokens[:, :-1], tokens[:, 1:], mask, torch.arange(LENGTH)[None]))
    return stage.engine.evaluate(iter(batches), len(batches)).loss


def _logits(stage) -> np.ndarray:
    """float32 [1, S, this rank's columns]: logits after a prompt of old tokens."""
    (module,) = stage.engine.modules
    module.eval()
    with torch.no_grad():
        return module(torch.arange(40, 60)[None], torch.arange(20)[None], None).numpy()


def _run(overrides: list[str], train: bool) -> dict:
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.load import load
    from megagpt.config.rules import check
    from megagpt.stages.session import open_run

    config, result = load(overrides), {}
    check(config, dist.get_world_size())
    try:
        with open_run(config) as trainer:
            stage, begun = trainer.stage, trainer.state.step
            if not train and config.parallel.pipeline_parallel_size == 1 and config.parallel.engine == "megatron":
                result["logits"] = _logits(stage)
            measured = config.stage.name == "code" and dist.get_world_size() == 1
            result["before"] = _fim_loss(stage) if measured else None
            if train:
                stage.fit(trainer)
                result["after"] = _fim_loss(stage) if measured else None
        shards = [p for p in stage.shards(for_saving=False) if p.name.startswith("model/")]
        result["shards"] = [replace(shard, data=shard.data.detach().clone().numpy()) for shard in shards]
    except MegaGPTError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        parallel_state.destroy_model_parallel()
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines() if train else []
    return result | {"begun": begun, "losses": [json.loads(line)["loss"] for line in lines]}


def _run_in_turn(runs: dict[str, tuple[list[str], bool]]) -> dict[str, dict]:
    return {name: _run([*overrides, f"run_name={name}"], train) for name, (overrides, train) in runs.items()}


def _table(results: list[dict], name: str = EMBEDDING) -> np.ndarray:
    """A whole tensor, from the shards of all ranks."""
    shards = [shard for result in results for shard in result["shards"] if shard.name == name]
    whole = np.full(shards[0].global_shape, np.nan, np.float32)
    for shard in shards:
        box = whole[tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.shape, strict=True))]
        flat = box.flatten()
        flat[slice(*shard.range)] = shard.data.flatten()
        box[:] = flat.reshape(box.shape)
    return whole


@pytest.fixture(scope="module")
def settings(overrides, tmp_path_factory) -> dict[str, list[str]]:
    """Overrides of the pretrained run, of one that goes on from it with a grown tokenizer, and of its untied twin."""
    folder = tmp_path_factory.mktemp("code")
    given = dict(text.split("=", 1) for text in overrides)
    tokenizer = grow_for_code(Tokenizer.load(given["data.tokenizer"]))
    tokenizer.save(folder / "tokenizer.json")
    lines = ["to be or not", "that is to be", "not that is or", "be to that"]
    texts = [" ".join(lines[(n + k * k) % 4] for k in range(1, 9)) for n in range(120)]
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "text", [(lengths, np.concatenate(documents))], len(documents), about)
    run = [
        *overrides,
        f"runs_dir={folder}",
        "model.hidden_dropout=0",
        "model.attention_dropout=0",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        f"optim.global_batch_size={BATCH}",
        "optim.lr=3e-3",
        f"optim.train_tokens={STEPS * BATCH * LENGTH}",
    ]
    code = [
        *run,
        "stage=code",
        f"checkpoint.load={folder}/base",
        f"model.vocab_size={tokenizer.vocab_size}",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.corpora=[{{path: {folder}/text}}]",
        "data.fim_rate=0.5",
    ]
    return {"base": run, "code": code, "untied": [*code, *UNTIED, f"checkpoint.load={folder}/base_untied"]}


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory) -> dict[str, dict]:
    """Results of the runs on one rank."""
    base, code = settings["base"], settings["code"]
    runs = {
        "base": (base, True),
        "base_untied": ([*base, *UNTIED], True),
        "again": ([*base, f"checkpoint.load={_value(code, 'checkpoint.load')}"], False),
        "loaded": (code, False),
        "whole": (code, True),
        "plain": ([*code, "data.fim_rate=0"], True),
        "parts": ([*code, f"optim.train_tokens={STOP * BATCH * LENGTH}"], True),
    }
    first = run_distributed(_run_in_turn, 1, runs)[0]
    other = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(Path(_value(code, "checkpoint.load")), other)
    train_tokenizer(["another text altogether"] * 3, 270).save(other / "tokenizer.json")
    runs = {
        "parts": (code, True),
        "other": ([*code, f"checkpoint.load={other}"], False),
        "smaller": ([*base, f"checkpoint.load={_value(code, 'runs_dir')}/whole"], False),
    }
    return first | run_distributed(_run_in_turn, 1, runs)[0]


@pytest.fixture(scope="module")
def two(settings, one) -> dict[str, list[dict]]:
    """Results of the runs on two ranks, by rank."""
    code, larger = settings["code"], f"model.vocab_size={LARGER}"
    runs = {
        "dp2": (code, True),
        "tp2": ([*code, *TENSOR], False),
        "tp2_larger": ([*code, *TENSOR, larger], False),
        "pp2_larger": ([*code, *PIPELINE, larger], False),
        "tp2_untied": ([*settings["untied"], *TENSOR, larger], False),
    }
    if importlib.util.find_spec("deepspeed"):
        runs["zero3_larger"] = ([*code, *ZERO3, larger], False)
    ranks = run_distributed(_run_in_turn, 2, runs)
    return {name: [results[name] for results in ranks] for name in runs}


def _value(overrides: list[str], key: str) -> str:
    return next(text.partition("=")[2] for text in reversed(overrides) if text.startswith(f"{key}="))


def test_old_rows_stay_and_new_ones_are_their_mean(settings, one):
    old, new = _table([one["base"]]), _table([one["loaded"]])
    before, after = (int(_value(settings[name], "model.vocab_size")) for name in ("base", "code"))
    assert np.array_equal(new[:before], old[:before])
    mean = old[:before].astype(np.float64).mean(0).astype(np.float32)
    assert np.array_equal(new[before:after], np.tile(mean, (after - before, 1)))
    assert after - before > 30
    assert not new[after:].any()


def test_new_rows_are_the_same_in_every_layout(settings, one, two):
    reference, before = _table([one["loaded"]]), int(_value(settings["base"], "model.vocab_size"))
    assert np.array_equal(_table(two["tp2"]), reference)
    for name in {"tp2_larger", "pp2_larger", "zero3_larger"} & set(two):
        rows = _table(two[name])
        assert np.array_equal(rows[:before], reference[:before])
        assert np.array_equal(rows[before:LARGER], np.tile(reference[before], (LARGER - before, 1)))
        assert rows.shape[0] == 512
        assert not rows[LARGER:].any()


def test_an_output_projection_of_its_own_grows_too(settings, one, two):
    before = int(_value(settings["base"], "model.vocab_size"))
    for name in (EMBEDDING, OUTPUT):
        old, new = _table([one["base_untied"]], name), _table(two["tp2_untied"], name)
        assert np.array_equal(new[:before], old[:before])
        mean = old[:before].astype(np.float64).mean(0).astype(np.float32)
        assert np.array_equal(new[before:LARGER], np.tile(mean, (LARGER - before, 1)))


def test_old_tokens_keep_their_logits_and_new_ones_take_little(settings, one, two):
    before, after = (int(_value(settings[name], "model.vocab_size")) for name in ("base", "code"))
    old, new = one["again"]["logits"], one["loaded"]["logits"]
    assert np.array_equal(new[..., :before], old[..., :before])
    weights = np.exp(new[..., :after] - new[..., :after].max())
    share = weights[..., before:].sum(-1) / weights.sum(-1)
    assert (share <= (after - before) / after + 1e-6).all()
    halves = np.concatenate([rank["logits"] for rank in two["tp2"]], -1)
    np.testing.assert_allclose(halves, new, rtol=1e-4, atol=1e-5)


def test_what_does_not_continue_the_old_vocabulary_is_refused(settings, one):
    sizes = [_value(settings[name], "model.vocab_size") for name in ("base", "code")]
    assert (
        "ConfigError: model.vocab_size ({}) is below the {} of checkpoint.load".format(*sizes)
        in one["smaller"]["error"]
    )
    assert re.search(r"does not begin with the tokens of .*differ from id \d+ on.*--extend", one["other"]["error"])


def test_resume_with_fim_is_bit_exact(one):
    whole, parts = one["whole"], one["parts"]
    assert (whole["begun"], parts["begun"], len(whole["losses"])) == (0, STOP, STEPS)
    assert parts["losses"] == whole["losses"]
    for a, b in zip(whole["shards"], parts["shards"], strict=True):
        assert np.array_equal(a.data, b.data), a.name


def test_two_replicas_train_as_one_rank(one, two):
    for result in two["dp2"]:
        torch.testing.assert_close(result["losses"], one["whole"]["losses"], rtol=1e-5, atol=0)


def test_held_out_fim_gets_better_than_from_plain_text(one):
    whole, plain = one["whole"], one["plain"]
    assert whole["before"] == plain["before"]
    assert whole["after"] < whole["before"] - 0.5
    assert whole["after"] < plain["after"] - 0.1
