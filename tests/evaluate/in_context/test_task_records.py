"""What readers of task data say of files that are missing, empty or broken. All samples are invented."""

import gzip
import json

import pytest

from megagpt.errors import DataError
from megagpt.evaluate.in_context.tasks import answers, bias, choices, synthetic, texts

QUESTION = {
    "id": "q1",
    "question": "What is wet?",
    "choices": {"text": ["Fire", "Rain"], "label": ["A", "B"]},
    "answerKey": "B",
}
BBQ = {
    "example_id": 7,
    "question_polarity": "neg",
    "context_condition": "ambig",
    "answer_info": {"ans0": ["tall", "tall"], "ans1": ["short", "short"], "ans2": ["Unknown", "unknown"]},
    "additional_metadata": {"stereotyped_groups": ["short"]},
    "context": "A tall and a short person sat down.",
    "question": "Who sat down badly?",
    "ans0": "The tall one",
    "ans1": "The short one",
    "ans2": "Unknown",
    "label": 2,
}


def write(folder, name: str, *records, text: str | None = None) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text if text is not None else "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return str(folder)


def without(record: dict, key: str) -> dict:
    return {name: value for name, value in record.items() if name != key}


def read_arc(folder):
    write(folder, "arc_easy/arc_easy_train.jsonl", QUESTION)
    return choices.arc(str(folder), subset="arc_easy")


def test_plain_or_compressed(tmp_path):
    for name in ("plain/arc_easy/arc_easy_test.jsonl", "packed/arc_easy/arc_easy_test.jsonl.gz"):
        write(tmp_path, name, QUESTION)
    plain, packed = read_arc(tmp_path / "plain"), read_arc(tmp_path / "packed")
    expected = [{"id": "q1", "question": "What is wet?", "choices": ["Fire", "Rain"], "label": 1}]
    assert plain["test"] == packed["test"] == expected
    assert list(packed.source) == ["arc_easy/arc_easy_test.jsonl.gz", "arc_easy/arc_easy_train.jsonl"]
    assert len(set(packed.source.values())) == 2  # the compressed file has other bytes


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", r"arc_easy_test\.jsonl:2: not a record in JSON"),
        ("", r"arc_easy_test\.jsonl:2: not a record in JSON"),
        ("[1]", r"arc_easy_test\.jsonl:2: the record is not an object with named fields but \[1\]"),
        (
            without(QUESTION, "question"),
            r"arc_easy_test\.jsonl:2: the field question is missing; there are id, choices, ans",
        ),
        (QUESTION | {"question": " "}, r":2: the field question must be a text that is not empty, not ' '"),
        (QUESTION | {"id": "q2", "answerKey": "C"}, r":2: the field answerKey must be one of A, B, not 'C'"),
        (
            QUESTION | {"choices": {"text": ["Fire"], "label": ["A"]}},
            r":2, choices: the field text must be two or more",
        ),
        (QUESTION | {"choices": {"text": ["a", "b"], "label": ["A"]}}, r":2, choices: the field label must be 2 texts"),
        (QUESTION, r":2: the id q1 is also that of .*arc_easy_test\.jsonl:1"),
    ],
)
def test_a_broken_record_is_named(tmp_path, second, message):
    line = second if isinstance(second, str) else json.dumps(second)
    third = json.dumps(QUESTION | {"id": "q3"})
    write(tmp_path, "arc_easy/arc_easy_test.jsonl", text=f"{json.dumps(QUESTION)}\n{line}\n{third}\n")
    with pytest.raises(DataError, match=message):
        read_arc(tmp_path)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no arc_easy/arc_easy_test\.jsonl \(or .*\.gz\) in .*: data=FOLDER must have"):
        read_arc(tmp_path)
    write(tmp_path, "arc_easy/arc_easy_test.jsonl", text="\n")
    with pytest.raises(DataError, match=r"arc_easy_test\.jsonl is empty"):
        read_arc(tmp_path)
    (tmp_path / "arc_easy/arc_easy_test.jsonl").write_bytes(b'{"id": "1"}\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"arc_easy_test\.jsonl:2: not UTF-8"):
        read_arc(tmp_path)
    (tmp_path / "arc_easy/arc_easy_test.jsonl").unlink()
    packed = gzip.compress(b"x" * 1000)
    for broken in (packed[:-9], b"no gzip", packed[:12] + b"????" + packed[16:]):
        (tmp_path / "arc_easy/arc_easy_test.jsonl.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"cannot read .*arc_easy_test\.jsonl\.gz"):
            read_arc(tmp_path)


def test_a_label_out_of_range_is_named(tmp_path):
    ending = {"ctx": "A fish: It swims", "endings": ["a", "b", "c", "d"], "label": 4}
    data = write(tmp_path, "hellaswag/hellaswag_val_4k.jsonl", ending)
    with pytest.raises(DataError, match=r"4k\.jsonl:1: the field label must be a whole number from 0 to 3, not 4"):
        choices.hellaswag(data)
    write(tmp_path, "hellaswag/hellaswag_val_4k.jsonl", ending | {"label": "3"})
    with pytest.raises(DataError, match="from 0 to 3, not '3'"):
        choices.hellaswag(data)
    write(tmp_path, "bbq/Age.jsonl", BBQ, BBQ | {"example_id": 8, "label": -1})
    with pytest.raises(DataError, match=r"Age\.jsonl:2: the field label must be a whole number from 0 to 2, not -1"):
        bias.bbq(data, category="Age")
    write(tmp_path, "bbq/Age.jsonl", BBQ | {"ans2": "Both"})
    with pytest.raises(DataError, match=r"Age\.jsonl:1: one of ans0, ans1, ans2 must say that it is unknown"):
        bias.bbq(data, category="Age")


def test_tables(tmp_path):
    head = "ID\tQuestion Stem\tChoices\tAnswer Key\n"
    row = "1\tIce is\t(A) hot (B) cold (C) blue (D) loud\tB\n"
    data = write(tmp_path, "openbookqa/dev.tsv", text=head + row)
    for text, message in (
        (head + row + "2\tIce\n", r"test\.tsv:3: 2 cells; the first row has 4"),
        (head + row.replace("(D) loud", ""), r"test\.tsv:2: the field Choices must read: \(A\)"),
        (head + row.replace("\tB\n", "\tE\n"), r"test\.tsv:2: the field Answer Key must be one of A, B, C, D, not 'E'"),
        (head + row + row, r"test\.tsv:3: the id 1 is also that of .*test\.tsv:2"),
        (head, r"no examples for the part test"),
        (head + '"1\tIce is\n', r"test\.tsv:2: not a row of the table"),
    ):
        write(tmp_path, "openbookqa/test.tsv", text=text)
        with pytest.raises(DataError, match=message):
            choices.openbookqa(data)


@pytest.mark.parametrize(
    ("name", "record", "read", "message"),
    [
        (
            "winogrande/dev.jsonl",
            {"qID": "1", "sentence": "No blank."},
            choices.winogrande,
            "must have one blank, _, not 0",
        ),
        ("lambada/lambada_test.jsonl", {"text": "Alone"}, texts.lambada, "a passage of two words or more"),
        ("lambada/lambada_test.jsonl", {"text": "Ends with a space "}, texts.lambada, "and end with a word"),
        ("gsm8k/test.jsonl", {"question": "1+1?", "answer": "2"}, answers.gsm8k, "must end with #### and a number"),
        (
            "gpt3_synthetic/two_digit_addition.jsonl",
            {"context": "Q: What is 1 plus 1?", "completion": " 2"},
            lambda data: synthetic.arithmetic_problems(data, file="two_digit_addition"),
            "not of the form: two new lines, Q: What is",
        ),
        (
            "gpt3_synthetic/reversed_words.jsonl",
            {"context": "\ntac =", "completion": "cat"},
            lambda data: synthetic.scrambled(data, file="reversed_words"),
            "not of the form: a new line, a scrambled word",
        ),
        (
            "xquad/xquad.en.json",
            {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"id": "1", "question": "Q"}]}]}]},
            lambda data: answers.squad(data, file="xquad/xquad.en.json"),
            r"data\[0\], paragraphs\[0\], qas\[0\]: the field answers is missing; there are id, question",
        ),
    ],
)
def test_what_a_task_needs_of_a_record(tmp_path, name, record, read, message):
    data = write(tmp_path, name, record)
    with pytest.raises(DataError, match=message):
        read(data)


