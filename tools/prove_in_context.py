"""Show that a small model learns in context: it answers by unseen rules, from examples in its prompt.

    python tools/prove_in_context.py --seeds 1 2 3 --output docs/benchmarks/in_context_learning_cpu.json

For each seed, the model of experiment=demo_incontext learns from documents of one rule each (`megagpt data rules`). A
control learns from the same examples, shuffled over the documents so that no document has a rule, with the same number
of tokens and the same order of kinds. Both then answer the same questions about held-out rules after K examples. It
fails unless, for each seed and on average over the trained kinds:

- the model's accuracy without examples is chance, up to CHANCE_ERRORS standard errors,
- its accuracy with the most examples is above chance by --margin,
- its accuracy grows from every K to the next,
- the control's accuracy is above chance by at most --control-margin at any K.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measured_on import measured_on

from megagpt.config.load import read as read_config
from megagpt.config.schema import ParallelConfig
from megagpt.data.rules import EXAMPLES, HELD_OUT_KINDS, KINDS, questions
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.log import progress, run_tool
from megagpt.stages.weights import load_model
from megagpt.train.metrics import read_jsonl

ARMS = {"rules": [], "shuffled": ["--shuffled"]}
"""Documents of the model and of its control, with the options that make them."""
BATCH = 16
"""Sequences per step, as in configs/optim/demo_incontext.yaml."""
CHANCE_ERRORS = 3
ROWS = 128
"""Number of prompts with answers that are scored at a time."""
KNOWN, NEW = "kinds trained on", "kinds never trained on"


def main() -> None:
    """Train, ask, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=6_000_000, help="to train on (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=100_000, help="for each seed (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="(default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="of training (default: %(default)s)")
    parser.add_argument("--margin", type=float, default=0.3, help="(default: %(default)s)")
    parser.add_argument("--control-margin", type=float, default=0.06, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/prove_in_context"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.shots != sorted(set(args.shots)) or args.shots[0] != 0 or len(args.shots) < 2:
        raise ConfigError(f"--shots is {args.shots}; it must be ascending numbers that begin with 0")
    if args.shots[-1] >= EXAMPLES:
        raise ConfigError(f"--shots asks for {args.shots[-1]} examples; a question has {EXAMPLES - 1}")
    asked = list(questions(args.questions * len(KINDS | HELD_OUT_KINDS), seed=0))
    found = []
    for seed in args.seeds:
        for arm in ARMS:
            minutes = train(args, seed, arm)
            tables = ask(run_folder(args.folder, seed, arm), asked, args.shots)
            found.append({"seed": seed, "arm": arm, "training_minutes": round(minutes, 1)} | tables)
            print(as_text(found[-1], args.shots), flush=True)
    result = measured_on("torch", "megatron-core") | {
        "ranks": args.ranks,
        "tokens": args.tokens,
        "shots": args.shots,
        "questions_of_each_kind": args.questions,
        "runs": found,
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if wrong := list(failures(found, args.shots, args.margin, args.control_margin)):
        raise MegaGPTError("; ".join(wrong))


def run_folder(folder: Path, seed: int, arm: str) -> Path:
    """Folder of a run."""
    return folder / f"{arm}_{seed}"


def megagpt(*arguments: str) -> None:
    """Run a command of megagpt. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "megagpt.cli", *arguments], check=True)


def train(args: argparse.Namespace, seed: int, arm: str) -> float:
    """Make the documents and train, unless an earlier call has finished the run. Returns the minutes of its steps."""
    run, data = run_folder(args.folder, seed, arm), args.folder / "data" / f"{arm}_{seed}"
    tokenizer = args.folder / "data" / "tokenizer.json"
    if (run / "config.yaml").exists() and (made := read_config(run / "config.yaml").optim.train_tokens) != args.tokens:
        raise ConfigError(f"{run} was made with --tokens {made}: give that, or another --folder")
    if not (run / "evaluation.json").exists():
        text = f"{data}.jsonl"
        megagpt("data", "rules", "--count", f"{args.documents}", "--seed", f"{seed}", *ARMS[arm], "--output", text)
        if not tokenizer.exists():
            megagpt("data", "tokenizer", text, "--vocab-size", "257", "--max-mb", "1", "--output", str(tokenizer))
        megagpt("data", "preprocess", text, "--tokenizer", str(tokenizer), "--output", str(data))
        lengths = {"train_tokens": args.tokens, "decay_tokens": args.tokens, "warmup_tokens": args.tokens // 100}
        megagpt(
            "train",
            *(("--nproc-per-node", f"{args.ranks}") if args.ranks > 1 else ()),
            "experiment=demo_incontext",
            f"runs_dir={args.folder}",
            f"run_name={run.name}",
            f"seed={seed}",
            f"data.tokenizer={tokenizer}",
            f"data.corpora=[{{path:{data}}}]",
            f"optim.global_batch_size={BATCH}",
            f"parallel.micro_batch_size={BATCH // args.ranks}",
            *(f"optim.{name}={tokens}" for name, tokens in lengths.items()),
        )
    return sum(line["step_seconds"] for line in read_jsonl(run / "metrics.jsonl") if "step_seconds" in line) / 60


def ask(run: Path, asked: list[dict[str, Any]], shots: Sequence[int]) -> dict[str, Any]:
    """Chance, and accuracy by K, for each kind, for all trained kinds, and for all other kinds.

    The answer is the choice with the highest sum of its tokens' log-probabilities.
    """
    _, engine, tokenizer = load_model(run, ParallelConfig(zero_stage=0))
    prompts, answers = [], []
    for number, question in enumerate(asked):
        for count in shots:
            lines = [f"{one['input']}{one['answer']}\n" for one in question["examples"][:count]]
            for choice in question["choices"]:
                prompts.append((number, count, choice))
                answers.append(("".join(lines) + question["input"], choice))
    best: dict[tuple[int, int], tuple[float, str]] = {}
    for (number, count, choice), score in zip(prompts, score_all(engine.modules[0], tokenizer, answers), strict=True):
        best[number, count] = max(best.get((number, count), (-math.inf, "")), (score, choice))
    kinds = {kind: [kind] for kind in KINDS | HELD_OUT_KINDS} | {KNOWN: list(KINDS), NEW: list(HELD_OUT_KINDS)}
    found = {}
    for name, members in kinds.items():
        numbers = [number for number, question in enumerate(asked) if question["kind"] in members]
        chance = sum(1 / len(asked[number]["choices"]) for number in numbers) / len(numbers)
        rights = {count: [best[at, count][1] == asked[at]["answer"] for at in numbers] for count in shots}
        found[name] = {
            "chance": round(chance, 4),
            "accuracy": {str(count): interval(values) for count, values in rights.items()},
        }
    return {"kinds": found}


def score_all(model: torch.nn.Module, tokenizer: Tokenizer, answers: list[tuple[str, str]]) -> list[float]:
    """The log-probability of each answer after its prompt."""
    rows = [(tokenizer.encode(prompt), tokenizer.encode(answer)) for prompt, answer in answers]
    order = sorted(range(len(rows)), key=lambda at: len(rows[at][0]) + len(rows[at][1]))
    scores = [0.0] * len(rows)
    model.eval()
    with progress(len(rows), "answers", "asking") as bar, torch.inference_mode():
        for start in range(0, len(order), ROWS):
            batch = order[start : start + ROWS]
            longest = max(len(rows[at][0]) + len(rows[at][1]) for at in batch)
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, at in enumerate(batch):
                ids = rows[at][0] + rows[at][1]
                tokens[row, : len(ids)] = torch.tensor(ids)
            logits = model(tokens, torch.arange(longest).expand_as(tokens), None)
            logprobs = logits[..., : tokenizer.vocab_size].float().log_softmax(-1)
            for row, at in enumerate(batch):
                first, length = len(rows[at][0]), len(rows[at][1])
                wanted = torch.tensor(rows[at][1])
                scores[at] = float(logprobs[row, first - 1 : first - 1 + length].gather(1, wanted[:, None]).sum())
            bar.update(len(batch))
    return scores


def interval(rights: list[bool]) -> list[float]:
    """[share of right answers, lower and upper end of its 95% interval (Wilson, 1927)]."""
    n, share, z = len(rights), sum(rights) / len(rights), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round(value, 4) for value in (share, middle - half, middle + half)]


def as_text(run: dict[str, Any], shots: Sequence[int]) -> str:
    """A run's accuracies as a table."""
    head = f"{run['arm']}, seed {run['seed']}, {run['training_minutes']:.1f} minutes"
    lines = [f"{head:40} chance" + "".join(f"{f'K={count}':>8}" for count in shots)]
    for name, found in run["kinds"].items():
        values = "".join(f"{found['accuracy'][str(count)][0]:8.3f}" for count in shots)
        lines.append(f"  {name:38} {found['chance']:6.3f}{values}")
    return "\n".join(lines)


def failures(runs: list[dict[str, Any]], shots: Sequence[int], margin: float, control_margin: float) -> list[str]:
    """Messages about conditions that do not hold."""
    wrong = []
    for run in runs:
        found = run["kinds"][KNOWN]
        name, chance = f"{run['arm']}, seed {run['seed']}", found["chance"]
        accuracies = [found["accuracy"][str(count)] for count in shots]
        if run["arm"] == "shuffled":
            highest = max(value for value, *_ in accuracies)
            if highest > chance + control_margin:
                wrong.append(f"{name}: accuracy {highest:.3f} is above chance, {chance:.3f}")
            continue
        values = [value for value, *_ in accuracies]
        error = (accuracies[0][2] - accuracies[0][1]) / (2 * 1.96)
        if abs(values[0] - chance) > CHANCE_ERRORS * error:
            wrong.append(f"{name}: accuracy {values[0]:.3f} without examples is not chance, {chance:.3f}")
        if values[-1] < chance + margin:
            wrong.append(f"{name}: accuracy {values[-1]:.3f} with {shots[-1]} examples is too low")
        if values != sorted(values):
            wrong.append(f"{name}: accuracy does not grow with every K: {values}")
    return wrong


if __name__ == "__main__":
    run_tool(main)
