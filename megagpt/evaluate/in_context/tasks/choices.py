"""Readers of multiple-choice questions and of sentence pairs in which one sentence is right."""

import re
from pathlib import Path
from typing import Any

import yaml

from megagpt.evaluate.in_context.tasks.files import Doc, Docs, Folder, Record, Splits

_LETTERS = "ABCDEFGH"


def hellaswag(data: str | None = None, **_: Any) -> Splits:
    """HellaSwag (arXiv 1905.07830): the validation part or its beginning."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        endings = record.texts("endings", 4)
        return {"query": record.text("ctx"), "choices": endings, "label": record.index("label", 4)}

    return folder.splits(test=folder.docs(folder.jsonl("hellaswag/hellaswag_val_4k.jsonl"), doc))


def winogrande(data: str | None = None, **_: Any) -> Splits:
    """WinoGrande (arXiv 1907.10641): a sentence whose blank has two options, and the words after the blank."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        sentence = record.text("sentence")
        if sentence.count("_") != 1:
            raise record.error(f"the sentence must have one blank, _, not {sentence.count('_')}")
        before, after = sentence.split("_")
        options = [record.text("option1"), record.text("option2")]
        return {
            "id": record.text("qID"),
            "sentence": sentence,
            "contexts": [before + option for option in options],
            "rest": after.strip(),
            "label": int(record.one_of("answer", "12")) - 1,
        }

    test = folder.docs(folder.jsonl("winogrande/dev.jsonl"), doc)
    return folder.splits(test=test, train=folder.docs(folder.jsonl("winogrande/train_m.jsonl"), doc))


def arc(data: str | None = None, *, subset: str, **_: Any) -> Splits:
    """ARC (arXiv 1803.05457): `subset` arc_easy or arc_challenge. Most questions have four answers."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        choices = record.record("choices")
        texts = choices.texts("text")
        labels = choices.texts("label", len(texts))
        label = labels.index(record.one_of("answerKey", labels))
        return {"id": record.text("id"), "question": record.text("question"), "choices": texts, "label": label}

    test = folder.docs(folder.jsonl(f"{subset}/{subset}_test.jsonl"), doc)
    return folder.splits(test=test, train=folder.docs(folder.jsonl(f"{subset}/{subset}_train.jsonl"), doc))


def openbookqa(data: str | None = None, **_: Any) -> Splits:
    """OpenBookQA (arXiv 1809.02789)."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        choices = re.fullmatch(r"\(A\) (.+) \(B\) (.+) \(C\) (.+) \(D\) (.+)", record.text("Choices"))
        if choices is None:
            raise record.error("the field Choices must read: (A) ... (B) ... (C) ... (D) ...")
        return {
            "id": record.text("ID"),
            "question": record.text("Question Stem"),
            "choices": list(choices.groups()),
            "label": "ABCD".index(record.one_of("Answer Key", "ABCD")),
        }

    test = folder.docs(folder.table("openbookqa/test.tsv", "\t"), doc)
    return folder.splits(test=test, dev=folder.docs(folder.table("openbookqa/dev.tsv", "\t"), doc))


def mmlu(data: str | None = None, *, subject: str, **_: Any) -> Splits:
    """One subject of MMLU (arXiv 2009.03300): its test part and its five demonstrations."""
    folder = Folder(data)

    def doc(record: Record) -> Doc | None:
        if record.text("subject") != subject:
            return None
        choices = record.texts("choices", 4)
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
        question = record.text("question").strip()
        return {"question": question, "options": options, "label": record.index("answer", 4)}

    test = folder.docs(folder.jsonl("mmlu_sample/mmlu_test.jsonl"), doc)
    return folder.splits(test=test, dev=folder.docs(folder.jsonl("mmlu_sample/mmlu_dev.jsonl"), doc))


def truthfulqa(data: str | None = None, **_: Any) -> Splits:
    """TruthfulQA (arXiv 2109.07958), from the authors' table.

    `single`: the best answer, then all wrong ones. `all`: all right answers, then all wrong ones; `right` is the number
    of right ones. `binary`: the best answer and the best wrong one. The order is always the same.
    """
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        right, wrong = (_answers(record, f"{kind} Answers") for kind in ("Correct", "Incorrect"))
        best = record.text("Best Answer").strip()
        return {
            "question": record.text("Question").strip(),
            "single": [best, *wrong],
            "all": [*right, *wrong],
            "right": len(right),
            "binary": [best, record.text("Best Incorrect Answer").strip()],
        }

    return folder.splits(test=folder.docs(folder.table("truthfulqa/TruthfulQA.csv"), doc))


def _answers(record: Record, key: str) -> list[str]:
    answers = [answer.strip() for answer in record.text(key).split(";")]
    return [answer for answer in answers if answer]


def truthfulqa_prompt(doc: Doc) -> str:
    """The question after the authors' six questions and answers, which are in lm-eval's task file."""
    import lm_eval.tasks
    from lm_eval.utils import apply_template

    path = Path(lm_eval.tasks.__file__).parent / "truthfulqa" / "truthfulqa_mc1.yaml"
    return apply_template(yaml.safe_load(path.read_text(encoding="utf-8"))["doc_to_text"], doc)


