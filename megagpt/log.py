"""Logging that knows its rank, progress bars, and how a command line ends when something is wrong."""

import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from megagpt import env
from megagpt.errors import STOPPED_BY_SIGNAL, Interrupted, MegaGPTError

log = logging.getLogger(__name__)

STARTED = time.perf_counter()
"""When this process began: every command imports this module first."""

LINE_INTERVAL_SECONDS = 30.0
"""Time between two progress lines where stderr is not a terminal."""

QUIET = (
    (r"megatron\.", UserWarning),  # that Apex and Transformer Engine are not installed: megagpt needs neither
    (r"megagpt\.parallel\.cpu", UserWarning),  # the same, seen from where Megatron-Core's calls pass through
    (r"torch\.distributed", FutureWarning),  # names of collectives that Megatron-Core and DeepSpeed still use
)
"""Warnings of libraries that a user can do nothing about: the module that they point at, and their category."""


class _Stderr(logging.Handler):
    """Writes to today's stderr, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _File(logging.FileHandler):
    """Appends to log.txt; a file that cannot be written is reported once and never stops the run."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            log.warning("cannot write %s (%s): the log goes on here only", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # closing flushes what a full disk could not take
            self.stream = None


class _Short(logging.Formatter):
    """`12:34:56 message` with the level named from warnings upwards and the rank on all ranks but the first."""

    def __init__(self, rank: int) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.prefix = f"[rank {rank}] " if rank else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, self.datefmt)} {self.prefix}{level}{record.message}"


def setup(run_dir: str | Path | None = None) -> None:
    """Send log records to stderr and, on rank 0 and given a run folder, to its log.txt as well.

    Rank 0 shows megagpt's own information; other ranks, and other libraries, only warnings and worse. Calling it
    again replaces what the earlier call set up.
    """
    rank = env.rank()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Stderr | _File)]:
        root.removeHandler(handler)
        handler.close()
    stderr = _Stderr()
    stderr.setFormatter(_Short(rank))
    root.addHandler(stderr)
    logging.getLogger("megagpt").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # Megatron-Core warns that it does not know our feed-forward layer, and 0.19 that it lays out parameters itself.
    for module in ("transformer.transformer_layer", "distributed.distributed_data_parallel"):
        logging.getLogger(f"megatron.core.{module}").setLevel(logging.ERROR)
    for module, category in QUIET:
        warnings.filterwarnings("ignore", category=category, module=module)
    if run_dir is None or rank != 0:
        return
    path = Path(run_dir) / "log.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _File(path, encoding="utf-8")
    except OSError as error:
        log.warning("cannot open %s (%s): the log goes to stderr only", path, error)
        return
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(file)


class _Lines(tqdm):
    """A progress bar without a terminal: now and then a plain line in the log."""

    def __init__(self, **options: Any) -> None:
        # Nothing is drawn: ncols=0 leaves the bar out, and the newline that close() writes goes to a buffer.
        interval = {"mininterval": LINE_INTERVAL_SECONDS, "maxinterval": LINE_INTERVAL_SECONDS, "miniters": 1}
        super().__init__(**options, **interval, file=io.StringIO(), ncols=0)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n > self.initial:
            log.info("%s", msg or self)


def progress(total: float | None, unit: str, desc: str, initial: int = 0) -> tqdm:
    """A progress bar, to be used as a context manager: `update(n)` advances it, and
    `set_postfix(loss=..., refresh=False)` annotates it, to be shown with the next update.

    It is drawn on rank 0 only; where stderr is not a terminal it becomes a log line every LINE_INTERVAL_SECONDS.
    `unit` "B" (bytes) and "tokens" are shown with SI prefixes. `initial` is where a resumed job starts.
    """
    options = {"total": total, "unit": unit, "desc": desc, "initial": initial, "unit_scale": unit in ("B", "tokens")}
    if env.rank() != 0:
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True)
    return _Lines(**options)


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main` and exit with its return value (None is 0).

    An error of megagpt is reported as one message without traceback, with its own exit code. A rank that failed ends at
    once: Python's own end waits for threads and process groups, which may wait for other ranks or for a GPU.
    """
    setup()
    code = _reported(main)
    if code in (0, STOPPED_BY_SIGNAL) or not env.is_rank():
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _reported(main: Callable[[], int | None]) -> int:
    """Exit code of `main`, whose error has been told."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        error = Interrupted("interrupted")
    except MegaGPTError as raised:
        error = raised
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    if not isinstance(error, Interrupted) or env.rank() == 0:  # Ctrl-C reaches every rank
        log.error("%s", error)
    return error.exit_code
