"""Rules between the model, its parallel layout and the number of ranks. See `rules.py`."""

from collections.abc import Iterator

from megagpt.config.fields import data_parallel_size, get, multiple, nearest_multiples
from megagpt.config.schema import Config


def tensor_parallel_divides(config: Config, world_size: int) -> Iterator[str]:
    """Tensor-parallel ranks hold equal parts of every layer."""
    size = "parallel.tensor_parallel_size"
    yield from multiple(config, "model.num_attention_heads", size)
    model, divisor = config.model, config.parallel.tensor_parallel_size
    if model.query_groups % divisor and (divisor % model.query_groups or model.qk_norm_scope == "all_heads"):
        fits = f"a multiple of {size} ({divisor})"
        if model.qk_norm_scope != "all_heads":
            fits += " or one of its divisors"
        yield (
            f"model.num_query_groups ({model.query_groups}) is not {fits}:"
            f" {nearest_multiples(model.query_groups, divisor)}"
        )
    rows = (model.num_attention_heads + 2 * model.query_groups) * model.head_size
    if divisor % model.query_groups == 0 and rows % divisor:
        yield (
            f"{size} ({divisor}) does not divide the {rows} rows of the projection to queries, keys and values, of"
            f" model.num_attention_heads ({model.num_attention_heads}) + 2 x model.num_query_groups"
            f" ({model.query_groups}) heads of {model.head_size}: use a size that does"
        )
    if model.ffn_size % divisor:
        given = "" if model.ffn_hidden_size else f", from model.hidden_size {model.hidden_size},"
        yield (
            f"model.ffn_hidden_size ({model.ffn_size}){given} is not a multiple of {size} ({divisor}):"
            f" {nearest_multiples(model.ffn_size, divisor)}"
        )
    if model.padded_vocab_size % divisor:
        yield (
            f"model.vocab_size ({model.vocab_size}), padded to {model.padded_vocab_size}, is not a multiple of {size}"
            f" ({divisor}): use a size that divides it, such as a power of two"
        )


def sequence_parallel(config: Config, world_size: int) -> Iterator[str]:
    """Sequence parallelism divides the sequence over the tensor-parallel ranks."""
    if not config.parallel.sequence_parallel:
        return
    if config.parallel.tensor_parallel_size == 1:
        yield (
            "parallel.sequence_parallel (true) divides the sequence over tensor-parallel ranks, but"
            " parallel.tensor_parallel_size is 1: raise it to 2 or more, or set sequence_parallel=false"
        )
    yield from multiple(config, "model.sequence_length", "parallel.tensor_parallel_size")


def world_size_fits(config: Config, world_size: int) -> Iterator[str]:
    """The ranks are whole replicas of the model."""
    parallel = config.parallel
    replica = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if world_size % replica:
        yield (
            f"the number of processes ({world_size}) is not a multiple of parallel.tensor_parallel_size"
            f" ({parallel.tensor_parallel_size}) x parallel.pipeline_parallel_size ({parallel.pipeline_parallel_size})"
            f" = {replica}: start {replica} processes or a multiple (torchrun --nproc-per-node {replica}), or lower one"
            " of the two"
        )


def pipeline_divides_layers(config: Config, world_size: int) -> Iterator[str]:
    """Every pipeline stage, and every chunk on it, has the same number of layers."""
    parallel = config.parallel
    if parallel.virtual_pipeline_size > 1 and parallel.pipeline_parallel_size == 1:
        yield (
            f"parallel.virtual_pipeline_size ({parallel.virtual_pipeline_size}) interleaves the chunks of several"
            " pipeline stages, but parallel.pipeline_parallel_size is 1: raise it to 2 or more, or set"
            " virtual_pipeline_size=1"
        )
    chunks = parallel.pipeline_parallel_size * parallel.virtual_pipeline_size
    if config.model.num_layers % chunks:
        yield (
            f"model.num_layers ({config.model.num_layers}) is not a multiple of parallel.pipeline_parallel_size"
            f" ({parallel.pipeline_parallel_size}) x parallel.virtual_pipeline_size"
            f" ({parallel.virtual_pipeline_size}) = {chunks}: {nearest_multiples(config.model.num_layers, chunks)}"
        )


def batch_divides(config: Config, world_size: int) -> Iterator[str]:
    """Every replica has a whole number of micro-batches in each step, also in the first step of a batch ramp."""
    micro_batch, data_size = config.parallel.micro_batch_size, data_parallel_size(config, world_size)
    multiple = micro_batch * data_size
    terms = f"parallel.micro_batch_size ({micro_batch}) x {data_size} data-parallel ranks"
    if config.parallel.virtual_pipeline_size > 1:
        multiple *= config.parallel.pipeline_parallel_size
        terms += f" x parallel.pipeline_parallel_size ({config.parallel.pipeline_parallel_size}), as interleaving needs"
    for name in ("optim.global_batch_size", "optim.ramp_start"):
        if (value := get(config, name)) and value % multiple:
            yield f"{name} ({value}) is not a multiple of {terms} = {multiple}: {nearest_multiples(value, multiple)}"


