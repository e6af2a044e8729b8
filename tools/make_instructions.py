"""Make a synthetic instruction set: demonstrations, ranked answers, and prompts whose answers a program can check.

python tools/make_instructions.py --count 20000 --output-dir runs/chatgpt/data
python tools/make_instructions.py --kinds copy reverse first last --count 5000 --seed 7 --output-dir data

It writes conversations.jsonl (for stage sft), rankings.jsonl (for stage reward) and prompts.jsonl (for stage ppo), of
instructions of their own each. The same arguments give the same files.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megagpt.data.chat import Message
from megagpt.data.files import write_atomic
from megagpt.data.instructions import KINDS, TURNS, Instruction, make_instructions, ranked_answers
from megagpt.errors import ConfigError
from megagpt.log import run_tool


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, kinds = parser.add_argument, (*KINDS, *TURNS)
    add("--output-dir", type=Path, required=True, help="folder to write into")
    add("--count", type=int, default=10_000, help="records of each file (default: %(default)s)")
    add("--kinds", nargs="+", default=kinds, metavar="KIND", help=f"of {', '.join(kinds)} (default: all)")
    add("--seed", type=int, default=0, help="the same seed gives the same files (default: %(default)s)")
    options = parser.parse_args()
    if options.count < 1:
        raise ConfigError(f"--count is {options.count}; it must be at least 1")
    made = list(make_instructions(3 * options.count, kinds=options.kinds, seed=options.seed))
    rng = random.Random(options.seed)
    rng.shuffle(made)
    counts = Counter(instruction.kind for instruction in made)
    parts = {name: made[at::3] for at, name in enumerate(("conversations", "rankings", "prompts"))}
    write(options.output_dir / "conversations.jsonl", (conversation(one) for one in parts["conversations"]))
    write(options.output_dir / "rankings.jsonl", (ranking(one, rng) for one in parts["rankings"]))
    write(options.output_dir / "prompts.jsonl", (prompt(one) for one in parts["prompts"]))
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))


def conversation(instruction: Instruction) -> dict[str, Any]:
    """A record of conversations.jsonl."""
    return {"messages": turns(instruction.messages), "kind": instruction.kind, "check": instruction.check}


def prompt(instruction: Instruction) -> dict[str, Any]:
    """A record of prompts.jsonl: a conversation without its last answer."""
    return {"messages": turns(instruction.prompt), "kind": instruction.kind, "check": instruction.check}


def ranking(instruction: Instruction, rng: random.Random) -> dict[str, Any]:
    """A record of rankings.jsonl."""
    answers = [{"content": answer, "rank": rank} for answer, rank in ranked_answers(instruction, rng)]
    return {"messages": turns(instruction.prompt), "answers": answers, "kind": instruction.kind}


def turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as JSON."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One record a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomic(path, "".join(lines).encode())
    print(f"{path}: {len(lines)} records")


if __name__ == "__main__":
    run_tool(main)
