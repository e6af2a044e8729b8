"""Functions that formats share: lists of parameters, their sharding over ranks, and sources that read lazily."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megagpt.checkpoint.convert import zips
from megagpt.checkpoint.convert.base import Source, TensorInfo
from megagpt.checkpoint.files import parse_json, read_bytes, write_text
from megagpt.checkpoint.format import MAX_ELEMENTS
from megagpt.config.bounds import out_of_range
from megagpt.config.embedding import EmbedConfig
from megagpt.config.load import from_dict
from megagpt.config.model_rules import MODEL_RULES
from megagpt.config.schema import Config, ModelConfig
from megagpt.data.companions import Companions, dumped
from megagpt.errors import CheckpointError, ConfigError

COMPANION = "megagpt.json"
"""File that megagpt adds to folders whose format does not store the model's shape."""
COMPANION_LIMIT = 1 << 20
NAMES_SHOWN = 10
LAYERS_LIMIT = 4096
"""Most layers of a model that is accepted; GPT-3 has 96."""
COLUMN_PARALLEL = ("linear_qkv", "linear_fc1")
ROW_PARALLEL = ("linear_proj", "linear_fc2")
HEAD_NORMS = ("q_layernorm", "k_layernorm")
VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")


@dataclass(frozen=True)
class LazySource:
    """A `Source` made of functions that read one tensor each."""

    path: Path
    format: str
    model: ModelConfig
    step: int
    tensors: Mapping[str, TensorInfo]
    readers: Mapping[str, Callable[[], torch.Tensor]]
    tokenizer: Path | None = None
    embed: EmbedConfig | None = None
    extras: Companions = field(default_factory=Companions)

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor `name`, contiguous, on the CPU. Raises CheckpointError."""
        return self.readers[name]().contiguous()


def checked_model(model: ModelConfig, where: Path) -> ModelConfig:
    """`model`, after a check that it can be built: it comes from the untrusted file `where`. Raises CheckpointError."""
    config = Config(model=model)
    flaws = list(out_of_range(config)) or [flaw for rule in MODEL_RULES for flaw in rule(config, 1)]
    if not flaws and model.num_layers > LAYERS_LIMIT:
        flaws = [f"model.num_layers ({model.num_layers:,}) is above {LAYERS_LIMIT:,}"]
    if not flaws and (size := sum(map(prod, parameters(model).values()))) > MAX_ELEMENTS:
        flaws = [f"it has {size:,} parameters"]
    if flaws:
        raise CheckpointError(f"{where} describes no model that can be built: {'; '.join(flaws)}")
    return model


def parameters(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: whole shape} of the model's parameters in the network's order, without a scalar or embedding head."""
    shapes = {"embedding.word_embeddings.weight": (model.padded_vocab_size, model.hidden_size)}
    if model.position_embedding == "learned":
        shapes["embedding.position_embeddings.weight"] = (model.sequence_length, model.hidden_size)
    layer = _of_layer(model)
    for number in range(model.num_layers):
        shapes |= {f"decoder.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes |= _norm("decoder.final_layernorm", model.hidden_size, model)
    if model.head != "tokens":
        return shapes
    if not model.tie_embeddings:
        shapes["output_layer.weight"] = (model.padded_vocab_size, model.hidden_size)
    return shapes | ({"output_layer.bias": (model.padded_vocab_size,)} if model.output_bias else {})


def _of_layer(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, head, queries, groups = model.hidden_size, model.head_size, model.num_attention_heads, model.query_groups
    normed = {
        "input_layernorm": model.norm_placement != "post",
        "pre_mlp_layernorm": model.norm_placement != "post" and model.parallel_block != "one_norm",
        "post_attention_layernorm": model.norm_placement != "pre",
        "post_mlp_layernorm": model.norm_placement != "pre",
    }
    linears = {
        "self_attention.linear_proj": ((hidden, queries * head), model.has_attention_output_bias),
        "self_attention.linear_qkv": (((queries + 2 * groups) * head, hidden), model.has_qkv_bias),
        "mlp.linear_fc1": ((model.ffn_size * (2 if model.is_gated else 1), hidden), model.bias),
        "mlp.linear_fc2": ((hidden, model.ffn_size), model.bias),
    }
    layer: dict[str, tuple[int, ...]] = {}
    for name, has_norm in normed.items():
        layer |= _norm(name, hidden, model) if has_norm else {}
    for name, (shape, has_bias) in linears.items():
        layer |= {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if has_bias else {})
    if model.qk_layernorm:
        together = model.qk_norm_scope == "all_heads"
        for name, heads in (("q_layernorm", queries), ("k_layernorm", groups)):
            layer |= _norm(f"self_attention.{name}", heads * head if together else head, model)
    return layer


def _norm(name: str, size: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias") if model.normalization == "layernorm" else ("weight",)
    return {f"{name}.{kind}": (size,) for kind in kinds}


def cut(name: str, model: ModelConfig) -> tuple[int | None, int]:
    """The axis along which tensor-parallel ranks shard a parameter (None: all hold it), and its number of parts.

    The first linear layer of a gated activation has two parts, gate and value: each rank holds a share of the first,
    then a share of the second. Norms over all heads together are sharded like the heads.
    """
    module, kind = name.split(".")[-2:]
    if name in VOCABULARY or module in COLUMN_PARALLEL:
        return 0, 2 if module == "linear_fc1" and model.is_gated else 1
    if module in HEAD_NORMS and model.qk_norm_scope == "all_heads":
        return 0, 1
    return (1, 1) if module in ROW_PARALLEL and kind == "weight" else (None, 1)


def local_shape(name: str, shape: Sequence[int], model: ModelConfig, ranks: int) -> tuple[int, ...]:
    """Shape of a parameter's shard on one of `ranks` tensor-parallel ranks. shape: of the whole parameter."""
    axis, _ = cut(name, model)
    return tuple(size // ranks if number == axis else size for number, size in enumerate(shape))


def join(name: str, shards: Iterable[torch.Tensor], ranks: int, model: ModelConfig) -> torch.Tensor:
    """The whole parameter from the shards of the tensor-parallel ranks, in the order of the ranks.

    A vocabulary gets megagpt's padding: surplus rows are cut off, missing rows are zeros. Memory holds the whole
    parameter and one shard. Raises CheckpointError when ranks differ in a parameter that they should all hold.
    """
    axis, parts = cut(name, model)
    whole: torch.Tensor | None = None
    for rank, shard in enumerate(shards):
        if axis is None:
            if whole is not None and not torch.equal(whole, shard):
                raise CheckpointError(f"{name} differs between tensor-parallel ranks, which should hold the same")
            whole = shard
            continue
        if whole is None:
            length = model.padded_vocab_size if name in VOCABULARY else shard.shape[axis] * ranks
            if ranks == 1 and length == shard.shape[axis]:
                return shard
            whole = shard.new_zeros((*shard.shape[:axis], length, *shard.shape[axis + 1 :]))
        size = shard.shape[axis] // parts
        for part in range(parts):
            start = (part * ranks + rank) * size
            if (kept := min(size, whole.shape[axis] - start)) > 0:
                whole.narrow(axis, start, kept).copy_(shard.narrow(axis, part * size, kept))
    return whole


def check_parameters(where: Path, found: Mapping[str, tuple[int, ...]], model: ModelConfig) -> None:
    """Raises CheckpointError unless names and shapes are the model's; the padding of the vocabulary may differ."""
    wanted = parameters(model)
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is not expected" for name in found if name not in wanted]
    for name, shape in found.items():
        fits = shape == wanted.get(name, shape)
        if name in VOCABULARY and not fits:
            fits = shape[1:] == wanted[name][1:] and shape[0] >= model.vocab_size
        if not fits:
            problems.append(f"{name} has shape {list(shape)}, not {list(wanted[name])}")
    raise_problems(where, problems)


def inner_folder(folder: Path) -> Path:
    """`folder`, which a checkpoint names. Raises CheckpointError if it is a link, because that may point anywhere."""
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a symbolic link: give its target, or copy the target there")
    return folder


def raise_problems(where: Path, problems: Sequence[str]) -> None:
    """Raises one CheckpointError that names the first problems; does nothing when there is none."""
    if problems:
        more = f"; and {len(problems) - NAMES_SHOWN} more" if len(problems) > NAMES_SHOWN else ""
        raise CheckpointError(f"{where} does not fit its model: {'; '.join(problems[:NAMES_SHOWN])}{more}")


def companion(model: ModelConfig, step: int) -> str:
    """The text of megagpt.json, which describes the model and the step."""
    return json.dumps({"model": asdict(model), "step": step}, indent=1)


def find_model(folders: Iterable[Path], like: ModelConfig | None) -> ModelConfig | None:
    """The model that a megagpt.json in one of the folders describes, else `like`. Raises CheckpointError."""
    for folder in folders:
        path = folder / COMPANION
        if os.path.lexists(path):
            values = parse_json(read_bytes(path, COMPANION_LIMIT), path)
            try:
                return checked_model(from_dict({"model": values["model"]}).model, path)
            except (ConfigError, KeyError, RecursionError, TypeError) as error:
                raise CheckpointError(f"{path} does not describe a model: {error}") from None
    return like


def write_json(path: Path, values: Any) -> None:
    """Writes `values` durably as indented JSON. Raises CheckpointError."""
    write_text(path, dumped(values))


def lazy(
    source: Source,
    names: Sequence[str],
    bar: tqdm,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
) -> zips.Lazy:
    """One tensor that concatenates the source's tensors `names`; they are read when it is written.

    shape, dtype: of the result; by default those of the first tensor. Reading advances the progress bar.
    """
    infos = [source.tensors[name] for name in names]
    dtype = dtype or infos[0].dtype

    def read() -> Iterator[torch.Tensor]:
        for name, info in zip(names, infos, strict=True):
            yield source.read(name).to(dtype)
            bar.update(info.size)

    return zips.Lazy(infos[0].shape if shape is None else shape, dtype, read)
