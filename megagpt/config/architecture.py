"""Architecture, parallel layout and kernels: three sections of the configuration."""

from dataclasses import dataclass, field
from typing import Literal

from megagpt.config.bounds import FractionBelowOne, PositiveFloat, PositiveFraction, PositiveInt

VOCAB_MULTIPLE = 128
"""The embedding's rows are padded to a multiple of this in every layout, so that checkpoints fit every layout."""


@dataclass(frozen=True)
class RopeScalingConfig:
    """Rotary frequencies of a model that was trained at a shorter context and then extended."""

    kind: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    """linear: positions are divided by factor (arXiv 2306.15595). dynamic: the base grows for texts longer than
    sequence_length; megagpt refuses such texts, so the value has no effect here and is kept for conversion. llama3: low
    frequencies are divided by factor, middle ones in part (Llama 3.1). yarn: as llama3 with a linear ramp over the
    dimensions, and with scaled attention (arXiv 2309.00071)."""
    factor: PositiveFloat = 1.0
    """The new context length as a multiple of the original one."""
    original_length: PositiveInt | None = None
    """Context length in tokens before the extension, which llama3 and yarn need."""
    low_freq_factor: PositiveFloat = 1.0
    """llama3: frequencies with wavelengths above original_length / low_freq_factor are divided by factor."""
    high_freq_factor: PositiveFloat = 4.0
    """llama3: frequencies with wavelengths below original_length / high_freq_factor stay as they are."""
    beta_fast: PositiveFloat = 32.0
    """yarn: frequencies with more turns than this within original_length stay as they are."""
    beta_slow: PositiveFloat = 1.0
    """yarn: frequencies with fewer turns than this are divided by factor."""
    attention_factor: PositiveFloat | None = None
    """yarn: factor of queries and keys after their rotation; null: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: whether the ramp begins and ends at whole dimensions."""


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
    head_dim: PositiveInt | None = None
    """Width of one attention head; null means hidden_size / num_attention_heads."""
    ffn_hidden_size: PositiveInt | None = None
    """Width of the feed-forward layer; null means 4 x hidden_size (for swiglu and geglu 8/3 x, rounded up to 128)."""
    sequence_length: PositiveInt = 2048
    """Context length in tokens."""
    vocab_size: PositiveInt = 50257
    """Tokens in the vocabulary, end-of-text included; the embedding is padded to a multiple of 128."""
    position_embedding: Literal["learned", "rope"] = "learned"
    """Learned absolute positions (GPT-3) or rotary position embedding (RoPE)."""
    rope_base: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    rope_local_base: PositiveFloat | None = None
    """Base of the rotary frequencies in banded layers (Gemma 3); rope_scaling then has no effect in those layers. null:
    banded layers use rope_base and rope_scaling, like dense ones."""
    rotary_fraction: PositiveFraction = 1.0
    """Share of a head's dimensions that rotary embeddings rotate; these are the first dimensions."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Extension of the context by rotary frequencies."""
    embedding_scale: PositiveFloat | None = None
    """Factor of the word embeddings before the first layer; null: 1. Gemma uses sqrt(hidden_size)."""
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Norm of every sublayer and of the output."""
    norm_placement: Literal["pre", "post", "both"] = "pre"
    """pre: a sublayer's input is normalised (GPT-3, Llama). post: its output, before it is added to the residual
    stream (OLMo 2). both: input and output (Gemma 2)."""
    zero_centered_norm: bool = False
    """Whether a norm multiplies by 1 + weight, with weights that begin at 0 (Gemma)."""
    parallel_block: Literal["none", "one_norm", "two_norms"] = "none"
    """Whether attention and feed-forward layer read the same residual stream and are added to it together. none: the
    feed-forward layer follows attention. one_norm: both read the same normalised input (GPT-J, Falcon 7B). two_norms:
    each has its own norm (GPT-NeoX)."""
    norm_epsilon: PositiveFloat = 1e-5
    """Added to the variance in every norm."""
    activation: Literal["gelu", "gelu_exact", "relu", "squared_relu", "swiglu", "geglu", "geglu_exact"] = "gelu"
    """Activation of the feed-forward layer. gelu is the tanh approximation, as in GPT-2 and GPT-3; gelu_exact uses the
    error function. swiglu, geglu (tanh) and geglu_exact multiply the activation of one projection by a second one."""
    bias: bool = True
    """Whether linear layers have biases."""
    qkv_bias: bool | None = None
    """Whether the projection to queries, keys and values has a bias; null: same as model.bias. Qwen2 has no other
    bias."""
    attention_output_bias: bool | None = None
    """Whether the projection after attention has a bias; null: same as model.bias."""
    output_bias: bool = False
    """Whether the output projection has a bias (GPT-J)."""
    tie_embeddings: bool = True
    """Whether the output projection shares the input embedding's weights."""
    head: Literal["tokens", "scalar", "embedding"] = "tokens"
    """Head on the last layer. tokens: logits of the next token. scalar: one number per token, for reward models and
    critics. embedding: one vector per text, the state at the text's last token. scalar and embedding have no output
    projection, so tie_embeddings, output_bias and logit_softcap have no effect with them."""
    qk_layernorm: bool = False
    """Whether queries and keys are normalised before attention."""
    qk_norm_scope: Literal["head", "all_heads"] = "head"
    """Elements that one such norm covers: each head by itself (Qwen3), or all heads of a token together (OLMo 2)."""
    attention_scale: PositiveFloat | None = None
    """Factor of attention's scores; null: 1 / sqrt(head_dim)."""
    attention_softcap: PositiveFloat | None = None
    """Attention's scaled scores s become softcap x tanh(s / softcap) before masks and softmax (Gemma 2); null: none."""
    logit_softcap: PositiveFloat | None = None
    """The same for the output logits; null: none."""
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)
    """Kinds of attention, repeated over the layers: [dense, banded] alternates as GPT-3 does."""
    attention_window: PositiveInt = 256
    """In a banded layer a token sees itself and the attention_window - 1 tokens before it."""
    hidden_dropout: FractionBelowOne = 0.0
    """Dropout on the embedding and on every residual branch."""
    attention_dropout: FractionBelowOne = 0.0
    """Dropout on attention probabilities."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of initial weights; projections into the residual stream use init_std / sqrt(2 x layers)."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rotary_size(self) -> int:
        """Number of dimensions of a head that rotary embeddings rotate."""
        return round(self.head_size * self.rotary_fraction)

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer multiplies two projections."""
        return self.activation in ("swiglu", "geglu", "geglu_exact")

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projection to queries, keys and values has a bias, with null resolved."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_attention_output_bias(self) -> bool:
        """Whether the projection after attention has a bias, with null resolved."""
        return self.bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def query_groups(self) -> int:
        """Number of key and value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.ffn_hidden_size:
            return self.ffn_hidden_size
        return -(-8 * self.hidden_size // (3 * 128)) * 128 if self.is_gated else 4 * self.hidden_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def shares_embeddings(self) -> bool:
        """Whether the output projection uses the embedding's weights."""
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
    """Where the engine deepspeed keeps optimizer state, to save GPU memory: cpu, or a disk (nvme), which needs ZeRO
    stage 3. With either, the CPU updates the parameters."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where ZeRO stage 3 keeps parameters while they are not used."""
    offload_path: str | None = None
    """Folder on a fast local disk of every node, for offload to nvme."""
    micro_batch_size: PositiveInt = 1
    """Sequences that one rank passes through the model at a time; in stage embed, pairs with all of their texts."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that the backward pass recomputes: none, attention only (selective), or whole layers (full)."""
    overlap_grad_reduce: bool | None = None
    """Whether data-parallel ranks reduce gradients while the backward pass still runs. null: true with the engine
    megatron, false with deepspeed."""
    overlap_param_gather: bool = False
    """Whether data-parallel ranks gather the updated parameters while the next forward pass runs (ZeRO stage 1). Ranks
    then also wait for each other in the forward pass, whose time is what identifies slow ranks."""
    timeout_minutes: PositiveFloat = 10.0
    """Minutes that a collective waits for a missing rank before the job fails. During training the watchdog notices
    missing ranks first: collectives wait at least twice as long as the watchdog's longest time-out."""

    @property
    def overlaps_reduction(self) -> bool:
        """Whether gradients are reduced during the backward pass, with null resolved."""
        return self.engine == "megatron" if self.overlap_grad_reduce is None else self.overlap_grad_reduce


