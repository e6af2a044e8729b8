"""Architecture, parallel layout and kernels: three sections of the configuration."""

from dataclasses import dataclass
from typing import Literal

from megagpt.config.bounds import FractionBelowOne, PositiveFloat, PositiveInt

VOCAB_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this, whatever the layout, so that checkpoints fit every layout."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: a decoder-only transformer, GPT-3's by default (arXiv 2005.14165)."""

    name: str = "custom"
    """Name of the model, for logs and reports."""
    num_layers: PositiveInt = 12
    """Number of transformer layers."""
    hidden_size: PositiveInt = 768
    """Width of the residual stream (d_model)."""
    num_attention_heads: PositiveInt = 12
    """Number of query heads."""
    num_query_groups: PositiveInt | None = None
    """Number of key and value heads (grouped-query attention); null means one for every query head."""
    ffn_hidden_size: PositiveInt | None = None
    """Width of the feed-forward layer; null means 4 x hidden_size (for swiglu 8/3 x, rounded up to 128)."""
    sequence_length: PositiveInt = 2048
    """Context length in tokens."""
    vocab_size: PositiveInt = 50257
    """Tokens in the vocabulary, end-of-text included; the embedding is padded to a multiple of 128."""
    position_embedding: Literal["learned", "rope"] = "learned"
    """Learned absolute positions (GPT-3) or rotary position embedding (RoPE)."""
    rope_base: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Pre-norm of every sublayer and of the output."""
    norm_epsilon: PositiveFloat = 1e-5
    """Added to the variance in every norm."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the feed-forward layer; gelu is its tanh approximation, as in GPT-2 and GPT-3."""
    bias: bool = True
    """Whether linear layers have biases."""
    tie_embeddings: bool = True
    """Whether the output projection shares the input embedding's weights."""
    head: Literal["tokens", "scalar", "embedding"] = "tokens"
    """Head on the last layer. tokens: logits of the next token. scalar: one number for every token, for reward models
    and critics. embedding: a vector for every text, its state at the text's last token. The last two have no output
    projection, and tie_embeddings has no effect."""
    qk_layernorm: bool = False
    """Whether queries and keys are normalised in every head before attention."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)
    """Kinds of attention, which the layers take in turn: [dense, banded] is GPT-3's alternation."""
    attention_window: PositiveInt = 256
    """In a banded layer a token sees itself and the attention_window - 1 tokens before it."""
    hidden_dropout: FractionBelowOne = 0.0
    """Dropout on the embedding and on every residual branch."""
    attention_dropout: FractionBelowOne = 0.0
    """Dropout on attention probabilities."""
    init_std: PositiveFloat = 0.02
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

    @property
    def shares_embeddings(self) -> bool:
        """Whether the embedding's weights are the output projection too."""
        return self.head == "tokens" and self.tie_embeddings

    @property
    def output_size(self) -> int:
        """Columns of the matrix at the model's end, without the vocabulary's padding; an embedding head has none."""
        return {"tokens": self.vocab_size, "scalar": 1, "embedding": 0}[self.head]

    def window(self, layer: int) -> int | None:
        """Attention window of `layer` (counted from 0) in tokens; None for a dense layer."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.attention_window if kind == "banded" else None


@dataclass(frozen=True)
class ParallelConfig:
    """Parallel layout: how ranks share the model and the batch. It changes speed and memory, never the result."""

    engine: Literal["megatron", "deepspeed"] = "megatron"
    """Engine of the training step: Megatron-Core's schedules and distributed optimizer, or DeepSpeed's ZeRO."""
    tensor_parallel_size: PositiveInt = 1
    """Ranks that share every layer (TP)."""
    sequence_parallel: bool = False
    """Whether the tensor-parallel ranks also split norms and dropouts along the sequence (SP)."""
    pipeline_parallel_size: PositiveInt = 1
    """Pipeline stages that share the layers (PP)."""
    virtual_pipeline_size: PositiveInt = 1
    """Chunks of layers on each pipeline stage; above 1 the pipeline schedule is interleaved (VPP)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage: data-parallel ranks shard nothing (0), optimizer state (1, which the engine megatron calls its
    distributed optimizer), gradients too (2), or parameters too (3). 2 and 3 need the engine deepspeed."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the engine deepspeed keeps optimizer state, to save GPU memory: cpu, or with ZeRO stage 3 a disk (nvme).
    With either, the CPU updates the parameters."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where ZeRO stage 3 keeps parameters while they are not used."""
    offload_path: str | None = None
    """Folder on a fast local disk of every node, for offload to nvme."""
    micro_batch_size: PositiveInt = 1
    """Sequences that one rank passes through the model at a time; in stage embed, pairs with all of their texts."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none, attention only, or whole layers."""
    overlap_grad_reduce: bool | None = None
    """Whether data-parallel ranks reduce gradients while the backward pass still runs. null: with the engine
    megatron."""
    overlap_param_gather: bool = False
    """Whether data-parallel ranks that share the optimizer (ZeRO stage 1) gather what it has updated while the next
    forward pass runs. Ranks then wait for each other in that pass too, by whose time slow ranks are told."""
    timeout_minutes: PositiveFloat = 10.0
    """How long a collective waits for a missing rank before the job fails. While a run trains its watchdog finds that
    out, and collectives wait at least twice as long as its longest time-out."""

    @property
    def overlaps_reduction(self) -> bool:
        """`overlap_grad_reduce`, decided."""
        return self.engine == "megatron" if self.overlap_grad_reduce is None else self.overlap_grad_reduce


@dataclass(frozen=True)
class KernelsConfig:
    """Implementations of the ops. They change speed and memory, and results by no more than rounding.

    auto takes our Triton kernels on CUDA, where they support the model, and PyTorch elsewhere; the log says which.
    """

    attention: Literal["auto", "triton", "flash", "cudnn", "sdpa", "flash_attn", "unfused"] = "auto"
    """Attention: ours, one of PyTorch's fused ones, the one it picks (sdpa), the flash-attn package's, or products
    around a softmax (unfused)."""
    norm: Literal["auto", "triton", "torch"] = "auto"
    """LayerNorm and RMSNorm."""
    activation: Literal["auto", "triton", "torch"] = "auto"
    """Bias with GELU, or SwiGLU."""
    bias_dropout_add: Literal["auto", "triton", "torch"] = "auto"
    """Bias, dropout and the addition to the residual stream."""
    cross_entropy: Literal["auto", "triton", "torch"] = "auto"
    """Cross-entropy, for a vocabulary that tensor-parallel ranks share."""
    fuse_output_projection: bool = False
    """Compute the loss slice by slice of the vocabulary, so that all logits never exist at once. It saves much memory
    and costs the output projection a fourth matrix product beside its three."""
