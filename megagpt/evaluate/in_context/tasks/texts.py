"""Readers of texts whose last word, or whole text, the model predicts."""

from typing import Any

from megagpt.evaluate.in_context.tasks.files import Doc, Folder, Record, Splits


def lambada(data: str | None = None, **_: Any) -> Splits:
    """LAMBADA (arXiv 1606.06031) in OpenAI's formatting: passages whose last word the model predicts."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        context, blank, word = record.text("text").rpartition(" ")
        if not (context.strip() and blank and word.strip()):
            raise record.error("the field text must be a passage of two words or more, and end with a word")
        return {"text": record.text("text"), "context": context, "word": word}

    return folder.splits(test=folder.docs(folder.jsonl("lambada/lambada_test.jsonl"), doc))


def classics(data: str | None = None, *, part: str, **_: Any) -> Splits:
    """Classical Chinese texts: `part` novels (by chapter) or poetry (verse and prose)."""
    folder = Folder(data)

    def doc(record: Record) -> Doc:
        chapter = {"id": f"{record.text('book')}/{record.get('chapter')}"} if part == "novels" else {}
        return chapter | {"text": record.text("text")}

    return folder.splits(test=folder.docs(folder.jsonl(f"chinese_classics/{part}_zh.jsonl"), doc))


def per_byte(doc: Doc, results: list[float]) -> dict[str, tuple[float, int]]:
    """{metric: (natural log-probability of the text, its number of bytes or characters)}."""
    (score,) = results
    size = len(doc["text"].encode())
    return {
        "bits_per_byte": (score, size),
        "byte_perplexity": (score, size),
        "character_perplexity": (score, len(doc["text"])),
    }
