"""A tiny model of ours as lm-eval sees it, and transformers' model with the same weights in lm-eval's `hf` back end."""

from dataclasses import replace
from functools import cache

import torch

from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer

TEXT = """The quick brown fox jumps over the lazy dog, and the old cat sat on the mat. Question: what does the farmer
give to the horse? Answer: hay and water. Anna met Paul because she was late; 12 plus 7 is 19. A naïve café, 中文 🎉!
"""
VOCAB = 340  # padded to 384
GPT2 = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=2,
    sequence_length=128,
    vocab_size=VOCAB,
    attention_pattern=("dense",),
)
GPT_NEO = replace(GPT2, attention_pattern=("dense", "banded"), attention_window=9)
LLAMA = replace(
    GPT2,
    num_attention_heads=4,
    num_query_groups=2,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
)
MODELS = {"gpt2": GPT2, "gpt_neo": GPT_NEO, "llama": LLAMA}


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, VOCAB)


def build(model: ModelConfig, **parallel) -> tuple[list, Config]:
    """This rank's chunks: the same weights in every layout, far enough from zero that tokens differ clearly."""
    from megatron.core import parallel_state

    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    config = Config(model=model, parallel=ParallelConfig(**parallel), optim=OptimConfig(precision="fp32"))
    stage, stages = parallel_state.get_pipeline_model_parallel_rank(), config.parallel.pipeline_parallel_size
    modules = [GPT(config, pre_process=stage == 0, post_process=stage == stages - 1)]
    with torch.no_grad():
        for name, parameter, shards in named_boxes(modules):
            noise = 0.2 * torch.randn(shards[0].global_shape, generator=torch.Generator().manual_seed(len(name)))
            parameter += torch.cat([shard.of(noise).flatten() for shard in shards]).view_as(parameter)
            if "linear_qkv.bias" in name and "banded" in model.attention_pattern:
                parameter.zero_()  # GPT-Neo has none
    return modules, config


def our_lm(model: ModelConfig, batch_tokens: int | None = None, prefix_memory: float = 1.0, **parallel):
    from megagpt.evaluate.in_context.language_model import MegaGPTLM

    return MegaGPTLM(*build(model, **parallel), tokenizer(), batch_tokens, prefix_memory)


def hugging_face_model(modules: list, model: ModelConfig):
    """transformers' model with the weights of ours."""
    import transformers

    from megagpt.checkpoint.convert.hugging_face_config import architecture_of, files
    from megagpt.model.parameters import named_boxes
    from tests.model.hf import to_hugging_face

    settings = files(architecture_of(model), model, "float32", tokenizer().end_of_text_id)["config.json"]
    kind = getattr(transformers, settings["architectures"][0])
    theirs = kind(kind.config_class(**settings)).eval()
    weights = {name: parameter.detach() for name, parameter, _ in named_boxes(modules)}
    missing, unexpected = theirs.load_state_dict(to_hugging_face(weights, model, theirs), strict=False)
    assert not missing and not unexpected
    return theirs


def their_lm(modules: list, model: ModelConfig, batch_size: int = 4):
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=FastTokenizer.from_str(tokenizer().to_json()), model_max_length=model.sequence_length, **names
    )
    theirs = hugging_face_model(modules, model)
    return HFLM(pretrained=theirs, tokenizer=fast, backend="causal", batch_size=batch_size, device="cpu")
