"""Every `--help`: there at once, with an example, and with the library's own defaults."""

import dataclasses
import json
import subprocess
import sys
from typing import get_args

import click
import pytest

from megagpt import cli
from megagpt.errors import Interrupted

HEAVY = {"torch", "numpy", "pydantic", "hydra", "transformers", "tokenizers", "megatron", "rich", "plotly"}
"""Libraries that take longer to import than a help may take; libraries alone, since ours would bring them along."""

SEE = """
import json, sys
from megagpt import cli
for words in json.loads(sys.argv[1]):
    assert cli.run([*words, "--help"]) == 0
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def tree(group: click.Group = cli.command, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(words, group)]
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        found += tree(command, (*words, name)) if isinstance(command, click.Group) else [((*words, name), command)]
    return found


TREE = tree()


def test_no_help_imports_what_is_slow():
    words = json.dumps([words for words, _ in TREE])
    done = subprocess.run([sys.executable, "-c", SEE, words], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("words", [words for words, _ in TREE], ids=" ".join)
def test_every_help_shows_an_example(words, megagpt):
    example = megagpt(*words, "--help").partition("Example")[2]
    assert f" {' '.join(('megagpt', *words))} " in example


def test_h_is_help_and_the_version_is_shown(megagpt):
    assert megagpt("data", "-h") == megagpt("data", "--help")
    assert megagpt("--version").startswith("megagpt, version ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["data", "preproces"], "Did you mean 'preprocess'?"),
        (["generate"], "Missing option '--checkpoint'"),
        (["generate", "--checkpoint", "runs/a", "--topp", "1"], "Did you mean"),
        (["generate", "--checkpoint", "runs/a", "--greedy", "--temperature", "1"], "leave --temperature out"),
    ],
)
def test_what_cannot_be_parsed_is_said_once(words, message, capsys, monkeypatch):
    assert cli.run(words) == 2
    assert message in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert cli.run(words) == 2
    assert not capsys.readouterr().err


def test_ctrl_c_is_one_line():
    program = "from megagpt import cli\ndef stop(*_, **__): raise KeyboardInterrupt\n"
    program += "cli.command.get_command(None, 'report').callback = stop\nimport sys; sys.argv[1:] = ['report', 'x']\n"
    done = subprocess.run([sys.executable, "-c", program + "cli.main()"], capture_output=True, text=True)
    assert done.returncode == Interrupted.exit_code
    (line,) = done.stderr.splitlines()
    assert line.endswith("error: interrupted")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    words = {"COMP_WORDS": "megagpt data pre", "COMP_CWORD": "2", "_MEGAGPT_COMPLETE": f"{shell}_complete"}
    words |= {"COMP_WORDS": "megagpt data pre", "COMP_CWORD": "pre"} if shell == "fish" else {}
    done = subprocess.run([sys.executable, "-m", "megagpt.cli"], capture_output=True, text=True, env=words)
    assert "preprocess" in done.stdout
    assert "instructions" not in done.stdout


def test_defaults_are_those_of_the_library():
    from megagpt.checkpoint.convert.convert import FORMATS
    from megagpt.checkpoint.convert.verify import TOLERANCES
    from megagpt.data import instructions
    from megagpt.data.code_tokens import LONGEST_RUN
    from megagpt.data.corpus.cluster import Ray, Slurm
    from megagpt.data.corpus.code.options import Options
    from megagpt.data.corpus.text.options import Options as TextOptions
    from megagpt.data.edits import make
    from megagpt.data.preprocess import MAX_RECORD_MB
    from megagpt.data.text_batch import SIDES
    from megagpt.evaluate.index import Backend
    from megagpt.evaluate.map_page import MAX_POINTS
    from megagpt.model.generation import GenerationConfig
    from megagpt.plan.check import LARGEST_EPOCHS
    from megagpt.serve.bounds import Bounds
    from megagpt.serve.interface import Limits

    commands = {" ".join(words): command for words, command in TREE}

    def default(words: str, option: str) -> object:
        return next(parameter.default for parameter in commands[words].params if parameter.name == option)

    def options(words: str) -> set[str]:
        return {parameter.name for parameter in commands[words].params}

    def fields(kind: type) -> dict[str, object]:
        return {field.name: field.default for field in dataclasses.fields(kind)}

    sampling = fields(GenerationConfig)
    for name in ("max_new_tokens", "top_p", "top_k", "repetition_penalty", "seed"):
        assert default("generate", name) == sampling[name]
    limits, bounds = fields(Limits), fields(Bounds)
    for option, value in (
        ("max_batch_size", limits["max_rows"]),
        ("max_queue", limits["max_waiting"]),
        ("prefill_tokens", limits["chunk_tokens"]),
        ("prefix_memory", limits["prefix_memory"]),
        ("max_completions", bounds["completions"]),
        ("max_new_tokens", bounds["new_tokens"]),
    ):
        assert default("serve", option) == value
    without = {"kind", "recipe", "languages", "shard_mb"}
    code = fields(Options) | fields(Options.__dataclass_fields__["limits"].default_factory)
    for corpus in (code, fields(TextOptions)):
        for name in options("data corpus") & {name for name in corpus if corpus[name] not in ((), None)} - without:
            assert default("data corpus", name) == corpus[name]
    for name in ("time", "tasks", "memory_gb"):
        assert default("data corpus", f"slurm_{name}") == fields(Slurm)[name]
    assert default("data corpus", "ray_memory_gb") == fields(Ray)["memory_gb"]
    (shard,) = (one for one in commands["data corpus"].params if one.name == "shard_mb")
    assert f"default: {code['shard_mb']} of code, {fields(TextOptions)['shard_mb']} of other files" in shard.help
    assert default("data tokenizer", "max_record_mb") == default("data preprocess", "max_record_mb") == MAX_RECORD_MB
    assert default("data tokenizer", "longest_run") == LONGEST_RUN
    tolerance = next(one for one in commands["checkpoint convert"].params if one.name == "tolerance")
    assert all(f"{value:g} for {name}" in tolerance.help for name, value in TOLERANCES.items())
    assert default("plan", "max_epochs") == LARGEST_EPOCHS
    assert default("search map", "points") == MAX_POINTS
    for words, name, values in (
        ("checkpoint convert", "to", FORMATS),
        ("embed", "side", SIDES),
        ("search ask", "backend", get_args(Backend)),
    ):
        (choices,) = (one.type.choices for one in commands[words].params if one.name == name)
        assert list(choices) == list(values)
    for words, kinds in (("data edits", make.KINDS), ("data instructions", (*instructions.KINDS, *instructions.TURNS))):
        listed = commands[words].callback.__doc__.partition("Kinds\n")[2]
        assert [word.strip() for word in listed.split(",")] == list(kinds)
