"""A real Slurm on this machine: nodes that claim eight GPUs each, of which there are none."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=30
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=2,batch_sched_delay=1
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# SlurmdTimeout: on a busy machine a daemon may not answer for a while, and is not dead.
# cred_expire: a job that goes back into the queue waits as long as its credential lives, two minutes by default.
# linuxproc: a step's processes are known by their descent, for torchrun's ranks leave its process group.


def why_not() -> str | None:
    """What keeps this machine from running Slurm, if anything."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"Slurm is not installed here: no {', '.join(missing)} (apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "only root can start Slurm's daemons here"


class Cluster:
    """Daemons and the environment to talk to them; `running` nodes have a daemon, others are only declared."""

    def __init__(self, folder: Path, nodes: int, running: bool = True) -> None:
        self.folder = folder
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.running = self.names if running else []
        self.environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": _path()}

    def start(self) -> None:
        """Start the daemons, and wait until every node is ready for work."""
        (self.folder / "state").mkdir()
        port, *ports = _free_ports(1 + len(self.names))
        state = "UNKNOWN" if self.running else "CLOUD"
        lines = [
            f"NodeName={name} NodeHostname=localhost Port={port} CPUs=64 RealMemory=16000 Gres=gpu:8 State={state}"
            for name, port in zip(self.names, ports, strict=True)
        ]
        text = CONFIGURATION.format(folder=self.folder, port=port, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(text)
        gres = []
        for name in self.names:
            gres.append(f"NodeName={name} Name=gpu File={self.folder}/{name}-gpu[0-7]")
            for gpu in range(8):
                (self.folder / f"{name}-gpu{gpu}").touch()
        (self.folder / "gres.conf").write_text("\n".join(gres) + "\n")
        _start_munge()
        self.run("slurmctld", "-f", f"{self.folder}/slurm.conf")
        for name in self.running:
            self.start_node(name)
        idle = ("sinfo", "-hNt", "idle", "-o", "%N")
        wait(lambda: len(self.run(*idle).split()) == len(self.running), 60, "the nodes do not become idle")

    def start_node(self, name: str) -> None:
        self.run("slurmd", "-N", name, "-f", f"{self.folder}/slurm.conf")

    def stop(self) -> None:
        for path in self.folder.glob("*.pid"):
            subprocess.run(["kill", path.read_text().strip()], check=False, capture_output=True)

    def run(self, *command: str) -> str:
        """The standard output of a command that succeeds."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def about(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, by its names."""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def wait(condition, seconds: float, what: object) -> None:
    """Wait for a condition to become true; if it does not, the failure says `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def _start_munge() -> None:
    folder = Path("/run/munge")
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, "munge")
    if not (folder / "munge.socket.2").exists() or subprocess.run(["munge", "-n"], capture_output=True).returncode:
        subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=True, capture_output=True)
