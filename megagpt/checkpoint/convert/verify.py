"""Proof of a conversion: both sides, loaded on the CPU, give the same logits, or the same vectors of texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megagpt.checkpoint.convert import hugging_face
from megagpt.checkpoint.convert.base import Source
from megagpt.config.embedding import EmbedConfig
from megagpt.config.schema import Config, KernelsConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.text_batch import SIDES, TextEncoder
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer
from megagpt.errors import CheckpointError
from megagpt.parallel import launch

TOLERANCES = {"logits": 1e-3, "vectors": 1e-5}
"""Largest difference that is taken for rounding; those of a wrong conversion differ by their own size."""
BATCH, TOKENS = 2, 64
TEXTS = (
    "a",
    "How do I open a file?",
    "def add(a, b):\n    return a + b\n",
    "[brackets] {braces} (parentheses)",
    " \tna\u00efve caf\u00e9, \u65e5\u672c\u8a9e, \U0001f600 \n",
    f"{END_OF_TEXT} is text here",
)
"""A text that is longer than the model takes is added to them."""


def compared(model: ModelConfig) -> str:
    """The outputs that `largest_difference` compares."""
    return "vectors" if model.head == "embedding" else "logits"


def largest_difference(source: Source, target: Source) -> float:
    """Largest absolute difference of fp32 logits on a fixed batch of random tokens. One model is in memory at a time.

    Folders of transformers are run by transformers, the others by our GPT model. Of an embedding model it is that of
    vectors, see `_largest_difference_of_vectors`.
    """
    model = source.model
    if model.head == "embedding":
        return _largest_difference_of_vectors(source, target.path)
    length = min(TOKENS, model.sequence_length)
    tokens = torch.randint(model.vocab_size, (BATCH, length), generator=torch.Generator().manual_seed(0))
    ours, theirs = (_runner(side)(side, tokens)[..., : model.vocab_size] for side in (source, target))
    return (ours - theirs).abs().max().item()


def _runner(side: Source) -> Callable[[Source, torch.Tensor], torch.Tensor]:
    return _transformers if side.format == hugging_face.NAME else _megagpt


def _megagpt(side: Source, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    with _our_model(side) as module:
        return module(tokens, positions, None).float()


@contextmanager
def _our_model(side: Source) -> Iterator[torch.nn.Module]:
    """Our model with a source's weights, for use without gradients."""
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
    plain = KernelsConfig("sdpa", "torch", "torch", "torch", "torch")
    optim, embed = OptimConfig(precision="fp32"), side.embed or EmbedConfig()
    return Config(model=side.model, parallel=parallel, optim=optim, kernels=plain, embed=embed)


@torch.no_grad()
def _transformers(side: Source, tokens: torch.Tensor) -> torch.Tensor:
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise CheckpointError(
            "the proof of a conversion needs transformers: pip install transformers, or give --no-verify"
        ) from None
    logging.disable_progress_bar()
    folder: Path = side.path
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return module(tokens).logits.float()


def _largest_difference_of_vectors(source: Source, folder: Path) -> float:
    """Largest absolute difference of an element of `TEXTS`' vectors, as queries and as documents.

    Ours are computed one by one. sentence-transformers loads the folder and computes its own two by two, so that the
    shorter one is padded.
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
    """The texts' vectors, float32 [n, H], by side."""
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
