"""The whole configuration as frozen dataclasses: every field with its type, default and unit.

The docstring under a field is its documentation; `megagpt train --help` prints it. A number's range is part of its
type (`bounds.py`), `rules.py` checks combinations of fields, and `load.py` turns YAML and command-line overrides into a
`Config`.
"""

from dataclasses import dataclass, field
from typing import Literal

from megagpt.config.alignment import PPOConfig
from megagpt.config.architecture import KernelsConfig, ModelConfig, ParallelConfig
from megagpt.config.bounds import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
)
from megagpt.config.embedding import EmbedConfig
from megagpt.config.tasks import TasksConfig


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
    """Whether attention and positions stop at document boundaries. GPT-3 lets tokens attend across them (false)."""
    fim_rate: Fraction = 0.0
    """Share of documents in training samples that are rearranged for filling in the middle (arXiv 2207.14255)."""
    fim_spm_rate: Fraction = 0.5
    """Share of the rearranged documents in the order suffix, prefix, middle (SPM); the others are in the order prefix,
    suffix, middle (PSM)."""
    fim_unit_rate: Fraction = 0.0
    """Share of the rearranged documents with a single fim_unit as the middle; the others are cut at two random
    characters."""
    fim_unit: Literal["line", "word"] = "line"
    """Unit of the middles of fim_unit_rate and stage.fim_cuts: a line, or a word of letters."""
    fim_piece_tokens: NonNegativeInt = 0
    """Documents are first cut into pieces of at most this many tokens and at least a quarter of it, and each piece is
    rearranged or not. It is meant for documents that are longer than a sample. 0: documents stay whole."""
    conversations: tuple[str, ...] = ()
    """Files of conversations (.jsonl, .json, also .gz). Stages sft and edit train on them; stage ppo takes its prompts
    from them."""
    rankings: tuple[str, ...] = ()
    """Files of prompts with ranked responses (.jsonl, .json, also .gz), for stage reward. The stage shifts its scores
    so that demonstrations have a mean of 0; demonstrations are data.conversations if given, else the best response to
    each prompt."""
    pairs: tuple[str, ...] = ()
    """Files of pairs of texts (`megagpt data pairs`), for stage embed."""
    packing: bool = True
    """Whether a sequence holds as many conversations as fit, which cannot attend to each other; false: one conversation
    per sequence."""
    chat_date: str = "2024-07-26"
    """Date, YYYY-MM-DD, that a published model's chat template gets in training if it asks for the current date. So the
    tokens are the same on every day. Generation and serving give it the current date."""


