"""Set-up of worker processes, which end together with the process that started them."""

import multiprocessing
import os
import signal
import threading


def start_worker() -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit when the parent has ended, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
