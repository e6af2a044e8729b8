"""The command line: help, printing the configuration, errors, and the hand-over to the stage."""

import dataclasses
import os
import subprocess
import sys
import types

import pytest
import yaml

from megagpt.__main__ import main
from megagpt.config import help as help_text
from megagpt.config.explain import fields
from megagpt.config.load import from_dict, groups, load
from megagpt.config.schema import Config
from megagpt.errors import ConfigError, DataError


def run(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_help_shows_every_group_and_every_key_with_its_docstring(capsys):
    words = run(capsys, "--help").split()
    text = " ".join(words)
    for group, options in groups().items():
        assert group in words
        assert all({option, f"{option},", f"{option}*", f"{option}*,"} & set(words) for option in options)
    sections = {name: type(getattr(Config(), name)) for name in help_text._sections()}
    for name, cls in {"": Config, **sections}.items():
        documented = help_text.docstrings(cls)
        assert set(documented) == {field.name for field in dataclasses.fields(cls)}
        for field, docstring in documented.items():
            key = f"{name}.{field}".lstrip(".")
            assert key in words or key in sections
            assert key in sections or docstring.replace("\n", " ") in text


def test_every_key_of_the_schema_is_in_the_help(capsys):
    words = set(run(capsys, "--help").split())
    sections = set(help_text._sections())
    assert set(fields()) - sections <= words


def test_help_fits_a_terminal(capsys):
    assert max(map(len, run(capsys, "--help").splitlines())) <= 120


def test_help_of_one_section(capsys):
    text = run(capsys, "--help", "optim")
    assert "optim.lr " in text
    assert "model.num_layers" not in text
    assert all(option in text for option in groups()["optim"])
    assert "checkpoint.keep_last" in run(capsys, "-h", "checkpoint")
    assert "pretrain_175b" in run(capsys, "--help", "experiment")
    with pytest.raises(ConfigError, match="did you mean optim"):
        main(["--help", "optm"])


def test_config_is_printed_and_nothing_runs(capsys):
    text = run(capsys, "experiment=demo", "--config", "optim.lr=0.25")
    assert from_dict(yaml.safe_load(text)) == load(["experiment=demo", "optim.lr=0.25"])


@pytest.fixture
def stage(monkeypatch):
    """Stands for the stages; remembers what it was given."""
    fake = types.SimpleNamespace(given=[])
    fake.run = lambda config: fake.given.append(config) or 75
    monkeypatch.setitem(sys.modules, "megagpt.stages", fake)
    monkeypatch.setattr("megagpt.config.inputs.check_inputs", lambda config: None)
    return fake


def test_stage_gets_the_config_and_gives_the_exit_code(stage):
    assert main(["experiment=demo"]) == 75
    assert stage.given == [load(["experiment=demo"])]


def test_rules_see_the_world_size(stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="number of processes"):
        main(["experiment=demo", "parallel=tensor"])
    assert not stage.given


def test_only_rank_0_reports_a_wrong_config(stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["optim.lrr=1"]) == ConfigError.exit_code
    assert not stage.given


def test_an_error_of_the_stage_is_not_hidden_on_other_ranks(stage, monkeypatch):
    def fail(config):
        raise DataError("this rank's disk")

    monkeypatch.setattr(stage, "run", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(DataError):
        main(["experiment=demo"])


def test_error_reads_as_one_message_without_traceback():
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    result = subprocess.run(
        [sys.executable, "-m", "megagpt", "optim.lrr=1", "sed=3"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == ConfigError.exit_code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("did you mean optim.lr?") == result.stderr.count("did you mean seed?") == 1
