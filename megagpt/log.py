"""Logging with the rank in each line, progress bars, and the exit of a command after an error."""

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
    (r"megatron\.", UserWarning),  # it warns that Apex and Transformer Engine are missing; megagpt needs neither
    (r"megagpt\.parallel\.cpu", UserWarning),  # the same warnings, when Megatron-Core is called through this module
    (r"torch\.distributed", FutureWarning),  # names of collectives that Megatron-Core and DeepSpeed still use
)
"""Library warnings that a user can do nothing about, as (pattern of the module that is blamed, category)."""


class _Stderr(logging.Handler):
    """Writes above any progress bar to sys.stderr, as it is when the record is written."""

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
            log.warning("cannot write %s (%s): the log now goes to stderr only", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # closing flushes the buffer, which fails on a full disk
            self.stream = None


class _Short(logging.Formatter):
    """`12:34:56 message`, with the level for warnings and errors, and with the rank on all ranks but rank 0."""

    def __init__(self, rank: int) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self.prefix = f"[rank {rank}] " if rank else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, self.datefmt)} {self.prefix}{level}{record.message}"


def setup(run_dir: str | Path | None = None) -> None:
    """Send log records to stderr. With a run folder, rank 0 also writes them to log.txt in that folder.

    Rank 0 shows megagpt's own info messages. Other ranks and other libraries show only warnings and errors. A second
    call replaces the handlers of the first.
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
    # Megatron-Core warns that it does not know our feed-forward layer; 0.19 also warns that it lays out parameters.
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
    """A progress bar for output without a terminal: a plain log line every LINE_INTERVAL_SECONDS."""

    def __init__(self, **options: Any) -> None:
        # Nothing is drawn: ncols=0 leaves the bar out, and the newline that close() writes goes to a buffer.
        interval = {"mininterval": LINE_INTERVAL_SECONDS, "maxinterval": LINE_INTERVAL_SECONDS, "miniters": 1}
        super().__init__(**options, **interval, file=io.StringIO(), ncols=0)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n > self.initial:
            log.info("%s", msg or self)


def progress(total: float | None, unit: str, desc: str, initial: int = 0) -> tqdm:
    """A progress bar, used as a context manager. `update(n)` advances it; `set_postfix(loss=..., refresh=False)` adds
    values that the next update shows.

    Only rank 0 draws it. Where stderr is not a terminal, it writes a log line every LINE_INTERVAL_SECONDS. The units
    "B" (bytes) and "tokens" are shown with SI prefixes. `initial` is the count at which a resumed job starts.
    """
    options = {"total": total, "unit": unit, "desc": desc, "initial": initial, "unit_scale": unit in ("B", "tokens")}
    if env.rank() != 0:
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True)
    return _Lines(**options)


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main` and exit with its return value (None counts as 0).

    A MegaGPTError is logged as one message without traceback and sets the exit code. A rank that failed exits at once
    by os._exit: Python's normal exit waits for threads and process groups, which may wait for other ranks or a GPU.
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
    """Run `main`, log its error if it raises one, and return the exit code."""
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
