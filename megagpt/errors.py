"""Every error that megagpt raises for people to read, with the exit code of a process that ends with it."""


class MegaGPTError(Exception):
    """Base class of megagpt's errors. The message says what was wrong, where, and what to do."""

    exit_code = 1


class ConfigError(MegaGPTError):
    """A key, a value or a combination of values in the configuration is wrong."""

    exit_code = 2


class DataError(MegaGPTError):
    """An input file or a record in it is malformed, missing or does not match the configuration."""

    exit_code = 3


class CheckpointError(MegaGPTError):
    """A checkpoint could not be written, or no valid checkpoint could be read."""

    exit_code = 4


class TrainingDiverged(MegaGPTError):
    """Too many steps in a row had a loss or gradient that was not finite."""

    exit_code = 5


class DistributedError(MegaGPTError):
    """A rank could not join its group, or a collective failed."""

    exit_code = 6


class RepeatedFailure(MegaGPTError):
    """Several attempts of a job failed in the same step."""

    exit_code = 8


class ReplicasDiverged(MegaGPTError):
    """Ranks that hold the same tensor no longer hold the same values."""

    exit_code = 9


class Interrupted(MegaGPTError):
    """Somebody pressed Ctrl-C; 128 + SIGINT, as shells count."""

    exit_code = 130


HUNG = 7
"""Exit code of a rank that its watchdog ended, because some rank made no progress."""

STOPPED_BY_SIGNAL = 75
"""Exit code of a run that was asked to stop, saved, and can be resumed (EX_TEMPFAIL of sysexits.h)."""

FOR_GOOD = tuple(kind.exit_code for kind in (ConfigError, DataError, TrainingDiverged, RepeatedFailure))
"""Exit codes of permanent failures: do not retry."""
