"""The chat template: how a conversation becomes tokens, and which of them an assistant learns to generate.

    <|system|>Be brief.<|endoftext|><|user|>Capital of Peru?<|endoftext|><|assistant|>Lima.<|endoftext|>

Each message is its role's token, its text and end-of-text, which also ends a generated response. The text of a
message is always text: a role's token inside it is spelled out, so that it cannot speak for another.

A model that came with a chat template of its own goes on with that one; special tokens in a message are text there too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Literal

import numpy as np

from megagpt.data.chat_template import Beginning, Beginnings, ChatTemplate, TooMuchError, Turn, find_answers
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer
from megagpt.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLE_TOKENS: dict[Role, str] = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '" + END_OF_TEXT + "' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same in Jinja, for transformers' `apply_chat_template`; that one takes special tokens in a text at their word."""


def own_template(tokenizer: Tokenizer) -> str:
    """CHAT_TEMPLATE with the tokenizer's own start and end of a text."""
    start = "".join(map(tokenizer.unspellable.name_of, tokenizer.start_ids))
    return start + CHAT_TEMPLATE.replace(END_OF_TEXT, tokenizer.end_of_text)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    trained: bool = True
    """Whether an assistant's turn is to be learnt; others never are."""


@dataclass(frozen=True)
class Example:
    """A conversation as tokens."""

    tokens: np.ndarray
    """int64 [n]."""
    trained: np.ndarray
    """bool [n]: whether the loss counts that this token is predicted; False for the first."""


def grow_for_chat(base: Tokenizer) -> Tokenizer:
    """`base` with the roles' tokens, after its own, whose ids stay. A chat template of another form is left behind."""
    grown = base.with_special_tokens(list(ROLE_TOKENS.values()))
    grown.companions = grown.companions.without_templates()
    return grown


def has_roles(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the roles' tokens."""
    return tokenizer.special_ids.keys() >= set(ROLE_TOKENS.values())


def template_of(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template that the model came with; None for one without, or with ours. Raises DataError."""
    templates = tokenizer.companions.templates
    if not templates:
        return None
    source = templates.get("default", next(iter(templates.values())) if len(templates) == 1 else None)
    if source is None:
        raise DataError(f"the tokenizer has the chat templates {', '.join(templates)}: call the one to use default")
    if has_roles(tokenizer) and source == own_template(tokenizer):
        return None
    return _compiled(source, tuple(tokenizer.companions.special_tokens.items()), tokenizer.today)


@lru_cache(maxsize=8)
def _compiled(source: str, special_tokens: tuple[tuple[str, str], ...], today: date | None) -> ChatTemplate:
    return ChatTemplate(source, dict(special_tokens), today)


def check_chat(tokenizer: Tokenizer) -> None:
    """Raise DataError unless the tokenizer can write conversations, by a template or by our roles' tokens."""
    if template_of(tokenizer) is None:
        role_ids(tokenizer)


_TALK = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))
SAMPLES = (_TALK[:3], (Message("system", "zero"), *_TALK), _TALK * 8, (Message("user", "word " * 10_000),))
"""Conversations on which a template is tried."""


def try_template(tokenizer: Tokenizer) -> str | None:
    """Let the model's template, if there is one, write sample conversations.

    Returns why a model could not be trained on conversations by it; None where it could. Raises DataError where the
    template is none, refuses a plain question, or takes too much for a sample; see `chat_template`.
    """
    template = template_of(tokenizer)
    if template is None:
        return None
    chat_prompt(tokenizer, _TALK[:1])
    for sample in SAMPLES:
        try:
            chat_prompt(tokenizer, sample)
        except TooMuchError:
            raise
        except DataError:
            continue  # many templates refuse a system turn, or turns of one side that follow each other
    try:
        encode_chat(tokenizer, _TALK)
    except TooMuchError:
        raise
    except DataError as error:
        return str(error)
    return None


def role_ids(tokenizer: Tokenizer) -> dict[Role, int]:
    """Ids of the roles' tokens. Raises DataError when the tokenizer lacks one."""
    missing = [token for token in ROLE_TOKENS.values() if token not in tokenizer.special_ids]
    if missing:
        raise DataError(
            f"the tokenizer has no special token {', '.join(missing)} for conversations: add what is missing with "
            "`megagpt data tokenizer --extend OLD --add chat --output NEW`, and train the model with it"
        )
    return {role: tokenizer.special_ids[token] for role, token in ROLE_TOKENS.items()}


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """A conversation as tokens; the assistant's tokens, end-of-text included, are trained on, where they are to be.

    A conversation that ends with an answer to be learnt ends with the token that ends the answer. Raises DataError
    where the model's template refuses the conversation, or does not show what the assistant writes.
    """
    template = template_of(tokenizer)
    if template is not None:
        return _ByTemplate(tokenizer, template, messages).encode(len(messages))
    ids = role_ids(tokenizer)
    tokens: list[int] = list(tokenizer.start_ids)
    trained: list[bool] = [False] * len(tokens)
    for message, body in zip(messages, tokenizer.encode_batch([m.content for m in messages]), strict=True):
        tokens += [ids[message.role], *body, tokenizer.end_of_text_id]
        trained += [False, *[message.role == "assistant" and message.trained] * (len(body) + 1)]
    return Example(np.array(tokens, np.int64), np.array(trained, bool))


