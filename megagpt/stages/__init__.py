"""What can be trained: each stage defines a task and runs the loop."""

from megagpt.config.schema import Config


def run(config: Config) -> int:
    """Run the stage that `config.stage.name` names, in this process, as its rank. Returns the exit code."""
    from megagpt.stages import pretrain

    stages = {"pretrain": pretrain.run}
    return stages[config.stage.name](config)
