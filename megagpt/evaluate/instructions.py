"""How many instructions a model follows, by the checks that they bring (`megagpt data instructions`)."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megagpt.data.chat import Message, chat_prompt
from megagpt.data.conversations import Conversation, read_conversations
from megagpt.data.files import file_sha256, write_atomic
from megagpt.data.instructions import check
from megagpt.errors import DataError
from megagpt.evaluate.greedy import greedy_responses
from megagpt.evaluate.output_folder import checkpoint_of, claim, write_result
from megagpt.evaluate.settings import InstructionEvaluation
from megagpt.model.generation import Generator


@dataclass(frozen=True)
class Answer:
    """A model's answer to an instruction, and its score."""

    kind: str
    """Kind of the instruction."""
    prompt: str
    """All turns before the answer, a line each; a user's turn without its role."""
    answer: str
    """The model's text."""
    score: float
    """By the instruction's check, 0 to 1."""

    @property
    def right(self) -> bool:
        """Whether the check accepts the whole answer."""
        return self.score == 1


def evaluate_instructions(settings: InstructionEvaluation, generator: Generator) -> dict[str, Any]:
    """Answer every instruction by greedy decoding, and check the answers; returns the content of result.json.

    The folder also gets samples.jsonl, a line for every answer. Raises ConfigError when it holds another evaluation,
    DataError for records without a check.
    """
    conversations = read_conversations([settings.data])
    unchecked = [one.place for one in conversations if not isinstance(one.extra.get("check"), dict)]
    if unchecked or not conversations:
        raise DataError(
            f'{unchecked[0] if unchecked else settings.data}: no instruction with a "check", which says how answers are'
            " scored: make some with `megagpt data instructions`"
        )
    sampler = {"temperature": 0, "max_new_tokens": settings.max_new_tokens}
    request = {
        "task": settings.task,
        "data": {"file": settings.data.name, "sha256": file_sha256(settings.data), "instructions": len(conversations)},
        "checkpoint": checkpoint_of(settings.checkpoint),
        "sampler": sampler,
    }
    claim(settings.output, request)
    answers = answer_instructions(generator, conversations, settings.max_new_tokens)
    lines = "".join(json.dumps(asdict(one) | {"right": one.right}, ensure_ascii=False) + "\n" for one in answers)
    write_atomic(settings.output / "samples.jsonl", lines.encode())
    return write_result(settings.output, request, {"metrics": summarize(answers)})


def answer_instructions(
    generator: Generator, conversations: Sequence[Conversation], max_new_tokens: int
) -> list[Answer]:
    """The model's answers by greedy decoding, in order. A last turn of the assistant is left out of the prompt."""
    asked = [_without_answer(one.messages) for one in conversations]
    prompts = [chat_prompt(generator.tokenizer, messages) for messages in asked]
    texts = greedy_responses(generator, prompts, max_new_tokens, "instructions", "answering")
    return [
        Answer(str(one.extra.get("kind", "")), _as_text(messages), text, check(one.extra["check"], text))
        for one, messages, text in zip(conversations, asked, texts, strict=True)
    ]


def _without_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _as_text(messages: Iterable[Message]) -> str:
    return "\n".join(one.content if one.role == "user" else f"{one.role}: {one.content}" for one in messages)


def summarize(answers: Iterable[Answer]) -> dict[str, dict[str, float]]:
    """Share of right answers and mean score over "all" instructions and over each kind."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups["all"].append(answer)
        groups[answer.kind].append(answer)
    return {
        name: {
            "instructions": len(group),
            "right": float(np.mean([one.right for one in group])),
            "score": float(np.mean([one.score for one in group])),
        }
        for name, group in groups.items()
    }
