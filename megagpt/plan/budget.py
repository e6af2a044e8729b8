"""How many steps a run takes in all."""

from functools import lru_cache
from pathlib import Path

from megagpt.config.schema import Config
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.rankings import read_rankings


def total_steps(config: Config) -> float | None:
    """Steps at the full batch size; None where they depend on files that are not there.

    With packing it is an upper bound, as if every conversation had a sequence of its own.
    """
    optim, data = config.optim, config.data
    if config.stage.name == "ppo":
        return config.ppo.episodes * config.ppo.epochs / optim.global_batch_size
    if optim.train_epochs is None:
        return optim.train_tokens / (optim.global_batch_size * config.model.sequence_length)
    ranked = config.stage.name == "reward"
    files = data.rankings if ranked else data.conversations
    if not all(Path(file).exists() for file in files):
        return None
    return optim.train_epochs * _training_samples(files, ranked, data.split) / optim.global_batch_size


@lru_cache(maxsize=4)
def _training_samples(files: tuple[str, ...], ranked: bool, split: tuple[float, float, float]) -> int:
    records = read_rankings(files) if ranked else read_conversations(files)
    return len(split_conversations(records, split)["train"])