def truthful_share(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, float]:
    """MC2: the right answers' share of the total probability of all answers."""
    import numpy as np

    scores = np.array([score for score, _ in results])
    chances = np.exp(scores - scores.max())
    return {"acc": float(chances[: doc["right"]].sum() / chances.sum())}


XCOPA_CONNECTORS = {
    "zh": {"cause": "因为", "effect": "所以"},
    "it": {"cause": "perché", "effect": "quindi"},
    "vi": {"cause": "bởi vì", "effect": "vì vậy"},
}
"""lm-eval's connectors between premise and alternative."""


def xcopa(data: str | None = None, *, language: str, **_: Any) -> Splits:
    """XCOPA (arXiv 2005.00333): which alternative is the cause or effect of the premise."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        connector = XCOPA_CONNECTORS[language][record.one_of("question", ("cause", "effect"))]
        choices = [record.text("choice1"), record.text("choice2")]
        return {
            "id": str(record.get("idx")),
            "prompt": f"{record.text('premise').strip()[:-1]} {connector}",
            "choices": [choice[0].lower() + choice[1:] for choice in choices],
            "label": record.index("label", 2),
        }

    test = folder.docs(folder.jsonl(f"xcopa/test.{language}.jsonl"), doc)
    return folder.splits(test=test, validation=folder.docs(folder.jsonl(f"xcopa/val.{language}.jsonl"), doc))


NLI_LABELS = ("entailment", "neutral", "contradiction")


def snli(data: str | None = None, **_: Any) -> Splits:
    """SNLI (arXiv 1508.05326): whether a hypothesis follows from a premise."""
    folder = Folder(data)
    notes: list[str] = []
    test, dev = (
        _nli(folder, f"snli_sample/snli_{part}_part.jsonl", "gold_label", "pairID", notes) for part in ("test", "dev")
    )
    return folder.splits(notes, test=test, dev=dev)


def ocnli(data: str | None = None, **_: Any) -> Splits:
    """OCNLI (arXiv 2010.05444), the dev part: SNLI's task in Chinese."""
    folder = Folder(data)
    notes: list[str] = []
    return folder.splits(notes, test=_nli(folder, "ocnli/ocnli_dev.jsonl", "label", "id", notes))


def _nli(folder: Folder, name: str, label: str, id_: str, notes: list[str]) -> Docs:
    records = list(folder.jsonl(name))

    def doc(record: Record) -> Doc | None:
        kind = record.one_of(label, (*NLI_LABELS, "-"))
        if kind == "-":
            return None
        return {
            "id": str(record.get(id_)),
            "premise": record.text("sentence1"),
            "hypothesis": record.text("sentence2").strip(),
            "label": NLI_LABELS.index(kind),
        }

    docs = folder.docs(records, doc)
    if len(docs) < len(records):
        left_out = f"{len(records) - len(docs)} of {len(records)} examples of {name} are left out"
        notes.append(f"{left_out}: the annotators did not agree on a label")
    return docs


def agieval(data: str | None = None, *, subset: str, chinese: bool = False, **_: Any) -> Splits:
    """One exam of AGIEval (arXiv 2304.06364), in the format of its zero-shot prompts."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        options = record.texts("options")
        letters = _LETTERS[: len(options)]
        question = (record.get("passage") or "") + _agieval_question(record.text("question"), options, chinese)
        return {"query": question, "choices": options, "label": letters.index(record.one_of("label", letters))}

    return folder.splits(test=folder.docs(folder.jsonl(f"agieval_sample/{subset}.jsonl"), doc))


def _agieval_question(question: str, options: list[str], chinese: bool) -> str:
    last, listed = _LETTERS[len(options) - 1], " ".join(options)
    if chinese:
        return f"问题：{question} 选项：{listed}\n答案：从A到{last}, 我们应选择"
    return f"Q: {question} Answer Choices: {listed}\nA: Among A through {last}, the answer is"


def anthropic(data: str | None = None, *, subset: str, **_: Any) -> Splits:
    """One set of Anthropic's evaluations of behaviour (arXiv 2212.09251). The first choice shows the behaviour."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        choices = [record.text(f"answer{part}_matching_behavior") for part in ("", "_not")]
        return {"question": record.text("question"), "choices": choices}

    return folder.splits(test=folder.docs(folder.jsonl(f"anthropic_evals/{subset}.jsonl"), doc))


def blimp(data: str | None = None, *, paradigm: str, **_: Any) -> Splits:
    """One paradigm of BLiMP (arXiv 1912.00582): a good sentence, then a bad one."""
    folder = Folder(data)

    def doc(record: Record) -> Doc | None:
        if record.text("UID") != paradigm:
            return None
        sentences = [record.text("sentence_good"), record.text("sentence_bad")]
        return {"id": record.text("pairID"), "choices": sentences}

    return folder.splits(test=folder.docs(folder.jsonl("blimp/blimp_8.jsonl"), doc))
