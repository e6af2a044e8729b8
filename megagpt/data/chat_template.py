"""Chat templates of published models: Jinja, run as transformers runs it, in a sandbox that cannot change anything.

A template is other people's code. Jinja's immutable sandbox keeps it from files, modules and from objects' internals.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megagpt.errors import DataError

Turn = dict[str, str]
"""{"role", "content"}."""
Span = tuple[int, int]
"""(first, last + 1) character."""


class ChatTemplate:
    """Writes conversations as one text."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """special_tokens: texts by the names that the template has for them, such as eos_token.

        Raises DataError when it is no template.
        """
        self.source, self._special_tokens = source, dict(special_tokens)
        environment = _environment()
        self._answers: _Answers = environment.extensions[_Answers.identifier]
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # Jinja compiles it as Python, which may refuse it in its own way
            raise DataError(f"the model's chat template cannot be read: {_told(error)}") from None

    @property
    def marks_answers(self) -> bool:
        """Whether the template says by `{% generation %}` what an assistant writes."""
        return self._answers.used

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """The conversation's text; with what an assistant's turn begins with, if that is asked for.

        Raises DataError with the template's words where it refuses a conversation.
        """
        blocks: list[str] = []
        self._run(turns, add_generation_prompt, blocks)
        return "".join(blocks)

    def render_marked(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """The conversation's text, and where in it the template says that an assistant writes. Not for threads."""
        blocks: list[str] = []
        spans: list[Span] = []
        self._answers.record = blocks, spans
        try:
            self._run(turns, False, blocks)
        finally:
            self._answers.record = None
        return "".join(blocks), spans

    def _run(self, turns: Sequence[Turn], add_generation_prompt: bool, blocks: list[str]) -> None:
        given = {"messages": [dict(turn) for turn in turns], "tools": None, "documents": None}
        given |= {"add_generation_prompt": add_generation_prompt, **self._special_tokens}
        try:
            for block in self._template.generate(**given):
                blocks.append(block)
        except Exception as error:  # its filters call Python's functions, which raise what they like
            raise DataError(f"the model's chat template refuses this conversation: {_told(error)}") from None


class _Answers(Extension):
    """The tag `{% generation %}`, with which templates mark what an assistant writes."""

    tags: ClassVar[set[str]] = {"generation"}
    used = False
    record: tuple[list[str], list[Span]] | None = None
    """Blocks that are written so far, and the places of marked ones, while somebody asks for them."""

    def parse(self, parser: Any) -> nodes.Node:
        """The block as a call of `_written`."""
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        text = caller()
        if self.record is not None:
            blocks, spans = self.record
            start = sum(map(len, blocks))
            spans.append((start, start + len(text)))
        return text


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without HTML's escapes, which Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _told(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(f"{error!s:.300}".split()) or type(error).__name__


def find_answer(template: ChatTemplate, turns: Sequence[Turn], number: int, text: str, marker: str) -> Span:
    """Where in the conversation's `text` the assistant's turn `number` is, from what its prompt ends with.

    marker: a character that no turn has. It takes the place of the turn's words in a second text, so that what the
    template writes around them is known, also where the template trims them. The turn's end is that of its words; its
    beginning is the end of the prompt that the model would get, or, where the template writes earlier turns in another
    way than the last, of the generation prompt before the words. Raises DataError where neither is found.
    """
    other = template.render([*turns[:number], turns[number] | {"content": marker}, *turns[number + 1 :]])
    before, _, after = other.partition(marker)
    if other.count(marker) != 1 or not text.endswith(after):
        raise _unclear(number, "it writes the words of the turn more or less than once, or others because of them")
    common = _common(text, before)
    prompt = template.render(turns[:number], add_generation_prompt=True)
    if text.startswith(prompt):
        return len(prompt), len(text) - len(after)
    generation = prompt[_common(template.render(turns[:number]), prompt) :]
    place = text.rfind(generation, 0, common) if generation else -1
    if place < 0:
        raise _unclear(number, "the turn does not begin with the prompt that the model would answer")
    return place + len(generation), len(text) - len(after)


def _common(text: str, other: str) -> int:
    """Length of what both begin with."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(text), len(other)))


def _unclear(number: int, why: str) -> DataError:
    return DataError(
        f"the model's chat template does not show which words of turn {number + 1} the assistant writes: {why}. Put"
        " {% generation %} and {% endgeneration %} around them in the template, or do not train on that turn"
    )
