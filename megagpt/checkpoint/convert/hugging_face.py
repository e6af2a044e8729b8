"""Folders of Hugging Face transformers: GPT2LMHeadModel, GPTNeoForCausalLM (banded attention), LlamaForCausalLM, and
Qwen3ForCausalLM (Llama's shape with normalised queries and keys)."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from megagpt.checkpoint.convert import hugging_face_config as about
from megagpt.checkpoint.convert import hugging_face_extras as extras
from megagpt.checkpoint.convert.base import Format, Source, TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters, raise_problems, write_json
from megagpt.checkpoint.convert.folding import fold_qkv_bias, has_qkv_bias
from megagpt.checkpoint.convert.safetensors_files import Stored, equal, inside, open_folder, write_shards
from megagpt.checkpoint.files import allocate, write_text
from megagpt.config.schema import ModelConfig
from megagpt.data.companions import GENERATION, Companions
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = "huggingface"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"

GPT2 = {
    "embedding.word_embeddings": "transformer.wte",
    "embedding.position_embeddings": "transformer.wpe",
    "decoder.final_layernorm": "transformer.ln_f",
    "output_layer": "lm_head",
    "input_layernorm": "transformer.h.{}.ln_1",
    "pre_mlp_layernorm": "transformer.h.{}.ln_2",
    "self_attention.linear_proj": "transformer.h.{}.attn.c_proj",
    "mlp.linear_fc1": "transformer.h.{}.mlp.c_fc",
    "mlp.linear_fc2": "transformer.h.{}.mlp.c_proj",
    "self_attention.linear_qkv": "transformer.h.{}.attn.c_attn",
}
GPT_NEO = GPT2 | {
    "self_attention.linear_proj": "transformer.h.{}.attn.attention.out_proj",
    "self_attention.linear_qkv": "transformer.h.{}.attn.attention.{}_proj",
}
LLAMA = {
    "embedding.word_embeddings": "model.embed_tokens",
    "output_layer": "lm_head",
    "decoder.final_layernorm": "model.norm",
    "input_layernorm": "model.layers.{}.input_layernorm",
    "pre_mlp_layernorm": "model.layers.{}.post_attention_layernorm",
    "self_attention.linear_proj": "model.layers.{}.self_attn.o_proj",
    "self_attention.linear_qkv": "model.layers.{}.self_attn.{}_proj",
    "self_attention.q_layernorm": "model.layers.{}.self_attn.q_norm",
    "self_attention.k_layernorm": "model.layers.{}.self_attn.k_norm",
    "mlp.linear_fc1": "model.layers.{}.mlp.{}_proj",
    "mlp.linear_fc2": "model.layers.{}.mlp.down_proj",
}
NAMES = {"GPT2LMHeadModel": GPT2, "GPTNeoForCausalLM": GPT_NEO, "LlamaForCausalLM": LLAMA, "Qwen3ForCausalLM": LLAMA}
BASES = {
    "GPT2LMHeadModel": "GPT2Model",
    "GPTNeoForCausalLM": "GPTNeoModel",
    "LlamaForCausalLM": "LlamaModel",
    "Qwen3ForCausalLM": "Qwen3Model",
}
"""The classes without an output projection; their tensors' names lack the first part."""
IGNORED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Buffers that older checkpoints hold; they follow from the configuration."""


@dataclass(frozen=True)
class Part:
    """One of transformers' tensors that make up one of ours."""

    name: str
    shape: tuple[int, ...]
    take: Callable[[Tensor], Tensor]
    """Ours, whole, to theirs."""
    put: Callable[[Tensor, Tensor], None]
    """Write theirs into ours."""


def parts(architecture: str, name: str, shape: tuple[int, ...], model: ModelConfig) -> list[Part]:
    """The tensors of `architecture` that hold our parameter `name` of whole `shape`. All but zero biases are bit-exact.

    GPT-2's linears are transposed, with queries, keys and values side by side; GPT-Neo does not scale scores, so its
    queries take the scale (exact where the head dimension is a power of 4), and its queries, keys and values have no
    bias. Padding rows of the vocabulary are left out and come back as zeros.
    """
    table = NAMES[architecture]
    module, kind = name.rsplit(".", 1)
    layer = None
    if module.startswith("decoder.layers."):
        _, _, layer, module = module.split(".", 3)

    def named(part: str = "") -> str:
        places = (layer, part) if layer is not None else ()
        return f"{table[module].format(*places)}.{kind}"

    if module in ("embedding.word_embeddings", "output_layer"):
        return [_rows(named(), 0, model.vocab_size, shape)]
    if module == "mlp.linear_fc1" and model.activation == "swiglu":
        half = shape[0] // 2
        return [_rows(named("gate"), 0, half, shape), _rows(named("up"), half, half, shape)]
    if module == "self_attention.linear_qkv":
        if architecture == "GPT2LMHeadModel":
            return [_fused(named(), shape, model)]
        if architecture == "GPTNeoForCausalLM" and kind == "bias":
            return []
        scale = 1 / math.sqrt(model.head_size) if architecture == "GPTNeoForCausalLM" else 1.0
        return [_head_rows(named(part), part, shape, model, scale if part == "q" else 1.0) for part in "qkv"]
    if architecture == "GPT2LMHeadModel" and layer is not None and len(shape) == 2:
        return [Part(named(), shape[::-1], lambda ours: ours.t(), lambda ours, theirs: ours.copy_(theirs.t()))]
    return [Part(named(), shape, lambda ours: ours, _copy)]


