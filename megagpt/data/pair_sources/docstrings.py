"""The text of a docstring or comment, without the comment marks of its language."""

import re

_SECTION = re.compile(
    r"^\s*(?:[@\\](?:param|returns?|throws|exception|see|since|author|deprecated|arg|type|example|template|brief)\b"
    r"|:\w+[^:\n]*:|(?:Args|Arguments|Parameters|Params|Returns?|Yields|Raises|Examples?|Notes?|See [Aa]lso|Attributes"
    r"|Usage|Panics|Errors|Safety|Todo)\s*:?\s*$|#+\s|>>>|```|\.\. |-{3,}|={3,})"
)
"""First lines of parts that are not a description: tags, fields, headings, examples."""

_TAGS = re.compile(r"</?[a-zA-Z][^<>\n]*>")
_INLINE = re.compile(r"\{@\w+\s+([^{}]*)\}")
_DECORATION = re.compile(r"^[\s*/!#;=-]*$")
_NOT_PROSE = re.compile(
    r"^\W*(?:todo|fixme|xxx|hack|cop(?:ied|y-n-paste|y-paste) from|noqa|eslint|nolint|pylint|istanbul"
    r"|type: ?ignore|copyright|\(c\)|licen[sc]ed|spdx"
    r"|region\b|endregion|inheritdoc|see\b.{0,40}$)",
    re.IGNORECASE,
)


def comment_text(comment: str) -> str:
    """The text of a comment in a C-like language, Ruby or a shell: lines of `//`, `///`, `#`, or a `/* */` block."""
    lines = []
    for line in comment.splitlines():
        line = re.sub(r"^\s*(?:/\*+!?|//[/!]?|#+|\*+(?!/)|=begin|=end)\s?", "", line)
        line = re.sub(r"\s*\*+/\s*$", "", line)
        line = re.sub(r"^\s*\*+(?!/)\s?", "", line)
        lines.append("" if _DECORATION.match(line) else line)
    return _TAGS.sub("", _INLINE.sub(r"\1", "\n".join(lines))).strip()


def summary(docstring: str) -> str:
    """The first paragraph on one line: up to a blank line, a tag, a heading or an example."""
    kept: list[str] = []
    for line in docstring.strip().splitlines():
        brief = re.sub(r"^\s*[@\\]brief\s+", "", line)
        if not brief.strip() or (_SECTION.match(brief) and (kept or not brief.lstrip().startswith("#"))):
            break
        kept.append(brief.strip())
    return " ".join(" ".join(kept).split())


def is_prose(text: str) -> bool:
    """Whether a comment seems to be a description, and not a to-do, a notice, a directive for a tool, or code."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return letters >= 0.6 * len(text) and not _NOT_PROSE.match(text) and not text.rstrip().endswith((";", "{"))


def words(text: str) -> int:
    """The number of words; in languages without spaces, two letters count as a word."""
    wide = sum("\u2e80" <= character <= "\uffef" for character in text)
    return len(re.findall(r"[^\W_]+", re.sub("[\u2e80-\uffef]", " ", text))) + wide // 2
