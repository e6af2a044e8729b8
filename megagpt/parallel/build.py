"""Picks the engine that a configuration asks for."""

from megagpt.config.schema import Config
from megagpt.parallel.engine import Engine, Objective


def build_engine(config: Config, objective: Objective) -> Engine:
    """The engine `parallel.engine`, to train `objective`. Needs the groups of `launch.initialize`.

    Raises ConfigError when it is DeepSpeed's and that is not installed.
    """
    if config.parallel.engine == "deepspeed":
        from megagpt.parallel.zero import DeepSpeedEngine

        return DeepSpeedEngine(config, objective)
    from megagpt.parallel.megatron import MegatronEngine

    return MegatronEngine(config, objective)
