"""Loads the embedding model of another run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from megagpt import checkpoint
from megagpt.config.embedding import EmbedConfig
from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError
from megagpt.evaluate.embedder import Embedder
from megagpt.stages.weights import load_model
from megagpt.train.contrastive import ContrastiveObjective


def load_embedder(path: Path, parallel: ParallelConfig, load: Callable = load_model) -> Embedder:
    """The embedding model of a checkpoint, or of a run's best or newest checkpoint, in layout `parallel`. Collective.

    load: `load_model`, or `load_another`.

    Raises CheckpointError when there is no valid checkpoint, ConfigError when the model was not trained by stage embed
    or does not fit the layout.
    """
    folder = checkpoint.find(path)
    head = checkpoint.config_of(folder).model.head
    if head != "embedding":
        raise ConfigError(
            f"{path} has a {head} head (model.head), so it computes no vectors of texts: give a run of stage embed."
            f" This command trains one: `megagpt train stage=embed checkpoint.load={path} 'data.pairs=[pairs.jsonl]'`"
        )
    config, engine, tokenizer = load(folder, parallel, ContrastiveObjective(EmbedConfig()))
    return Embedder(engine, dataclasses.replace(config, parallel=parallel), tokenizer)
