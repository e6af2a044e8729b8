"""The dashboard's definition, with every connection refused, and what its command line says without an account."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from megagpt.errors import ConfigError
from megagpt.train.metrics import WANDB_NAMES

TOOL = Path(__file__).parents[2] / "tools" / "wandb_dashboard.py"

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library
import wandb_dashboard  # noqa: E402  (tests/conftest.py puts tools/ on the path)


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_args):
        pytest.fail("the definition must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("_no_network")
def test_definition():
    workspace = wandb_dashboard.dashboard("team", "project", "board")
    assert (workspace.entity, workspace.project, workspace.name) == ("team", "project", "board")
    names = ["Training", "Validation", "Reward model", "PPO", "Speed", "Memory", "Health"]
    assert [section.name for section in workspace.sections] == names
    panels = [panel for section in workspace.sections for panel in section.panels]
    titles = Counter(panel.title for panel in panels)
    assert max(titles.values()) == 1
    assert {panel.x for panel in panels} == {WANDB_NAMES["tokens"]}
    shown = Counter(metric for panel in panels for metric in panel.y)
    logged = set(WANDB_NAMES.values()) - {WANDB_NAMES["tokens"], WANDB_NAMES["samples"]}
    assert shown == dict.fromkeys(logged, 1)  # every metric that a run logs has one panel, and no panel stays empty


def test_the_definition_is_printed_without_account_or_network(tmp_path: Path):
    unreachable = os.environ | {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": ""}
    done = subprocess.run([sys.executable, TOOL, "--json"], env=unreachable, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    sections = json.loads(done.stdout)["spec"]["section"]["panelBankConfig"]["sections"]
    definition = {
        section["name"]: [panel["config"]["chartTitle"] for panel in section["panels"]] for section in sections
    }
    assert definition == {name: [panel[0] for panel in panels] for name, panels in wandb_dashboard.SECTIONS.items()}


def test_saving_without_an_account_is_one_clear_message(tmp_path: Path):
    nobody = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    nobody |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, TOOL, "--entity", "team"]
    done = subprocess.run(command, env=nobody, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == ConfigError.exit_code
    assert "team/megagpt" in done.stderr
    assert "wandb login" in done.stderr
    assert "Traceback" not in done.stderr
