"""A code corpus on a real Slurm: the jobs that datatrove submits run in order and give what one machine gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from megagpt.data.corpus.build import build
from megagpt.data.corpus.options import Options
from tests.slurm.cluster import wait

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_corpus_is_made_by_jobs(cluster, tmp_path):
    pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")
    inputs, there = [str(ROOT / "megagpt"), str(ROOT / "tools")], tmp_path / "there"
    words = ["--languages", "python", "--shard-mb", "0.5", "--minhash-buckets", "4", "--output", str(there)]
    words += ["--slurm-partition", "gpu", "--slurm-memory-gb", "1", "--slurm-time", "5"]
    cluster.run(sys.executable, "-m", "megagpt.cli", "data", "corpus", *inputs, *words)
    wait(lambda: not cluster.run("squeue", "-h").strip(), 240, "jobs of the corpus are still in the queue")
    build(inputs, tmp_path / "here", Options(("python",), minhash_buckets=4, shard_mb=0.5))
    subprocess.run(["diff", "-r", there, tmp_path / "here"], check=True)
