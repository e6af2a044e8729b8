"""Show that stage embed learns, compared with sentence-transformers with the same weights, pairs and time.

    python tools/prove_embed.py --data ../shared/data --output docs/benchmarks/embed_learning_cpu.json

--data has the folders stsb, scifact and snli_sample. First a small dense GPT is pretrained on their texts. Both sides
start from its weights and learn from the same pairs in the same batches: titles with abstracts, claims with abstracts
(training split), and sentences with the same meaning (training split of STS-B, and SNLI). Stage embed takes --minutes,
on two ranks; then sentence-transformers (MultipleNegativesRankingLoss, symmetric) gets the same number of seconds of
steps, on two threads. Both take a batch in one pass. Learning rate, warm-up and decay over the time, temperature and
optimizer are the same. It measures, before and after, the rank correlation on STS-B's test split, and nDCG@10 of
SciFact's 300 validation claims among its 5,183 abstracts. It fails if stage embed ends below its peer by more than
--tolerance.
"""

import argparse
import csv
import gzip
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_embed import SYMMETRIC
from bench_train import machine

from megagpt.checkpoint.convert.convert import convert
from megagpt.config.load import read as read_config
from megagpt.config.schema import Config
from megagpt.data.pair_loader import PairLoader
from megagpt.data.tokenizer import END_OF_TEXT
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.log import progress, run_tool
from megagpt.train.metrics import read_jsonl

BATCH, TEMPERATURE, LR, WARMUP, MIN_LR_RATIO = 64, 0.05, 1e-3, 0.05, 0.1
MAX_TOKENS = 128
RANKS = ("--nproc-per-node", "2")
"""Two ranks with one core each; the peer has two threads."""
CALIBRATION = 12
"""Number of steps of a first run that measures the time of a step."""
SETS = (
    "scifact/corpus.jsonl.gz",
    "scifact/claims.jsonl.gz",
    "scifact/qrels.tsv",
    "stsb/stsb-en-train.csv.gz",
    "stsb/stsb-en-test.csv.gz",
    "snli_sample/snli_dev_part.jsonl.gz",
    "snli_sample/snli_test_part.jsonl.gz",
)
"""Files of --data."""


