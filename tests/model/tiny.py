"""Tiny models with weights far enough from zero that their tokens differ clearly, and prompts for them to continue."""

from dataclasses import replace

import torch

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat; the dog sat on the log.\n", "def f(x):\n    return x + 1\n", "naïve café 中文 🎉"] * 5
PROMPTS = ["the cat", "def f(x", "", "naïve café 中文 🎉 sat on the log", "t"]
VOCAB = 290  # padded to 384
GPT3 = ModelConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    sequence_length=40,
    vocab_size=VOCAB,
    attention_pattern=("dense", "banded"),
    attention_window=6,
)
LLAMA = replace(
    GPT3,
    attention_pattern=("dense",),
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
    num_query_groups=2,
    qk_layernorm=True,
)


def build(model: ModelConfig, **parallel) -> tuple[list, Config]:
    """This rank's chunks with the same weights in every layout, far enough from zero that tokens differ clearly."""
    from megatron.core import parallel_state

    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    config = Config(model=model, parallel=ParallelConfig(**parallel), optim=OptimConfig(precision="fp32"))
    stage, stages = parallel_state.get_pipeline_model_parallel_rank(), config.parallel.pipeline_parallel_size
    chunks = config.parallel.virtual_pipeline_size
    modules = [
        GPT(
            config,
            pre_process=stage == 0 and chunk == 0,
            post_process=stage == stages - 1 and chunk == chunks - 1,
            vp_stage=chunk if chunks > 1 else None,
        )
        for chunk in range(chunks)
    ]
    with torch.no_grad():
        for name, parameter, shards in named_boxes(modules):
            noise = 0.2 * torch.randn(shards[0].global_shape, generator=torch.Generator().manual_seed(len(name)))
            parameter += torch.cat([shard.of(noise).flatten() for shard in shards]).view_as(parameter)
    return modules, config


def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, VOCAB)


def generator(model: ModelConfig, batch_size: int = 32, **parallel):
    from megagpt.model.generation import Generator

    return Generator(*build(model, **parallel), tokenizer(), batch_size)


def same(completions, expected) -> None:
    for ours, theirs in zip(completions, expected, strict=True):
        assert (ours.text, ours.tokens, ours.finish_reason) == (theirs.text, theirs.tokens, theirs.finish_reason)
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-3, rtol=0)
