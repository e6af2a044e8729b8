"""metrics.jsonl, and Weights & Biases replaced by stand-ins that work, fail or hang."""

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megagpt.config.schema import LoggingConfig
from megagpt.train import metrics
from megagpt.train.metrics import MetricsWriter, read_jsonl


class FakeWandb(types.ModuleType):
    """Records what it is given; `failing` names the call that raises, `hanging` the one that never returns."""

    def __init__(self, failing: str = "", hanging: str = "") -> None:
        super().__init__("wandb")
        self.failing, self.hanging = failing, hanging
        self.options, self.metrics, self.records, self.finished = {}, {}, [], False
        self.hung, self.released = threading.Event(), threading.Event()

    def _call(self, name: str) -> None:
        if name == self.failing:
            raise SystemExit(f"{name} broke")  # the worst it could raise
        if name == self.hanging:
            self.hung.set()
            self.released.wait()

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        self._call("init")
        self.options = options
        return self

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, record):
        self._call("log")
        self.records.append(record)

    def finish(self):
        self._call("finish")
        self.finished = True


def writer(folder: Path, mode: str = "off", **config) -> MetricsWriter:
    return MetricsWriter(folder, LoggingConfig(wandb=mode, wandb_project="project"), config, enabled=True)


@pytest.fixture(autouse=True)
def _no_wandb_mode(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.fixture
def wandb(monkeypatch, request) -> Iterator[FakeWandb]:
    fake = FakeWandb(**getattr(request, "param", {}))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if fake.hanging:
        monkeypatch.setattr(metrics, "FINISH_TIMEOUT_SECONDS", 0.3)
    yield fake
    fake.released.set()


def test_one_line_at_once_for_every_log(tmp_path: Path):
    out = writer(tmp_path)
    before = time.time()
    out.log(step=1, tokens=64, loss=torch.tensor(2.5), mfu=None)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert before - 1 < line.pop("time") < time.time() + 1
    assert line == {"step": 1, "tokens": 64, "loss": 2.5, "mfu": None}


def test_values_that_are_not_finite_are_strict_json(tmp_path: Path):
    writer(tmp_path).log(step=1, loss=float("nan"), grad_norm=torch.tensor(float("inf")), lr=0.1)
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["loss"] is None
    assert line["grad_norm"] is None
    assert line["nonfinite"] == ["loss", "grad_norm"]


def test_resume_drops_what_comes_after(tmp_path: Path):
    out = writer(tmp_path)
    for step in range(1, 8):
        out.log(step=step, loss=1 / step)
    path = tmp_path / "metrics.jsonl"
    before = path.read_text().splitlines()
    path.write_text("\n".join(before) + '\n{"step": 8, "lo')  # killed while writing
    again = writer(tmp_path)
    again.resume(5)
    again.log(step=6, loss=0.0)
    assert path.read_text().splitlines()[:5] == before[:5]
    assert [line["step"] for line in read_jsonl(path)] == [1, 2, 3, 4, 5, 6]


def test_other_ranks_write_nothing(tmp_path: Path):
    out = MetricsWriter(tmp_path, LoggingConfig(wandb="online"), {}, enabled=False)
    out.resume(0)
    out.log(step=1)
    out.finish()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_warned_of_once_and_its_lines_come_later(tmp_path: Path, caplog, monkeypatch):
    out = writer(tmp_path)
    out.log(step=1)
    room = {"bytes": 5}

    class FullDisk:
        """Takes `room` bytes of a write, as a disk does that is filling up, and then no more."""

        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data: bytes) -> int:
            if not room["bytes"]:
                raise OSError(28, "No space left on device")
            written = self.file.write(bytes(data[: room["bytes"]]))
            room["bytes"] -= written
            return written

    plain_open = Path.open
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Path, "open", lambda path, *args, **kwargs: FullDisk(plain_open(path, *args, **kwargs)))
        for step in (2, 3, 4):
            out.log(step=step)
    assert caplog.text.count("No space left") == 1
    assert "metrics.jsonl" in caplog.text
    out.log(step=5)
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("")
    out = writer(tmp_path / "file/run")
    for step in range(3):
        out.log(step=step)
    out.finish()
    assert caplog.text.count("cannot write") == 1


