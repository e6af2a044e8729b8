"""Stage `ppo`: learning from a reward by PPO, with a KL penalty and pretraining gradients (arXiv 2203.02155)."""

import dataclasses
import json
import logging
from collections.abc import Callable

import torch.distributed as dist

from megagpt.checkpoint import Checkpointer
from megagpt.config.alignment_rules import layout_problems
from megagpt.config.load import raise_all
from megagpt.config.schema import Config
from megagpt.data import instructions
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.loader import PretrainLoader, load_tokenizer
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import STOPPED_BY_SIGNAL, DataError
from megagpt.parallel.build import build_engine
from megagpt.parallel.engine import Engine
from megagpt.parallel.layouts import Layouts
from megagpt.parallel.megatron import MegatronEngine
from megagpt.rl.actor_critic import ActorCritic
from megagpt.rl.episodes import Episodes
from megagpt.rl.loader import EpisodeLoader
from megagpt.rl.objectives import LogProbObjective, PolicyObjective, ValueObjective
from megagpt.rl.offload import rest
from megagpt.rl.rewards import CheckerReward, ModelReward, Reward
from megagpt.rl.rollouts import Collector, read_prompts
from megagpt.rl.scoring import Scorer
from megagpt.rl.writer import Writer
from megagpt.stages.scoring import scoring_config, with_scalar_head
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
    values = {"step": trainer.state.step, "split": "validation"} | values
    replace_file(session.run_dir / name, json.dumps(values, indent=2) + "\n")
    log.info("held out: %s", ", ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "split"))


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
    ppo, tokenizer, layouts = config.ppo, load_tokenizer(config), Layouts(config.parallel)
    policy = build_engine(config, PolicyObjective(ppo, tokenizer.vocab_size))
    log_probabilities = LogProbObjective(ppo.temperature, tokenizer.vocab_size)
    reference = _scorer(layouts, "reference", config, log_probabilities)
    critic = _scorer(layouts, "critic", _scalar(config, "critic", ppo.critic or ppo.reward_model), ValueObjective(ppo))
    copy = None
    if ppo.answers_in_a_copy(config.parallel):
        copy = _engine(layouts, "rollout", config, log_probabilities)
    episodes = _episodes(config, policy)
    engine = ActorCritic(policy, critic, ppo, config.optim.lr, episodes)
    models = Writer(config, policy, copy, tokenizer), critic, reference, _reward(layouts, config, tokenizer)
    found = split_conversations(read_conversations(config.data.conversations), config.data.split)
    collector = Collector(config, episodes, read_prompts(tokenizer, found["train"], ppo), *models)
    loader = EpisodeLoader(config, collector, _pretraining(config))
    session = open_session(config, engine, checkpointer, loader)
    if found["validation"]:
        prompts = read_prompts(tokenizer, found["validation"], ppo)
        _answer_held_out(session, Collector(config, _episodes(config, policy), prompts, *models))
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


def _scorer(layouts: Layouts, name: str, config: Config, objective: LogProbObjective | ValueObjective) -> Scorer:
    """The model of `checkpoint.load` as PPO's `name`."""
    engine = _engine(layouts, name, config, objective)
    load_weights(config, engine)
    own = config.ppo.layout(name, config.parallel)
    return Scorer(engine, own.micro_batch_size, config.ppo.offload and name != "critic")


def _engine(layouts: Layouts, name: str, config: Config, objective: LogProbObjective | ValueObjective) -> Engine:
    """A model of the architecture `config.model`, to be filled, in the layout of PPO's model `name`."""
    raise_all(list(layout_problems(config, name, config.model, dist.get_world_size())))
    own = dataclasses.replace(config, parallel=config.ppo.layout(name, config.parallel))
    if name == "critic":
        return layouts.build(own.parallel, lambda: build_engine(own, objective))
    engine = layouts.build(own.parallel, lambda: MegatronEngine(own, objective, training=False))
    if config.ppo.offload:
        rest(engine)
    return engine


def _scalar(config: Config, name: str, source: str | None) -> Config:
    """`config` for PPO's model `name`, with a scalar head, that starts from the weights of another run; null: as the
    policy does.

    Raises ConfigError for a reward model that was never trained to score, or of another architecture than
    `ppo.scoring_model` has.
    """
    source = source or config.checkpoint.load
    reads = name == "reward"
    scoring = scoring_config(config, source, "ppo.reward_model") if reads else with_scalar_head(config, source)
    model = scoring.model
    if (planned := config.ppo.scoring_model) is not None:
        raise_all(
            [
                f"ppo.scoring_model.{field} is {getattr(planned, field)}, but the {name} starts from {source}, where it"
                f" is {getattr(model, field)}: set it so, or ppo.scoring_model=null"
                for field in ("num_layers", "hidden_size", "num_attention_heads", "sequence_length")
                if getattr(planned, field) != getattr(model, field)
            ]
        )
    return scoring


def _reward(layouts: Layouts, config: Config, tokenizer: Tokenizer) -> Reward:
    if config.ppo.reward == "checker":
        return CheckerReward(instructions.check, tokenizer)
    scored = _scalar(config, "reward", config.ppo.reward_model)
    return ModelReward(_scorer(layouts, "reward", scored, ValueObjective(config.ppo)))


def _pretraining(config: Config) -> PretrainLoader | None:
    """Text of data.corpora in rows as long as an episode's: to be measured, and with PPO-ptx to be learnt."""
    if not config.data.corpora:
        return None
    model = dataclasses.replace(config.model, sequence_length=config.ppo.row_length)
    try:
        return PretrainLoader(dataclasses.replace(config, model=model))
    except DataError as error:
        if config.ppo.ptx_coefficient:
            raise
        raise DataError(
            f"{error}; as ppo.ptx_coefficient is 0 it is only measured: data.corpora=[] does without"
        ) from error
