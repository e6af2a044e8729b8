"""Folders of runs that trained nothing."""

from dataclasses import replace
from pathlib import Path

import torch

from megagpt.config.schema import CheckpointConfig, Config, CorpusConfig, DataConfig
from megagpt.data.tokenizer import Tokenizer


def save_random_run(folder: Path, config: Config, tokenizer: Tokenizer, noise: float = 0.0) -> Path:
    """Make the folder of a run that saved its first, random weights; its data and tokenizer have since been moved.

    noise: standard deviation of what is added to all parameters, so that biases are not 0 and norms not 1.
    """
    from megagpt.checkpoint import Checkpointer
    from megagpt.config.load import to_dict
    from megagpt.parallel import launch
    from megagpt.parallel.megatron import MegatronEngine

    folder.mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    data = DataConfig(tokenizer="moved/tokenizer.json", corpora=(CorpusConfig("moved/corpus"),))
    config = replace(config, data=data, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    launch.initialize(config.parallel, config.seed)
    engine = MegatronEngine(config, objective=None, training=False)
    for parameter in engine.modules[0].parameters():
        parameter.data.add_(torch.randn(parameter.shape, dtype=parameter.dtype), alpha=noise)
    with Checkpointer(folder / "checkpoints", CheckpointConfig()) as checkpointer:
        checkpointer.save(1, engine.shards(for_saving=True), {}, {}, {"config": to_dict(config)})
    launch.shutdown()
    return folder
