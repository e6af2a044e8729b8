"""Show on a small task that PPO learns, is held near its reference, and with pretraining gradients forgets nothing.

    python tools/prove_ppo.py --output docs/benchmarks/ppo_learning_cpu.json --plot docs/benchmarks/ppo_learning.svg
    python tools/prove_ppo.py --seeds 1 --episodes 7680 --runs-dir runs/quick

A model of two layers is pretrained on synthetic instructions as text and as conversations, and fine-tuned on these.
Then it learns from a program that checks answers, with every seed in three ways: `plain`, with hardly any penalty for
divergence; `target`, with a penalty that is adapted to a divergence of at most ppo.kl_target; and `text`, plain with
pretraining gradients (PPO-ptx, as published: 8 sequences an answer, coefficient 27.8). Held-out prompts and text are
measured before, on the way and after. It fails where a claim does not hold. Runs that are there are not made again.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megagpt import log as logs
from megagpt.config.load import load
from megagpt.config.rules import check
from megagpt.data.chat import encode_chat, grow_for_chat
from megagpt.data.indexed import write_corpus
from megagpt.data.instruction_files import conversation, prompt, write
from megagpt.data.instructions import make_instructions
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError
from megagpt.parallel.spawn import run_ranks
from megagpt.train.metrics import read_jsonl

KINDS = ("some_words", "beginning", "add", "count")
INSTRUCTIONS = 4000
"""For demonstrations, and as many for prompts."""

OVERRIDES = "overrides.json"
"""In a run's folder: what it was told."""

KL_TARGET = 0.8
WAYS = {
    "plain": ["ppo.kl_coefficient=0.02", "ppo.ptx_coefficient=0"],
    "target": ["ppo.kl_coefficient=0.5", f"ppo.kl_target={KL_TARGET}", "ppo.ptx_coefficient=0"],
    "text": ["ppo.kl_coefficient=0.02", "ppo.ptx_coefficient=27.8", "ppo.ptx_ratio=8"],
}
PRETRAIN = ["data.isolate_documents=true", "optim.lr=2e-3"]
SFT = ["stage=sft", "optim.train_epochs=1", "optim.lr=5e-4", "optim.warmup_tokens=0"]
PPO = [
    "stage=ppo",
    "ppo.reward=checker",
    "ppo.max_prompt_tokens=24",
    "ppo.max_new_tokens=12",
    "ppo.rollout_batch_size=256",
    "optim.global_batch_size=64",
    "parallel.micro_batch_size=64",
    "optim.lr=2e-4",
    "ppo.critic_lr=2e-3",
    "optim.min_lr_ratio=1",
    "optim.warmup_tokens=0",
    "ppo.missing_eos_penalty=0.2",
    "ppo.critic_warmup_steps=12",
    "stage.eval_interval=40",
]
FIGURES = {
    "validation_score": "score of held-out answers",
    "validation_kl": "nats an answer from the reference",
    "validation_loss": "loss on held-out text, nats a token",
}


def main() -> int:
    """Run, check the claims, print, write."""
    args = parse()
    folder = args.runs_dir
    settings = prepare(folder)
    mixture = f"data.corpora=[{{path: {folder}/text}},{{path: {folder}/talk, weight: 3}}]"
    length = [f"optim.{name}_tokens={args.tokens}" for name in ("train", "decay")]
    train({"base": [*settings, *PRETRAIN, *length, mixture]})
    talk = f"data.conversations=[{folder}/conversations.jsonl]"
    train({"sft": [*settings, *SFT, f"checkpoint.load={folder}/base", "data.corpora=[]", talk]})
    ppo = [*settings, *PPO, f"checkpoint.load={folder}/sft", f"data.corpora=[{{path: {folder}/text}}]"]
    ppo += ["data.isolate_documents=true", f"data.conversations=[{folder}/prompts.jsonl]"]
    ppo += [f"ppo.episodes={args.episodes}"]
    seeds = range(1, args.seeds + 1)
    train({f"{way}_{seed}": [*ppo, *WAYS[way], f"seed={seed}"] for seed in seeds for way in WAYS}, args.jobs)
    found = {way: [read(folder / f"{way}_{seed}") for seed in seeds] for way in WAYS}
    print(table(found))
    claims = list(check_claims(found, args.margin))
    for holds, claim in claims:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(about() | {"runs": found}, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(found, args.plot)
    return int(not all(holds for holds, _ in claims))


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    add("--tokens", type=int, default=2_000_000, help="tokens of pretraining (default: %(default)s)")
    add("--episodes", type=int, default=15_360, help="answers that a run learns from (default: %(default)s)")
    add("--margin", type=float, default=0.3, help="least rise of the score to claim (default: %(default)s)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, a core each (default: all cores)")
    add("--runs-dir", type=Path, default=Path("runs/prove_ppo"), help="folder of the runs (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the curves (.svg, .png); needs matplotlib")
    args = parser.parse_args()
    if min(args.seeds, args.jobs, args.episodes, args.tokens) < 1:
        raise ConfigError("--seeds, --jobs, --episodes and --tokens must be at least 1")
    return args


def prepare(folder: Path) -> list[str]:
    """Write conversations, prompts, a tokenizer and the two corpora; returns what all runs are configured by."""
    folder.mkdir(parents=True, exist_ok=True)
    made = list(make_instructions(2 * INSTRUCTIONS, kinds=KINDS))
    random.Random(0).shuffle(made)  # they come kind by kind in turn
    shown, asked = made[::2], made[1::2]
    write(folder / "conversations.jsonl", map(conversation, shown))
    write(folder / "prompts.jsonl", map(prompt, asked))
    texts = ["\n".join(message.content for message in one.messages) for one in shown]
    tokenizer = grow_for_chat(train_tokenizer(texts, 600))
    tokenizer.save(folder / "tokenizer.json")
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    corpora = {
        "text": [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id]) for text in texts],
        "talk": [encode_chat(tokenizer, one.messages).tokens for one in shown],
    }
    for name, documents in corpora.items():
        lengths = np.array([len(document) for document in documents], np.int32)
        write_corpus(folder / name, [(lengths, np.concatenate(documents))], len(documents), about)
    return [
        "model=tiny",
        "model.num_layers=2",
        "model.hidden_size=64",
        "model.sequence_length=64",
        "optim=demo",
        f"model.vocab_size={tokenizer.vocab_size}",
        f"data.tokenizer={folder}/tokenizer.json",
        "logging.wandb=off",
        "data.split=[0.95,0.05,0]",
        "optim.global_batch_size=8",
        "parallel.micro_batch_size=8",
        f"runs_dir={folder}",
        "checkpoint.interval=0",
    ]


