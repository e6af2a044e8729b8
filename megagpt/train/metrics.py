"""Writes a run's metrics to metrics.jsonl and, if configured, to Weights & Biases; a failure never stops training."""

import json
import logging
import math
import os
import platform
import queue
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from megagpt import __version__, env
from megagpt.config.schema import LoggingConfig

log = logging.getLogger(__name__)

WANDB_NAMES = {
    "step": "data/step",
    "tokens": "data/tokens",
    "samples": "data/samples",
    "loss": "train/loss",
    "perplexity": "train/perplexity",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "global_batch_size": "optim/global_batch_size",
    "step_seconds": "speed/step_seconds",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "memory_gib": "memory/peak_gib",
    "skipped_steps": "health/skipped_steps",
    **{name: f"reward/{name}" for name in ("accuracy", "margin")},
    **{name: f"ppo/{name}" for name in ("score", "reward", "kl", "kl_coefficient", "ratio", "approximate_kl")},
    **{
        name: f"ppo/{name}"
        for name in ("clip_fraction", "entropy", "explained_variance", "response_tokens", "eos_rate")
    },
    **{name: f"ppo/{name}" for name in ("value_loss", "value_grad_norm", "value_clip_fraction", "pretraining_loss")},
    **{f"{phase}_seconds": f"speed/{phase}_seconds" for phase in ("rollout", "scoring", "critic", "policy")},
    **{f"validation_{name}": f"validation/{name}" for name in ("score", "kl", "response_tokens", "eos_rate")},
    **{f"validation_{name}": f"validation/{name}" for name in ("loss", "perplexity", "bits_per_byte")},
    **{f"validation_{name}": f"validation/{name}" for name in ("accuracy", "reward")},
}
"""{metric: its name on Weights & Biases}, where panels are grouped by the part before the slash.

Metrics that are not listed go under `tasks/` if they are in-context tasks, else under `train/`.
"""

INIT_TIMEOUT_SECONDS = 60.0
FINISH_TIMEOUT_SECONDS = 60.0
"""How long the end of a run waits for Weights & Biases; unsent data stays in its folder for `wandb sync`."""


def wandb_name(metric: str) -> str:
    """The name on Weights & Biases of a metric in metrics.jsonl."""
    section = "tasks" if metric.startswith("task_") else "train"
    return WANDB_NAMES.get(metric, f"{section}/{metric.removeprefix('task_')}")


def describe_run() -> dict[str, Any]:
    """Command, versions, device and number of ranks of this run, for the report; no environment variables."""
    import torch  # here, so that tools that only read metrics start fast

    packages = ("torch", "megatron-core", "numpy", "tokenizers")
    versions = {"megagpt": __version__, "python": platform.python_version()}
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": versions | {package: metadata.version(package) for package in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "ranks": env.world_size(),
    }


