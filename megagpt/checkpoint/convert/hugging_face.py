"""Folders of Hugging Face transformers, for models of the families in `families`."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from megagpt.checkpoint.convert.families.registry import BY_CLASS
from megagpt.checkpoint.convert.families.tensors import Parameter, Part
from megagpt.checkpoint.convert.folding import fold_qkv_bias, has_qkv_bias
from megagpt.checkpoint.convert.safetensors_files import inside, write_shards
from megagpt.checkpoint.convert.weights import Weight, equal, open_folder
from megagpt.checkpoint.files import allocate, write_text
from megagpt.config.schema import ModelConfig
from megagpt.data.companions import GENERATION, MODEL_TYPE, Companions
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError

log = logging.getLogger(__name__)

NAME = "huggingface"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
HEAD = "lm_head.weight"
"""Name of the output projection in memory; in files some families use another name."""

IGNORED = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    ".attn.embed_positions",
)
"""Buffers in older checkpoints; they follow from the configuration."""


def parts(architecture: str, name: str, shape: tuple[int, ...], model: ModelConfig) -> list[Part]:
    """The tensors of `architecture` that hold our parameter `name` of whole `shape`; see `families`."""
    module, kind = name.rsplit(".", 1)
    layer = None
    if module.startswith("decoder.layers."):
        _, _, number, module = module.split(".", 3)
        layer = int(number)
    return BY_CLASS[architecture].tensors(model)[module](Parameter(kind, layer, shape, model))


# Reading


def detect(path: Path) -> bool:
    """Whether there is a config.json, and no manifest of a megagpt checkpoint."""
    return os.path.lexists(path / CONFIG) and not (path / "manifest.json").exists()


def stored_tensors(path: Path, compare: bool = True) -> tuple[str, ModelConfig, dict[str, Any], dict[str, Weight]]:
    """A folder's class, model, checked settings (see `about.read`) and tensors, named as in the class with a head.

    compare: whether to check that a stored output projection equals the embedding that it is tied to.

    Raises CheckpointError naming the setting that megagpt lacks, or the file and the tensor.
    """
    architecture, model, settings = about.read(path / CONFIG)
    stored = {name: tensor for name, tensor in open_folder(path).items() if not name.endswith(IGNORED)}
    embeddings = "embedding.word_embeddings.weight"
    (part,) = parts(architecture, embeddings, parameters(model)[embeddings], model)
    base, _, within = part.name.partition(".")
    if within in stored:  # saved without a head
        stored = {f"{base}.{name}": tensor for name, tensor in stored.items()}
    head = f"{BY_CLASS[architecture].head}.weight"
    if head not in stored and HEAD in stored:
        stored[head] = stored.pop(HEAD)
    if model.tie_embeddings and head in stored:
        output, embedding = stored.pop(head), stored.get(part.name)
        if compare and embedding is not None and not equal(output, embedding):
            raise CheckpointError(
                f"{path / CONFIG} ties {head} to {embedding.name} (tie_word_embeddings), but they differ: set"
                f" tie_word_embeddings to false if both are meant, or remove {head}"
            )
    return architecture, model, settings, stored


def open_source(path: Path, like: ModelConfig | None, compare: bool = True) -> Source:
    """Opens a folder; compare: see `stored_tensors`.

    Raises CheckpointError naming the setting that megagpt lacks, or the file and the tensor.
    """
    architecture, model, _, stored = stored_tensors(path, compare)
    shapes = parameters(model)
    wanted = {name: parts(architecture, name, shape, model) for name, shape in shapes.items()}
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
        info = TensorInfo(shapes[name], own)
        tensors[f"model/{name}"] = info
        readers[f"model/{name}"] = _Reader(path, info, [(part, stored[part.name]) for part in group])
    return LazySource(path, NAME, model, 0, tensors, readers, _tokenizer(path), extras=extras.read(path))


def promised(path: Path, dtype: torch.dtype) -> Source:
    """The source for a folder with a config.json but no weights, as if its weights had `dtype`; it cannot be read.

    Raises CheckpointError naming the setting that megagpt lacks.
    """
    _, model, _ = about.read(path / CONFIG)
    tensors = {f"model/{name}": TensorInfo(shape, dtype) for name, shape in parameters(model).items()}
    return LazySource(path, NAME, model, 0, tensors, {}, _tokenizer(path), extras=extras.read(path))


def _tokenizer(path: Path) -> Path | None:
    return inside(path, TOKENIZER) if os.path.lexists(path / TOKENIZER) else None


@dataclass(frozen=True)
class _Reader:
    folder: Path
    info: TensorInfo
    parts: list[tuple[Part, Weight]]

    def __call__(self) -> Tensor:
        ours = allocate(self.info.shape, self.info.dtype, self.folder).zero_()
        for part, stored in self.parts:
            part.put(ours, stored.read())
        return ours


# Writing


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes weights in shards, config.json, generation_config.json and the tokenizer's files into `folder`.

    Raises CheckpointError naming the feature that no architecture has.
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
    """Writes weights in shards, config.json and generation_config.json.

    base: write the class without a head, and no generation_config.json; its config says float32 for any dtype of the
    weights, because vectors need more precision than logits. kept: companion files of the folder that the model came
    from, see `hugging_face_extras`. Raises CheckpointError naming the feature that no architecture has.
    """
    config = dict(kept.config) if kept else {}
    architecture = about.architecture_of(source.model, config.pop(MODEL_TYPE, None))
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
    files[CONFIG] |= config
    if generation := kept.parsed(GENERATION) if kept else {}:
        files[GENERATION] = generation
        if generation.get("eos_token_id") is None and end_of_text is not None:
            generation["eos_token_id"] = end_of_text
    outputs = list(outputs_of(source, architecture, bar))
    if base:
        del files["generation_config.json"]
        files["config.json"] |= {"architectures": [BY_CLASS[architecture].base], "dtype": "float32"}
        outputs = [(name.partition(".")[2], info, read) for name, info, read in outputs]
    for name, values in files.items():
        if name == GENERATION and kept and values == kept.parsed(name):
            write_text(folder / name, kept.texts[name])
        else:
            write_json(folder / name, values)
    write_shards(folder, outputs)


def outputs_of(source: Source, architecture: str, bar: tqdm) -> Iterator[tuple[str, TensorInfo, Callable[[], Tensor]]]:
    """(name, info, reader) of every tensor to be written. The readers must be called in this order."""
    model = BY_CLASS[architecture].held(source.model)  # it may have additional biases, which are zero
    weights = source.tensors["model/embedding.word_embeddings.weight"]
    for name, shape in parameters(model).items():
        info = source.tensors.get(f"model/{name}")
        group = parts(architecture, name, shape, model)
        if info is None:
            for part in group:
                zeros = partial(torch.zeros, part.shape, dtype=weights.dtype)
                yield part.name, TensorInfo(part.shape, weights.dtype), zeros
            continue
        held: list[Tensor] = []  # our parameter, kept while its parts are read
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
