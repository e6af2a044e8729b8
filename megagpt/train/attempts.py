"""Records in which step each attempt of a job failed, and ends a job that fails in the same step again and again."""

import json
import logging
from itertools import takewhile
from pathlib import Path
from typing import Any

from megagpt import env
from megagpt.errors import RepeatedFailure

log = logging.getLogger(__name__)


class Attempts:
    """The record of a job in attempts.json of the run folder. Only rank 0 keeps it (`enabled`).

    Each step is written down, with its samples, before it begins. If the next attempt of the same job finds a step in
    the file, the attempt before it failed in that step. A job that the user starts (not a restart by the launcher)
    begins a new record.
    """

    def __init__(self, run_dir: Path, enabled: bool) -> None:
        self.path, self.enabled = run_dir / "attempts.json", enabled
        self.failures: list[dict[str, Any]] = self._read() if enabled else []
        self._warned = False

    def _read(self) -> list[dict[str, Any]]:
        """The steps in which earlier attempts of this job failed, oldest first."""
        if env.restart_attempt() == 0:
            return []
        try:
            before = json.loads(self.path.read_text())
            failures, step = list(before["failures"]), before["in_step"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): failures of earlier attempts are not counted", self.path, error)
            return []
        return failures + ([step] if step else [])

    def repeated(self) -> list[dict[str, Any]]:
        """The latest failures in a row that were in the same step, newest first."""
        newest_first = self.failures[::-1]
        return list(takewhile(lambda failure: failure["step"] == newest_first[0]["step"], newest_first))

    def begin(self, step: int, first_sample: int, samples: int) -> None:
        """Record that a step begins."""
        self._write({"step": step, "samples": [first_sample, first_sample + samples - 1]})

    def end(self) -> None:
        """Record that this attempt ends without a failure."""
        self._write(None)

    def _write(self, in_step: dict[str, Any] | None) -> None:
        if not self.enabled:
            return
        try:  # no fsync: if the machine fails, the step is not to blame
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"in_step": in_step, "failures": self.failures}))
            temporary.replace(self.path)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("cannot write %s (%s): steps that fail again and again are not counted", self.path, error)


def give_up_if_hopeless(failures: list[dict[str, Any]], limit: int) -> None:
    """Raises RepeatedFailure when there are `limit` or more `failures`, all in the same step (see `repeated`)."""
    if len(failures) >= limit:
        first, last = failures[0]["samples"]
        step = failures[0]["step"]
        raise RepeatedFailure(
            f"{len(failures)} attempts in a row failed in step {step}, which trains on samples {first} to {last} "
            f"(reliability.max_failures={limit}), so the job is not tried again. Look at the first error of the"
            " attempts before; to try again, start the same command anew"
        )