def enough_micro_batches(config: Config, world_size: int) -> Iterator[str]:
    """With fewer micro-batches than pipeline stages, some stages are always idle."""
    stages, size = config.parallel.pipeline_parallel_size, config.optim.global_batch_size
    each = config.parallel.micro_batch_size * data_parallel_size(config, world_size)
    if stages > 1 and size % each == 0 and size // each < stages:
        yield (
            f"optim.global_batch_size ({size}) makes {size // each} micro-batches of parallel.micro_batch_size"
            f" ({config.parallel.micro_batch_size}) a replica, fewer than parallel.pipeline_parallel_size ({stages}):"
            f" raise the batch to {stages * each} or more, or lower one of the other two"
        )


def zero_stage(config: Config, world_size: int) -> Iterator[str]:
    """Each engine supports certain ZeRO stages; stages that shard gradients or parameters exclude a pipeline."""
    parallel = config.parallel
    stage, stages, engine = parallel.zero_stage, parallel.pipeline_parallel_size, parallel.engine
    instead = "set parallel.zero_stage=1 with parallel.engine=megatron, the distributed optimizer"
    if stage > 1 and stages > 1:
        yield (
            f"parallel.zero_stage ({stage}) does not combine with parallel.pipeline_parallel_size ({stages}), which"
            f" keeps whole gradients until the last micro-batch: {instead}, or pipeline_parallel_size=1"
        )
    elif stage > 1 and engine == "megatron":
        yield (
            f"parallel.zero_stage ({stage}) needs parallel.engine=deepspeed, but the engine is megatron: {instead}, or"
            " parallel.engine=deepspeed"
        )
    elif stages > 1 and engine == "deepspeed":
        yield (
            f"parallel.engine (deepspeed) does not combine with parallel.pipeline_parallel_size ({stages}): {instead},"
            " or pipeline_parallel_size=1"
        )
    if stage == 0 and engine == "deepspeed":
        yield (
            "parallel.zero_stage (0) shards nothing, but parallel.engine (deepspeed) needs sharding: set it to 1, 2 or"
            " 3, or parallel.engine=megatron"
        )


def offload(config: Config, world_size: int) -> Iterator[str]:
    """Offload needs DeepSpeed. Offload of parameters, or to a disk, needs ZeRO stage 3. A disk needs a folder."""
    parallel = config.parallel
    for name in ("offload_optimizer", "offload_parameters"):
        where = getattr(parallel, name)
        if where != "none" and parallel.engine != "deepspeed":
            yield (
                f"parallel.{name} ({where}) needs parallel.engine=deepspeed, but the engine is {parallel.engine}: set"
                f" parallel.{name}=none or the engine"
            )
        elif parallel.zero_stage < 3 and (where == "nvme" or (where == "cpu" and name == "offload_parameters")):
            yield (
                f"parallel.{name} ({where}) needs parallel.zero_stage=3, but the stage is {parallel.zero_stage}: set"
                f" parallel.{name}=none or the stage"
            )
        if where == "nvme" and not parallel.offload_path:
            yield f"parallel.{name} (nvme) needs parallel.offload_path, which is null: name a folder on a local disk"


def overlap(config: Config, world_size: int) -> Iterator[str]:
    """Megatron's distributed optimizer gathers parameters in the forward pass, in the same buckets as gradients."""
    parallel = config.parallel
    if not parallel.overlap_param_gather:
        return
    key, instead = "parallel.overlap_param_gather (true)", "or set overlap_param_gather=false"
    if parallel.engine != "megatron" or parallel.zero_stage != 1:
        yield (
            f"{key} needs parallel.engine=megatron and parallel.zero_stage=1, but they are {parallel.engine} and"
            f" {parallel.zero_stage}: change them, {instead}"
        )
    elif not parallel.overlaps_reduction:
        yield f"{key} needs parallel.overlap_grad_reduce, which is false: set it to true, {instead}"
    if config.kernels.fuse_output_projection:
        yield (
            f"{key} does not combine with kernels.fuse_output_projection (true), which reads the projection's weights"
            f" outside of its layer: set fuse_output_projection=false, {instead}"
        )


LAYOUT_RULES = (
    tensor_parallel_divides,
    sequence_parallel,
    world_size_fits,
    pipeline_divides_layers,
    batch_divides,
    enough_micro_batches,
    zero_stage,
    offload,
    overlap,
)
"""The rules between a model, its layout and the number of ranks."""
