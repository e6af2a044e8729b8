"""What can be trained: each stage defines an objective and runs the loop."""

from megagpt.config.schema import Config
from megagpt.errors import DistributedError, MegaGPTError


def run(config: Config) -> int:
    """Run the stage that `config.stage.name` names, in this process, as its rank. Returns the exit code.

    When ranks fail, the first one raises its error; the others only return an exit code, since theirs follows from it.
    """
    from megagpt.parallel import launch
    from megagpt.stages import ppo, pretrain, reward, supervised

    # What sets code apart from pretrain, and edit from sft, is configuration: where it starts and what it reads.
    stages = {
        "pretrain": pretrain.run,
        "code": pretrain.run,
        "edit": supervised.run,
        "sft": supervised.run,
        "reward": reward.run,
        "ppo": ppo.run,
    }
    try:
        return stages[config.stage.name](config)
    except Exception as error:
        if not launch.is_first_failure():
            return error.exit_code if isinstance(error, MegaGPTError) else 1
        if launch.is_lost_contact(error):
            raise DistributedError(
                "lost contact with another rank: it was killed, crashed, or took longer than parallel.timeout_minutes "
                f"({config.parallel.timeout_minutes:g}). Look for the first message of that rank; the newest "
                f"checkpoint is good, and the same command goes on from it ({str(error).splitlines()[0]})"
            ) from error
        raise
    finally:
        launch.shutdown()
