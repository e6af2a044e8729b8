"""Answers to instructions with checks: counted, kept and shown."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megagpt.cli import evaluate as command
from megagpt.data.chat import grow_for_chat
from megagpt.data.instruction_files import conversation, prompt, write
from megagpt.data.instructions import make_instructions
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.instructions import evaluate_instructions

TOKENIZER = grow_for_chat(train_tokenizer(["Say: cat dog", "Reverse: a b"], 270))
KINDS = ("copy", "reverse", "system")


class Parrot:
    """In a generator's place: gives the texts that it was told, and notes the prompts."""

    def __init__(self, texts: list[str]) -> None:
        self.tokenizer, self.batch_size, self.texts, self.asked = TOKENIZER, 2, list(texts), []

    def generate(self, prompts, settings):
        self.asked += prompts
        return [SimpleNamespace(text=self.texts.pop(0)) for _ in prompts]


@pytest.fixture
def settings(tmp_path):
    """Settings of an evaluation of nine instructions whose records have their answers; the checkpoint is a file."""
    write(tmp_path / "set.jsonl", map(conversation, make_instructions(9, kinds=KINDS)))
    (tmp_path / "manifest.json").write_text("{}")
    data, output = tmp_path / "set.jsonl", tmp_path / "out"
    return command.parse(["task=instructions", f"data={data}", f"checkpoint={tmp_path}", f"output={output}"])


def test_answers_are_counted_by_kind_and_kept(settings, capsys):
    made = list(make_instructions(9, kinds=KINDS))
    texts = [one.messages[-1].content for one in made]
    texts[0], texts[3], texts[1] = "no", f"{texts[3]} more", ""  # two of copy, one of reverse
    parrot = Parrot(texts)
    result = evaluate_instructions(settings, parrot)
    right = {kind: found["right"] for kind, found in result["metrics"].items()}
    assert right == pytest.approx({"all": 6 / 9, "copy": 1 / 3, "reverse": 2 / 3, "system": 1.0})
    assert result["metrics"]["reverse"]["instructions"] == 3
    for one, asked in zip(made, parrot.asked, strict=True):
        assert asked[-1] == TOKENIZER.special_ids["<|assistant|>"]  # the answer in the file is not shown to the model
        assert TOKENIZER.decode(asked) == "".join(message.content for message in one.prompt)
    kept = [json.loads(line) for line in (settings.output / "samples.jsonl").read_text().splitlines()]
    assert [one["answer"] for one in kept] == texts
    assert kept[2]["prompt"] == "system: {}\n{}".format(*(one.content for one in made[2].prompt))
    command.show_instructions(result, kept, 4)
    shown = capsys.readouterr().out.splitlines()
    assert "all" in shown[0] and "right 66.7%" in shown[0]
    verdicts = [line.split()[0] for line in shown[4:]]
    assert verdicts == ["wrong", "wrong", "right", "wrong"]  # a copy, a reverse, a system, and the next copy
    assert shown[4].endswith(f"{made[0].prompt[0].content}  ->  no")


def test_prompts_without_answers_are_read_too(settings, tmp_path):
    made = list(make_instructions(3, kinds=KINDS))
    write(tmp_path / "prompts.jsonl", map(prompt, made))
    parrot = Parrot([one.messages[-1].content for one in made])
    result = evaluate_instructions(replace(settings, data=tmp_path / "prompts.jsonl"), parrot)
    assert result["metrics"]["all"]["right"] == 1
    with pytest.raises(ConfigError, match="holds an evaluation with different data"):
        evaluate_instructions(settings, parrot)


def test_records_without_a_check_are_refused(settings):
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    settings.data.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=r'set.jsonl:1: no instruction with a "check"'):
        evaluate_instructions(settings, Parrot([]))
    with pytest.raises(ConfigError, match="task=instructions needs checkpoint="):
        command.parse(["task=instructions", "data=a", "output=b"])
