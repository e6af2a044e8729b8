"""Embedding models become folders that sentence-transformers loads, which gives the vectors that ours gives."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megagpt import cli
from megagpt.checkpoint.convert.convert import convert
from megagpt.config.embedding import EmbedConfig
from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig, StageConfig
from megagpt.data.text_batch import SIDES
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import CheckpointError
from megagpt.parallel import launch
from megagpt.stages.embedding import load_embedder
from tests.runs import save_random_run

sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "to be",
    "def add(a, b):\n    return a + b",
    "    indented, and white space behind  \n\n",
    "[brackets] {braces}",
    "naïve café, 日本語, 😀, \x00",
    "<|endoftext|> is text here, as is <|prefix|>",
    "that is the question " * 40,
    "日本語" * 60,
]
MODEL = ModelConfig(
    name="tiny",
    num_layers=3,
    hidden_size=64,  # 4 heads of 16: GPT-Neo's factor of the queries is exact
    num_attention_heads=4,
    sequence_length=48,
    head="embedding",
    init_std=0.2,  # so that attention matters
)
BANDED = replace(MODEL, attention_pattern=("dense", "banded"), attention_window=5)
LLAMA = replace(
    MODEL,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    num_query_groups=2,
    tie_embeddings=False,
)
CASES = {
    "dense": (MODEL, EmbedConfig()),
    "banded": (BANDED, EmbedConfig()),
    "llama": (LLAMA, EmbedConfig()),
    "qwen": (replace(LLAMA, qk_layernorm=True), EmbedConfig(max_tokens=31)),
    "fixed_temperature": (MODEL, EmbedConfig(learn_temperature=False, temperature=0.05)),
    "same_delimiters": (MODEL, EmbedConfig(document_prefix="[", document_suffix="]")),
    "no_delimiters": (BANDED, EmbedConfig("", "", "", "")),
    "one_side_alone": (MODEL, EmbedConfig("", "", "doc: ", "")),
    "long_delimiters": (MODEL, EmbedConfig("Question: ", "\n\nAnswer:", "Context: ", "\n---\n", max_tokens=32)),
    "short": (MODEL, EmbedConfig(max_tokens=7, dimensions=(16, 32))),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["to be or not to be, that is the question: add(a, b) [x] {y} " * 30], 320)


@pytest.fixture
def megagpt(capsys):
    """Runs a command line that succeeds and returns what it prints."""

    def call(*arguments: object) -> str:
        assert cli.run(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def random_run(folder: Path, model: ModelConfig, embed: EmbedConfig, tokenizer: Tokenizer, precision="fp32") -> Path:
    optim, stage = OptimConfig(precision=precision), StageConfig("embed" if model.head == "embedding" else "pretrain")
    return save_random_run(folder, Config(model=model, embed=embed, optim=optim, stage=stage), tokenizer, noise=0.05)


def our_vectors(run: Path, dimensions: int | None = None) -> dict[str, np.ndarray]:
    embedder = load_embedder(run, ParallelConfig())
    try:
        return {side: embedder.embed(TEXTS, side, dimensions) for side in SIDES}
    finally:
        launch.shutdown()


def theirs(folder: Path, **options):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", **options)


@pytest.mark.parametrize("name", CASES)
def test_both_give_the_same_vectors(name, tmp_path, tokenizer):
    run = random_run(tmp_path / "run", *CASES[name], tokenizer)
    ours = our_vectors(run)
    result = convert(run, tmp_path / "folder", "sentence-transformers")
    assert result.difference < 1e-5
    assert result.dropped == ()
    model = theirs(tmp_path / "folder")
    for side, encode in (("query", model.encode_query), ("document", model.encode_document)):
        together = encode(TEXTS)
        alone = np.stack([encode(text) for text in TEXTS])
        assert together.dtype == np.float32
        assert np.abs(together - ours[side]).max() < 1e-5
        assert np.abs(alone - ours[side]).max() < 1e-5
    assert np.abs(model.encode(TEXTS) - ours["document"]).max() < 1e-5
    assert np.abs(ours["document"][0] - ours["document"][1]).max() > 0.05  # there is something to tell apart
    assert (np.abs(ours["query"] - ours["document"]).max() > 0.05) == (name not in ("same_delimiters", "no_delimiters"))
    assert model.max_seq_length == (CASES[name][1].max_tokens or MODEL.sequence_length)


def test_beginnings_of_vectors(tmp_path, tokenizer):
    run = random_run(tmp_path / "run", *CASES["short"], tokenizer)
    ours = our_vectors(run, 16)
    convert(run, tmp_path / "folder", "sentence-transformers", prove=False)
    model = theirs(tmp_path / "folder", truncate_dim=16)
    assert np.abs(model.encode_query(TEXTS, normalize_embeddings=True) - ours["query"]).max() < 1e-5
    readme = (tmp_path / "folder/README.md").read_text()
    assert "The first 16 or 32 numbers" in readme
    assert '`"{" + text + "}<|endoftext|>"` of a document' in readme


def test_weights_are_there_once(tmp_path, tokenizer, monkeypatch):
    run = random_run(tmp_path / "run", *CASES["dense"], tokenizer)
    convert(run, tmp_path / "linked", "sentence-transformers", prove=False)
    first, second = (tmp_path / "linked" / side / "model.safetensors" for side in SIDES)
    assert first.samefile(second)
    assert not (first.parent / "config.json").samefile(second.parent / "config.json")

    def refuse(*_) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    convert(run, tmp_path / "copied", "sentence-transformers")
    first, second = (tmp_path / "copied" / side / "model.safetensors" for side in SIDES)
    assert not first.samefile(second)
    assert first.read_bytes() == second.read_bytes()


def test_shards(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("megagpt.checkpoint.convert.safetensors_files.SHARD_BYTES", 100_000)
    run = random_run(tmp_path / "run", *CASES["dense"], tokenizer)
    assert convert(run, tmp_path / "folder", "sentence-transformers").difference < 1e-5
    assert (tmp_path / "folder/query/model.safetensors.index.json").exists()


@pytest.mark.parametrize("name", ["dense", "banded", "llama"])
def test_bf16(name, tmp_path, tokenizer):
    """The weights keep their precision and are computed with in fp32, here and in the proof."""
    run = random_run(tmp_path / "run", *CASES[name], tokenizer, precision="bf16")
    assert convert(run, tmp_path / "folder", "sentence-transformers").difference < 1e-5
    weights = load_file(tmp_path / "folder/query/model.safetensors")
    assert sum(weight.numel() for weight in weights.values() if weight.dtype == torch.float32) < 1000
    assert {parameter.dtype for parameter in theirs(tmp_path / "folder").parameters()} == {torch.float32}


def test_the_folder_tells_of_the_model(tmp_path, tokenizer, megagpt):
    run = random_run(tmp_path / "run", *CASES["short"], tokenizer)
    convert(run, tmp_path / "folder", "sentence-transformers", prove=False)
    told = json.loads((tmp_path / "folder/config_sentence_transformers.json").read_text())["megagpt"]
    shown = json.loads(megagpt("checkpoint", "inspect", run, "--json"))
    assert told == shown["embed"] | {"step": 1}
    assert shown["embed"] == {
        "query_prefix": "[",
        "query_suffix": "]",
        "document_prefix": "{",
        "document_suffix": "}",
        "dimensions": [16, 32],
        "max_tokens": 7,
        "temperature": pytest.approx(0.07, rel=0.5),  # the noise is in the logarithm
    }
    assert "query_prefix=[ query_suffix=] " in megagpt("checkpoint", "inspect", run, "--no-norms")
    seen = json.loads(megagpt("checkpoint", "inspect", tmp_path / "folder", "--json"))
    assert seen["format"] == "sentence-transformers"
    assert seen["model"]["head"] == "embedding"
    name = "model/decoder.layers.1.mlp.linear_fc1.weight"
    assert seen["tensors"][name] == shown["tensors"][name]
    assert seen["files"].keys() >= {"modules.json", "query/tokenizer.json", "document/model.safetensors"}


def test_wrong_uses_are_refused(tmp_path, tokenizer):
    run = random_run(tmp_path / "run", *CASES["dense"], tokenizer)
    language = random_run(tmp_path / "language", replace(MODEL, head="tokens"), EmbedConfig(), tokenizer)
    convert(run, tmp_path / "folder", "sentence-transformers", prove=False)
    target = tmp_path / "target"
    for to in ("megagpt", "huggingface", "megatron", "megatron-dist", "deepspeed", "deepspeed-universal"):
        with pytest.raises(CheckpointError, match=r"has an embedding head.*use --to sentence-transformers"):
            convert(run, target, to)
    with pytest.raises(CheckpointError, match="megagpt writes and does not read"):
        convert(tmp_path / "folder", target, "megagpt")
    with pytest.raises(CheckpointError, match=r"is a language model.*--to huggingface.*stage=embed"):
        convert(language, target, "sentence-transformers")
    with pytest.raises(CheckpointError, match="folder exists"):
        convert(run, tmp_path / "folder", "sentence-transformers")
    (run / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: put the tokenizer\.json"):
        convert(run, target, "sentence-transformers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "language", "run"]


def test_a_model_that_transformers_lacks_is_refused(tmp_path, tokenizer):
    run = random_run(tmp_path / "run", replace(MODEL, norm_placement="post"), EmbedConfig(), tokenizer)
    with pytest.raises(CheckpointError, match="no architecture of transformers that megagpt writes has this model"):
        convert(run, tmp_path / "target", "sentence-transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_wrong_folder_is_not_published(tmp_path, tokenizer, monkeypatch):
    """The proof sees whether a tokenizer pads on the other side, which learned positions do not bear."""
    from megagpt.checkpoint.convert import sentence_transformers as ours

    def padded_left(path: Path, values) -> None:
        values = values | {"padding_side": "left"} if "padding_side" in values else values
        path.write_text(json.dumps(values))

    monkeypatch.setattr(ours, "write_json", padded_left)
    run = random_run(tmp_path / "run", *CASES["dense"], tokenizer)
    with pytest.raises(CheckpointError, match=r"the vectors of .* differ by .*, more than 1e-05: .* was not written"):
        convert(run, tmp_path / "target", "sentence-transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_sentence_transformers(tmp_path, tokenizer, monkeypatch):
    run = random_run(tmp_path / "run", *CASES["dense"], tokenizer)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(CheckpointError, match="pip install sentence-transformers, or give --no-verify"):
        convert(run, tmp_path / "target", "sentence-transformers")
    assert convert(run, tmp_path / "target", "sentence-transformers", prove=False).difference is None
