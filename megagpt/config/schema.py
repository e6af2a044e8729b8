"""The whole configuration as frozen dataclasses: what can be set, its default, its unit.

The docstring under a field is its documentation; `megagpt train --help` prints it. `rules.py` holds what must
hold between fields, `load.py` turns YAML and command-line overrides into a `Config`.
"""

from dataclasses import dataclass, field
from typing import Literal

from megagpt.config.alignment import PPOConfig
from megagpt.config.architecture import KernelsConfig, ModelConfig, ParallelConfig


@dataclass(frozen=True)
class CorpusConfig:
    """One tokenized corpus and its share of the training mixture."""

    path: str
    """Prefix of the .bin and .idx files."""
    weight: float = 1.0
    """Share of training samples, relative to the other corpora's weights."""


@dataclass(frozen=True)
class DataConfig:
    """The training mixture."""

    tokenizer: str = ""
    """Path of the tokenizer.json that the corpora were tokenized with."""
    corpora: tuple[CorpusConfig, ...] = ()
    """Tokenized corpora and their weights."""
    split: tuple[float, float, float] = (0.98, 0.01, 0.01)
    """Shares of every corpus's documents for training, validation and test."""
    isolate_documents: bool = False
    """Whether attention and positions stop at document boundaries. GPT-3 packs documents without (false)."""
    fim_rate: float = 0.0
    """Share of documents in training samples that are rearranged for filling in the middle (arXiv 2207.14255)."""
    fim_spm_rate: float = 0.5
    """Share of those in the order suffix, prefix, middle (SPM); the others are in prefix, suffix, middle (PSM)."""
    fim_unit_rate: float = 0.0
    """Share of those with a single fim_unit in the middle; the others are cut at two random characters."""
    fim_unit: Literal["line", "word"] = "line"
    """What stands in such a middle, and in those that a run measures: a line, or a word of letters."""
    fim_piece_tokens: int = 0
    """Cut documents into pieces of a quarter of this many tokens up to this many, each of which is rearranged or not;
    for documents that are longer than a sample. 0: they stay whole."""
    conversations: tuple[str, ...] = ()
    """Files of conversations (.jsonl, .json, also .gz), which the stages edit and sft train on instead of corpora."""
    rankings: tuple[str, ...] = ()
    """Files of prompts with ranked answers (.jsonl, .json, also .gz), which the stage reward learns from. Conversations
    beside them are the demonstrations that it gives a mean score of 0; else each prompt's best answers are."""
    packing: bool = True
    """Whether a sequence holds as many conversations as fit, none of which sees another; else it holds one."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation: AdamW, a schedule counted in tokens, and numeric precision, as published for GPT-3."""

    lr: float = 6e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """The learning rate decays to this fraction of the peak."""
    warmup_tokens: int = 375_000_000
    """Tokens of linear warm-up."""
    warmup_start_ratio: float = 0.0
    """The warm-up begins at this fraction of the peak."""
    decay_tokens: int = 260_000_000_000
    """Tokens after which the cosine decay, warm-up included, reaches its minimum."""
    train_tokens: int = 300_000_000_000
    """Tokens to train on."""
    train_epochs: float | None = None
    """Passes over the conversations or ranked prompts: train_tokens and decay_tokens become as many. null: they count
    as they are."""
    global_batch_size: int = 256
    """Sequences in one optimizer step; for the stage reward prompts, with all their answers."""
    ramp_start: int | None = None
    """Sequences in the first step; the batch grows linearly from here to global_batch_size. null: no ramp."""
    ramp_tokens: int = 0
    """Tokens over which the batch grows."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Compute precision; bf16 keeps weights, gradients and optimizer state in fp32 masters."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.95
    """Adam's decay of the second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; biases and norms have none."""
    fused: Literal["auto", "torch", "apex", "te"] = "auto"
    """Whose fused AdamW updates parameters: auto is Transformer Engine's (te) or NVIDIA Apex's where one is installed
    on a GPU, else PyTorch's; with the engine deepspeed always PyTorch's."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    max_skipped_steps: int = 10
    """Steps in a row with a non-finite loss or gradient, all skipped, before the run stops."""


@dataclass(frozen=True)
class StageConfig:
    """What is trained, and how it is evaluated on the way."""

    name: Literal["pretrain", "code", "edit", "sft", "reward", "ppo"] = "pretrain"
    """The stage: pretrain; code, the same from a pretrained model (checkpoint.load); edit and sft, which learn the
    assistant's part of conversations from such a model; reward, which learns to score answers from such a model; ppo,
    which learns from a reward."""
    eval_interval: int = 1000
    """Steps between evaluations on the validation documents; 0 evaluates only at the end."""
    eval_tokens: int = 10_000_000
    """At most this many validation tokens an evaluation; the last evaluation reads all."""
    fim_cuts: int = 0
    """Held-out lines that a run with data.fim_rate fills in at its end and, if it starts from a model, at its
    start too; 0: none."""
    held_out_edits: str | None = None
    """File of edits (`megagpt data edits`) that stage edit answers before its first step and at its end, for exact
    match and similarity."""
    reward_model: str | None = None
    """Run folder or checkpoint of stage reward that scores answers to held-out prompts at evaluations of stage sft, as
    validation_reward: what InstructGPT chose its models by (checkpoint.best_metric)."""
    reward_prompts: int = 64
    """Prompts that are answered so, with sample_tokens at most."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts continued at the end of the run, shown in the log and the report."""
    sample_tokens: int = 64
    """Tokens generated for each sample prompt."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, which are kept, and what a run starts from."""

    interval: int = 1000
    """Steps between checkpoints; 0 saves only at the end and on a signal."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 keeps no others."""
    asynchronous: bool = False
    """Whether files are written by a background thread while training goes on."""
    resume: bool = True
    """Whether to go on from the newest valid checkpoint in the run folder."""
    load: str | None = None
    """A checkpoint of another run whose weights this run starts from, when it has none of its own; of a run folder the
    best one, where the run chose one, else the newest."""
    best_metric: str | None = None
    """Held-out figure, as evaluations log it (validation_loss), by which a run chooses its best checkpoint, for tools
    and for other runs; it goes on from its newest itself. null: there is no best one."""
    best_mode: Literal["min", "max"] | None = None
    """Whether the lowest or the highest is best; null: the lowest of losses, perplexities, bits and divergences, the
    highest of everything else."""


