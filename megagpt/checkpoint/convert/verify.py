"""Proof of a conversion: both sides, run on the CPU, give the same logits, or the same vectors of texts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from megagpt.checkpoint.convert import hugging_face
from megagpt.checkpoint.convert.base import Source, TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters
from megagpt.checkpoint.convert.families.registry import BY_CLASS
from megagpt.config.embedding import EmbedConfig
from megagpt.config.schema import Config, KernelsConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.text_batch import SIDES, TextEncoder
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer
from megagpt.errors import CheckpointError
from megagpt.parallel import launch

TOLERANCES = {"logits": 1e-3, "vectors": 1e-5}
"""Largest difference that is accepted as rounding: of logits in units of their spread, and of vectors of length 1."""
BATCH, TOKENS = 2, 64
TEXTS = (
    "a",
    "How do I open a file?",
    "def add(a, b):\n    return a + b\n",
    "[brackets] {braces} (parentheses)",
    " \tna\u00efve caf\u00e9, \u65e5\u672c\u8a9e, \U0001f600 \n",
    f"{END_OF_TEXT} is text here",
)
"""Texts to compare; a text that is longer than the model's limit is added."""


def compared(model: ModelConfig) -> str:
    """Name of the outputs that `largest_difference` compares."""
    return "vectors" if model.head == "embedding" else "logits"


def largest_difference(source: Source, target: Source) -> float:
    """Largest difference of fp32 logits on a fixed batch of random tokens, in units of their spread.

    The spread is the logits' standard deviation over the vocabulary, so that errors are not small just because weights
    are. If one side is a folder of transformers, its model and ours are compared a second time with random weights of
    ordinary size, with which every part of the model affects the logits. Folders of transformers are run by
    transformers, other formats by our GPT model; one model is in memory at a time. For an embedding model the result is
    the largest absolute difference of vectors, see `_largest_difference_of_vectors`.

    Raises CheckpointError when all logits are equal, or when a library that the comparison needs is missing.
    """
    model = source.model
    if model.head == "embedding":
        return _largest_difference_of_vectors(source, target.path)
    length = min(TOKENS, model.sequence_length)
    tokens = torch.randint(model.vocab_size, (BATCH, length), generator=torch.Generator().manual_seed(0))
    found = [_relative(source, *(_logits(side, tokens) for side in (source, target)))]
    for side in (source, target):
        if side.format == hugging_face.NAME:
            settings = hugging_face.stored_tensors(side.path)[:3]
            weights = _ordinary_weights(side, settings[0])
            theirs = {name: read for name, _, read in hugging_face.outputs_of(weights, settings[0], tqdm(disable=True))}
            found.append(_relative(source, _megagpt(weights, tokens), _transformers(*settings, theirs, tokens)))
    return max(found, key=lambda difference: math.inf if math.isnan(difference) else difference)


