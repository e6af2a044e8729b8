"""Builds prompts of GPT-3's protocol: a description, the demonstrations that fit, and the question."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megagpt.errors import DataError
from megagpt.evaluate.in_context.gpt3_task import Gpt3Task, Question

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

ROOM = 64
"""Largest number of tokens of a generated answer, if the task does not set one."""


class TooLong(DataError):
    """A question does not fit the context even without demonstrations."""


@dataclass(frozen=True)
class Pair:
    """A context and the continuation that is scored after it."""

    context: str
    continuation: str
    before: tuple[int, ...]
    """Tokens of the context, at least one."""
    after: tuple[int, ...]
    """Tokens that are scored, at least one."""
    merged: bool
    """Whether the tokenizer would join the end of the context and the start of the continuation into one token."""


@dataclass(frozen=True)
class Prompt:
    """A question with its demonstrations, ready for the model."""

    id: str
    """Id of the example within its task."""
    question: Question
    shots: int
    text: str
    """The text before the options."""
    pairs: tuple[Pair, ...]
    """One per option; empty if the model generates the answer."""
    bare: tuple[Pair, ...]
    """The same options after `answer_context` in place of the question; only for the score `answer_context`."""


class Prompts:
    """Builds the prompts of a task, with up to `shots` demonstrations drawn with `seed`."""

    def __init__(self, lm: "TemplateLM", task: Gpt3Task, shots: int, seed: int) -> None:
        self.lm, self.task, self.shots, self.seed = lm, task, shots, seed
        generation = task.task.config.generation_kwargs or {}
        self.room: int = task.settings.max_gen_toks or generation.get("max_gen_toks") or ROOM
        """Largest number of tokens of a generated answer."""
        self._length = lru_cache(maxsize=None)(self._measured)

    def prompt(self, name: str, doc: Mapping[str, Any]) -> Prompt:
        """The prompt of an example, with as many of the drawn demonstrations as fit.

        Whole demonstrations are dropped, the last drawn one first. Raises TooLong for a question that does not fit
        without demonstrations.
        """
        drawn = self.task.demonstrations(doc, name, self.shots, self.seed) if self.shots else []
        prompt = self._with(name, doc, drawn)
        if self._tokens(prompt) <= self._limit:
            return prompt
        # First estimate the number from the lengths of single demonstrations, then correct it on whole prompts.
        left = self._limit - self._tokens(self._with(name, doc, []))
        count = 0
        while count < len(drawn) and (left := left - self._length(drawn[count])) >= 0:
            count += 1
        prompt = self._with(name, doc, drawn[:count])
        while self._tokens(prompt) > self._limit:
            if not count:
                raise TooLong(
                    f"task {self.task.name}, question {name}: {self._tokens(prompt)} tokens even without "
                    f"demonstrations, but {self._limit} fit the model's context of {self.lm.max_length}"
                )
            count -= 1
            prompt = self._with(name, doc, drawn[:count])
        while count < len(drawn):
            longer = self._with(name, doc, drawn[: count + 1])
            if self._tokens(longer) > self._limit:
                break
            count, prompt = count + 1, longer
        return prompt

    @property
    def _limit(self) -> int:
        """Largest number of tokens of prompt and answer; a scored answer's last token is no input, so one more fits."""
        return self.lm.max_length + (not self.task.written)

    def _tokens(self, prompt: Prompt) -> int:
        if self.task.written:
            return len(self.lm.tok_encode(prompt.text)) + self.room
        return max(len(pair.before) + len(pair.after) for pair in prompt.pairs + prompt.bare)

    def _measured(self, demonstration: str) -> int:
        return len(self.lm.tok_encode(demonstration + self.task.settings.separator))

    def _with(self, name: str, doc: Mapping[str, Any], drawn: list[str]) -> Prompt:
        settings = self.task.settings
        question = self.task.question(doc, f"question {name}", few_shot=bool(drawn))
        shown = "".join(demonstration + settings.separator for demonstration in drawn)
        text = self.task.description(doc) + shown + question.text
        if self.task.written:
            text = text.rstrip(" ")  # the token of the next word begins with a space
            if not text:
                raise DataError(f"task {self.task.name}, question {name}: nothing to continue, the prompt is empty")
            return Prompt(name, question, len(drawn), text, (), ())
        where = f"task {self.task.name}, question {name}"
        pairs = encode(self.lm, [(text + more, answer) for more, answer in question.options], where)
        bare = ()
        if settings.score == "answer_context":
            bare = encode(
                self.lm, [(settings.answer_context + more, answer) for more, answer in question.options], where
            )
        return Prompt(name, question, len(drawn), text, pairs, bare)


def encode(lm: "TemplateLM", pairs: Iterable[tuple[str, str]], where: str) -> tuple[Pair, ...]:
    """Encode (context, continuation) pairs; `where` names the question in errors.

    As in lm-eval, white space at the end of a context moves to the continuation, and an empty context becomes the
    prefix token. If the tokenizer merges tokens across the boundary, context and continuation are encoded separately.
    lm-eval instead splits the joint tokens by the number of context tokens, and so scores a different text. Raises
    DataError for a continuation without tokens.
    """
    known: dict[str, list[int]] = {}
    encoded = []
    for context, continuation in pairs:
        start = context.rstrip()
        rest = context[len(start) :] + continuation
        if start not in known:
            known[start] = lm.tok_encode(start) if start else [lm.prefix_token_id]
        before, merged = known[start], False
        if start:
            whole = lm.tok_encode(start + rest)
            merged = whole[: len(before)] != before or len(whole) == len(before)
        after = whole[len(before) :] if start and not merged else lm.tok_encode(rest, add_special_tokens=False)
        if not after:
            raise DataError(f"{where}: the answer {continuation!r} has no tokens")
        encoded.append(Pair(context, continuation, tuple(before), tuple(after), merged))
    return tuple(encoded)