def _copy(ours: Tensor, theirs: Tensor) -> None:
    ours.copy_(theirs)


def _rows(name: str, start: int, count: int, shape: tuple[int, ...]) -> Part:
    """Rows [start, start + count) of ours."""
    rows = slice(start, start + count)
    return Part(name, (count, *shape[1:]), lambda ours: ours[rows], lambda ours, theirs: ours[rows].copy_(theirs))


def _heads(ours: Tensor, part: str, model: ModelConfig) -> Tensor:
    """View [groups, heads of a group, head_dim, ...] of the queries, keys or values in the fused projection."""
    per_group = model.num_attention_heads // model.query_groups
    grouped = ours.view(model.query_groups, per_group + 2, model.head_size, *ours.shape[1:])
    return grouped.split((per_group, 1, 1), dim=1)["qkv".index(part)]


def _head_rows(name: str, part: str, shape: tuple[int, ...], model: ModelConfig, scale: float) -> Part:
    """All heads' rows of q, k or v, one after another, ours times `scale`."""
    heads = model.num_attention_heads if part == "q" else model.query_groups

    def take(ours: Tensor) -> Tensor:
        rows = _heads(ours, part, model).reshape(-1, *shape[1:])
        return rows if scale == 1.0 else rows * scale

    def put(ours: Tensor, theirs: Tensor) -> None:
        place = _heads(ours, part, model)
        place.copy_((theirs if scale == 1.0 else theirs / scale).view(place.shape))

    return Part(name, (heads * model.head_size, *shape[1:]), take, put)


def _fused(name: str, shape: tuple[int, ...], model: ModelConfig) -> Part:
    """GPT-2's c_attn: queries of all heads, then keys, then values, as columns."""
    rows = [_head_rows(name, part, shape, model, 1.0) for part in "qkv"]
    sizes = [part.shape[0] for part in rows]

    def take(ours: Tensor) -> Tensor:
        return (
            torch.cat([part.take(ours) for part in rows]).t()
            if len(shape) == 2
            else torch.cat([part.take(ours) for part in rows])
        )

    def put(ours: Tensor, theirs: Tensor) -> None:
        for part, piece in zip(rows, (theirs.t() if len(shape) == 2 else theirs).split(sizes), strict=True):
            part.put(ours, piece)

    return Part(name, shape[::-1], take, put)


# Reading


def detect(path: Path) -> bool:
    """Whether there is a config.json of transformers."""
    return os.path.lexists(path / CONFIG) and not (path / "manifest.json").exists()


def stored_tensors(path: Path) -> tuple[str, ModelConfig, dict[str, Any], dict[str, Stored]]:
    """A folder's class, model, checked settings (see `about.read`) and tensors, by the names of the class with a head.

    Raises CheckpointError naming the setting that megagpt lacks, or the file and the tensor.
    """
    architecture, model, settings = about.read(path / CONFIG)
    stored = {name: tensor for name, tensor in open_folder(path).items() if not name.endswith(IGNORED)}
    base, _, table = NAMES[architecture]["embedding.word_embeddings"].partition(".")
    if f"{table}.weight" in stored:  # saved without a head
        stored = {f"{base}.{name}": tensor for name, tensor in stored.items()}
    head, embedding = stored.get("lm_head.weight"), stored.get(f"{base}.{table}.weight")
    if model.tie_embeddings and head is not None:
        if embedding is not None and not equal(head, embedding):
            raise CheckpointError(
                f"{path / CONFIG} ties lm_head.weight to {embedding.name} (tie_word_embeddings), but they differ: set"
                " tie_word_embeddings to false if both are meant, or remove lm_head.weight"
            )
        del stored["lm_head.weight"]
    return architecture, model, settings, stored


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a folder. Raises CheckpointError naming the setting that megagpt lacks, or the file and the tensor."""
    architecture, model, _, stored = stored_tensors(path)
    wanted = {name: parts(architecture, name, shape, model) for name, shape in parameters(model).items()}
    theirs = {part.name: part for group in wanted.values() for part in group}
    given = {name for name in theirs if name in stored}
    problems = [f"{name} is missing" for name in theirs if name not in given]
    problems += [f"{name} is not expected" for name in stored if name not in theirs]
    for name in given:
        if stored[name].shape != theirs[name].shape:
            problems.append(f"{name} has shape {list(stored[name].shape)}, not {list(theirs[name].shape)}")
        if not stored[name].dtype.is_floating_point:
            problems.append(f"{name} is {stored[name].dtype}, not a floating-point type")
    for name, group in wanted.items():
        if len(kinds := {str(stored[part.name].dtype) for part in group if part.name in given}) > 1:
            problems.append(f"{name} would be made of tensors of {' and '.join(sorted(kinds))}")
    raise_problems(path, problems)
    dtype = next(iter(stored.values())).dtype
    tensors, readers = {}, {}
    for name, group in wanted.items():
        own = stored[group[0].name].dtype if group else dtype
        info = TensorInfo(parameters(model)[name], own)
        tensors[f"model/{name}"] = info
        readers[f"model/{name}"] = _Reader(path, info, [(part, stored[part.name]) for part in group])
    tokenizer = inside(path, TOKENIZER) if os.path.lexists(path / TOKENIZER) else None
    return LazySource(path, NAME, model, 0, tensors, readers, tokenizer, extras=extras.read(path))


@dataclass(frozen=True)
class _Reader:
    folder: Path
    info: TensorInfo
    parts: list[tuple[Part, Stored]]

    def __call__(self) -> Tensor:
        ours = allocate(self.info.shape, self.info.dtype, self.folder).zero_()
        for part, stored in self.parts:
            part.put(ours, stored.read())
        return ours


# Writing


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes weights in shards, with config.json, generation_config.json and the tokenizer's files.

    Raises CheckpointError naming the setting that none of the architectures has.
    """
    tokenizer = Tokenizer.load(source.tokenizer) if source.tokenizer else None
    if tokenizer:
        write_text(folder / TOKENIZER, tokenizer.content.decode())
    kept = extras.fitting(source.extras, tokenizer)
    if tokenizer:
        kept = extras.completed(kept, tokenizer, source.model.sequence_length)
    write_model(source, folder, bar, tokenizer.end_of_text_id if tokenizer else None, kept=kept)
    extras.write(kept, folder)


