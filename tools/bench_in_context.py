"""Measure requests per second of few-shot multiple choice, and compare with lm-eval's `hf` with the same weights.

    python tools/bench_in_context.py --output docs/benchmarks/in_context_cpu.json

Questions have five demonstrations and four choices of random tokens; a request is a choice. Demonstrations are drawn
for each question (drawn), as lm-eval does by default, or are the same for all (fixed). Weights are random; attention is
dense, for which transformers has its fastest implementation. Both sides take the same token ids, in one process with
the same threads, in turns, each first in half of the rounds, after a warm-up; `hf` has the batch size that was fastest
for it in the warm-up. Rates are medians over the rounds. It fails if the two sides differ by more than 1e-4 per token
or in what is greedy, or if ours has less than 3 times the requests per second.
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measured_on import measured_on

from megagpt.checkpoint.convert import hugging_face
from megagpt.checkpoint.convert.hugging_face_config import architecture_of, files
from megagpt.config.load import load
from megagpt.config.schema import Config, ModelConfig, OptimConfig, ParallelConfig
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from megagpt.errors import MegaGPTError
from megagpt.log import run_tool
from megagpt.model.continuations import Counts

REQUIRED = 3.0
"""Smallest ratio of our requests per second to those of `hf`."""
TOLERANCE = 1e-4
"""Largest difference of a token's log-probability, in nats."""
OURS, THEIRS = "megagpt", "lm_eval_hf"
BATCH_SIZES = (1, 8, 32)
"""Batch sizes to try for `hf`; its default is 1."""
SHOTS, CHOICES = 5, 4
EXAMPLES = {"demo": (24, 38), "gpt3_125m": (40, 80)}
"""Range of the tokens of a question with its answer, such that a prompt fits the demo's window of 256."""
FRAMES = ("drawn", "fixed")

Request = tuple[None, list[int], list[int]]