def test_wandb_gets_grouped_names_over_tokens(tmp_path: Path, wandb: FakeWandb):
    out = writer(tmp_path, "offline", seed=1)
    out.log(step=1, tokens=64, loss=2.0, lr=0.1, grad_norm=float("nan"), memory_gib=1.5)
    out.log(step=1, tokens=64, validation_loss=2.1)
    out.finish()
    train, validation = wandb.records
    assert train["train/perplexity"] == pytest.approx(torch.tensor(2.0).exp().item())
    assert {name for name in train if "/" in name} == {
        "data/step", "data/tokens", "train/loss", "train/perplexity", "optim/lr", "memory/peak_gib",
    }  # fmt: skip
    assert validation["validation/loss"] == 2.1
    assert wandb.metrics["*"] == "data/tokens"
    assert wandb.options["mode"] == "offline"
    assert wandb.options["config"] == {"seed": 1}
    assert wandb.finished


def test_the_id_stays_over_resumes(tmp_path: Path, wandb: FakeWandb):
    ids = []
    for _ in range(2):
        writer(tmp_path / "a", "offline").finish()
        ids.append(wandb.options["id"])
    writer(tmp_path / "b", "offline").finish()
    assert ids[0] == ids[1] != wandb.options["id"]
    assert wandb.options["resume"] == "allow"


@pytest.mark.parametrize(
    ("variable", "setting", "mode"),
    [
        ("offline", "off", "offline"),
        ("online", "off", "online"),
        ("disabled", "online", None),
        ("", "offline", "offline"),
    ],
)
def test_the_variable_wins(
    tmp_path: Path, wandb: FakeWandb, monkeypatch, variable: str, setting: str, mode: str | None
):
    monkeypatch.setenv("WANDB_MODE", variable)
    out = writer(tmp_path, setting)
    out.finish()
    assert wandb.options.get("mode") == mode


@pytest.mark.parametrize(
    "wandb",
    [{kind: call} for kind in ("failing", "hanging") for call in ("init", "log", "finish")],
    indirect=True,
    ids=lambda fault: " ".join(*fault.items()),
)
def test_no_fault_of_wandb_stops_training(tmp_path: Path, wandb: FakeWandb, caplog):
    out = writer(tmp_path, "online")
    for step in range(3):
        out.log(step=step, loss=1.0)
    out.finish()
    assert not wandb.hanging or wandb.hung.wait(60)  # and has not returned: nothing has released it
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3
    assert len([record for record in caplog.records if "wandb" in record.message]) == 1


def test_wandb_that_is_not_installed_is_one_sentence(tmp_path: Path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = writer(tmp_path, "offline")
    out.log(step=1)
    out.finish()
    assert "pip install" in caplog.text
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_the_real_wandb_offline_keeps_no_secret(tmp_path: Path):
    """A whole process with keys in its environment: they are in no file and no output, and the numbers are."""
    pytest.importorskip("wandb")
    canary = "canary0123456789canary0123456789canary012"
    program = textwrap.dedent(f"""
        from megagpt import log
        from megagpt.config.schema import LoggingConfig
        from megagpt.train.metrics import MetricsWriter
        log.setup({str(tmp_path)!r})
        out = MetricsWriter({str(tmp_path)!r}, LoggingConfig(wandb="offline"), {{"seed": 1}}, True)
        out.log(step=1, tokens=64, loss=2.0)
        out.finish()
    """)
    keys = {"WANDB_API_KEY": canary, "HF_TOKEN": canary}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | keys, capture_output=True, text=True)
    assert done.returncode == 0
    assert "warning" not in done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"train/loss" in path.read_bytes() for path in files if path.suffix == ".wandb")
    assert not [path for path in files if canary.encode() in path.read_bytes()]
    assert canary not in done.stdout + done.stderr
