"""How many steps a run takes in all."""

from functools import lru_cache
from pathlib import Path

from megagpt.config.schema import Config
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.packed import split_of
from megagpt.data.pairs import read_pairs
from megagpt.data.rankings import read_rankings

Split = tuple[float, float, float]


def total_steps(config: Config) -> float | None:
    """Steps at the full batch size; None where they depend on files that are not there.

    Epochs are an upper bound: with packing, as if every conversation had a sequence of its own, and in stage embed, as
    if the last pairs of an epoch were never all of one document.
    """
    optim, data, stage = config.optim, config.data, config.stage.name
    if stage == "ppo":
        return config.ppo.episodes * config.ppo.epochs / optim.global_batch_size
    if optim.train_epochs is None:
        tokens = config.model.sequence_length
        if stage == "embed":  # a pair's texts, as long as they may be
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
