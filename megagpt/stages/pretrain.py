"""Stages `pretrain` and `code`: next-token prediction on packed documents, as GPT-3 (arXiv 2005.14165) and Codex."""

import json
import logging

from megagpt.config.schema import Config
from megagpt.data.loader import PretrainLoader
from megagpt.errors import STOPPED_BY_SIGNAL
from megagpt.evaluate.fim import evaluate_fim, held_out_cuts
from megagpt.evaluate.held_out import compressed_bits_per_byte, evaluate
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel.build import build_engine
from megagpt.stages.session import Session, open_session, start
from megagpt.train.metrics import replace_file
from megagpt.train.objectives import LanguageModelObjective

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Train to `optim.train_tokens`, then judge the model on all held-out documents and show samples."""
    with start(config) as checkpointer:
        session = open_session(
            config, build_engine(config, LanguageModelObjective()), checkpointer, PretrainLoader(config)
        )
        evaluate_before(session)
        if not session.trainer.fit():
            return STOPPED_BY_SIGNAL
        with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
            evaluate_run(session)
            write_samples(session)
        session.trainer.metrics.finish()
    return 0


def measures_fim(config: Config) -> bool:
    """Whether the held-out infilling of a loaded model is measured before the run, and of any at its end."""
    return config.data.fim_rate > 0 and config.stage.fim_cuts > 0


def evaluate_before(session: Session) -> None:
    """Measure the loaded model before the first step, into evaluation_before.json. Collective.

    A run that goes on keeps what it has measured.
    """
    config = session.config
    if session.trainer.state.step or not config.checkpoint.load or not measures_fim(config):
        return
    with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
        values = measure(session)
    if session.is_main:
        _write(session, "evaluation_before.json", values)


def evaluate_run(session: Session) -> None:
    """Measure the finished model on every validation document, into evaluation.json. Collective."""
    values = measure(session)
    if not session.is_main or not values:
        return
    values |= compressed_bits_per_byte(session.loader.held_out_text("validation"))
    _write(session, "evaluation.json", values)
    log.info(
        "held out: loss %.4f, perplexity %.2f, %.3f bits per byte (gzip -9: %.3f, xz -9: %.3f) over %d bytes",
        values["loss"],
        values["perplexity"],
        values["bits_per_byte"],
        values.get("gzip_9_bits_per_byte", float("nan")),
        values.get("xz_9_bits_per_byte", float("nan")),
        values["bytes"],
    )


def measure(session: Session) -> dict[str, float]:
    """Figures of the model on every validation document, empty when there are none. Collective."""
    config, engine, loader = session.config, session.engine, session.loader
    values = evaluate(engine, loader, "validation", max_tokens=None)
    if not values or not measures_fim(config):
        return values
    unit = config.data.fim_unit
    cuts = held_out_cuts(loader, "validation", config.stage.fim_cuts)
    if len(cuts) < config.stage.fim_cuts:
        log.warning("held-out documents have %d %ss to fill in, not %d", len(cuts), unit, config.stage.fim_cuts)
    values |= evaluate_fim(engine, loader, cuts)
    log.info(
        "%d held-out %ss: infilling loss %.4f, exact match %.1f%%; from the left alone %.4f, %.1f%%",
        len(cuts),
        unit,
        values["fim_loss"],
        100 * values["fim_exact_match"],
        values["left_to_right_loss"],
        100 * values["left_to_right_exact_match"],
    )
    return values


def _write(session: Session, name: str, values: dict[str, float]) -> None:
    about = {"step": session.trainer.state.step, "split": "validation"}
    replace_file(session.run_dir / name, json.dumps(about | values, indent=2) + "\n")


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
