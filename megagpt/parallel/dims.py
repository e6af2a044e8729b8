"""A rank's coordinates in the grid of tensor, data and pipeline parallelism."""

from dataclasses import dataclass
from functools import cached_property

from megagpt.config.schema import ParallelConfig


@dataclass(frozen=True)
class ParallelDims:
    """Sizes and this rank's coordinates. Ranks count up along tensor parallelism first, then data, then pipeline."""

    rank: int
    world_size: int
    tensor_size: int
    pipeline_size: int
    virtual_size: int

    @classmethod
    def of(cls, parallel: ParallelConfig, rank: int, world_size: int) -> "ParallelDims":
        """The coordinates of `rank` in the layout `parallel` over `world_size` ranks."""
        return cls(
            rank,
            world_size,
            parallel.tensor_parallel_size,
            parallel.pipeline_parallel_size,
            parallel.virtual_pipeline_size,
        )

    @cached_property
    def data_size(self) -> int:
        """Number of model replicas."""
        return self.world_size // (self.tensor_size * self.pipeline_size)

    @cached_property
    def tensor_rank(self) -> int:
        """Number among the ranks that share a layer."""
        return self.rank % self.tensor_size

    @cached_property
    def data_rank(self) -> int:
        """Number of the replica."""
        return self.rank // self.tensor_size % self.data_size

    @cached_property
    def pipeline_rank(self) -> int:
        """Number of the pipeline stage."""
        return self.rank // (self.tensor_size * self.data_size)

    @cached_property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the input embedding."""
        return self.pipeline_rank == 0

    @cached_property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1
