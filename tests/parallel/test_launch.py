"""Process groups agree with the rank grid."""

from megagpt.config.schema import ParallelConfig
from megagpt.parallel.dims import ParallelDims


def _coordinates(parallel: ParallelConfig) -> tuple:
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt import env
    from megagpt.parallel import launch

    launch.initialize(ParallelConfig(), seed=1)
    before = env.network_settings().get("CUDA_DEVICE_MAX_CONNECTIONS")
    launch.initialize(parallel, seed=1)
    assert (before, env.network_settings()["CUDA_DEVICE_MAX_CONNECTIONS"]) == (None, "1")  # tensor parallelism needs it
    dims = ParallelDims.of(parallel, dist.get_rank(), dist.get_world_size())
    ours = (dims.tensor_rank, dims.data_rank, dims.pipeline_rank, dims.data_size)
    theirs = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    return ours, theirs


def test_dims_agree_with_megatron():
    from dist import run_distributed

    parallel = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2)
    seen = run_distributed(_coordinates, 4, parallel)
    assert all(ours == theirs for ours, theirs in seen)
    assert len({ours for ours, _ in seen}) == 4
