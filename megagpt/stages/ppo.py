"""Stage `ppo`: PPO on a reward, with a KL penalty and pretraining gradients (InstructGPT, arXiv 2203.02155)."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.data.conversations import Conversation, read_conversations, split_conversations
from megagpt.data.loader import PretrainLoader, load_tokenizer
from megagpt.errors import DataError
from megagpt.evaluate.held_out import evaluate
from megagpt.parallel.engine import Engine, StepResult
from megagpt.parallel.shards import Shard
from megagpt.rl.advantages import compute_advantages
from megagpt.rl.episodes import Episodes
from megagpt.rl.minibatches import Minibatches
from megagpt.rl.prompts import Prompt, PromptOrder, read_prompts
from megagpt.rl.rewards import response_text
from megagpt.rl.scoring import compute_log_probs, compute_values
from megagpt.rl.weight_average import WeightAverage
from megagpt.stages.base import AFTER, BEFORE, TEXT_METRICS, BaseStage, has_documents
from megagpt.stages.ppo_models import PPOModels
from megagpt.train.state import TrainState
from megagpt.train.trainer import Step, Trainer

log = logging.getLogger(__name__)

CRITIC = "critic/"
"""Prefix of the names of the critic's tensors in a checkpoint."""

EPISODE_METRICS = ("score", "kl", "response_tokens", "eos_rate")
"""Metrics of the responses to held-out prompts."""

SAMPLES = 8
"""Number of episodes of an evaluation that are written to samples.jsonl."""


