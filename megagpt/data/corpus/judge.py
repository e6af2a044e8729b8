"""What becomes of one source file: a document of the corpus, or a drop that a rule accounts for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megagpt.data.corpus import licences, rules
from megagpt.data.corpus.languages import ANY, language_of, may_be
from megagpt.data.corpus.redaction import redact
from megagpt.data.corpus.sources import SourceFile, Unit, Unreadable, files_of
from megagpt.data.corpus.tally import Tally

if TYPE_CHECKING:
    from megagpt.data.corpus.contamination import Evaluation


@dataclass(frozen=True)
class Criteria:
    """What files are kept."""

    languages: tuple[str, ...]
    limits: rules.Limits
    licences: frozenset[str] | None
    """Allowed licences, as licences.expand gives them; None keeps files of any licence and of none."""


class Document(NamedTuple):
    """A file that is kept."""

    text: str
    path: str
    language: str
    licence: str | None
    """As an SPDX expression; None when nothing states one."""
    bytes: int
    """Of the file."""


class Drop(NamedTuple):
    """Which rule leaves a file out, and why."""

    rule: str
    reason: str


def judge(file: SourceFile, criteria: Criteria, evaluation: "Evaluation | None" = None) -> Document | Drop:
    """What becomes of `file`; the document's text is not redacted yet. Rules are asked in a fixed order."""
    if file.refusal:
        return Drop(*file.refusal)
    possible, limits = may_be(file.name), criteria.limits
    if possible.isdisjoint(criteria.languages):
        return Drop("language", "by its name")
    if reason := rules.too_large(file.bytes, limits):
        return Drop("language", "no extension, and large") if possible == ANY else Drop("too large", reason)
    try:
        content = file.read()
    except Unreadable as error:
        return Drop(*error.args)
    text, reason = rules.decode(content)
    if reason:
        has_shebang = content.startswith(b"#!")
        return Drop("language", "no extension") if possible == ANY and not has_shebang else Drop("not UTF-8", reason)
    return _judge_text(file, text, criteria, evaluation)


def _judge_text(file: SourceFile, text: str, criteria: Criteria, evaluation: "Evaluation | None") -> Document | Drop:
    language = language_of(file.name, text)
    if language not in criteria.languages:
        return Drop("language", f"by its content: {language or 'none that is known'}")
    for rule, objection in rules.ABOUT_TEXT.items():
        if reason := objection(text, criteria.limits):
            return Drop(rule, reason)
    licence = licences.header(text) or file.licence()
    if criteria.licences is not None and not licences.is_allowed(licence, criteria.licences):
        return Drop("licence", licence or "none found")
    if evaluation and (overlap := evaluation.overlap(text)):
        return Drop("contamination", overlap)
    return Document(text, file.name, language, licence, file.bytes)


def documents(
    units: list[Unit], criteria: Criteria, evaluation: "Evaluation | None", tally: Tally
) -> Iterator[Document]:
    """The documents that `units` give, redacted; `tally` learns what became of every file."""
    for unit in units:
        for file in files_of(unit, criteria.limits.max_bytes):
            tally.find(file.bytes)
            verdict = judge(file, criteria, evaluation)
            if isinstance(verdict, Drop):
                tally.drop(verdict.rule, file.name, file.bytes, verdict.reason)
                continue
            text, counts = redact(verdict.text)
            tally.redact(file.name, counts)
            yield verdict._replace(text=text)
