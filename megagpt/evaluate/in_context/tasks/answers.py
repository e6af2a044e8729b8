"""Readers of tasks with generated answers, and functions that judge the answers."""

import re
from collections.abc import Iterator
from typing import Any

from megagpt.errors import DataError
from megagpt.evaluate.in_context import answers as judges
from megagpt.evaluate.in_context.tasks.files import Doc, Docs, Folder, Record, Splits


def gsm8k(data: str | None = None, **_: Any) -> Splits:
    """GSM8K (arXiv 2110.14168): word problems of arithmetic. The number after #### is the answer."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        answer = record.text("answer")
        if not re.search(r"#### -?[\d.,]+\s*$", answer):
            raise record.error("the field answer must end with #### and a number")
        return {"question": record.text("question"), "answer": answer}

    test = folder.docs(folder.jsonl("gsm8k/test.jsonl"), doc)
    return folder.splits(test=test, train=folder.docs(folder.jsonl("gsm8k/train.jsonl"), doc))


def bbh(data: str | None = None, *, subset: str, **_: Any) -> Splits:
    """One task of BIG-bench Hard (arXiv 2210.09261).

    `demonstrations` are the questions and answers of the authors' prompt, without its chains of thought; `description`
    is that prompt's instruction.
    """
    folder = Folder(data)
    task = next((one for one in folder.jsonl("bbh/bbh.jsonl") if one.text("task") == subset), None)
    if task is None:
        raise DataError(f"there is no task {subset} in {', '.join(folder.source)}")
    description, demonstrations = _bbh_prompt(task)

    def doc(record: Record) -> Doc:
        # The id is the index in the list, because all examples of a task are in one line of the file.
        number = record.place.rpartition("[")[2].removesuffix("]")
        return {
            "id": number,
            "description": description,
            "input": record.text("input"),
            "target": record.text("target"),
        }

    test = folder.docs(task.records("examples"), doc)
    return folder.splits(test=test, demonstrations=demonstrations)


def _bbh_prompt(task: Record) -> tuple[str, Docs]:
    """Instruction and demonstrations of a prompt, whose format is: canary, -----, instruction, then Q: ... A: ..."""
    prompt = task.text("cot_prompt").partition("-----\n")[2]
    description, *questions = re.split(r"\n\nQ: ", prompt)
    docs = Docs()
    for number, text in enumerate(questions):
        question, _, thoughts = text.partition("\nA: Let's think step by step.")
        answer = re.search(r"[Ss]o the answer is (.+?)\.?\s*$", thoughts)
        if answer is None:
            raise task.error(f"demonstration {number + 1} of cot_prompt does not end with: So the answer is ...")
        about = {"id": f"demonstration {number + 1}", "description": description}
        docs.append(about | {"input": question, "target": answer[1]})
    return description, docs


def squad(data: str | None = None, *, file: str, **_: Any) -> Splits:
    """Questions about passages, in the format of SQuAD 1.1 (arXiv 1606.05250). `answers` has all annotated answers."""
    folder = Folder(data)

    def doc(question: Record) -> Doc:
        about = passages[question.place.rpartition(", ")[0]]
        answers = [answer.text("text") for answer in question.records("answers")]
        return about | {
            "id": question.text("id"),
            "question": question.text("question"),
            "answers": list(dict.fromkeys(answers)),
        }

    passages: dict[str, Doc] = {}
    questions = list(_squad_questions(folder.json(file), passages))
    return folder.splits(test=folder.docs(questions, doc))


def _squad_questions(file: Record, passages: dict[str, Doc]) -> Iterator[Record]:
    for article in file.records("data"):
        for paragraph in article.records("paragraphs"):
            title = str(article.get("title")) if "title" in article else ""  # only a few articles of CMRC 2018 have one
            passages[paragraph.place] = {"title": title.replace("_", " "), "context": paragraph.text("context")}
            yield from paragraph.records("qas")


def judge_span(doc: Doc, results: list[str]) -> dict[str, float]:
    """F1 and exact match as SQuAD defines them, for the best-matching right answer."""
    return {"f1": judges.f1(results[0], doc["answers"]), "exact_match": judges.same_words(results[0], doc["answers"])}


def judge_cmrc(doc: Doc, results: list[str]) -> dict[str, float]:
    """F1 and exact match as CMRC 2018 defines them, for the best-matching right answer."""
    answers = doc["answers"]
    return {"f1": judges.cmrc_f1(results[0], answers), "exact_match": judges.cmrc_exact_match(results[0], answers)}


def flores(data: str | None = None, *, source: str, target: str, **_: Any) -> Splits:
    """FLORES-200 (arXiv 2207.04672): sentences in two languages. source, target: columns, such as eng_Latn."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        return {"id": str(record.get("id")), "source": record.text(source), "target": record.text(target)}

    return folder.splits(test=folder.docs(folder.jsonl("flores200/flores200_dev.jsonl"), doc))


def bleu_chinese(pairs: list[tuple[str, str]]) -> float:
    """Corpus BLEU, 0 to 100, of (reference, translation) pairs, with sacrebleu's Chinese tokenizer."""
    import sacrebleu

    references, translations = zip(*pairs, strict=True)
    return sacrebleu.corpus_bleu(list(translations), [list(references)], tokenize="zh").score