@dataclass(frozen=True)
class Schedule:
    """Lengths of a run and of the parts of its schedule, in tokens."""

    train_tokens: PositiveInt = 300_000_000_000
    """Length of the run."""
    warmup_tokens: NonNegativeInt = 375_000_000
    """Length of the warm-up."""
    decay_tokens: NonNegativeInt = 260_000_000_000
    """End of the decay."""
    ramp_tokens: NonNegativeInt = 0
    """Length of the batch ramp."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation: AdamW or Muon, a schedule counted in tokens, and numeric precision; by default as for GPT-3."""

    optimizer: Literal["adam", "muon"] = "adam"
    """adam: AdamW. muon: Muon updates the matrices inside the layers orthogonally, with updates of about Adam's size;
    AdamW updates the other parameters. Both use the same lr and weight_decay."""
    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    min_lr_ratio: Fraction = 0.1
    """Final learning rate as a fraction of the peak."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate after the warm-up. cosine: it decays at once. wsd (warm-up, stable, decay): it stays at the peak
    and decays in the last part, decay_fraction."""
    decay_fraction: FractionBelowOne = 0.1
    """Share of a wsd schedule in which the learning rate decays."""
    decay_shape: Literal["sqrt", "linear"] = "sqrt"
    """Shape of the decay of wsd, where x is the share of the decay that has passed. sqrt: 1 - sqrt(x), fast at first;
    linear: 1 - x."""
    train_tokens: PositiveInt = 300_000_000_000
    """Tokens to train on."""
    train_epochs: PositiveFloat | None = None
    """Passes over the conversations, ranked prompts or pairs; this number sets train_tokens and decay_tokens. null:
    train_tokens is the length of the run."""
    warmup_tokens: NonNegativeInt | None = None
    """Tokens of linear warm-up. null: published.warmup_tokens in proportion to train_tokens."""
    warmup_start_ratio: Fraction = 0.0
    """Learning rate at the start of the warm-up, as a fraction of the peak."""
    decay_tokens: PositiveInt | None = None
    """Tokens after which the learning rate is at its minimum, warm-up included. null: with cosine,
    published.decay_tokens in proportion to train_tokens; with wsd, train_tokens."""
    global_batch_size: PositiveInt = 256
    """Sequences in one optimizer step. In stage reward: prompts, each with all of its responses; in
    stage embed: pairs, whose documents are negatives of all other queries."""
    ramp_start: PositiveInt | None = None
    """Sequences in the first step; the batch grows linearly from here to global_batch_size. null: no ramp."""
    ramp_tokens: NonNegativeInt | None = None
    """Tokens over which the batch grows. null: published.ramp_tokens in proportion to train_tokens."""
    published: Schedule = field(default_factory=Schedule)
    """The published schedule. If warmup_tokens, decay_tokens or ramp_tokens is null, its length here is scaled by
    train_tokens / published.train_tokens."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of the computation; bf16 keeps fp32 master weights, gradients and optimizer state."""
    beta1: FractionBelowOne = 0.9
    """Adam's decay of the first moment."""
    beta2: FractionBelowOne = 0.95
    """Adam's decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    muon_momentum: FractionBelowOne = 0.95
    """Muon's decay of the momentum (Nesterov)."""
    muon_rms: PositiveFloat = 0.2
    """Root mean square of the elements of Muon's updates at lr=1; Adam's is about 0.2."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices; biases and norms have none."""
    fused: Literal["auto", "torch", "apex", "te"] = "auto"
    """Implementation of the fused AdamW. auto: on a GPU, Transformer Engine's (te) or NVIDIA Apex's if one is
    installed; otherwise PyTorch's. With the engine deepspeed and with Muon it is always PyTorch's."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    max_skipped_steps: PositiveInt = 10
    """Number of consecutive steps with a non-finite loss or gradient after which the run stops. Such steps do not
    update the parameters."""

    @property
    def lengths(self) -> Schedule:
        """Lengths of the run's schedule, in tokens: the given ones, else the published ones in proportion."""

        def length(own: int | None, published: int) -> int:
            return published * self.train_tokens // self.published.train_tokens if own is None else own

        published, to_the_end = self.published, self.schedule == "wsd"
        return Schedule(
            train_tokens=self.train_tokens,
            warmup_tokens=length(self.warmup_tokens, published.warmup_tokens),
            decay_tokens=length(self.decay_tokens, published.train_tokens if to_the_end else published.decay_tokens),
            ramp_tokens=length(self.ramp_tokens, published.ramp_tokens),
        )

    @property
    def decay_begin(self) -> int:
        """Number of tokens after which the learning rate begins to decay."""
        end = self.lengths.decay_tokens
        return end - round(self.decay_fraction * end) if self.schedule == "wsd" else self.lengths.warmup_tokens


@dataclass(frozen=True)
class StageConfig:
    """The training stage, and how the model is evaluated during training."""

    name: Literal["pretrain", "code", "edit", "sft", "reward", "ppo", "embed"] = "pretrain"
    """The training stage. pretrain learns to predict text. All others start from the model of checkpoint.load: code
    goes on like pretrain; sft and edit learn the assistant's part of conversations; reward learns to score responses;
    ppo learns from a reward; embed learns vectors of texts from pairs."""
    eval_interval: NonNegativeInt = 1000
    """Steps between evaluations on the validation documents; 0 evaluates only at the end."""
    eval_tokens: PositiveInt = 10_000_000
    """Most validation tokens in an evaluation; the last evaluation uses all of them."""
    fim_cuts: NonNegativeInt = 0
    """Number of held-out middles that a run with data.fim_rate fills in at its end and, when it starts from a model,
    also at its start; 0: none."""
    held_out_edits: str | None = None
    """File of edits (`megagpt data edits`). In stages edit and sft the model carries them out before the first step and
    at the end; exact match and similarity are logged."""
    reward_model: str | None = None
    """Run folder or checkpoint of stage reward. At evaluations of stage sft it scores responses to held-out prompts;
    the mean score is validation_reward. InstructGPT chose its models by this metric (checkpoint.best_metric)."""
    reward_prompts: PositiveInt = 64
    """Number of prompts for stage.reward_model; each response has at most sample_tokens tokens."""
    tasks: TasksConfig = field(default_factory=TasksConfig)
    """In-context tasks on which the model is evaluated during training."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts that the model continues at the end of the run, for the log and the report."""
    sample_tokens: PositiveInt = 64
    """Tokens generated for each sample prompt."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, how many are kept, and the weights that a run starts from."""

    interval: NonNegativeInt = 1000
    """Steps between checkpoints; 0 saves only at the end and on a signal."""
    keep_last: PositiveInt = 2
    """Newest checkpoints to keep."""
    keep_every: NonNegativeInt = 0
    """Checkpoints whose step is a multiple of this are kept too; 0: none are."""
    asynchronous: bool = False
    """Whether a background thread writes the files while training goes on."""
    resume: bool = True
    """Whether to resume from the newest valid checkpoint in the run folder."""
    load: str | None = None
    """Run folder or checkpoint of another run. This run starts from its weights, unless it has a checkpoint of its own.
    From a run folder, the best checkpoint is taken if the run chose one, else the newest."""
    best_metric: str | None = None
    """Held-out metric that chooses the best checkpoint, by the name under which evaluations log it (validation_loss).
    Commands and other runs take the best checkpoint; the run itself resumes from its newest. null: no checkpoint is the
    best."""
    best_mode: Literal["min", "max"] | None = None
    """Whether the lowest or the highest value is best. null: the lowest of losses, perplexities, bits and divergences,
    the highest of everything else."""