@dataclass(frozen=True)
class KernelsConfig:
    """Implementations of the ops. They change speed and memory, and results by no more than rounding.

    auto takes megagpt's Triton kernels on CUDA if they support the model, and PyTorch otherwise; the log names the
    choice.
    """

    attention: Literal["auto", "triton", "flash", "cudnn", "sdpa", "flash_attn", "unfused"] = "auto"
    """Attention: megagpt's kernel (triton), one of PyTorch's fused ones (flash, cudnn), the one that PyTorch picks
    (sdpa), the flash-attn package, or two matrix products around a softmax (unfused)."""
    norm: Literal["auto", "triton", "torch"] = "auto"
    """LayerNorm and RMSNorm."""
    activation: Literal["auto", "triton", "torch"] = "auto"
    """Bias with GELU, or SwiGLU."""
    bias_dropout_add: Literal["auto", "triton", "torch"] = "auto"
    """Bias, dropout and the addition to the residual stream."""
    cross_entropy: Literal["auto", "triton", "torch"] = "auto"
    """Cross-entropy, for a vocabulary that tensor-parallel ranks share."""
    fuse_output_projection: bool = False
    """Whether the loss is computed over slices of the vocabulary, so that not all logits are in memory at once. It
    saves much memory; the output projection then needs four matrix products instead of three."""
