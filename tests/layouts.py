"""Layouts of two ranks, in which stages are compared with one rank."""

ON_TWO_RANKS = {
    "data": [],
    "tensor": ["parallel.tensor_parallel_size=2"],
    "sequence": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
    "pipeline": ["parallel.pipeline_parallel_size=2"],
    "interleaved": ["parallel.pipeline_parallel_size=2", "parallel.virtual_pipeline_size=2"],
    "deepspeed_1": ["parallel.engine=deepspeed", "parallel.zero_stage=1"],
    "deepspeed_2": ["parallel.engine=deepspeed", "parallel.zero_stage=2"],
    "deepspeed_3": ["parallel.engine=deepspeed", "parallel.zero_stage=3"],
}
"""Name -> overrides."""
