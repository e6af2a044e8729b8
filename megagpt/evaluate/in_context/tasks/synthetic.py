"""Reads OpenAI's files of arithmetic and scrambled words, or generates such examples if `data` lacks the files."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from megagpt.errors import DataError
from megagpt.evaluate.in_context.arithmetic import arithmetic
from megagpt.evaluate.in_context.scrambling import TASKS, scrambled_words
from megagpt.evaluate.in_context.tasks.files import Doc, Docs, Folder, Record, Splits

FOLDER = "gpt3_synthetic"
WORDS = f"{FOLDER}/words.txt"
"""File of words to scramble, one per line, the most frequent first."""


def arithmetic_problems(data: str | None = None, *, file: str, seed: int = 0, **_: Any) -> Splits:
    """OpenAI's problems if `data` has their file, else problems generated with `seed`."""
    name = f"{FOLDER}/{file}.jsonl"
    folder = Folder(data) if data is not None else None
    if folder and folder.has(name):
        return folder.splits(test=folder.docs(folder.jsonl(name), _problem))
    return _made(arithmetic(file, seed=seed), _problem, f"{file}, made by megagpt with seed {seed}")


def _problem(record: Record) -> Doc:
    question = re.fullmatch(r"\n\nQ: (.+\?)\n\nA:", record.text("context"))
    answer = re.fullmatch(r" -?\d+", record.text("completion"))
    if question is None or answer is None:
        raise record.error("not of the form: two new lines, Q: What is ...?, an empty line, A:, and a number")
    return {"question": question[1], "answer": answer[0].strip(), "completion": answer[0]}


def scrambled(data: str | None = None, *, file: str, seed: int = 0, **_: Any) -> Splits:
    """OpenAI's scrambled words if `data` has their file; else words of words.txt or of another of OpenAI's files,
    scrambled with `seed`."""
    folder = Folder(data)
    name = f"{FOLDER}/{file}.jsonl"
    if folder.has(name):
        return folder.splits(test=folder.docs(folder.jsonl(name), _scrambled_word))
    found, words = _words(folder, name)
    made = scrambled_words(file, words, seed=seed)
    if not made:
        raise DataError(f"none of the words of {found} can be scrambled for {file}: it takes words of 6 to 15 letters")
    splits = _made(made, _scrambled_word, f"{file}, made by megagpt of {found} with seed {seed}")
    splits.notes.append(
        f"{len(made)} words of {found}; those that are too short, too long or stay the same are left out"
    )
    return splits


def _scrambled_word(record: Record) -> Doc:
    context = re.fullmatch(r"\n(.+) =", record.text("context"))
    word = re.fullmatch(r" (\S+)", record.text("completion"))
    if context is None or word is None:
        raise record.error("not of the form: a new line, a scrambled word, =, and the word after a space")
    return {"context": context[0], "completion": word[0], "scrambled": context[1], "word": word[1]}


def _words(folder: Folder, wanted: str) -> tuple[str, Iterator[str]]:
    """(name of a file that has words, its words). Raises DataError when there is none."""
    if folder.has(WORDS):
        return WORDS, iter(folder.lines(WORDS))
    for other in (f"{FOLDER}/{task}.jsonl" for task in TASKS):
        if folder.has(other):
            return other, (_scrambled_word(record)["word"] for record in folder.jsonl(other))
    raise DataError(
        f"there is neither {wanted} (or .gz) nor {WORDS}, with a word on each line to scramble, in {folder.path}"
    )


def _made(records: list[dict[str, str]], doc: Any, name: str) -> Splits:
    content = "".join(json.dumps(record) + "\n" for record in records)
    docs = Docs({"id": str(at)} | doc(Record(record, name, at)) for at, record in enumerate(records, 1))
    return Splits({name: hashlib.sha256(content.encode()).hexdigest()}, test=docs)
