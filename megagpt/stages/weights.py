"""Another run's weights, which a run starts from; its vocabulary may be smaller."""

import logging
from pathlib import Path

import torch

from megagpt import checkpoint
from megagpt.checkpoint import Shard, current_world
from megagpt.config.load import from_dict
from megagpt.config.schema import Config, ModelConfig
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError
from megagpt.parallel.engine import Engine

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
"""The copy of its tokenizer in a run's folder."""

TABLES = ("model/embedding.word_embeddings.weight", "model/output_layer.weight")
"""Tensors with a row for every token, [padded vocabulary, hidden size]; tied embeddings have only the first."""


HEAD = "model/scalar_head."
"""What names of a scalar head's tensors begin with."""


def load_weights(config: Config, engine: Engine) -> None:
    """Fill the engine's model from `checkpoint.load`, and grow its vocabulary to `model.vocab_size`. Collective.

    A model with a scalar head takes all but that from a language model, whose output projection is left out.

    Old rows stay as they were. Every new row is the mean of the old ones, the same bits in every layout. A new token's
    logit is then the mean of the old tokens' logits, which is at most the logarithm of their mean exponential: n new
    tokens take together at most n / (V + n) of the probability from V old ones, whatever the text. Rows drawn at random
    have no such bound.

    Raises ConfigError when the vocabulary would shrink, the tokenizer gives old ids to other tokens, or a language
    model would start from a scalar head; CheckpointError when the checkpoint is not valid or of another model.
    """
    source, world = checkpoint.locate(Path(config.checkpoint.load)), current_world()
    old, new = from_dict(checkpoint.read_manifest(source)["config"]).model, config.model.vocab_size
    _check_vocabulary(config, source, old.vocab_size)
    _check_head(config, source, old)
    shards = [shard for shard in engine.shards(for_saving=False) if shard.name.startswith("model/")]
    if old.head != config.model.head:
        shards = [shard for shard in shards if not shard.name.startswith(HEAD)]
    tables = [shard for shard in shards if shard.name in TABLES]
    wanted = [shard for shard in shards if shard.name not in TABLES]
    wanted += [_old_rows(shard, old.vocab_size, old.padded_vocab_size) for shard in tables]
    names = TABLES if config.model.head == "tokens" and not config.model.tie_embeddings else TABLES[:1]
    wholes = []
    if new > old.vocab_size and world.rank == 0:  # no rank but this one has to hold a whole table
        shape = (old.padded_vocab_size, old.hidden_size)
        wholes = [Shard.whole(name, torch.empty(shape)) for name in names]
    checkpoint.load(source, [*wanted, *wholes], strict=False, cast=True, world=world)
    if new > old.vocab_size:
        rows = world.broadcast([whole.data[: old.vocab_size].double().mean(0).tolist() for whole in wholes])
        means = {name: torch.tensor(row) for name, row in zip(names, rows, strict=True)}
        for shard in tables:
            start, stop, data = _elements(shard, old.vocab_size, new)
            data.copy_(means[shard.name][torch.arange(start, stop) % old.hidden_size])
        log.info("%d new tokens' rows are the mean of the %d old ones", new - old.vocab_size, old.vocab_size)
    log.info("started from the weights of %s", source)


def _check_head(config: Config, source: Path, old: ModelConfig) -> None:
    if old.head == config.model.head:
        return
    if config.model.head == "tokens":
        raise ConfigError(
            f"model.head is tokens, but checkpoint.load ({source}) has a {old.head} head, as reward models do, and no"
            " output projection: start from a language model"
        )
    left_out = "" if old.tie_embeddings else "; the output projection is left out"
    log.info("the scalar head is new%s", left_out)


def _check_vocabulary(config: Config, source: Path, old_size: int) -> None:
    if config.model.vocab_size < old_size:
        raise ConfigError(
            f"model.vocab_size ({config.model.vocab_size}) is below the {old_size} of checkpoint.load ({source}), but "
            f"a vocabulary can only grow: set model.vocab_size={old_size} or more"
        )
    beside = source.parent.parent / TOKENIZER
    if not beside.exists():
        return
    older, newer = Tokenizer.load(beside), Tokenizer.load(config.data.tokenizer)
    index = newer.first_difference(older)
    if index is not None:
        raise ConfigError(
            f"data.tokenizer ({config.data.tokenizer}) does not begin with the tokens of {beside}, which "
            f"checkpoint.load was trained with: they differ from id {index} on, so rows of the embedding would mean "
            f"other tokens. Take that tokenizer, or extend it: `megagpt data tokenizer --extend {beside} --output NEW`"
        )


def _elements(shard: Shard, first: int, last: int) -> tuple[int, int, torch.Tensor]:
    """What a shard of a table holds of its rows first..last-1: a range of its box's elements, and their data, 1-D."""
    above, width = shard.offset[0], shard.global_shape[1]
    begin, end = shard.range
    start, stop = (min(max((row - above) * width, begin), end) for row in (first, last))
    return start, stop, shard.data.view(-1)[start - begin : stop - begin]


def _old_rows(shard: Shard, count: int, padded: int) -> Shard:
    """What a shard of a table holds of its first `count` rows, as a shard of the old table of `padded` rows."""
    start, stop, data = _elements(shard, 0, count)
    width, above = shard.global_shape[1], min(shard.offset[0], count)
    rows = min(shard.offset[0] + shard.shape[0], count) - above
    span = (start, stop) if start < stop else (0, 0)  # a rank may hold none of them
    return Shard(shard.name, (padded, width), (above, 0), (rows, width), span, data)