class _ByTemplate:
    """A conversation, of which several beginnings may be encoded, by a model's template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> None:
        self._tokenizer, self._template, self._messages = tokenizer, template, messages
        turns, self._filler, marker = _turns(tokenizer, messages)
        self._beginnings = Beginnings(template, turns, marker)

    def encode(self, count: int) -> Example:
        """The first `count` messages. Raises DataError, see `encode_chat`."""
        special, text = self._tokenizer.unspellable, self._beginnings.text(Beginning(count))
        learnt = [number for number in self._answers(count) if self._messages[number].trained]
        spans = self._spans(count, text, learnt)
        whole, places = special.mark(text, self._filler, [place for span in spans for place in span])
        ids, offsets = self._tokenizer.encode_marked(whole)
        starts = np.array([first for first, _ in offsets], np.int64)
        trained = np.zeros(len(ids), bool)
        for first, last in zip(places[::2], places[1::2], strict=True):
            trained |= (starts >= first) & (starts < last)
        length = int(np.flatnonzero(trained)[-1]) + 1 if learnt and learnt[-1] == count - 1 else len(ids)
        return Example(np.array(ids[:length], np.int64), trained[:length])

    def _answers(self, count: int) -> list[int]:
        return [number for number, one in enumerate(self._messages[:count]) if one.role == "assistant"]

    def _spans(self, count: int, text: str, learnt: list[int]) -> list[tuple[int, int]]:
        """Where the learnt answers are in the text, the tokens that end them included."""
        if self._template.marks_answers:
            answers, marked = self._answers(count), self._beginnings.answers(count)
            if len(marked) != len(answers):
                raise DataError(
                    f"the chat template marks {len(marked)} answers of {len(answers)} by {{% generation %}}"
                )
            found = dict(zip(answers, marked, strict=True))
        else:
            found = dict(zip(learnt, find_answers(self._beginnings, count, learnt), strict=True))
        special, end_ids = self._tokenizer.unspellable, sorted(self._tokenizer.end_ids)
        ends = special.pattern([name for name in map(special.name_of, end_ids) if name], self._filler)
        spans = []
        for number in learnt:
            first, last = found[number]
            ending = next((end for end in ends.finditer(text, first)), None)
            if ending is None or text[last : ending.start()].strip():
                raise DataError(
                    f"the model's chat template does not end turn {number + 1} with a token that ends texts"
                    f" ({', '.join(map(str, map(special.name_of, end_ids)))}), so a model could not learn to end its"
                    " answers: name the token in generation_config.json's eos_token_id"
                )
            spans.append((first, max(last, ending.end())))
        return spans


def _turns(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[Turn], str, str]:
    """Turns for a template, in which no text spells a special token; the filler that is in them, and a character that
    is not. Raises DataError where the messages leave no such characters."""
    special = tokenizer.unspellable
    filler, other = special.fillers([message.content for message in messages])
    turns = [{"role": message.role, "content": special.hide(message.content, filler)} for message in messages]
    return turns, filler, other


def has_answer(messages: Sequence[Message]) -> bool:
    """Whether there is a turn to be learnt."""
    return any(message.role == "assistant" and message.trained for message in messages)


def truncate_to_context(tokenizer: Tokenizer, messages: Sequence[Message], length: int) -> Example | None:
    """The conversation up to its last answer to be learnt that ends within `length` tokens; None when none does."""
    ends = [number for number, message in enumerate(messages, 1) if message.role == "assistant" and message.trained]
    template = template_of(tokenizer) if ends else None
    whole = _ByTemplate(tokenizer, template, messages) if template else None
    while ends:
        end = ends.pop()
        example = whole.encode(end) if whole else encode_chat(tokenizer, messages[:end])
        if len(example.tokens) <= length:
            return example
    return None


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids after which the assistant's response follows, then a token that ends texts."""
    template = template_of(tokenizer)
    if template is None:
        return [*encode_chat(tokenizer, messages).tokens.tolist(), role_ids(tokenizer)["assistant"]]
    turns, filler, _ = _turns(tokenizer, messages)
    text, _ = tokenizer.unspellable.mark(template.render(turns, True), filler, ())
    return tokenizer.encode_marked(text)[0]
