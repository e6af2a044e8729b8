"""FineWeb's own rules (arXiv 2406.17557, section 3.6), with the same decisions as datatrove's block."""

from datatrove.utils.text import TERMINAL_PUNCTUATION

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.limits import FineWeb
from megagpt.data.corpus.text.rules.repetition import duplicates
from megagpt.data.corpus.text.rules.verdict import Drop, over, under


def fineweb(analysis: Analysis, limits: FineWeb) -> Drop | None:
    """Drop lists: few lines that end a sentence, many short lines, repeated lines, many line breaks."""
    text = analysis.text
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return Drop("empty", "nothing but white space")
    ended = sum(line[-1] in TERMINAL_PUNCTUATION for line in lines)
    short = sum(len(line) <= limits.short_line for line in lines)
    breaks = text.count("\n")
    return (
        under("few lines that end a sentence", ended / len(lines), limits.min_punctuated_lines)
        or over("short lines", short / len(lines), limits.max_short_lines)
        or over(
            "characters in duplicate lines",
            duplicates(lines)[1] / (len(text) - breaks),
            limits.max_duplicate_characters,
        )
        or over("line breaks", breaks / len(analysis.words), limits.max_newlines)
    )