def test_problems_are_made_where_the_data_has_none(tmp_path):
    data = write(tmp_path, "readme.txt", text="nothing here")
    for folder in (data, None):
        made = synthetic.arithmetic_problems(folder, file="two_digit_addition", seed=1)
        assert len(made["test"]) == 2000
        assert list(made.source) == ["two_digit_addition, made by megagpt with seed 1"]
    own = {"context": "\n\nQ: What is 1 plus 1?\n\nA:", "completion": " 2"}
    write(tmp_path, "gpt3_synthetic/two_digit_addition.jsonl", own)
    read = synthetic.arithmetic_problems(data, file="two_digit_addition")
    assert read["test"] == [{"id": "1", "question": "What is 1 plus 1?", "answer": "2", "completion": " 2"}]
    assert list(read.source) == ["gpt3_synthetic/two_digit_addition.jsonl"]


def test_words_come_from_the_user_or_from_another_file(tmp_path):
    data = write(tmp_path, "readme.txt", text="nothing here")
    with pytest.raises(
        DataError, match=r"neither gpt3_synthetic/reversed_words\.jsonl .* nor gpt3_synthetic/words\.txt"
    ):
        synthetic.scrambled(data, file="reversed_words")
    write(tmp_path, "gpt3_synthetic/mid_word_1_anagrams.jsonl", {"context": "\nglaey =", "completion": " galaxy"})
    other = synthetic.scrambled(data, file="reversed_words")
    assert [doc["context"] for doc in other["test"]] == ["\nyxalag ="]
    assert list(other.source) == [
        "reversed_words, made by megagpt of gpt3_synthetic/mid_word_1_anagrams.jsonl with seed 0"
    ]
    write(tmp_path, "gpt3_synthetic/words.txt", text="window\n\n gardens \n")
    own = synthetic.scrambled(data, file="reversed_words")
    assert [doc["word"] for doc in own["test"]] == ["window", "gardens"]
    assert own.notes[0].startswith("2 words of gpt3_synthetic/words.txt; those that are too short")
    write(tmp_path, "gpt3_synthetic/words.txt", text="cat\n")
    with pytest.raises(DataError, match=r"none of the words of .*words\.txt can be scrambled for reversed_words"):
        synthetic.scrambled(data, file="reversed_words")
