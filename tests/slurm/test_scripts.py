"""The job scripts: sizes that fit their recipes, and what slurm/train.sh decides, with a Slurm that is played."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from megagpt.config.load import load
from megagpt.config.rules import check
from tests.slurm.cluster import Cluster, why_not

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*_*.sh"))
DATA = ["data.tokenizer=data/tokenizer.json", "data.corpora=[{path: data/web}]"]


def options(script: Path) -> dict[str, str]:
    """What a script asks Slurm for."""
    lines = re.findall(r"^#SBATCH --(.+)$", script.read_text(), re.MULTILINE)
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def recipe(name: str) -> str:
    """The text of an experiment and of the one that it begins with."""
    text = (ROOT / "configs/experiment" / f"{name}.yaml").read_text()
    base = re.search(r"^  - (\w+)$", text, re.MULTILINE)
    return text + recipe(base[1]) if base else text


def test_the_sizes_are_there():
    pretraining = {f"pretrain_{size}" for size in ("125m", "1_3b", "6_7b", "13b", "175b")}
    aligned = {f"{stage}_{size}" for stage in ("sft", "reward", "ppo") for size in ("125m", "1_3b", "6_7b", "175b")}
    code = {f"{stage}_{size}" for stage in ("code", "edit") for size in ("125m", "1_3b")}
    sizes = {"350m": "ada", "1_3b": "babbage", "6_7b": "curie", "175b": "davinci"}
    embeddings = {f"embed_{kind}_{size}" for kind in ("text", "code") for size in sizes}
    families = ("text_similarity", "text_search", "code_search")
    tuned = {f"{family}_{size}" for family in families for size in sizes.values()}
    assert {script.stem for script in SCRIPTS} >= pretraining | aligned | code | embeddings | tuned


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_asks_for_what_its_recipe_needs(script):
    asked = options(script)
    nodes, gpus = int(asked["nodes"]), int(asked["gpus-per-node"])
    experiment = recipe(script.stem)
    cluster = re.search(r"/cluster: (\S+)", experiment)
    size = rf"(^|_){nodes}x{gpus}x" if cluster else rf"on {nodes} nodes of {gpus} GPUs"
    assert re.search(size, cluster[1] if cluster else experiment)
    check(load([f"experiment={script.stem}", *DATA]), nodes * gpus)
    assert asked["job-name"] == script.stem
    assert asked["ntasks-per-node"] == "1" and asked["signal"].startswith("B:USR1@") and "requeue" in asked
    assert not re.search(r"/home|/scratch|account|partition", script.read_text())


def test_scripts_differ_in_their_sizes_alone():
    def without_sizes(script: Path) -> str:
        text = script.read_text().replace(script.stem, "NAME")
        return re.sub(r"(?m)^# .*$|^#SBATCH --(nodes|time|signal)=.*$", "", text)

    assert len({without_sizes(script) for script in SCRIPTS}) == 1


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=str(why_not()))
def test_175b_would_start_on_128_nodes(tmp_path):
    for nodes, fits in ((128, True), (127, False)):
        folder = tmp_path / str(nodes)
        folder.mkdir()
        cluster = Cluster(folder, nodes, running=False)
        cluster.start()
        try:
            command = ["sbatch", "--test-only", "slurm/pretrain_175b.sh"]
            done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True)
        finally:
            cluster.stop()
        assert (done.returncode == 0) == fits, done.stderr
        assert ("on nodes n[1-128]" in done.stderr) == fits


# ---- what the script decides ----------------------------------------------------------------------------------------

PLAYED = {
    "scontrol": """
if [[ $2 == hostnames ]]; then printf 'n1\\nn2\\n'; fi
if [[ $2 == node ]]; then echo "NodeName=$3 NodeAddr=10.0.0.7 State=IDLE"; fi
if [[ $1 == requeue ]]; then echo "requeue $2" >>"$PLAY/calls"; kill -TERM $PPID; fi
""",
    "squeue": "date -d '+1 hour' +%FT%T",
    "sleep": "[[ $1 != 600 ]] || exec /bin/sleep 600",
    # Each call plays the next act: a line for each node that gives word, USR1 or TERM where Slurm signals the script.
    "srun": """
trap '' USR1 # which the real one passes on
echo "$*" >>"$PLAY/calls"
act=$PLAY/act$(grep -c outcome= "$PLAY/calls")
outcomes=$(grep -o 'outcome=[^ ]*' <<<"$*")
outcomes=$(dirname "${outcomes#outcome=}")
node=0
while read -r line; do
  if [[ $line =~ ^(USR1|TERM)$ ]]; then kill -"$line" $PPID; continue; fi
  echo "$line" >"$outcomes/$node"
  node=$((node + 1))
