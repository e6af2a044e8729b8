"""Proof of a conversion: both sides, loaded on the CPU, give the same logits."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from megagpt.checkpoint.convert import hugging_face
from megagpt.checkpoint.convert.base import Source
from megagpt.config.schema import Config, KernelsConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.errors import CheckpointError
from megagpt.parallel import launch

TOLERANCE = 1e-3
"""Largest difference of logits that is taken for rounding; those of a wrong conversion differ by their own size."""
BATCH, TOKENS = 2, 64


def largest_difference(source: Source, target: Source) -> float:
    """Largest absolute difference of fp32 logits on a fixed batch of random tokens. One model is in memory at a time.

    Folders of transformers are run by transformers, the others by our GPT model.
    """
    model = source.model
    length = min(TOKENS, model.sequence_length)
    tokens = torch.randint(model.vocab_size, (BATCH, length), generator=torch.Generator().manual_seed(0))
    ours, theirs = (_runner(side)(side, tokens)[..., : model.vocab_size] for side in (source, target))
    return (ours - theirs).abs().max().item()


def _runner(side: Source) -> Callable[[Source, torch.Tensor], torch.Tensor]:
    return _transformers if side.format == hugging_face.NAME else _megagpt


@torch.no_grad()
def _megagpt(side: Source, tokens: torch.Tensor) -> torch.Tensor:
    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    parallel = ParallelConfig()
    alone = not dist.is_initialized()
    launch.initialize(parallel, seed=0)
    try:
        module = GPT(_config(side.model, parallel)).cpu().eval()
        for name, parameter, _ in named_boxes([module]):
            parameter.copy_(side.read(f"model/{name}"))
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return module(tokens, positions, None).float()
    finally:
        if alone:
            launch.shutdown()


def _config(model: ModelConfig, parallel: ParallelConfig) -> Config:
    plain = KernelsConfig("sdpa", "torch", "torch", "torch", "torch")
    return Config(model=model, parallel=parallel, optim=OptimConfig(precision="fp32"), kernels=plain)


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
