"""Rules of in-context tasks during training. See `rules.py`."""

from collections.abc import Iterator

from megagpt.config.schema import Config

STAGES = ("pretrain", "code", "edit", "sft")


def tasks_are_asked_of_text_models(config: Config, world_size: int) -> Iterator[str]:
    """Reward and embedding models write no text; PPO's steps are for its policy and critic alone."""
    if config.stage.tasks.names and config.stage.name not in STAGES:
        yield (
            f"stage.tasks.names ({', '.join(config.stage.tasks.names)}) are asked in stages {', '.join(STAGES)}, but"
            f" stage.name is {config.stage.name}: set stage.tasks.names=[], and ask the finished model with"
            " `megagpt evaluate`"
        )


def shots_are_different(config: Config, world_size: int) -> Iterator[str]:
    """Each number of demonstrations gives a separate metric, so the numbers differ."""
    shots = config.stage.tasks.shots
    if any(number < 0 for number in shots) or len(set(shots)) < len(shots):
        yield (
            f"stage.tasks.shots ({', '.join(map(str, shots))}) must be different numbers from 0 up: write them as"
            " stage.tasks.shots=[0,8]"
        )


def tasks_have_whole_parameters(config: Config, world_size: int) -> Iterator[str]:
    """Each replica answers a part of the questions with its own forward passes, which ZeRO stage 3 does not allow."""
    if config.stage.tasks.names and config.parallel.zero_stage == 3:
        yield (
            f"stage.tasks.names ({', '.join(config.stage.tasks.names)}) are shared between replicas, which"
            " parallel.zero_stage (3) does not allow, because all must take part in every pass: set zero_stage to 1 or"
            " 2, or stage.tasks.names=[] and ask the checkpoints with `megagpt evaluate`"
        )


TASK_RULES = (
    tasks_are_asked_of_text_models,
    shots_are_different,
    tasks_have_whole_parameters,
)
"""The rules of `stage.tasks`."""