done <"$act"
""",
}
FINE = ["9 0 finished", "9 0 finished"]
SAVED = ["USR1", "6 75 rank 0 on n1: exit code 75", "6 75 rank 1 on n2: exit code 75"]
KILLED = ["2 137 rank 1 on n1: ended by SIGKILL", "4 6 rank 8 on n2: exit code 6"]
HALF = ["4 6 rank 0 on n1: exit code 6"]
DIED_OF_THE_SIGNAL = ["USR1", "2 138 rank 0 on n1: ended by SIGUSR1", "2 138 rank 8 on n2: ended by SIGUSR1"]


def play(
    folder: Path, acts: list[list[str]], squeue: str = PLAYED["squeue"], **variables: str
) -> tuple[int, dict, list[str]]:
    """Run slurm/pretrain_13b.sh in a job of two nodes; returns its exit code, its status and the calls.

    squeue: says when the job's time is over.
    """
    for name, text in (PLAYED | {"squeue": squeue}).items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    for number, act in enumerate(acts, 1):
        (folder / f"act{number}").write_text("".join(f"{line}\n" for line in act))
    job = {"JOB_NAME": "test", "JOB_ID": "70007", "JOB_NODELIST": "n[1-2]", "NNODES": "2", "GPUS_PER_NODE": "h100:8"}
    environment = {f"SLURM_{name}": value for name, value in job.items()} | {"SLURM_SUBMIT_DIR": str(ROOT)}
    environment |= {"PLAY": str(folder), "MEGAGPT_LOGS": str(folder / "logs"), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", "slurm/pretrain_13b.sh", "seed=7"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment | variables, capture_output=True, text=True, timeout=60
    )
    status = json.loads((folder / "logs/test-70007/status.json").read_text())
    return done.returncode, status, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("acts", "code", "state", "restarts", "reason"),
    [
        ([FINE, FINE], 0, "finished", 0, "last token"),
        ([["5 1 rank 0 on n1: exit code 1"] * 2], 1, "failed", 0, "the check found problems"),
        ([FINE, KILLED, FINE], 0, "finished", 1, "last token"),
        ([FINE, ["0 3 rank 3 on n1: exit code 3 (DataError)", "4 6 x"]], 3, "failed", 0, "DataError"),
        ([FINE, ["7 143 n1: ended by SIGTERM", "0 8 rank 9 on n2: exit code 8"]], 8, "failed", 0, "rank 9 on n2"),
        ([FINE, SAVED], 0, "requeued", 0, "saved"),
        ([FINE, KILLED, SAVED], 0, "requeued", 1, "saved"),
        ([FINE, KILLED, DIED_OF_THE_SIGNAL], 0, "requeued", 1, "not saved"),
        ([FINE, DIED_OF_THE_SIGNAL], 1, "failed", 0, "before training began"),
        ([["USR1", *FINE]], 1, "failed", 0, "before training began"),
        ([FINE, HALF, KILLED, HALF, HALF, HALF], 0, "requeued", 4, "node 1 of this job ended without a word"),
        ([FINE, HALF, FINE], 0, "finished", 1, "last token"),
        ([FINE, [], FINE], 0, "finished", 1, "last token"),
        ([FINE, KILLED, KILLED, KILLED], 1, "failed", 2, "rank 1 on n1: ended by SIGKILL, after MEGAGPT_MAX_RESTARTS"),
    ],
)
def test_what_becomes_of_a_job(acts, code, state, restarts, reason, tmp_path):
    limit = {"MEGAGPT_MAX_RESTARTS": "2"} if "MAX_RESTARTS" in reason else {}
    ended, status, calls = play(tmp_path, acts, **limit)
    assert (ended, status["state"], status["restarts"]) == (code, state, restarts)
    assert reason in status["reason"]
    assert status["job"] == 70007
    assert ("requeue 70007" in calls) == (state == "requeued")
    assert len([call for call in calls if "requeue" not in call]) == len(acts)


@pytest.mark.parametrize(
    ("squeue", "state"),
    [
        ("date -d '+1 hour' +%FT%T", "cancelled"),
        ("date +%FT%T", "timeout"),
        ("echo N/A", "cancelled"),
        ("exit 1", "cancelled"),
        ("true", "cancelled"),
    ],
)
def test_an_end_from_outside_is_told_from_the_limit(squeue, state, tmp_path):
    code, status, _ = play(tmp_path, [FINE, ["TERM"]], squeue)
    assert (code, status["state"]) == (128 + 15, state)


def test_the_launchers_command(tmp_path):
    _, _, (check_call, train_call) = play(tmp_path, [FINE, FINE])
    for call in (check_call, train_call):
        for part in ("--kill-on-bad-exit=1", "--wait=60", "--ntasks-per-node=1", "--nnodes=2", "--nproc-per-node=8"):
            assert f" {part} " in f" {call} "
        assert "--master-addr=10.0.0.7 --master-port=20007" in call
    assert check_call.endswith("-m megagpt.cli plan --check --max-epochs 4 --need-gpus experiment=pretrain_13b seed=7")
    assert train_call.endswith("-m megagpt experiment=pretrain_13b seed=7")


def test_a_job_of_one_node_meets_where_others_cannot_reach_it(tmp_path):
    for call in play(tmp_path, [FINE[:1], FINE[:1]], SLURM_NNODES="1")[2]:
        assert "--master-addr=127.0.0.1 " in call


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("megagpt.sif", r"- apptainer exec --nv --bind \S+ megagpt.sif python3 -m megagpt.parallel.torchrun"),
        ("nvcr.io#team/megagpt", r"--container-image=nvcr.io#team/megagpt --container-mounts=\S+ .* bash -c"),
    ],
)
def test_containers(image, expected, tmp_path):
    for call in play(tmp_path, [FINE, FINE], MEGAGPT_CONTAINER=image)[2]:
        assert re.search(expected, call), call


def test_a_job_submitted_elsewhere_says_so(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "slurm/pretrain_125m.sh")],
        env=os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "slurm/train.sh: No such file" in done.stderr
