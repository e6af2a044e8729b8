"""The whole configuration as frozen dataclasses: what can be set, its default, its unit.

The docstring under a field is its documentation; `python -m megagpt --help` prints it. `rules.py` holds what must
hold between fields, `load.py` turns YAML and command-line overrides into a `Config`.
"""

from dataclasses import dataclass, field
from typing import Literal

VOCAB_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, whatever the layout, so that checkpoints fit every layout."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: a decoder-only transformer, GPT-3's by default (arXiv 2005.14165)."""

    name: str = "custom"
    """Name of the model, for logs and reports."""
    num_layers: int = 12
    """Number of transformer layers."""
    hidden_size: int = 768
    """Width of the residual stream (d_model)."""
    num_attention_heads: int = 12
    """Number of query heads."""
    num_query_groups: int | None = None
    """Number of key and value heads (grouped-query attention); null means one for every query head."""
    ffn_hidden_size: int | None = None
    """Width of the feed-forward layer; null means 4 x hidden_size (for swiglu 8/3 x, rounded up to 128)."""
    sequence_length: int = 2048
    """Context length in tokens."""
    vocab_size: int = 50257
    """Tokens in the vocabulary, end-of-text included; the embedding is padded to a multiple of 128."""
    position_embedding: Literal["learned", "rope"] = "learned"
    """Learned absolute positions (GPT-3) or rotary position embedding (RoPE)."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Pre-norm of every sublayer and of the output."""
    norm_epsilon: float = 1e-5
    """Added to the variance in every norm."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the feed-forward layer; gelu is its tanh approximation, as in GPT-2 and GPT-3."""
    bias: bool = True
    """Whether linear layers have biases."""
    tie_embeddings: bool = True
    """Whether the output projection shares the input embedding's weights."""
    qk_layernorm: bool = False
    """Whether queries and keys are normalised in every head before attention."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)
    """Kinds of attention that layers take in turn: [dense, banded] is GPT-3's alternation."""
    attention_window: int = 256
    """In a banded layer a token sees itself and the attention_window - 1 tokens before it."""
    hidden_dropout: float = 0.0
    """Dropout on the embedding and on every residual branch."""
    attention_dropout: float = 0.0
    """Dropout on attention probabilities."""
    init_std: float = 0.02
    """Standard deviation of initial weights; projections into the residual stream use init_std / sqrt(2 x layers)."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Number of key and value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.ffn_hidden_size:
            return self.ffn_hidden_size
        return -(-8 * self.hidden_size // (3 * 128)) * 128 if self.activation == "swiglu" else 4 * self.hidden_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def window(self, layer: int) -> int | None:
        """Attention window of `layer` (counted from 0) in tokens; None for a dense layer."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.attention_window if kind == "banded" else None


@dataclass(frozen=True)
class ParallelConfig:
    """How the job is laid out over ranks. It changes speed and memory, never the result."""

    engine: Literal["megatron", "deepspeed"] = "megatron"
    """What runs the training step: Megatron-Core's schedules and distributed optimizer, or DeepSpeed's ZeRO."""
    tensor_parallel_size: int = 1
    """Ranks that share every layer (TP)."""
    sequence_parallel: bool = False
    """Whether the tensor-parallel ranks also split norms and dropouts along the sequence (SP)."""
    pipeline_parallel_size: int = 1
    """Stages that the layers are divided into (PP)."""
    virtual_pipeline_size: int = 1
    """Chunks of layers that each stage holds; above 1 the pipeline schedule is interleaved (VPP)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What data-parallel ranks shard: 0 nothing, 1 optimizer state (with the engine megatron its distributed
    optimizer), 2 gradients too, 3 parameters too; 2 and 3 need the engine deepspeed."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the engine deepspeed keeps optimizer state, to save GPU memory; nvme, at stage 3, is a disk. With either
    parameters are updated by the CPU."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where ZeRO stage 3 keeps the parameters that are not in use."""
    offload_path: str | None = None
    """Folder on a fast local disk of every node, for offload to nvme."""
    micro_batch_size: int = 1
    """Sequences that one rank passes through the model at a time."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none, attention only, or whole layers."""
    overlap_grad_reduce: bool = False
    """Whether data-parallel ranks reduce gradients while the backward pass still runs."""
    timeout_minutes: float = 10.0
    """How long a collective waits for a missing rank before the job fails."""


@dataclass(frozen=True)
class KernelsConfig:
    """Which implementation computes what. It changes speed and memory, and results by no more than rounding.

    auto is our Triton kernels on CUDA, where they support the model, and PyTorch elsewhere; the log says what was
    chosen.
    """

    attention: Literal["auto", "triton", "flash", "cudnn", "sdpa", "flash_attn", "unfused"] = "auto"
    """Attention: ours, one of PyTorch's fused ones, the one it picks (sdpa), the flash-attn package's, or products
    around a softmax (unfused)."""
    norm: Literal["auto", "triton", "torch"] = "auto"
    """LayerNorm and RMSNorm."""
    activation: Literal["auto", "triton", "torch"] = "auto"
    """Bias with GELU, or SwiGLU."""
    dropout_add: Literal["auto", "triton", "torch"] = "auto"
    """Bias, dropout and the addition to the residual stream."""
    cross_entropy: Literal["auto", "triton", "torch"] = "auto"
    """Cross-entropy of the vocabulary, which tensor-parallel ranks share."""
    fuse_output_projection: bool = False
    """Compute the loss by slices of the vocabulary, so that the logits never exist together: far less memory, for one
    matrix product in four more of the output projection."""


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
    infilling_rate: float = 0.0
    """Share of documents in training samples that are rearranged for filling in the middle (arXiv 2207.14255)."""
    infilling_spm_rate: float = 0.5
    """Share of those in the order suffix, prefix, middle (SPM); the others are in prefix, suffix, middle (PSM)."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation: AdamW, a schedule counted in tokens, and numeric precision, as published for GPT-3."""

    lr: float = 6e-4
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """The learning rate decays to this fraction of the peak."""
    warmup_tokens: int = 375_000_000
    """Tokens of linear warm-up from zero."""
    decay_tokens: int = 260_000_000_000
    """Tokens after which the cosine decay, warm-up included, reaches its minimum."""
    train_tokens: int = 300_000_000_000
    """Tokens to train on."""
    global_batch_size: int = 256
    """Sequences in one optimizer step."""
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

    name: Literal["pretrain", "code"] = "pretrain"
    """The stage: pretrain, or code, the same from the weights of a pretrained model (checkpoint.load)."""
    eval_interval: int = 1000
    """Steps between evaluations on the validation documents; 0 evaluates only at the end."""
    eval_tokens: int = 10_000_000
    """At most this many validation tokens an evaluation; the last evaluation reads all."""
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
    """A checkpoint of another run whose weights this run starts from, when it has none of its own."""


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