@dataclass(frozen=True)
class ReliabilityConfig:
    """How a run finds faults, and how it reacts to them.

    A time-out counts the seconds without progress, since the last micro-batch, file or message in its section. When it
    is over, all ranks dump their stacks and exit, and the launcher restarts them from the newest valid checkpoint.
    """

    heartbeat_timeout: PositiveFloat = 60.0
    """Seconds without a sign of life after which a rank counts as stopped."""
    start_timeout: PositiveFloat = 1800.0
    """Seconds for any part of the first step, which compiles kernels."""
    load_timeout: PositiveFloat = 300.0
    """Seconds to wait for a micro-batch."""
    forward_timeout: PositiveFloat = 600.0
    """Seconds for the forward pass of a micro-batch."""
    backward_timeout: PositiveFloat = 600.0
    """Seconds for the backward pass of a micro-batch, and for the ranks to reduce gradients."""
    optimizer_timeout: PositiveFloat = 600.0
    """Seconds from the start of the parameter update to the start of the next step."""
    rollout_timeout: PositiveFloat = 1800.0
    """Seconds for any part of PPO's rollouts, such as one token of every response, or a copy of the weights."""
    scoring_timeout: PositiveFloat = 1800.0
    """Seconds for any part of scoring PPO's episodes, such as one micro-batch of the reward model."""
    critic_timeout: PositiveFloat = 600.0
    """Seconds for any part of an update of PPO's critic, such as one micro-batch."""
    policy_timeout: PositiveFloat = 600.0
    """Seconds for any part of an update of PPO's policy, such as one micro-batch."""
    evaluation_timeout: PositiveFloat = 1800.0
    """Seconds for any part of an evaluation, such as one micro-batch."""
    save_timeout: PositiveFloat = 3600.0
    """Seconds to write a checkpoint."""
    max_failures: PositiveInt = 3
    """Number of attempts that may fail in the same step; then the job is not restarted again."""
    replica_interval: NonNegativeInt = 100
    """Steps between comparisons of the tensors that several ranks hold; they are also compared at every save. 0:
    never."""
    straggler_interval: NonNegativeInt = 100
    """Steps between comparisons of the ranks' times; 0: never."""
    straggler_factor: PositiveFloat = 1.5
    """The log names ranks whose forward passes take longer than this many times the median of their pipeline stage."""
    spike_threshold: NonNegativeFloat = 0.0
    """A loss this many nats above the running median is a spike. The run then goes back to an earlier checkpoint and
    skips the samples around the spike. 0: off."""
    spike_history: PositiveInt = 100
    """Window of the running median, in steps."""
    spike_rewind: NonNegativeInt = 100
    """Number of steps before the spike whose samples are skipped too; the run goes back to a checkpoint before them."""
    spike_skip: PositiveInt = 200
    """Total number of steps whose samples are skipped, counted from spike_rewind steps before the spike."""
    max_rollbacks: PositiveInt = 3
    """Number of spikes after which a run goes back to a checkpoint; the next spike ends the run."""


@dataclass(frozen=True)
class LoggingConfig:
    """How often metrics are logged, and where."""

    interval: PositiveInt = 1
    """Steps between lines in metrics.jsonl and on wandb."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Whether metrics are also sent to Weights & Biases. The environment variable WANDB_MODE overrides this."""
    wandb_project: str = "megagpt"
    """Project on Weights & Biases."""
    peak_tflops: PositiveFloat | None = None
    """Peak dense TFLOP/s of one device at the chosen precision, for MFU. null: it is looked up by the device's name."""


@dataclass(frozen=True)
class Config:
    """A complete run."""

    # Options of load.py's validator for this class and every class inside it.
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    run_name: str = "run"
    """Name of the run; its folder is runs_dir/run_name."""
    runs_dir: str = "runs"
    """Folder that holds run folders."""
    seed: Seed = 1234
    """Seed of weights, dropout and sample order."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Parallel layout."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    """Implementations of the ops."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training mixture."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser, schedule, precision."""
    stage: StageConfig = field(default_factory=StageConfig)
    """Training stage and evaluation."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Stage ppo."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Stage embed."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    reliability: ReliabilityConfig = field(default_factory=ReliabilityConfig)
    """Detection of faults and recovery."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Metrics."""

    @property
    def run_dir(self) -> str:
        """Folder of the run."""
        return f"{self.runs_dir}/{self.run_name}"
