"""Paths with spaces, `=`, commas, quotes, brackets, other alphabets and `~` work in every argument of every command."""

import json
import shlex
from functools import reduce
from pathlib import Path

import click
import pytest
import yaml

from megagpt import cli
from megagpt.cli.options import HomePath
from megagpt.config.home import PATHS
from megagpt.config.load import load
from megagpt.config.schema import Config
from megagpt.errors import MegaGPTError
from tests.cli.test_help import TREE

STRANGE = "a b=c,d;e/ü 文's [1] {x}"
COMMANDS = {words: command for words, command in TREE if not isinstance(command, click.Group)}
ARGUMENTS = [(words, parameter) for words, command in COMMANDS.items() for parameter in command.params]
PATH_ARGUMENTS = [(words, parameter) for words, parameter in ARGUMENTS if isinstance(parameter.type, HomePath)]
NEITHER = {"--ngram", "corpora"}
"""NAME=N and NAME=PREFIX.json: they have tests of their own."""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home folder; `~` stands for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def called(parameter: click.Parameter) -> str:
    return parameter.opts[0]


def test_every_argument_that_names_a_file_is_a_path():
    signs = ("FILE", "FOLDER", "INPUT", "CORPUS", "PREFIX", "DIR", "INDEX", "MODEL")
    for words, parameter in ARGUMENTS:
        shown = parameter.metavar or ""
        if any(sign in shown for sign in signs) and called(parameter) not in NEITHER:
            assert isinstance(parameter.type, HomePath), (words, called(parameter))
        assert not isinstance(parameter.type, click.Path) or isinstance(parameter.type, HomePath), (words, parameter)


def given(parameter: click.Parameter, value: str) -> list[str]:
    return [value] if isinstance(parameter, click.Argument) else [f"{called(parameter)}={value}"]


def required(words: tuple[str, ...], also: click.Parameter | None = None) -> list[str]:
    """The least that a command wants, and `also`: strange paths, and the first of each list of choices."""
    found = []
    for parameter in COMMANDS[words].params:
        if parameter.required or parameter is also:
            choice = parameter.type.choices[0] if isinstance(parameter.type, click.Choice) else "3"
            value = f"~/{STRANGE}/{parameter.name}" if isinstance(parameter.type, HomePath) else choice
            found += given(parameter, value)
    return found


@pytest.mark.parametrize(
    ("words", "parameter"), PATH_ARGUMENTS, ids=[f"{' '.join(w)} {called(p)}" for w, p in PATH_ARGUMENTS]
)
def test_paths_arrive_as_they_were_typed(words, parameter, home):
    value = COMMANDS[words].make_context(words[-1], required(words, also=parameter)).params[parameter.name]
    (value,) = value if isinstance(value, tuple) else (value,)
    assert str(value) == f"{home}/{STRANGE}/{parameter.name}"


OTHERS = {
    ("train",): [f"data.tokenizer=~/{STRANGE}/t.json", f"runs_dir=~/{STRANGE}"],
    ("evaluate",): ["task=edits", f"data=~/{STRANGE}/e", f"completions=~/{STRANGE}/c", f"output=~/{STRANGE}/o"],
    ("plan",): [f"--devices=~/{STRANGE}/d.yaml"],
    ("search", "ask"): ["a question"],
    ("data", "tokenizer"): [f"~/{STRANGE}/text.txt", "--vocab-size=300"],
    ("data", "edits"): [f"~/{STRANGE}/text.txt"],
    ("data", "pairs"): [f"~/{STRANGE}/text.txt", "--kind=neighbours", "--preview=1"],
    ("data", "corpus"): ["--recipe=c4"],
    ("data", "mixture"): [f"web=~/{STRANGE}/web.json"],
}
"""What some commands need besides."""


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[-1] not in ("instructions", "rules")], ids=" ".join)
def test_a_missing_file_is_named_as_it_is(words, home, capsys):
    arguments = [text for text in required(words) if text != "--kind=web" or words != ("data", "pairs")]
    if words == ("data", "mixture"):
        arguments = [f"--output={home}/mixture.yaml", "--train-tokens=1"]
    with pytest.raises(MegaGPTError) as caught:
        cli.run([*words, *arguments, *OTHERS.get(words, [])])
    assert f"{home}/{STRANGE}" in str(caught.value)


