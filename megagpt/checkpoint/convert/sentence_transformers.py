"""Folders of sentence-transformers: an embedding model whose tokenizers add the delimiters to the texts.

    modules.json, config_sentence_transformers.json, README.md
    config.json, model.safetensors, tokenizer.json ...      if queries and documents have the same delimiters, else:
    router_config.json                                      the two routes, `encode_query` and `encode_document`
    query/, document/                                       each with config.json, model.safetensors, tokenizer.json ...
    1_Pooling/                                              takes the state at the last token, end-of-text
    2_Normalize/                                            scales vectors to length 1

The delimiters are part of the tokenizer's template and not a prompt before the text. So a text is tokenized separately
from them, as in training, and truncation keeps them. A tokenizer has one template, so two sides with different
delimiters need two folders. Both have the same weights; the second folder has hard links if the file system supports
them.
"""

import contextlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors
from tqdm import tqdm

from megagpt.checkpoint.convert import hugging_face
from megagpt.checkpoint.convert.base import Format, Source
from megagpt.checkpoint.convert.common import LazySource, inner_folder, write_json
from megagpt.checkpoint.files import sync_folder, write_text
from megagpt.config.embedding import EmbedConfig, temperature_of
from megagpt.config.schema import ModelConfig
from megagpt.data.text_batch import SIDES, Side, TextEncoder
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError

NAME = "sentence-transformers"
MODULES, ABOUT, ROUTES = "modules.json", "config_sentence_transformers.json", "router_config.json"
POOLING, NORMALIZE = "1_Pooling", "2_Normalize"
SCALE = "model/embedding_head.scale"
CLASSES = "sentence_transformers.models"
"""Package of the modules' classes before version 6; later versions still find them there."""
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
ROUTER_VERSION = "5.0.0"
"""The first version of sentence-transformers with routes."""


def describe(embed: EmbedConfig, model: ModelConfig, scale: float | None) -> dict[str, Any]:
    """Settings for computing vectors of texts, and the learned temperature, as plain data.

    scale: the head's parameter, see `EmbeddingHead`; None if the temperature is not learned.
    """
    names = ("query_prefix", "query_suffix", "document_prefix", "document_suffix", "dimensions")
    learned = None if scale is None else max(embed.min_temperature, temperature_of(scale))
    return {
        **{name: value for name, value in asdict(embed).items() if name in names},
        "max_tokens": embed.max_tokens or model.sequence_length,
        "temperature": embed.temperature if learned is None else learned,
    }


# Reading


def detect(path: Path) -> bool:
    """Whether there are a modules.json and a config_sentence_transformers.json."""
    return (path / MODULES).is_file() and (path / ABOUT).is_file()


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a folder that megagpt wrote, to inspect its model. Raises CheckpointError as for transformers."""
    side = inner_folder(path / "document") if (path / ROUTES).is_file() else path
    source = hugging_face.open_source(side, like)
    model = replace(source.model, head="embedding")
    return LazySource(path, NAME, model, 0, source.tensors, source.readers, source.tokenizer)


# Writing


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes a source into an empty folder. sentence-transformers need not be installed.

    Raises CheckpointError without a tokenizer, or naming the feature that no architecture has; ConfigError when the
    delimiters leave no room for a text.
    """
    if source.tokenizer is None:
        raise CheckpointError(
            f"{source.path} has no tokenizer: put the tokenizer.json that it was trained with into its run folder"
        )
    tokenizer = Tokenizer.load(source.tokenizer)
    encoder = TextEncoder(source.embed, source.model.sequence_length, tokenizer)
    routed = encoder.around("query") != encoder.around("document")
    first, *others = [folder / side for side in SIDES] if routed else [folder]
    first.mkdir(exist_ok=True)
    hugging_face.write_model(_without_head(source), first, bar, tokenizer.end_of_text_id, base=True)
    for other in others:
        other.mkdir()
        _link_files(first, other)
    for side in SIDES if routed else SIDES[:1]:
        _write_tokenizer(source.tokenizer, encoder, side, folder / side if routed else folder)
    _write_modules(folder, source.model, routed)
    scale = source.read(SCALE).item() if SCALE in source.tensors else None
    facts = describe(source.embed, source.model, scale) | {"step": source.step}
    write_json(folder / ABOUT, _about(facts, routed))
    write_text(folder / "README.md", _readme(facts, source.model, tokenizer.end_of_text))
    for inner in folder.iterdir():
        if inner.is_dir():
            sync_folder(inner)


