"""Files of a synthetic instruction set: demonstrations, ranked answers, and prompts with checkable answers."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megagpt.data.chat import Message
from megagpt.data.files import write_atomic
from megagpt.data.instructions import Instruction, ranked_answers


def split_and_write(made: list[Instruction], folder: Path, seed: int) -> dict[Path, int]:
    """Write a third of the instructions to each of conversations.jsonl, rankings.jsonl and prompts.jsonl.

    Shuffles `made` in place. Returns the number of records of each file. Raises DataError when one cannot be written.
    """
    rng = random.Random(seed)
    rng.shuffle(made)
    conversations, rankings, prompts = (made[at::3] for at in range(3))
    return {
        folder / "conversations.jsonl": write(folder / "conversations.jsonl", map(conversation, conversations)),
        folder / "rankings.jsonl": write(folder / "rankings.jsonl", (ranking(one, rng) for one in rankings)),
        folder / "prompts.jsonl": write(folder / "prompts.jsonl", map(prompt, prompts)),
    }


def conversation(instruction: Instruction) -> dict[str, Any]:
    """A record of conversations.jsonl."""
    return {"messages": _turns(instruction.messages), "kind": instruction.kind, "check": instruction.check}


def prompt(instruction: Instruction) -> dict[str, Any]:
    """A record of prompts.jsonl: a conversation without its last answer."""
    return {"messages": _turns(instruction.prompt), "kind": instruction.kind, "check": instruction.check}


def ranking(instruction: Instruction, rng: random.Random) -> dict[str, Any]:
    """A record of rankings.jsonl."""
    answers = [{"content": answer, "rank": rank} for answer, rank in ranked_answers(instruction, rng)]
    return {"messages": _turns(instruction.prompt), "answers": answers, "kind": instruction.kind}


def write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write one record per line, atomically. Returns the number of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomic(path, "".join(lines).encode())
    return len(lines)


def _turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
