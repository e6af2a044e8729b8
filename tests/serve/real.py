"""`megagpt serve` in a process of its own, over real models."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from megagpt.config.schema import Config, ModelConfig, OptimConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.tokenizer import Tokenizer
from tests.model.tiny import GPT3, tokenizer
from tests.runs import save_random_run

KEY = "secret"


def all_tokens() -> Tokenizer:
    """With the tokens of insertion and of conversations."""
    return grow_for_chat(grow_for_code(tokenizer(), longest_run=4))


def save_models(folder: Path, shape: ModelConfig = GPT3) -> dict[str, Path]:
    """Folders of a GPT with alternating dense and banded layers that knows all special tokens, and of an embedding."""
    fp32 = OptimConfig(precision="fp32")
    text = Config(model=replace(shape, init_std=0.3), optim=fp32, seed=1)
    vectors = Config(model=replace(shape, head="embedding", init_std=0.3), optim=fp32, seed=2)
    return {
        "text": save_random_run(folder / "text", text, all_tokens(), noise=0.1),
        "vectors": save_random_run(folder / "vectors", vectors, tokenizer(), noise=0.1),
    }


class Command:
    """A server in a process of its own."""

    def __init__(self, *arguments: object, key: str | None = KEY) -> None:
        words = [sys.executable, "-m", "megagpt.cli", "serve", "--port", "0", *map(str, arguments)]
        keys = {} if key is None else {"MEGAGPT_API_KEY": key}
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | keys)
        self.log = ""
        while (found := re.search(r"API (http://\S+)/v1", self.log)) is None:
            line = self.process.stderr.readline()
            assert line, self.log
            self.log += line
        self.url = found[1]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.log += self.process.stderr.read()

    def end(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code, when the server ends and its log is complete."""
        code = self.process.wait(120)
        self._reader.join(30)
        return code
