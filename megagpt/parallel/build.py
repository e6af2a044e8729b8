"""Builds the engine that a configuration names."""

from megagpt.config.schema import Config
from megagpt.parallel.engine import Engine, Objective


def build_engine(config: Config, objective: Objective) -> Engine:
    """Build the engine named by `parallel.engine`, which trains `objective`. Call `launch.initialize` first.

    Raises ConfigError when the engine is deepspeed and DeepSpeed is not installed.
    """
    if config.parallel.engine == "deepspeed":
        from megagpt.parallel.zero import DeepSpeedEngine

        return DeepSpeedEngine(config, objective)
    from megagpt.parallel.megatron import MegatronEngine

    return MegatronEngine(config, objective)