def _without_head(source: Source) -> Source:
    """The same model as a language model whose output projection is not written."""
    model = replace(source.model, head="tokens", tie_embeddings=True)
    tensors = {name: info for name, info in source.tensors.items() if name != SCALE}
    readers = {name: lambda name=name: source.read(name) for name in tensors}
    return LazySource(source.path, source.format, model, source.step, tensors, readers, source.tokenizer)


def _link_files(there: Path, here: Path) -> None:
    for file in there.iterdir():
        if file.suffix == ".safetensors":
            with contextlib.suppress(OSError):  # not all file systems have hard links
                os.link(file, here / file.name)
                continue
        shutil.copyfile(file, here / file.name)


def _write_tokenizer(path: Path, encoder: TextEncoder, side: Side, folder: Path) -> None:
    """Writes a tokenizer that adds the side's delimiters and end-of-text to each text, and its settings."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    names = dict(zip(("<|prefix|>", "<|suffix|>"), encoder.around(side), strict=True))
    template = [name for name in ("<|prefix|>", "$A", "<|suffix|>") if name == "$A" or names[name]]
    special = [
        {"id": name, "ids": ids, "tokens": [tokenizer.id_to_token(token) for token in ids]}
        for name, ids in names.items()
        if ids
    ]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=None, special_tokens=special)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_text(folder / hugging_face.TOKENIZER, tokenizer.to_str(pretty=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), encoder.tokenizer.end_of_text),
        "model_max_length": encoder.max_tokens,
        "padding_side": "right",  # learned positions count from the first token, even if it is padding
        "truncation_side": "right",
        "split_special_tokens": True,  # special tokens inside a text are ordinary text
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_tokens, "do_lower_case": False})


def _write_modules(folder: Path, model: ModelConfig, routed: bool) -> None:
    """Writes the list of modules that a text passes through, and their settings."""
    paths = {"Router" if routed else "Transformer": "", "Pooling": POOLING, "Normalize": NORMALIZE}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{CLASSES}.{name}"}
        for number, (name, path) in enumerate(paths.items())
    ]
    write_json(folder / MODULES, modules)
    if routed:
        routes = {
            "types": dict.fromkeys(SIDES, f"{CLASSES}.Transformer"),
            "structure": {side: [side] for side in SIDES},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        }
        write_json(folder / ROUTES, routes)
    for name in (POOLING, NORMALIZE):
        (folder / name).mkdir()
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in MODES}
    write_json(
        folder / POOLING / "config.json",
        {"word_embedding_dimension": model.hidden_size, **pooling, "include_prompt": True},
    )


def _about(facts: dict[str, Any], routed: bool) -> dict[str, Any]:
    versions = {"sentence_transformers": ROUTER_VERSION} if routed else {}
    return {
        "__version__": versions,
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "megagpt": facts,
    }


def _readme(facts: dict[str, Any], model: ModelConfig, end_of_text: str) -> str:
    around = {
        side: f"`{json.dumps(facts[f'{side}_prefix'])} + text + {json.dumps(facts[f'{side}_suffix'] + end_of_text)}`"
        for side in SIDES
    }
    text = f"""---
library_name: sentence-transformers
tags: [sentence-transformers, feature-extraction, sentence-similarity]
pipeline_tag: sentence-similarity
---
# {model.name}

An embedding model trained with megagpt, at step {facts["step"]}. Vectors have {model.hidden_size} dimensions and
length 1.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH OF THIS FOLDER")
queries = model.encode_query(["how do I open a file?"])
documents = model.encode_document(["with open(path) as file:", "import this"])
print(model.similarity(queries, documents))
```

The tokenizer makes {around["query"]} of a query and {around["document"]} of a document.
`encode` takes texts for documents. A text has at most {facts["max_tokens"]} tokens with what is put around it, and a
longer one loses its end. Training divided cosines by the temperature {facts["temperature"]:.6g}. The model computes in
float32; `model_kwargs={{"dtype": "bfloat16"}}` takes half the memory and rounds.
"""
    if facts["dimensions"]:
        shorter = " or ".join(map(str, facts["dimensions"]))
        text += f"""
The first {shorter} numbers of a vector were trained to be one too. `encode_query` and `encode_document` give them
with `truncate_dim=..., normalize_embeddings=True`.
"""
    return text


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=False)
