"""Stage `pretrain`: next-token prediction on packed documents, as GPT-3 (arXiv 2005.14165)."""

import json
import logging

from megagpt.config.schema import Config
from megagpt.data.loader import TrainLoader
from megagpt.errors import STOPPED_BY_SIGNAL
from megagpt.evaluate.held_out import compressed_bits_per_byte, evaluate
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel.build import build_engine
from megagpt.stages.session import Session, open_session, start
from megagpt.train.metrics import replace_file
from megagpt.train.task import LanguageModelTask

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Train to `optim.train_tokens`, then judge the model on all held-out documents and show samples."""
    with start(config) as checkpointer:
        session = open_session(config, build_engine(config, LanguageModelTask()), checkpointer, TrainLoader(config))
        if not session.trainer.fit():
            return STOPPED_BY_SIGNAL
        with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
            evaluate_run(session)
            write_samples(session)
        session.trainer.metrics.finish()
    return 0


def evaluate_run(session: Session) -> None:
    """Measure the finished model on every validation document, into evaluation.json. Collective."""
    path, step = session.run_dir / "evaluation.json", session.trainer.state.step
    part = "validation"
    values = evaluate(session.engine, session.loader, part, max_tokens=None)
    if not session.is_main or not values:
        return
    values = {"step": step, "part": part} | values | compressed_bits_per_byte(session.loader.held_out_text(part))
    replace_file(path, json.dumps(values, indent=2) + "\n")
    log.info(
        "held out: loss %.4f, perplexity %.2f, %.3f bits per byte (gzip -9: %.3f, xz -9: %.3f) over %d bytes",
        values["loss"],
        values["perplexity"],
        values["bits_per_byte"],
        values.get("gzip_9_bits_per_byte", float("nan")),
        values.get("xz_9_bits_per_byte", float("nan")),
        values["bytes"],
    )


def write_samples(session: Session) -> None:
    """Continue the configured prompts, into samples.jsonl and the log. Collective."""
    stage = session.config.stage
    if not stage.sample_prompts:
        return
    settings = GenerationConfig(max_new_tokens=stage.sample_tokens, temperature=0.8, top_p=0.95, seed=0)
    generator = Generator(session.engine.modules, session.config, session.loader.tokenizer)
    completions = generator.generate(list(stage.sample_prompts), settings)
    if not session.is_main:
        return
    step = session.trainer.state.step
    pairs = zip(stage.sample_prompts, completions, strict=True)
    lines = [{"step": step, "prompt": prompt, "text": completion.text} for prompt, completion in pairs]
    replace_file(session.run_dir / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        log.info("sample:\n%s", line["prompt"] + line["text"])
