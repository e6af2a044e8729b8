"""Stage `ppo`: learning from a reward by PPO, with a KL penalty and pretraining gradients (arXiv 2203.02155)."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

from megagpt import checkpoint
from megagpt.checkpoint import Checkpointer
from megagpt.config.load import from_dict
from megagpt.config.schema import Config, ModelConfig
from megagpt.data import instructions
from megagpt.data.conversations import read_conversations
from megagpt.data.loader import TrainLoader, load_tokenizer
from megagpt.data.supervised import divide
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import STOPPED_BY_SIGNAL
from megagpt.model.generation import Generator
from megagpt.parallel.build import build_engine
from megagpt.parallel.engine import Engine
from megagpt.parallel.megatron import MegatronEngine
from megagpt.rl.actor_critic import ActorCritic
from megagpt.rl.episodes import Episodes
from megagpt.rl.loader import EpisodeLoader
from megagpt.rl.rewards import CheckerReward, ModelReward, Reward
from megagpt.rl.rollouts import Collector, read_prompts
from megagpt.rl.tasks import LogProbTask, PolicyTask, ValueTask
from megagpt.stages.session import Session, open_session, start
from megagpt.stages.weights import load_weights
from megagpt.train.metrics import replace_file
from megagpt.train.state import TrainState

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Learn from `ppo.episodes` answers; held-out prompts are answered before and after."""
    config = prepare(config)
    with start(config) as checkpointer:
        session = open_ppo(config, checkpointer)
        trainer = session.trainer
        if not trainer.state.step:
            evaluate_run(session, "evaluation_before.json")
        if not trainer.fit():
            return STOPPED_BY_SIGNAL
        evaluate_run(session, "evaluation.json")
        trainer.metrics.finish()
    return 0


def evaluate_run(session: Session, name: str) -> None:
    """Measure the policy on held-out prompts and text, into the file `name`. Collective."""
    trainer = session.trainer
    with trainer.watchdog as watchdog, watchdog.within("evaluation"):
        values = trainer.evaluate(trainer.state)
    if not session.is_main:
        return
    values = {"step": trainer.state.step, "part": "validation"} | values
    replace_file(session.run_dir / name, json.dumps(values, indent=2) + "\n")
    log.info("held out: %s", ", ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "part"))


def prepare(config: Config) -> Config:
    """`config` without dropout, which would make the policy that learns another than the one that answers, and with
    `train_tokens` for all episodes in whole iterations."""
    ppo, model = config.ppo, dataclasses.replace(config.model, hidden_dropout=0.0, attention_dropout=0.0)
    iterations = max(1, ppo.episodes // ppo.rollout_batch_size)
    tokens = iterations * ppo.rollout_batch_size * ppo.epochs * ppo.row_length
    optim = dataclasses.replace(config.optim, train_tokens=tokens, decay_tokens=max(tokens, config.optim.warmup_tokens))
    return dataclasses.replace(config, model=model, optim=optim)


def open_ppo(config: Config, checkpointer: Checkpointer) -> Session:
    """Build the four models, the loader and the loop of a run, and go on from its newest checkpoint. Collective."""
    ppo, tokenizer = config.ppo, load_tokenizer(config)
    policy = build_engine(config, PolicyTask(ppo, tokenizer.vocab_size))
    reference = _frozen(config, LogProbTask(ppo.temperature, tokenizer.vocab_size))
    critic_config = _scalar(config, ppo.critic or ppo.reward_model or config.checkpoint.load)
    critic = build_engine(critic_config, ValueTask(ppo))
    load_weights(critic_config, critic)
    episodes = _episodes(config, policy)
    engine = ActorCritic(policy, critic, ppo, config.optim.lr, episodes)
    generator = Generator(policy.modules, config, tokenizer, ppo.generation_batch_size)
    models = generator, critic, reference, _reward(config, tokenizer)
    found = divide(read_conversations(config.data.conversations), config.data.split)
    collector = Collector(config, policy.dims, episodes, read_prompts(tokenizer, found["train"], ppo), *models)
    loader = EpisodeLoader(config, collector, _pretraining(config))
    session = open_session(config, engine, checkpointer, loader)
    if found["validation"]:
        prompts = read_prompts(tokenizer, found["validation"], ppo)
        _answer_held_out(session, Collector(config, policy.dims, _episodes(config, policy), prompts, *models))
    return session


def _episodes(config: Config, policy: Engine) -> Episodes:
    ppo = config.ppo
    return Episodes(ppo.rollout_batch_size, ppo.row_length, ppo.kl_coefficient, policy.device)


def _answer_held_out(session: Session, held_out: Collector) -> None:
    """Have every evaluation answer an iteration of held-out prompts too, and keep some of the answers."""
    measure_text: Callable[[TrainState], dict[str, float]] = session.trainer.evaluate

    def evaluate(state: TrainState) -> dict[str, float]:
        held_out.collect(0)  # the same prompts and random numbers each time
        if session.is_main:
            lines = [{"step": state.step} | sample for sample in held_out.samples]
            replace_file(session.run_dir / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        figures = held_out.episodes.figures
        named = ("score", "kl", "answer_tokens", "end_rate")
        return measure_text(state) | {f"validation_{name}": figures[name] for name in named}

    session.trainer.evaluate = evaluate


def _frozen(config: Config, task: LogProbTask | ValueTask) -> MegatronEngine:
    """The model of `checkpoint.load` in the run's layout, without gradients and optimizer."""
    parallel = dataclasses.replace(config.parallel, engine="megatron", zero_stage=1)
    engine = MegatronEngine(dataclasses.replace(config, parallel=parallel), task, training=False)
    load_weights(config, engine)
    if config.ppo.offload:
        for module in engine.modules:
            module.to("cpu")
    return engine


def _scalar(config: Config, source: str) -> Config:
    """`config` for the model of another run, with a scalar head, that starts from its weights."""
    saved = from_dict(checkpoint.read_manifest(checkpoint.locate(Path(source)))["config"]).model
    model: ModelConfig = dataclasses.replace(
        saved, head="scalar", hidden_dropout=0.0, attention_dropout=0.0, vocab_size=config.model.vocab_size
    )
    load = dataclasses.replace(config.checkpoint, load=source)
    return dataclasses.replace(config, model=model, checkpoint=load)


def _reward(config: Config, tokenizer: Tokenizer) -> Reward:
    if config.ppo.reward == "checker":
        return CheckerReward(instructions.check, tokenizer)
    engine = _frozen(_scalar(config, config.ppo.reward_model), ValueTask(config.ppo))
    return ModelReward(engine, config.parallel.micro_batch_size, config.ppo.offload)


def _pretraining(config: Config) -> TrainLoader | None:
    """Text of data.corpora in rows as long as an episode's."""
    if not config.ppo.ptx_coefficient:
        return None
    model = dataclasses.replace(config.model, sequence_length=config.ppo.row_length)
    return TrainLoader(dataclasses.replace(config, model=model))
