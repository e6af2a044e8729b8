"""The shapes of records: every known field is read or refused, and others are named."""

import json

import pytest

from megagpt.data.chat import Message
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.rankings import read_rankings
from megagpt.errors import DataError


def written(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


U, A, S = (lambda text, role=role: {"role": role, "content": text} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "SUA"),
        ({"system": "s", "messages": [U("q"), A("a")]}, "SUA"),
        ({"messages": [{"role": "developer", "content": "s"}, U("q"), A("a")]}, "SUA"),
        ({"messages": [U([{"type": "text", "text": "q"}]), A("a")], "tools": []}, "UA"),
        ({"instruction": "q", "output": "a", "system": "s", "history": [["q0", "a0"]]}, "S(q0)(a0)UA"),
        ({"instruction": "q", "input": "", "output": "a", "system": ""}, "UA"),
        ({"instruction": "q", "context": "", "response": "a", "category": "x"}, "UA"),
        ({"prompt": [S("s"), U("q")], "completion": [A("a")], "label": True}, "SUA"),
        ({"prompt": "q", "response": "a"}, "UA"),
        ({"prompt": [U("q")]}, "U"),
    ],
)
def test_every_known_field_is_read(tmp_path, record, expected):
    (found,) = read_conversations([written(tmp_path / "a.jsonl", record)])
    said = {"s": "S", "q": "U", "a": "A"}
    assert "".join(said.get(message.content, f"({message.content})") for message in found.messages) == expected
    roles = {"s": "system", "q": "user", "a": "assistant", "q0": "user", "a0": "assistant"}
    assert all(roles[message.content] == message.role for message in found.messages)


PROMPT = (Message("user", "sky?"),)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": [U("sky?")], "chosen": [A("blue")], "rejected": [A("green")]}, PROMPT),
        ({"prompt": "sky?", "chosen": "blue", "rejected": "green"}, PROMPT),
        ({"question": "sky?", "chosen": "blue", "rejected": "green"}, PROMPT),
        ({"instruction": "sky?", "input": "", "chosen": A("blue"), "rejected": A("green")}, PROMPT),
        ({"prompt": "sky?", "chosen": [U("sky?"), A("blue")], "rejected": [U("sky?"), A("green")]}, PROMPT),
        ({"chosen": [U("sky?"), A("blue")], "rejected": [U("sky?"), A("green")]}, PROMPT),
        ({"chosen": "\n\nHuman: sky?\n\nAssistant: blue", "rejected": "\n\nHuman: sky?\n\nAssistant: green"}, PROMPT),
        (
            {"prompt": "\n\nHuman: sky?\n\nAssistant:", "chosen": "blue", "rejected": "green", "score_chosen": 2.5,
             "score_rejected": "1"},
            PROMPT,
        ),
        (
            {"system": "s", "question": "sky?", "chosen": "blue", "rejected": "green"},
            (Message("system", "s"), *PROMPT),
        ),
        (
            {"messages": [U("sky?")], "answers": [A("green") | {"score": -1.5}, A("blue") | {"score": 3}]},
            PROMPT,
        ),
        (
            {"messages": [U("sky?")], "answers": [A("green") | {"rank": 2.0}, A("blue") | {"rank": "1"}]},
            PROMPT,
        ),
    ],
)  # fmt: skip
def test_no_prompt_of_a_pair_is_lost(tmp_path, record, prompt):
    path = written(tmp_path / "a.jsonl", record)
    (ranking,) = read_rankings([path])
    best = dict(zip(ranking.ranks, ranking.answers, strict=True))
    assert ranking.messages == prompt
    assert [best[rank] for rank in sorted(best)] == ["blue", "green"]
    (talk,) = read_conversations([path])
    assert talk.messages == (*prompt, Message("assistant", "blue"))


def test_labels_are_read_whatever_their_type(tmp_path):
    labels = [True, False, 1, 0, "true", "False", "1", "0", 1.0]
    records = [{"prompt": str(n), "completion": "x", "label": label} for n, label in enumerate(labels)]
    found = read_conversations([written(tmp_path / "a.jsonl", *records)])
    assert [talk.messages[0].content for talk in found] == ["0", "2", "4", "6", "8"]
    for label in (2, "maybe", None, [1]):
        with pytest.raises(DataError, match=r"b\.jsonl:1: label is "):
            read_conversations([written(tmp_path / "b.jsonl", records[0] | {"label": label})])


