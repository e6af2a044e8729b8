"""Evaluate BLiMP (pairs of a right and a wrong sentence) on a run's model and on n-grams of the same tokens.

    python tools/blimp_beside_ngrams.py --checkpoint runs/demo --data ../shared/data

An n-gram model sees two tokens back (--order 3), so it cannot know the grammar of a sentence. The difference of the
accuracies, which are means over the tasks, shows what the run's model has learnt beyond that. The n-grams use
Witten-Bell interpolation (NLTK's) over the run's tokenizer, and count the first --tokens of its training documents.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from measured_on import measured_on
from nltk.lm import WittenBellInterpolated
from nltk.lm.preprocessing import everygrams

from megagpt import checkpoint
from megagpt.config.schema import Config, ParallelConfig
from megagpt.data.packed import PackedCorpus
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.intervals import interval_of_share
from megagpt.evaluate.in_context.language_model import MegaGPTLM
from megagpt.evaluate.in_context.run import run_tasks
from megagpt.log import progress, run_tool, setup
from megagpt.stages.weights import load_model


class NGramLM(TemplateLM):
    """An n-gram model with lm-eval's interface."""

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[np.ndarray], order: int) -> None:
        """documents: int64 [n] token ids of each document, with end-of-text before it"""
        super().__init__()
        self.tokenizer, self.order = tokenizer, order
        words = [list(map(str, document.tolist())) for document in documents]
        self.model = WittenBellInterpolated(order)
        self.model.fit(
            (everygrams(document, max_len=order) for document in words),
            vocabulary_text=map(str, range(tokenizer.vocab_size)),
        )
        self._score = lru_cache(maxsize=None)(self.model.logscore)  # in bits

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.tokenizer.end_of_text_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids."""
        return self.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probabilities in nats. The greedy flag is always False, since BLiMP does not use it."""
        found = []
        with progress(len(requests), "requests", "n-grams") as bar:
            for _texts, context, continuation in requests:
                tokens = [str(token) for token in (*context, *continuation)]
                first = len(context)
                bits = sum(
                    self._score(tokens[place], tuple(tokens[max(0, place - self.order + 1) : place]))
                    for place in range(first, len(tokens))
                )
                found.append((bits * float(np.log(2)), False))
                bar.update(1)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Not implemented, since BLiMP does not use it."""
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Not implemented, since BLiMP does not use it."""
        raise NotImplementedError


def training_documents(config: Config, tokenizer: Tokenizer, most: int) -> Iterator[np.ndarray]:
    """The run's first training documents, of at most `most` tokens in all, with end-of-text before each."""
    for corpus in config.data.corpora:
        packed = PackedCorpus(corpus.path, config.data.split, "train", 1)
        tokens = packed.read(0, min(most, packed.num_tokens))
        most -= len(tokens)
        ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
        for document in np.split(tokens, ends + 1):
            yield np.concatenate(([tokenizer.end_of_text_id], document))


def main() -> None:
    """Load, count, ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder of a model and its corpus")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--order", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="for the n-grams (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="most pairs per task")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.order < 1 or args.tokens < 1:
        raise ConfigError("--order and --tokens must be at least 1")
    setup()
    config, engine, tokenizer = load_model(checkpoint.find(args.checkpoint), ParallelConfig())
    documents = list(training_documents(config, tokenizer, args.tokens))
    models = {
        "model": MegaGPTLM(engine.modules, config, tokenizer),
        f"{args.order}-grams": NGramLM(tokenizer, documents, args.order),
    }
    found: dict[str, Any] = {}
    for name, lm in models.items():
        outcomes = list(run_tasks(lm, tasks=["blimp"], shots=[0], data=args.data, limit=args.limit))
        right = sum(sum(example.metrics["acc"] for example in outcome.examples) for outcome in outcomes)
        count = sum(len(outcome.examples) for outcome in outcomes)
        interval = interval_of_share(int(right), count)
        found[name] = {
            "accuracy": float(np.mean([outcome.metrics["acc"] for outcome in outcomes])),
            "interval_95": [interval.low, interval.high],
            "tasks": {outcome.task: outcome.metrics["acc"] for outcome in outcomes},
        }
    for task in found["model"]["tasks"]:
        print(f"{task:<50}" + "  ".join(f"{name} {values['tasks'][task]:.3f}" for name, values in found.items()))
    print(f"{'mean':<50}" + "  ".join(f"{name} {values['accuracy']:.3f}" for name, values in found.items()))
    if args.output:
        learnt = {"pairs": count, "tokens_of_ngrams": sum(map(len, documents)), "chance": 0.5}
        about = measured_on("torch", "lm-eval", "nltk")
        args.output.write_text(json.dumps(found | learnt | about, indent=1) + "\n")


if __name__ == "__main__":
    run_tool(main)
