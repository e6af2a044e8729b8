"""Whole corpora of text: what is kept and dropped, whoever does the work, however often it is interrupted, adds up."""

import errno
import functools
import json
import logging
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")

import zstandard

from megagpt.data import files
from megagpt.data.corpus import executors
from megagpt.data.corpus.cluster import Ray
from megagpt.data.corpus.duplicates.steps import Cluster, FindRepeated, Split
from megagpt.data.corpus.text import steps
from megagpt.data.corpus.text.build import build
from megagpt.data.corpus.text.limits import Decontamination, Duplicates, Near, Quality
from megagpt.data.corpus.text.options import Options
from megagpt.data.corpus.text.recipe import Recipe
from megagpt.errors import ConfigError, DataError
from tests.data.corpus.killing import kill_while_filtering

RECIPE = Recipe(
    duplicates=Duplicates(urls=True, documents=True, spans=3, near=Near(hashes=4, verify=0.5)),
    decontamination=Decontamination(),
)
QUIZ = " ".join(f"quizword{number}" for number in range(20))


def prose(seed: int, words: int = 240) -> str:
    """Made-up sentences, unlike those of any other seed."""
    dice = random.Random(seed)
    chosen = ["".join(dice.choices("abcdefghij", k=6)) for _ in range(words)]
    return " ".join(word.capitalize() if n % 12 == 0 else word + "." * (n % 12 == 11) for n, word in enumerate(chosen))


