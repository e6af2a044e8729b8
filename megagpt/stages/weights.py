"""Loads another run's weights, to start a run from them or to use the model."""

import dataclasses
import logging
import shlex
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt import checkpoint, env
from megagpt.checkpoint import Shard, current_world
from megagpt.checkpoint.files import shown
from megagpt.config.embedding import EmbedConfig
from megagpt.config.layout_rules import world_size_fits
from megagpt.config.load import raise_all
from megagpt.config.rules import check
from megagpt.config.schema import Config, CorpusConfig, DataConfig, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError, ConfigError
from megagpt.model.linears import transpose_storage
from megagpt.parallel import launch
from megagpt.parallel.engine import Engine, Objective
from megagpt.parallel.megatron import MegatronEngine
from megagpt.stages.vocabulary import TABLES, fill_rows, old_rows, tables_of

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
"""File name of the tokenizer's copy in a run folder."""

FREE_OPTIONS = ("name", "sequence_length", "vocab_size", "head", "hidden_dropout", "attention_dropout", "init_std")
"""Fields of `model` that may change when another run starts from its weights."""

HEADS = ("model/scalar_head.", "model/embedding_head.")
"""Prefixes of the names of head tensors that a language model does not have."""


def load_weights(config: Config, engine: Engine) -> Path:
    """Fill the engine's model from `checkpoint.load`, and grow its vocabulary to `model.vocab_size`. Collective.

    Returns the path of the checkpoint.

    If the checkpoint has the same kind of head, the head is loaded too. A model with a scalar or embedding head can
    also start from a language model, whose output projection is left out. The `score_offset` of a reward model is
    subtracted from the bias of its head.

    Raises ConfigError when the vocabulary would shrink, the tokenizer gives old ids to other tokens, or the heads
    differ and the checkpoint is no language model; CheckpointError when the checkpoint is invalid or of another model.
    """
    source = checkpoint.find(Path(config.checkpoint.load))
    manifest = checkpoint.read_manifest(source)
    saved = checkpoint.buildable_config(source)
    old = saved.model
    _check_vocabulary(config, source, old.vocab_size)
    _check_head(config, source, old)
    _warn_of_other_architecture(config.model, old, source)
    shards = [shard for shard in engine.shards(for_saving=False) if shard.name.startswith("model/")]
    if old.head == config.model.head == "embedding":
        _say_what_differs(saved.embed, config.embed, source)
    if old.head != config.model.head or (old.head == "embedding" and not saved.embed.learn_temperature):
        shards = [shard for shard in shards if not shard.name.startswith(HEADS)]
    _load_growing(config.model, old, source, shards)
    if config.model.head == old.head == "scalar":
        _subtract_offset(shards, manifest)
    log.info("loaded the weights of %s", source)
    return source


def load_model(
    path: Path, parallel: ParallelConfig, objective: Objective | None = None
) -> tuple[Config, MegatronEngine, Tokenizer]:
    """The model of a checkpoint, or of a run's best or newest checkpoint, in layout `parallel`, without an optimizer.

    objective: defines the engine's outputs, see `Engine.outputs`; None if only the modules are used. Joins the other
    ranks. Raises CheckpointError when there is no valid checkpoint, ConfigError when the model does not fit the layout.
    """
    raise_all(list(world_size_fits(Config(parallel=parallel), env.world_size())))
    launch.initialize(parallel, seed=0)
    return load_another(path, parallel, objective)


def load_another(
    path: Path, parallel: ParallelConfig, objective: Objective | None = None
) -> tuple[Config, MegatronEngine, Tokenizer]:
    """Like `load_model`, for ranks that are already initialized in layout `parallel` and may hold other models."""
    folder = checkpoint.find(path)
    config = checkpoint.buildable_config(folder)
    tokenizer = folder.parent.parent / TOKENIZER
    if not tokenizer.exists():
        if not config.data.tokenizer:
            raise CheckpointError(f"{folder} has no tokenizer: put the tokenizer.json of its training at {tokenizer}")
        tokenizer = Path(config.data.tokenizer)
    _check_layout(config.model, parallel)
    config = dataclasses.replace(
        config,
        parallel=parallel,
        data=dataclasses.replace(config.data, tokenizer=str(tokenizer)),
        checkpoint=dataclasses.replace(config.checkpoint, load=str(folder)),
    )
    engine = MegatronEngine(config, objective, training=False)
    load_weights(config, engine)
    transpose_storage(engine.modules)
    return config, engine, Tokenizer.load(tokenizer)