def perplexity(loss: float) -> float:
    """exp(loss); infinity when that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class MetricsWriter:
    """Writes a run's metrics on rank 0; on other ranks (`enabled` is false) it does nothing.

    `config` is the run's configuration as plain dicts, for Weights & Biases. `run.json` in the run folder stores the
    command, the versions and the Weights & Biases id, which stays the same when a run is resumed.
    """

    def __init__(self, run_dir: str | Path, logging: LoggingConfig, config: dict[str, Any], enabled: bool) -> None:
        self.enabled = enabled
        self.path = Path(run_dir) / "metrics.jsonl"
        self._unwritten = bytearray()
        self._warned = False
        self._wandb = None
        if not enabled:
            return
        run_id = secrets.token_hex(4)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            run_id = self._keep_run_id(run_id)
        except OSError as error:
            self._warn(error)
        mode = _wandb_mode(logging)
        if mode != "off":
            options = {"project": logging.wandb_project, "name": self.path.parent.name, "id": run_id, "mode": mode}
            self._wandb = _WandbThread(self.path.parent, options, config)

    def resume(self, step: int) -> None:
        """Remove the lines of steps after `step` and any incomplete line, in one atomic rewrite of the file."""
        if not self.enabled or not self.path.exists():
            return
        try:
            kept = [line for line in read_jsonl(self.path) if line.get("step", 0) <= step]
            replace_file(self.path, "".join(_to_line(line) for line in kept))
        except OSError as error:
            self._warn(error)

    def holds(self, step: int, names: Iterable[str]) -> bool:
        """Whether all metrics `names` of a step are logged already; a resumed run may evaluate a step again."""
        if not self.enabled or not self.path.exists():
            return False
        lines = read_jsonl(self.path)
        return all(any(line.get("step") == step and name in line for line in lines) for name in names)

    def log(self, **metrics: Any) -> None:
        """Append one line with these metrics and the time in seconds since 1970. Numbers may be 0-dimensional tensors.

        A value that is not finite is written as null and named in the line's "nonfinite" list.
        """
        if not self.enabled:
            return
        values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        nonfinite = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        values |= dict.fromkeys(nonfinite)
        line = values | {"time": round(time.time(), 3)} | ({"nonfinite": nonfinite} if nonfinite else {})
        self._unwritten += _to_line(line).encode()
        try:
            # Unbuffered. Bytes that a full disk did not accept are kept and written before the next line.
            with self.path.open("ab", buffering=0) as file:
                del self._unwritten[: file.write(self._unwritten)]
        except OSError as error:
            self._warn(error)
        if self._wandb:
            if values.get("loss") is not None and math.isfinite(found := perplexity(values["loss"])):
                values["perplexity"] = found
            self._wandb.put({wandb_name(name): value for name, value in values.items() if value is not None})

    def finish(self) -> None:
        """Let Weights & Biases send the remaining data, for at most FINISH_TIMEOUT_SECONDS."""
        if self._wandb:
            self._wandb.finish()

    def _keep_run_id(self, new_id: str) -> str:
        """The run's id on Weights & Biases: the one in run.json, else `new_id`. Writes run.json."""
        path = self.path.with_name("run.json")
        try:
            new_id = str(json.loads(path.read_text())["wandb_id"])
        except (OSError, ValueError, KeyError, TypeError):
            log.debug("%s holds no id yet", path)
        replace_file(path, json.dumps(describe_run() | {"wandb_id": new_id}, indent=2) + "\n")
        return new_id

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("cannot write %s (%s): training goes on, and writing is tried again", self.path, error)


class _WandbThread:
    """Runs Weights & Biases (import, start, network, end) in a thread that training does not wait for."""

    def __init__(self, run_dir: Path, options: dict[str, Any], config: dict[str, Any]) -> None:
        self.run_dir, self.options, self.config = run_dir, options, config
        self.queue: queue.SimpleQueue[dict[str, float] | None] = queue.SimpleQueue()
        self.given_up = False
        self.thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self.thread.start()

    def put(self, values: dict[str, float]) -> None:
        """Queue one record; does nothing after Weights & Biases has failed."""
        if self.thread.is_alive():
            self.queue.put(values)

    def finish(self) -> None:
        """Ask the thread to finish, and wait for it at most FINISH_TIMEOUT_SECONDS."""
        self.queue.put(None)
        self.thread.join(FINISH_TIMEOUT_SECONDS)
        if self.thread.is_alive():
            self.given_up = True
            log.warning("wandb did not finish in %.0f s: metrics.jsonl has every number", FINISH_TIMEOUT_SECONDS)

    def _run(self) -> None:
        try:
            run = self._start()
            while (values := self.queue.get()) is not None:
                run.log(values)
            run.finish()
        except ImportError:
            log.warning('wandb is not installed (pip install "megagpt[wandb]"): metrics go to metrics.jsonl only')
        except BaseException as error:  # wandb also raises SystemExit and KeyboardInterrupt
            if not self.given_up:
                log.warning("wandb failed (%s: %s): metrics go to metrics.jsonl only", type(error).__name__, error)

    def _start(self) -> Any:
        import wandb

        # Console output, source code, git remotes and the machine's description are not sent: they may hold secrets.
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT_SECONDS,
            login_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=True,
            silent=True,
        )
        run = wandb.init(**self.options, dir=self.run_dir, config=self.config, resume="allow", settings=settings)
        run.define_metric("data/step")
        run.define_metric("data/tokens")
        run.define_metric("*", step_metric="data/tokens")
        return run


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, in order. Lines that are not complete objects are left out, with one warning.

    A process that was killed while it wrote leaves such a line at the end. Raises OSError.
    """
    objects, broken = [], []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line, parse_constant=lambda _: None)
            except ValueError:
                value = None
            if isinstance(value, dict):
                objects.append(value)
            elif line.strip():
                broken.append(number)
    if broken:
        log.warning("%s:%d: incomplete line; %d such lines are left out", path, broken[0], len(broken))
    return objects


def replace_file(path: Path, text: str) -> None:
    """Write `path` atomically: it has either the old or the whole new text, even after a power failure."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _to_line(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _wandb_mode(logging: LoggingConfig) -> str:
    mode = env.wandb_mode() or logging.wandb
    return {"disabled": "off", "dryrun": "offline"}.get(mode, mode)