def write_model(
    source: Source,
    folder: Path,
    bar: tqdm,
    end_of_text: int | None,
    base: bool = False,
    kept: Companions | None = None,
) -> None:
    """Writes weights in shards, config.json and, unless it is a `base` class without a head, generation_config.json.

    kept: what the folder that the model came from said, see `hugging_face_extras`.

    A base class is to compute in float32, whatever the weights' dtype: vectors are compared more finely than logits.
    Raises CheckpointError naming the setting that none of the architectures has.
    """
    architecture = about.architecture_of(source.model)
    if architecture == "GPTNeoForCausalLM" and has_qkv_bias(source):
        log.warning(
            "%s has no biases of queries, keys and values: they are folded into the norm before and the projection"
            " behind them, which computes the same; converted back, the weights stay folded",
            architecture,
        )
        source = fold_qkv_bias(source)
    first = next(name for name in source.tensors if name.startswith("model/"))
    dtype = str(source.tensors[first].dtype).removeprefix("torch.")
    files = about.files(architecture, source.model, dtype, end_of_text)
    files[CONFIG] |= kept.config if kept else {}
    generation = kept.parsed(GENERATION) if kept else {}
    if generation:
        files[GENERATION] = generation
        if generation.get("eos_token_id") is None and end_of_text is not None:
            generation["eos_token_id"] = end_of_text
    outputs = list(outputs_of(source, architecture, bar))
    if base:
        del files["generation_config.json"]
        files["config.json"] |= {"architectures": [BASES[architecture]], "dtype": "float32"}
        outputs = [(name.partition(".")[2], info, read) for name, info, read in outputs]
    for name, values in files.items():
        if name == GENERATION and kept and values == kept.parsed(name):
            write_text(folder / name, kept.texts[name])
        else:
            write_json(folder / name, values)
    write_shards(folder, outputs)


def outputs_of(source: Source, architecture: str, bar: tqdm) -> Iterator[tuple[str, TensorInfo, Callable[[], Tensor]]]:
    """Name, shape and reader of every tensor to be written, to be read in this order."""
    gpt = source.model.normalization == "layernorm"  # these classes have all biases: those that we lack are zero
    weights = source.tensors["model/embedding.word_embeddings.weight"]
    for name, shape in parameters(replace(source.model, bias=gpt)).items():
        info = source.tensors.get(f"model/{name}")
        group = parts(architecture, name, shape, source.model)
        if info is None:
            for part in group:
                zeros = partial(torch.zeros, part.shape, dtype=weights.dtype)
                yield part.name, TensorInfo(part.shape, weights.dtype), zeros
            continue
        held: list[Tensor] = []  # ours, from its first part to its last
        for number, part in enumerate(group):
            last = number == len(group) - 1

            def read(part: Part = part, name: str = name, held: list[Tensor] = held, last: bool = last) -> Tensor:
                if not held:
                    held.append(source.read(f"model/{name}"))
                value = part.take(held[0]).contiguous()
                if last:
                    held.clear()
                    bar.update(source.tensors[f"model/{name}"].size)
                return value

            yield part.name, TensorInfo(part.shape, info.dtype), read


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=False)