def main() -> None:
    """Prepare, train both, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/prove_embed"), help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6, help="of training on each side (default: %(default)s)")
    parser.add_argument("--base-tokens", type=int, default=500_000, help="of pretraining (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.minutes <= 0:
        raise ConfigError(f"--minutes is {args.minutes:g}; it must be above 0")
    if missing := [name for name in SETS if not (args.data / name).is_file()]:
        raise ConfigError(f"--data {args.data} has no {', '.join(missing)}")
    folder = args.folder
    write_sets(args.data, folder)
    pretrain(folder, args.base_tokens)
    seconds = train_ours(folder, args.minutes * 60)
    peer = Peer(folder, read_config(folder / "ours" / "config.yaml"))
    peer.save(folder / "before")
    steps = peer.train(seconds)
    peer.save(folder / "theirs")
    result = machine(torch.device("cpu"), torch.get_num_threads()) | {
        "seconds_of_steps": seconds,
        "steps": {"megagpt": len(steps_of(folder / "ours")), "sentence_transformers": steps},
        "batch_size": BATCH,
        "before": measure(folder, "before", f"sentence_transformer={folder / 'before'}", args.data),
        "megagpt": measure(folder, "ours", f"checkpoint={folder / 'ours'}", args.data),
        "sentence_transformers": measure(folder, "theirs", f"sentence_transformer={folder / 'theirs'}", args.data),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    ours, theirs = result["megagpt"], result["sentence_transformers"]
    if worse := [name for name in ours if ours[name] < theirs[name] - args.tolerance]:
        raise MegaGPTError(f"stage embed ends below sentence-transformers in {', '.join(worse)}")


def megagpt(*arguments: str) -> None:
    """Run a command of megagpt. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "megagpt.cli", *arguments], check=True)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_sets(data: Path, folder: Path) -> None:
    """Write the pairs and the text to learn from, and SciFact as a BEIR folder."""
    documents = [
        {"_id": one["_id"], "title": one["title"], "text": " ".join(one["sentences"])}
        for one in lines_of(data / "scifact" / "corpus.jsonl.gz")
    ]
    abstracts = {one["_id"]: f"{one['title']} {one['text']}" for one in documents}
    claims = {one["_id"]: one for one in lines_of(data / "scifact" / "claims.jsonl.gz")}
    judged = [line.split("\t") for line in (data / "scifact" / "qrels.tsv").read_text().splitlines()[1:]]
    beir = folder / "scifact"
    write_lines(beir / "corpus.jsonl", documents)
    write_lines(beir / "queries.jsonl", [{"_id": key, "text": one["text"]} for key, one in claims.items()])
    held_out = ["\t".join(row[:3]) for row in judged if claims[row[0]]["split"] == "validation"]
    (beir / "qrels").mkdir(exist_ok=True)
    (beir / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *held_out]) + "\n")
    pairs = [{"query": one["title"], "positive": one["text"]} for one in documents if one["title"] and one["text"]]
    pairs += [
        {"query": claims[query]["text"], "positive": abstracts[document]}
        for query, document, *_ in judged
        if claims[query]["split"] == "train"
    ]
    with gzip.open(data / "stsb" / "stsb-en-train.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    pairs += [{"query": first, "positive": second} for first, second, score in rows if float(score) >= 4]
    inferences = [
        one for name in ("dev", "test") for one in lines_of(data / "snli_sample" / f"snli_{name}_part.jsonl.gz")
    ]
    pairs += [
        {"query": one["sentence1"], "positive": one["sentence2"]}
        for one in inferences
        if one["gold_label"] == "entailment"
    ]
    write_lines(folder / "pairs.jsonl", pairs)
    texts = [*abstracts.values(), *(text for row in rows for text in row[:2])]
    texts += [one[key] for one in inferences for key in ("sentence1", "sentence2")]
    random.Random(0).shuffle(texts)
    write_lines(folder / "text.jsonl", [{"text": text} for text in texts])


def pretrain(folder: Path, tokens: int) -> None:
    """Pretrain the model from which both sides start, unless an earlier call has made it in the folder."""
    if (folder / "base_hf").exists():
        return
    text, tokenizer, corpus = (str(folder / name) for name in ("text.jsonl", "tokenizer.json", "corpus"))
    megagpt("data", "tokenizer", text, "--vocab-size", "8192", "--output", tokenizer)
    megagpt("data", "preprocess", text, "--tokenizer", tokenizer, "--output", corpus)
    megagpt(
        "train",
        *RANKS,
        "experiment=demo",
        "optim=demo",
        *shape(folder),
        f"data.corpora=[{{path:{corpus}}}]",
        "run_name=base",
        f"optim.train_tokens={tokens}",
        f"optim.decay_tokens={tokens}",
        "stage.sample_prompts=[]",
        "parallel.micro_batch_size=2",
    )
    convert(folder / "base", folder / "base_hf", "huggingface", prove=False)


def shape(folder: Path) -> list[str]:
    """Overrides that all runs share."""
    return [
        f"runs_dir={folder}",
        f"data.tokenizer={folder}/tokenizer.json",
        "model=demo",
        "model.vocab_size=8192",
        "model.attention_pattern=[dense]",
    ]


def train_ours(folder: Path, seconds: float) -> float:
    """Train stage embed for about `seconds` seconds. Returns the total seconds of its steps."""
    common = [
        "train",
        *RANKS,
        *shape(folder),
        "stage=embed",
        f"checkpoint.load={folder}/base",
        f"data.pairs=[{folder}/pairs.jsonl]",
        "data.split=[0.98,0.02,0]",
        f"embed.max_tokens={MAX_TOKENS}",
        f"embed.temperature={TEMPERATURE}",
        "embed.learn_temperature=false",
        *(f"embed.{side}_{end}=''" for side in ("query", "document") for end in ("prefix", "suffix")),
        f"optim.lr={LR}",
        f"optim.min_lr_ratio={MIN_LR_RATIO}",
        "optim.precision=fp32",
        f"optim.global_batch_size={BATCH}",
        f"parallel.micro_batch_size={BATCH // 2}",
        "stage.eval_interval=0",
    ]
    config = None
    for name, steps in (("calibration", CALIBRATION), ("ours", None)):
        if steps is None:
            taken = sorted(line["step_seconds"] for line in steps_of(folder / "calibration"))
            steps = max(CALIBRATION, int(seconds / taken[len(taken) // 2]))
            config = read_config(folder / "calibration" / "config.yaml")
        epochs = steps * BATCH / (len((folder / "pairs.jsonl").read_text().splitlines()) * 0.98)
        warmup = 0 if config is None else int(WARMUP * config.optim.train_tokens * steps / CALIBRATION)
        megagpt(*common, f"run_name={name}", f"optim.train_epochs={epochs}", f"optim.warmup_tokens={warmup}")
    return sum(line["step_seconds"] for line in steps_of(folder / "ours"))


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's training steps."""
    return [line for line in read_jsonl(run / "metrics.jsonl") if "step_seconds" in line]


class Peer:
    """The base model in sentence-transformers."""

    def __init__(self, folder: Path, config: Config) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses, modules

        transformer = modules.Transformer(str(folder / "base_hf"), max_seq_length=MAX_TOKENS)
        transformer.tokenizer.pad_token, transformer.tokenizer.padding_side = END_OF_TEXT, "right"
        pooling = modules.Pooling(config.model.hidden_size, pooling_mode="lasttoken")
        self.model = SentenceTransformer(modules=[transformer, pooling, modules.Normalize()], device="cpu")
        end_with_end_of_text(transformer.tokenizer)
        self.loader, self.optim = PairLoader(config), config.optim
        self.loss = losses.MultipleNegativesRankingLoss(
            self.model,
            scale=1 / TEMPERATURE,
            **SYMMETRIC,
        )

    def train(self, seconds: float) -> int:
        """Take steps for `seconds` seconds. Returns their number."""
        parameters = list(self.model.parameters())
        groups = [
            {"params": [value for value in parameters if value.dim() > 1], "weight_decay": self.optim.weight_decay},
            {"params": [value for value in parameters if value.dim() == 1], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, LR, (self.optim.beta1, self.optim.beta2), self.optim.eps, fused=True)
        spent, number = 0.0, 0
        self.model.train()
        with progress(round(seconds), "s", "sentence-transformers") as bar:
            while spent < seconds:
                started = time.perf_counter()
                for group in adam.param_groups:
                    group["lr"] = rate(spent / seconds)
                pairs = [self.loader.pairs["train"][index] for index in self.loader.batch(number * BATCH)]
                texts = [[pair.query for pair in pairs], [pair.positive for pair in pairs]]
                adam.zero_grad()
                self.loss([self.model.preprocess(each) for each in texts], None).backward()
                torch.nn.utils.clip_grad_norm_(parameters, self.optim.clip_grad)
                adam.step()
                spent, number = spent + time.perf_counter() - started, number + 1
                bar.update(min(time.perf_counter() - started, bar.total - bar.n))
        return number

    def save(self, folder: Path) -> None:
        """Write the model to a folder that `SentenceTransformer` can read."""
        self.model.save(str(folder))


def end_with_end_of_text(tokenizer: Any) -> None:
    """Let the tokenizer of transformers end every text with end-of-text, like stage embed."""
    from tokenizers.processors import TemplateProcessing

    special = [(END_OF_TEXT, tokenizer.convert_tokens_to_ids(END_OF_TEXT))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {END_OF_TEXT}", special_tokens=special)


def rate(progress_made: float) -> float:
    """Learning rate after a part of the time, by stage embed's schedule."""
    if progress_made < WARMUP:
        return LR * progress_made / WARMUP
    part = (progress_made - WARMUP) / (1 - WARMUP)
    return LR * (MIN_LR_RATIO + (1 - MIN_LR_RATIO) * (1 + math.cos(math.pi * part)) / 2)


def measure(folder: Path, name: str, model: str, data: Path) -> dict[str, float]:
    """Metrics on both sets."""
    found = {}
    for task, source, metric in (
        ("sts", data / "stsb" / "stsb-en-test.csv.gz", "spearman"),
        ("retrieval", folder / "scifact", "ndcg_at_10"),
    ):
        output = folder / f"{name}_{task}"
        megagpt("evaluate", f"task={task}", f"data={source}", model, f"output={output}")
        metrics = json.loads((output / "result.json").read_text())["metrics"]
        found[f"{task}_{metric}"] = metrics.get("model", metrics)[metric]
    return found


if __name__ == "__main__":
    run_tool(main)
