"""Stages `edit` and `sft`: learning the assistant's part of conversations (InstructGPT, arXiv 2203.02155)."""

import dataclasses
import json
import logging

from megagpt.config.schema import Config
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.supervised import ConversationLoader
from megagpt.errors import STOPPED_BY_SIGNAL
from megagpt.evaluate.held_out import evaluate
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel.build import build_engine
from megagpt.stages.session import Session, open_session, start
from megagpt.train.metrics import replace_file
from megagpt.train.task import LanguageModelTask

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Train for `optim.train_epochs` or `train_tokens`, then judge the model on all held-out conversations."""
    with start(config) as checkpointer:
        loader = ConversationLoader(config)
        config = with_epochs(config, len(loader.rows["train"]), loader.sample_tokens)
        session = open_session(config, build_engine(config, LanguageModelTask()), checkpointer, loader)
        if not session.trainer.fit():
            return STOPPED_BY_SIGNAL
        with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
            evaluate_run(session)
            write_samples(session)
        session.trainer.metrics.finish()
    return 0


def with_epochs(config: Config, samples: int, sample_tokens: int) -> Config:
    """`config` with `train_tokens` and `decay_tokens` for `train_epochs` passes over `samples`, in whole steps.

    sample_tokens: what a sample counts for, see `Loader.sample_tokens`.
    """
    optim = config.optim
    if optim.train_epochs is None:
        return config
    steps = max(1, round(optim.train_epochs * samples / optim.global_batch_size))
    tokens = steps * optim.global_batch_size * sample_tokens
    warmup = min(optim.warmup_tokens, tokens)
    optim = dataclasses.replace(optim, train_tokens=tokens, decay_tokens=tokens, warmup_tokens=warmup)
    return dataclasses.replace(config, optim=optim)


def evaluate_run(session: Session) -> None:
    """Measure the finished model on every held-out conversation, into evaluation.json. Collective."""
    values = evaluate(session.engine, session.loader, "validation", max_tokens=None)
    if not session.is_main or not values:
        return
    values = {"step": session.trainer.state.step, "part": "validation"} | values
    replace_file(session.run_dir / "evaluation.json", json.dumps(values, indent=2) + "\n")
    log.info(
        "held out: loss %.4f, perplexity %.2f over %d tokens of answers",
        *(values["loss"], values["perplexity"], values["tokens"]),
    )


def write_samples(session: Session) -> None:
    """Answer the configured prompts, into samples.jsonl and the log. Collective."""
    stage, tokenizer = session.config.stage, session.loader.tokenizer
    if not stage.sample_prompts:
        return
    settings = GenerationConfig(max_new_tokens=stage.sample_tokens, temperature=0)
    prompts = [chat_prompt(tokenizer, [Message("user", prompt)]) for prompt in stage.sample_prompts]
    completions = Generator(session.engine.modules, session.config, tokenizer).generate(prompts, settings)
    if not session.is_main:
        return
    step = session.trainer.state.step
    pairs = zip(stage.sample_prompts, completions, strict=True)
    lines = [{"step": step, "prompt": prompt, "text": completion.text} for prompt, completion in pairs]
    replace_file(session.run_dir / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        log.info("sample:\n%s\n%s", line["prompt"], line["text"])
