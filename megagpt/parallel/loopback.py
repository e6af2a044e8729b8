"""torchrun for jobs on one machine, with a store that only this machine can reach.

    python -m megagpt.parallel.loopback --nproc-per-node 2 -m megagpt experiment=demo

torchrun's own store listens on every interface whatever its address, and lets everybody in who reaches it.
"""

import socket
from typing import Any

import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

from megagpt.errors import ConfigError

ADDRESS = "127.0.0.1"


def store(host: str, port: int, world_size: int, is_master: bool, timeout: Any, multi_tenant: bool) -> dist.TCPStore:
    """The store that torchrun asks for, listening on the loopback interface. Raises ConfigError for another address."""
    if host not in (ADDRESS, "localhost"):
        raise ConfigError(f"a job on one machine meets at {ADDRESS}, not at {host}: leave --master-addr out")
    listener = socket.create_server((ADDRESS, port))
    return dist.TCPStore(
        *(ADDRESS, port, world_size, is_master, timeout), multi_tenant=False, master_listen_fd=listener.detach()
    )


def main() -> None:
    """torchrun's command line."""
    static_tcp_rendezvous.TCPStore = store
    run.main()


if __name__ == "__main__":
    main()
