"""Chat templates of published models, run as transformers runs them, in a process that may hang or die without harm.

A template is other people's code. It cannot reach files or modules, and each conversation has a bound of CPU time, of
memory and of text; see `template_worker`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from threading import Lock
from typing import Any

from megagpt.data.corpus.text.inputs.sandbox import Failed, Sandbox
from megagpt.errors import DataError

Turn = dict[str, str]
"""{"role", "content"}."""
Span = tuple[int, int]
"""(first, last + 1) character."""

SECONDS, MEMORY = 5.0, 256 << 20
"""CPU time for one conversation, and bytes of memory."""


class TooMuchError(DataError):
    """A template takes more time or memory, or writes more, than any conversation needs."""


class ChatTemplate:
    """Writes conversations as one text."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], today: date | None = None) -> None:
        """special_tokens: texts by the names that the template has for them, such as eos_token. today: the date that
        the template gets from `strftime_now`, by default that of the computer.

        Raises DataError when it is no template.
        """
        self.source, self._special_tokens, self._today = source, dict(special_tokens), today
        self.marks_answers: bool = self._ask([])["marks_answers"]
        """Whether the template says by `{% generation %}` what an assistant writes."""

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """The conversation's text; with what an assistant's turn begins with, if that is asked for.

        Raises DataError with the template's words where it refuses a conversation, and TooMuchError where it exceeds a
        bound.
        """
        return self.render_all([(turns, add_generation_prompt)])[0][0]

    def render_all(self, conversations: Sequence[tuple[Sequence[Turn], bool]]) -> list[tuple[str, list[Span]]]:
        """Each conversation's text, and where in it the template says that an assistant writes.

        conversations: turns, and whether to add what an assistant's turn begins with. Raises as `render`.
        """
        return [(text, [(first, last) for first, last in spans]) for text, spans in self._ask(conversations)["texts"]]

    def _ask(self, conversations: Sequence[tuple[Sequence[Turn], bool]]) -> dict[str, Any]:
        now = datetime.now() if self._today is None else datetime.combine(self._today, time())
        request = {"source": self.source, "special_tokens": self._special_tokens, "now": now.isoformat()}
        try:
            reply = _process()(request | {"conversations": conversations})
        except Failed as error:
            reply = {"excess": str(error)}
        if "excess" in reply:
            raise TooMuchError(f"the model's chat template {reply['excess']}")
        if "flaw" in reply:
            raise DataError(f"the model's chat template {reply['flaw']}")
        return reply


class _Process:
    """Runs templates for all threads of this process, one conversation at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sandbox = Sandbox("megagpt.data.template_worker:serve", seconds=SECONDS, memory=MEMORY)

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        work = json.dumps(request).encode()
        with self._lock:
            return json.loads(self._sandbox(work))


@cache
def _process() -> _Process:
    return _Process()


os.register_at_fork(after_in_child=_process.cache_clear)  # the other one's answers are for its parent


@dataclass(frozen=True)
class Beginning:
    """The first `count` turns of a conversation, to be rendered."""

    count: int
    asked: bool = False
    """Whether what an assistant's turn begins with follows."""
    marked: int | None = None
    """The number of a turn that has the marker in place of its words."""


class Beginnings:
    """What a template makes of a conversation's beginnings. Each is rendered once."""

    def __init__(self, template: ChatTemplate, turns: Sequence[Turn], marker: str) -> None:
        """marker: a character that no turn has."""
        self.template, self.marker, self._turns = template, marker, turns
        self._known: dict[Beginning, tuple[str, list[Span]]] = {}

    def prepare(self, wanted: Sequence[Beginning]) -> None:
        """Render several at once, which is faster than one by one. Raises as `ChatTemplate.render`."""
        missing = [one for one in dict.fromkeys(wanted) if one not in self._known]
        found = self.template.render_all([(self._of(one), one.asked) for one in missing]) if missing else []
        self._known.update(zip(missing, found, strict=True))

    def text(self, wanted: Beginning) -> str:
        """The text of one. Raises as `ChatTemplate.render`."""
        self.prepare([wanted])
        return self._known[wanted][0]

    def answers(self, count: int) -> list[Span]:
        """Where in the text of the first `count` turns the template says that an assistant writes. Raises as `text`."""
        self.prepare([Beginning(count)])
        return self._known[Beginning(count)][1]

    def _of(self, wanted: Beginning) -> list[Turn]:
        turns = list(self._turns[: wanted.count])
        if wanted.marked is not None:
            turns[wanted.marked] = turns[wanted.marked] | {"content": self.marker}
        return turns


def find_answers(beginnings: Beginnings, count: int, numbers: Sequence[int]) -> list[Span]:
    """Where in the text of the first `count` turns the assistant's turns `numbers` are, from the ends of their prompts.

    The marker takes the place of a turn's words in a second text, so that what the template writes around them is
    known, also where the template trims them. The turn's end is that of its words; its beginning is the end of the
    prompt that the model would get, or, where the template writes earlier turns in another way than the last, of the
    generation prompt before the words. Raises DataError where neither is found.
    """
    marked = [Beginning(count, marked=number) for number in numbers]
    beginnings.prepare([Beginning(count), *marked, *(Beginning(number, asked=True) for number in numbers)])
    text = beginnings.text(Beginning(count))
    return [_find(beginnings, text, number, beginnings.text(one)) for number, one in zip(numbers, marked, strict=True)]


def _find(beginnings: Beginnings, text: str, number: int, other: str) -> Span:
    before, _, after = other.partition(beginnings.marker)
    if other.count(beginnings.marker) != 1 or not text.endswith(after):
        raise _unclear(number, "it writes the words of the turn more or less than once, or others because of them")
    common = _common(text, before)
    prompt = beginnings.text(Beginning(number, asked=True))
    if text.startswith(prompt):
        return len(prompt), len(text) - len(after)
    generation = prompt[_common(beginnings.text(Beginning(number)), prompt) :]
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
