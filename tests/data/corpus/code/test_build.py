"""Whole corpora: what is kept and dropped, whoever does the work, however often it is interrupted, adds up."""

import functools
import gzip
import json
import logging
import os
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")

from megagpt.data.corpus import executors
from megagpt.data.corpus.code import steps
from megagpt.data.corpus.code.build import build
from megagpt.data.corpus.code.options import Options
from megagpt.data.corpus.code.report import RULES
from megagpt.data.corpus.duplicates.steps import Cluster, FindRepeated, Match
from megagpt.data.preprocess import preprocess
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, DataError
from tests.data.corpus.killing import kill_while_filtering

ROOT = Path(__file__).parents[4]
QUESTION = "def most_frequent_letter(sentence, alphabet): return the letter of the alphabet that the sentence has most"


def program(seed: int, size: int = 300) -> list[str]:
    """Lines of a made-up program, unlike those of any other seed."""
    dice = random.Random(seed)
    words = ["".join(dice.choices("abcdefghij", k=6)) for _ in range(60)]
    return [f"{dice.choice(words)} = {dice.choice(words)}({dice.choice(words)})" for _ in range(size // 3)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Programs that are kept, and copies of some of them that are not."""
    folder = tmp_path_factory.mktemp("source") / "src"
    folder.mkdir()
    for number in range(24):
        (folder / f"p{number:02}.py").write_text("\n".join(program(number)))
    near, half, whole = program(3), program(5), (folder / "p04.py").read_text()
    near[50] = "one.line = differs"
    half[50:] = program(100)[50:]
    (folder / "x_near.py").write_text("\n".join(near))
    (folder / "x_half.py").write_text("\n".join(half))
    (folder / "x_contaminated.py").write_text("\n".join([*program(101), QUESTION]))
    (folder / "x_mail.py").write_text("\n".join([*program(102), "# jane@" + "corp.com"]))
    (folder / "x_empty.py").write_text("")
    (folder / "data.json").write_text("{}")
    with zipfile.ZipFile(folder / "copies.zip", "w") as archive:
        archive.writestr("p04.py", whole)
        archive.writestr("../up.py", whole)
    (folder.parent / "set.jsonl").write_text(json.dumps({"prompt": QUESTION}) + "\n")
    return folder


def options(source: Path, **more) -> Options:
    return Options(("python",), decontaminate=(str(source.parent / "set.jsonl"),), **{"shard_mb": 0.02} | more)


def content(folder: Path) -> dict[str, bytes]:
    # The command line makes a page besides.
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "report.html"}


def records(folder: Path) -> list[dict[str, str]]:
    import zstandard

    shards = sorted(folder.glob("*.jsonl.zst"))
    texts = [zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().decode() for path in shards]
    return [json.loads(line) for text in texts for line in text.removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """The corpus of `source`, made by one worker without interruption."""
    output = tmp_path_factory.mktemp("made") / "corpus"
    result = build([source], output, options(source))
    assert result.mb_per_second_core > 0 and result.mb_per_cpu_second > 0
    assert result.report == json.loads((output / "report.json").read_bytes())
    return output


def test_what_is_dropped_and_why(source, made):
    dropped = json.loads((made / "report.json").read_bytes())["dropped"]
    samples = {sample["path"]: (rule, sample["reason"]) for rule in dropped for sample in dropped[rule]["samples"]}
    near = {path for path, (rule, _) in samples.items() if rule == "near-duplicate"}
    assert len(near) == 1 and near < {"src/p03.py", "src/x_near.py"}
    assert samples.pop(next(iter(near)))[1] in ("like src/p03.py", "like src/x_near.py")
    exact = {path for path, (rule, _) in samples.items() if rule == "exact duplicate"}
    assert len(exact) == 1 and exact < {"src/p04.py", "src/copies.zip/p04.py"}
    assert samples.pop(next(iter(exact)))[1].startswith("the same text as src/")
    assert {path: rule for path, (rule, _) in samples.items()} == {
        "src/data.json": "language",
        "src/x_contaminated.py": "contamination",
        "src/x_empty.py": "empty",
        "src/copies.zip/../up.py": "unsafe path",
    }
    assert "set.jsonl" in samples["src/x_contaminated.py"][1]


def test_report_adds_up_to_the_input(source, made):
    report = json.loads((made / "report.json").read_bytes())
    drops, corpus, documents = report["dropped"].values(), report["corpus"], records(made)
    archive = zipfile.ZipFile(source / "copies.zip").infolist()
    sizes = [path.stat().st_size for path in source.glob("*.*") if path.suffix != ".zip"]
    sizes += [member.file_size for member in archive]
    assert report["input"] == {"files": len(sizes), "bytes": sum(sizes)}
    assert report["input"]["files"] == sum(drop["files"] for drop in drops) + corpus["documents"]
    assert report["input"]["bytes"] == sum(drop["bytes"] for drop in drops) + corpus["source_bytes"]
    assert corpus["documents"] == len(documents)
    assert corpus["text_bytes"] == sum(len(document["text"].encode()) for document in documents)
    assert corpus["languages"] == {"python": len(documents)} and corpus["licences"] == {"none found": len(documents)}
    assert report["redacted"]["e-mail address"]["replacements"] == 1
    assert list(report["dropped"]) == [rule for rule in RULES if rule in report["dropped"]]
    text = (made / "report.md").read_text()
    assert all(f"| {rule} | {drop['files']} |" in text for rule, drop in report["dropped"].items())


def test_documents_are_what_was_read(source, made):
    documents = {document["path"]: document for document in records(made)}
    assert {"src/x_half.py", "src/p05.py"} <= documents.keys() and len(documents) == 26
    assert documents["src/p07.py"] == {
        "text": (source / "p07.py").read_text(),
        "path": "src/p07.py",
        "language": "python",
        "licence": None,
    }
    assert documents["src/x_mail.py"]["text"].endswith("# <EMAIL>")


def test_preprocess_takes_it(made, tmp_path):
    texts = [document["text"] for document in records(made)]
    train_tokenizer(texts, 300).save(tmp_path / "tokenizer.json")
    about = preprocess([made], tmp_path / "tokenizer.json", tmp_path / "tokens", workers=1)
    assert about["documents"] == len(texts) and about["bytes"] == sum(len(text.encode()) for text in texts)


def test_workers_do_not_change_the_result(source, made, tmp_path):
    build([source], tmp_path / "corpus", options(source), workers=2)
    assert content(tmp_path / "corpus") == content(made)


def test_shards_do_not_change_what_is_found(source, made, tmp_path):
    build([source], tmp_path / "corpus", options(source, shard_mb=16))
    assert len(list((tmp_path / "corpus").glob("*.zst"))) == 1
    assert len(records(tmp_path / "corpus")) == len(records(made))


SBATCH = r"""#!/bin/bash
# Runs the tasks of a job one after the other, at once, and keeps what it was asked for.
script="${@: -1}"
number=$(( $(ls "$PLAYED" | wc -l) + 1 ))
{ echo "# ${*:1:$#-1}"; cat "$script"; } > "$PLAYED/$number"
if ! grep -q merge_stats "$script"; then
    last=$(sed -nE 's/^#SBATCH --array=0-([0-9]+).*/\1/p' "$script")
    for task in $(seq 0 "$last"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$number SLURM_NODELIST=here bash "$script" > "$PLAYED.log" 2>&1 || exit 1
    done
fi
echo "Submitted batch job $number"
"""


def test_slurm_does_the_same(source, tmp_path, monkeypatch):
    programs = {"sbatch": SBATCH, "srun": '#!/bin/bash\nexec "${@:4}"\n', "scontrol": "#!/bin/bash\necho here\n"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "played").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PLAYED", str(tmp_path / "played"))
    fewer = ["--minhash-buckets", "2", "--shard-mb", "0.06"]
    more = ["--slurm-partition", "cpu", "--slurm-time", "1:00:00", "--slurm-option", "account=me"]
    subprocess.run(command(source, tmp_path / "there", *fewer, *more), check=True, capture_output=True)
    build([source], tmp_path / "here", options(source, minhash_buckets=2, shard_mb=0.06))
    assert content(tmp_path / "there") == content(tmp_path / "here")
    jobs = [path.read_text() for path in sorted((tmp_path / "played").iterdir(), key=lambda path: int(path.name))]
    jobs = {re.search(r"job-name=(\w+)", job)[1]: job for job in jobs if "merge_stats" not in job}
    assert list(jobs) == [
        f"corpus_{name}"
        for name in ("filter", "exact", "sign", "match", "components", "split", "cluster", "write", "publish")
    ]
    for job in jobs.values():
        assert {"#SBATCH --partition=cpu", "#SBATCH --time=1:00:00", "#SBATCH --account=me"} <= set(job.splitlines())
    assert "--dependency" not in jobs["corpus_filter"] and "--dependency=afterok:1\n" in jobs["corpus_exact"]
    assert "#SBATCH --array=0-1%2" in jobs["corpus_sign"]
    again = subprocess.run(command(source, tmp_path / "there", *fewer), check=True, capture_output=True, text=True)
    assert "is already made" in again.stderr


STEPS = [steps.WriteFiltered, FindRepeated, steps.SignCode, Match, Cluster, steps.WriteDocuments, steps.Publish]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(source, made, tmp_path, monkeypatch, caplog, step):
    whole, name = step.run, "write_shard" if step.__name__.startswith("Write") else None

    def stop(self, data=None, rank=0, world_size=1):
        if rank < world_size // 2:
            return whole(self, data, rank, world_size)
        if name:  # after the first documents of a shard
            monkeypatch.setattr(steps, name, lambda path, lines: next(iter(lines)) and path.parent / 0)
            return whole(self, data, rank, world_size)
        if step is steps.Publish:  # after the shards have been moved
            monkeypatch.setattr(steps, "as_markdown", lambda report: 1 / 0)
            return whole(self, data, rank, world_size)
        raise KeyboardInterrupt

    output = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(step, "run", stop)
        with pytest.raises((KeyboardInterrupt, TypeError, ZeroDivisionError)):
            build([source], output, options(source))
    monkeypatch.undo()
    assert not (output / "report.json").exists()
    with caplog.at_level(logging.INFO):
        result = build([source], output, options(source))
    assert "going on with what an interrupted run has done" in caplog.text
    assert result.mb_per_second_core is None or step is steps.WriteFiltered
    assert content(output) == content(made) and not Path(f"{output}.work").exists()


def command(source: Path, output: Path, *more: str) -> list[str]:
    evaluation = str(source.parent / "set.jsonl")
    words = [str(source), "--output", str(output), "--languages", "python", "--decontaminate", evaluation]
    return [
        sys.executable,
        "-m",
        "megagpt.cli",
        "data",
        "corpus",
        "--kind",
        "code",
        *words,
        "--shard-mb",
        "0.02",
        *more,
    ]


def test_killed_it_goes_on_to_the_same_bytes(source, made, tmp_path):
    output = tmp_path / "corpus"
    kill_while_filtering(command(source, output, "--workers", "2"), output)
    again = subprocess.run(command(source, output), capture_output=True, text=True, check=True)
    assert "going on" in again.stderr and "26 documents" in again.stdout and "MB/s a core" not in again.stdout
    assert content(output) == content(made)


def test_a_killed_worker_is_reported(source, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "start_worker", functools.partial(os._exit, 1))
    with pytest.raises(DataError, match=r"worker process was killed.*goes on from here"):
        build([source], tmp_path / "corpus", options(source), workers=2)


def test_what_is_made_stays_and_what_has_changed_is_made_anew(source, tmp_path, caplog):
    output = tmp_path / "corpus"
    build([source], output, options(source))
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    build([source], output, options(source), workers=2)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    build([source], output, options(source, shard_mb=16))
    assert "was made with other shard_mb" in caplog.text
    assert sorted(path.name for path in output.iterdir()) == ["00000.jsonl.zst", "report.json", "report.md"]
    (output / "00000.jsonl.zst").unlink()
    build([source], output, options(source, shard_mb=16))
    assert "has no 00000.jsonl.zst" in caplog.text and (output / "00000.jsonl.zst").exists()


@pytest.mark.parametrize(("compression", "name"), [("gz", "00000.jsonl.gz"), ("none", "00000.jsonl")])
def test_compressions(source, tmp_path, compression, name):
    build([source / "p00.py", source / "p01.py"], tmp_path / "c", options(source, compression=compression))
    opened = gzip.open if compression == "gz" else open
    with opened(tmp_path / "c" / name, "rb") as file:
        assert [json.loads(line)["path"] for line in file] == ["p00.py", "p01.py"]


def test_an_output_inside_of_the_input_is_no_input(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    for _ in range(2):
        result = build([tmp_path], tmp_path / "out", Options(("python",)))
        assert result.report["input"]["files"] == 1
    assert result.mb_per_second_core is None


def test_nothing_kept_is_an_error_with_a_report(source, tmp_path):
    with pytest.raises(DataError, match=r"no document is left: .*report\.md"):
        build([source / "x_empty.py"], tmp_path / "corpus", options(source))
    assert "empty" in (tmp_path / "corpus" / "report.md").read_text()


def test_options_that_make_no_sense(source, tmp_path):
    with pytest.raises(ConfigError, match="--workers must be at least 1, not 0"):
        build([source], tmp_path / "c", options(source), workers=0)
    with pytest.raises(DataError, match="no such file of evaluation data"):
        build([source], tmp_path / "c", Options(("python",), decontaminate=("none.jsonl",)))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "report.json").write_text("[]")
    with pytest.raises(DataError, match="is not the report of a corpus"):
        build([source], tmp_path / "c", options(source))


def test_without_datatrove_one_sentence_says_so(source, tmp_path):
    program = "import sys; sys.modules['datatrove'] = None; from megagpt.cli import main; main()"
    words = [sys.executable, "-c", program, *command(source, tmp_path / "c")[3:]]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == ConfigError.exit_code
    assert 'making a code corpus needs datatrove: pip install "megagpt[corpora]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_humaneval_solution_is_dropped_and_counted(data_dir, tmp_path):
    path = data_dir / "humaneval" / "HumanEval.jsonl.gz"
    with gzip.open(path) as file:
        problem = json.loads(file.readline())
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "clean.py").write_text("\n".join(program(1)))
    (tmp_path / "src" / "prompt.py").write_text("\n".join([*program(2), problem["prompt"], "    pass"]))
    (tmp_path / "src" / "solved.py").write_text("\n".join([*program(3), "def f():", problem["canonical_solution"]]))
    report = build([tmp_path / "src"], tmp_path / "c", Options(("python",), decontaminate=(str(path),))).report
    drop = report["dropped"]["contamination"]
    assert drop["files"] == 2 and {item["path"] for item in drop["samples"]} == {"src/prompt.py", "src/solved.py"}
    assert [document["path"] for document in records(tmp_path / "c")] == ["src/clean.py"]
