"""The chat template: how a conversation becomes tokens, and which of them an assistant learns to generate.

    <|system|>Be brief.<|endoftext|><|user|>Capital of Peru?<|endoftext|><|assistant|>Lima.<|endoftext|>

Each message is its role's token, its text and end-of-text, which also ends a generated response. The text of a
message is always text: a role's token inside it is spelled out, so that it cannot speak for another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer
from megagpt.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLE_TOKENS: dict[Role, str] = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '" + END_OF_TEXT + "' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same in Jinja, for transformers' `apply_chat_template`; that one takes special tokens in a text at their word."""


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
    """`base` with the roles' tokens, after its own, whose ids stay."""
    return base.with_special_tokens(list(ROLE_TOKENS.values()))


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
    """A conversation as tokens; the assistant's tokens, end-of-text included, are trained on, where they are to be."""
    ids = role_ids(tokenizer)
    tokens: list[int] = []
    trained: list[bool] = []
    for message, body in zip(messages, tokenizer.encode_batch([m.content for m in messages]), strict=True):
        tokens += [ids[message.role], *body, tokenizer.end_of_text_id]
        trained += [False, *[message.role == "assistant" and message.trained] * (len(body) + 1)]
    return Example(np.array(tokens, np.int64), np.array(trained, bool))


def has_answer(messages: Sequence[Message]) -> bool:
    """Whether there is a turn to be learnt."""
    return any(message.role == "assistant" and message.trained for message in messages)


def truncate_to_context(tokenizer: Tokenizer, messages: Sequence[Message], length: int) -> Example | None:
    """The conversation up to its last answer to be learnt that ends within `length` tokens; None when none does."""
    ends = [number for number, message in enumerate(messages, 1) if message.role == "assistant" and message.trained]
    while ends:
        example = encode_chat(tokenizer, messages[: ends.pop()])
        if len(example.tokens) <= length:
            return example
    return None


def chat_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids after which the assistant's response follows, then end-of-text."""
    return [*encode_chat(tokenizer, messages).tokens.tolist(), role_ids(tokenizer)["assistant"]]
