"""Rules of the model alone, which hold in every parallel layout. See `rules.py`."""

from collections.abc import Iterator
from dataclasses import fields

from megagpt.config.architecture import RopeScalingConfig
from megagpt.config.fields import multiple
from megagpt.config.schema import Config

SCALING_OPTIONS = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_length", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "attention_factor", "truncate"),
}
"""{kind of `model.rope_scaling`: the fields that it uses}."""


def heads_divide_hidden_size(config: Config, world_size: int) -> Iterator[str]:
    """Every head has the same width."""
    if config.model.head_dim is None:
        yield from multiple(config, "model.hidden_size", "model.num_attention_heads")


def query_groups_divide_heads(config: Config, world_size: int) -> Iterator[str]:
    """Every key and value head serves the same number of query heads."""
    if config.model.num_query_groups:
        yield from multiple(config, "model.num_attention_heads", "model.num_query_groups")


def rope_pairs_dimensions(config: Config, world_size: int) -> Iterator[str]:
    """Rotary embeddings rotate pairs of a head's dimensions, so their number is even."""
    model = config.model
    if model.position_embedding != "rope":
        return
    if model.head_dim is None and model.head_size % 2:
        yield (
            f"model.position_embedding (rope) needs an even head size, but model.hidden_size ({model.hidden_size}) /"
            f" model.num_attention_heads ({model.num_attention_heads}) = {model.head_size}: change one of the two"
        )
        return
    turned = model.head_size * model.rotary_fraction
    if abs(turned - model.rotary_size) > 1e-6 or model.rotary_size % 2 or not model.rotary_size:
        width = "head size" if model.head_dim is None else "model.head_dim"
        pairs = max(1, min(round(turned / 2), model.head_size // 2))
        yield (
            f"model.rotary_fraction ({model.rotary_fraction:g}) of the {width} ({model.head_size}) is {turned:g}"
            f" dimensions, but they turn in pairs: set it to {2 * pairs} / {model.head_size}"
        )


def rope_options_have_rope(config: Config, world_size: int) -> Iterator[str]:
    """Options of rotary embeddings need position_embedding=rope."""
    model = config.model
    given = {
        "rope_local_base": model.rope_local_base is not None,
        "rotary_fraction": model.rotary_fraction != 1,
        "rope_scaling.kind": model.rope_scaling.kind != "none",
    }
    for name in (name for name, is_given in given.items() if is_given):
        if model.position_embedding != "rope":
            yield (
                f"model.{name} is an option of rotary embeddings, but model.position_embedding is"
                f" {model.position_embedding}: set position_embedding=rope, or leave model.{name} at its default"
            )
    if given["rope_local_base"] and all(model.window(layer) is None for layer in range(len(model.attention_pattern))):
        yield (
            f"model.rope_local_base ({model.rope_local_base:g}) is of banded layers, but model.attention_pattern has"
            " none: name some in the pattern, or set rope_local_base=null"
        )


def rope_scaling(config: Config, world_size: int) -> Iterator[str]:
    """Each kind of scaling has the fields that it needs, and no field that it does not use."""
    scaling = config.model.rope_scaling
    kind, used = scaling.kind, SCALING_OPTIONS[scaling.kind]
    for field in fields(RopeScalingConfig):
        value = getattr(scaling, field.name)
        if field.name != "kind" and field.name not in used and value != field.default:
            kinds = [name for name, options in SCALING_OPTIONS.items() if field.name in options]
            yield (
                f"model.rope_scaling.{field.name} ({value}) is of the kinds {', '.join(kinds)}, but"
                f" model.rope_scaling.kind is {kind}: set the kind, or leave {field.name} at {field.default}"
            )
    if scaling.factor < 1:
        yield f"model.rope_scaling.factor ({scaling.factor:g}) would shorten the context: set it to 1 or more"
    if kind in ("llama3", "yarn") and scaling.original_length is None:
        yield (
            f"model.rope_scaling.kind ({kind}) needs model.rope_scaling.original_length, which is null: give the"
            " context length before the extension, in tokens"
        )
    if kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        yield (
            f"model.rope_scaling.low_freq_factor ({scaling.low_freq_factor:g}) must be below"
            f" model.rope_scaling.high_freq_factor ({scaling.high_freq_factor:g}): raise the second"
        )
    if kind == "yarn" and scaling.beta_slow >= scaling.beta_fast:
        yield (
            f"model.rope_scaling.beta_slow ({scaling.beta_slow:g}) must be below model.rope_scaling.beta_fast"
            f" ({scaling.beta_fast:g}): raise the second"
        )


def attention_pattern(config: Config, world_size: int) -> Iterator[str]:
    """The layers take their kinds of attention from a pattern, which must not be empty."""
    if not config.model.attention_pattern:
        yield "model.attention_pattern ([]) is empty: set it to [dense], or [dense,banded] as GPT-3"


def parallel_branches_have_pre_norms(config: Config, world_size: int) -> Iterator[str]:
    """Parallel branches normalise their input, with a shared norm or one norm each."""
    model = config.model
    if model.parallel_block != "none" and model.norm_placement != "pre":
        yield (
            f"model.parallel_block ({model.parallel_block}) needs model.norm_placement=pre, but it is"
            f" {model.norm_placement}: set it to pre, or parallel_block=none"
        )


def head_norms_exist(config: Config, world_size: int) -> Iterator[str]:
    """A scope of the norms of queries and keys needs such norms."""
    if config.model.qk_norm_scope != "head" and not config.model.qk_layernorm:
        yield (
            f"model.qk_norm_scope ({config.model.qk_norm_scope}) needs model.qk_layernorm, which is false: set it to"
            " true, or qk_norm_scope=head"
        )


def fused_projection_is_plain(config: Config, world_size: int) -> Iterator[str]:
    """The fused loss computes logits as hidden states times weights, without a bias or a softcap."""
    model = config.model
    if not config.kernels.fuse_output_projection or model.head != "tokens":
        return
    for name, value in (("logit_softcap", model.logit_softcap), ("output_bias", model.output_bias)):
        if value:
            yield (
                f"kernels.fuse_output_projection (true) does not combine with model.{name} ({value}): set"
                " fuse_output_projection=false"
            )


MODEL_RULES = (
    heads_divide_hidden_size,
    query_groups_divide_heads,
    rope_pairs_dimensions,
    rope_options_have_rope,
    rope_scaling,
    attention_pattern,
    parallel_branches_have_pre_norms,
    head_norms_exist,
    fused_projection_is_plain,
)
"""The rules of a model that hold in every layout."""