def test_every_key_that_is_a_path_takes_it_as_typed(home):
    keys = [f"{section}.{field}".lstrip(".") for section, fields in PATHS.items() for field in fields]
    defaults, overrides = load(["stage=ppo"]), ["stage=ppo"]
    for key in keys:
        quoted = f'"~/{STRANGE}/{key}"'
        if key == "data.corpora":
            quoted = f"{{path:{quoted}}}"
        overrides.append(f"{key}=[{quoted}]" if isinstance(at(defaults, key), tuple) else f"{key}=~/{STRANGE}/{key}")
    config = load(overrides)
    for key in keys:
        value = at(config, key)
        value = value[0] if isinstance(value, tuple) else value
        assert getattr(value, "path", value) == f"{home}/{STRANGE}/{key}"


def at(config: Config, key: str) -> object:
    return reduce(getattr, key.split("."), config)


def test_a_user_that_does_not_exist_is_no_home():
    assert load(["data.tokenizer=~no_such_user/t.json"]).data.tokenizer == "~no_such_user/t.json"


def test_work_in_a_strange_folder(home, megagpt):
    """From records to a trained model and back out of it, all of it there."""
    here, folder = f"~/{STRANGE}", home / STRANGE
    megagpt("data", "rules", "--count", 60, f"--output={here}/rules, a.jsonl")
    megagpt("data", "instructions", "--count", 20, f"--output-dir={here}")
    megagpt("data", "tokenizer", f"{here}/rules, a.jsonl", "--vocab-size", 280, f"--output={here}/plain.json")
    megagpt("data", "tokenizer", f"--extend={here}/plain.json", "--add", "chat", f"--output={here}/t=1.json")
    tokenizer = f"--tokenizer={here}/t=1.json"
    megagpt("data", "preprocess", f"{here}/rules, a.jsonl", tokenizer, f"--output={here}/corpus", "--workers", 1)
    assert "records" in megagpt("data", "preview", f"{here}/conversations.jsonl", tokenizer)
    megagpt("data", "mixture", f"rules={here}/corpus.json", "--train-tokens", 1e4, f"--output={here}/mix.yaml")
    (part,) = yaml.safe_load((folder / "mix.yaml").read_text())["corpora"]
    assert part["path"] == f"{folder}/corpus"
    (line,) = [line for line in (folder / "mix.yaml").read_text().splitlines() if "data.corpora=" in line]
    (override,) = shlex.split(line.removeprefix("#"))
    assert load([override]).data.corpora[0].path == f"{folder}/corpus"
    (folder / "ev=a,l 1.jsonl").write_text('{"text": "one two three four"}\n')
    clean = ["--corpus", f"{here}/rules, a.jsonl", f"--output={here}/clean", "--ngram", "ev=a,l 1.jsonl=2"]
    megagpt("data", "overlap", f"{here}/ev=a,l 1.jsonl", *clean)
    assert json.loads((folder / "clean/clean.json").read_text())["sets"]["ev=a,l 1.jsonl"]["ngram"] == 2
    size = json.loads((folder / "corpus.json").read_text())["vocab_size"]
    run = ["model=tiny", f"model.vocab_size={size}", "model.sequence_length=32", "optim.global_batch_size=2"]
    run += ["optim.train_tokens=64", "optim.warmup_tokens=0", "optim.precision=fp32", f"data.tokenizer={here}/t=1.json"]
    run += ["optim.ramp_start=null", "optim.ramp_tokens=0", "optim.decay_tokens=64", "data.split=[1,0,0]"]
    run += ["stage.eval_interval=0", "stage.sample_prompts=[]"]
    run += [f'data.corpora=[{{path:"{here}/corpus"}}]', f"runs_dir={here}", "run_name=first", "logging.wandb=off"]
    megagpt("train", *run)
    saved = f"{here}/first"
    assert "step" in megagpt("checkpoint", "inspect", saved)
    megagpt("checkpoint", "convert", saved, f"{here}/as megagpt", "--to", "megagpt")
    (folder / "p,1.txt").write_text("a b")
    asked = ["--prompt-file", f"{here}/p,1.txt", "--max-new-tokens", 1, "--greedy"]
    assert megagpt("generate", f"--checkpoint={here}/first/checkpoints/latest", *asked)
    megagpt("report", saved, f"--output={here}/page=1.html")
    assert (folder / "page=1.html").is_file()
    (folder / "edits.jsonl").write_text('{"instruction": "a", "input": "b", "output": "c"}\n')
    (folder / "c,1.jsonl").write_text('{"response": "c"}\n')
    edits = [f"data={here}/edits.jsonl", f"completions={here}/c,1.jsonl", f"output={here}/of edits", "sandbox=none"]
    assert "100.0%" in megagpt("evaluate", "task=edits", *edits)
