"""Checkpoints: sharded files that any layout can load, published atomically and verified before use."""

from megagpt.checkpoint.checkpointer import Checkpointer
from megagpt.checkpoint.format import read_manifest
from megagpt.checkpoint.loading import find, find_newest, load
from megagpt.checkpoint.world import World, current_world
from megagpt.parallel.shards import Shard

__all__ = ["Checkpointer", "Shard", "World", "current_world", "find", "find_newest", "load", "read_manifest"]
