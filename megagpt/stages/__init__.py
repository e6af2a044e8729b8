"""Training stages. Each stage is a class in its own file; `session.py` runs it."""

from megagpt.config.schema import Config
from megagpt.errors import DistributedError, MegaGPTError


def run(config: Config) -> int:
    """Run the stage that `config.stage.name` names, in this process, as its rank. Returns the exit code.

    When ranks fail, only the first one raises its error; the others return an exit code, since their errors follow from
    the first. A failed rank must end its process: its process groups are left open, see `launch.abandon`.
    Raises DistributedError when the contact with another rank is lost.
    """
    from megagpt.parallel import launch
    from megagpt.stages.session import run_stage

    try:
        code = run_stage(config)
    except Exception as error:
        launch.abandon()
        if not launch.is_first_failure():
            return error.exit_code if isinstance(error, MegaGPTError) else 1
        if launch.is_lost_contact(error):
            raise DistributedError(
                "lost contact with another rank: it was killed, crashed, or took longer than parallel.timeout_minutes "
                f"({config.parallel.timeout_minutes:g}; while a run trains, twice its longest reliability.*_timeout). "
                "Look for the first message of that rank; the newest checkpoint is good, and the same command "
                f"continues from it ({str(error).splitlines()[0]})"
            ) from error
        raise
    launch.shutdown()
    return code
