"""Smoke runs of every stage, for tools/gpu_check.py: small runs on synthetic data that start from each other."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megagpt import stages
from megagpt.config.load import load
from megagpt.config.schema import ParallelConfig
from megagpt.data.chat import grow_for_chat
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.indexed import write_corpus
from megagpt.data.instructions import make_instructions, ranked_answers
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import MegaGPTError
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel import launch
from megagpt.stages.weights import load_model
from megagpt.train.metrics import read_jsonl

STEPS, BATCH, LENGTH = 4, 8, 64
NEW_TOKENS = 24
RANKED = 40
"""Number of rankings and of pairs; a run trains on each once."""
AGREES = {torch.bfloat16: 0.15, torch.float32: 1e-3}
"""Largest difference of a token's log-probability between generation with a cache and a pass over the whole text."""


def prepare(folder: Path) -> list[str]:
    """Write data of every kind to `folder`, unless it is there. Returns the overrides that all runs share."""
    if not (folder / "tokenizer.json").exists():
        made = list(make_instructions(120, kinds=("some_words", "add", "copy"), seed=1))
        texts = ["\n".join(message.content for message in one.messages) for one in made]
        tokenizer = grow_for_chat(grow_for_code(train_tokenizer(texts, 300), longest_run=4))
        documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
        lengths = np.array([len(document) for document in documents], np.int32)
        about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
        write_corpus(folder / "text", [(lengths, np.concatenate(documents))], len(documents), about)
        talks = [[{"role": m.role, "content": m.content} for m in one.messages] for one in made]
        rng = random.Random(0)
        answers = [[{"content": a, "rank": rank} for a, rank in ranked_answers(one, rng)] for one in made]
        records = {
            "talks": [{"messages": talk} for talk in talks],
            "rankings": [{"messages": t[:-1], "answers": a} for t, a in zip(talks, answers, strict=True)][:RANKED],
            "pairs": [
                {"query": f"{number} {talk[0]['content']}", "positive": f"{talk[-1]['content']} {number}"}
                for number, talk in enumerate(talks[:RANKED])
            ],
        }
        for name, lines in records.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tokenizer.save(folder / "tokenizer.json")
    tokens = STEPS * BATCH * LENGTH
    return [
        "model=tiny",
        "model.num_layers=2",
        "model.hidden_size=128",
        "model.num_attention_heads=2",  # of 64 columns, which Triton's attention takes
        f"model.sequence_length={LENGTH}",
        f"model.vocab_size={Tokenizer.load(folder / 'tokenizer.json').vocab_size}",
        "optim=demo",
        "optim.precision=bf16",
        "optim.warmup_tokens=0",
        f"optim.train_tokens={tokens}",
        f"optim.decay_tokens={tokens}",
        f"optim.global_batch_size={BATCH}",
        "parallel.micro_batch_size=2",
        f"data.tokenizer={folder}/tokenizer.json",
        "data.split=[0.9,0.1,0]",
        "stage.eval_interval=2",
        "stage.sample_prompts=[]",
        "checkpoint.interval=2",
        "logging.wandb=off",
        f"runs_dir={folder}",
    ]


def overrides(name: str, folder: Path) -> list[str]:
    """All overrides of the run of stage `name`."""
    corpus = [f"data.corpora=[{{path: {folder}/text}}]"]
    few = ["optim.train_epochs=1", "data.split=[0.7,0.3,0]"]
    own = {
        "pretrain": corpus,
        "code": [
            *corpus,
            f"checkpoint.load={folder}/pretrain",
            "data.fim_rate=0.5",
            "data.fim_unit=word",
            "stage.fim_cuts=4",
        ],
        "sft": [f"checkpoint.load={folder}/pretrain", f"data.conversations=[{folder}/talks.jsonl]"],
        "reward": [f"checkpoint.load={folder}/sft", f"data.rankings=[{folder}/rankings.jsonl]", *few],
        "ppo": [
            *corpus,
            f"checkpoint.load={folder}/sft",
            f"data.conversations=[{folder}/talks.jsonl]",
            f"ppo.reward_model={folder}/reward",
            "ppo.rollout_batch_size=16",
            "ppo.episodes=32",
            "ppo.max_prompt_tokens=24",
            "ppo.max_new_tokens=16",
            "ppo.offload=true",
            "ppo.entropy_coefficient=0.01",
        ],
        "embed": [f"checkpoint.load={folder}/pretrain", f"data.pairs=[{folder}/pairs.jsonl]", *few],
    }
    return [*prepare(folder), f"stage={name}", f"run_name={name}", *own[name]]


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run a stage to its end. Returns figures of its steps. Raises MegaGPTError for an error or a loss that is not
    finite."""
    if name == "generate":
        return generate(folder)
    prepare(folder)
    config = load(overrides(name, folder))
    status = stages.run(config)
    lines = [line for line in read_jsonl(folder / name / "metrics.jsonl") if "loss" in line]
    losses = [line["loss"] for line in lines]
    if status or not losses or not all(map(math.isfinite, losses)) or lines[-1]["skipped_steps"]:
        raise MegaGPTError(f"stage {name} ended with status {status} and losses {losses}")
    return {
        "steps": len(lines),
        "first loss": losses[0],
        "last loss": losses[-1],
        "first step s": lines[0]["step_seconds"],
        "last step s": lines[-1]["step_seconds"],
        "peak GiB": lines[-1]["memory_gib"],
    }


def generate(folder: Path) -> dict[str, Any]:
    """Continue prompts with the model of sft, using the cache. One pass over the whole text must give the same.

    Raises MegaGPTError if log-probabilities differ by more than AGREES.
    """
    config, engine, tokenizer = load_model(folder / "sft", ParallelConfig())
    prompts = [tokenizer.encode(text) for text in ("Say: cat", "Add 2 and 3, and then the rest of it", "a", "b c")]
    try:
        (module,) = engine.modules
        generator = Generator(engine.modules, config, tokenizer)
        answers = generator.generate(prompts, GenerationConfig(max_new_tokens=NEW_TOKENS))
        worst = 0.0
        for prompt, answer in zip(prompts, answers, strict=True):
            text = torch.tensor([[*prompt, *answer.tokens]], device=engine.device)
            positions = torch.arange(text.shape[1], device=engine.device)[None]
            with torch.no_grad():
                logits = module(text, positions, None)[0, :, : tokenizer.vocab_size].float()
            whole = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, text[0, len(prompt) :, None])[:, 0]
            worst = max(worst, (whole.cpu() - torch.tensor(answer.logprobs)).abs().max().item())
    finally:
        launch.shutdown()
    tolerance = AGREES[engine.dtype]
    if not worst <= tolerance:
        raise MegaGPTError(f"cached generation differs by {worst:.3g} from the whole text (at most {tolerance})")
    return {"tokens": sum(len(answer.tokens) for answer in answers), "log-probability differs by": worst}
