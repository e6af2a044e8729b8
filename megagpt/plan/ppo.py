"""Plans stage ppo: memory of all its models, and the time of an iteration's generation, scoring and steps.

The models may have different layouts, so memory is counted rank by rank. The temporary memory of a phase exists only
during that phase, so only the largest phase counts.
"""

import dataclasses
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby

from megagpt.config.alignment_rules import PPO_MODELS
from megagpt.config.schema import Config
from megagpt.plan.budget import total_steps
from megagpt.plan.devices import GB, GIB, Device
from megagpt.plan.estimate import DAY_SECONDS, Estimate, estimate_training, message_seconds
from megagpt.plan.job import FP32, Job
from megagpt.plan.memory import StageMemory, stage_memory
from megagpt.plan.parameters import inner_width, rank_groups, stage_parameters, total_parameters
from megagpt.plan.work import Work

LAYER_SECONDS = 150e-6
"""Time of a layer's kernels for a single token, which is mostly launch overhead; an assumption."""
COLLECTIVE_SECONDS = 20e-6
"""Time of the smallest collective among tensor-parallel ranks; an assumption."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank: permanent memory (the first six fields), and temporary memory by phase of an iteration."""

    policy: float
    critic: float
    reference: float
    reward: float
    copy: float
    """The policy's copy for generation; see `PPOConfig.answers_in_a_copy`."""
    mean: float
    """The moving average of the policy's weights."""
    generation: float
    """Keys and values, and the activations of a pass over prompts."""
    scoring: float
    learning: float
    """The larger of the policy's and the critic's step."""

    @property
    def total(self) -> float:
        """Peak bytes."""
        held = self.policy + self.critic + self.reference + self.reward + self.copy + self.mean
        return held + max(self.generation, self.scoring, self.learning)


@dataclass(frozen=True)
class PPOEstimate(Estimate):
    """The estimate for a run of PPO.

    `job` is the policy's, with an episode's length and all rows of a step. `step_seconds` and `parts` include each
    step's share of the iteration's generation and scoring.
    """

    ranks: list[tuple[str, RankMemory]]
    """("first-last", memory) of neighbouring ranks with equal memory, in order."""
    models: dict[str, Job]
    """One job per model, including the policy."""

    @property
    def peak_bytes(self) -> float:
        """Memory of the fullest rank."""
        return max(held.total for _, held in self.ranks)

    @cached_property
    def days(self) -> float:
        """See `Estimate.days`."""
        return total_steps(self.models["critic"].config) * self.step_seconds / DAY_SECONDS

    def to_dict(self) -> dict:
        """See `Estimate.to_dict`; also the models' parameters and all ranks' memory in GiB."""
        sizes = [
            {"ranks": ranks, "total": held.total / GIB}
            | {name: size / GIB for name, size in dataclasses.asdict(held).items()}
            for ranks, held in self.ranks
        ]
        models = {name: total_parameters(job.config.model) for name, job in self.models.items()}
        return super().to_dict() | {"ranks_gib": sizes, "models_parameters": models}


def models_of(config: Config, gpus: int) -> dict[str, Job]:
    """PPO's models by name, each in its own layout, with rows of an episode's length.

    A step of the policy includes the pretraining rows. `rollout` exists only if a copy generates.
    """
    ppo = config.ppo
    scoring = dataclasses.replace(
        ppo.scoring_model or config.model, head="scalar", vocab_size=config.model.vocab_size, tie_embeddings=True
    )
    found = {}
    for name in ("policy", *PPO_MODELS):
        if (name == "reward" and ppo.reward == "checker") or (
            name == "rollout" and not ppo.answers_in_a_copy(config.parallel)
        ):
            continue
        model = dataclasses.replace(
            scoring if name in ("critic", "reward") else config.model,
            sequence_length=ppo.row_length,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        )
        rows = config.optim.global_batch_size
        if name == "policy":
            rows *= 1 + (ppo.ptx_ratio if ppo.ptx_coefficient else 0)
        elif name != "critic":
            rows = ppo.rollout_batch_size
        parallel = config.parallel if name == "policy" else ppo.layout(name, config.parallel)
        optim = dataclasses.replace(config.optim, global_batch_size=rows)
        found[name] = Job(dataclasses.replace(config, model=model, parallel=parallel, optim=optim), gpus)
    return found