def make_requests(model: ModelConfig, lengths: tuple[int, int], frame: str, questions: int) -> list[Request]:
    """The choices of the questions, in lm-eval's form: no texts, tokens of the context, tokens of the choice."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(model.vocab_size) for _ in range(count)]

    head, tail = tokens(2), tokens(2)  # "Question:" and "Answer:"
    training = [head + tokens(rng.randrange(*lengths) - 4) + tail for _ in range(200)]
    fixed, requests = rng.sample(training, SHOTS), []
    for _ in range(questions):
        shots = fixed if frame == "fixed" else rng.sample(training, SHOTS)
        context = [token for shot in shots for token in shot] + head + tokens(rng.randrange(*lengths) - 10) + tail
        requests += [(None, context, tokens(rng.randrange(2, 11))) for _ in range(CHOICES)]
    return requests


def make_both(model: ModelConfig, folder: Path) -> tuple[Any, Any]:
    """(ours, theirs) as lm-eval's models, with the same random weights, by the converter."""
    import transformers
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer as FastTokenizer

    from megagpt.evaluate.in_context.language_model import MegaGPTLM
    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    settings = files(architecture_of(model), model, "float32", None)["config.json"]
    kind = getattr(transformers, settings["architectures"][0])
    torch.manual_seed(0)
    theirs = kind(kind.config_class(**settings)).eval()
    theirs.save_pretrained(folder)
    source = hugging_face.open_source(folder, None)
    config = Config(model=source.model, optim=OptimConfig(precision="fp32"))
    gpt = GPT(config)
    with torch.no_grad():
        for name, parameter, _ in named_boxes([gpt]):
            parameter.copy_(source.read(f"model/{name}"))
    tokenizer: Tokenizer = train_tokenizer(["to be or not to be"], 257)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=FastTokenizer.from_str(tokenizer.to_json()), model_max_length=model.sequence_length, **special
    )
    return MegaGPTLM([gpt], config, tokenizer), HFLM(pretrained=theirs, tokenizer=fast, backend="causal", device="cpu")


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, seconds of CPU time) of `work`."""
    began, cpu = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - began, time.process_time() - cpu


def fastest_batch_size(theirs: Any, requests: list[Request]) -> int:
    """The batch size of BATCH_SIZES with which `hf` needs the least CPU time for some of the requests."""
    some, seconds = requests[: max(BATCH_SIZES)], {}
    for size in BATCH_SIZES:
        theirs.batch_size_per_gpu = size
        seconds[size] = timed(lambda: theirs._loglikelihood_tokens(some, disable_tqdm=True))[2]
    return min(seconds, key=seconds.get)


def check_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]], requests: list[Request]) -> float:
    """The largest difference of a log-probability per token of the choice. Raises MegaGPTError if it is too large."""
    largest = 0.0
    for number, ((mine, greedy), (other, their_greedy)) in enumerate(zip(ours, theirs, strict=True)):
        difference = abs(mine - other) / len(requests[number][2])
        if not difference <= TOLERANCE or greedy != their_greedy:
            raise MegaGPTError(
                f"request {number}: megagpt gives {mine}, {greedy}, lm-eval's hf {other}, {their_greedy}"
            )
        largest = max(largest, difference)
    return largest


def compare(ours: Any, theirs: Any, requests: list[Request], rounds: int) -> dict[str, Any]:
    """Measure both sides in turns."""
    theirs.batch_size_per_gpu = fastest_batch_size(theirs, requests)
    ours._loglikelihood_tokens(requests[:CHOICES], disable_tqdm=True)
    ours.counts = Counts()
    sides = {OURS: ours, THEIRS: theirs}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    results = {}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            lm = sides[name]
            results[name], *seconds = timed(lambda lm=lm: lm._loglikelihood_tokens(requests, disable_tqdm=True))
            taken[name].append(tuple(seconds))
    found: dict[str, Any] = {
        "requests": len(requests),
        "largest_difference": check_same(results[OURS], results[THEIRS], requests),
        "tokens": ours.counts.asked // rounds,
        "computed": ours.counts.computed // rounds,
        "reused": round(ours.counts.reused, 4),
        "hf_batch_size": theirs.batch_size_per_gpu,
    }
    for which, kind, suffix in ((0, "seconds", ""), (1, "cpu_seconds", "_by_cpu_time")):
        medians = {name: statistics.median(pair[which] for pair in pairs) for name, pairs in taken.items()}
        found[kind] = {name: [round(pair[which], 3) for pair in pairs] for name, pairs in taken.items()}
        found[f"requests_per_{kind.removesuffix('s')}"] = {
            name: round(len(requests) / median, 2) for name, median in medians.items()
        }
        found[f"ratio{suffix}"] = round(medians[THEIRS] / medians[OURS], 2)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    from megagpt.parallel import launch

    launch.initialize(ParallelConfig(), seed=0)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "shots": SHOTS, "choices": CHOICES, "models": {}}
    for name, questions in zip(options.models, options.questions, strict=True):
        model = load([f"model={name}", "model.attention_pattern=[dense]", "data.tokenizer=none"]).model
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = make_both(model, Path(folder))
        for frame in FRAMES:
            requests = make_requests(model, EXAMPLES[name], frame, questions)
            found = compare(ours, theirs, requests, options.rounds)
            result["models"].setdefault(name, {})[frame] = found
            print(
                f"{name}, {frame}: {found['requests_per_second']} requests a second, ratio {found['ratio']}, by CPU "
                f"{found['ratio_by_cpu_time']}; {found['computed']} of {found['tokens']} tokens computed"
            )
    launch.shutdown()
    return result


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=EXAMPLES, default=list(EXAMPLES), help="shapes (default: both)")
    parser.add_argument(
        "--questions", nargs="+", type=int, default=[50, 12], help="with each shape (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    if len(options.questions) != len(options.models):
        parser.error("--questions takes one number for each of --models")
    return options


def main() -> None:
    """Measure, print, write, judge."""
    options = parse()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    result = measured_on("torch", "transformers", "lm-eval") | measure(options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    slow = {
        f"{name}, {frame}": found["ratio"]
        for name, frames in result["models"].items()
        for frame, found in frames.items()
        if found["ratio"] < REQUIRED
    }
    if slow:
        raise MegaGPTError(f"less than {REQUIRED:g} times the requests per second of lm-eval's hf: {slow}")


if __name__ == "__main__":
    run_tool(main)
