"""Jinja, set up as transformers sets it up for chat templates, in the process that `chat_template` starts.

The immutable sandbox of Jinja keeps a template from files, modules and objects' internals. It bounds neither time nor
memory. The process has these bounds, and this module bounds the text.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

EXTRA, FACTOR = 1 << 20, 16
"""A template may write EXTRA characters, and FACTOR characters for each character of the conversation."""
LONGEST = 1 << 18
"""Characters of the longest template. Published ones have tens of thousands at most."""


def serve(options: str) -> Callable[[bytes], str]:
    """The function that answers requests, for `Sandbox`. options: not used."""
    return _answer


def _answer(work: bytes) -> str:
    """JSON of the reply to a request, which is the JSON of `_reply`'s arguments."""
    return json.dumps(_reply(**json.loads(work)))


def _reply(
    source: str, special_tokens: dict[str, str], conversations: list[tuple[list[dict[str, str]], bool]], now: str
) -> dict[str, Any]:
    """Whether the template marks answers, and for each conversation its text and the places of marked answers.

    Where the template fails there is a `flaw` instead, or an `excess`. conversations: turns, and whether to add the
    generation prompt. now: in ISO 8601, for `strftime_now`.
    """
    try:
        template = _compiled(source)
    except MemoryError:
        raise
    except Exception as error:  # Jinja compiles it as Python, which may refuse it in its own way
        return {"flaw": f"cannot be read: {_told(error)}"}
    template.environment.now = datetime.fromisoformat(now)
    try:
        texts = [_render(template, turns, asked, special_tokens) for turns, asked in conversations]
    except MemoryError:
        raise
    except _TooLongError as error:
        return {"excess": str(error)}
    except Exception as error:  # its filters call Python's functions, which raise what they like
        return {"flaw": f"refuses this conversation: {_told(error)}"}
    return {"marks_answers": _answers(template).used, "texts": texts}


def _render(
    template: jinja2.Template, turns: list[dict[str, str]], asked: bool, special_tokens: dict[str, str]
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation's text and the places of marked answers."""
    answers, length = _answers(template), 0
    longest = EXTRA + FACTOR * sum(len(value) for turn in turns for value in turn.values())
    answers.blocks, answers.spans = [], []
    given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": asked}
    for block in template.generate(**given | special_tokens):
        answers.blocks.append(block)
        length += len(block)
        if length > longest:
            raise _TooLongError(f"writes more than {longest:,} characters for one conversation")
    return "".join(answers.blocks), answers.spans


class _TooLongError(Exception):
    """A template writes more than any conversation needs."""


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > LONGEST:
        raise ValueError(f"it has {len(source):,} characters; templates of up to {LONGEST:,} are read")
    return _Environment().from_string(source)


class _Answers(Extension):
    """The tag `{% generation %}`, with which templates mark what an assistant writes."""

    tags: ClassVar[set[str]] = {"generation"}
    used = False
    blocks: list[str]
    """Blocks that are written so far."""
    spans: list[tuple[int, int]]
    """The places of marked text, (first, last + 1) character."""

    def parse(self, parser: Any) -> nodes.Node:
        """The block as a call of `_written`."""
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        text = caller()
        start = sum(map(len, self.blocks))
        self.spans.append((start, start + len(text)))
        return text


def _answers(template: jinja2.Template) -> _Answers:
    return template.environment.extensions[_Answers.identifier]


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it."""

    now: datetime

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: self.now.strftime(form)}


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without HTML's escapes, which Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _told(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(f"{error!s:.300}".split()) or type(error).__name__