def train(runs: dict[str, list[str]], jobs: int = 1) -> None:
    """Run stages to their ends, on a core each and `jobs` at a time, but for those that have ended before.

    Raises ConfigError where a run that is there was made with other overrides.
    """
    todo = []
    for name, overrides in runs.items():
        overrides = [*overrides, f"run_name={name}"]
        config = load(overrides)
        check(config, 1)
        folder, told = Path(config.run_dir), json.dumps(overrides)
        if (folder / OVERRIDES).exists() and (folder / OVERRIDES).read_text() != told:
            raise ConfigError(f"{folder} was made with other settings: remove it, or give another --runs-dir")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OVERRIDES).write_text(told)
        if not (folder / "evaluation.json").exists():
            todo.append(overrides)
    names = " ".join(dict.fromkeys(name.split("_")[0] for name in runs))
    with logs.progress(len(todo), "runs", names) as bar, ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(partial(run_ranks, _train, 1), todo):
            bar.update(1)


def _train(overrides: list[str]) -> None:
    from megagpt.stages import run

    config = load(overrides)
    with (Path(config.run_dir) / "console.txt").open("a") as console:
        os.dup2(console.fileno(), sys.stderr.fileno())  # several runs at a time would talk at once
    run(config)


def read(run: Path) -> dict[str, Any]:
    """What a run measured: by figure, steps and values; and the largest divergence of any iteration's answers."""
    lines = read_jsonl(run / "metrics.jsonl")
    before, after = (json.loads((run / f"{name}.json").read_text()) for name in ("evaluation_before", "evaluation"))
    measured = [before, *(line for line in lines if "validation_score" in line), after]
    curves = {name: [line[name] for line in measured] for name in FIGURES}
    return curves | {
        "step": [line["step"] for line in measured],
        "largest_kl": max(line["kl"] for line in lines if "kl" in line),
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row a seed, as Markdown."""
    heads = [f"{figure}, {way}" for figure in ("score after", "nats", "loss after") for way in found]
    rows = [["seed", "score before", "loss before", *heads]]
    for seed, runs in enumerate(zip(*found.values(), strict=True), 1):
        first = runs[0]
        row = [str(seed), f"{first['validation_score'][0]:.3f}", f"{first['validation_loss'][0]:.3f}"]
        row += [f"{run['validation_score'][-1]:.3f}" for run in runs]
        row += [f"{run['validation_kl'][-1]:.2f}" for run in runs]
        rows.append(row + [f"{run['validation_loss'][-1]:.3f}" for run in runs])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join(["---:"] * len(rows[0])) + " |", *lines[1:]])


def check_claims(found: dict[str, list[dict[str, Any]]], margin: float) -> Iterator[tuple[bool, str]]:
    """Claims, and whether every seed bears them out."""
    for way, runs in found.items():
        rise = min(run["validation_score"][-1] - run["validation_score"][0] for run in runs)
        yield rise >= margin, f"{way}: the score rises by {rise:.3f} or more with every seed ({margin:g} is claimed)"
    largest = max(run["largest_kl"] for run in found["target"])
    yield largest <= KL_TARGET, f"target: no iteration is more than {largest:.3f} nats away (ppo.kl_target={KL_TARGET})"
    rises = {way: [run["validation_loss"][-1] - run["validation_loss"][0] for run in found[way]] for way in WAYS}
    yield (
        all(text <= plain / 3 for plain, text in zip(rises["plain"], rises["text"], strict=True)),
        f"text: the loss on pretraining text changes by {min(rises['text']):+.3f} to {max(rises['text']):+.3f}, plain"
        f" by {min(rises['plain']):+.3f} to {max(rises['plain']):+.3f} (at most a third is claimed)",
    )


def about() -> dict[str, Any]:
    """What it was measured on, and with what."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "device": f"CPU ({platform.machine()}), a core a run",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "megatron-core")},
    }


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw every seed's curve, a panel a figure, a colour a way."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "megagpt"  # the same curves, the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(FIGURES), figsize=(12, 3.6), layout="constrained")
    for panel, (name, title) in zip(panels, FIGURES.items(), strict=True):
        for colour, (way, runs) in zip(("tab:orange", "tab:green", "tab:blue"), found.items(), strict=True):
            for seed, run in enumerate(runs):
                panel.plot(run["step"], run[name], color=colour, label=None if seed else way, linewidth=1)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
    panels[1].axhline(KL_TARGET, color="tab:green", linestyle=":", linewidth=1)
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    logs.run_tool(main)
