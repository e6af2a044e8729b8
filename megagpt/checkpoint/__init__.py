"""Checkpoints: sharded files that any layout can load, published atomically and verified before use."""

from megagpt.checkpoint.checkpointer import Checkpointer
from megagpt.checkpoint.format import read_manifest
from megagpt.checkpoint.loading import load, locate, newest_valid
from megagpt.checkpoint.world import World, current_world
from megagpt.parallel.shards import Shard

__all__ = ["Checkpointer", "Shard", "World", "current_world", "load", "locate", "newest_valid", "read_manifest"]
