"""Count the functions and files of a training step, a save, a load and a step of PPO: the reading effort of each path.

    python tools/trace_calls.py
    python tools/trace_calls.py --list "training step"

It runs every path: a tiny model is trained on one rank, saved, loaded and trained by PPO, in a temporary folder, while
`sys.setprofile` records each function of megagpt and its kernels in the order of first calls. Configuration,
environment, lambdas and comprehensions are left out. "Changes of file" counts consecutive functions in that order that
are in different files.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from megagpt import stages
from megagpt.config.load import load
from megagpt.config.schema import Config
from megagpt.data.chat import grow_for_chat
from megagpt.data.indexed import write_corpus
from megagpt.data.instructions import Instruction, make_instructions
from megagpt.data.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = tuple(f"{ROOT}/{folder}/" for folder in ("megagpt", "kernels"))
LEFT_OUT = ("megagpt/config/", "megagpt/env.py")
PATHS = ("training step", "save", "load", "step of PPO")


@dataclass
class CallTrace:
    """The functions of a path: from call number `call` of `first` until `last` returns."""

    first: str
    """Qualified name of the function that begins the path."""
    last: str
    """Qualified name of the function that ends it."""
    call: int
    """Number of the call, from 1. The first call may contain work that is done only once."""
    seen: dict[CodeType, tuple[str, str]] = field(default_factory=dict)
    """File and qualified name of every function, in the order of the first calls."""
    _calls: int = 0
    _tracing: bool = False

    def note(self, code: CodeType, event: str) -> None:
        """Handle a call or a return of a function."""
        if event == "call":
            if code.co_qualname == self.first:
                self._calls += 1
                self._tracing = self._tracing or self._calls == self.call
            if self._tracing and code not in self.seen and not code.co_name.startswith("<"):
                file = Path(code.co_filename).relative_to(ROOT).as_posix()
                if not file.startswith(LEFT_OUT):
                    self.seen[code] = file, code.co_qualname
        elif self._tracing and code.co_qualname == self.last:
            self._tracing = False

    @property
    def files(self) -> set[str]:
        """The files of the functions."""
        return {file for file, _ in self.seen.values()}

    @property
    def file_changes(self) -> int:
        """Number of consecutive functions, in the order of first calls, that are in different files."""
        return sum(a != b for (a, _), (b, _) in pairwise(self.seen.values()))


def trace(traces: Iterable[CallTrace], work: Callable[[], object]) -> None:
    """Run `work`, and record the functions of the paths. Raises LookupError for a path that did not run."""
    own: dict[CodeType, bool] = {}

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code not in own:
            own[code] = code.co_filename.startswith(PACKAGES)
        if own[code]:
            for path in traces:
                path.note(code, event)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    for path in traces:
        if not path.seen:
            raise LookupError(f"{path.first} was not called {path.call} times")


def write_data(folder: Path) -> tuple[int, list[Instruction]]:
    """Write tokenizer.json, the corpus `text` and prompts.jsonl. Returns (size of the vocabulary, instructions)."""
    made = list(make_instructions(90, kinds=("some_words", "add", "copy"), seed=1))
    texts = ["\n".join(message.content for message in one.messages) for one in made]
    tokenizer = grow_for_chat(train_tokenizer(texts, 300))
    tokenizer.save(folder / "tokenizer.json")
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "text", [(lengths, np.concatenate(documents))], len(documents), about)
    turns = [[{"role": m.role, "content": m.content} for m in one.prompt] for one in made]
    records = [{"messages": t, "check": one.check} for t, one in zip(turns, made, strict=True)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tokenizer.vocab_size, made


def settings(folder: Path) -> list[str]:
    """Write data to `folder`. Returns the overrides of a tiny run that uses it."""
    vocab_size, _ = write_data(folder)
    return [
        "model=tiny",
        "model.sequence_length=32",
        f"model.vocab_size={vocab_size}",
        "optim=demo",
        "optim.warmup_tokens=0",
        "optim.ramp_tokens=0",
        "optim.ramp_start=null",
        "model.hidden_dropout=0.1",
        "optim.global_batch_size=8",
        "parallel.micro_batch_size=4",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.corpora=[{{path: {folder}/text}}]",
        "data.split=[0.9,0.1,0]",
        "checkpoint.interval=0",
        f"runs_dir={folder}",
    ]


def configs(folder: Path) -> dict[str, Config]:
    """The runs to trace, by stage, each after the runs that it needs."""
    common = settings(folder)
    tokens = 4 * 8 * 32
    pretrain = [*common, "run_name=base", f"optim.train_tokens={tokens}", f"optim.decay_tokens={tokens}"]
    ppo = [
        *common,
        "stage=ppo",
        "run_name=ppo",
        f"checkpoint.load={folder}/base",
        f"data.conversations=[{folder}/prompts.jsonl]",
        "ppo.reward=checker",
        "ppo.rollout_batch_size=16",
        "ppo.episodes=32",
        "ppo.max_prompt_tokens=16",
        "ppo.max_new_tokens=6",
        "stage.eval_interval=0",
    ]
    return {"pretrain": load(pretrain), "ppo": load(ppo)}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", choices=PATHS, help="also name the functions of a path, in order")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        runs = configs(Path(folder))
        step = CallTrace("Trainer.begin_step", "Trainer.end_step", call=2)
        save = CallTrace("RunCheckpoints.save", "RunCheckpoints.save", call=1)
        load_ = CallTrace("RunCheckpoints.restore", "RunCheckpoints.restore", call=1)
        ppo = CallTrace("Trainer.begin_step", "Trainer.end_step", call=3)  # the first step of the second iteration
        trace([step, save], lambda: stages.run(runs["pretrain"]))
        trace([load_], lambda: stages.run(runs["pretrain"]))
        trace([ppo], lambda: stages.run(runs["ppo"]))
    traces = {"training step": step, "save": save, "load": load_, "step of PPO": ppo}
    for path, calls in traces.items():
        counts = len(calls.seen), len(calls.files), calls.file_changes
        print(f"{path:<15} {counts[0]:4} functions {counts[1]:4} files {counts[2]:4} changes of file")
    for file, function in traces[options.list].seen.values() if options.list else ():
        print(f"{file:<45} {function}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