def test_fields_that_nobody_reads_are_named_once(tmp_path, caplog):
    caplog.set_level("INFO")
    records = [{"messages": [U("q") | {"name": "ana"}, A("a")], "id": n, "check": {}, "user": "u"} for n in range(3)]
    read_conversations([written(tmp_path / "a.jsonl", *records, {"messages": [U("q"), A("a")], "lang": "en"})])
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert line.endswith("id (3), messages[].name (3), lang (1)")


def test_answers_that_repeat_better_ones_are_left_out(tmp_path, caplog):
    answers = [("blue", 1), ("green", 2), ("blue", 0), ("red", 2)]
    one = {"messages": [U("sky?")], "answers": [{"content": text, "rank": rank} for text, rank in answers]}
    same = {"messages": [U("sea?")], "answers": [{"content": "blue", "rank": rank} for rank in (0, 1)]}
    (ranking,) = read_rankings([written(tmp_path / "a.jsonl", one, same)])
    assert (ranking.answers, ranking.ranks) == (("green", "blue", "red"), (2, 0, 2))
    assert "1 of 2 records are left out: all answers to a prompt are the same" in caplog.text
    assert "1 of 2 records are left out: some of their answers repeat better ones" in caplog.text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [U("q"), A("") | {"tool_calls": [{"id": 1}]}]}, "tool_calls: calls of tools cannot be learnt"),
        ({"messages": [U("q"), A("a")], "tools": "[{}]"}, "tools: calls of tools cannot be learnt"),
        ({"messages": [U("q"), A("a") | {"weight": 0.5}]}, "weight is 0.5; a turn is learnt"),
        ({"messages": [U([{"type": "image_url"}]), A("a")]}, "parts of kind image_url; only text"),
        ({"messages": [S("s"), U("q"), A("a")], "system": "t"}, "begins with a system turn"),
        ({"messages": [U("q"), A("\ud83d")]}, "half of a character"),
        ({"prompt": "q", "question": "q", "chosen": "a", "rejected": "b"}, "prompt and question: only one"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "the rejected conversation does not end with an answer"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            "is below score_rejected",
        ),
        (
            {"messages": [U("q")], "answers": [{"content": "a", "rank": 0}, {"content": "b"}]},
            "every answer must have a rank",
        ),
        ({"messages": [U("q")], "answers": [{"content": "a", "rank": True}]}, "rank is True, not a number"),
        ({"messages": [U("q")], "answers": [{"rank": 1}]}, "there is no 'content'"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "not enough values"),
        ({"messages": [{"role": "human", "content": "a"}]}, "system.*user.*assistant"),
        ({"messages": ["a"]}, "not a list of"),
        ({"conversations": [{"from": "observation", "value": "a"}]}, "the speaker 'observation' is not one of human"),
        ({"chosen": "a", "rejected": "b"}, 'a transcript begins with "Human:"'),
    ],
)
def test_malformed_records_are_refused(tmp_path, record, message):
    path = written(tmp_path / "a.jsonl", record)
    with pytest.raises(DataError, match=rf"a\.jsonl:1: not .*{message}"):
        read_conversations([path])
    if {"answers", "chosen"} & record.keys():
        with pytest.raises(DataError, match=rf"a\.jsonl:1: not .*{message}"):
            read_rankings([path])


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b", "completion": "c"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON: the key 'completion' is there twice"):
        read_conversations([tmp_path / "a.jsonl"])


def test_one_prompt_with_different_checks_stays_two(tmp_path):
    record = {"messages": [U("say it"), A("ok")]}
    checks = [{"exact": "a"}, {"exact": "b"}, {"exact": "a"}]
    path = written(tmp_path / "a.jsonl", *(record | {"check": check} for check in checks))
    kept = split_conversations(read_conversations([path]), (1, 0, 0))["train"]
    assert [talk.extra["check"]["exact"] for talk in kept] == ["a", "b"]
