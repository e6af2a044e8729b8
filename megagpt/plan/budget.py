"""Computes the number of steps of a run."""

from functools import lru_cache
from pathlib import Path

from megagpt.config.schema import Config
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.packed import split_of
from megagpt.data.pairs import read_pairs
from megagpt.data.rankings import read_rankings

Split = tuple[float, float, float]


def total_steps(config: Config) -> float | None:
    """Number of steps at the full batch size; None if it depends on files that do not exist.

    For epochs it is an upper bound: with packing it counts one sequence per conversation, and in stage embed it does
    not subtract the pairs at the end of an epoch that cannot form a batch because they share a document.
    """
    optim, data, stage = config.optim, config.data, config.stage.name
    if stage == "ppo":
        return config.ppo.episodes * config.ppo.epochs / optim.global_batch_size
    if optim.train_epochs is None:
        tokens = config.model.sequence_length
        if stage == "embed":  # all texts of a pair at their greatest length
            tokens = (2 + config.embed.hard_negatives) * (config.embed.max_tokens or tokens)
        return optim.train_tokens / (optim.global_batch_size * tokens)
    files = {"reward": data.rankings, "embed": data.pairs}.get(stage, data.conversations)
    if not all(Path(file).exists() for file in files):
        return None
    return optim.train_epochs * _training_samples(files, stage, data.split) / optim.global_batch_size


@lru_cache(maxsize=4)
def _training_samples(files: tuple[str, ...], stage: str, split: Split) -> int:
    if stage == "embed":
        return sum(split_of(pair.split_key, split) == "train" for pair in read_pairs(files))
    records = read_rankings(files) if stage == "reward" else read_conversations(files)
    return len(split_conversations(records, split)["train"])
