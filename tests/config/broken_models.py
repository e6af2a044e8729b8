"""Examples that break the rules of the model once; see broken_examples.py."""

ROPE = "model.position_embedding=rope"
LLAMA3 = [ROPE, "model.rope_scaling.kind=llama3", "model.rope_scaling.factor=8"]

MODELS = [
    (
        "heads_divide_hidden_size",
        1,
        ["model.num_attention_heads=3"],
        ["model.hidden_size (256)", "model.num_attention_heads (3)", "255 or 258"],
    ),
    (
        "query_groups_divide_heads",
        1,
        ["model.num_query_groups=3"],
        ["model.num_attention_heads (4)", "model.num_query_groups (3)", "3 or 6"],
    ),
    (
        "rope_pairs_dimensions",
        1,
        [ROPE, "model.hidden_size=12"],
        ["model.position_embedding (rope)", "model.hidden_size (12)", "model.num_attention_heads (4)"],
    ),
    ("rope_pairs_dimensions", 1, [ROPE, "model.head_dim=15"], ["model.head_dim (15)", "turn in pairs", "14 / 15"]),
    (
        "rope_pairs_dimensions",
        1,
        [ROPE, "model.rotary_fraction=0.4"],
        ["model.rotary_fraction (0.4)", "head size (64)", "25.6 dimensions", "26 / 64"],
    ),
    (
        "rope_options_have_rope",
        1,
        ["model.rotary_fraction=0.5"],
        ["model.rotary_fraction", "model.position_embedding is learned", "position_embedding=rope"],
    ),
    (
        "rope_options_have_rope",
        1,
        ["model.rope_scaling.kind=linear"],
        ["model.rope_scaling.kind", "model.position_embedding is learned"],
    ),
    (
        "rope_options_have_rope",
        1,
        [ROPE, "model.rope_local_base=10000", "model.attention_pattern=[dense]"],
        ["model.rope_local_base (10000)", "model.attention_pattern has none", "rope_local_base=null"],
    ),
    (
        "rope_scaling",
        1,
        [ROPE, "model.rope_scaling.factor=4"],
        ["model.rope_scaling.factor (4.0)", "linear, dynamic, llama3, yarn", "model.rope_scaling.kind is none"],
    ),
    (
        "rope_scaling",
        1,
        [ROPE, "model.rope_scaling.kind=dynamic", "model.rope_scaling.original_length=64"],
        ["model.rope_scaling.original_length (64)", "llama3, yarn", "model.rope_scaling.kind is dynamic"],
    ),
    (
        "rope_scaling",
        1,
        [ROPE, "model.rope_scaling.kind=linear", "model.rope_scaling.factor=0.5"],
        ["model.rope_scaling.factor (0.5)", "1 or more"],
    ),
    ("rope_scaling", 1, LLAMA3, ["model.rope_scaling.kind (llama3)", "model.rope_scaling.original_length", "null"]),
    (
        "rope_scaling",
        1,
        [*LLAMA3, "model.rope_scaling.original_length=64", "model.rope_scaling.low_freq_factor=4"],
        ["model.rope_scaling.low_freq_factor (4)", "model.rope_scaling.high_freq_factor (4)"],
    ),
    (
        "rope_scaling",
        1,
        [ROPE, "model.rope_scaling.kind=yarn", "model.rope_scaling.beta_slow=32"],
        ["model.rope_scaling.beta_slow (32)", "model.rope_scaling.beta_fast (32)"],
    ),
    ("attention_pattern", 1, ["model.attention_pattern=[]"], ["model.attention_pattern", "[dense,banded]"]),
    (
        "parallel_branches_have_pre_norms",
        1,
        ["model.parallel_block=one_norm", "model.norm_placement=both"],
        ["model.parallel_block (one_norm)", "model.norm_placement=pre", "it is both", "parallel_block=none"],
    ),
    (
        "head_norms_exist",
        1,
        ["model.qk_norm_scope=all_heads"],
        ["model.qk_norm_scope (all_heads)", "model.qk_layernorm", "qk_norm_scope=head"],
    ),
    (
        "fused_projection_is_plain",
        1,
        ["kernels.fuse_output_projection=true", "model.logit_softcap=30"],
        ["kernels.fuse_output_projection (true)", "model.logit_softcap (30.0)", "fuse_output_projection=false"],
    ),
    (
        "fused_projection_is_plain",
        1,
        ["kernels.fuse_output_projection=true", "model.output_bias=true"],
        ["model.output_bias (True)", "fuse_output_projection=false"],
    ),
]
