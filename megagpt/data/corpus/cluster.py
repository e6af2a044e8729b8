"""Settings of the clusters on which a corpus can be made."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Slurm:
    """Settings of a Slurm cluster."""

    partition: str
    time: str = "20:00:00"
    """Time limit of each job, in sbatch's format."""
    tasks: int = 100
    """Largest number of tasks that run at the same time."""
    memory_gb: int = 4
    """Memory of each task."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, without dashes, such as account."""


@dataclass(frozen=True)
class Ray:
    """Settings of a Ray cluster."""

    address: str
    """Address of the cluster, for ray.init; `local` starts one on this machine with one CPU per worker."""
    memory_gb: float = 0
    """Memory to reserve for each task; 0 reserves none."""