def _relative(source: Source, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of logits divided by their spread. Raises CheckpointError when all logits are equal."""
    ours, theirs = (logits[..., : source.model.vocab_size] for logits in (ours, theirs))
    spread = ours.std(dim=-1).mean().item()
    if spread == 0:
        raise CheckpointError(
            f"all logits of {source.path} are equal, so that nothing can be proven: --no-verify leaves the proof out"
        )
    return (ours - theirs).abs().max().item() / spread


def _ordinary_weights(side: Source, architecture: str) -> Source:
    """A source of the same model with random weights, of a size with which attention, norms and biases all matter."""
    model = BY_CLASS[architecture].held(side.model)
    shapes = parameters(model)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
        if len(shape) > 1:
            return noise / math.sqrt(shape[1])
        if ".linear_qkv." in name and architecture == "GPTNeoForCausalLM":
            return torch.zeros(shape)  # GPT-Neo has no such bias
        return noise * 0.2 + ("norm" in name and name.endswith("weight") and not model.zero_centered_norm)

    tensors = {f"model/{name}": TensorInfo(shape, torch.float32) for name, shape in shapes.items()}
    readers = {f"model/{name}": partial(draw, name, shape) for name, shape in shapes.items()}
    return LazySource(side.path, "random", model, 0, tensors, readers)


def _logits(side: Source, tokens: torch.Tensor) -> torch.Tensor:
    if side.format != hugging_face.NAME:
        return _megagpt(side, tokens)
    architecture, model, settings, stored = hugging_face.stored_tensors(side.path)
    return _transformers(architecture, model, settings, {name: part.read for name, part in stored.items()}, tokens)


def _megagpt(side: Source, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with _our_model(side) as module:
        return module(tokens, positions, None).float()


@contextmanager
def _our_model(side: Source) -> Iterator[torch.nn.Module]:
    """Our model with a source's weights, in a context without gradients."""
    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    parallel = ParallelConfig()
    alone = not dist.is_initialized()
    launch.initialize(parallel, seed=0)
    try:
        with torch.no_grad():
            module = GPT(_config(side, parallel)).cpu().eval()
            for name, parameter, _ in named_boxes([module]):
                parameter.copy_(side.read(f"model/{name}"))
            yield module
    finally:
        if alone:
            launch.shutdown()


def _config(side: Source, parallel: ParallelConfig) -> Config:
    attention = "unfused" if side.model.attention_softcap else "sdpa"
    plain = KernelsConfig(attention, "torch", "torch", "torch", "torch")
    optim, embed = OptimConfig(precision="fp32"), side.embed or EmbedConfig()
    return Config(model=side.model, parallel=parallel, optim=optim, kernels=plain, embed=embed)


@torch.no_grad()
def _transformers(
    architecture: str,
    model: ModelConfig,
    settings: Mapping[str, Any],
    weights: Mapping[str, Callable[[], torch.Tensor]],
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Logits of transformers' model with the checked `settings`.

    transformers gets neither the path nor the name of the folder, so that nothing in a config.json can make it load
    code, a kernel or a quantized model.
    """
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            "the proof of a conversion needs transformers: pip install transformers, or give --no-verify"
        ) from None
    kind = getattr(transformers, architecture)
    config = kind.config_class(**settings, pad_token_id=None, attn_implementation="eager")
    module = kind(config).float().eval()
    for name, parameter in module.named_parameters():
        read = weights.get(name) or weights.get(name.replace("lm_head.", f"{BY_CLASS[architecture].head}."))
        if read is None:
            raise CheckpointError(f"transformers' {architecture} has {name}, which the folder lacks")
        parameter.copy_(read())
    return module(tokens, use_cache=False).logits.float()


def _largest_difference_of_vectors(source: Source, folder: Path) -> float:
    """Largest absolute difference between elements of the vectors of `TEXTS`, as queries and as documents.

    Our vectors are computed one text at a time. sentence-transformers loads the folder and computes two texts at a
    time, so that the shorter one is padded.
    """
    encoder = TextEncoder(source.embed, source.model.sequence_length, Tokenizer.load(source.tokenizer))
    texts = [*TEXTS, "longer than that, " * encoder.max_tokens]
    ours = {side: [] for side in SIDES}
    with _our_model(source) as module:
        for side in SIDES:
            for row in encoder.encode(texts, side)[0]:
                batch = encoder.batch([row], 1, len(row))
                vector = module(batch.tokens, batch.position_ids, None, labels=batch.labels)
                ours[side].append(F.normalize(vector[0].float(), dim=-1))
    theirs = _sentence_transformers(folder, texts)
    return max((torch.stack(ours[side]) - theirs[side]).abs().max().item() for side in SIDES)


def _sentence_transformers(folder: Path, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """{side: vectors of the texts, float32 [n, H]}."""
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError:
        raise CheckpointError(
            "the proof of this conversion needs sentence-transformers: pip install sentence-transformers, or give"
            " --no-verify"
        ) from None
    logging.disable_progress_bar()
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encode = {"query": model.encode_query, "document": model.encode_document}
    return {side: torch.from_numpy(encode[side](texts, batch_size=2, show_progress_bar=False)) for side in SIDES}
