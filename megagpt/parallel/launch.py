"""Creates and destroys the process groups of `torch.distributed` and Megatron-Core."""

import contextlib
import ctypes
import datetime
import gc
import logging
import signal
import sys
import threading

import torch
import torch.distributed as dist

from megagpt import env
from megagpt.config.schema import ParallelConfig
from megagpt.errors import DistributedError
from megagpt.parallel import cpu

log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

SEED_STRIDE = 100_003
"""Distance between the seeds of two tensor-parallel groups; Megatron-Core adds up to 2,718 + TP inside a group."""

YEAR_SECONDS = 31_536_000.0

FIRST_WORD_SECONDS = 5.0
"""How long a failed rank waits for the answer whether it failed first; without an answer it reports its error."""


def initialize(parallel: ParallelConfig, seed: int) -> torch.device:
    """Join the job that torchrun started (or form a job of one rank), and create the process groups of `parallel`.

    Returns the device of this rank. Collectives that wait longer than `parallel.timeout_minutes` for a rank fail.
    Raises DistributedError when the ranks cannot connect.
    """
    timeout = datetime.timedelta(minutes=parallel.timeout_minutes)
    if env.launcher_has_store():
        _stop_with_launcher()
    env.keep_compiled_kernels_here()
    env.connect_when_needed()
    if parallel.tensor_parallel_size > 1:  # Megatron-Core's overlap of tensor-parallel communication needs this order
        env.start_kernels_in_order()
    if torch.cuda.is_available():
        torch.cuda.set_device(env.local_rank())
    if dist.is_initialized():
        leave_groups()  # the groups of an earlier run in this process
    else:
        _meet(timeout)
    cpu.enable()
    form_groups(parallel)
    seed_streams(seed)
    return cpu.device()


def _stop_with_launcher() -> None:
    """Have Linux send this rank SIGTERM when torchrun is killed, so that the run saves and stops."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _meet(timeout: datetime.timedelta) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    rank, world_size = env.rank(), env.world_size()
    if world_size == 1:
        # A store inside the process, because a single rank needs no open port.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    address, port = env.master_address(), env.master_port()
    if port is None:
        raise DistributedError(
            f"WORLD_SIZE is {world_size}, but MASTER_PORT is not set: start several ranks with torchrun"
        )
    if env.local_world_size() == world_size:
        env.stay_on_loopback()
    try:
        store = dist.TCPStore(
            address, port, is_master=rank == 0 and not env.launcher_has_store(), wait_for_workers=False, timeout=timeout
        )
        # Every restart has its own key space, so that nobody reads the addresses of ranks that have ended.
        store = dist.PrefixStore(f"attempt{env.restart_attempt()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"rank {rank} of {world_size} could not connect to the others at {address}:{port}: {error}"
        ) from error


def side_store(name: str) -> dist.Store:
    """The job's store with a key prefix `name` and a connection of its own, which no other caller blocks."""
    return dist.PrefixStore(name, dist.distributed_c10d._get_default_store().clone())


def form_groups(parallel: ParallelConfig) -> None:
    """Create Megatron-Core's process groups over the ranks of the default group. Collective."""
    from megatron.core import parallel_state

    gc.collect()  # engines are reference cycles; an unused one would keep the threads of its groups alive
    parallel_state.initialize_model_parallel(
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
        parallel.virtual_pipeline_size if parallel.virtual_pipeline_size > 1 else None,
        distributed_timeout_minutes=parallel.timeout_minutes,
        create_gloo_process_groups=False,
    )


def seed_streams(seed: int) -> None:
    """Seed this rank's random streams, for the layout of the current process groups.

    Dropout must differ between replicas and between pipeline stages. Tensor-parallel ranks hold the same residual
    stream and must drop the same elements there. For parts that they divide (heads, and the sequence under sequence
    parallelism) they use Megatron-Core's model-parallel stream, which differs among them.
    """
    from megatron.core import parallel_state, tensor_parallel

    stage, replicas = parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_data_parallel_world_size()
    own = seed + SEED_STRIDE * (stage * replicas + parallel_state.get_data_parallel_rank())
    torch.manual_seed(own)
    tensor_parallel.model_parallel_cuda_manual_seed(own, force_reset_rng=True)


def leave_groups() -> None:
    """Destroy the groups of `form_groups`, so that the same ranks can form groups of another layout. Collective."""
    from megatron.core import parallel_state

    dist.barrier()
    parallel_state.destroy_model_parallel()  # this only drops references; threads and sockets would stay
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def wait_at_least(seconds: float) -> None:
    """Make the collectives of every existing group wait at least `seconds` for other ranks before they fail.

    NCCL ends a process that has waited too long without saying what it was doing, so the watchdog must act first.
    """
    wanted = datetime.timedelta(seconds=min(seconds, YEAR_SECONDS))
    for group in dist.distributed_c10d._world.pg_map:
        for device in group._device_types:
            backend = group._get_backend(device)
            if backend.options._timeout < wanted:
                backend._set_default_timeout(wanted)


def shutdown() -> None:
    """Destroy all groups; also works if `initialize` failed half-way. Failed ranks must call `abandon` instead."""
    if "megatron.core.parallel_state" in sys.modules:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def abandon() -> None:
    """Leave the groups after a failure, without waiting for other ranks.

    Destroying a group waits for ranks that may be stuck in a collective, and with NCCL for work queued on the GPU. So
    unless it is the only rank, this does nothing, and `log.run_tool` exits the process at once.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        shutdown()


def is_first_failure() -> bool:
    """Whether no other rank has failed before; later failures usually follow from the first and are not reported."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    rank, answers = str(dist.get_rank()), []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # the rank that serves the store has ended
            store = dist.distributed_c10d._get_default_store()
            answers.append(store.compare_set("first failure", "", rank).decode() == rank)

    asking = threading.Thread(target=ask, daemon=True)  # the store may block: another thread uses it, or it hangs
    with contextlib.suppress(RuntimeError):  # no memory for a thread
        asking.start()
        asking.join(FIRST_WORD_SECONDS)
    return answers[0] if answers else True


def is_lost_contact(error: BaseException) -> bool:
    """Whether `error` comes from a collective that failed because of another rank."""
    from_gloo = type(error) is RuntimeError and ("gloo" in str(error).lower() or "closed by peer" in str(error))
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or from_gloo