@dataclass(frozen=True)
class ReliabilityConfig:
    """How faults are found while a run trains, and what is done about them.

    A time-out counts seconds without progress: from the last micro-batch, file or message of its section. When one is
    over, all ranks dump their stacks and end, and the launcher starts them again from the newest valid checkpoint.
    """

    heartbeat_timeout: float = 60.0
    """Seconds without a sign of life after which a rank counts as stopped."""
    start_timeout: float = 1800.0
    """Seconds that any part of the first step may take, in which kernels are compiled."""
    load_timeout: float = 300.0
    """Seconds to wait for a micro-batch."""
    forward_timeout: float = 600.0
    """Seconds for the forward pass of a micro-batch."""
    backward_timeout: float = 600.0
    """Seconds for the backward pass of a micro-batch, and for the ranks to reduce gradients."""
    optimizer_timeout: float = 600.0
    """Seconds for the update of the parameters, and until the next step begins."""
    rollout_timeout: float = 1800.0
    """Seconds for any part of PPO's rollouts, such as one token of every response, or a copy of the weights."""
    scoring_timeout: float = 1800.0
    """Seconds for any part of scoring PPO's episodes, such as one micro-batch of the reward model."""
    critic_timeout: float = 600.0
    """Seconds for any part of an update of PPO's critic, such as one micro-batch."""
    policy_timeout: float = 600.0
    """Seconds for any part of an update of PPO's policy, such as one micro-batch."""
    evaluation_timeout: float = 1800.0
    """Seconds for any part of an evaluation, such as one micro-batch."""
    save_timeout: float = 3600.0
    """Seconds to write a checkpoint."""
    max_failures: int = 3
    """Attempts of a job that may fail in the same step before the job is given up."""
    replica_interval: int = 100
    """Steps between comparisons of what ranks hold in common, which is also compared before every save; 0: never."""
    straggler_interval: int = 100
    """Steps between comparisons of the ranks' times; 0: never."""
    straggler_factor: float = 1.5
    """A rank whose forward passes take this many times the median of its pipeline stage is named in the log."""
    spike_threshold: float = 0.0
    """A loss that is this many nats above the median of the last steps is a spike: the run goes back to an earlier
    checkpoint and leaves the samples out. 0: never."""
    spike_history: int = 100
    """Steps that the median is of."""
    spike_rewind: int = 100
    """Full steps before the spike whose samples are left out too; the run goes back to a checkpoint before them."""
    spike_skip: int = 200
    """Steps whose samples are left out, from spike_rewind steps before the spike on."""
    max_rollbacks: int = 3
    """Spikes that a run goes back from; at the next one it ends."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is recorded, where and how often."""

    interval: int = 1
    """Steps between lines in metrics.jsonl and on wandb."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Whether metrics also go to Weights & Biases. The WANDB_MODE variable, when set, wins."""
    wandb_project: str = "megagpt"
    """Project on Weights & Biases."""
    peak_tflops: float | None = None
    """Peak dense TFLOP/s of one device at the chosen precision, for MFU; null: looked up by the device's name."""


@dataclass(frozen=True)
class Config:
    """A complete run."""

    # How load.py's validator treats this class and every class inside it.
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False, "coerce_numbers_to_str": True}  # noqa: RUF012

    run_name: str = "run"
    """Name of the run; its folder is runs_dir/run_name."""
    runs_dir: str = "runs"
    """Folder that holds run folders."""
    seed: int = 1234
    """Seed of weights, dropout and sample order."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout over ranks."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    """Implementations."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training mixture."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser, schedule, precision."""
    stage: StageConfig = field(default_factory=StageConfig)
    """What is trained and how it is evaluated."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Learning from a reward."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    reliability: ReliabilityConfig = field(default_factory=ReliabilityConfig)
    """Finding faults and going on."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Metrics."""

    @property
    def run_dir(self) -> str:
        """Folder of the run."""
        return f"{self.runs_dir}/{self.run_name}"
