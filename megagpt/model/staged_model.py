"""A model whose layers may be on several pipeline stages, as one function from tokens to logits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError
from megagpt.model.gpt import GPT
from megagpt.model.kv_cache import JointPass, Pass
from megagpt.model.tree_pass import CachePass


class StagedModel:
    """This rank's chunks of a language model, with its tokenizer.

    All ranks that share the model (tensor and pipeline parallel) must make the same calls.
    """

    def __init__(self, modules: list[GPT], config: Config, tokenizer: Tokenizer) -> None:
        """`modules` are this rank's chunks in order (`engine.modules`).

        Raises ConfigError when the tokenizer has more tokens than the model, or when the model has no logits.
        """
        if config.model.head != "tokens":
            raise ConfigError(
                f"the model's head is {config.model.head} (model.head), which generates no text: take the checkpoint of"
                " a language model"
            )
        if tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but model.vocab_size is {config.model.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )
        self.modules, self.tokenizer = modules, tokenizer
        self.window = config.model.sequence_length
        self.groups = modules[0].pg_collection
        self.layers = sum(len(module.decoder.layers) for module in modules)
        """Number of layers on this rank."""

    @property
    def device(self) -> torch.device:
        """The model's current device. It may change: models that are not in use may be moved to CPU memory."""
        return next(self.modules[0].parameters()).device

    def forward(self, tokens: Tensor, current: Pass | JointPass) -> Tensor | None:
        """Send the tokens [T] of a pass through all pipeline stages.

        Returns on the last pipeline stage the logits of the tokens that the pass asks for, float32 [n, V] without the
        padding of the vocabulary; None on the other stages.
        """
        out = self.through_stages(tokens, current)
        return None if out is None else out[:, : self.tokenizer.vocab_size].float()

    def through_stages(self, tokens: Tensor, current: CachePass) -> Tensor | None:
        """The same for any pass; returns the last chunk's output on the last pipeline stage, else None."""
        stage, stages, pipeline = self.groups.pp.rank(), self.groups.pp.size(), self.groups.pp
        for module in self.modules:
            if not module.pre_process:
                settings = module.config
                hidden = torch.empty(
                    len(tokens), settings.hidden_size, dtype=settings.pipeline_dtype, device=self.device
                )
                dist.recv(hidden, group=pipeline, group_src=(stage - 1) % stages)
                module.set_input_tensor(hidden)
            out = module(tokens, cache_pass=current)
            if not module.post_process:
                dist.send(out.contiguous(), group=pipeline, group_dst=(stage + 1) % stages)
        return out if self.modules[-1].post_process else None

    def share(self, values: Tensor) -> None:
        """Broadcast `values`, in place, from the last pipeline stage's first tensor rank to the whole replica."""
        if self.groups.mp.size() > 1:
            dist.broadcast(values, group=self.groups.mp, group_src=self.groups.mp.size() - self.groups.tp.size())


@contextmanager
def for_generation(modules: list[GPT]) -> Iterator[None]:
    """Evaluation mode without sequence parallelism, which cannot split a single token. Both are restored afterwards."""
    training = [module.training for module in modules]
    switched = [
        (holder, name)
        for module in modules
        for holder in (module.config, *module.modules())
        for name in ("sequence_parallel", "reduce_scatter_embeddings")
        if getattr(holder, name, False) is True
    ]
    try:
        for holder, name in switched:
            setattr(holder, name, False)
        for module in modules:
            module.eval()
        yield
    finally:
        for holder, name in switched:
            setattr(holder, name, True)
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)
