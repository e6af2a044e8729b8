"""The clusters that a corpus can be made on."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slurm:
    """How to run on a cluster of Slurm."""

    partition: str
    time: str = "20:00:00"
    """Of each job, as sbatch takes it."""
    tasks: int = 100
    """That run at a time."""
    memory_gb: int = 4
    """For each task."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, without dashes, such as account."""


@dataclass(frozen=True)
class Ray:
    """How to run on a cluster of Ray."""

    address: str
    """Of the cluster, as ray.init takes it; `local` starts one on this machine with as many CPUs as there are workers.
    """
    memory_gb: float = 0
    """That is reserved for each task; 0 reserves none."""
