"""Corpora on a real Slurm: the jobs that datatrove submits run in order and give what one machine gives."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")

from megagpt.data.corpus.code.build import build
from megagpt.data.corpus.code.options import Options
from megagpt.data.corpus.text.build import build as build_text
from megagpt.data.corpus.text.options import Options as TextOptions
from megagpt.data.corpus.text.recipe import load_recipe
from tests.slurm.cluster import wait

ROOT = Path(__file__).parents[2]
LONG = 400
"""Seconds that all jobs of a corpus may take on a machine that is busy with other jobs."""


def submit(cluster, inputs: list[str], output: Path, *words: str) -> None:
    slurm = ["--slurm-partition", "gpu", "--slurm-memory-gb", "1", "--slurm-time", "5"]
    command = [sys.executable, "-m", "megagpt.cli", "data", "corpus", *inputs, "--output", str(output)]
    cluster.run(*command, *words, *slurm)


def wait_for_end(cluster) -> None:
    wait(lambda: not cluster.run("squeue", "-h").strip(), LONG, "jobs of the corpus are still in the queue")


@pytest.mark.slow
def test_a_corpus_is_made_by_jobs(cluster, tmp_path):
    inputs, there = [str(ROOT / "megagpt"), str(ROOT / "tools")], tmp_path / "there"
    words = ["--kind", "code", "--languages", "python", "--shard-mb", "0.5", "--minhash-buckets", "4"]
    submit(cluster, inputs, there, *words)
    wait_for_end(cluster)
    build(inputs, tmp_path / "here", Options(("python",), minhash_buckets=4, shard_mb=0.5))
    subprocess.run(["diff", "-r", there, tmp_path / "here"], check=True)


def processes_of(node: str) -> Iterator[int]:
    """Of jobs on a node, and the shepherds of their steps."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURMD_NODENAME={node}\0".encode() in (path / "environ").read_bytes():
                yield int(path.name)
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes():
                    yield parent
        except OSError:  # it has ended
            continue


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_corpus_of_text_survives_the_death_of_a_node(cluster, tmp_path):
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghij", k=6)) for _ in range(5000)]
    (tmp_path / "pages").mkdir()
    for number in range(9):
        texts = [" ".join(dice.choices(words, k=300)) for _ in range(1500)]
        texts[::7] = texts[:1] * len(texts[::7])
        (tmp_path / "pages" / f"{number}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
    inputs, there = [str(tmp_path / "pages")], tmp_path / "there"
    changes = ["duplicates.documents=true", "gopher_repetition={}", "gopher_quality={min_stop_words: 0}"]
    options = [word for change in changes for word in ("--set", change)]
    recipe = ["--kind", "web", "--recipe", "c4", "--set", "c4=null", "--set", "languages=null", *options]
    submit(cluster, inputs, there, *recipe, "--shard-mb", "1")

    completed = Path(f"{there}.work") / "logs" / "filter" / "completions"
    wait(lambda: completed.is_dir() and any(completed.iterdir()), LONG, "no part of the work is completed")
    nodes: list[str] = []
    wait(lambda: nodes.extend(cluster.run("squeue", "-h", "-t", "R", "-o", "%N").split()) or nodes, LONG, "no job runs")
    node = nodes[0]
    daemon = int((cluster.folder / f"slurmd-{node}.pid").read_text())
    for pid in {daemon, *processes_of(node)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    state = ("sinfo", "-hN", "-n", node, "-o", "%T")
    wait(lambda: "down" in cluster.run(*state), LONG, f"Slurm does not notice the death of {node}")
    assert cluster.run("squeue", "-h").strip(), "the work was done before the node died"
    cluster.start_node(node)
    wait_for_end(cluster)
    made = [*changes, "c4=null", "languages=null"]
    build_text(inputs, tmp_path / "here", TextOptions("web", load_recipe("c4", made), shard_mb=1.0))
    subprocess.run(["diff", "-r", "-x", "timing.json", there, tmp_path / "here"], check=True)