def estimate_ppo(job: Job, device: Device, simulated: bool = True) -> PPOEstimate:
    """Plan the run with the configuration of `job`. See `estimate`."""
    config, models = job.config, models_of(job.config, job.gpus)
    ppo, policy = config.ppo, estimate_training(models["policy"], device, simulated)
    critic = estimate_training(models["critic"], device, simulated)
    steps = ppo.rollout_batch_size * ppo.epochs / config.optim.global_batch_size
    parts = policy.parts | {
        "critic": critic.step_seconds,
        "generation": generation_seconds(models, device) / steps,
        "scoring": scoring_seconds(models, device) / steps,
    }
    whole = vars(policy) | {"parts": parts, "step_seconds": sum(parts.values())}
    return PPOEstimate(**whole, ranks=rank_memory(models), models=models)


def rank_memory(models: dict[str, Job]) -> list[tuple[str, RankMemory]]:
    """Memory of every rank; neighbouring ranks with equal memory share one entry, ("first-last", memory)."""
    known: dict[tuple[int, ...], RankMemory] = {}
    found = []
    for rank in range(models["policy"].gpus):
        stages = {name: rank // (job.tensor_size * job.data_size) for name, job in models.items()}
        key = tuple(stages.values())
        if key not in known:
            known[key] = _on_rank(models, stages)
        found.append((rank, known[key]))
    runs = []
    for held, group in groupby(found, key=lambda entry: entry[1]):
        numbers = [rank for rank, _ in group]
        runs.append((f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}", held))
    return runs


def _on_rank(models: dict[str, Job], stages: dict[str, int]) -> RankMemory:
    policy, ppo = models["policy"], models["policy"].config.ppo
    weights = {name: job.itemsize * stage_parameters(job, stages[name]) for name, job in models.items()}
    steps = {name: stage_memory(models[name], stages[name]) for name in ("policy", "critic")}
    generator = models.get("rollout", policy)
    apart = {name: weights.get(name, 0.0) for name in ("reference", "reward", "rollout")}
    resting = 0.0 if ppo.offload else 1.0  # fraction of unused models that stays on the GPU
    return RankMemory(
        policy=_held(steps["policy"]),
        critic=_held(steps["critic"]),
        reference=resting * apart["reference"],
        reward=resting * apart["reward"],
        copy=resting * apart["rollout"],
        mean=resting * FP32 * stage_parameters(policy, stages["policy"]) / policy.data_size if ppo.ema_decay else 0.0,
        generation=_generation_bytes(generator) + (1 - resting) * apart["rollout"],
        scoring=max(_scoring_bytes(models[name]) + (1 - resting) * apart.get(name, 0.0) for name in _scorers(models)),
        learning=max(
            _passing(steps["policy"]) + _chosen_logits(policy, stages["policy"]),
            _passing(steps["critic"]),
        ),
    )


def _scorers(models: dict[str, Job]) -> list[str]:
    return [name for name in ("critic", "reference", "reward") if name in models]


def _held(memory: StageMemory) -> float:
    return memory.weights + memory.gradients + memory.optimizer


def _passing(memory: StageMemory) -> float:
    return sum(getattr(memory, field.name) for field in fields(memory)) - _held(memory)


def _chosen_logits(job: Job, stage: int) -> float:
    """Bytes of the last stage's logits of response tokens: an fp32 copy, and a copy divided by the temperature."""
    if stage < job.pipeline_size - 1:
        return 0.0
    tokens = job.config.ppo.max_new_tokens * job.config.parallel.micro_batch_size
    return 2 * FP32 * tokens * job.config.model.padded_vocab_size / job.tensor_size


def _pass_bytes(job: Job, tokens: float) -> float:
    """Bytes of a layer's largest tensors in a forward pass over `tokens` that saves no activations."""
    model = job.config.model
    inner = inner_width(model) / job.tensor_size
    return job.itemsize * tokens * (4 * model.hidden_size + 2 * inner)


def _scoring_bytes(job: Job) -> float:
    logits = _chosen_logits(job, job.pipeline_size - 1) if job.config.model.head == "tokens" else 0.0
    if job.config.model.head == "tokens":
        logits += job.itemsize * job.tokens * job.config.model.padded_vocab_size / job.tensor_size
    return _pass_bytes(job, job.tokens) + logits


def _responses_at_a_time(job: Job) -> tuple[int, int]:
    """(responses per replica in an iteration, responses that it generates at a time)."""
    each = job.config.ppo.rollout_batch_size // job.data_size
    return each, min(each, job.config.ppo.generation_batch_size)


def _key_bytes(job: Job, tokens: float) -> float:
    """Bytes of keys and values of `tokens` on a rank."""
    model = job.config.model
    width = rank_groups(model, job.tensor_size) * model.head_size
    return 2 * job.itemsize * tokens * width * job.layers_per_chunk * job.virtual_size


def _generation_bytes(job: Job) -> float:
    ppo, (_, rows) = job.config.ppo, _responses_at_a_time(job)
    return _key_bytes(job, rows * ppo.row_length) + _pass_bytes(job, rows * ppo.max_prompt_tokens)


def generation_seconds(models: dict[str, Job], device: Device) -> float:
    """Seconds to generate an iteration's responses, if prompts and responses have their greatest length.

    Each new token reads all weights, and the keys and values of the responses in progress; the pipeline stages work
    one after the other. If a copy generates, it receives the policy's weights first.
    """
    job, ppo = models.get("rollout", models["policy"]), models["policy"].config.ppo
    each, rows = _responses_at_a_time(job)
    layers, model = job.layers_per_chunk * job.virtual_size, job.config.model
    read = _key_bytes(job, rows * (ppo.max_prompt_tokens + ppo.max_new_tokens / 2)) * job.pipeline_size
    read += job.itemsize * sum(stage_parameters(job, stage) for stage in range(job.pipeline_size))
    message = message_seconds(job, device)[0] / job.tokens * rows
    reductions = 2 * COLLECTIVE_SECONDS * layers * job.pipeline_size if job.tensor_size > 1 else 0.0
    token = (
        read / device.memory_rate
        + LAYER_SECONDS * layers * job.pipeline_size
        + reductions
        + message * job.pipeline_size
    )
    flops = 2 * rows * total_parameters(model) / job.tensor_size
    arithmetic = flops / (device.peak_flops(job.itemsize) * device.matmul)
    passes = -(-each // rows) * ppo.max_new_tokens
    return passes * max(token, arithmetic) + _prompt_seconds(job, device, each) + _transfer_seconds(models, device)


def _prompt_seconds(job: Job, device: Device, each: int) -> float:
    """Seconds of the passes over a replica's prompts, one micro-batch after the other."""
    prompts = job.config.ppo.max_prompt_tokens
    model = dataclasses.replace(job.config.model, sequence_length=prompts)
    shorter = Job(dataclasses.replace(job.config, model=model), job.gpus)
    return sum(_forwards(shorter, device)) * each / job.config.parallel.micro_batch_size


def _forwards(job: Job, device: Device) -> list[float]:
    """Seconds of a micro-batch's forward pass through each stage."""
    work = Work(job, device)
    return [
        sum(work.chunk(stage, chunk)[0].total for chunk in range(job.virtual_size))
        for stage in range(job.pipeline_size)
    ]


def _transfer_seconds(models: dict[str, Job], device: Device) -> float:
    """Seconds to copy the policy's weights to the generating copy: every rank receives and forwards all of them."""
    if "rollout" not in models:
        return 0.0
    job = models["rollout"]
    nodes = -(-job.gpus // device.gpus_per_node)
    rate = device.link_rate(min(job.gpus, device.gpus_per_node), nodes)
    return 2 * job.itemsize * total_parameters(job.config.model) / rate


def scoring_seconds(models: dict[str, Job], device: Device) -> float:
    """Seconds to pass an iteration's responses through critic, reference and reward model, one after the other."""
    total = 0.0
    for name in _scorers(models):
        job, rows = models[name], models["policy"].config.ppo.rollout_batch_size
        count = rows // (job.data_size * job.config.parallel.micro_batch_size)
        forwards, message = _forwards(job, device), message_seconds(job, device)[0]
        total += sum(forwards) + (count - 1) * max(forwards) + (job.pipeline_size - 1 + count - 1) * message
        if job.config.ppo.offload and name != "critic":  # to the GPU and back
            weights = job.itemsize * max(stage_parameters(job, stage) for stage in range(job.pipeline_size))
            total += 2 * weights / (device.host_gbs * device.host * GB)
    return total
