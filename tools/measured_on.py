"""Describe the machine and the software of a measurement."""

import datetime
import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path


def measured_on(*packages: str) -> dict[str, str]:
    """The processor, the versions of Python and of `packages`, the date, and the running command."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "cpu": next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }
