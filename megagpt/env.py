"""The only module that reads environment variables, so that one file lists every variable a run depends on."""

import os
import stat
import tempfile
from pathlib import Path

from megagpt.errors import ConfigError


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"the environment variable {name} must be a whole number, not {value!r}") from None


def rank() -> int:
    """This process's number among all ranks, as torchrun sets it; 0 without torchrun."""
    return _integer("RANK", 0)


def is_rank() -> bool:
    """Whether torchrun, or a launcher like it, started this process as one of its ranks."""
    return "RANK" in os.environ


def world_size() -> int:
    """Number of ranks, as torchrun sets it; 1 without torchrun."""
    return _integer("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine, as torchrun sets it; it selects the GPU."""
    return _integer("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Number of ranks on this machine, as torchrun sets it; 1 without torchrun."""
    return _integer("LOCAL_WORLD_SIZE", 1)


def master_address() -> str:
    """Host where rank 0 listens for the other ranks."""
    return os.environ.get("MASTER_ADDR") or "127.0.0.1"


def master_port() -> int | None:
    """Port where rank 0 listens for the other ranks; None when no launcher chose one."""
    return _integer("MASTER_PORT", 0) or None


def restart_attempt() -> int:
    """How often this job was started again, by torchrun, by slurm/train.sh or by Slurm; 0 the first time."""
    # A start of any kind is another attempt, so the three counts are added.
    names = ("TORCHELASTIC_RESTART_COUNT", "MEGAGPT_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return sum(_integer(name, 0) for name in names)


def wandb_mode() -> str | None:
    """Value of WANDB_MODE in lower case (online, offline, disabled, shared, dryrun); None when it is not set."""
    return (os.environ.get("WANDB_MODE") or "").lower() or None


def api_key() -> str | None:
    """Value of MEGAGPT_API_KEY, the key that clients of a server must send; None when it is not set or empty."""
    return os.environ.get("MEGAGPT_API_KEY") or None


def launcher_has_store() -> bool:
    """Whether torchrun itself serves the store at the master address; otherwise rank 0 must serve it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def network_settings() -> dict[str, str]:
    """The environment variables that configure NCCL, gloo and CUDA streams: {name: value} of those that are set."""
    prefixes = ("NCCL_", "GLOO_", "TORCH_NCCL_", "CUDA_DEVICE_MAX_CONNECTIONS")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def start_kernels_in_order() -> None:
    """Make a GPU start kernels in the order in which they were queued, unless the user's environment sets it otherwise.

    Call it before CUDA is initialised.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def keep_compiled_kernels_here() -> None:
    """Put Triton's and PyTorch's compilation caches on a local disk, unless the user's environment names a folder.

    By default Triton uses the home folder, which on a cluster is often one disk for thousands of ranks.
    """
    folder = Path(tempfile.gettempdir()) / f"megagpt_{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return  # files in this folder are executed, so nobody else may be able to write to it
    for name, kind in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        os.environ.setdefault(name, str(folder / kind))


def tokenize_on_one_thread() -> None:
    """Keep the tokenizers library on the thread that calls it, here and in processes started from now on."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def share_cores(ranks: int) -> None:
    """Divide this machine's cores among its `ranks` ranks, as threads of OpenMP, unless the user set the number."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))


def stay_on_loopback() -> None:
    """Let ranks on one machine communicate over its loopback interface, unless the user's environment names another."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")


def connect_when_needed() -> None:
    """Let a rank open gloo connections when they are first used; otherwise each of N ranks opens N sockets."""
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


def become_rank(rank: int, world_size: int, gpus: bool) -> None:
    """Set the variables that torchrun sets for rank `rank` on one machine. Without `gpus`, hide all GPUs."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def interpret_kernels() -> None:
    """Make Triton interpret kernels on the CPU. Call it before Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"


def set_deepspeed_accelerator(name: str) -> None:
    """Name DeepSpeed's accelerator, unless the user's environment does; otherwise DeepSpeed searches and logs it."""
    os.environ.setdefault("DS_ACCELERATOR", name)


def torch_extensions_dir() -> str | None:
    """Folder in which PyTorch builds C++ extensions; None when the user has not named one."""
    return os.environ.get("TORCH_EXTENSIONS_DIR")


def keep_ray_to_itself() -> None:
    """Stop Ray from sending usage reports over the network, unless the user's environment sets it otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
