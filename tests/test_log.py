"""Logging, progress and the end of a command line, seen from outside: what a process writes and exits with."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megagpt import env, log
from megagpt.errors import ConfigError, DataError, Interrupted


@pytest.fixture(autouse=True)
def _root_logger():
    root, package = logging.getLogger(), logging.getLogger("megagpt")
    handlers, level = list(root.handlers), package.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    package.setLevel(level)


def test_run_folder_gets_a_log(tmp_path: Path, capsys):
    for _ in range(2):  # the second call replaces the first: nothing is logged twice
        log.setup(tmp_path / "run")
    logging.getLogger("megagpt.part").info("corpus of %d tokens", 7)
    logging.getLogger("other").info("chatter")
    text = (tmp_path / "run/log.txt").read_text()
    assert text.count("corpus of 7 tokens") == 1
    assert "megagpt.part" in text
    assert capsys.readouterr().err.count("corpus of 7 tokens") == 1
    assert "chatter" not in text


def test_other_ranks_show_only_warnings_with_their_rank(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    log.setup(tmp_path)
    logging.getLogger("megagpt.part").info("quiet")
    logging.getLogger("megagpt.part").warning("loud")
    with log.progress(10, "step", "training") as bar:
        bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("[rank 3] warning: loud")
    assert not (tmp_path / "log.txt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_once(tmp_path: Path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log.setup(tmp_path)
    for number in range(3):
        logging.getLogger("megagpt").info("line %d", number)
    log.setup()
    errors = capsys.readouterr().err
    assert errors.count("cannot write") == 1
    assert "No space left" in errors
    assert all(f"line {number}" in errors for number in range(3))


def test_a_run_folder_that_cannot_be_made_does_not_stop_the_run(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    log.setup(tmp_path / "file/run")
    logging.getLogger("megagpt").info("going on")
    errors = capsys.readouterr().err
    assert "log goes to stderr only" in errors
    assert "going on" in errors


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(log, "LINE_INTERVAL_SECONDS", 0.0)
    log.setup()
    with log.progress(4, "step", "training", initial=2) as bar:
        for loss in (3.5, 2.5):
            bar.set_postfix(loss=loss, refresh=False)
            bar.update(1)
    output = capsys.readouterr().err
    assert "\r" not in output
    assert "3/4" in output
    assert "4/4" in output
    assert "loss=2.5" in output


def test_progress_without_a_terminal_is_rare(capsys):
    log.setup()
    with log.progress(1000, "step", "training") as bar:
        for _ in range(1000):
            bar.update(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise DataError('a.jsonl:3: not JSON; remove the line')", DataError.exit_code, "error: a.jsonl:3: not JSON"),
        ("raise KeyboardInterrupt", Interrupted.exit_code, "interrupted"),
        ("return None", 0, ""),
        ("return 7", 7, ""),
    ],
)
def test_exit_of_a_tool(body: str, code: int, message: str):
    program = f"from megagpt.log import run_tool\nfrom megagpt.errors import *\ndef main():\n    {body}\nrun_tool(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == bool(message)


@pytest.mark.parametrize(("body", "code"), [("raise DataError('broken')", DataError.exit_code), ("1 / 0", 1)])
def test_a_rank_that_failed_does_not_wait_for_its_threads(body: str, code: int):
    program = (
        "import threading, time\nfrom megagpt.log import run_tool\nfrom megagpt.errors import *\n"
        f"def main():\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n    {body}\nrun_tool(main)"
    )
    rank = dict(os.environ) | {"RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=rank, timeout=60)
    assert done.returncode == code
    assert ("broken" if code > 1 else "ZeroDivisionError") in done.stderr


def test_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (env.rank(), env.world_size(), env.local_rank(), env.local_world_size()) == (0, 1, 0, 1)
    assert env.master_port() is None
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("WANDB_MODE", "Offline")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert env.master_port() == 29500
    assert env.wandb_mode() == "offline"
    assert env.restart_attempt() == 2


def test_compiled_kernels_stay_on_the_machine_in_a_folder_of_ones_own(monkeypatch, tmp_path):
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in names:
        monkeypatch.setenv(name, "theirs")  # for the old value to come back after the test
    env.keep_compiled_kernels_here()
    assert [os.environ[name] for name in names] == ["theirs"] * 2
    (folder,) = tmp_path.iterdir()
    for mode, inside in ((0o777, False), (0o700, True)):
        folder.chmod(mode)
        for name in names:
            monkeypatch.delenv(name, raising=False)
        env.keep_compiled_kernels_here()
        assert [os.environ.get(name, "").startswith(f"{folder}/") for name in names] == [inside] * 2


def test_a_garbled_rank_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match=r"RANK.*'first'"):
        env.rank()
