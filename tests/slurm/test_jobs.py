"""F26 to F28: jobs in a real Slurm end as documented, and are the run that never stopped when they come back."""

import contextlib
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from megagpt.checkpoint import find
from megagpt.errors import TrainingDiverged
from tests.faults import job as jobs
from tests.slurm.cluster import Cluster, wait

ROOT = Path(__file__).parents[2]
SLOW = Path(__file__).parent / "slow"
LONG = 600
"""Seconds that a part of a test may take on a machine that is busy with other jobs."""


@dataclass
class Job:
    """A job of `slurm/pretrain_125m.sh` with two ranks, and what it leaves in `folder`."""

    cluster: Cluster
    folder: Path
    settings: list[str]
    options: list[str] = field(default_factory=list)
    number: str = ""

    def submit(self, *overrides: str) -> "Job":
        environment = {
            "MEGAGPT_WITHOUT_GPUS": "1",
            "MEGAGPT_MAX_EPOCHS": "inf",
            "MEGAGPT_LOGS": str(self.folder / "logs"),
            "PYTHONPATH": str(SLOW),
        }
        script = ["slurm/pretrain_125m.sh", *self.settings, *overrides]
        command = ["sbatch", "--parsable", f"--output={self.folder}/%j.out", *self.options, *script]
        done = subprocess.run(
            command, cwd=ROOT, env=self.cluster.environment | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()
        return self

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def about(self) -> dict[str, str]:
        return self.cluster.about(self.number)

    def status(self) -> dict:
        (path,) = (self.folder / "logs").glob(f"*-{self.number}/status.json")
        return json.loads(path.read_text())

    def said(self) -> str:
        """All that the job has printed."""
        logs = (self.folder / "logs").glob(f"*-{self.number}/*.txt")
        return "\n".join(path.read_text() for path in (self.folder / f"{self.number}.out", *logs))

    def wait_for_step(self, step: int) -> None:
        wait(lambda: jobs.steps(self.run) >= step, LONG, f"job {self.number} does not reach step {step}")

    def wait_for(self, state: str) -> None:
        wait(lambda: self.about()["JobState"] == state, LONG, f"job {self.number} does not become {state}")

    def wait_for_word(self, word: str) -> None:
        wait(lambda: word in self.said(), LONG, f"job {self.number} does not say {word!r}")

    def limit_time(self, minutes: int) -> None:
        """Change the job's time limit, counted from its start."""
        self.cluster.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def processes(self, *words: str) -> list[int]:
        """Processes of the job with all these words in their environment or command."""
        mark = f"SLURM_JOB_ID={self.number}\0"
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
                if all(word.encode() in text for word in (mark, *words)):
                    found.append(int(folder.name))
        return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def settings(overrides: list[str], folder: Path, steps: int) -> list[str]:
    return [*jobs.settings(overrides, folder, "run", steps), "parallel=data", "checkpoint.interval=25"]


# ---- the job that survives ----------------------------------------------------------------------------------------

STEPS = 520
"""More than are done, at three a second, while the job lives through everything."""


def live_through_everything(job: Job) -> None:
    """A killed rank, the time limit and the death of a node, one after the other."""
    job.submit()
    job.wait_for_step(30)
    kill(job.processes("RANK=1\0")[:1])
    job.wait_for_word(" restarting: ")
    job.wait_for_step(jobs.steps(job.run) + 10)
    hours, minutes, _ = map(int, job.about()["RunTime"].split(":"))
    job.limit_time(60 * hours + minutes + 2)  # so the signal comes within a minute or so
    job.wait_for_word(" requeued: ")
    wait(lambda: job.about()["Restarts"] == "1", LONG, "the job does not come back")
    job.limit_time(60)
    job.wait_for_step(jobs.steps(job.run) + 30)
    daemon = (job.cluster.folder / "slurmd-n2.pid").read_text().strip()
    tasks = job.processes("SLURMD_NODENAME=n2\0")
    shepherds = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in tasks}
    kill(
        [int(daemon), *(pid for pid in shepherds if b"slurmstepd" in Path(f"/proc/{pid}/cmdline").read_bytes()), *tasks]
    )
    wait(lambda: job.about()["Restarts"] == "2", LONG, "the job does not come back after the death of a node")
    job.cluster.start_node("n2")
    job.wait_for("COMPLETED")


@pytest.fixture(scope="module")
def survivor(cluster, overrides, tmp_path_factory):
    """The job, and the future of its life: most of that is waiting, in which other tests can run."""
    folder = tmp_path_factory.mktemp("survivor")
    options = ["--nodes=2", "--nodelist=n1,n2", "--gpus-per-node=1", "--time=60", "--signal=B:USR1@50"]
    job = Job(cluster, folder, settings(overrides, folder, STEPS), options)
    with ThreadPoolExecutor(1) as pool:
        yield job, pool.submit(live_through_everything, job)


@pytest.fixture
def small(survivor, cluster, overrides, tmp_path) -> Job:
    """A job on one node, yet to be submitted."""
    options = ["--nodes=1", "--nodelist=n3", "--gpus-per-node=2", "--time=10"]
    return Job(cluster, tmp_path, settings(overrides, tmp_path, steps=100_000), options)


@pytest.mark.slow
def test_f27_a_cancelled_job_leaves_a_good_checkpoint_and_can_be_submitted_again(small):
    small.submit()
    small.wait_for_step(26)
    small.cluster.run("scancel", small.number)
    small.wait_for("CANCELLED")
    wait(lambda: not small.processes(), LONG, "processes outlive the job")
    assert small.status()["state"] == "cancelled"
    newest = find(small.run)
    step = int(newest.name.removeprefix("step_"))

    small.submit()
    small.wait_for_step(step + 5)
    small.cluster.run("scancel", "--batch", "--signal=INT", small.number)
    small.wait_for("COMPLETED")
    assert small.status()["state"] == "stopped"
    assert f"resumed at step {step} " in small.said()
    assert find(small.run).name == f"step_{jobs.steps(small.run):08d}"  # the last step was saved


@pytest.mark.slow
def test_what_is_missing_is_found_before_training(small):
    small.submit("data.corpora=[{path: nowhere/text}]")
    small.wait_for("FAILED")
    assert small.status()["state"] == "failed"
    assert "nowhere/text" in small.said()
    assert not small.run.exists()


@pytest.mark.slow
def test_what_another_attempt_would_meet_again_is_not_tried_again(small):
    small.submit("optim.lr=1e30", "optim.clip_grad=0", "optim.max_skipped_steps=3")
    small.wait_for("FAILED")
    status = small.status()
    assert (status["state"], status["restarts"]) == ("failed", 0)
    assert f"exit code {TrainingDiverged.exit_code} (TrainingDiverged)" in status["reason"]
    assert small.about()["ExitCode"] == f"{TrainingDiverged.exit_code}:0"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_f26_f28_a_job_survives_a_rank_its_limit_and_a_node(survivor, overrides, tmp_path):
    job, life = survivor
    life.result()
    assert job.status()["state"] == "finished"
    plain = settings(overrides, tmp_path, STEPS)
    process = jobs.start(jobs.command(2, plain), tmp_path / "log")
    assert process.wait(timeout=LONG) == 0, (tmp_path / "log").read_text()
    tensors, state = jobs.tensors(tmp_path / "run")
    tensors_after, state_after = jobs.tensors(job.run)
    assert state == state_after
    assert all(torch.equal(tensors[name], tensors_after[name]) for name in tensors)
    losses = jobs.losses(job.run)
    assert losses == jobs.losses(tmp_path / "run")
    assert len(losses) == STEPS
