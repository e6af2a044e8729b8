"""Tasks of lm-eval from a few lines, a tiny random model, and a model whose probabilities are given."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

READER = """
import json
from pathlib import Path

import datasets


def rows(data, **_):
    return {
        part: datasets.Dataset.from_list(json.loads(Path(data, f"{part}.json").read_text()))
        for part in ("train", "test")
    }
"""


def make_task(folder: Path, train: list[dict], test: list[dict], gpt3: dict | None = None, **fields: Any):
    """A task of lm-eval, read from YAML in `folder`, which evaluates `test` with demonstrations from `train`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "readers.py").write_text(READER)
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    about = {"task": "quiz", "test_split": "test", "fewshot_split": "train", **fields}
    about["metadata"] = {"version": 3, **about.get("metadata", {}), **({} if gpt3 is None else {"gpt3": gpt3})}
    (folder / "quiz.yaml").write_text(yaml.safe_dump(about) + "custom_dataset: !function readers.rows\n")
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata={"data": str(folder)})
    return manager.load(["quiz"])["tasks"]["quiz"]


def choice_task(folder: Path, train: list[dict], test: list[dict], gpt3: dict | None = None, **fields: Any):
    """One whose examples are {"q", "options", "label"}."""
    templates = {"doc_to_text": "{{q}}", "doc_to_choice": "{{options}}", "doc_to_target": "label"}
    return make_task(folder, train, test, gpt3, output_type="multiple_choice", **{**templates, **fields})


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "Question: is the sky blue or green ? Answer: blue green red grass because it was small and the box was big"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


class TinyLM(HFLM):
    """lm-eval's own backend. transformers cannot do T5's length penalty, so that its power of the length has to do."""

    def generate_until(self, requests, disable_tqdm=False):
        for request in requests:
            request.arguments[1].pop("length_penalty_form")
        return super().generate_until(requests, disable_tqdm)


def tiny_lm(context: int = 256) -> TinyLM:
    """A random model of transformers. Its log-probabilities differ between tokens by more than rounding does."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=context, n_embd=32, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4
    return TinyLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", batch_size=4)


def brute_force(lm: HFLM, context: str, continuation: str) -> tuple[float, int, bool]:
    """Log-probability of a continuation by a full softmax, its number of tokens, and whether each is the likeliest."""
    start = len(lm.tokenizer.encode(context))
    ids = torch.tensor(lm.tokenizer.encode(context + continuation))
    with torch.no_grad():
        logprobs = torch.log_softmax(lm.model(ids[None]).logits[0].double(), -1)[start - 1 : -1]
    after = ids[start:]
    greedy = bool((logprobs.argmax(-1) == after).all())
    return logprobs[range(len(after)), after].sum().item(), len(after), greedy


class TableLM(TemplateLM):
    """A model whose every answer is given. A token is a character, or one of `words`, the longest that fits.

    table: log-probability by (context, continuation), or a function of them. writes: what it writes by prompt.
    """

    def __init__(
        self,
        table: Mapping[tuple[str, str], float] | Callable[[str, str], float] = lambda context, continuation: -1.0,
        writes: Callable[[str], str] = lambda prompt: "",
        context: int = 1000,
        words: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.table = table if callable(table) else lambda context, continuation: table[context, continuation]
        self.writes, self.max_length = writes, context
        self.pattern = re.compile("|".join([*map(re.escape, sorted(words, key=len, reverse=True)), "."]), re.DOTALL)
        self.ids: dict[str, int] = {"<end>": 0}
        self.calls: list[list] = []
        """The requests of each call of the model."""

    @property
    def eot_token_id(self) -> int:
        return 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return [self.ids.setdefault(token, len(self.ids)) for token in self.pattern.findall(string)]

    def text(self, tokens: list[int]) -> str:
        names = list(self.ids)
        return "".join(names[token] for token in tokens if token)

    def _loglikelihood_tokens(self, requests, **_: Any) -> list[tuple[float, bool]]:
        self.calls.append(requests)
        scored = [self.table(self.text(before), self.text(after)) for _, before, after in requests]
        return [(value, value > -0.5) for value in scored]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        self.calls.append([request.args for request in requests])
        return [self.writes(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError
