"""Stages `edit` and `sft`: learning the assistant's part of conversations (InstructGPT, arXiv 2203.02155)."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megagpt.config.schema import Config
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.conversation_loader import ConversationLoader
from megagpt.errors import STOPPED_BY_SIGNAL, DataError
from megagpt.evaluate.edits import answer_edits, read_edits, similarity
from megagpt.evaluate.held_out import evaluate
from megagpt.evaluate.scores import score
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel.build import build_engine
from megagpt.stages.scoring import frozen_engine, scoring_config
from megagpt.stages.session import Session, open_session, start
from megagpt.train.metrics import replace_file
from megagpt.train.objectives import LanguageModelObjective, RewardObjective
from megagpt.train.state import TrainState

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Train for `optim.train_epochs` or `train_tokens`, then judge the model on all held-out conversations."""
    with start(config) as checkpointer:
        loader = ConversationLoader(config)
        config = with_epochs(config, len(loader.rows["train"]), loader.sample_tokens)
        session = open_session(config, build_engine(config, LanguageModelObjective()), checkpointer, loader)
        if config.stage.reward_model is not None:
            score_answers(session)
        if not session.trainer.state.step:
            evaluate_run(session, "evaluation_before.json")
        if not session.trainer.fit():
            return STOPPED_BY_SIGNAL
        evaluate_run(session, "evaluation.json")
        with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
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


def evaluate_run(session: Session, name: str) -> None:
    """Measure the model on every held-out conversation and edit, into the file `name`. Collective."""
    with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
        values = evaluate(session.engine, session.loader, "validation", max_tokens=None) | measure_edits(session)
    if not session.is_main or not values:
        return
    values = {"step": session.trainer.state.step, "split": "validation"} | values
    replace_file(session.run_dir / name, json.dumps(values, indent=2) + "\n")
    log.info("held out: %s", ", ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "split"))


def score_answers(session: Session) -> None:
    """Have every evaluation answer held-out prompts, and a reward model score them: `validation_reward`, the mean.

    Every replica answers all of them, the likeliest token at a time, with prompt and answer within both contexts.
    Raises ConfigError when `stage.reward_model` cannot score or has another vocabulary.
    """
    config, tokenizer = session.config, session.loader.tokenizer
    scored = scoring_config(config, config.stage.reward_model, "stage.reward_model")
    scorer = frozen_engine(scored, RewardObjective())
    room = min(config.model.sequence_length, scored.model.sequence_length) - config.stage.sample_tokens
    prompts = [one.messages[:-1] for one in session.loader.conversations["validation"]]
    encoded = [chat_prompt(tokenizer, messages) for messages in prompts if messages and messages[-1].role == "user"]
    chosen = [prompt for prompt in encoded if len(prompt) <= room][: config.stage.reward_prompts]
    if not chosen:
        raise DataError(
            f"no held-out prompt leaves room for stage.sample_tokens ({config.stage.sample_tokens}), so that"
            " stage.reward_model has nothing to score: lower it, or give data.split a validation part"
        )
    log.info("%d of %d held-out prompts are answered for stage.reward_model to score", len(chosen), len(encoded))
    settings = GenerationConfig(max_new_tokens=config.stage.sample_tokens, temperature=0)
    measure: Callable[[TrainState], dict[str, float]] = session.trainer.evaluate

    def evaluate_with_rewards(state: TrainState) -> dict[str, float]:
        values = measure(state)
        answers = Generator(session.engine.modules, config, tokenizer).generate(chosen, settings)
        rows = [np.array([*prompt, *answer.tokens]) for prompt, answer in zip(chosen, answers, strict=True)]
        return values | {"validation_reward": float(score(scorer, scored, tokenizer, rows).mean())}

    session.trainer.evaluate = evaluate_with_rewards


def measure_edits(session: Session) -> dict[str, float]:
    """Exact match and similarity of `stage.held_out_edits`, where there are any; every replica answers all of them."""
    config = session.config
    if config.stage.held_out_edits is None:
        return {}
    edits = read_edits(Path(config.stage.held_out_edits))
    generator = Generator(session.engine.modules, config, session.loader.tokenizer)
    answers = answer_edits(generator, edits, config.model.sequence_length // 2)
    pairs = list(zip(edits, answers, strict=True))
    return {
        "edits": len(edits),
        "edit_exact_match": sum(edit.output == answer for edit, answer in pairs) / len(edits),
        "edit_similarity": sum(similarity(edit.output, answer) for edit, answer in pairs) / len(edits),
        "unchanged_similarity": sum(similarity(edit.output, edit.input) for edit in edits) / len(edits),
    }


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
