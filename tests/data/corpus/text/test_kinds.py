"""From crawls, dumps and books in their real formats to corpora, by the recipes."""

import bz2
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")

import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from megagpt.data.corpus.text.build import build
from megagpt.data.corpus.text.options import Options
from megagpt.data.corpus.text.recipe import Recipe, load_recipe

STORY = (
    "The old harbour of the town lies below the church, and the boats that go out for herring leave it before the sun "
    "is up. In the years after the war there were more than two hundred of them. Most of the people who live there now "
    "have never been to sea, and they will tell you that the fish went away because of the new pier. "
)
LETTER = (
    "My dear friend, I have read your letter with great pleasure, and I hope that you will be able to visit us in the "
    "spring. The garden is full of snow, but the children have made a path to the gate and they play there all day. "
)


def crawl(path: Path, pages: list[tuple[str, str]], html: bool) -> Path:
    """A WARC file with responses, or a WET file with conversions, in Common Crawl's form."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record(path.name, {"isPartOf": "CC-MAIN-2024-22"}))
        for url, text in pages:
            if html:
                paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n"))
                body = (
                    f"<!DOCTYPE html><html><head><title>t</title></head><body><main>{paragraphs}</main></body></html>"
                )
                http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=UTF-8")], protocol="HTTP/1.1")
                record = writer.create_warc_record(url, "response", io.BytesIO(body.encode()), http_headers=http)
            else:
                record = writer.create_warc_record(
                    url, "conversion", io.BytesIO(text.encode()), warc_content_type="text/plain"
                )
            writer.write_record(record)
    return path


def records(folder: Path) -> dict[str, dict]:
    """By source."""
    texts = [zstandard.open(path, "rt", encoding="utf-8", newline="\n").read() for path in folder.glob("*.jsonl.zst")]
    found = [json.loads(line) for text in texts for line in text.removesuffix("\n").split("\n")]
    return {record["source"]: record for record in found}


def check_sums(report: dict) -> None:
    for count, of_corpus in (("documents", "documents"), ("bytes", "source_bytes")):
        dropped = sum(rule[count] for rule in report["dropped"].values())
        assert report["input"][count] == dropped + report["corpus"][of_corpus]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    story, letter = STORY * 3, LETTER * 4
    junk = "click here now " * 100
    pages = [("https://a.org/story", story), ("https://a.org/letter", letter), ("https://b.org/junk", junk)]
    (folder / "crawl").mkdir()
    crawl(folder / "crawl" / "CC-MAIN-0.warc.wet.gz", [*pages, ("https://c.org/fr", "C'est la vie. " * 60)], html=False)
    crawl(
        folder / "crawl" / "CC-MAIN-1.warc.gz", [("https://d.org/copy", story), ("https://d.org/x", LETTER)], html=True
    )
    dump = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en"><siteinfo>'
    dump += (
        '<base>https://en.wikipedia.org/wiki/Main_Page</base><namespaces><namespace key="0"/></namespaces></siteinfo>'
    )
    for title, text in (("Harbour", f"'''Harbour''' {story}"), ("Gone", "#REDIRECT [[Harbour]]")):
        redirect = '<redirect title="Harbour" />' if title == "Gone" else ""
        dump += f"<page><title>{title}</title><ns>0</ns><id>1</id>{redirect}<revision><id>2</id><model>wikitext</model>"
        dump += f"<format>text/x-wiki</format><text>{escape(text)}</text></revision></page>"
    (folder / "enwiki.xml.bz2").write_bytes(bz2.compress(f"{dump}</mediawiki>".encode()))
    (folder / "book.txt").write_text(f"CHAPTER I\n\n{letter}\n\n{story}", encoding="latin-1")
    return folder


def test_a_crawl(inputs, tmp_path):
    recipe = load_recipe("fineweb", ["fineweb=null", "gopher_repetition=null", "duplicates.documents=true"])
    report = build([inputs / "crawl"], tmp_path / "web", Options("web", recipe)).report
    found = records(tmp_path / "web")
    assert {record["url"] for record in found.values()} == {"https://a.org/story", "https://a.org/letter"}
    assert all(record["language"] == "en" for record in found.values())
    assert found["crawl/CC-MAIN-0.warc.wet.gz#2"]["text"] == (STORY * 3).strip()
    rules = {sample["source"]: rule for rule, count in report["dropped"].items() for sample in count["samples"]}
    assert rules.pop("crawl/CC-MAIN-0.warc.wet.gz#5").startswith("languages: ")
    assert {source for source, rule in rules.items() if "duplicate" in rule} == {"crawl/CC-MAIN-1.warc.gz#2"}
    check_sums(report)


def test_a_dump_a_book_and_the_crawl_without_them(inputs, tmp_path):
    recipe = load_recipe("gpt3", ["quality=null"])
    wiki = build([inputs / "enwiki.xml.bz2"], tmp_path / "wiki", Options("wiki", recipe)).report
    books = build([inputs / "book.txt"], tmp_path / "books", Options("books", recipe)).report
    assert list(records(tmp_path / "wiki")) == ["enwiki.xml.bz2:Harbour"] and wiki["input"]["documents"] == 2
    (book,) = records(tmp_path / "books").values()
    assert book["text"].startswith("CHAPTER I") and book["text"].count("herring") == 3
    against = (str(tmp_path / "wiki"), str(tmp_path / "books"))
    web = build([inputs / "crawl"], tmp_path / "web", Options("web", recipe, against=against)).report
    samples = {sample["source"]: sample["reason"] for sample in web["dropped"]["near-duplicate"]["samples"]}
    assert (
        samples["crawl/CC-MAIN-0.warc.wet.gz#2"]
        == samples["crawl/CC-MAIN-1.warc.gz#2"]
        == ("like enwiki.xml.bz2:Harbour")
    )
    for report in (wiki, books, web):
        check_sums(report)


def demo(data_dir: Path, name: str) -> list[str]:
    with gzip.open(data_dir / "wiki_c4_demo" / f"{name}_demo.jsonl.gz") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["pareto", "threshold", "share"])
def test_real_pages_are_judged_and_counted(data_dir, tmp_path, rule):
    from megagpt.data.corpus.text.analysis import Analysis
    from megagpt.data.corpus.text.quality.model import load_model
    from megagpt.data.corpus.text.quality.texts import Texts
    from megagpt.data.corpus.text.quality.train import train

    folder = data_dir / "wiki_c4_demo"
    train(Texts((folder / "wiki_demo.jsonl.gz",)), Texts((folder / "c4_demo.jsonl.gz",)), tmp_path / "model")
    pages = demo(data_dir, "c4") + demo(data_dir, "wiki")
    for number in range(3):
        part = [(f"https://a.org/{n}", text) for n, text in enumerate(pages) if n % 3 == number]
        crawl(tmp_path / f"{number}.warc.wet.gz", part, html=False)
    inputs = sorted(tmp_path.glob("*.wet.gz"))
    changes = [
        f"quality.rule={rule}",
        f"quality.model={tmp_path / 'model'}",
        "quality.threshold=0.3",
        "quality.share=0.2",
    ]
    options = Options("web", load_recipe("gpt3", changes), shard_mb=0.05)
    report = build(inputs, tmp_path / "one", options).report
    check_sums(report)
    assert build(inputs, tmp_path / "two", options, workers=2).report == report
    model = load_model(tmp_path / "model")
    scores = {f"https://a.org/{n}": model.score(Analysis(text.strip())) for n, text in enumerate(pages)}
    found = {record["url"]: record["score"] for record in records(tmp_path / "one").values()}
    assert all(found[url] == pytest.approx(scores[url], abs=1e-6) for url in found)
    dropped = report["dropped"]["quality"]["documents"]
    if rule == "threshold":
        assert dropped == sum(score < 0.3 for score in scores.values()) and min(found.values()) >= 0.3
    elif rule == "share":
        assert len(pages) - dropped == 66 and min(found.values()) >= sorted(scores.values())[-66] - 1e-6
    else:
        expected = sum((2 - score) ** -9.0 for score in scores.values())
        assert abs(len(pages) - dropped - expected) < 4 * expected**0.5


def test_everything_off_keeps_everything(inputs, tmp_path):
    report = build([inputs / "crawl" / "CC-MAIN-0.warc.wet.gz"], tmp_path / "c", Options("web", Recipe())).report
    assert report["corpus"]["documents"] == 4 and set(report["dropped"]) <= {"warcinfo", "not a page", "record type"}
    check_sums(report)


def test_links_with_votes(inputs, tmp_path):
    (tmp_path / "links.tsv").write_text("https://a.org/letter\t5\nhttps://a.org/story\t2\n")
    options = Options("web", Recipe(), links=(str(tmp_path / "links.tsv"),))
    wet = inputs / "crawl" / "CC-MAIN-0.warc.wet.gz"
    for least, urls in ((3.0, {"https://a.org/letter"}), (2.0, {"https://a.org/letter", "https://a.org/story"})):
        build([wet], tmp_path / "c", replace(options, min_link_score=least))
        assert {record["url"] for record in records(tmp_path / "c").values()} == urls
