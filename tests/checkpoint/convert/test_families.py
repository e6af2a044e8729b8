"""Every family against transformers: logits, the loss and gradients of a step, greedy generation, and the way back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megagpt.checkpoint.convert.convert import convert
from megagpt.checkpoint.convert.families.registry import BY_CLASS, FAMILIES
from megagpt.checkpoint.convert.hugging_face import parts
from megagpt.config.schema import ModelConfig, ParallelConfig
from megagpt.parallel import launch
from tests.checkpoint.convert.tiny_families import TINY, our_modules, transformers_model
from tests.model.tiny import VOCAB, tokenizer

transformers = pytest.importorskip("transformers")
LENGTH = 37
LOST = {"model.decoder.embed_positions.weight": 2}
"""Tensors with first rows that nothing reads; they come back as zeros."""

WITHOUT_EFFECT = {
    "transformers_version",
    "_name_or_path",
    "n_inner",  # null means what is written
    "intermediate_size",  # of GPT-Neo, likewise
    "max_window_layers",  # layer_types says it
    "attention_types",
    "attention_layers",
    "_sliding_window_pattern",
    "num_key_value_heads",  # of GPT-NeoX, which has no such key
    "original_max_position_embeddings",  # of Phi-3, which reads it with longrope
    "embd_pdrop",
    "layerdrop",
}
"""Keys of a config that may come back in another form."""


def test_every_family_is_tried():
    assert {architecture for architecture, _ in TINY.values()} == {family.architecture for family in FAMILIES}


@pytest.fixture(scope="module")
def one_rank():
    launch.initialize(ParallelConfig(), seed=0)
    yield
    launch.shutdown()


@pytest.fixture(params=TINY)
def name(request) -> str:
    return request.param


@pytest.fixture
def theirs(name):
    return transformers_model(name)


@pytest.fixture
def folder(theirs, tmp_path) -> Path:
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, VOCAB, (2, LENGTH + 1), generator=torch.Generator().manual_seed(2))
    return tokens[:, :-1], tokens[:, 1:]


def in_memory(name: str) -> str:
    return name.replace("embed_out.", "lm_head.")


def to_theirs(architecture: str, ours: dict[str, torch.Tensor], model: ModelConfig) -> dict[str, torch.Tensor]:
    return {
        in_memory(part.name): part.take(tensor)
        for name, tensor in ours.items()
        for part in parts(architecture, name, tuple(tensor.shape), model)
    }


@pytest.mark.usefixtures("one_rank")
def test_a_step_and_generation_are_transformers_own(name, theirs, folder):
    from megagpt.model.generation import Generator
    from megagpt.model.generation_config import GenerationConfig
    from megagpt.model.parameters import named_boxes

    modules, config = our_modules(folder)
    ours, model = modules[0], config.model
    tokens, labels = batch()
    positions = torch.arange(LENGTH).expand(tokens.shape)
    expected = theirs.train()(tokens, use_cache=False).logits
    spread = expected.std(dim=-1).mean()
    assert spread > 0.3
    logits = ours(tokens, positions, None)[..., :VOCAB]
    torch.testing.assert_close(logits / spread, expected / spread, atol=2e-5, rtol=0)

    loss = ours(tokens, positions, None, labels=labels).mean()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected_loss.backward()
    architecture = TINY[name][0]
    gradients = to_theirs(architecture, {key: p.grad for key, p, _ in named_boxes(modules)}, model)
    wanted = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    assert wanted.keys() <= gradients.keys()
    for key, gradient in wanted.items():
        found = gradients[key]
        if architecture == "GPTNeoForCausalLM" and key.endswith("q_proj.weight"):
            found = found * model.head_size  # ours are theirs times the root of it, and gradients the other way round
        scale = gradient.abs().max().clamp(min=1e-3)  # a key's bias has no gradient but rounding
        torch.testing.assert_close(found / scale, gradient / scale, atol=1e-4, rtol=0, msg=key)

    generator = Generator(modules, config, tokenizer())
    prompts = [tokens[0, :5].tolist(), tokens[1, :11].tolist()]
    completions = generator.generate(prompts, GenerationConfig(temperature=0.0, max_new_tokens=16))
    theirs.eval()
    for prompt, completion in zip(prompts, completions, strict=True):
        options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": generator.tokenizer.end_of_text_id}
        rows = torch.tensor([prompt])
        found = theirs.generate(rows, attention_mask=torch.ones_like(rows), pad_token_id=VOCAB - 1, **options)
        assert prompt + completion.tokens == found[0].tolist()


def test_there_and_back_is_bit_equal(name, theirs, folder, tmp_path):
    there = convert(folder, tmp_path / "ours", "megagpt")
    back = convert(tmp_path / "ours", tmp_path / "back", "huggingface", prove=False)
    assert there.difference < 1e-4 and back.difference is None
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    before.pop("lm_head.weight" if there.source.model.tie_embeddings else "", None)
    assert before.keys() == after.keys()
    for key, value in before.items():
        rows = LOST.get(key, 0)
        assert torch.equal(value[rows:], after[key][rows:]), key
    sides = [json.loads((side / "config.json").read_text()) for side in (folder, tmp_path / "back")]
    kind = BY_CLASS[sides[0]["architectures"][0]]
    assert sides[1]["architectures"] == [kind.architecture]
    loaded = [transformers.AutoConfig.from_pretrained(side).to_dict() for side in (folder, tmp_path / "back")]
    different = {key for key, value in loaded[0].items() if loaded[1].get(key, "nothing") != value}
    assert different <= WITHOUT_EFFECT