class PPO(BaseStage):
    """Trains the policy on `ppo.episodes` responses; evaluates it on held-out prompts before and after.

    A checkpoint holds the policy under the names of a plain model, the critic, the average of the policy's weights, and
    the current episodes, so that a run can resume in the middle of an iteration.
    """

    def __init__(self, config: Config) -> None:
        """Open the prompts and, if configured, the pretraining text."""
        config = with_schedule(config)
        self.tokenizer = load_tokenizer(config)
        conversations = split_conversations(read_conversations(config.data.conversations), config.data.split)
        self.prompts = self._prompts(config, conversations["train"], "training")
        self.validation_prompts = None
        if conversations["validation"]:
            self.validation_prompts = self._prompts(config, conversations["validation"], "held out")
        self.text = _pretraining_loader(config)
        self.minibatches = Minibatches(config, self.text)
        self.config, self.sample_tokens = config, config.ppo.row_length

    def _prompts(self, config: Config, conversations: list[Conversation], use: str) -> PromptOrder:
        prompts, count = read_prompts(self.tokenizer, conversations, config.ppo), config.ppo.rollout_batch_size
        log.info("%s: %d prompts; an iteration uses %d (ppo.rollout_batch_size)", use, len(prompts), count)
        if len(prompts) < count:
            log.warning("%s: an iteration repeats prompts, and samples a new response for each repetition", use)
        return PromptOrder(prompts, count, config.seed)

    def build(self) -> None:
        """See `Stage.build`: the policy, its copy for rollouts, the critic, the reference and the reward model."""
        ppo = self.config.ppo
        self.models = PPOModels(self.config, self.tokenizer)
        self.engine, self.critic = self.models.policy, self.models.critic
        self.episodes, self.held_out = (
            Episodes(ppo.rollout_batch_size, ppo.row_length, ppo.kl_coefficient, self.engine.device) for _ in range(2)
        )
        self.updates = torch.zeros(2, dtype=torch.int64, device=self.engine.device)
        """Number of updates so far of the policy and of the critic, int64 [2]."""
        self.average = None
        if ppo.ema_decay:
            self.average = WeightAverage(self.engine, ppo.ema_decay, "cpu" if ppo.offload else self.engine.device)

    @property
    def engines(self) -> list[Engine]:
        """See `Stage.engines`."""
        return self.models.engines

    @property
    def sources(self) -> dict[str, Path]:
        """See `Stage.sources`: the checkpoints of the reference, the critic and the reward model."""
        return self.models.sources

    def fit(self, trainer: Trainer) -> None:
        """Run PPO's iterations: generate, score, compute advantages, then update on one minibatch per step.

        Checkpoints hold the episodes, and the number of the step determines the minibatch and the iteration. So a run
        that resumes in the middle of an iteration continues with the same episodes.
        """
        with trainer.running():
            while trainer.unfinished:
                step, metrics, seconds = trainer.begin_step(), {}, {}
                iteration = self.minibatches.iteration_of(step.first_sample)
                if int(self.episodes.iteration) != iteration:
                    prompts = self.prompts.of_iteration(iteration)
                    with _phase("rollout", trainer, seconds):
                        self.models.rollouts.generate(self.episodes, prompts, iteration)
                    with _phase("scoring", trainer, seconds):
                        self.score(self.episodes, prompts)
                    metrics = compute_advantages(self.episodes, self.config.ppo)
                rows = self.minibatches.rows(step.first_sample, step.batch_size).to(self.engine.device)
                with _phase("critic", trainer, seconds):
                    value = self.train_critic(rows, step)
                with _phase("policy", trainer, seconds):
                    policy = self.train_policy(rows, step, update=self.critic_is_warm or not value.applied)
                metrics |= {"value_loss": value.loss, "value_grad_norm": value.grad_norm} | value.metrics
                metrics |= {f"{name}_seconds": spent for name, spent in seconds.items()}
                applied = policy.applied and value.applied
                result = dataclasses.replace(policy, applied=applied, metrics=policy.metrics | metrics)
                trainer.end_step(step, result)

    def score(self, episodes: Episodes, prompts: list[Prompt]) -> None:
        """Fill the episodes' scores, values and the reference's log-probabilities. Collective."""
        episodes.scores.copy_(self.models.reward(episodes, prompts))
        episodes.values.copy_(compute_values(self.critic, episodes))
        episodes.reference.copy_(compute_log_probs(self.models.reference, episodes))

    def train_critic(self, rows: Tensor, step: Step) -> StepResult:
        """Update the critic on the episodes of `rows` (int64 [n]); its learning rate follows the policy's schedule."""
        engine = self.critic.engine
        batches = self.episodes.micro_batches(
            rows, self.critic.micro_batch_size, engine.dims.data_rank, engine.dims.data_size
        )
        lr = self.config.ppo.critic_lr * step.lr / self.config.optim.lr
        result = engine.train_step(iter(batches), len(batches), lr)
        self.updates[1] += result.applied
        return result

    def train_policy(self, rows: Tensor, step: Step, update: bool) -> StepResult:
        """Update the policy on the episodes of `rows` (int64 [n]) and the step's pretraining text.

        update: False computes the loss and metrics without an update.
        """
        batches = list(self.minibatches.of_policy(self.episodes, rows, step.first_sample, self.engine.dims))
        if not update:
            return dataclasses.replace(self.engine.evaluate(iter(batches), len(batches)), applied=True)
        result = self.engine.train_step(iter(batches), len(batches), step.lr)
        self.updates[0] += result.applied
        if result.applied and self.average:
            self.average.update()
        return result

    @property
    def critic_is_warm(self) -> bool:
        """Whether the critic has made more than `ppo.critic_warmup_steps` updates, so that the policy may learn."""
        return int(self.updates[1]) > self.config.ppo.critic_warmup_steps

    def begin(self, state: TrainState) -> None:
        """Evaluate the policy before the first step and write evaluation_before.json."""
        self.write_evaluation(BEFORE, state, self.evaluate(state))

    @property
    def evaluation_metrics(self) -> list[str]:
        """See `Stage.evaluation_metrics`."""
        names = TEXT_METRICS if self.text is not None and has_documents(self.text) else ()
        return [f"validation_{name}" for name in (*names, *(EPISODE_METRICS if self.validation_prompts else ()))]

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """See `Stage.evaluate`: the loss on held-out text, and metrics of `ppo.rollout_batch_size` held-out prompts."""
        values = {}
        if self.text is not None:
            text = evaluate(self.engine, self.text, "validation", self.config.stage.eval_tokens)
            values = {name: text[name] for name in TEXT_METRICS if name in text}
        if self.validation_prompts is not None:
            prompts = self.validation_prompts.of_iteration(0)  # the same prompts and random numbers each time
            self.models.rollouts.generate(self.held_out, prompts, iteration=0)
            self.score(self.held_out, prompts)
            metrics = compute_advantages(self.held_out, self.config.ppo)
            values |= {name: metrics[name] for name in EPISODE_METRICS}
            self.write_samples(state, self._samples(prompts))
        return {f"validation_{name}": value for name, value in values.items()}

    def finish(self, state: TrainState) -> None:
        """Evaluate the trained policy and write evaluation.json."""
        self.write_evaluation(AFTER, state, self.evaluate(state))

    def _samples(self, prompts: list[Prompt]) -> list[dict[str, Any]]:
        """The first held-out episodes as text with their scores."""
        episodes = self.held_out
        return [
            {
                "prompt": prompt.messages[-1].content,
                "text": response_text(episodes, row, self.tokenizer),
                "score": episodes.scores[row].item(),
                "finished": bool(episodes.finished[row]),
            }
            for row, prompt in enumerate(prompts[:SAMPLES])
        ]

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """See `Stage.shards`: the policy's, critic/..., ema/..., episodes/... and updates."""
        yield from self.engine.shards(for_saving)
        for shard in self.critic.engine.shards(for_saving):
            yield dataclasses.replace(shard, name=CRITIC + shard.name)
        if self.average:
            yield from self.average.shards
        if not for_saving or self.is_main:
            yield from self.episodes.shards()
            yield Shard.whole("updates", self.updates)

    def post_load(self, optimizer_step: int) -> None:
        """See `Stage.post_load`."""
        policy, critic = self.updates.tolist() if optimizer_step else (0, 0)
        self.engine.post_load(policy)
        self.critic.engine.post_load(critic)
        if not optimizer_step and self.average:
            self.average.restart()