def _load_growing(model: ModelConfig, old: ModelConfig, source: Path, shards: list[Shard]) -> None:
    """Fill shards of `model` from a checkpoint of the model `old`, whose vocabulary may be smaller. Collective.

    Old rows do not change. Every new row is the mean of the old rows, bitwise equal in every layout. A new token's
    logit is then the mean of the V old logits, which by Jensen's inequality is at most the logarithm of their mean
    exponential. So n new tokens together get at most n / (V + n) of the probability, for any text. Random rows have
    no such bound.
    """
    world, grows = current_world(), model.vocab_size > old.vocab_size
    tables = [shard for shard in shards if shard.name in TABLES]
    wanted = [shard for shard in shards if shard.name not in TABLES]
    wanted += [old_rows(shard, old.vocab_size, old.padded_vocab_size) for shard in tables]
    tables_before = tables_of(dataclasses.replace(old, head=model.head))
    wholes = []
    if grows and world.rank == 0:  # only this rank needs memory for a whole table
        wholes = [Shard.whole(name, torch.empty(shape)) for name, shape in tables_before.items()]
    checkpoint.load(source, [*wanted, *wholes], strict=False, cast=True, world=world)
    if grows:
        means = [whole.data[: old.vocab_size].double().mean(0, keepdim=True).flatten().tolist() for whole in wholes]
        rows = dict(zip(tables_before, map(torch.tensor, world.broadcast(means)), strict=True))
        for shard in tables:
            fill_rows(shard, old.vocab_size, model.vocab_size, rows[shard.name])
        new = model.vocab_size - old.vocab_size
        log.info("the rows of %d new tokens are the mean of the %d old rows", new, old.vocab_size)


def _subtract_offset(shards: list[Shard], manifest: dict[str, Any]) -> None:
    """Subtract a reward model's `score_offset` from its head's bias, so that demonstrations score 0 on average."""
    offset = manifest.get("score_offset", 0.0)
    if not isinstance(offset, int | float):
        raise CheckpointError(f"the manifest's score_offset is {shown(offset)}, not a number")
    for shard in shards:
        if shard.name == "model/scalar_head.bias":
            shard.data.sub_(offset)


def _check_layout(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Raise ConfigError when the model does not fit the layout; the other sections are placeholders."""
    ranks = dist.get_world_size()
    optim = OptimConfig(global_batch_size=ranks * 64)
    data = DataConfig(tokenizer=TOKENIZER, corpora=(CorpusConfig("unused"),))
    model = dataclasses.replace(model, head="tokens")  # another head belongs to another stage
    check(Config(model=model, parallel=parallel, optim=optim, data=data), ranks)


def _warn_of_other_architecture(model: ModelConfig, old: ModelConfig, source: Path) -> None:
    """Log changed options of the architecture: most do not change shapes, so the weights load without an error."""
    for field in dataclasses.fields(ModelConfig):
        before, now = getattr(old, field.name), getattr(model, field.name)
        if before != now and field.name not in FREE_OPTIONS:
            log.warning("model.%s is %s, but the model of %s was trained with %s", field.name, now, source, before)


def _check_head(config: Config, source: Path, old: ModelConfig) -> None:
    wanted = config.model.head
    if old.head == wanted:
        return
    if old.head != "tokens":
        kind = {"scalar": "a reward model", "embedding": "an embedding model"}[old.head]
        raise ConfigError(
            f"model.head is {wanted}, but checkpoint.load ({source}) is {kind} (model.head={old.head}), which has no"
            " output projection: start from a language model"
        )
    left_out = "" if old.tie_embeddings else "; the output projection is left out"
    log.info("the %s head is new%s", wanted, left_out)


def _say_what_differs(old: EmbedConfig, new: EmbedConfig, source: Path) -> None:
    for name in ("query_prefix", "query_suffix", "document_prefix", "document_suffix", "max_tokens", "dimensions"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            log.warning("embed.%s is %r, but the embedding model of %s was trained with %r", name, now, source, before)


def _check_vocabulary(config: Config, source: Path, old_size: int) -> None:
    if config.model.vocab_size < old_size:
        raise ConfigError(
            f"model.vocab_size ({config.model.vocab_size}) is below the {old_size} of checkpoint.load ({source}), but "
            f"a vocabulary can only grow: set model.vocab_size={old_size} or higher"
        )
    beside = source.parent.parent / TOKENIZER
    if not beside.exists() or beside == Path(config.data.tokenizer):
        return
    older, newer = Tokenizer.load(beside), Tokenizer.load(config.data.tokenizer)
    index = newer.first_difference(older)
    if index is not None:
        extend = f"`megagpt data tokenizer --extend {shlex.quote(str(beside))} --output NEW`"
        raise ConfigError(
            f"data.tokenizer ({config.data.tokenizer}) does not begin with the tokens of {beside}, which "
            f"checkpoint.load was trained with: they differ from id {index} on, so rows of the embedding would belong "
            f"to other tokens. Use that tokenizer, or extend it: {extend}"
        )
