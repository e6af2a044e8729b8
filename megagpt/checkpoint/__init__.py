"""Checkpoints: sharded files that any layout can load, published atomically and verified before use."""

from megagpt.checkpoint.checkpointer import Checkpointer
from megagpt.checkpoint.format import read_manifest, weights_content
from megagpt.checkpoint.loading import find, find_newest, first_choice, load
from megagpt.checkpoint.saved import buildable_config, config_of, data_of
from megagpt.checkpoint.world import World, current_world
from megagpt.parallel.shards import Shard

__all__ = [
    "Checkpointer",
    "Shard",
    "World",
    "buildable_config",
    "config_of",
    "current_world",
    "data_of",
    "find",
    "find_newest",
    "first_choice",
    "load",
    "read_manifest",
    "weights_content",
]
