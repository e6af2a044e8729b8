"""Filter source files: each file becomes a document of the corpus, or a rule drops it and gives a reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from megagpt.data.corpus.code import licences, rules
from megagpt.data.corpus.code.languages import ANY, language_of, may_be
from megagpt.data.corpus.code.source_file import SourceFile, Unreadable
from megagpt.data.corpus.code.sources import Unit, files_of
from megagpt.data.corpus.redaction import redact
from megagpt.data.corpus.tally import Tally

if TYPE_CHECKING:
    from megagpt.data.corpus.code.contamination import Evaluation


@dataclass(frozen=True)
class Criteria:
    """Criteria for keeping a file."""

    languages: tuple[str, ...]
    limits: rules.Limits
    licences: frozenset[str] | None
    """Allowed licences, from `licences.expand`; None keeps files with any licence or without one."""


class Document(NamedTuple):
    """A file that is kept."""

    text: str
    path: str
    language: str
    licence: str | None
    """SPDX expression; None if no licence was found."""
    bytes: int
    """Size of the file."""


class Drop(NamedTuple):
    """The rule that drops a file, and its reason."""

    rule: str
    reason: str


def filter_file(file: SourceFile, criteria: Criteria, evaluation: "Evaluation | None" = None) -> Document | Drop:
    """The document of `file`, not redacted yet, or the first rule that drops it."""
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
    return _filter_text(file, text, criteria, evaluation)


def _filter_text(file: SourceFile, text: str, criteria: Criteria, evaluation: "Evaluation | None") -> Document | Drop:
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


def filter_units(
    units: list[Unit], criteria: Criteria, evaluation: "Evaluation | None", tally: Tally
) -> Iterator[Document]:
    """The kept documents of `units`, redacted. `tally` counts every file."""
    for unit in units:
        for file in files_of(unit, criteria.limits.max_bytes):
            tally.find(file.bytes)
            result = filter_file(file, criteria, evaluation)
            if isinstance(result, Drop):
                tally.drop(result.rule, file.name, file.bytes, result.reason)
                continue
            text, counts = redact(result.text)
            tally.redact(file.name, counts)
            yield result._replace(text=text)