@contextmanager
def _phase(name: str, trainer: Trainer, seconds: dict[str, float]) -> Iterator[None]:
    """Have the watchdog watch the block as phase `name`, and store its duration in `seconds[name]`."""
    started = time.perf_counter()
    with trainer.watchdog.within(name):
        yield
    seconds[name] = time.perf_counter() - started


def with_schedule(config: Config) -> Config:
    """`config` with `train_tokens` for all episodes in whole iterations, and without dropout.

    With dropout, the log-probabilities in training would differ from those in generation.
    """
    ppo, model = config.ppo, dataclasses.replace(config.model, hidden_dropout=0.0, attention_dropout=0.0)
    iterations = max(1, ppo.episodes // ppo.rollout_batch_size)
    if iterations * ppo.rollout_batch_size != ppo.episodes:
        log.warning(
            "the run has %d episodes, in whole iterations of ppo.rollout_batch_size (%d); ppo.episodes is %d",
            iterations * ppo.rollout_batch_size,
            ppo.rollout_batch_size,
            ppo.episodes,
        )
    tokens = iterations * ppo.rollout_batch_size * ppo.epochs * ppo.row_length
    optim = dataclasses.replace(config.optim, train_tokens=tokens)
    optim = dataclasses.replace(optim, decay_tokens=max(tokens, optim.lengths.warmup_tokens))
    return dataclasses.replace(config, model=model, optim=optim)


def _pretraining_loader(config: Config) -> PretrainLoader | None:
    """Text of data.corpora in rows of an episode's length, for evaluation and for PPO-ptx; None without corpora."""
    if not config.data.corpora:
        return None
    model = dataclasses.replace(config.model, sequence_length=config.ppo.row_length)
    try:
        return PretrainLoader(dataclasses.replace(config, model=model))
    except DataError as error:
        if config.ppo.ptx_coefficient:
            raise
        raise DataError(
            f"{error}; ppo.ptx_coefficient is 0, so this text only serves to evaluate: data.corpora=[] leaves it out"
        ) from error