def changed(text: str, every: int) -> str:
    """The same sentences, some words of which are others."""
    return " ".join(word.swapcase() + "x" if n % every == 5 else word for n, word in enumerate(text.split()))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Pages that are kept, and copies of some of them that are not."""
    folder = tmp_path_factory.mktemp("source") / "pages"
    folder.mkdir()
    pages = [{"text": prose(number), "url": f"http://a.org/{number}"} for number in range(30)]
    pages += [
        {"text": prose(4), "url": "http://copy.org/"},
        {"text": prose(100), "url": "http://a.org/7", "crawl": 7},
        {"text": changed(prose(8), 40), "url": "http://near.org/"},
        {"text": f"{prose(101)}\n{QUIZ}\n{prose(102)}", "url": "http://dirty.org/"},
        {"text": f"{prose(103)} {' '.join(prose(9).split()[:60])}", "url": "http://quotes.org/"},
        {"text": prose(104)},
        {"text": prose(104)},
    ]
    for number in range(5):
        lines = [json.dumps(page) for page in pages[number::5]]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, "{broken"] if number == 2 else lines) + "\n")
    (folder / "notes.pdf").write_text("not read")
    (folder.parent / "quiz.jsonl").write_text(json.dumps({"question": QUIZ}) + "\n")
    return folder


def options(source: Path, recipe: Recipe = RECIPE, **more) -> Options:
    evaluation = (str(source.parent / "quiz.jsonl"),)
    return Options("web", recipe, decontaminate=evaluation, **{"shard_mb": 0.015} | more)


NOT_REPRODUCIBLE = ("timing.json", "report.html")  # the page shows the times, and only the command line makes it


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in NOT_REPRODUCIBLE}


def records(folder: Path) -> list[dict]:
    shards = sorted(folder.glob("*.jsonl.zst"))
    texts = [zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().decode() for path in shards]
    return [json.loads(line) for text in texts for line in text.removesuffix("\n").split("\n")]


def reasons(report: dict) -> dict[str, tuple[str, str]]:
    """By source: the rule that dropped it, and why."""
    dropped = report["dropped"]
    return {item["source"]: (rule, item["reason"]) for rule in dropped for item in dropped[rule]["samples"]}


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """The corpus of `source`, made by one worker without interruption."""
    output = tmp_path_factory.mktemp("made") / "corpus"
    result = build([source], output, options(source))
    assert result.mb_per_second_core > 0 and result.mb_per_cpu_second > 0
    assert result.report == json.loads((output / "report.json").read_bytes())
    return output


def test_what_is_dropped_and_why(made):
    found = reasons(json.loads((made / "report.json").read_bytes()))
    assert found.pop("pages/2.jsonl#8")[0] == "invalid JSON"
    assert found.pop("pages/notes.pdf")[0] == "format"
    assert found == {
        "pages/4.jsonl#1": ("exact duplicate", "the same text as pages/0.jsonl#7"),
        "pages/2.jsonl#2": ("duplicate URL", "the same URL as pages/1.jsonl#7"),
        "pages/3.jsonl#2": ("near-duplicate", "like pages/2.jsonl#7"),
        "pages/1.jsonl#8": ("exact duplicate", "the same text as pages/0.jsonl#8"),
    }


def test_documents_are_what_was_read_without_evaluations_and_repeated_spans(source, made):
    documents = {(document["source"], document.get("piece")): document for document in records(made)}
    kept = documents["pages/3.jsonl#1", None]
    assert kept["text"] == prose(3) and kept["url"] == "http://a.org/3"
    before, after = (documents["pages/3.jsonl#7", piece]["text"] for piece in (1, 2))
    assert prose(101).startswith(before) and len(before) == len(prose(101)) + 1 - 200
    assert prose(102).endswith(after) and len(after) == len(prose(102)) + 1 - 200
    assert documents["pages/4.jsonl#7", None]["text"] == prose(103)
    assert not any("quizword" in document["text"] for document in documents.values())


def test_report_adds_up_to_the_input(source, made):
    report = json.loads((made / "report.json").read_bytes())
    drops, corpus, documents = report["dropped"].values(), report["corpus"], records(made)
    lines = [line for path in source.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    assert report["input"] == {"documents": len(lines) + 1, "bytes": sum(map(len, lines)) + len("not read")}
    assert report["input"]["documents"] == sum(drop["documents"] for drop in drops) + corpus["documents"]
    assert report["input"]["bytes"] == sum(drop["bytes"] for drop in drops) + corpus["source_bytes"]
    assert corpus["pieces"] == len(documents) == corpus["documents"] + 1
    assert corpus["text_bytes"] == sum(len(document["text"].encode()) for document in documents)
    assert sum(corpus["languages"].values()) == corpus["documents"]
    assert report["changed"]["overlap with evaluations"]["documents"] == 1
    assert report["unread_fields"] == {"crawl": 1}
    assert "Fields that are not read, with their records: crawl (1)" in (made / "report.md").read_text()
    assert report["near_duplicates"]["chance"]["0.8"] == round(1 - (1 - 0.8**4) ** 14, 4)
    assert report["near_duplicates"]["clusters"] == {"2": 1}
    text = (made / "report.md").read_text()
    assert all(f"| {rule} | {drop['documents']} |" in text for rule, drop in report["dropped"].items())
    timing = json.loads((made / "timing.json").read_bytes())
    assert {"filter", "signatures", "match", "components", "split", "cluster", "count", "write"} <= timing.keys()
    assert all(parts["total"] >= 0 for parts in timing.values())


def test_preprocess_takes_it(made, tmp_path):
    from megagpt.data.preprocess import preprocess
    from megagpt.data.tokenizer import train_tokenizer

    texts = [document["text"] for document in records(made)]
    train_tokenizer(texts, 300).save(tmp_path / "tokenizer.json")
    about = preprocess([made], tmp_path / "tokenizer.json", tmp_path / "tokens", workers=1)
    assert about["documents"] == len(texts) and about["bytes"] == sum(len(text.encode()) for text in texts)


def test_workers_do_not_change_the_result(source, made, tmp_path):
    build([source], tmp_path / "corpus", options(source), workers=2)
    assert content(tmp_path / "corpus") == content(made)


@pytest.mark.parametrize("shard_mb", [0.001, 128.0])
def test_shards_do_not_change_what_is_found(source, made, tmp_path, shard_mb):
    report = build([source], tmp_path / "corpus", options(source, shard_mb=shard_mb)).report
    assert records(tmp_path / "corpus") == records(made)
    assert reasons(report) == reasons(json.loads((made / "report.json").read_bytes()))


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_ranges_do_not_change_the_result(source, made, tmp_path, monkeypatch, tasks):
    from megagpt.data.corpus.duplicates import steps as duplicates
    from megagpt.data.corpus.text import phases

    monkeypatch.setattr(duplicates, "ranges", lambda shards: tasks)
    monkeypatch.setattr(phases, "ranges", lambda shards: tasks)
    build([source], tmp_path / "corpus", options(source))
    assert content(tmp_path / "corpus") == content(made)


STEPS = [
    steps.Filter,
    steps.Offer,
    FindRepeated,
    steps.Sign,
    Split,
    Cluster,
    steps.Count,
    steps.AddCounts,
    steps.Write,
    steps.Publish,
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(source, made, tmp_path, monkeypatch, caplog, step):
    whole = step.do

    def stop(self, rank, tasks):
        if rank < tasks // 2:
            return whole(self, rank, tasks)
        if step is steps.Publish:  # after the shards have been moved
            monkeypatch.setattr(steps.report, "as_json", lambda *_: 1 / 0)
            return whole(self, rank, tasks)
        raise KeyboardInterrupt

    output = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(step, "do", stop)
        with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
            build([source], output, options(source))
    monkeypatch.undo()
    assert not (output / "report.json").exists()
    with caplog.at_level(logging.INFO):
        result = build([source], output, options(source))
    assert "going on with what an interrupted run has done" in caplog.text
    assert result.mb_per_second_core is None
    assert content(output) == content(made) and not Path(f"{output}.work").exists()


@pytest.mark.parametrize("room", [3, 20, 60])
def test_a_full_disk_is_an_error_and_it_goes_on(source, made, tmp_path, monkeypatch, room):
    """As os.fsync reports it, which is where a file system that allocates late finds that it is full."""
    left, sync = [room], os.fsync

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            build([source], tmp_path / "corpus", options(source))
    assert not (tmp_path / "corpus" / "report.json").exists()
    build([source], tmp_path / "corpus", options(source))
    assert content(tmp_path / "corpus") == content(made)


@pytest.mark.parametrize("kilobytes", [40, 150])
def test_a_disk_that_is_really_full(source, made, tmp_path, kilobytes):
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path / "small")]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a small file system here")
    try:
        with pytest.raises(DataError, match="No space left on device"):
            build([source], tmp_path / "small" / "corpus", options(source))
        subprocess.run(["mount", "-o", "remount,size=100m", str(tmp_path / "small")], check=True)
        build([source], tmp_path / "small" / "corpus", options(source))
        assert content(tmp_path / "small" / "corpus") == content(made)
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


def test_a_killed_worker_is_reported(source, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "start_worker", functools.partial(os._exit, 1))
    with pytest.raises(DataError, match=r"worker process was killed.*goes on from here"):
        build([source], tmp_path / "corpus", options(source), workers=2)


def test_another_recipe_makes_it_anew(source, tmp_path, caplog):
    build([source], tmp_path / "corpus", options(source))
    other = Recipe(duplicates=Duplicates(documents=True))
    report = build([source], tmp_path / "corpus", options(source, other)).report
    assert "was made with other recipe" in caplog.text
    assert set(report["dropped"]) == {"exact duplicate", "format", "invalid JSON"}
    assert report["near_duplicates"] is None and report["job"]["recipe"]["duplicates"]["near"] is None


def test_a_document_that_is_dropped_repeats_for_nobody(tmp_path):
    """The second page goes for its URL: the third, with the same text, is then the first to have it."""
    pages = [("a", "http://x.org/"), ("b", "http://x.org/"), ("b", "http://y.org/")]
    lines = [json.dumps({"text": prose(ord(name)), "url": url}) for name, url in pages]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    recipe = Recipe(duplicates=Duplicates(urls=True, documents=True, near=Near()))
    build([tmp_path / "in.jsonl"], tmp_path / "out", Options("web", recipe))
    assert [document["url"] for document in records(tmp_path / "out")] == ["http://x.org/", "http://y.org/"]


def test_a_curated_set_removes_its_copies(source, made, tmp_path):
    curated = [prose(2), changed(prose(3), 40), prose(200), prose(200), prose(40)]
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in curated))
    build([tmp_path / "wiki.jsonl"], tmp_path / "wiki", Options("wiki", Recipe()))
    before = content(tmp_path / "wiki")
    for shard_mb in (0.015, 128.0):
        output = tmp_path / f"web{shard_mb}"
        recipe = Recipe(duplicates=replace(RECIPE.duplicates, spans=None))
        report = build([source], output, options(source, recipe, shard_mb=shard_mb, against=(str(tmp_path / "wiki"),)))
        found = reasons(report.report)
        assert found["pages/2.jsonl#1"] == ("exact duplicate", "the same text as wiki.jsonl#1")
        assert found["pages/3.jsonl#1"] == ("near-duplicate", "like wiki.jsonl#2")
        assert found["pages/3.jsonl#2"] == ("near-duplicate", "like pages/2.jsonl#7")
        assert len(found) == 8 and {document["source"] for document in records(output)}.isdisjoint(found)
        assert not any(document["source"].startswith("wiki") for document in records(output))
    assert content(tmp_path / "wiki") == before


def test_references_that_are_none(source, tmp_path):
    with pytest.raises(DataError, match=r"--against .*: there is no report\.json"):
        build([source], tmp_path / "c", options(source, against=(str(source),)))
    with pytest.raises(ConfigError, match="--against removes copies, but the recipe searches for none"):
        build([source], tmp_path / "c", options(source, Recipe(), against=(str(source),)))


def test_options_that_make_no_sense(source, tmp_path):
    with pytest.raises(ConfigError, match="--workers must be at least 1, not 0"):
        build([source], tmp_path / "c", options(source), workers=0)
    with pytest.raises(DataError, match="no such file"):
        build([source], tmp_path / "c", replace(options(source), decontaminate=("none.jsonl",)))
    with pytest.raises(ConfigError, match=r"give --quality-model FOLDER.*--set quality=null"):
        build([source], tmp_path / "c", options(source, Recipe(quality=Quality())))


def command(source: Path, output: Path, *more: str) -> list[str]:
    recipe = ["--recipe", str(source.parent / "recipe.yaml"), "--decontaminate", str(source.parent / "quiz.jsonl")]
    (source.parent / "recipe.yaml").write_text(
        "duplicates: {urls: true, documents: true, spans: 3, near: {hashes: 4, verify: 0.5}}\ndecontamination: {}\n"
    )
    words = [str(source), "--kind", "web", "--output", str(output), *recipe, "--shard-mb", "0.015", *more]
    return [sys.executable, "-m", "megagpt.cli", "data", "corpus", *words]


def test_killed_it_goes_on_to_the_same_bytes(source, made, tmp_path):
    output = tmp_path / "corpus"
    kill_while_filtering(command(source, output, "--workers", "2"), output)
    again = subprocess.run(command(source, output), capture_output=True, text=True, check=True)
    assert "going on" in again.stderr and "33 documents" in again.stdout
    assert content(output) == content(made)


def refused(source: Path, tmp_path: Path, *more: str) -> str:
    ended = subprocess.run(command(source, tmp_path / "c", *more), capture_output=True, text=True)
    assert ended.returncode == ConfigError.exit_code and "Traceback" not in ended.stderr
    return ended.stderr


def test_options_of_another_kind_are_refused_by_name(source, tmp_path):
    assert "--ngram is an option of --kind code, not of web" in refused(source, tmp_path, "--ngram", "5")
    assert "--recipe is an option of --kind web or wiki or books or articles, not of code" in refused(
        source, tmp_path, "--kind", "code", "--languages", "python"
    )
    assert "--slurm-partition and --ray are two clusters" in refused(
        source, tmp_path, "--ray", "local", "--slurm-partition", "cpu"
    )


@pytest.mark.parametrize("package", ["datatrove", "xxhash", "zstandard"])
def test_without_a_package_one_sentence_says_so(source, tmp_path, package):
    program = f"import sys; sys.modules[{package!r}] = None; from megagpt.cli import main; main()"
    words = [sys.executable, "-c", program, *command(source, tmp_path / "c")[3:]]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == ConfigError.exit_code
    assert f'needs {package}: pip install "megagpt[corpora]"' in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_ray_does_the_same(source, made, tmp_path):
    pytest.importorskip("ray", reason="megagpt[ray] is not installed")
    result = build([source], tmp_path / "corpus", options(source), workers=2, cluster=Ray("local"))
    assert content(tmp_path / "corpus") == content(made) and result.mb_per_second_core is None
