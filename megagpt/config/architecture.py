"""The part of the configuration that says what the model is, how it is laid out over ranks, and what computes it."""

from dataclasses import dataclass
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
    head: Literal["tokens", "scalar"] = "tokens"
    """What the last layer's output becomes: logits of the next token, or one number for every token, as a reward model
    and a critic give. With a scalar head there is no output projection, and tie_embeddings means nothing."""
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

    @property
    def shares_embeddings(self) -> bool:
        """Whether the embedding's weights are the output projection too."""
        return self.head == "tokens" and self.tie_embeddings

    @property
    def output_size(self) -> int:
        """Numbers that the model gives for every token, without those that pad the vocabulary."""
        return self.vocab_size if self.head == "tokens" else 1

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
